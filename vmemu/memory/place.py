"""Where a mapping goes (__get_unmapped_area())."""

from __future__ import annotations

import errno

from vmemu._native import constants as c
from vmemu.alignment import HUGE_PAGE, place_huge
from vmemu.credentials import Capability
from vmemu.errors import syscall_error
from vmemu.memory.args import MASK, TASK_SIZE
from vmemu.memory.bits import MAP_ABOVE4G, MAP_BITS_32, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_HUGETLB
from vmemu.memory.hugetlb import page_of
from vmemu.memory.space import STACK_GUARD, Space
from vmemu.memory.words import MMAP_BASE
from vmemu.types import PAGE_SIZE

__all__ = ["MMAP_MIN_ADDR", "place"]

MMAP_MIN_ADDR = 65536
"""Below it no hint is taken and no stack grows (CONFIG_LSM_MMAP_MIN_ADDR)."""
_PRIVILEGED_BELOW = 4096
"""vm.mmap_min_addr: what MAP_FIXED needs CAP_SYS_RAWIO for (cap_mmap_addr())."""
_BOTTOM_UP = (TASK_SIZE // 3 + PAGE_SIZE - 1) & -PAGE_SIZE
"""TASK_UNMAPPED_BASE, where the search goes on upwards when nothing is free below mmap_base."""
_4GIB = 4 << 30
_MAX_ERRNO = 4095


def place(
    space: Space, hint: int, size: int, flags: int, object_: int, pgoff: int, call: str, base: int | None = None
) -> int:
    """An address for *size* bytes (whole pages, not 0) of an object (0: private anonymous memory; -1: shared memory to
    be made) from page *pgoff* on. Of *flags* the MAP_* that say where; with MAP_FIXED it is *hint* or nothing.
    *base*: the space's mmap_base, if that is known.

    ENOMEM, EINVAL; EPERM below mmap_min_addr without CAP_SYS_RAWIO.
    """
    if size > TASK_SIZE:
        raise syscall_error(call, errno.ENOMEM, f"length {size:#x} is beyond the address space")
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        found = hint
        if hint > MASK - _MAX_ERRNO:  # the kernel takes it for an error
            raise syscall_error(call, MASK + 1 - hint, f"address {hint:#x}")
    else:
        if base is None:
            base = space.kernel.core.words(space.sid)[MMAP_BASE]
        hole = _search(space, hint, size, flags, object_, pgoff, base)
        if hole is None:
            raise syscall_error(call, errno.ENOMEM, f"no hole of {size} bytes in the address space")
        found = hole
    if found > TASK_SIZE - size:
        raise syscall_error(call, errno.ENOMEM, f"{found:#x} + {size:#x} is beyond the address space")
    if found % PAGE_SIZE:
        raise syscall_error(call, errno.EINVAL, f"address {found:#x} is not page aligned")
    if found < _PRIVILEGED_BELOW and not space.capable(Capability.SYS_RAWIO):
        raise syscall_error(call, errno.EPERM, f"address {found:#x} is below mmap_min_addr")
    return found


def _search(space: Space, hint: int, size: int, flags: int, object_: int, pgoff: int, base: int) -> int | None:
    """Without MAP_FIXED. Files are aligned for huge pages, unless they are in memory (shmem_get_unmapped_area()); so is
    private memory of a whole number of huge pages, where no address is wished."""

    def fit(hint: int, size: int) -> int | None:
        return _fit(space, hint, size, flags, base)

    hint &= -PAGE_SIZE
    found = None
    if flags & MAP_HUGETLB:
        page = page_of(flags)
        return _fit(space, -(-hint // page) * page, size, flags, base, page)
    if object_ > 0 and space.kernel.files.on_disk(object_):
        found = place_huge(fit, hint, size, pgoff * PAGE_SIZE)
    elif not object_ and not hint and size % HUGE_PAGE == 0:
        found = place_huge(fit, 0, size, 0)
    return fit(hint, size) if found is None else found


def _fit(space: Space, hint: int, size: int, flags: int, base: int, align: int = PAGE_SIZE) -> int | None:
    """At the hint if it is free, else in the highest hole that fits below mmap_base, else upwards
    (arch_get_unmapped_area_topdown()). MAP_32BIT: from 1 to 2 GiB, upwards."""
    core, sid = space.kernel.core, space.sid
    low = bool(flags & MAP_BITS_32)
    if hint and _free_at(space, hint, size, 2 << 30 if low else TASK_SIZE):
        return hint
    if low:
        return core.hole(sid, 1 << 30, 2 << 30, size, align, False)
    floor = _4GIB if flags & MAP_ABOVE4G else PAGE_SIZE
    found = core.hole(sid, floor, base, size, align, True)
    if found is None:
        found = core.hole(sid, max(_BOTTOM_UP, floor), TASK_SIZE, size, align, False)
    return found


def _free_at(space: Space, address: int, size: int, limit: int) -> bool:
    """Nothing is mapped in the range, which ends below *limit*, nor is it a stack's guard gap."""
    if address > limit - size:
        return False
    core, sid = space.kernel.core, space.sid
    after, before = core.find(sid, address), core.find_before(sid, address + size)
    end = limit if after is None else after.start - (STACK_GUARD if after.flags & c.VM_GROWSDOWN else 0)
    return address + size <= end and (before is None or before.end <= address)
