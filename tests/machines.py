"""What tests of machines share: short names, machines that are proved consistent when a test is through, snapshots.

`recount` is the independent witness: from nothing but the pagemaps of all processes it counts who maps which frame, and
holds kpagecount, RSS, PSS, USS and the machine's sums against that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linux import tinyelf

from vmemu import PAGE_SIZE, FaultCounts, File, ForkMode, Machine, Map, MemInfo, Process, Prot

PAGE = PAGE_SIZE
R, RW = Prot.READ, Prot.READ | Prot.WRITE
ANON = Map.PRIVATE | Map.ANONYMOUS
SHARED = Map.SHARED | Map.ANONYMOUS
A = 0x1000_0000
"""An address in the middle of nowhere, 2 MiB aligned: [A, A + 2 MiB) needs one leaf table."""

every_mode = pytest.mark.parametrize("mode", list(ForkMode), ids=lambda mode: mode.name)
sharing_mode = pytest.mark.parametrize("mode", [ForkMode.COW, ForkMode.ON_DEMAND], ids=lambda mode: mode.name)
"""The modes in which fork copies no frame."""

GUARD = 0x4400_0000_0000_009F
"""What pagemap shows of a guard: bits 58 and 62, swap type 31, offset 4."""
_SOFT_DIRTY = 1 << 55
_PFN = (1 << 55) - 1
_EXCLUSIVE = 1 << 56
_PRESENT = 1 << 63
_SWAPPED = 1 << 62
_MMAP, _HUGE, _THP, _ZERO_PAGE = (np.uint64(1 << bit) for bit in (11, 17, 22, 24))
"""Of kpageflags."""


@contextmanager
def machine(**options: Any) -> Iterator[Machine]:
    """A machine of 16 MiB unless told otherwise; at the end it verifies and the recount agrees."""
    with Machine(**{"memory": "16MiB", **options}) as m:
        yield m
        prove(m)


def prove(m: Machine) -> None:
    """The machine's own proof and the independent one."""
    m.verify()
    recount(m)


def anon(p: Process, npages: int = 1, address: int | None = None, prot: int = RW, more: int = 0) -> int:
    """Private anonymous memory."""
    fixed = Map.FIXED if address is not None else 0
    return p.mmap(address, npages * PAGE, prot, ANON | fixed | more)


def filled(p: Process, npages: int = 1, address: int | None = None) -> int:
    """The same, written to: page i holds bytes of value i + 1."""
    where = anon(p, npages, address)
    for i in range(npages):
        p.write(where + i * PAGE, bytes([i + 1 & 255]) * PAGE)
    return where


def pfn(p: Process, address: int) -> int:
    """Frame at an address; the page must be mapped."""
    found = p.translate(address)
    assert found is not None
    return found.pfn


def pfns(p: Process, address: int, npages: int) -> list[int]:
    """Frames of a range, 0 where nothing is mapped, from pagemap."""
    return [entry & _PFN for entry in p.pagemap(address, npages).tolist()]


def prots(p: Process, address: int, npages: int) -> list[Prot]:
    """What the tables allow now, page by page."""
    found = [p.translate(address + i * PAGE) for i in range(npages)]
    return [entry.prot for entry in found if entry is not None]


def mapcount(m: Machine, frame: int) -> int:
    """From /proc/kpagecount."""
    return int.from_bytes(m.procfs.read("kpagecount")[8 * frame : 8 * frame + 8], "little")


def counts(**kinds: int) -> FaultCounts:
    """These faults and no others."""
    return FaultCounts(**kinds)


def frames(nbytes: int) -> int:
    """Bytes as frames, exactly."""
    assert nbytes % PAGE == 0
    return nbytes // PAGE


def change(before: MemInfo, after: MemInfo) -> dict[str, int]:
    """What changed in meminfo, in frames; `available` follows from the others."""
    fields = [field for field in MemInfo.__dataclass_fields__ if field != "available"]
    moved = {field: frames(getattr(after, field) - getattr(before, field)) for field in fields}
    return {field: by for field, by in moved.items() if by}


def spaces(m: Machine) -> dict[int, Process]:
    """One task for each address space, by its number; not those that lend it in vfork just now."""
    users = {m._kernel.processes.space[t.tid]: t for p in m.processes.values() for t in p.threads}
    return {p.tid: p for p in sorted(users.values(), key=lambda t: t.tid) if p.state == "running"}


