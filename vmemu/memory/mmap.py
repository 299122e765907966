"""mmap(2) and munmap(2): which mappings there are. Errors in the order of ksys_mmap_pgoff(), do_mmap() and
mmap_region(), the last of which has already unmapped what MAP_FIXED replaces when it fails late.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple, SupportsIndex

from vmemu._native import Vma
from vmemu._native import constants as c
from vmemu.alignment import HUGE_PAGE
from vmemu.errors import KernelPanic, OutOfMemory, syscall_error
from vmemu.limits import Resource
from vmemu.memory import hugetlb
from vmemu.memory.args import MASK, TASK_SIZE, page_up, u64
from vmemu.memory.bits import (
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_SYNC,
    MAP_TYPE,
    PROT_WRITE,
)
from vmemu.memory.place import MMAP_MIN_ADDR, place
from vmemu.memory.shortage import make_room
from vmemu.memory.space import Space
from vmemu.memory.words import DEF_FLAGS, MMAP_BASE
from vmemu.openfile import File
from vmemu.types import PAGE_SIZE, Overcommit

__all__ = ["map_private", "mmap", "munmap", "remap_file_pages", "vm_prot"]

CALL = "mmap"
_MAX_FILE_PAGES = ((1 << 63) - 1) // PAGE_SIZE
_LEGACY_FLAGS = 0x0007F9FF | 0x1F << 26
"""LEGACY_MAP_MASK: flags that MAP_SHARED_VALIDATE knows on x86-64."""
_MAY = c.VM_MAYREAD | c.VM_MAYWRITE | c.VM_MAYEXEC
_MAY_AND_ACCOUNT = _MAY | c.VM_ACCOUNT
_LOCKED = c.VM_LOCKED | c.VM_LOCKONFAULT
_PLAIN = MAP_PRIVATE | MAP_ANONYMOUS
_AS, _DATA = int(Resource.AS), int(Resource.DATA)


def vm_prot(prot: int) -> int:
    """VM flags for PROT_* bits; others are ignored (calc_vm_prot_bits())."""
    return int(prot) & 7


class _Backing(NamedTuple):
    """An open file, as do_mmap() has to know it."""

    object: int
    tag: int
    on_disk: bool
    writable: bool = True
    readable: bool = True
    name: str = "it"


class _Wish(NamedTuple):
    """A call's arguments; the size is in whole pages."""

    address: int
    size: int
    prot: int
    flags: int
    file: _Backing | None
    pgoff: int

    @property
    def huge(self) -> bool:
        return self.flags & MAP_HUGETLB != 0


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
    lock = space.kernel.lock
    try:
        lock.acquire()
        if (
            flags == _PLAIN
            and (address is None or type(address) is int and not address)
            and type(offset) is int
            and not offset
            and type(length) is int
            and isinstance(prot, int)
            and isinstance(flags, int)
        ):
            start = _map_plain(space, length, int(prot))
            if start:
                return start
        return _map(space, _wish(space, address, length, prot, flags, file, offset))
    except BaseException as error:
        table = space.kernel.processes
        table.torn, table.plain, table.quiet = True, False, False
        space.kernel.interrupted(error)
        raise
    finally:
        lock.release()


def _map_plain(space: Space, length: int, prot: int) -> int:
    """What `_map` does with private memory, anywhere, if there is nothing to refuse -> the address; 0: ask `_map`."""
    kernel, size = space.kernel, length + 4095 & -PAGE_SIZE
    npages = size // PAGE_SIZE
    if (
        not 0 <= prot <= 7
        or not 0 < npages <= kernel.npages
        or not size % HUGE_PAGE
        or kernel.overcommit is not Overcommit.HEURISTIC
    ):
        return 0
    flags = prot | (_MAY_AND_ACCOUNT if prot & PROT_WRITE else _MAY)
    limits = kernel.limits.of(space.pid).pairs
    soft, hard = limits[_DATA]
    return kernel.core.map_plain(
        space.sid,
        size,
        flags,
        MMAP_BASE,
        kernel.max_map_count,
        limits[_AS][0] // PAGE_SIZE,
        (soft or hard) // PAGE_SIZE,
    )


