"""madvise(2): a range is walked mapping by mapping; holes are passed over and reported at the end (do_madvise())."""

from __future__ import annotations

import errno
from typing import SupportsIndex

from vmemu._native import Vma
from vmemu._native import constants as c
from vmemu.errors import syscall_error
from vmemu.memory import hugetlb, thp
from vmemu.memory.args import MASK, i32, page_up, u64
from vmemu.memory.reclaim import page_out
from vmemu.memory.space import Space
from vmemu.types import PAGE_SIZE, Advice

__all__ = ["madvise"]

CALL = "madvise"
_SET = {
    Advice.DONTFORK: c.VM_DONTCOPY,
    Advice.WIPEONFORK: c.VM_WIPEONFORK,
    Advice.DONTDUMP: c.VM_DONTDUMP,
    Advice.HUGEPAGE: c.VM_HUGEPAGE,
    Advice.NOHUGEPAGE: c.VM_NOHUGEPAGE,
    Advice.MERGEABLE: c.VM_MERGEABLE,
}
_CLEAR = {
    Advice.DOFORK: c.VM_DONTCOPY,
    Advice.KEEPONFORK: c.VM_WIPEONFORK,
    Advice.DODUMP: c.VM_DONTDUMP,
    Advice.HUGEPAGE: c.VM_NOHUGEPAGE,
    Advice.NOHUGEPAGE: c.VM_HUGEPAGE,
    Advice.UNMERGEABLE: c.VM_MERGEABLE,
}
_READ_AHEAD = {Advice.NORMAL: 0, Advice.RANDOM: c.VM_RAND_READ, Advice.SEQUENTIAL: c.VM_SEQ_READ}
_NOT_KSM = c.VM_SHARED | c.VM_MAYSHARE | c.VM_DROPPABLE | c.VM_HUGETLB
_DISCARD = (
    Advice.DONTNEED,
    Advice.DONTNEED_LOCKED,
    Advice.FREE,
    Advice.REMOVE,
    Advice.DONTFORK,
    Advice.WIPEONFORK,
    Advice.GUARD_INSTALL,
)
"""Advice that may lose what memory holds (is_madv_discard())."""


def madvise(space: Space, address: SupportsIndex, length: SupportsIndex, advice: int) -> None:
    """Advice for a range."""
    addr, size = u64(address, CALL, "address"), u64(length, CALL, "length")
    advice = i32(advice, CALL, "advice")
    try:
        what = Advice(advice)
    except ValueError:
        raise syscall_error(CALL, errno.EINVAL, f"advice {advice}") from None
    if what in (Advice.HWPOISON, Advice.SOFT_OFFLINE):
        raise syscall_error(CALL, errno.EINVAL, f"{what.name}: not configured")
    if addr % PAGE_SIZE:
        raise syscall_error(CALL, errno.EINVAL, f"address {addr:#x} is not page aligned")
    end = addr + page_up(size) & MASK
    if (size and not page_up(size)) or end < addr:
        raise syscall_error(CALL, errno.EINVAL, f"{addr:#x} + {size:#x} wraps around")
    if end == addr:
        return
    with space.kernel.lock:
        if what in (Advice.POPULATE_READ, Advice.POPULATE_WRITE):
            _populate(space, addr, end, what)
            return
        hole, at = False, addr
        while at < end:
            vma = space.kernel.core.find(space.sid, at)
            if vma is None or vma.start >= end:
                hole = True
                break
            hole |= vma.start > at
            stop = min(vma.end, end)
            _advise(space, vma, max(at, vma.start), stop, what)
            at = stop
        if hole:
            raise syscall_error(CALL, errno.ENOMEM, f"part of {addr:#x}-{end:#x} is not mapped")


def _advise(space: Space, vma: Vma, start: int, end: int, what: Advice) -> None:
    """One mapping's part of the range."""
    core = space.kernel.core
    if what in _DISCARD:
        _check_discard(vma)
    if what in _SET or what in _CLEAR or what in _READ_AHEAD:
        _reflag(space, vma, start, end, what)
    elif what in (Advice.DONTNEED, Advice.DONTNEED_LOCKED):
        if vma.flags & c.VM_LOCKED and what == Advice.DONTNEED:
            raise syscall_error(CALL, errno.EINVAL, f"{vma.start:#x}-{vma.end:#x} is locked")
        page = hugetlb.page_bytes(vma.flags)
        hugetlb.check_aligned(page, start, call=CALL)
        end -= end % page
        if start < end:
            space.insist(core.zap, space.sid, start, end, CALL)
    elif what in (Advice.FREE, Advice.COLD, Advice.PAGEOUT):
        _let_go(space, vma, start, end, what)
    elif what == Advice.REMOVE:
        _remove(space, vma, start, end)
    elif what == Advice.GUARD_INSTALL:
        if vma.flags & (c.VM_LOCKED | c.VM_HUGETLB):
            raise syscall_error(CALL, errno.EINVAL, f"{vma.start:#x}-{vma.end:#x} takes no guards")
        space.insist(core.guard, space.sid, start, end, CALL)
    elif what == Advice.GUARD_REMOVE:
        space.insist(core.unguard, space.sid, start, end, CALL)
    elif what == Advice.COLLAPSE:
        thp.collapse(space, vma, start, end)
    else:  # MADV_WILLNEED is left
        _will_need(space, vma, start, end)


