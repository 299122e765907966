"""Every allocation fails once: a script runs again and again, and each time another frame or piece of memory lacks.

For n = 1, 2, ... the n-th allocation fails, until the script runs through without having noticed. The call that fails
says so (OutOfMemory), changes nothing that can be read except what Linux keeps as well, and succeeds when it is made
again; the rest of the script then ends with the contents that it always has.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linux import tinyelf
from vmemu._core import ffi, lib

from vmemu import (
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    TRACE_DTYPE,
    Advice,
    Clone,
    ForkMode,
    Machine,
    Map,
    Operation,
    OutOfMemory,
    Process,
    Prot,
    SegmentationFault,
)

PAGE = 4096
NOTHING, ZEROS = bytes(PAGE), bytes(2 << 20)
A, B, C, D, E, F, S = (0x4000_0000 + i * 0x40_0000 - 8 * PAGE for i in range(7))
"""Ranges of 16 pages over the border of two leaf tables each."""
H, HUGE = 0x8000_0000, 2 << 20
RW = Prot.READ | Prot.WRITE
ANON = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED
ALIKE = 16
LINUX_KEEPS = (
    "touch",
    "populate",
    "mlock",
    "advise a part",
    "write two pages",
    "child writes two pages",
    "write heap",
    "push",
    "pwrite",
    "run writes",
)
"""Steps that may do part of their work."""


@dataclasses.dataclass
class World:
    """What the script works on."""

    machine: Machine
    program: str
    mode: ForkMode
    p: Process
    c: Process | None = None
    v: Process | None = None
    s: Process | None = None
    h: Process | None = None
    f: Any = None
    g: Any = None


PROC_FILES = (
    *"meminfo vmstat buddyinfo kpagecount kpageflags stat loadavg sys/vm/overcommit_ratio".split(),
    *(f"2/{name}" for name in "maps smaps smaps_rollup stat statm status cmdline environ oom_score limits".split()),
)

SCRIPT: list[tuple[str, Callable[[World], Any]]] = []


def _script() -> None:
    def add(name: str, function: Callable[[World], Any]) -> None:
        SCRIPT.append((name, function))

    def assign(field: str, make: Callable[[World], Any]) -> Callable[[World], Any]:
        return lambda w: setattr(w, field, make(w))

    add("create", assign("f", lambda w: w.machine.create_file("f", bytes(range(256)) * 160)))
    add("create ext4", assign("g", lambda w: w.machine.create_file("g", bytes(range(256)) * 160, writenotify=True)))
    add("group", lambda w: w.machine.cgroups.create("group"))
    add("into the group", lambda w: setattr(w.p, "cgroup", "group"))
    add("mmap", lambda w: w.p.mmap(A, 16 * PAGE, RW, ANON))
    add("write two pages", lambda w: w.p.write(A + 8 * PAGE - 3, b"border"))
    add("read zero", lambda w: w.p.read(A, 1))
    add("mmap shared", lambda w: w.p.mmap(B, 16 * PAGE, RW, Map.SHARED | Map.ANONYMOUS | Map.FIXED))
    add("write shared", lambda w: w.p.write(B + 7 * PAGE, b"shared"))
    add("mmap file", lambda w: w.p.mmap(C, 10 * PAGE, RW, Map.PRIVATE | Map.FIXED, w.f))
    add("read file", lambda w: w.p.read(C + PAGE, 10))
    add("write private file", lambda w: w.p.write(C + 2 * PAGE, b"copy"))
    add("mmap ext4 shared", lambda w: w.p.mmap(D, 10 * PAGE, RW, Map.SHARED | Map.FIXED, w.g))
    add("read ext4", lambda w: w.p.read(D, 3))
    add("write ext4", lambda w: w.p.write(D, b"D"))
    add("fork", assign("c", lambda w: w.p.fork(w.mode)))
    add("child writes two pages", lambda w: w.c.write(A + 8 * PAGE - 3, b"child!"))  # type: ignore[union-attr]
    add("parent writes", lambda w: w.p.write(A + 9 * PAGE, b"parent"))
    add("child maps above all", lambda w: w.c.mmap(S + 16 * PAGE, PAGE, RW, ANON))  # type: ignore[union-attr]
    add("child maps beside", lambda w: w.c.mmap(A + 16 * PAGE, PAGE, RW, ANON))  # type: ignore[union-attr]
    add("child unmaps", lambda w: w.c.munmap(B + 4 * PAGE, 6 * PAGE))  # type: ignore[union-attr]
    add("mprotect", lambda w: w.p.mprotect(A + 2 * PAGE, 5 * PAGE, Prot.READ))
    add("mprotect back", lambda w: w.p.mprotect(A + 4 * PAGE, 2 * PAGE, RW))
    add("grandchild", lambda w: w.c.fork(w.mode).exit())  # type: ignore[union-attr]
    add("child mremap", lambda w: w.c.mremap(C, 10 * PAGE, 10 * PAGE, 3, E + PAGE))  # type: ignore[union-attr]
    add("dontunmap", lambda w: w.p.mremap(C, 4 * PAGE, 4 * PAGE, 7, E + 6 * PAGE))
    add("grow", lambda w: w.p.mremap(A, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, F + 7 * PAGE))
    add("move and grow", lambda w: w.p.mremap(F + 7 * PAGE, 2 * PAGE, 5 * PAGE, 3, F))
    add("wipe", lambda w: w.p.madvise(A + 10 * PAGE, 2 * PAGE, Advice.WIPEONFORK))
    add("dontfork", lambda w: w.p.madvise(A + 12 * PAGE, PAGE, Advice.DONTFORK))
    add("guard", lambda w: w.p.madvise(A + 14 * PAGE, PAGE, Advice.GUARD_INSTALL))
    add("guard in a new table", lambda w: w.c.madvise(S + 16 * PAGE, PAGE, Advice.GUARD_INSTALL))  # type: ignore[union-attr]
    add("unguard", lambda w: w.p.madvise(A + 13 * PAGE, 2 * PAGE, Advice.GUARD_REMOVE))
    add("free", lambda w: w.p.madvise(A + 8 * PAGE, 2 * PAGE, Advice.FREE))
    add("cold", lambda w: w.p.madvise(C, PAGE, Advice.COLD))
    add("page out", lambda w: w.c.madvise(B, 4 * PAGE, Advice.PAGEOUT))  # type: ignore[union-attr]
    add("mergeable", lambda w: w.p.madvise(A + 2 * PAGE, 8 * PAGE, Advice.MERGEABLE))
    add("merge", lambda w: w.machine.ksm.scan())
    add("soft clean", lambda w: w.machine.procfs.write(f"{w.c.pid}/clear_refs", b"4"))  # type: ignore[union-attr]
    add("mlock", lambda w: w.p.mlock(A + 13 * PAGE, 2 * PAGE))
    add("fork specials", lambda w: w.p.fork(w.mode).exit())
    add("fork many", lambda w: [kid.exit() for kid in w.p.fork_many(3, w.mode)])
    add("advise a part", lambda w: w.p.madvise(A + 8 * PAGE, 2 * PAGE, Advice.DONTNEED))
    add("touch", lambda w: w.p.touch(A + 8 * PAGE, 2 * PAGE, write=True))
    add("remap pages", lambda w: w.p.remap_file_pages(D, PAGE, 0, 3, Map.NONBLOCK))
    add("droppable", lambda w: w.p.mmap(F + 14 * PAGE, PAGE, RW, Map.ANONYMOUS | Map.FIXED | Map.DROPPABLE))
    add("remove", lambda w: w.p.madvise(D + PAGE, PAGE, Advice.REMOVE))
    add("pwrite", lambda w: w.f.pwrite(b"x" * 9000, 3 * PAGE))
    add("unmergeable", lambda w: w.p.madvise(A + 2 * PAGE, 8 * PAGE, Advice.UNMERGEABLE))
    add("truncate", lambda w: w.g.truncate(5 * PAGE))
    add("brk", lambda w: _brk(w.p))
    add("write heap", lambda w: w.p.write(w.p.brk(0) - 1000, b"heap".ljust(1000, b"!")))
    add("stack", lambda w: w.p.mmap(S + 15 * PAGE, PAGE, RW, ANON | Map.GROWSDOWN))
    add("push", lambda w: w.p.write(S + 10 * PAGE, b"push"))
    add("share", assign("s", lambda w: w.p.clone(Clone.VM | signal.SIGCHLD)))
    add("sharer forks", lambda w: w.s.fork(w.mode).exit())  # type: ignore[union-attr]
    add("kill sharer", lambda w: w.p.kill(w.s.pid, signal.SIGKILL))  # type: ignore[union-attr]
    add("vfork", assign("v", lambda w: w.p.vfork()))
    add("vfork exec", lambda w: w.v.execve(w.program, ["x"]))  # type: ignore[union-attr]
    add("spawn", lambda w: w.machine.spawn(w.program).exit())
    add("read /proc", lambda w: [w.machine.procfs.read(path) for path in PROC_FILES])
    add("replace", lambda w: w.p.mmap(A + 3 * PAGE, 3 * PAGE, RW, ANON))
    add("huge pages", lambda w: w.p.mmap(H, 3 * HUGE, RW, ANON))
    add("ask for huge pages", lambda w: w.p.madvise(H, 3 * HUGE, Advice.HUGEPAGE))
    add("huge zero", lambda w: w.p.read(H + HUGE, 1))
    add("huge write", lambda w: w.p.write(H + 5 * PAGE, b"huge"))
    add("huge child", assign("h", lambda w: w.p.fork(w.mode)))
    add("huge child writes", lambda w: w.h.write(H + 5 * PAGE, b"HUGE"))  # type: ignore[union-attr]
    add("write over huge zero", lambda w: w.p.write(H + HUGE, b"over"))
    add("huge part", lambda w: w.p.munmap(H + 7 * PAGE, PAGE))
    add("huge move", lambda w: w.h.mremap(H, HUGE, HUGE, 3, H + 4 * HUGE))  # type: ignore[union-attr]
    add("huge child reads", lambda w: _reads(w.h, H + 4 * HUGE + 5 * PAGE, b"HUGE"))
    add("huge child ends", lambda w: w.h.exit())  # type: ignore[union-attr]
    add("small pages", lambda w: w.p.madvise(H + 2 * HUGE, HUGE, Advice.NOHUGEPAGE))
    add("small writes", lambda w: w.p.write(H + 2 * HUGE, b"small"))
    add("allow huge pages", lambda w: w.p.madvise(H + 2 * HUGE, HUGE, Advice.HUGEPAGE))
    add("collapse", lambda w: w.p.madvise(H + 2 * HUGE, HUGE, Advice.COLLAPSE))
    add("pool", lambda w: w.p.mmap(H + 8 * HUGE, 2 * HUGE, RW, ANON | Map.HUGETLB))
    add("pool write", lambda w: w.p.write(H + 8 * HUGE, b"pool"))
    add("pool child", lambda w: w.p.fork(w.mode).exit())
    add(
        "pool shared", lambda w: w.p.mmap(H + 12 * HUGE, HUGE, RW, Map.SHARED | Map.ANONYMOUS | Map.FIXED | Map.HUGETLB)
    )
    add("pool shared write", lambda w: w.p.write(H + 12 * HUGE, b"all"))
    add("run writes", _run_writes)
    add("run forks", _run_forks)
    add("exit", lambda w: w.v.exit())  # type: ignore[union-attr]


def _reads(p: Process | None, address: int, data: bytes) -> None:
    assert p is not None and p.read(address, len(data)) == data


def _run_writes(w: World) -> None:
    rows = [(A + page * PAGE, 8, 0, Operation.WRITE) for page in (8, 9, 11)]
    rows += [(B, 8, 0, Operation.READ), (F, 2 * PAGE, 0, Operation.WRITE)]
    if w.machine.run(np.array(rows, TRACE_DTYPE), [w.p]).counts.oom:
        raise OutOfMemory(12, "run")


def _run_forks(w: World) -> None:
    rows = [(1, 0, 0, Operation.FORK), (0, 0, 1, Operation.EXIT), (0, 0, 0, Operation.WAIT)]
    w.machine.run(np.array(rows, TRACE_DTYPE), [w.p])


def _brk(p: Process) -> None:
    start = p.brk(0)
    if p.brk(start + 5000) != start + 5000:
        raise OutOfMemory(12, "brk")


_script()


def contents(m: Machine) -> dict[int, Any]:
    """All that a process could read, found without reading: mappings, and the bytes of what is resident or not zero."""
    ram = lib.vmemu_machine_ram(m._kernel.core._m)
    out: dict[int, Any] = {}
    for pid, p in m.processes.items():
        if p.state == "zombie":
            continue
        pages: dict[int, bytes] = {}
        for v in p.maps():
            core, sid = m._kernel.core, m._kernel.processes.space[pid]
            there = core.mincore(sid, v.start, v.end) or b""  # asks for no memory, unlike pagemap
            at = v.start
            while at < v.end and (i := there.find(1, (at - v.start) // PAGE)) >= 0:
                at = v.start + i * PAGE
                found = p.translate(at)
                size = PAGE if found is None or found.level == 1 else min(HUGE - at % HUGE, v.end - at)
                data = ffi.buffer(ram + found.physical, size) if found is not None else b""
                if data and data != ZEROS[:size]:
                    for o in range(0, size, PAGE):
                        page = data[o : o + PAGE]
                        if page != NOTHING:
                            pages[at + o] = page
                at += size
        out[pid] = ([(v.start, v.end, v.perms, v.offset, v.inode > 0, v.flags) for v in p.maps()], pages)
    return out


def frames_kept(m: Machine) -> int:
    """Frames of the zero pages and of the pool."""
    info = m._kernel.core.info()
    return int(info.zero + info.pooled)


def run(program: str, mode: ForkMode, nth: int, first: int = 0, oom: str = "raise") -> tuple[Any, int | None]:
    """The script with the nth allocation failing, not before step *first* -> how it ends, and the step that failed."""
    with Machine("32MiB", max_map_count=100, thp="madvise", hugepages={"2MiB": 3}, oom=oom) as m:
        w = World(m, program, mode, m.spawn())
        core, failed = m._kernel.core, None
        if nth:
            core.fail(nth)
        for number, (name, function) in enumerate(SCRIPT):
            before = contents(m) if nth and number >= first and failed is None else None
            try:
                function(w)
            except OutOfMemory:
                assert failed is None, f"{name} failed after step {failed} had"
                failed = number
            except SegmentationFault:
                assert name == "push"
                failed = number
            else:
                continue
            m.verify()
            if name not in LINUX_KEEPS:
                assert contents(m) == before, name
            function(w)
        m.verify()
        core.fail(0)
        final = contents(m)
        for p in list(m.processes.values()):
            if p.pid != 1 and p.state == "running":
                p.exit()
        m.verify()
        assert m.cgroups["group"].memory_stat["anon"] == 0
        assert not m.oom_reports  # the host's memory was missing, or nothing but this allocation
        info = m.meminfo()
        assert (info.anon, info.page_tables) == (0, 0)
        w.f.close()
        w.g.close()
        assert m.meminfo().free + frames_kept(m) * PAGE == m.meminfo().total
        return final, failed


@pytest.mark.parametrize("mode", list(ForkMode))
def test_every_allocation_fails_once(mode: ForkMode, tmp_path: Path) -> None:
    program = tinyelf.save(tmp_path / "tiny", tinyelf.tiny())
    expected, _ = run(program, mode, 0)
    oom = "kill" if mode is ForkMode.COW else "raise"
    steps: list[int | None] = []
    latest = nth = last = 0
    while nth < 10_000:
        # of the many frames that one step copies each 11th, but all before another step begins
        leap = 11 if len(steps) > ALIKE and steps[-1] is not None and len(set(steps[-ALIKE:])) == 1 else 1
        nth = last + leap
        final, failed = run(program, mode, nth, latest, oom)
        if leap > 1 and failed != steps[-1]:
            steps.append(None)  # go back and be thorough
            continue
        last = nth
        steps.append(failed)
        latest = failed or latest
        name = SCRIPT[failed][0] if failed is not None else ""
        assert final.keys() == expected.keys(), (nth, name)
        for pid, (maps, pages) in expected.items():
            assert final[pid][0] == maps, (nth, name, pid)
            assert final[pid][1] == pages, (nth, name, pid)
        if len(steps) > 20 and set(steps[-20:]) == {None}:  # an allocation may be missed without harm
            break
    print(f"{mode.name}: {len(steps)} of {nth} allocations, {len(set(steps))} of {len(SCRIPT)} steps failed")
    assert len(set(steps)) > 20
