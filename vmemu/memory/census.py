"""What the frames of the whole machine are used for, as /proc/meminfo and /proc/vmstat sort them."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from vmemu._native import constants as c
from vmemu.kernel import Kernel
from vmemu.memory.args import TASK_SIZE
from vmemu.types import PAGE_SIZE

__all__ = ["Census", "census", "locked_frames"]

_KPF_DIRTY, _KPF_MMAP, _KPF_ANON, _KPF_SWAPBACKED, _KPF_HUGE = 1 << 4, 1 << 11, 1 << 12, 1 << 14, 1 << 17
"""Of kpageflags (include/uapi/linux/kernel-page-flags.h)."""
_PRESENT, _FILE, _PFN = 1 << 63, 1 << 61, (1 << 55) - 1
"""Of pagemap."""


class Census(NamedTuple):
    """Bytes by use. Nothing is ever reclaimed, so all that is not locked counts as inactive."""

    total: int
    free: int
    anon: int
    anon_huge: int
    """Of that, mapped by huge entries."""
    file: int
    shmem: int
    page_tables: int
    mapped: int
    """Page cache and shared memory that some process maps."""
    dirty: int
    """Page cache of files that was written."""
    mlocked_anon: int
    """Anonymous and shared memory in a locked mapping."""
    mlocked_file: int
    """Page cache of files in a locked mapping."""

    @property
    def mlocked(self) -> int:
        """All in locked mappings."""
        return self.mlocked_anon + self.mlocked_file

    @property
    def evictable_anon(self) -> int:
        """Anonymous and shared memory that is not locked."""
        return self.anon + self.shmem - self.mlocked_anon

    @property
    def evictable_file(self) -> int:
        """Page cache of files that is not locked."""
        return self.file - self.mlocked_file


def census(kernel: Kernel) -> Census:
    """Counts; one pass over the frames and over the locked mappings."""
    with kernel.lock:
        info = kernel.core.info()
        locked_anon, locked_file = (len(pfns) for pfns in locked_frames(kernel))
        return Census(
            total=info.nframes * PAGE_SIZE,
            free=info.free * PAGE_SIZE,
            anon=info.anon * PAGE_SIZE,
            anon_huge=info.anon_huge * PAGE_SIZE,
            file=info.file * PAGE_SIZE,
            shmem=info.shmem * PAGE_SIZE,
            page_tables=info.tables * PAGE_SIZE,
            mapped=kernel.core.count_frames(_KPF_MMAP, _KPF_ANON | _KPF_HUGE) * PAGE_SIZE,
            dirty=kernel.core.count_frames(_KPF_DIRTY, _KPF_ANON | _KPF_SWAPBACKED) * PAGE_SIZE,
            mlocked_anon=locked_anon * PAGE_SIZE,
            mlocked_file=locked_file * PAGE_SIZE,
        )


def locked_frames(kernel: Kernel) -> tuple[set[int], set[int]]:
    """Frames in locked mappings (PG_mlocked): (swap-backed, page cache)."""
    table, core = kernel.processes, kernel.core
    found: tuple[set[int], set[int]] = (set(), set())
    for sid in {table.space[pid] for pid in table} - {0}:
        if not core.sums(sid).locked:
            continue
        for vma in core.vmas(sid, 0, TASK_SIZE):
            if not vma.flags & c.VM_LOCKED:
                continue
            entries = array("Q", bytes((vma.end - vma.start) // PAGE_SIZE * 8))
            core.pagemap(sid, vma.start, len(entries), entries)
            backing = core.object_info(vma.object) if vma.object else None
            cached = backing is not None and not backing.kind & c.OBJ_SHMEM
            for entry in entries:
                if entry & _PRESENT and entry & _PFN != kernel.zero_pfn:
                    found[bool(cached and entry & _FILE)].add(entry & _PFN)
    return found
