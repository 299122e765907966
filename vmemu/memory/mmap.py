"""mmap(2), munmap(2) and brk(2): which mappings there are. Errors in the order of do_mmap() and mmap_region()."""

from __future__ import annotations

import errno
from typing import SupportsIndex

from vmemu._native import constants as c
from vmemu.errors import OutOfMemory, syscall_error
from vmemu.files import File
from vmemu.memory.args import TASK_SIZE, page_up, u64
from vmemu.memory.commit import enough_memory
from vmemu.memory.space import STACK_GUARD, Space
from vmemu.memory.words import BRK, MMAP_BASE, START_BRK
from vmemu.types import PAGE_SIZE, Map, Overcommit, Prot

__all__ = ["brk", "find_hole", "map_private", "mmap", "munmap", "vm_prot"]

MMAP_MIN_ADDR = 65536
_MAP_32BIT = 0x40
_BOTTOM_UP = (TASK_SIZE // 3 + PAGE_SIZE - 1) & -PAGE_SIZE
"""TASK_UNMAPPED_BASE, where the search goes on upwards when nothing is free below mmap_base."""
_HUGE_PAGE = 2 << 20
_MAX_FILE_PAGES = ((1 << 63) - 1) // PAGE_SIZE
_LEGACY_FLAGS = 0x0007F9FF | 0x1F << 26
"""LEGACY_MAP_MASK: flags that MAP_SHARED_VALIDATE knows on x86-64."""
_MAY = c.VM_MAYREAD | c.VM_MAYWRITE | c.VM_MAYEXEC


def vm_prot(prot: int) -> int:
    """VM flags for PROT_* bits; others are ignored (calc_vm_prot_bits())."""
    return int(prot) & 7


def mmap(
    space: Space,
    address: SupportsIndex | None,
    length: SupportsIndex,
    prot: int,
    flags: int,
    file: File | None,
    offset: int,
) -> int:
    """Maps memory and returns where."""
    call = "mmap"
    addr = u64(0 if address is None else address, call, "address")
    size = u64(length, call, "length")
    prot, flags = u64(prot, call, "prot"), u64(flags, call, "flags")
    where = u64(offset, call, "offset")
    if where % PAGE_SIZE:
        raise syscall_error(call, errno.EINVAL, f"offset {where:#x} is not a multiple of the page size")
    anonymous = bool(flags & Map.ANONYMOUS)
    if anonymous:
        file = None
    elif not isinstance(file, File):
        if file is not None:
            raise TypeError(f"mmap: file must be a File, not {type(file).__name__}")
        raise syscall_error(call, errno.EBADF, "neither MAP_ANONYMOUS nor a file")
    inode = file.hold(space.kernel.files, call) if file is not None else None
    pgoff = where // PAGE_SIZE
    if not size:
        raise syscall_error(call, errno.EINVAL, "length 0")
    fixed = flags & (Map.FIXED | Map.FIXED_NOREPLACE)
    size = page_up(size)
    if not size:
        raise syscall_error(call, errno.ENOMEM, "length wraps around")
    with space.kernel.lock:
        if not space.room_for_split(0):
            raise syscall_error(call, errno.ENOMEM, f"more than {space.kernel.max_map_count} mappings")
        if flags & Map.HUGETLB and anonymous:
            raise syscall_error(call, errno.ENOMEM, "no huge pages are reserved")
        addr = _place(space, addr, size, bool(fixed), flags, file)
        if flags & Map.FIXED_NOREPLACE:
            there = space.kernel.core.find(space.sid, addr)
            if there is not None and there.start < addr + size:
                raise syscall_error(call, errno.EEXIST, f"{there.start:#x}-{there.end:#x} is mapped")
        vm_flags = vm_prot(prot) | _MAY | _other_flags(flags)
        if file is not None:
            vm_flags |= _file_flags(file, prot, flags, pgoff, size)
            if vm_flags & (c.VM_SHARED | c.VM_MAYSHARE) == c.VM_MAYSHARE:
                vm_flags &= ~c.VM_MAYWRITE
        else:
            vm_flags |= _anonymous_flags(flags)
        if flags & Map.NORESERVE and space.kernel.overcommit != Overcommit.NEVER:
            vm_flags |= c.VM_NORESERVE
        _check_sealed(space, addr, addr + size, call)
        accountable = vm_flags & (c.VM_NORESERVE | c.VM_SHARED | c.VM_WRITE) == c.VM_WRITE
        charged = anonymous and bool(vm_flags & c.VM_SHARED) and not vm_flags & c.VM_NORESERVE
        if (accountable or charged) and not enough_memory(space.kernel, space.sid, size // PAGE_SIZE):
            raise syscall_error(call, errno.ENOMEM, f"overcommit: {size} bytes more than may be promised")
        if accountable:
            vm_flags |= c.VM_ACCOUNT
        core, files = space.kernel.core, space.kernel.files
        if file is not None and inode is not None:
            core.map(space.sid, addr, addr + size, vm_flags, inode.object, pgoff, file.tag, call)
        elif vm_flags & c.VM_SHARED:
            shared = files.anonymous(size, charged)
            try:
                core.map(space.sid, addr, addr + size, vm_flags, shared.object, 0, 0, call)
            finally:
                core.object_release(shared.object)
        else:
            core.map(space.sid, addr, addr + size, vm_flags, 0, addr // PAGE_SIZE, 0, call)
        if flags & Map.LOCKED or flags & (Map.POPULATE | Map.NONBLOCK) == Map.POPULATE:
            try:
                _populate(space, addr, addr + size, vm_flags)
            except OutOfMemory:
                core.unmap(space.sid, addr, addr + size, call)
                raise
    return addr


def _populate(space: Space, start: int, end: int, vm_flags: int) -> None:
    """MAP_POPULATE: write faults where a private mapping is writable, else read faults; errors are ignored
    (mm_populate())."""
    if vm_flags & (c.VM_READ | c.VM_WRITE | c.VM_EXEC):
        space.populate(start, end, vm_flags & (c.VM_WRITE | c.VM_SHARED) == c.VM_WRITE)


def _other_flags(flags: int) -> int:
    out = c.VM_GROWSDOWN if flags & Map.GROWSDOWN else 0
    if flags & Map.LOCKED:
        out |= c.VM_LOCKED
    if flags & Map.STACK:  # no other effect (calc_vm_flag_bits())
        out |= c.VM_NOHUGEPAGE
    return out


def _file_flags(file: File, prot: int, flags: int, pgoff: int, size: int) -> int:
    """The sharing part for a file mapping."""
    call = "mmap"
    if pgoff + size // PAGE_SIZE > _MAX_FILE_PAGES:
        raise syscall_error(call, errno.EOVERFLOW, "offset and length are beyond the largest file")
    kind = flags & 0xF
    out = 0
    if flags & Map.HUGETLB:
        raise syscall_error(call, errno.EINVAL, "MAP_HUGETLB with an ordinary file")
    if kind == Map.SHARED_VALIDATE:
        if flags & ~_LEGACY_FLAGS:
            raise syscall_error(call, errno.EOPNOTSUPP, f"flags {flags:#x}")
        kind = int(Map.SHARED)
    if kind == Map.SHARED:
        if prot & Prot.WRITE and not file.writable:
            raise syscall_error(call, errno.EACCES, f"{file.name} is open read-only")
        out = c.VM_SHARED | c.VM_MAYSHARE
        if not file.writable:  # a shared mapping that can never be written (VM_SHARED says it could)
            out = c.VM_MAYSHARE
    elif kind != Map.PRIVATE:
        raise syscall_error(call, errno.EINVAL, "neither MAP_SHARED nor MAP_PRIVATE")
    if flags & Map.GROWSDOWN:
        raise syscall_error(call, errno.EINVAL, "MAP_GROWSDOWN with a file")
    return out


def _anonymous_flags(flags: int) -> int:
    """The sharing part for anonymous memory."""
    call = "mmap"
    kind = flags & 0xF
    if kind == Map.SHARED:
        if flags & Map.GROWSDOWN:
            raise syscall_error(call, errno.EINVAL, "MAP_GROWSDOWN with MAP_SHARED")
        return c.VM_SHARED | c.VM_MAYSHARE
    if kind == Map.DROPPABLE:
        raise NotImplementedError("mmap: MAP_DROPPABLE")
    if kind != Map.PRIVATE:
        raise syscall_error(call, errno.EINVAL, "neither MAP_SHARED nor MAP_PRIVATE")
    return 0


def _place(space: Space, addr: int, size: int, fixed: bool, flags: int, file: File | None) -> int:
    """The address (__get_unmapped_area())."""
    call = "mmap"
    if size > TASK_SIZE:
        raise syscall_error(call, errno.ENOMEM, f"length {size:#x} is beyond the address space")
    if fixed:
        if addr > TASK_SIZE - size:
            raise syscall_error(call, errno.ENOMEM, f"{addr:#x} + {size:#x} is beyond the address space")
        if addr % PAGE_SIZE:
            raise syscall_error(call, errno.EINVAL, f"address {addr:#x} is not page aligned")
        return addr
    hint = addr & -PAGE_SIZE
    if hint:
        hint = max(hint, MMAP_MIN_ADDR)
    if flags & _MAP_32BIT:
        found = _low_hole(space, hint, size)
        if found is None:
            raise syscall_error(call, errno.ENOMEM, f"no hole of {size} bytes below 2 GiB")
        return found
    align = _HUGE_PAGE if file is None and not flags & Map.SHARED and size % _HUGE_PAGE == 0 else PAGE_SIZE
    found = find_hole(space, hint, size, align)
    if found is None:
        raise syscall_error(call, errno.ENOMEM, f"no hole of {size} bytes in the address space")
    return found


def _free_at(space: Space, address: int, size: int, limit: int) -> bool:
    """Nothing is mapped in the range, which ends below *limit*, nor is it a stack's guard gap."""
    if address > limit - size:
        return False
    core, sid = space.kernel.core, space.sid
    after, before = core.find(sid, address), core.find_before(sid, address + size)
    end = limit if after is None else after.start - (STACK_GUARD if after.flags & c.VM_GROWSDOWN else 0)
    return address + size <= end and (before is None or before.end <= address)


def _low_hole(space: Space, hint: int, size: int) -> int | None:
    """MAP_32BIT: from 1 to 2 GiB, upwards (find_start_end())."""
    if hint and _free_at(space, hint, size, 2 << 30):
        return hint
    return space.kernel.core.hole(space.sid, 1 << 30, 2 << 30, size, PAGE_SIZE, False)


def find_hole(space: Space, hint: int, size: int, align: int = PAGE_SIZE) -> int | None:
    """Where a mapping goes: at the hint if it is free, else in the highest hole that fits below mmap_base, else upwards
    (arch_get_unmapped_area_topdown()).
    """
    core, sid = space.kernel.core, space.sid
    if hint and _free_at(space, hint, size, TASK_SIZE):
        return hint
    base = core.words(sid)[MMAP_BASE]
    if align > PAGE_SIZE:
        found = core.hole(sid, PAGE_SIZE, base, size, align, True)
        if found is not None:
            return found
    found = core.hole(sid, PAGE_SIZE, base, size, PAGE_SIZE, True)
    if found is None:
        found = core.hole(sid, _BOTTOM_UP, TASK_SIZE, size, PAGE_SIZE, False)
    return found


def _check_sealed(space: Space, start: int, end: int, call: str) -> None:
    """EPERM if any of the range is sealed. By then Linux has split the first mapping (vms_gather_munmap_vmas())."""
    for number, vma in enumerate(space.vmas(start, end)):
        if vma.flags & c.VM_SEALED:
            if number:
                space.kernel.core.split(space.sid, start, call)
            raise syscall_error(call, errno.EPERM, f"{vma.start:#x}-{vma.end:#x} is sealed")


def munmap(space: Space, address: SupportsIndex, length: SupportsIndex, call: str = "munmap") -> None:
    """Unmaps what is mapped in the range (do_vmi_munmap())."""
    addr, size = u64(address, call, "address"), u64(length, call, "length")
    if addr % PAGE_SIZE:
        raise syscall_error(call, errno.EINVAL, f"address {addr:#x} is not page aligned")
    if addr > TASK_SIZE or size > TASK_SIZE - addr:
        raise syscall_error(call, errno.EINVAL, f"{addr:#x} + {size:#x} is beyond the address space")
    end = addr + page_up(size)
    if end == addr:
        raise syscall_error(call, errno.EINVAL, "length 0")
    with space.kernel.lock:
        first = space.kernel.core.find(space.sid, addr)
        if first is None or first.start >= end:
            return
        if first.start < addr and end < first.end and not space.room_for_split():
            raise syscall_error(call, errno.ENOMEM, f"more than {space.kernel.max_map_count} mappings")
        _check_sealed(space, addr, end, call)
        space.kernel.core.unmap(space.sid, addr, end, call)


def brk(space: Space, address: SupportsIndex) -> int:
    """Moves the program break and returns where it is; on failure that is where it was."""
    new = u64(address, "brk", "address")
    kernel, core = space.kernel, space.kernel.core
    with kernel.lock:
        words = core.words(space.sid)
        start, old = words[START_BRK], words[BRK]
        if new < start or new >= TASK_SIZE:
            return old
        new_end, old_end = page_up(new), page_up(old)
        if new_end < old_end:
            for vma in core.vmas(space.sid, new_end, old_end):
                if vma.flags & c.VM_SEALED:
                    return old
            core.unmap(space.sid, new_end, old_end, "brk")
        elif new_end > old_end:
            following = core.find(space.sid, old_end)
            if following is not None:
                gap = STACK_GUARD if following.flags & c.VM_GROWSDOWN else 0
                if following.start - gap < new_end + PAGE_SIZE:
                    return old
            npages = (new_end - old_end) // PAGE_SIZE
            if not space.room_for_split(0) or not enough_memory(kernel, space.sid, npages):
                return old
            map_private(space, old_end, new_end, Prot.READ | Prot.WRITE, "brk")
        words[BRK] = new
        core.set_words(space.sid, words)
        return new


def map_private(space: Space, start: int, end: int, prot: int, call: str, extra: int = 0) -> None:
    """Private anonymous memory at a place already decided on; charged if it is writable."""
    flags = vm_prot(prot) | _MAY | extra | (c.VM_ACCOUNT if prot & Prot.WRITE else 0)
    space.kernel.core.map(space.sid, start, end, flags, 0, start // PAGE_SIZE, 0, call)
