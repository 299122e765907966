"""PID/maps, smaps and smaps_rollup (fs/proc/task_mmu.c).

There is no vsyscall page, as on a kernel booted with ``vsyscall=none``, and no vdso; protection keys are those of a CPU
without them (no ProtectionKey line).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from vmemu.memory import view
from vmemu.procfs.subject import Subject
from vmemu.types import Mapping, MappingUsage, Prot

__all__ = ["maps", "maps_text", "smaps", "smaps_rollup", "smaps_text"]

_NAME_COLUMN = 73
"""Where names begin in maps (seq_pad(), 25 + 6 * sizeof(void *))."""


def maps(subject: Subject) -> bytes:
    """PID/maps; empty for a zombie."""
    return maps_text(view.maps(subject.space)) if subject.space else b""


def maps_text(mappings: Iterable[Mapping]) -> bytes:
    """Lines of maps (show_map_vma())."""
    return b"".join(map(_line, mappings))


@lru_cache(1024)  # processes that forked from one another have the same lines
def _line(m: Mapping) -> bytes:
    major, minor = m.device
    line = f"{m.start:08x}-{m.end:08x} {m.perms} {m.offset:08x} {major:02x}:{minor:02x} {m.inode} ".encode()
    if m.name:
        line = line.ljust(_NAME_COLUMN - 1) + b" " + m.name.encode(errors="surrogateescape").replace(b"\n", b"\\012")
    return line + b"\n"


def smaps(subject: Subject) -> bytes:
    """PID/smaps; empty for a zombie."""
    return smaps_text(subject.usages)


def smaps_text(usages: Iterable[MappingUsage]) -> bytes:
    """Blocks of smaps (show_smap())."""
    return b"".join(_line(usage.mapping) + _usage(usage) for usage in usages)


def _usage(u: MappingUsage) -> bytes:
    return _block(
        (
            u.mapping.size,
            u.page_size,
            u.page_size,
            u.rss,
            u.pss,
            u.pss_dirty,
            *_tail(u, u.pss if "lo" in u.mapping.flags else 0),
        ),
        u.mapping.flags,
        u.thp_eligible,
    )


def _tail(u: MappingUsage, locked: int) -> tuple[int, ...]:
    """Shared_Clean to Locked, which smaps and smaps_rollup have in common."""
    return (
        u.shared_clean,
        u.shared_dirty,
        u.private_clean,
        u.private_dirty,
        u.referenced,
        u.anonymous,
        u.ksm,
        u.lazyfree,
        u.anonhugepages,
        0,  # ShmemPmdMapped
        0,  # FilePmdMapped
        u.shared_hugetlb,
        u.private_hugetlb,
        u.swap,
        u.swap_pss,
        locked,
    )


_HEAD = ("Size", "KernelPageSize", "MMUPageSize", "Rss", "Pss", "Pss_Dirty")
_ROLLUP_HEAD = ("Rss", "Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem")
_TAIL = tuple(
    "Shared_Clean Shared_Dirty Private_Clean Private_Dirty Referenced Anonymous KSM LazyFree AnonHugePages "
    "ShmemPmdMapped FilePmdMapped Shared_Hugetlb Private_Hugetlb Swap SwapPss Locked".split()
)


def _lines(keys: tuple[str, ...], values: tuple[int, ...]) -> str:
    return "".join(f"{key + ':':16}{value >> 10:8} kB\n" for key, value in zip(keys, values, strict=True))


@lru_cache(4096)
def _block(values: tuple[int, ...], flags: tuple[str, ...], thp_eligible: bool) -> bytes:
    text = _lines(_HEAD + _TAIL, values)
    return f"{text}THPeligible:    {thp_eligible:8}\nVmFlags: {''.join(code + ' ' for code in flags)}\n".encode()


def smaps_rollup(subject: Subject) -> bytes:
    """PID/smaps_rollup: the sums of smaps, which lose nothing by rounding (show_smaps_rollup()). ESRCH for a zombie."""
    space = subject.living("smaps_rollup")
    with space.kernel.lock:
        usages = subject.usages
        total = view.usage(space)
        locked = sum(u.pss for u in usages if "lo" in u.mapping.flags)
    start = usages[0].mapping.start if usages else 0
    end = usages[-1].mapping.end if usages else 0
    rollup = Mapping(start, end, prot=Prot.NONE, shared=False, offset=0, device=(0, 0), inode=0, name="[rollup]")
    summed = view.mapping_usage(rollup, total)
    by_kind = (total.pss_anon >> 12, total.pss_file >> 12, total.pss_shmem >> 12)
    values = (summed.rss, summed.pss, summed.pss_dirty, *by_kind, *_tail(summed, locked))
    return _line(summed.mapping) + _lines(_ROLLUP_HEAD + _TAIL, values).encode()
