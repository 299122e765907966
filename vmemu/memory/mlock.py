"""mlock(2), mlock2(2), mlockall(2), munlock(2), mincore(2), msync(2): calls about pages being in memory."""

from __future__ import annotations

import contextlib
import errno
from typing import SupportsIndex

from vmemu._native import Vma
from vmemu._native import constants as c
from vmemu.credentials import Capability
from vmemu.errors import MemoryFault, OutOfMemory, SyscallError, syscall_error
from vmemu.limits import Resource
from vmemu.memory.args import MASK, TASK_SIZE, page_up, u32, u64
from vmemu.memory.space import Space
from vmemu.memory.words import DEF_FLAGS
from vmemu.types import PAGE_SIZE

__all__ = ["mincore", "mlock", "mlockall", "msync", "munlock", "munlockall"]

MLOCK_ONFAULT = 1
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
_LOCKED = c.VM_LOCKED | c.VM_LOCKONFAULT
_ACCESS = c.VM_READ | c.VM_WRITE | c.VM_EXEC


def _lock_range(address: SupportsIndex, length: SupportsIndex, call: str) -> tuple[int, int]:
    """Page-aligned outward, as mlock does; a length that wraps to 0 is 0."""
    addr, size = u64(address, call, "address"), u64(length, call, "length")
    size = page_up(size + addr % PAGE_SIZE & MASK)
    return addr & -PAGE_SIZE, (addr & -PAGE_SIZE) + size & MASK


def mlock(space: Space, address: SupportsIndex, length: SupportsIndex, flags: int = 0) -> None:
    """Locks the mappings of a range and, unless MLOCK_ONFAULT, faults their pages in (do_mlock())."""
    flags = u32(flags, "mlock2", "flags")
    if flags & ~MLOCK_ONFAULT:
        raise syscall_error("mlock2", errno.EINVAL, f"flags {flags:#x}")
    start, end = _lock_range(address, length, "mlock")
    with space.kernel.lock:
        _check_limit(space, start, end)
        _apply(space, start, end, c.VM_LOCKED | (c.VM_LOCKONFAULT if flags else 0), "mlock")
        for vma in space.vmas(start, end):
            if not _populate(space, max(start, vma.start), min(end, vma.end), vma.flags):
                raise syscall_error("mlock", errno.ENOMEM, f"{vma.start:#x}-{vma.end:#x} can't be faulted in")


def _check_limit(space: Space, start: int, end: int) -> None:
    """RLIMIT_MEMLOCK; what of the range is locked already does not count twice (count_mm_mlocked_page_nr())."""
    if not space.may_lock():
        raise syscall_error("mlock", errno.EPERM, "RLIMIT_MEMLOCK is 0")
    size = end - start & MASK
    if space.may_lock_more(c.VM_LOCKED, size):
        return
    for vma in space.vmas(start, end):
        if vma.flags & c.VM_LOCKED:
            size -= min(vma.end, end) - max(vma.start, start)
    if not space.may_lock_more(c.VM_LOCKED, size):
        raise syscall_error("mlock", errno.ENOMEM, f"RLIMIT_MEMLOCK: {size} bytes more")


def _populate(space: Space, start: int, end: int, flags: int) -> bool:
    """Faults in a part of a mapping with these flags (populate_vma_page_range()). False if it can't be."""
    if flags & c.VM_LOCKONFAULT:
        return True
    if not flags & _ACCESS:
        return False
    return space.populate(start, end, flags & (c.VM_WRITE | c.VM_SHARED) == c.VM_WRITE)


def munlock(space: Space, address: SupportsIndex, length: SupportsIndex) -> None:
    """Unlocks the mappings of a range; the pages stay."""
    start, end = _lock_range(address, length, "munlock")
    with space.kernel.lock:
        _apply(space, start, end, 0, "munlock")


def mlockall(space: Space, flags: int) -> None:
    """Locks all mappings there are (MCL_CURRENT), will be (MCL_FUTURE), or both; with MCL_ONFAULT as they are
    touched."""
    call = "mlockall"
    flags = u32(flags, call, "flags")
    if flags & ~(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) or flags in (0, _MCL_ONFAULT):
        raise syscall_error(call, errno.EINVAL, f"flags {flags:#x}")
    with space.kernel.lock:
        if not space.may_lock():
            raise syscall_error(call, errno.EPERM, "RLIMIT_MEMLOCK is 0")
        total = int(space.kernel.core.sums(space.sid).total)
        may = space.capable(Capability.IPC_LOCK) or total <= space.limit(Resource.MEMLOCK) // PAGE_SIZE
        if flags & _MCL_CURRENT and not may:
            raise syscall_error(call, errno.ENOMEM, f"RLIMIT_MEMLOCK: {total} pages are mapped")
        locked = c.VM_LOCKED | (c.VM_LOCKONFAULT if flags & _MCL_ONFAULT else 0)
        _apply_all(space, locked if flags & _MCL_FUTURE else 0, locked if flags & _MCL_CURRENT else None)
        if flags & _MCL_CURRENT:
            with contextlib.suppress(OutOfMemory):  # mm_populate()
                for vma in space.vmas():
                    _populate(space, vma.start, vma.end, vma.flags)


