"""Transparent huge pages as a process asks for them: eligibility, MADV_COLLAPSE, prctl(PR_SET_THP_DISABLE).

What a fault does with them is the core's. Documentation/admin-guide/mm/transhuge.rst.
"""

from __future__ import annotations

import errno

from vmemu._native import Vma
from vmemu._native import constants as c
from vmemu.alignment import HUGE_PAGE
from vmemu.errors import OutOfMemory, syscall_error
from vmemu.memory.space import Space
from vmemu.types import PAGE_SIZE

__all__ = ["collapse", "disable", "disabled", "eligible"]


def disable(space: Space, off: bool) -> None:
    """prctl(PR_SET_THP_DISABLE)."""
    space.kernel.core.no_thp(space.sid, int(bool(off)), "prctl")


def disabled(space: Space) -> bool:
    """prctl(PR_GET_THP_DISABLE)."""
    return space.kernel.core.no_thp(space.sid, -1, "prctl")


def _fits(vma: Vma) -> bool:
    """The mapping covers an aligned 2 MiB (thp_vma_suitable_order())."""
    last = (vma.end & -HUGE_PAGE) - HUGE_PAGE
    return last >= vma.start


def eligible(space: Space, vma: Vma) -> bool:
    """THPeligible of smaps: faults in this mapping may bring huge pages (thp_vma_allowable_orders())."""
    if vma.object or vma.flags & c.VM_NOHUGEPAGE or space.kernel.thp == "never":
        return False
    if space.kernel.thp == "madvise" and not vma.flags & c.VM_HUGEPAGE:
        return False
    return _fits(vma) and not disabled(space)


def _takes_huge_pages(space: Space, vma: Vma) -> bool:
    """Private anonymous memory once something is there, or shared memory that lies as its pages do; files do not."""
    if not vma.object:
        return bool(vma.anon)
    aligned = (vma.start // PAGE_SIZE - vma.pgoff) % (HUGE_PAGE // PAGE_SIZE) == 0
    backing = space.kernel.core.object_info(vma.object)
    return aligned and backing is not None and bool(backing.kind & c.OBJ_SHMEM)


def collapse(space: Space, vma: Vma, start: int, end: int) -> None:
    """MADV_COLLAPSE on a part of one mapping (madvise_collapse()), one 2 MiB after another up to the first failure.

    EINVAL where the mapping takes no huge pages or nothing is there to begin with, ENOMEM without a free 2 MiB.
    """
    if (
        vma.flags & (c.VM_NOHUGEPAGE | c.VM_HUGETLB)
        or not _fits(vma)
        or disabled(space)
        or not _takes_huge_pages(space, vma)
    ):
        raise syscall_error("madvise", errno.EINVAL, f"{vma.start:#x}-{vma.end:#x} takes no huge pages")
    if vma.object:
        raise NotImplementedError("madvise: MADV_COLLAPSE of shared memory")
    first, last = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
    error = errno.EINVAL if last < first else 0
    for address in range(first, last, HUGE_PAGE):
        if error := space.kernel.core.collapse(space.sid, address):
            break
    if error == errno.ENOMEM:
        raise OutOfMemory(error, f"madvise: MADV_COLLAPSE of {start:#x}-{end:#x}: no 2 MiB are free in a row")
    if error:
        raise syscall_error("madvise", error, f"MADV_COLLAPSE of {start:#x}-{end:#x}")