def _wish(
    space: Space,
    address: SupportsIndex | None,
    length: SupportsIndex,
    prot: int,
    flags: int,
    file: File | None,
    offset: int,
) -> _Wish:
    addr = u64(0 if address is None else address, CALL, "address")
    size = u64(length, CALL, "length")
    prot, flags = u64(prot, CALL, "prot"), u64(flags, CALL, "flags")
    where = u64(offset, CALL, "offset")
    if where % PAGE_SIZE:
        raise syscall_error(CALL, errno.EINVAL, f"offset {where:#x} is not a multiple of the page size")
    backing = None
    if flags & MAP_ANONYMOUS:
        if flags & MAP_HUGETLB:
            size = hugetlb.whole_pages(size, flags)
    elif not isinstance(file, File):
        if file is not None:
            raise TypeError(f"mmap: file must be a File, not {type(file).__name__}")
        raise syscall_error(CALL, errno.EBADF, "neither MAP_ANONYMOUS nor a file")
    else:
        inode = file.hold(space.kernel.files, CALL)
        backing = _Backing(inode.object, file.tag, inode.on_disk, file.writable, file.readable, file.name)
        if flags & MAP_HUGETLB:
            raise syscall_error(CALL, errno.EINVAL, "MAP_HUGETLB with an ordinary file")
    if not size:
        raise syscall_error(CALL, errno.EINVAL, "length 0")
    size = page_up(size)
    if not size:
        raise syscall_error(CALL, errno.ENOMEM, "length wraps around")
    if not flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        addr &= -PAGE_SIZE
        if addr:
            addr = max(addr, MMAP_MIN_ADDR)  # round_hint_to_min()
    return _Wish(addr, size, prot, flags, backing, where // PAGE_SIZE)


def _map(space: Space, wish: _Wish) -> int:
    """do_mmap(), and what it does for mmap_region() to fail."""
    kernel, flags, size = space.kernel, wish.flags, wish.size
    now = kernel.core.survey(space.sid)
    if now.sums.nvmas > kernel.max_map_count:
        raise syscall_error(CALL, errno.ENOMEM, f"more than {kernel.max_map_count} mappings")
    vm_flags = wish.prot & 7 | _MAY | _other_flags(flags) | now.words[DEF_FLAGS]
    object_ = wish.file.object if wish.file is not None else -1 if flags & MAP_SHARED else 0
    if wish.huge and flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        hugetlb.check_aligned(hugetlb.page_of(flags), wish.address, call=CALL)
    start = place(space, wish.address, size, flags, object_, wish.pgoff, CALL, now.words[MMAP_BASE])
    end = start + size
    if flags & MAP_FIXED_NOREPLACE:
        there = kernel.core.find(space.sid, start)
        if there is not None and there.start < end:
            raise syscall_error(CALL, errno.EEXIST, f"{there.start:#x}-{there.end:#x} is mapped")
    if flags & MAP_LOCKED and not space.may_lock():
        raise syscall_error(CALL, errno.EPERM, "RLIMIT_MEMLOCK is 0")
    if not space.may_lock_more(vm_flags, size):
        raise syscall_error(CALL, errno.EAGAIN, f"RLIMIT_MEMLOCK: {size} bytes more")
    vm_flags |= _anonymous_flags(wish, vm_flags) if wish.file is None else _file_flags(wish, wish.file)
    if vm_flags & (c.VM_SHARED | c.VM_MAYSHARE) == c.VM_MAYSHARE:
        vm_flags &= ~c.VM_MAYWRITE
    if flags & MAP_NORESERVE and (wish.huge or kernel.overcommit is not Overcommit.NEVER):
        vm_flags |= c.VM_NORESERVE
    vm_flags |= _charge(space, wish, start, vm_flags, now.sums)
    populate = vm_flags & c.VM_LOCKED or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE
    if vm_flags & c.VM_DROPPABLE:
        vm_flags &= ~_LOCKED
    _install(space, wish, start, vm_flags)
    if populate:
        try:
            _populate(space, start, end, vm_flags)
        except (OutOfMemory, KernelPanic):
            space.insist(kernel.core.unmap, space.sid, start, end, CALL)
            raise
    return start


def _populate(space: Space, start: int, end: int, vm_flags: int) -> None:
    """MAP_POPULATE: write faults where a private mapping is writable, else read faults; errors are ignored
    (mm_populate())."""
    if vm_flags & (c.VM_READ | c.VM_WRITE | c.VM_EXEC) and not vm_flags & c.VM_LOCKONFAULT:
        space.populate(start, end, vm_flags & (c.VM_WRITE | c.VM_SHARED) == c.VM_WRITE)


def _other_flags(flags: int) -> int:
    """calc_vm_flag_bits()."""
    out = c.VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0
    if flags & MAP_LOCKED:
        out |= c.VM_LOCKED
    if flags & MAP_SYNC:
        out |= c.VM_SYNC
    if flags & MAP_STACK:  # no other effect
        out |= c.VM_NOHUGEPAGE
    return out


def _file_flags(wish: _Wish, file: _Backing) -> int:
    """The sharing part for a file mapping."""
    flags, kind = wish.flags, wish.flags & MAP_TYPE
    if wish.pgoff + wish.size // PAGE_SIZE > _MAX_FILE_PAGES:
        raise syscall_error(CALL, errno.EOVERFLOW, "offset and length are beyond the largest file")
    out = 0
    if kind == MAP_SHARED_VALIDATE and flags & ~(_LEGACY_FLAGS | (MAP_SYNC if file.on_disk else 0)):
        raise syscall_error(CALL, errno.EOPNOTSUPP, f"flags {flags:#x}")
    if kind in (MAP_SHARED, MAP_SHARED_VALIDATE):
        if wish.prot & PROT_WRITE and not file.writable:
            raise syscall_error(CALL, errno.EACCES, f"{file.name} is open read-only")
        # VM_SHARED says that it may become writable
        out = c.VM_SHARED | c.VM_MAYSHARE if file.writable else c.VM_MAYSHARE
    elif kind != MAP_PRIVATE:
        raise syscall_error(CALL, errno.EINVAL, "neither MAP_SHARED nor MAP_PRIVATE")
    if not file.readable:
        raise syscall_error(CALL, errno.EACCES, f"{file.name} is open for writing only")
    if flags & MAP_GROWSDOWN:
        raise syscall_error(CALL, errno.EINVAL, "MAP_GROWSDOWN with a file")
    return out


def _anonymous_flags(wish: _Wish, vm_flags: int) -> int:
    """The sharing part for anonymous memory, which with MAP_HUGETLB is a file's."""
    kind = wish.flags & MAP_TYPE
    if kind == MAP_DROPPABLE and not wish.huge:
        if wish.flags & MAP_LOCKED or vm_flags & c.VM_GROWSDOWN:
            raise syscall_error(CALL, errno.EINVAL, "MAP_DROPPABLE with MAP_LOCKED or MAP_GROWSDOWN")
        return c.VM_DROPPABLE | c.VM_NORESERVE | c.VM_WIPEONFORK | c.VM_DONTDUMP
    if kind not in (MAP_SHARED, MAP_PRIVATE):
        raise syscall_error(CALL, errno.EINVAL, "neither MAP_SHARED nor MAP_PRIVATE")
    if (kind == MAP_SHARED or wish.huge) and vm_flags & c.VM_GROWSDOWN:
        raise syscall_error(CALL, errno.EINVAL, "MAP_GROWSDOWN with MAP_SHARED or MAP_HUGETLB")
    return c.VM_SHARED | c.VM_MAYSHARE if kind == MAP_SHARED else 0


def _to_unmap(space: Space, start: int, end: int, call: str) -> list[Vma]:
    """The mappings that a range takes part of, if they may go (vms_gather_munmap_vmas()). EPERM if one is sealed, when
    the first has been split already; ENOMEM at max_map_count."""
    vmas = space.vmas(start, end)
    if vmas and vmas[0].start < start and end < vmas[0].end and not space.room_for_split():
        raise syscall_error(call, errno.ENOMEM, f"more than {space.kernel.max_map_count} mappings")
    for number, vma in enumerate(vmas):
        if vma.flags & c.VM_SEALED:
            if number:
                space.insist(space.kernel.core.split, space.sid, start, call)
            raise syscall_error(call, errno.EPERM, f"{vma.start:#x}-{vma.end:#x} is sealed")
    return vmas


def _charge(space: Space, wish: _Wish, start: int, vm_flags: int, sums: Any) -> int:
    """What mmap_region() checks before it unmaps anything; what is replaced is given credit for. VM_ACCOUNT if the
    mapping is charged. *sums*: of the space."""
    end, npages = start + wish.size, wish.size // PAGE_SIZE
    replaced = charged = 0
    if wish.flags & MAP_FIXED:  # else there is nothing
        for vma in _to_unmap(space, start, end, CALL):
            pages = (min(vma.end, end) - max(vma.start, start)) // PAGE_SIZE
            replaced += pages
            charged += pages if vma.flags & c.VM_ACCOUNT else 0
    if not space.may_expand(vm_flags, npages - replaced, sums):
        raise syscall_error(CALL, errno.ENOMEM, f"RLIMIT_AS or RLIMIT_DATA: {wish.size} bytes more")
    if wish.huge or vm_flags & (c.VM_NORESERVE | c.VM_SHARED | c.VM_WRITE) != c.VM_WRITE:
        return 0
    if npages != charged and not space.enough_memory(npages - charged):
        raise syscall_error(CALL, errno.ENOMEM, f"overcommit: {wish.size // PAGE_SIZE} more pages can't be promised")
    return c.VM_ACCOUNT


def _install(space: Space, wish: _Wish, start: int, vm_flags: int) -> None:
    """Makes the mapping. Where that fails what was there is gone nevertheless (vms_abort_munmap_vmas())."""
    core, files, end = space.kernel.core, space.kernel.files, start + wish.size
    insist, sid = space.insist, space.sid
    if wish.file is not None:
        if wish.flags & MAP_SYNC and wish.file.on_disk:  # the file system's own mmap
            insist(core.unmap, sid, start, end, CALL)
            raise syscall_error(CALL, errno.EOPNOTSUPP, f"MAP_SYNC: {wish.file.name} is not on persistent memory")
        insist(core.map, sid, start, end, vm_flags, wish.file.object, wish.pgoff, wish.file.tag, CALL)
    elif wish.huge:
        hugetlb.install(space, start, wish.size, wish.flags, vm_flags, wish.pgoff)
    elif vm_flags & c.VM_SHARED:
        charged = not vm_flags & c.VM_NORESERVE
        if charged and not space.enough_memory(wish.size // PAGE_SIZE):
            insist(core.unmap, sid, start, end, CALL)
            raise syscall_error(
                CALL, errno.ENOMEM, f"overcommit: {wish.size // PAGE_SIZE} more pages can't be promised"
            )
        shared = files.anonymous(wish.size, charged)
        try:
            insist(core.map, sid, start, end, vm_flags, shared.object, 0, 0, CALL)
        finally:
            core.object_release(shared.object)
    else:
        insist(core.map, sid, start, end, vm_flags, 0, start // PAGE_SIZE, 0, CALL)


def remap_file_pages(
    space: Space, address: SupportsIndex, length: SupportsIndex, prot: int, pgoff: SupportsIndex, flags: int
) -> None:
    """Maps other pages of what a shared mapping shows in its place: an mmap by another name, since Linux 4.0."""
    call = "remap_file_pages"
    start = u64(address, call, "address") & -PAGE_SIZE
    size = u64(length, call, "length") & -PAGE_SIZE
    first = u64(pgoff, call, "pgoff")
    if u64(prot, call, "prot"):
        raise syscall_error(call, errno.EINVAL, f"prot {prot:#x}")
    if start + size & MASK <= start or first + size // PAGE_SIZE > MASK:
        raise syscall_error(call, errno.EINVAL, f"{size:#x} bytes at {start:#x}, page {first:#x}")
    with space.kernel.lock:
        vma, at = space.kernel.core.find(space.sid, start), start
        if vma is None or vma.start > start or not vma.flags & c.VM_SHARED:
            raise syscall_error(call, errno.EINVAL, f"no shared mapping is at {start:#x}")
        for part in space.vmas(start, start + size & MASK):
            if max(part.start, start) != at or (part.object, part.tag, part.flags) != (vma.object, vma.tag, vma.flags):
                break
            at = part.end
        if at < start + size:
            raise syscall_error(call, errno.EINVAL, f"{start:#x}-{start + size:#x} does not map one file alike")
        how = MAP_SHARED | MAP_FIXED | MAP_POPULATE | (MAP_LOCKED if vma.flags & c.VM_LOCKED else 0)
        how |= u64(flags, call, "flags") & MAP_NONBLOCK
        file = _Backing(vma.object, vma.tag, space.kernel.files.on_disk(vma.object))
        _map(space, _Wish(start, size, vma.flags & 7, how, file, first))


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
    lock, core = space.kernel.lock, space.kernel.core
    lock.acquire()
    try:
        if not core.unmap_plain(space.sid, addr, end, call):  # else there is nothing to refuse
            _unmap(space, addr, end, call)
    except OutOfMemory as error:
        if not make_room(space.kernel, space.pid, error):
            raise
        space.insist(_unmap, space, addr, end, call)
    finally:
        lock.release()


def _unmap(space: Space, start: int, end: int, call: str) -> None:
    _to_unmap(space, start, end, call)
    space.kernel.core.unmap(space.sid, start, end, call)


def map_private(space: Space, start: int, end: int, prot: int, call: str, extra: int = 0, apart: bool = False) -> None:
    """Private anonymous memory at a place already decided on; charged if it is writable. *apart*: see Core.map()."""
    flags = vm_prot(prot) | _MAY | extra | (c.VM_ACCOUNT if prot & PROT_WRITE else 0)
    space.insist(space.kernel.core.map, space.sid, start, end, flags, 0, start // PAGE_SIZE, 0, call, apart)
