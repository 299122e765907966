"""Every call that may need a frame, on a machine that has none left, or in a group at its limit: with a killer it ends
as it would with memory to spare, or its process is killed; without one it fails and what there was is whole."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linux import tinyelf
from machines import ANON, PAGE, RW

from vmemu import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    TRACE_DTYPE,
    Advice,
    Clone,
    ForkMode,
    KernelPanic,
    Machine,
    Map,
    MemoryFault,
    Operation,
    OutOfMemory,
    Process,
    ProcessKilled,
    Prot,
    SyscallError,
)

MIB = 1 << 20
HUGE = 2 * MIB
LAZY = ANON | Map.NORESERVE
AT, TO = 0x1000_0000_0000, 0x2000_0000_0000
"""Addresses with page tables of their own."""
Act = Callable[[], object]
PROGRAM = Path()


def anon(p: Process, npages: int = 8, at: int = AT) -> int:
    """Memory that was written."""
    p.mmap(at, npages * PAGE, RW, LAZY | Map.FIXED)
    for i in range(npages):
        p.write(at + i * PAGE, b"%d" % i)
    return at


def shared_tables(m: Machine, p: Process, npages: int = 8) -> int:
    """The same, under page tables that a child has too."""
    a = anon(p, npages)
    p.fork(ForkMode.ON_DEMAND)
    return a


def shared_cow(m: Machine, p: Process, npages: int = 8) -> int:
    """The same, under page tables of its own."""
    a = anon(p, npages)
    p.fork(ForkMode.COW)
    return a


def merged(m: Machine, p: Process) -> int:
    """Pages that KSM made one frame of."""
    p.mmap(AT, 32 * PAGE, RW, LAZY | Map.FIXED)
    p.madvise(AT, 32 * PAGE, Advice.MERGEABLE)
    p.write(AT, (b"same" + bytes(PAGE - 4)) * 32)
    m.ksm.scan(2)
    assert m.ksm.counts.pages_sharing > 20
    return AT


def file(m: Machine, p: Process, disk: bool = False) -> Any:
    """A file of pages in memory, mapped under tables that a child has too."""
    f = m.create_file("f", b"f" * (8 * PAGE), writenotify=disk)
    p.mmap(AT, 8 * PAGE, RW, Map.SHARED | Map.FIXED, f)
    p.touch(AT, 8 * PAGE, write=True)
    p.fork(ForkMode.ON_DEMAND)
    return f


def _mprotect(m: Machine, p: Process) -> Act:
    a = shared_tables(m, p)
    return lambda: p.mprotect(a + PAGE, PAGE, Prot.READ)


def _mprotect_huge(m: Machine, p: Process) -> Act:
    p.mmap(AT, HUGE, RW, LAZY | Map.FIXED)
    p.madvise(AT, HUGE, Advice.HUGEPAGE)
    p.write(AT, b"h")
    assert any(u.anonhugepages for u in p.smaps())
    p.fork(ForkMode.ON_DEMAND)
    return lambda: p.mprotect(AT + PAGE, PAGE, Prot.READ)


def _munmap(m: Machine, p: Process) -> Act:
    a = shared_tables(m, p)
    return lambda: p.munmap(a + PAGE, PAGE)


def _munmap_huge(m: Machine, p: Process) -> Act:
    p.mmap(AT, HUGE, RW, LAZY | Map.FIXED)
    p.madvise(AT, HUGE, Advice.HUGEPAGE)
    p.write(AT, b"h")
    p.fork(ForkMode.ON_DEMAND)
    return lambda: p.munmap(AT + PAGE, PAGE)


def _map_over(m: Machine, p: Process) -> Act:
    a = shared_tables(m, p)
    return lambda: p.mmap(a + PAGE, PAGE, RW, LAZY | Map.FIXED)


def _map_shared_over(m: Machine, p: Process) -> Act:
    a = shared_tables(m, p)
    return lambda: p.mmap(a + PAGE, PAGE, RW, Map.SHARED | Map.ANONYMOUS | Map.FIXED)


def _map_file_over(m: Machine, p: Process) -> Act:
    a, f = shared_tables(m, p), m.create_file("g", b"g" * PAGE)
    return lambda: p.mmap(a + PAGE, PAGE, RW, Map.PRIVATE | Map.FIXED, f)


def _map_populated(m: Machine, p: Process) -> Act:
    return lambda: p.mmap(TO, 8 * PAGE, RW, LAZY | Map.FIXED | Map.POPULATE)


def _map_locked(m: Machine, p: Process) -> Act:
    return lambda: p.mmap(TO, 8 * PAGE, RW, LAZY | Map.FIXED | Map.LOCKED)


def _map_file_populated(m: Machine, p: Process) -> Act:
    f = m.create_file("g", b"g" * (8 * PAGE))
    return lambda: p.mmap(TO, 8 * PAGE, RW, Map.PRIVATE | Map.FIXED | Map.POPULATE, f)


def _mremap_grow_locked(m: Machine, p: Process) -> Act:
    a = anon(p)
    p.mlock(a, 8 * PAGE)
    return lambda: p.mremap(a, 8 * PAGE, 16 * PAGE)


def _mremap_move(m: Machine, p: Process) -> Act:
    a = anon(p)
    return lambda: p.mremap(a, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, TO)


def _mremap_move_shared(m: Machine, p: Process) -> Act:
    a = shared_tables(m, p)
    return lambda: p.mremap(a, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, TO)


def _mremap_keep(m: Machine, p: Process) -> Act:
    a = shared_tables(m, p)
    return lambda: p.mremap(a, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, TO)


def _mremap_shrink(m: Machine, p: Process) -> Act:
    a = shared_tables(m, p)
    return lambda: p.mremap(a, 8 * PAGE, 4 * PAGE)


def _mremap_onto(m: Machine, p: Process) -> Act:
    anon(p, at=TO)
    a = shared_tables(m, p)
    return lambda: p.mremap(a, 8 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, TO + PAGE)


def _mremap_merged(m: Machine, p: Process) -> Act:
    a = merged(m, p)
    return lambda: p.mremap(a, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, TO)


def _remap_file_pages(m: Machine, p: Process) -> Act:
    file(m, p)
    return lambda: p.remap_file_pages(AT, 2 * PAGE, 0, 4)


def _advice(what: Advice) -> Callable[[Machine, Process], Act]:
    def prepare(m: Machine, p: Process) -> Act:
        a = shared_tables(m, p)
        return lambda: p.madvise(a + PAGE, 2 * PAGE, what)

    prepare.__name__ = f"_{what.name.lower()}"
    return prepare


_free = _advice(Advice.FREE)


def _guard_remove(m: Machine, p: Process) -> Act:
    anon(p)
    p.madvise(AT + PAGE, PAGE, Advice.GUARD_INSTALL)
    p.fork(ForkMode.ON_DEMAND)
    return lambda: p.madvise(AT, 2 * PAGE, Advice.GUARD_REMOVE)


def _guard_fresh(m: Machine, p: Process) -> Act:
    p.mmap(TO, 8 * PAGE, RW, LAZY | Map.FIXED)
    return lambda: p.madvise(TO, PAGE, Advice.GUARD_INSTALL)


def _populate_write(m: Machine, p: Process) -> Act:
    a = shared_cow(m, p)
    return lambda: p.madvise(a, 8 * PAGE, Advice.POPULATE_WRITE)


def _populate_read(m: Machine, p: Process) -> Act:
    p.mmap(TO, 8 * PAGE, RW, LAZY | Map.FIXED)
    return lambda: p.madvise(TO, 8 * PAGE, Advice.POPULATE_READ)


def _unmergeable(m: Machine, p: Process) -> Act:
    a = merged(m, p)
    return lambda: p.madvise(a, 8 * PAGE, Advice.UNMERGEABLE)


def _remove(m: Machine, p: Process) -> Act:
    file(m, p)
    return lambda: p.madvise(AT, PAGE, Advice.REMOVE)


def _truncate(m: Machine, p: Process) -> Act:
    f = file(m, p)
    return lambda: f.truncate(3 * PAGE + 7)


def _mlock(m: Machine, p: Process) -> Act:
    a = shared_cow(m, p)
    return lambda: p.mlock(a, 8 * PAGE)


def _mlockall(m: Machine, p: Process) -> Act:
    shared_cow(m, p)
    return lambda: p.mlockall(1)


def _mprotect_locked(m: Machine, p: Process) -> Act:
    a = anon(p)
    p.mprotect(a, 8 * PAGE, Prot.READ)
    p.mlock(a, 8 * PAGE)
    p.fork(ForkMode.COW)
    return lambda: p.mprotect(a, 8 * PAGE, RW)


def _brk(m: Machine, p: Process) -> Act:
    p.mlockall(2)
    top = p.brk(0)
    return lambda: p.brk(top + 8 * PAGE) - top


def _brk_shrink(m: Machine, p: Process) -> Act:
    top = p.brk(0)
    p.brk(top + 8 * PAGE)
    p.touch(top, 8 * PAGE, write=True)
    p.fork(ForkMode.ON_DEMAND)
    return lambda: p.brk(top + 3 * PAGE) - top


def _stack(m: Machine, p: Process) -> Act:
    p.mmap(AT, 2 * PAGE, RW, LAZY | Map.FIXED | Map.GROWSDOWN)
    return lambda: p.write(AT - 2 * HUGE, b"deep")


def _write_anon(m: Machine, p: Process) -> Act:
    p.mmap(TO, 8 * PAGE, RW, LAZY | Map.FIXED)
    return lambda: p.write(TO, b"x" * (8 * PAGE))


def _write_cow(m: Machine, p: Process) -> Act:
    a = shared_cow(m, p)
    return lambda: p.write(a + 7, b"x" * (4 * PAGE))


def _write_shared(m: Machine, p: Process) -> Act:
    p.mmap(TO, 8 * PAGE, RW, Map.SHARED | Map.ANONYMOUS | Map.FIXED)
    return lambda: p.write(TO + 1, b"x" * (4 * PAGE))


def _write_merged(m: Machine, p: Process) -> Act:
    a = merged(m, p)
    return lambda: p.write(a + 9, b"!")


def _read_zero(m: Machine, p: Process) -> Act:
    p.mmap(TO, 8 * PAGE, RW, LAZY | Map.FIXED)
    return lambda: p.read(TO, 9)


def _read_file(m: Machine, p: Process) -> Act:
    f = m.create_file("g", b"", writenotify=True)
    f.truncate(64 * PAGE)
    p.mmap(TO, 64 * PAGE, Prot.READ, Map.SHARED | Map.FIXED, f)
    return lambda: p.read(TO + 9 * PAGE, 9)


def _pwrite(m: Machine, p: Process) -> Act:
    f = m.create_file("g")
    p.mmap(AT, 8 * PAGE, RW, Map.SHARED | Map.FIXED, f)
    return lambda: f.pwrite(b"w" * (3 * PAGE), 5)


def _pread(m: Machine, p: Process) -> Act:
    f = m.create_file("g", b"", writenotify=True)
    f.truncate(64 * PAGE)
    return lambda: f.pread(9, 8 * PAGE)


def _extend(m: Machine, p: Process) -> Act:
    f = m.create_file("g", b"g" * (2 * PAGE + 7), writenotify=True)
    a = p.mmap(None, 3 * PAGE, RW, Map.SHARED, f)
    p.touch(a, 2 * PAGE + 7)
    p.madvise(a, 3 * PAGE, Advice.PAGEOUT)
    p.munmap(a, 3 * PAGE)
    return lambda: f.truncate(4 * PAGE)


def _create_file(m: Machine, p: Process) -> Act:
    return lambda: m.create_file("new", b"n" * (3 * PAGE)).pread(1, 2 * PAGE)


def _clear_refs(m: Machine, p: Process) -> Act:
    a = shared_tables(m, p)
    p.touch(a, PAGE, write=True)
    p.fork(ForkMode.ON_DEMAND)
    return lambda: m.procfs.write(f"{p.pid}/clear_refs", "4")


def _fork(mode: ForkMode) -> Callable[[Machine, Process], Act]:
    def prepare(m: Machine, p: Process) -> Act:
        anon(p, 64)
        return lambda: p.fork(mode).read(AT + 63 * PAGE, 3)

    prepare.__name__ = f"_fork_{mode.name.lower()}"
    return prepare


_fork_on_demand, _fork_cow, _fork_eager = map(_fork, (ForkMode.ON_DEMAND, ForkMode.COW, ForkMode.EAGER))


def _fork_many(m: Machine, p: Process) -> Act:
    anon(p)
    return lambda: [c.read(AT, 3) for c in p.fork_many(5)]


def _clone(m: Machine, p: Process) -> Act:
    anon(p)
    return lambda: p.clone(0).read(AT, 3)


def _clone_copied_by_a_thread(m: Machine, p: Process) -> Act:
    anon(p)
    t = p.clone(Clone.VM | Clone.THREAD | Clone.SIGHAND)
    return lambda: t.fork().read(AT, 3)


def _vfork_exec(m: Machine, p: Process) -> Act:
    anon(p)
    return lambda: p.vfork().execve(str(PROGRAM), ["a"])


def _posix_spawn(m: Machine, p: Process) -> Act:
    anon(p)
    return lambda: p.posix_spawn(str(PROGRAM), ["a"]).argv


def _execve(m: Machine, p: Process) -> Act:
    anon(p)
    return lambda: p.execve(str(PROGRAM), ["a", "x" * 100_000], {"E": "e"})


def _execve_again(m: Machine, p: Process) -> Act:
    for _ in range(2):  # by now there is a plan
        c = p.fork()
        c.execve(str(PROGRAM), ["a"])
    return lambda: p.execve(str(PROGRAM), ["a"])


def _mincore(m: Machine, p: Process) -> Act:
    a = anon(p)
    p.mmap(TO, PAGE, RW, LAZY | Map.FIXED)
    return lambda: p.mincore(a, 8 * PAGE, TO)


def _batch(m: Machine, p: Process) -> Act:
    p.mmap(TO, 8 * PAGE, RW, LAZY | Map.FIXED)
    return lambda: p.access([TO, TO + PAGE, 0], write=True).tolist()


def _records(*records: tuple[Operation, int, int, int]) -> Any:
    trace = np.zeros(len(records), TRACE_DTYPE)
    for i, (operation, label, address, size) in enumerate(records):
        trace[i]["operation"], trace[i]["pid"], trace[i]["address"], trace[i]["size"] = operation, label, address, size
    return trace


def _run(m: Machine, p: Process) -> Act:
    shared_tables(m, p)
    trace = _records(
        (Operation.FORK, 0, 1, 0),
        (Operation.MMAP, 1, TO, 8 * PAGE),
        (Operation.WRITE, 1, TO, 8),
        (Operation.MUNMAP, 0, AT + PAGE, PAGE),
        (Operation.WRITE, 0, AT, 8),
        (Operation.SPAWN, 2, 0, 0),
        (Operation.MMAP_SHARED, 2, TO, PAGE),
        (Operation.WRITE, 2, TO, 8),
        (Operation.EXIT, 1, 0, 0),
        (Operation.WAIT, 0, 0, 0),
    )
    return lambda: m.run(trace, [p]).counts.oom


CALLS: list[Callable[[Machine, Process], Act]] = [
    _mprotect,
    _mprotect_huge,
    _munmap,
    _munmap_huge,
    _map_over,
    _map_shared_over,
    _map_file_over,
    _map_populated,
    _map_locked,
    _map_file_populated,
    _mremap_grow_locked,
    _mremap_move,
    _mremap_move_shared,
    _mremap_keep,
    _mremap_shrink,
    _mremap_onto,
    _mremap_merged,
    _remap_file_pages,
    *map(_advice, (Advice.DONTNEED, Advice.COLD, Advice.PAGEOUT, Advice.GUARD_INSTALL)),
    _free,
    _guard_remove,
    _guard_fresh,
    _populate_write,
    _populate_read,
    _unmergeable,
    _remove,
    _truncate,
    _mlock,
    _mlockall,
    _mprotect_locked,
    _brk,
    _brk_shrink,
    _stack,
    _write_anon,
    _write_cow,
    _write_shared,
    _write_merged,
    _read_zero,
    _read_file,
    _pwrite,
    _pread,
    _extend,
    _create_file,
    _clear_refs,
    _fork_on_demand,
    _fork_cow,
    _fork_eager,
    _fork_many,
    _clone,
    _clone_copied_by_a_thread,
    _vfork_exec,
    _posix_spawn,
    _execve,
    _execve_again,
    _mincore,
    _batch,
    _run,
]


NEEDLESS = [_remove, _truncate, _fork_on_demand]
"""What turns out to need no frame."""
LENIENT = [_mremap_grow_locked, _mprotect_locked, _brk, _brk_shrink, _mlockall, _batch]
"""What does not fail for want of one, but does less."""
STEPS = [_mremap_grow_locked, _mprotect_locked, _brk, _mlock, _mlockall, _stack, _vfork_exec, _write_cow, _run]
"""What has done a part when it fails."""
MACHINE_PAYS = [_pwrite, _pread, _extend, _create_file]
"""What no process does."""


@pytest.fixture(autouse=True)
def _program(tmp_path: Path) -> None:
    global PROGRAM
    PROGRAM = Path(tinyelf.save(tmp_path / "program", tinyelf.tiny()))


def machine(memory: str, oom: str) -> Machine:
    return Machine(memory, oom=oom, thp="madvise", fork_mode=ForkMode.COW)


def fill(m: Machine, hog: Process, leave: int = 0) -> None:
    """The hog takes all frames but so many."""
    hog.mmap(TO, 32 * MIB, RW, LAZY | Map.FIXED)
    at, size = TO, m.meminfo().free - (16 + leave) * PAGE
    if size > 0:
        hog.touch(at, size, write=True)
        at += size
    while m.meminfo().free > leave * PAGE:
        hog.touch(at, PAGE, write=True)
        at += PAGE


def state(p: Process) -> object:
    """What a process has: its mappings and what is in them, as far as it may be seen without a fault."""
    if p.state != "running":
        return p.state
    digest = hashlib.sha256()
    for mapping in p.maps():
        for address in range(mapping.start, mapping.end, PAGE):
            frame = p.translate(address)
            if frame is not None:
                digest.update(b"%d" % address + bytes(_ram(p)[frame.pfn * PAGE : (frame.pfn + 1) * PAGE]))
    return [(v.start, v.end, v.prot, v.flags) for v in p.maps()], digest.hexdigest()


def _ram(p: Process) -> Any:
    return p._kernel.core.ram(p._kernel.npages)


@pytest.mark.parametrize("prepare", CALLS)
@pytest.mark.parametrize("leave", [0, 1])
def test_a_bystander_dies_and_the_call_ends_as_with_memory(
    prepare: Callable[[Machine, Process], Act], leave: int
) -> None:
    """The result and the memory afterwards are those of a machine with room."""
    results = []
    for memory in ("128MiB", "16MiB"):
        with machine(memory, "kill") as m:
            hog, p = m.spawn(), m.spawn()
            act = prepare(m, p)
            if memory == "16MiB":
                fill(m, hog, leave)
            result = act()
            if memory == "16MiB" and not leave and prepare not in NEEDLESS:
                assert [r.victim.pid for r in m.oom_reports if r.victim] == [hog.pid]
            assert p.state in ("running", "vfork")
            kids = [state(c) for c in p.children]
            results.append((result, state(p), kids))
            m.verify()
    if leave and prepare is _read_file:  # what is mapped around depends on what the page cache had at the last try
        assert results[0][0] == results[1][0]
    else:
        assert results[0] == results[1]


@pytest.mark.parametrize("prepare", CALLS)
@pytest.mark.parametrize("leave", [0, 1])
def test_the_caller_dies_of_its_call(prepare: Callable[[Machine, Process], Act], leave: int) -> None:
    """It is killed for what it wants, all of it, and the machine is whole; or what was left was enough."""
    with machine("16MiB", "kill") as m:
        hog, p = m.spawn(), m.spawn()
        act = prepare(m, p)
        hog.set_oom_score_adj(-1000)
        fill(m, hog, leave)
        for c in p.children:
            c.set_oom_score_adj(-1000)
        p.set_oom_score_adj(1000)
        try:
            act()
        except ProcessKilled as error:
            assert error.pid in m.oom_reports[0].killed
        except SyscallError as error:  # somebody else's call: a file's, a writer's of /proc
            assert error.errno == errno.ESRCH
        except KernelPanic:  # nor does its death help
            assert prepare in MACHINE_PAYS
        if (not leave and prepare not in NEEDLESS) or m.oom_reports:
            assert m.oom_reports
            assert m.oom_reports[0].victim
            assert (p.state, m.oom_reports[0].victim.pid) == ("gone", p.pid)
        m.verify()
        m.exit_many([hog])
        m.verify()


@pytest.mark.parametrize("prepare", CALLS)
@pytest.mark.parametrize("leave", [0, 1])
@pytest.mark.parametrize("oom", ["raise", "kill"])
def test_nobody_can_be_killed(prepare: Callable[[Machine, Process], Act], leave: int, oom: str) -> None:
    """The call fails, or Linux would panic; what it does in one step has not happened, and it can be made once there
    is memory."""
    with machine("16MiB", oom) as m:
        hog, p = m.spawn(), m.spawn()
        act = prepare(m, p)
        fill(m, hog, leave)
        for one in (hog, p, *p.children):
            one.set_oom_score_adj(-1000)
        before, failed = state(p), False
        try:
            act()
        except (OutOfMemory, KernelPanic) as error:
            assert isinstance(error, KernelPanic) == (oom == "kill")
            failed = True
            if prepare not in STEPS:
                assert state(p) == before
        else:
            assert leave or prepare in NEEDLESS or (oom == "raise" and prepare in LENIENT)
        m.verify()
        hog.exit()
        if prepare not in STEPS and failed:
            act()
        m.verify()


@pytest.mark.parametrize("prepare", CALLS)
def test_the_same_in_a_group_at_its_limit(prepare: Callable[[Machine, Process], Act]) -> None:
    """The machine has memory, the group has none."""
    results = []
    for limited in (False, True):
        with machine("64MiB", "kill") as m:
            jail = m.cgroups.create("jail")
            hog, p, outside = m.spawn(), m.spawn(), m.spawn()
            hog.cgroup = p.cgroup = jail
            outside.touch(outside.mmap(None, 4 * MIB, RW, LAZY), 4 * MIB, write=True)
            act = prepare(m, p)
            if limited:
                hog.mmap(TO, 4 * MIB, RW, LAZY | Map.FIXED)
                hog.touch(TO, 4 * MIB, write=True)
                jail.memory_max = jail.memory_current
            result = act()
            if limited and prepare not in [*NEEDLESS, *MACHINE_PAYS]:
                assert [r.victim.pid for r in m.oom_reports if r.victim] == [hog.pid]
                assert {r.cgroup for r in m.oom_reports} == {"/jail"}
                assert jail.memory_events["max"] >= jail.memory_events["oom"] == jail.memory_events["oom_kill"] == 1
            assert outside.state == "running"
            results.append((result, state(p), [state(c) for c in p.children]))
            assert jail.memory_peak <= (jail.memory_max or 1 << 60)
            m.verify()
    assert results[0] == results[1]


def contents(p: Process) -> object:
    """What a process reads in its mappings, page by page, or which fault it gets."""
    if p.state != "running":
        return p.state
    digest = hashlib.sha256()
    for mapping in p.maps():
        for address in range(mapping.start, mapping.end, PAGE):
            try:
                digest.update(b"%d" % address + p.read(address, PAGE))
            except MemoryFault as fault:
                digest.update(b"%d %d" % (address, fault.kind))
    return [(v.start, v.end, v.prot) for v in p.maps()], digest.hexdigest()


@pytest.mark.parametrize("prepare", CALLS)
def test_with_swap_nobody_dies(prepare: Callable[[Machine, Process], Act]) -> None:
    """What the hog has is swapped out for it, and the call ends as it would with memory to spare."""
    results = []
    for memory, swap in (("128MiB", 0), ("16MiB", "64MiB")):
        with Machine(memory, swap=swap, oom="kill", thp="madvise", fork_mode=ForkMode.COW) as m:
            hog, p = m.spawn(), m.spawn()
            act = prepare(m, p)
            if swap:
                hog.mmap(TO, 32 * MIB, RW, LAZY | Map.FIXED)
                hog.touch(TO, 32 * MIB, write=True)
                assert m.meminfo().swap_free < m.meminfo().swap_total
            result = act()
            assert m.oom_reports == []
            m.verify()
            kids = [] if prepare is _free else [contents(c) for c in p.children]
            results.append((result, p.state if prepare is _free else contents(p), kids))
            m.verify()
    assert results[0] == results[1] or prepare is _mincore  # which says what is in memory
