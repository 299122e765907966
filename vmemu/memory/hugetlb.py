"""Huge pages of reserved pools, MAP_HUGETLB: what differs from ordinary pages (hugetlbpage.rst, mm/hugetlb.c).

A mapping of them is one of an unnamed file. Faults, copies and the pools themselves are the core's.
"""

from __future__ import annotations

import errno

from vmemu._native import constants as c
from vmemu.alignment import HUGE_PAGE
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.memory.args import MASK
from vmemu.memory.space import Space
from vmemu.types import PAGE_SIZE, HugePool

__all__ = [
    "GIANT_PAGE",
    "HUGE_PAGE",
    "check_aligned",
    "install",
    "page_bytes",
    "page_of",
    "pools",
    "whole_pages",
]

GIANT_PAGE = 1 << 30
_SHIFT, _MASK = 26, 63
"""Where mmap's flags have log2 of the page size (MAP_HUGE_SHIFT)."""
_SIZES = {0: HUGE_PAGE, 21: HUGE_PAGE, 30: GIANT_PAGE}


def page_bytes(vm_flags: int) -> int:
    """Size of the pages of a mapping with these VM flags (vma_kernel_pagesize())."""
    if not vm_flags & c.VM_HUGETLB:
        return PAGE_SIZE
    return GIANT_PAGE if vm_flags & c.VM_GIANT else HUGE_PAGE


def page_of(flags: int) -> int:
    """Size of the huge pages that mmap's *flags* ask for, 2 MiB by default. EINVAL if there are none of that size."""
    log2 = flags >> _SHIFT & _MASK
    if log2 not in _SIZES:
        raise syscall_error("mmap", errno.EINVAL, f"no huge pages of 2^{log2} bytes")
    return _SIZES[log2]


def whole_pages(size: int, flags: int) -> int:
    """*size* rounded up to the huge page that *flags* ask for, modulo 2^64."""
    page = page_of(flags)
    return size + page - 1 & -page & MASK


def check_aligned(page: int, *addresses: int, call: str) -> None:
    """EINVAL unless the addresses are those of pages of *page* bytes (hugetlb_vm_op_split())."""
    for address in addresses:
        if address % page:
            raise syscall_error(call, errno.EINVAL, f"{address:#x} is not aligned to a huge page of {page} bytes")


def install(space: Space, start: int, size: int, flags: int, vm_flags: int, pgoff: int) -> None:
    """Makes a mapping of huge pages, what it covers reserved unless VM_NORESERVE (hugetlbfs_file_mmap()).

    ENOMEM if too few are free, EINVAL if *pgoff* is not that of a huge page; what was mapped there is gone then.
    """
    core, files, call = space.kernel.core, space.kernel.files, "mmap"
    page, end = page_of(flags), start + size
    giant = page == GIANT_PAGE
    space.insist(core.unmap, space.sid, start, end, call)
    if pgoff * PAGE_SIZE % page:
        raise syscall_error(call, errno.EINVAL, f"offset {pgoff * PAGE_SIZE:#x} is not that of a huge page")
    _, free, reserved = core.pool_info(giant)
    reserve = not vm_flags & c.VM_NORESERVE
    if reserve and free - reserved < size // page:
        raise syscall_error(
            call, errno.ENOMEM, f"{size // page} huge pages of {page} bytes: {free - reserved} are free"
        )
    vm_flags = vm_flags & ~(c.VM_LOCKED | c.VM_LOCKONFAULT) | c.VM_HUGETLB | c.VM_DONTEXPAND
    vm_flags |= c.VM_GIANT if giant else 0
    shared = bool(vm_flags & c.VM_SHARED)
    if reserve and not shared:
        vm_flags |= c.VM_POOL_OWNER
    inode = files.huge_pages(pgoff * PAGE_SIZE + size, giant, reserve and shared)
    try:
        space.insist(core.map, space.sid, start, end, vm_flags, inode.object, pgoff, 0, call)
    finally:
        core.object_release(inode.object)


def pools(kernel: Kernel) -> tuple[HugePool, HugePool]:
    """The pools of 2 MiB and of 1 GiB."""
    core = kernel.core
    return HugePool(HUGE_PAGE, *core.pool_info(False)), HugePool(GIANT_PAGE, *core.pool_info(True))
