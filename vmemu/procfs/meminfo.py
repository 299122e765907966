"""/proc/meminfo (meminfo_proc_show(); 6.18)."""

from __future__ import annotations

from vmemu.kernel import Kernel
from vmemu.memory import hugetlb
from vmemu.memory.census import census
from vmemu.memory.commit import commit_limit
from vmemu.types import PAGE_SIZE

__all__ = ["meminfo"]

_VMALLOC_TOTAL = (1 << 45) - 1024
"""The kernel's own address range, nothing of which is used here."""
_LARGE = 2 << 20


def meminfo(kernel: Kernel) -> bytes:
    """The file. What the machine has none of is 0; the kernel itself takes no memory here."""
    with kernel.lock:
        used, swap = census(kernel), kernel.core.swap_info()
        committed = int(kernel.core.info().account) * PAGE_SIZE
        limit = commit_limit(kernel) * PAGE_SIZE
        pools = hugetlb.pools(kernel)
    lines = [
        ("MemTotal", used.total),
        ("MemFree", used.free),
        ("MemAvailable", used.free + used.file),
        ("Buffers", 0),
        ("Cached", used.file + used.shmem),
        ("SwapCached", swap.cached * PAGE_SIZE),
        ("Active", 0),
        ("Inactive", used.evictable_anon + used.evictable_file),
        ("Active(anon)", 0),
        ("Inactive(anon)", used.evictable_anon),
        ("Active(file)", 0),
        ("Inactive(file)", used.evictable_file),
        ("Unevictable", used.mlocked),
        ("Mlocked", used.mlocked),
        ("SwapTotal", swap.total * PAGE_SIZE),
        ("SwapFree", swap.free * PAGE_SIZE),
        ("Zswap", 0),
        ("Zswapped", 0),
        ("Dirty", used.dirty),
        ("Writeback", 0),
        ("AnonPages", used.anon),
        ("Mapped", used.mapped),
        ("Shmem", used.shmem),
        *((key, 0) for key in ("KReclaimable", "Slab", "SReclaimable", "SUnreclaim", "KernelStack")),
        ("PageTables", used.page_tables),
        *((key, 0) for key in ("SecPageTables", "NFS_Unstable", "Bounce", "WritebackTmp")),
        ("CommitLimit", limit),
        ("Committed_AS", committed),
        ("VmallocTotal", _VMALLOC_TOTAL),
        *((key, 0) for key in ("VmallocUsed", "VmallocChunk", "Percpu")),
        ("AnonHugePages", used.anon_huge),
        *((key, 0) for key in ("ShmemHugePages", "ShmemPmdMapped", "FileHugePages", "FilePmdMapped")),
        ("Balloon", 0),
    ]
    text = "".join(_kilobytes(key, value) for key, value in lines)
    huge = pools[0]
    counts = (("Total", huge.total), ("Free", huge.free), ("Rsvd", huge.reserved), ("Surp", 0))
    text += "".join(f"{f'HugePages_{key}:':18} {value:5}\n" for key, value in counts)
    text += _kilobytes("Hugepagesize", _LARGE) + _kilobytes("Hugetlb", sum(p.total * p.page_size for p in pools))
    text += _kilobytes("DirectMap4k", used.total % _LARGE) + _kilobytes("DirectMap2M", used.total // _LARGE * _LARGE)
    return (text + _kilobytes("DirectMap1G", 0)).encode()


def _kilobytes(key: str, nbytes: int) -> str:
    return f"{key + ':':15} {nbytes >> 10:8} kB\n"