def recount(m: Machine) -> Counter[int]:
    """Mapcounts by frame, counted from the pagemaps; asserts that all that the machine says of sharing agrees."""
    seen: Counter[int] = Counter()
    flags = np.frombuffer(m.procfs.read("kpageflags"), np.uint64)
    zero = set(np.flatnonzero(flags & _ZERO_PAGE).tolist())
    pooled = set(np.flatnonzero(flags & _HUGE).tolist())  # neither resident nor anybody's
    thp = set(np.flatnonzero(flags & _THP).tolist())
    mapped: dict[int, list[tuple[int, int, bool]]] = {}
    users = spaces(m)
    swapped: Counter[int] = Counter()
    for pid, p in users.items():
        mine = mapped.setdefault(pid, [])
        for mapping in p.maps():
            entries = p.pagemap(mapping.start, mapping.size // PAGE)
            for i in np.flatnonzero(entries).tolist():
                entry = int(entries[i])
                if entry & ~_SOFT_DIRTY in (0, GUARD):
                    continue
                if entry & _SWAPPED:
                    swapped[pid] += 1
                    continue
                assert entry & _PRESENT
                if entry & _PFN in pooled:
                    seen[entry & _PFN] += 1
                elif entry & _PFN not in zero:
                    frame = says = entry & _PFN
                    if frame in thp and (found := p.translate(mapping.start + i * PAGE)) and found.level == 2:
                        says -= frame % 512  # of a huge entry the first page
                    mine.append((frame, says, bool(entry & _EXCLUSIVE)))
                    seen[frame] += 1
    table = np.frombuffer(m.procfs.read("kpagecount"), np.uint64)
    assert {int(i): int(table[i]) for i in np.flatnonzero(table)} == dict(seen)
    for pid, mine in mapped.items():
        p = users[pid]
        assert p.rss == PAGE * len(mine)
        assert p.pss == sum((PAGE << 12) // seen[frame] for frame, _, _ in mine) >> 12
        assert swapped[pid] * PAGE == sum(usage.swap for usage in p.smaps())
        assert p.uss == PAGE * sum(seen[frame] == 1 for frame, _, _ in mine)
        assert all(exclusive == (seen[says] == 1) for _, says, exclusive in mine)
    stats, info = m.frame_stats(), m.meminfo()
    assert (stats.mapped, stats.shared) == (len(seen), sum(n > 1 for n in seen.values()))
    idle = np.count_nonzero((flags & (_THP | _MMAP | _ZERO_PAGE)) == _THP)  # unmapped frames of huge pages
    used = info.anon + info.file + info.shmem + info.page_tables + (len(zero) + int(idle) + len(pooled)) * PAGE
    assert info.total == info.free + used
    return seen


def snapshot(m: Machine, *files: File) -> dict[str, Any]:
    """All that can be seen of a machine without changing it, and the bytes of all that is mapped."""
    seen: dict[str, Any] = {
        "meminfo": m.meminfo(),
        "faults": m.faults,
        "states": {pid: (p.state, p.ppid) for pid, p in m.processes.items()},
        "files": [(file.size, file.pread(file.size, 0)) for file in files],
    }
    for pid, p in spaces(m).items():
        seen[f"{pid}"] = (m.procfs.read(f"{pid}/maps"), p.faults, p.rss, p.pss, p.uss, p.brk(), p.exe, p.argv)
        seen[f"{pid} pages"] = [p.pagemap(v.start, v.size // PAGE).tolist() for v in p.maps()]
    return seen


def contents(p: Process) -> list[bytes]:
    """The bytes of all readable pages that are mapped by the tables (reading others would change something)."""
    out = []
    for mapping in p.maps():
        if mapping.prot & R:
            entries = p.pagemap(mapping.start, mapping.size // PAGE).tolist()
            out += [p.read(mapping.start + i * PAGE, PAGE) for i, entry in enumerate(entries) if entry & _PRESENT]
    return out


TEXT, DATA, BSS = 0x40_0000, 0x50_1000, 0x50_2000
"""Where `program` has its pages: text, data whose second half is bss, and two whole pages of bss."""


def program(directory: Path, name: str = "program") -> Path:
    """A static program: a page of text, half a page of data, two and a half pages of bss."""
    path = directory / name
    text = tinyelf.Part(flags=tinyelf.R | tinyelf.X, vaddr=TEXT)
    data = tinyelf.Part(flags=tinyelf.R | tinyelf.W, offset=0x1000, vaddr=DATA, filesz=0x800, memsz=0x3000)
    path.write_bytes(tinyelf.tiny([text, data], size=0x2000, data={0x200: b"TEXT", 0x1000: b"D" * 0x1000}))
    path.chmod(0o755)
    return path
