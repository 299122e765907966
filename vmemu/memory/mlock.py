"""mlock(2), mlock2(2), munlock(2), mincore(2), msync(2): calls about pages being in memory."""

from __future__ import annotations

import errno
from typing import SupportsIndex

from vmemu._native import constants as c
from vmemu.errors import syscall_error
from vmemu.memory.args import MASK, TASK_SIZE, integer, page_up, u64
from vmemu.memory.space import Space
from vmemu.types import PAGE_SIZE

__all__ = ["mincore", "mlock", "msync", "munlock"]

MLOCK_ONFAULT = 1
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
    flags = integer(flags, "mlock2", "flags")
    if flags & ~MLOCK_ONFAULT:
        raise syscall_error("mlock2", errno.EINVAL, f"flags {flags:#x}")
    start, end = _lock_range(address, length, "mlock")
    with space.kernel.lock:
        _apply(space, start, end, c.VM_LOCKED | (c.VM_LOCKONFAULT if flags else 0), "mlock")
        if flags & MLOCK_ONFAULT:
            return
        for vma in space.vmas(start, end):
            write = vma.flags & (c.VM_WRITE | c.VM_SHARED) == c.VM_WRITE
            if not vma.flags & _ACCESS or not space.populate(max(start, vma.start), min(end, vma.end), write):
                raise syscall_error("mlock", errno.ENOMEM, f"{vma.start:#x}-{vma.end:#x} can't be faulted in")


def munlock(space: Space, address: SupportsIndex, length: SupportsIndex) -> None:
    """Unlocks the mappings of a range; the pages stay."""
    start, end = _lock_range(address, length, "munlock")
    with space.kernel.lock:
        _apply(space, start, end, 0, "munlock")


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
        flags = vma.flags & ~_LOCKED | locked
        space.reflag(vma, at, stop, flags, call)
        if (vma.flags ^ flags) & c.VM_LOCKED:
            core.drain()  # mlock_vma_pages_range()
        at = stop


def mincore(space: Space, address: SupportsIndex, length: SupportsIndex) -> bytes:
    """One byte a page, 1 if it is in memory: mapped, or in the page cache of what is mapped there."""
    call = "mincore"
    addr, size = u64(address, call, "address"), u64(length, call, "length")
    if addr % PAGE_SIZE:
        raise syscall_error(call, errno.EINVAL, f"address {addr:#x} is not page aligned")
    end = addr + page_up(size)
    if end > TASK_SIZE or (size and end == addr):
        raise syscall_error(call, errno.ENOMEM, f"{addr:#x} + {size:#x} is beyond the address space")
    if end == addr:
        return b""
    at = addr
    for vma in space.kernel.core.vmas(space.sid, addr, end):  # before a vector of that length is made
        if vma.start > at:
            break
        at = vma.end
    out = space.kernel.core.mincore(space.sid, addr, end) if at >= end else None
    if out is None:
        raise syscall_error(call, errno.ENOMEM, f"part of {addr:#x}-{end:#x} is not mapped")
    return out


def msync(space: Space, address: SupportsIndex, length: SupportsIndex, flags: int) -> None:
    """Checks what msync(2) checks; there is no disk to write to, so pages stay as they are."""
    call = "msync"
    addr, size = u64(address, call, "address"), u64(length, call, "length")
    flags = integer(flags, call, "flags")
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