def munlockall(space: Space) -> None:
    """Unlocks all mappings, those to come too."""
    with space.kernel.lock:
        _apply_all(space, 0, 0)


def _apply_all(space: Space, future: int, current: int | None) -> None:
    """Locks for mappings to come and, unless None, for those there are; errors in one leave that as it is
    (apply_mlockall_flags())."""
    core = space.kernel.core
    words = core.words(space.sid)
    words[DEF_FLAGS] = words[DEF_FLAGS] & ~_LOCKED | future
    core.set_words(space.sid, words)
    if current is None:
        return
    for vma in space.vmas():
        with contextlib.suppress(SyscallError):
            _relock(space, vma, vma.start, vma.end, current, "mlockall")


def _relock(space: Space, vma: Vma, start: int, end: int, locked: int, call: str) -> None:
    """Locks, or unlocks, a part of a mapping (mlock_fixup())."""
    if vma.flags & (c.VM_DROPPABLE | c.VM_HUGETLB):
        return
    flags = vma.flags & ~_LOCKED | locked
    space.reflag(vma, start, end, flags, call)
    if (vma.flags ^ flags) & c.VM_LOCKED:
        space.kernel.core.drain()  # mlock_vma_pages_range()


def _apply(space: Space, start: int, end: int, locked: int, call: str) -> None:
    """Flags for all mappings up to the first hole, which is ENOMEM (apply_vma_lock_flags())."""
    if end < start:
        raise syscall_error(call, errno.EINVAL, "the range wraps around")
    at, core = start, space.kernel.core
    while at < end:
        vma = core.find(space.sid, at)
        if vma is None or vma.start > at:
            raise syscall_error(call, errno.ENOMEM, f"nothing is mapped at {at:#x}")
        stop = min(vma.end, end)
        _relock(space, vma, at, stop, locked, call)
        at = stop


def mincore(space: Space, address: SupportsIndex, length: SupportsIndex, vector: SupportsIndex | None = None) -> bytes:
    """One byte a page, 1 if it is in memory: mapped, or in the page cache of what is mapped there. *vector* is where in
    the process's memory they are stored, None for nowhere."""
    call = "mincore"
    addr, size = u64(address, call, "address"), u64(length, call, "length")
    where = None if vector is None else u64(vector, call, "vector")
    if addr % PAGE_SIZE:
        raise syscall_error(call, errno.EINVAL, f"address {addr:#x} is not page aligned")
    end = addr + page_up(size)
    if end > TASK_SIZE or (size and end == addr):
        raise syscall_error(call, errno.ENOMEM, f"{addr:#x} + {size:#x} is beyond the address space")
    if where is not None and where + (end - addr) // PAGE_SIZE > TASK_SIZE:
        raise syscall_error(call, errno.EFAULT, f"vector {where:#x}")
    with space.kernel.lock:
        at = addr
        for vma in space.kernel.core.vmas(space.sid, addr, end):
            if vma.start > at:
                break
            at = min(vma.end, end)
        seen = space.kernel.core.mincore(space.sid, addr, at) if at > addr else b""
        if where is not None and seen:
            try:
                space.write(where, seen)
            except MemoryFault as fault:
                raise syscall_error(call, errno.EFAULT, f"vector {where:#x}: {fault}") from None
        if at < end or seen is None:
            error = syscall_error(call, errno.ENOMEM, f"nothing is mapped at {at:#x}")
            error.partial = seen or b""
            raise error
        return seen


def msync(space: Space, address: SupportsIndex, length: SupportsIndex, flags: int) -> None:
    """Checks what msync(2) checks; there is no disk to write to, so pages stay as they are."""
    call = "msync"
    addr, size = u64(address, call, "address"), u64(length, call, "length")
    flags = u32(flags, call, "flags")
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC) or flags & MS_ASYNC and flags & MS_SYNC:
        raise syscall_error(call, errno.EINVAL, f"flags {flags:#x}")
    if addr % PAGE_SIZE:
        raise syscall_error(call, errno.EINVAL, f"address {addr:#x} is not page aligned")
    end = addr + page_up(size) & MASK
    if end < addr:
        raise syscall_error(call, errno.ENOMEM, "the range wraps around")
    at, hole = addr, False
    with space.kernel.lock:
        for vma in space.kernel.core.vmas(space.sid, addr, end):
            hole |= vma.start > at
            if flags & MS_INVALIDATE and vma.flags & c.VM_LOCKED:
                raise syscall_error(call, errno.EBUSY, f"{vma.start:#x}-{vma.end:#x} is locked")
            at = vma.end
    if hole or at < end:
        raise syscall_error(call, errno.ENOMEM, f"part of {addr:#x}-{end:#x} is not mapped")
