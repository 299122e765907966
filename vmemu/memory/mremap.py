"""mremap(2), as of Linux 6.17: resize in place, move, duplicate. Errors in the order of check_mremap_params() and
check_prep_vma(); entries move as they are, no frame is copied.
"""

from __future__ import annotations

import contextlib
import errno
from typing import SupportsIndex

from vmemu._native import Vma
from vmemu._native import constants as c
from vmemu.errors import OutOfMemory, SyscallError, syscall_error
from vmemu.memory import hugetlb
from vmemu.memory.args import MASK, TASK_SIZE, page_up, u64
from vmemu.memory.mmap import munmap
from vmemu.memory.place import place
from vmemu.memory.space import Space
from vmemu.memory.words import LOCKED_EXTRA
from vmemu.types import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, PAGE_SIZE, Map

__all__ = ["mremap"]

CALL = "mremap"
_ALL = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP


def _error(number: int, why: str) -> SyscallError:
    return syscall_error(CALL, number, why)


def mremap(
    space: Space,
    old_address: SupportsIndex,
    old_length: SupportsIndex,
    new_length: SupportsIndex,
    flags: int,
    new_address: SupportsIndex | None,
) -> int:
    """Returns where the mapping is afterwards."""
    addr = u64(old_address, CALL, "old_address")
    old, new = page_up(u64(old_length, CALL, "old_size")), page_up(u64(new_length, CALL, "new_size"))
    to = u64(0 if new_address is None else new_address, CALL, "new_address")
    flags = u64(flags, CALL, "flags")
    elsewhere = bool(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))
    _check_arguments(addr, old, new, flags, to if elsewhere else None)
    with space.kernel.lock:
        if elsewhere and not space.room_for_split(6):
            raise _error(errno.ENOMEM, f"close to {space.kernel.max_map_count} mappings")
        vma = space.kernel.core.find(space.sid, addr)
        if vma is None or vma.start > addr:
            raise _error(errno.EFAULT, f"nothing is mapped at {addr:#x}")
        if vma.flags & c.VM_HUGETLB:
            page = hugetlb.page_bytes(vma.flags)
            old, new = -(-old // page) * page, -(-new // page) * page
            hugetlb.check_aligned(page, addr, *([to] if elsewhere else []), call=CALL)
            if flags & MREMAP_DONTUNMAP:
                raise _error(errno.EINVAL, "MREMAP_DONTUNMAP of reserved huge pages")
        if elsewhere:
            if old == new and flags & MREMAP_FIXED:
                return _move_all(space, addr, old, to, flags)
            return _move_to(space, vma, addr, old, new, to, flags)
        if vma.flags & c.VM_SEALED:
            raise _error(errno.EPERM, f"{vma.start:#x}-{vma.end:#x} is sealed")
        if new == old:
            return addr
        if new < old:
            munmap(space, addr + new, old - new, CALL)
            return addr
        return _grow(space, vma, addr, old, new, flags)


def _check_arguments(addr: int, old: int, new: int, flags: int, to: int | None) -> None:
    if flags & ~_ALL:
        raise _error(errno.EINVAL, f"flags {flags:#x}")
    if addr % PAGE_SIZE:
        raise _error(errno.EINVAL, f"address {addr:#x} is not page aligned")
    if not new:
        raise _error(errno.EINVAL, "new size 0")
    if new > TASK_SIZE:
        raise _error(errno.EINVAL, f"new size {new:#x} is beyond the address space")
    if to is None:
        return
    if to > TASK_SIZE - new or to % PAGE_SIZE:
        raise _error(errno.EINVAL, f"new address {to:#x}")
    if not flags & MREMAP_MAYMOVE:
        raise _error(errno.EINVAL, "MREMAP_FIXED and MREMAP_DONTUNMAP need MREMAP_MAYMOVE")
    if flags & MREMAP_DONTUNMAP and old != new:
        raise _error(errno.EINVAL, "MREMAP_DONTUNMAP changes no size")
    if addr + old & MASK > to and to + new > addr:
        raise _error(errno.EINVAL, "old and new range overlap")


def _check_mapping(space: Space, vma: Vma, addr: int, old: int, new: int) -> None:
    """What a mapping that is to be moved or to grow must fulfil (check_prep_vma())."""
    if vma.flags & c.VM_SEALED:
        raise _error(errno.EPERM, f"{vma.start:#x}-{vma.end:#x} is sealed")
    if vma.flags & c.VM_HUGETLB and new > old:
        raise _error(errno.EINVAL, "a mapping of reserved huge pages does not grow")
    if not old and not vma.flags & (c.VM_SHARED | c.VM_MAYSHARE):
        raise _error(errno.EINVAL, "old size 0 duplicates shared mappings only")
    if min(old, new) > vma.end - addr:
        raise _error(errno.EFAULT, f"{addr:#x}-{addr + old:#x} is more than one mapping")
    if new <= old:
        return
    if vma.pgoff + (addr - vma.start + new) // PAGE_SIZE > 1 << 52:
        raise _error(errno.EINVAL, "page offset overflows")
    if not space.may_lock_more(vma.flags, new - old):
        raise _error(errno.EAGAIN, f"RLIMIT_MEMLOCK: {new - old} bytes more")
    _check_expand(space, vma, new - old)


def _check_expand(space: Space, vma: Vma, size: int) -> None:
    if not space.may_expand(vma.flags, size // PAGE_SIZE):
        raise _error(errno.ENOMEM, f"RLIMIT_AS or RLIMIT_DATA: {size} bytes more")


def _grow(space: Space, vma: Vma, addr: int, old: int, new: int, flags: int) -> int:
    _check_mapping(space, vma, addr, old, new)
    core, end = space.kernel.core, addr + new
    following = core.find(space.sid, vma.end)
    free = end <= TASK_SIZE and (following is None or following.start >= end)
    if addr + old == vma.end and free:
        _charge(space, vma, (new - old) // PAGE_SIZE)
        space.insist(core.extend, space.sid, vma.end, end, False, CALL)
        _populate(space, vma, addr + old, end)
        return addr
    if not flags & MREMAP_MAYMOVE:
        raise _error(errno.ENOMEM, f"no room to grow at {addr + old:#x}")
    return _move(space, vma, addr, old, new, _new_place(space, vma, addr, new, 0, 0), flags)


def _new_place(space: Space, vma: Vma, addr: int, size: int, hint: int, flags: int) -> int:
    """vrm_set_new_addr()."""
    pgoff = vma.pgoff + (addr - vma.start) // PAGE_SIZE
    return place(space, hint, size, Map.FIXED if flags & MREMAP_FIXED else 0, vma.object, pgoff, CALL)


def _move_to(space: Space, vma: Vma, addr: int, old: int, new: int, to: int, flags: int) -> int:
    """With a new address: what is there goes, a tail too much goes, the rest is moved (mremap_to())."""
    core = space.kernel.core
    _check_mapping(space, vma, addr, old, new)
    if flags & MREMAP_FIXED:
        munmap(space, to, new, CALL)
    if new < old:
        munmap(space, addr + new, old - new, CALL)
        old = new
    now = core.find(space.sid, addr)
    if now is None or now.start > addr:
        raise _error(errno.EFAULT, f"nothing is mapped at {addr:#x}")
    if flags & MREMAP_DONTUNMAP:
        _check_expand(space, now, old)
    return _move(space, now, addr, old, new, _new_place(space, now, addr, new, to, flags), flags)


def _move_all(space: Space, addr: int, length: int, to: int, flags: int) -> int:
    """A move without a change of size may span several mappings and holes; each lands at the same distance
    (remap_move())."""
    end, first, result = addr + length, True, to
    for vma in space.vmas(addr, end):
        start, stop = max(vma.start, addr), min(vma.end, end)
        size = stop - start
        current = space.kernel.core.find(space.sid, start)
        if current is None or current.start > start:
            raise _error(errno.EFAULT, f"nothing is mapped at {start:#x}")
        moved = _move_to(space, current, start, size, size, to + (start - addr), flags)
        if first:
            result, first = moved, False
            to = moved
    return result


def _move(space: Space, vma: Vma, addr: int, old: int, new: int, to: int, flags: int) -> int:
    """move_vma()."""
    core = space.kernel.core
    if not space.room_for_split(4):
        raise _error(errno.ENOMEM, f"more than {space.kernel.max_map_count} mappings")
    keep = bool(flags & MREMAP_DONTUNMAP)
    _charge(space, vma, (new if keep else new - old) // PAGE_SIZE)
    if old:
        if vma.flags & c.VM_MERGEABLE:  # merged pages would turn up where nobody expects them (prep_move_vma())
            space.insist(core.ksm_break, space.sid, addr, addr + old, CALL)
        space.insist(core.move, space.sid, addr, addr + old, to, new, keep, CALL)
        if keep and vma.flags & c.VM_LOCKED:  # the old mapping is no longer locked, but goes on counting
            words = core.words(space.sid)
            words[LOCKED_EXTRA] += (vma.end - vma.start) // PAGE_SIZE
            core.set_words(space.sid, words)
    else:  # a second mapping of the same pages
        pgoff = vma.pgoff + (addr - vma.start) // PAGE_SIZE
        space.insist(core.map, space.sid, to, to + new, vma.flags, vma.object, pgoff, vma.tag, CALL)
    _populate(space, vma, to + old, to + new)
    return to


def _charge(space: Space, vma: Vma, npages: int) -> None:
    if vma.flags & c.VM_ACCOUNT and npages > 0 and not space.enough_memory(npages):
        raise _error(errno.ENOMEM, f"overcommit: {npages} more pages can't be promised")


def _populate(space: Space, vma: Vma, start: int, end: int) -> None:
    """What a locked mapping gains is faulted in, as far as there are frames."""
    if vma.flags & c.VM_LOCKED and not vma.flags & c.VM_LOCKONFAULT and start < end:
        with contextlib.suppress(OutOfMemory):
            space.populate(start, end, vma.flags & (c.VM_WRITE | c.VM_SHARED) == c.VM_WRITE)
