"""Forgetting what was accessed or written, and what was written since: /proc/PID/clear_refs, soft-dirty pages.

Soft-dirty pages are found as Linux finds them (Documentation/admin-guide/mm/soft-dirty.rst): clearing write-protects
all pages, so the next write to each faults and marks it; a new mapping counts as written from end to end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex

from vmemu.errors import VmemuError
from vmemu.memory import view
from vmemu.memory.args import TASK_SIZE, integer, page_up
from vmemu.memory.shortage import call
from vmemu.memory.space import Space
from vmemu.pids import INIT
from vmemu.types import PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ALL", "ANON", "HIGH_WATER", "MAPPED", "SOFT_DIRTY", "clear_refs", "dirty_pages"]

ALL, ANON, MAPPED, SOFT_DIRTY, HIGH_WATER = 1, 2, 3, 4, 5
_CHUNK = 1 << 18
"""Pages looked at in one go."""


def clear_refs(space: Space, what: int) -> None:
    """What writing *what* to /proc/PID/clear_refs does (clear_refs_write()).

    ALL, ANON, MAPPED: the accessed bits of all pages, of those in anonymous mappings, in mappings of files and shared
    memory. SOFT_DIRTY: all pages are soft-clean; nothing happens in a machine made with soft_dirty=False. HIGH_WATER:
    the peak of resident memory is what it is now.
    """
    kernel = space.kernel
    with kernel.lock:
        if what == HIGH_WATER:
            kernel.core.reset_peak(space.sid)
        elif what != SOFT_DIRTY or kernel.soft_dirty is not False:
            call(kernel, INIT, kernel.core.clear_refs, space.sid, what)  # somebody else may write it
            if what == SOFT_DIRTY and kernel.soft_dirty is None:
                kernel.soft_dirty = True
                kernel.core.show_soft_dirty(True)


def dirty_pages(space: Space, address: SupportsIndex | None, length: SupportsIndex | None) -> NDArray[np.uint64]:
    """Addresses of the soft-dirty pages of mappings in a range, ascending; the default is all."""
    import numpy as np

    kernel = space.kernel
    where = 0 if address is None else integer(address, "dirty_pages", "address") % (1 << 64)
    start, end = where & -PAGE_SIZE, TASK_SIZE
    if length is not None:
        end = min(end, where + integer(length, "dirty_pages", "length"))
    if kernel.soft_dirty is False:
        raise VmemuError("dirty_pages: the machine was made with soft_dirty=False")
    found: list[NDArray[np.uint64]] = []
    with kernel.lock:
        if kernel.soft_dirty is None:
            kernel.soft_dirty = True
            kernel.core.show_soft_dirty(True)
        for vma in space.vmas(start, page_up(end)) if end > start else ():
            first, last = max(vma.start, start), min(vma.end, page_up(end))
            for at in range(first, last, _CHUNK * PAGE_SIZE):
                n = min(_CHUNK, (last - at) // PAGE_SIZE)
                dirty = np.flatnonzero(view.pagemap(space, at, n) & np.uint64(1 << 55))
                found.append(dirty.astype(np.uint64) * np.uint64(PAGE_SIZE) + np.uint64(at))
    return np.concatenate(found) if found else np.zeros(0, np.uint64)