def _check_discard(vma: Vma) -> None:
    """Sealed memory that its owner may not write may not be thrown away either (can_madv_modify())."""
    if vma.flags & c.VM_SEALED and not vma.object and not vma.flags & c.VM_WRITE:
        raise syscall_error(CALL, errno.EPERM, f"{vma.start:#x}-{vma.end:#x} is sealed")


def _reflag(space: Space, vma: Vma, start: int, end: int, what: Advice) -> None:
    flags = vma.flags
    if what in (Advice.MERGEABLE, Advice.UNMERGEABLE) and flags & _NOT_KSM:
        return  # "just ignore the advice" (ksm_madvise())
    if what in (Advice.KEEPONFORK, Advice.DODUMP) and flags & c.VM_DROPPABLE:
        raise syscall_error(CALL, errno.EINVAL, f"{vma.start:#x}-{vma.end:#x} is droppable")
    if what == Advice.UNMERGEABLE and flags & c.VM_MERGEABLE:
        space.insist(space.kernel.core.ksm_break, space.sid, start, end, CALL)
    if what == Advice.WIPEONFORK and (vma.object or flags & c.VM_SHARED):
        raise syscall_error(CALL, errno.EINVAL, "MADV_WIPEONFORK is for private anonymous memory")
    if what in _READ_AHEAD:
        flags = flags & ~(c.VM_RAND_READ | c.VM_SEQ_READ) | _READ_AHEAD[what]
    else:
        flags = (flags | _SET.get(what, 0)) & ~_CLEAR.get(what, 0)
    space.reflag(vma, start, end, flags, CALL)


def _let_go(space: Space, vma: Vma, start: int, end: int, what: Advice) -> None:
    """Pages that may go, now or later (madvise_dontneed_free(), madvise_cold(), madvise_pageout())."""
    core = space.kernel.core
    if vma.flags & (c.VM_LOCKED | c.VM_HUGETLB):
        raise syscall_error(CALL, errno.EINVAL, f"{vma.start:#x}-{vma.end:#x} is locked or has reserved huge pages")
    if what == Advice.FREE:
        if vma.object:
            raise syscall_error(CALL, errno.EINVAL, "MADV_FREE is for private anonymous memory")
        space.insist(core.lazyfree, space.sid, start, end, CALL)
    elif what == Advice.COLD:
        space.insist(core.cold, space.sid, start, end, CALL)
    else:
        if vma.object:
            space.kernel.files.write_back(vma.object, *_indexes(vma, start, end))
        space.insist(page_out, space.kernel, space.sid, start, end, CALL)


def _will_need(space: Space, vma: Vma, start: int, end: int) -> None:
    """Reads a file ahead; for other memory there is only swap to look into (madvise_willneed())."""
    info = space.kernel.core.object_info(vma.object) if vma.object else None
    if info is None or info.kind & c.OBJ_SHMEM:
        space.kernel.core.drain()
        return
    payer = space.kernel.processes.cgroup[space.pid]
    space.kernel.files.read_ahead(vma.object, *_indexes(vma, start, end), CALL, payer)


def _indexes(vma: Vma, start: int, end: int) -> tuple[int, int]:
    """The pages of its object that [start, end) of a mapping shows: first, one past the last."""
    first = vma.pgoff + (start - vma.start) // PAGE_SIZE
    return first, first + (end - start) // PAGE_SIZE


def _remove(space: Space, vma: Vma, start: int, end: int) -> None:
    """Punches a hole into what a shared mapping shows (madvise_remove())."""
    if vma.flags & c.VM_LOCKED:
        raise syscall_error(CALL, errno.EINVAL, f"{vma.start:#x}-{vma.end:#x} is locked")
    if not vma.object:
        raise syscall_error(CALL, errno.EINVAL, "MADV_REMOVE is for files and shared memory")
    if vma.flags & (c.VM_SHARED | c.VM_MAYWRITE) != c.VM_SHARED | c.VM_MAYWRITE:
        raise syscall_error(CALL, errno.EACCES, f"{vma.start:#x}-{vma.end:#x} is not shared and writable")
    first, last = _indexes(vma, start, end)
    space.insist(space.kernel.core.object_punch, vma.object, first, last - first)


def _populate(space: Space, start: int, end: int, what: Advice) -> None:
    """Faults pages in, as far as it goes (madvise_populate(), faultin_page_range())."""
    write = what == Advice.POPULATE_WRITE
    needed = c.VM_WRITE if write else c.VM_READ
    at = start
    while at < end:
        vma = space.kernel.core.find(space.sid, at)
        if vma is None or vma.start > at:
            raise syscall_error(CALL, errno.ENOMEM, f"nothing is mapped at {at:#x}")
        if not vma.flags & needed:
            raise syscall_error(CALL, errno.EINVAL, f"{vma.start:#x}-{vma.end:#x} forbids the access")
        stop = min(vma.end, end)
        if not space.populate(at, stop, write, major=True):
            raise syscall_error(CALL, errno.EFAULT, f"a page of {at:#x}-{stop:#x} is beyond the end of its file")
        at = stop
