"""brk(2): the program break, which the kernel moves or leaves where it is; it never says why."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import SupportsIndex

from vmemu._native import constants as c
from vmemu.errors import OutOfMemory, SyscallError
from vmemu.memory.args import TASK_SIZE, page_up, u64
from vmemu.memory.mmap import map_private, munmap
from vmemu.memory.space import STACK_GUARD, Space
from vmemu.memory.words import BRK, DEF_FLAGS, START_BRK
from vmemu.types import PAGE_SIZE, Prot

__all__ = ["brk"]

_DATA = c.VM_READ | c.VM_WRITE


def brk(space: Space, address: SupportsIndex) -> int:
    """Moves the program break and returns where it is; on failure that is where it was."""
    new = u64(address, "brk", "address")
    core = space.kernel.core
    with space.kernel.lock:
        words = core.words(space.sid)
        old = words[BRK]
        if new < words[START_BRK] or not space.may_move_break(words, new):
            return old
        if new <= old:
            done = _shrink(space, page_up(new), page_up(old))
        else:
            done = _grow(space, page_up(old), page_up(new), words)
        if not done:
            return old
        words[BRK] = new
        core.set_words(space.sid, words)
        if new > old and words[DEF_FLAGS] & c.VM_LOCKED and not words[DEF_FLAGS] & c.VM_LOCKONFAULT:
            with contextlib.suppress(OutOfMemory):  # mm_populate()
                space.populate(page_up(old), page_up(new), True)
        return new


def _shrink(space: Space, new: int, old: int) -> bool:
    if new == old:
        return True
    first = space.kernel.core.find(space.sid, new)
    if first is None or first.start >= old:
        return False  # the memory was unmapped meanwhile
    try:
        munmap(space, new, old - new, "brk")
    except SyscallError:
        return False
    return True


def _grow(space: Space, old: int, new: int, words: Sequence[int]) -> bool:
    """What do_brk_flags() checks."""
    if new == old:
        return True
    size, locked = new - old, words[DEF_FLAGS]
    if not old < new <= TASK_SIZE or not space.may_lock_more(locked, size):
        return False
    following = space.kernel.core.find(space.sid, old)
    if following is not None:
        gap = STACK_GUARD if following.flags & c.VM_GROWSDOWN else 0
        if following.start - gap < new + PAGE_SIZE:
            return False
    npages = size // PAGE_SIZE
    if not space.may_expand(_DATA, npages) or not space.room_for_split(0) or not space.enough_memory(npages):
        return False
    # brk(2) looks no lower than the start of the heap for a mapping to extend: bss that ends there stays one of its own
    map_private(space, old, new, Prot.READ | Prot.WRITE, "brk", locked, apart=old == words[START_BRK])
    return True
