"""Looking at a process's memory: mappings as records, usage as smaps sums it, pages. Nothing is changed by looking."""

from __future__ import annotations

import errno
from functools import lru_cache
from typing import TYPE_CHECKING, Any, SupportsIndex

from vmemu._native import Vma
from vmemu._native import constants as c
from vmemu.errors import syscall_error
from vmemu.memory import hugetlb, thp
from vmemu.memory.args import MASK, TASK_SIZE, integer
from vmemu.memory.space import Space
from vmemu.memory.words import BRK, START_BRK, START_STACK
from vmemu.types import PAGE_SIZE, ByKind, Mapping, MappingUsage, Prot, Translation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "mapping_usage",
    "maps",
    "page_tables",
    "pagemap",
    "pss_by_kind",
    "rss_by_kind",
    "smaps",
    "translate",
    "usage",
    "uss",
]

_CODES = (
    (c.VM_READ, "rd"),
    (c.VM_WRITE, "wr"),
    (c.VM_EXEC, "ex"),
    (c.VM_SHARED, "sh"),
    (c.VM_MAYREAD, "mr"),
    (c.VM_MAYWRITE, "mw"),
    (c.VM_MAYEXEC, "me"),
    (c.VM_MAYSHARE, "ms"),
    (c.VM_GROWSDOWN, "gd"),
    (c.VM_MAYBE_GUARD, "gu"),
    (c.VM_LOCKED, "lo"),
    (c.VM_SEQ_READ, "sr"),
    (c.VM_RAND_READ, "rr"),
    (c.VM_DONTCOPY, "dc"),
    (c.VM_DONTEXPAND, "de"),
    (c.VM_LOCKONFAULT, "lf"),
    (c.VM_ACCOUNT, "ac"),
    (c.VM_NORESERVE, "nr"),
    (c.VM_HUGETLB, "ht"),
    (c.VM_SYNC, "sf"),
    (c.VM_WIPEONFORK, "wf"),
    (c.VM_DONTDUMP, "dd"),
    (c.VM_SOFTDIRTY, "sd"),
    (c.VM_HUGEPAGE, "hg"),
    (c.VM_NOHUGEPAGE, "nh"),
    (c.VM_MERGEABLE, "mg"),
    (c.VM_SEALED, "sl"),
    (c.VM_DROPPABLE, "dp"),
)
"""smaps' VmFlags, in its order (show_smap_vma_flags())."""


def maps(space: Space) -> list[Mapping]:
    """The mappings in address order."""
    with space.kernel.lock:  # what is mapped shall not lose its file before it is named
        words = space.kernel.core.words(space.sid)
        return [_mapping(space, vma, words) for vma in space.vmas()]


def _mapping(space: Space, vma: Vma, words: list[int]) -> Mapping:
    device, inode, offset, name = (0, 0), 0, 0, ""
    shown = -1 if space.kernel.soft_dirty else ~c.VM_SOFTDIRTY
    if vma.object:
        files = space.kernel.files
        backing = files.inode_of(vma.object)
        device, inode, offset = backing.device, backing.number, vma.pgoff * PAGE_SIZE
        name = files.name(vma.object, vma.tag)
    elif vma.start < words[BRK] and vma.end > words[START_BRK]:
        name = "[heap]"
    elif words[START_STACK] and vma.start <= words[START_STACK] <= vma.end:
        name = "[stack]"
    return Mapping(
        start=vma.start,
        end=vma.end,
        prot=Prot(vma.flags & (c.VM_READ | c.VM_WRITE | c.VM_EXEC)),
        shared=bool(vma.flags & c.VM_MAYSHARE),
        offset=offset,
        device=device,
        inode=inode,
        name=name,
        flags=_codes(vma.flags & shown),
    )


@lru_cache(256)
def _codes(flags: int) -> tuple[str, ...]:
    return tuple(code for bit, code in _CODES if flags & bit)


def mapping_usage(
    mapping: Mapping, used: Any, *, thp_eligible: bool = False, page_size: int = PAGE_SIZE
) -> MappingUsage:
    """The record of a mapping, or of what stands for several, from its struct vmemu_usage."""
    return MappingUsage(
        mapping=mapping,
        rss=used.rss,
        pss=used.pss >> 12,
        pss_dirty=used.pss_dirty >> 12,
        shared_clean=used.shared_clean,
        shared_dirty=used.shared_dirty,
        private_clean=used.private_clean,
        private_dirty=used.private_dirty,
        referenced=used.referenced,
        anonymous=used.anonymous,
        lazyfree=used.lazyfree,
        ksm=used.ksm,
        anonhugepages=used.anon_huge,
        thp_eligible=thp_eligible,
        shared_hugetlb=used.shared_hugetlb,
        private_hugetlb=used.private_hugetlb,
        swap=used.swap,
        swap_pss=used.swap_pss >> 12,
        page_size=page_size,
    )


def smaps(space: Space) -> list[MappingUsage]:
    """Mappings with what of them is resident, in bytes."""
    with space.kernel.lock:
        return [
            mapping_usage(
                mapping,
                space.kernel.core.usage(space.sid, mapping.start, mapping.end),
                thp_eligible=thp.eligible(space, vma),
                page_size=hugetlb.page_bytes(vma.flags),
            )
            for mapping, vma in zip(maps(space), space.vmas(), strict=True)
        ]


def usage(space: Space) -> Any:
    """struct vmemu_usage of the whole space."""
    return space.kernel.core.usage(space.sid, 0, TASK_SIZE)


def rss_by_kind(space: Space) -> ByKind:
    """Resident bytes by kind."""
    info = space.kernel.core.space_info(space.sid)
    return ByKind(info.anon * PAGE_SIZE, info.file * PAGE_SIZE, info.shmem * PAGE_SIZE)


def pss_by_kind(space: Space) -> ByKind:
    """Each resident page divided by its number of mappings, by kind."""
    used = usage(space)
    return ByKind(used.pss_anon >> 12, used.pss_file >> 12, used.pss_shmem >> 12)


def uss(space: Space) -> int:
    """Bytes resident that nobody else maps."""
    used = usage(space)
    return int(used.private_clean + used.private_dirty)


def page_tables(space: Space) -> int:
    """Bytes of page tables as VmPTE counts them: the root not, shared ones in full."""
    return max(0, int(space.kernel.core.space_info(space.sid).tables) - 1) * PAGE_SIZE


def pagemap(space: Space, address: SupportsIndex, npages: int) -> NDArray[np.uint64]:
    """uint64 array of /proc/PID/pagemap entries."""
    import numpy as np

    where = integer(address, "pagemap", "address")
    npages = integer(npages, "pagemap", "npages")
    if where % PAGE_SIZE or npages < 0 or not 0 <= where <= TASK_SIZE - npages * PAGE_SIZE:
        raise syscall_error("pagemap", errno.EINVAL, f"{npages} pages at {where:#x}")
    out = np.zeros(npages, np.uint64)
    if npages:
        space.kernel.core.pagemap(space.sid, where, npages, out)
    return out


def translate(space: Space, address: SupportsIndex) -> Translation | None:
    """What a page walk finds; None where no entry is."""
    where = integer(address, "translate", "address")
    if not 0 <= where <= MASK:
        return None
    found = space.kernel.core.translate(space.sid, where)
    if found is None:
        return None
    return Translation(
        pfn=found.pfn,
        prot=Prot(found.prot),
        level=found.level,
        physical=found.pfn * PAGE_SIZE + where % PAGE_SIZE,
        accessed=bool(found.accessed),
        dirty=bool(found.dirty),
        exclusive=bool(found.exclusive),
    )
