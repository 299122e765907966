"""The OOM killer: who is chosen, who dies with it, and that whatever needed the memory goes on."""

from __future__ import annotations

import errno
import pickle
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linux import tinyelf
from machines import ANON, PAGE, RW

from vmemu import (
    TRACE_DTYPE,
    Advice,
    Clone,
    ForkMode,
    KernelPanic,
    Machine,
    Map,
    Operation,
    OutOfMemory,
    Overcommit,
    Process,
    ProcessKilled,
    Prot,
    SyscallError,
)

MIB = 1 << 20
LAZY = ANON | Map.NORESERVE


def machine(memory: str = "16MiB", **options: Any) -> Machine:
    """One with a killer."""
    return Machine(memory, oom="kill", **options)


def holding(m: Machine, npages: int, adj: int = 0, parent: Process | None = None) -> Process:
    """A process that has written so many pages."""
    p = m.spawn() if parent is None else parent.fork()
    p.set_oom_score_adj(adj)
    a = p.mmap(None, npages * PAGE, RW, LAZY)
    p.touch(a, npages * PAGE, write=True)
    return p


def fill(m: Machine, by: Process | None = None) -> None:
    """Somebody, init by default, who may not be chosen, needs more than there is until somebody was killed."""
    before, by = len(m.oom_reports), by or m.init
    a = by.mmap(None, m.meminfo().total, RW, LAZY)
    for at in range(a, a + m.meminfo().total, PAGE):
        by.touch(at, PAGE, write=True)
        if len(m.oom_reports) > before:
            break
    by.munmap(a, m.meminfo().total)


def victims(m: Machine) -> list[int]:
    """Who was chosen, in order."""
    return [r.victim.pid for r in m.oom_reports if r.victim]


# ---- who ----


def test_the_largest_is_killed_and_the_access_completes() -> None:
    """Its memory is free then, it is a zombie killed by SIGKILL, and nothing was counted as fatal."""
    with machine() as m:
        parent = m.spawn()
        big, small = holding(m, 2800, parent=parent), holding(m, 500)
        a = small.mmap(None, 8 * MIB, RW, LAZY)
        counts = small.touch(a, 8 * MIB, write=True)
        assert (counts.zero_fill, counts.oom, small.faults.oom, m.faults.oom) == (2048, 0, 0, 0)
        assert (big.state, small.state) == ("zombie", "running")
        assert parent.wait() == (big.pid, signal.SIGKILL)
        assert m.meminfo().anon == 2548 * PAGE
        assert m.vmstat()["oom_kill"] == 1
        assert victims(m) == [big.pid]
        m.verify()


def test_oom_score_adj_counts_thousandths_of_ram() -> None:
    """adj * (pages / 1000), integers; -1000 is never chosen."""
    with machine() as m:  # 4096 pages: 4 a step
        plain, more = holding(m, 800), holding(m, 700, adj=26)
        fill(m)
        assert victims(m) == [more.pid]
        report = m.oom_reports[0]
        points = {c.pid: c.points for c in report.candidates or ()}
        assert points[more.pid] == 700 + plain.page_tables // PAGE + 26 * 4
        assert points[plain.pid] == 800 + plain.page_tables // PAGE
        m.verify()
    with machine() as m:
        safe, other = holding(m, 1500, adj=-1000), holding(m, 10)
        a = safe.mmap(None, 16 * MIB, RW, LAZY)
        with pytest.raises(KernelPanic, match="deadlocked") as info:
            safe.touch(a, 16 * MIB, write=True)  # the other dies first, then nobody can
        assert (safe.state, other.state, safe.faults.oom) == ("running", "gone", 0)
        assert info.value.report is m.oom_reports[-1]
        assert [r.victim is None for r in m.oom_reports] == [False, True]
        assert str(m.oom_reports[-1]).splitlines()[-2:] == [
            "Out of memory and no killable processes...",
            "Kernel panic - not syncing: System is deadlocked on memory",
        ]
        m.verify()


def test_ties_go_to_the_later_task() -> None:
    """Equal ones in the order of the scan, the last first."""
    with machine() as m:
        first, second, third = (holding(m, 900) for _ in range(3))
        expected = [third.pid, second.pid, first.pid]
        for n in (1, 2, 3):
            fill(m)
            assert victims(m) == expected[:n]
        m.verify()


def test_ties_in_a_group_go_to_who_came_last() -> None:
    """By birth or from elsewhere (css_set_move_task()); in the machine it is the last born whatever its group."""
    with machine("64MiB") as m:
        jail = m.cgroups.create("jail")
        some = [m.spawn() for _ in range(4)]
        for i in (2, 0, 3, 1):
            some[i].cgroup = jail
            some[i].touch(some[i].mmap(None, 300 * PAGE, RW, LAZY), 300 * PAGE, write=True)
        child = some[0].fork()  # born there, after they came
        some[2].cgroup = "/"
        some[2].cgroup = jail
        expected = [some[i].pid for i in (0, 3, 1)] + [child.pid, some[2].pid]
        asks = m.spawn()
        asks.cgroup = jail
        asks.set_oom_score_adj(-1000)
        a = asks.mmap(None, 8 * MIB, RW, LAZY)
        jail.memory_max = jail.memory_current
        for at in range(a, a + 8 * MIB, PAGE):
            asks.touch(at, PAGE, write=True)
            if len(m.oom_reports) == 5:
                break
        assert victims(m) == expected[::-1]
        listed = m.oom_reports[0].candidates or ()
        assert [c.pid for c in listed] == [*expected, asks.pid]
        m.verify()
    with machine() as m:
        some = [holding(m, 800) for _ in range(3)]
        m.cgroups.create("jail")
        some[0].cgroup = "jail"
        fill(m)
        assert victims(m) == [some[2].pid]


def test_the_one_who_asks_may_be_the_one() -> None:
    """Then the call raises ProcessKilled and the process is a zombie."""
    with machine() as m:
        parent = m.spawn()
        p = holding(m, 3000, parent=parent)
        holding(m, 500)
        with pytest.raises(ProcessKilled) as info:
            fill(m, p)
        assert (info.value.pid, info.value.signal, p.state) == (p.pid, signal.SIGKILL, "zombie")
        assert pickle.loads(pickle.dumps(info.value)).pid == p.pid
        assert parent.wait() == (p.pid, signal.SIGKILL)
        m.verify()


def test_init_and_vfork_children_are_not_chosen() -> None:
    """Init never; in vfork the parent, and then the child has no memory to run in and dies too."""
    with machine() as m:
        a = m.init.mmap(None, 8 * MIB, RW, LAZY)
        m.init.touch(a, 8 * MIB, write=True)
        p = holding(m, 1000)
        v = p.vfork()
        fill(m)
        report = m.oom_reports[0]
        assert report.killed == (p.pid, v.pid)
        assert {c.pid: c.points is None for c in report.candidates or ()}[v.pid]
        assert m.init.pid not in [c.pid for c in report.candidates or ()]
        assert (p.state, v.state) == ("gone", "gone")
        m.verify()


def test_all_who_share_the_memory_die() -> None:
    """Threads with their process, other processes with CLONE_VM; a shared page is freed with the last."""
    with machine() as m:
        p = holding(m, 2500)
        t = p.clone(Clone.THREAD | Clone.VM | Clone.SIGHAND)
        c = p.clone(Clone.VM | signal.SIGCHLD)
        free = m.meminfo().free
        fill(m)
        assert m.oom_reports[0].killed in {(p.pid, c.pid), (c.pid, p.pid)}
        assert {p.state, c.state, t.state} == {"gone"}
        assert m.meminfo().free > free - 1000 * PAGE
        m.verify()


def test_memory_that_init_has_too() -> None:
    """Who shares it is killed, init is not, and keeps it (__oom_kill_process())."""
    with machine() as m:
        c = m.init.clone(Clone.VM | signal.SIGCHLD)
        a = c.mmap(None, 1000 * PAGE, RW, LAZY)
        c.write(a, b"x" * (1000 * PAGE))
        other = holding(m, 100)
        fill(m)
        assert m.oom_reports[0].killed == (c.pid,)
        assert (c.state, m.init.state, m.init.read(a + 999 * PAGE, 1)) == ("gone", "running", b"x")
        assert [r.victim.pid for r in m.oom_reports if r.victim][1:] in ([], [other.pid])
        m.verify()


def test_who_shares_memory_dies_whatever_its_adjustment() -> None:
    """A write to one of them counts for all but who is in vfork; that one is not chosen, but dies with the others."""
    with machine() as m:
        p = holding(m, 2000)
        c, v = p.clone(Clone.VM | signal.SIGCHLD), p.vfork()
        v.set_oom_score_adj(-1000)
        assert (p.oom_score_adj, c.oom_score_adj, v.oom_score_adj) == (0, 0, -1000)
        c.set_oom_score_adj(7)
        assert (p.oom_score_adj, c.oom_score_adj, v.oom_score_adj) == (7, 7, -1000)
        fill(m)
        assert set(m.oom_reports[0].killed) == {p.pid, c.pid, v.pid}
        m.verify()


def test_oom_score_adj_is_inherited(tmp_path: Path) -> None:
    """By children however they are made, and kept by execve; a child's does not change the parent's."""
    program = tinyelf.save(tmp_path / "program", tinyelf.tiny())
    with machine() as m:
        p = m.spawn(program)
        p.set_oom_score_adj(300)
        kids = [p.fork(), *p.fork_many(2), p.posix_spawn(program), p.clone(0), p.clone(Clone.VM | 17)]
        kids[0].execve(program)
        assert {k.oom_score_adj for k in kids} == {300}
        kids[1].set_oom_score_adj(-1000)
        grandchild = kids[1].fork()
        assert (p.oom_score_adj, kids[0].oom_score_adj, grandchild.oom_score_adj) == (300, 300, -1000)
        for wrong in (-1001, 1001, 1 << 40):
            with pytest.raises(SyscallError) as info:
                p.set_oom_score_adj(wrong)
            assert info.value.errno == errno.EINVAL
        for wrong in (None, 1.5, "0"):
            with pytest.raises(TypeError):
                p.set_oom_score_adj(wrong)  # type: ignore[arg-type]
        assert p.oom_score_adj == 300
        scores = {k.pid: int(m.procfs.read(f"{k.pid}/oom_score")) for k in (p, kids[1])}
        assert scores[kids[1].pid] == 0
        assert scores[p.pid] == (1000 + (300 * 4 + p.rss // PAGE + p.page_tables // PAGE) * 1000 // 4096) * 2 // 3
        m.verify()


def test_a_dead_leader_with_living_threads_is_chosen() -> None:
    """find_lock_task_mm(): the memory is that of any task."""
    with machine() as m:
        p = holding(m, 2500, adj=5)
        t = p.clone(Clone.THREAD | Clone.VM | Clone.SIGHAND)
        p.exit_thread()
        fill(m)
        assert victims(m) == [p.pid]
        assert m.oom_reports[0].victim and m.oom_reports[0].victim.oom_score_adj == 5
        assert {p.state, t.state} == {"gone"}
        m.verify()


def test_shared_frames_count_for_each() -> None:
    """rss counts a page for everybody who maps it, so killing one frees little and the next one follows."""
    with machine() as m:
        p = holding(m, 2500)
        kids = [p.fork() for _ in range(4)]
        needy = holding(m, 10)
        a = needy.mmap(None, 12 * MIB, RW, LAZY)
        needy.touch(a, 8 * MIB, write=True)
        assert victims(m) == [k.pid for k in reversed(kids)] + [p.pid]
        m.verify()


# ---- what needs memory ----


def _populate(m: Machine, p: Process, _: Path) -> None:
    p.mmap(None, 8 * MIB, RW, LAZY | Map.POPULATE)


def _write(m: Machine, p: Process, _: Path) -> None:
    a = p.mmap(None, 8 * MIB, RW, LAZY)
    p.write(a, b"y" * (8 * MIB))
    assert p.read(a + 8 * MIB - 1, 1) == b"y"


def _batch(m: Machine, p: Process, _: Path) -> None:
    a = p.mmap(None, 8 * MIB, RW, LAZY)
    kinds = p.access(np.arange(a, a + 8 * MIB, PAGE), write=True)
    assert set(kinds.tolist()) == {3}


def _madvise(m: Machine, p: Process, _: Path) -> None:
    a = p.mmap(None, 8 * MIB, RW, LAZY)
    p.madvise(a, 8 * MIB, Advice.POPULATE_WRITE)


def _mlock(m: Machine, p: Process, _: Path) -> None:
    a = p.mmap(None, 8 * MIB, RW, LAZY)
    p.mlock(a, 8 * MIB)


def _fork_eager(m: Machine, p: Process, _: Path) -> None:
    a = p.mmap(None, 4 * MIB, RW, LAZY)
    p.write(a, b"z" * (4 * MIB))
    c = p.fork(ForkMode.EAGER)
    assert c.read(a + 4 * MIB - 1, 1) == b"z"


def _fork_many(m: Machine, p: Process, _: Path) -> None:
    a = p.mmap(None, 2 * MIB, RW, LAZY)
    p.touch(a, 2 * MIB, write=True)
    assert len({c.pid for c in p.fork_many(3, ForkMode.EAGER)}) == 3


def _file(m: Machine, p: Process, _: Path) -> None:
    f = m.create_file("f", b"", writenotify=True)
    f.truncate(8 * MIB)
    a = p.mmap(None, 8 * MIB, Prot.READ, Map.SHARED, f)
    p.touch(a, 8 * MIB)


def _pwrite(m: Machine, p: Process, _: Path) -> None:
    f = m.create_file("f")
    assert f.pwrite(b"w" * (8 * MIB), 0) == 8 * MIB
    assert f.pread(1, 8 * MIB - 1) == b"w"


def _trace(m: Machine, p: Process, _: Path) -> None:
    a = p.mmap(None, 8 * MIB, RW, LAZY)
    trace = np.zeros(2048, TRACE_DTYPE)
    trace["operation"], trace["size"] = int(Operation.WRITE), 8
    trace["address"] = np.arange(a, a + 8 * MIB, PAGE)
    result = m.run(trace, [p])
    assert (result.counts.zero_fill, result.counts.oom) == (2048, 0)


def _huge(m: Machine, p: Process, _: Path) -> None:
    a = p.mmap(None, 8 * MIB, RW, LAZY)
    p.touch(a, 8 * MIB, write=True)


def _exec(m: Machine, p: Process, program: Path) -> None:
    hog = holding(m, 1)
    a = hog.mmap(None, 16 * MIB, RW, LAZY)
    hog.set_oom_score_adj(-1000)
    while m.meminfo().free:
        hog.touch(a, PAGE, write=True)
        a += PAGE
    p.execve(str(program), ["x"], {})
    assert p.read(p.stack_pointer, 8) == (1).to_bytes(8, "little")


NEEDS: list[Callable[[Machine, Process, Path], None]] = [
    _populate,
    _write,
    _batch,
    _madvise,
    _mlock,
    _fork_eager,
    _fork_many,
    _file,
    _pwrite,
    _trace,
    _huge,
    _exec,
]


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("need", NEEDS)
def test_whatever_needs_memory_goes_on(
    need: Callable[[Machine, Process, Path], None], limited: bool, tmp_path: Path
) -> None:
    """A bystander that holds much dies for it, of the machine or of the group at its limit."""
    program = tmp_path / "program"
    program.write_bytes(tinyelf.tiny())
    program.chmod(0o755)
    with machine("64MiB" if limited else "16MiB", thp="always" if need is _huge else "never") as m:
        big, p = holding(m, 2600), holding(m, 5)
        if limited and need in (_pwrite, _exec):
            pytest.skip("the machine itself pays, or a hog outside the group holds the memory")
        if limited:
            jail = m.cgroups.create("jail", memory_max="16MiB")
            big.exit()
            big = m.spawn()
            big.cgroup = p.cgroup = jail
            big.touch(big.mmap(None, 2600 * PAGE, RW, LAZY), 2600 * PAGE, write=True)
        need(m, p, program)
        assert (big.state, p.state) == ("gone", "running")
        assert victims(m) == [big.pid]
        assert m.oom_reports[0].cgroup == ("/jail" if limited else None)
        m.verify()


@pytest.mark.parametrize("need", [n for n in NEEDS if n not in (_pwrite, _exec)])
def test_whoever_needs_it_may_die_of_it(need: Callable[[Machine, Process, Path], None], tmp_path: Path) -> None:
    """ProcessKilled, whatever the call was; the machine is consistent."""
    with machine(thp="always" if need is _huge else "never") as m:
        holding(m, 1500, adj=-1000)
        p = holding(m, 1000)
        with pytest.raises(ProcessKilled) as info:
            for _ in range(4):
                need(m, p, tmp_path)
        assert (info.value.pid, p.state) == (p.pid, "gone")
        m.verify()


def test_a_trace_goes_on_without_the_victim() -> None:
    """Its label has nobody from then on: a record of it says so, those of others are made."""
    with machine() as m:
        big, p = holding(m, 2600), holding(m, 5)
        a, b = big.mmap(None, MIB, RW, LAZY), p.mmap(None, 8 * MIB, RW, LAZY)
        trace = np.zeros(2050, TRACE_DTYPE)
        trace["operation"], trace["size"], trace["pid"] = int(Operation.WRITE), 8, 1
        trace["address"][1:] = np.arange(b, b + 8 * MIB + PAGE, PAGE)[:2049]
        trace["pid"][0], trace["address"][0] = 0, a
        trace["address"][2049] = b
        assert m.run(trace, [big, p]).counts.zero_fill == 2049
        assert victims(m) == [big.pid]
        big = holding(m, 1500)
        p.madvise(b, 8 * MIB, Advice.DONTNEED)
        trace["pid"][2049], trace["address"][0] = 0, big.maps()[0].start
        p.set_oom_score_adj(-1000)
        m.init.touch(m.init.mmap(None, MIB * 4, RW, LAZY), 4 * MIB, write=True)
        with pytest.raises(SyscallError, match="has exited"):
            m.run(trace, [big, p])
        m.verify()


def test_a_trace_that_reads_a_file_when_memory_is_gone() -> None:
    """What stopped it before, a page to read, was taken for a cgroup, and it went on forever."""
    with machine() as m:
        f = m.create_file("f", b"", writenotify=True)
        f.truncate(64 * PAGE)
        big, p = holding(m, 1500), holding(m, 5)
        at = p.mmap(0x1000_0000, 64 * PAGE, Prot.READ, Map.SHARED | Map.FIXED, f)
        a = m.init.mmap(None, 16 * MIB, RW, LAZY)
        while m.meminfo().free > PAGE:  # which the page takes, so that none is left for the table
            m.init.touch(a, PAGE, write=True)
            a += PAGE
        trace = np.zeros(64, TRACE_DTYPE)
        trace["operation"], trace["size"] = int(Operation.READ), 8
        trace["address"] = np.arange(at, at + 64 * PAGE, PAGE)
        counts = m.run(trace, [p]).counts
        assert (counts.oom, counts.file_major > 0) == (0, True)
        assert victims(m) == [big.pid]
        m.verify()


# ---- settings ----


def test_oom_kill_allocating_task() -> None:
    """Who asks is killed, unless it may not be; not at the limit of a group."""
    with machine() as m:
        m.procfs.write("sys/vm/oom_kill_allocating_task", "1")
        big, p, safe = holding(m, 2000), holding(m, 10), holding(m, 10, adj=-1000)
        with pytest.raises(ProcessKilled):
            fill(m, p)
        assert m.oom_reports[0].by_allocating
        assert "(oom_kill_allocating_task): Killed process" in str(m.oom_reports[0])
        fill(m, safe)
        assert victims(m) == [p.pid, big.pid]
        m.cgroups.create("j", memory_max=MIB)
        q, r = m.spawn(), m.spawn()
        q.cgroup = r.cgroup = "j"
        q.touch(q.mmap(None, 200 * PAGE, RW, LAZY), 200 * PAGE, write=True)
        r.touch(r.mmap(None, 100 * PAGE, RW, LAZY), 100 * PAGE, write=True)
        assert (q.state, r.state) == ("gone", "running")
        m.verify()


def test_panic_on_oom() -> None:
    """1: when the machine has no frame; 2: also at the limit of a group. Nothing was killed."""
    with machine() as m:
        m.procfs.write("sys/vm/panic_on_oom", "1")
        m.cgroups.create("j", memory_max=MIB)
        p, q = holding(m, 2000), m.spawn()
        q.cgroup = "j"
        a = q.mmap(None, 2 * MIB, RW, LAZY)
        with pytest.raises(ProcessKilled):
            q.touch(a, 2 * MIB, write=True)
        with pytest.raises(KernelPanic, match="Kernel panic - not syncing: Out of memory: system-wide") as info:
            fill(m, p)
        assert info.value.report is m.oom_reports[-1]
        assert str(m.oom_reports[-1]).endswith("\n" + str(info.value))
        assert "no killable" not in str(m.oom_reports[-1])
        assert p.state == "running"
        m.verify()
        m.procfs.write("sys/vm/panic_on_oom", "2")
        q = m.spawn()
        q.cgroup = "j"
        a = q.mmap(None, 2 * MIB, RW, LAZY)
        with pytest.raises(KernelPanic, match="compulsory"):
            q.touch(a, 2 * MIB, write=True)
        m.procfs.write("sys/vm/panic_on_oom", "0")
        with pytest.raises(ProcessKilled):
            q.touch(a, 2 * MIB, write=True)
        with pytest.raises(SyscallError):
            m.procfs.write("sys/vm/panic_on_oom", "3")
        m.verify()


def test_raise_kills_nobody() -> None:
    """The default, and what else oom= may be."""
    with Machine("16MiB") as m:
        holding(m, 2000)
        with pytest.raises(OutOfMemory):
            fill(m)
        assert (m.oom_reports, m.vmstat()["oom_kill"]) == ([], 0)
    with pytest.raises(ValueError, match="oom"):
        Machine("16MiB", oom="reap")


# ---- groups ----


def test_only_tasks_of_the_group_are_chosen() -> None:
    """The one at its limit and those below; totals are its limit (mem_cgroup_get_max())."""
    with machine("64MiB") as m:
        jail = m.cgroups.create("jail", memory_max="8MiB")
        below, other = m.cgroups.create("jail/below"), m.cgroups.create("other")
        outside = holding(m, 5000)
        outside.cgroup = other
        inside = m.spawn()
        inside.cgroup = below
        inside.touch(inside.mmap(None, 1200 * PAGE, RW, LAZY), 1200 * PAGE, write=True)
        p = m.spawn()
        p.cgroup = jail
        p.set_oom_score_adj(100)  # 100 * (2048 // 1000)
        p.touch(p.mmap(None, 900 * PAGE, RW, LAZY), 900 * PAGE, write=True)
        assert (outside.state, inside.state, p.state) == ("running", "gone", "running")
        report = m.oom_reports[0]
        assert (report.cgroup, report.total_pages, report.pid) == ("/jail", 2048, p.pid)
        assert [c.pid for c in report.candidates or ()] == [p.pid, inside.pid]  # the group before those below
        assert report.candidates and report.candidates[0].points == report.candidates[0].rss + 200 + 4
        assert jail.memory_events == {"low": 0, "high": 0, "max": 1, "oom": 1, "oom_kill": 1, "oom_group_kill": 0}
        assert below.memory_events["oom_kill"] == below.memory_events_local["oom_kill"] == 1
        assert jail.memory_events_local["oom_kill"] == 0
        m.verify()


def test_oom_group() -> None:
    """memory.oom.group: the highest such group between the victim and the limit dies as a whole, but adj -1000."""
    with machine("64MiB") as m:
        top = m.cgroups.create("top", oom_group=True)
        jail = m.cgroups.create("top/jail", memory_max="4MiB")
        part = m.cgroups.create("top/jail/part", oom_group=True)
        deep = m.cgroups.create("top/jail/part/deep")
        held = {}
        for name, group, adj in (("t", top, 0), ("j", jail, 0), ("p", part, 0), ("s", part, -1000), ("d", deep, 0)):
            held[name] = m.spawn()
            held[name].set_oom_score_adj(adj)
            held[name].cgroup = group
        d = held["d"]
        with pytest.raises(ProcessKilled):
            d.touch(d.mmap(None, 8 * MIB, RW, LAZY), 8 * MIB, write=True)
        assert {n for n, p in held.items() if p.state == "running"} == {"t", "j", "s"}
        assert part.memory_events["oom_group_kill"] == jail.memory_events["oom_group_kill"] == 1
        assert (part.memory_events["oom_kill"], m.vmstat()["oom_kill"]) == (2, 2)
        lines = str(m.oom_reports[0]).splitlines()
        at = lines.index("Tasks in /top/jail/part are going to be killed due to memory.oom.group set")
        killed = [line.split(" total-vm")[0] for line in lines[at - 1 :]]
        words = [f"Memory cgroup out of memory: Killed process {held[n].pid} (init)" for n in ("d", "p", "d")]
        assert [*killed[:1], *killed[2:]] == words
        m.verify()


def test_a_global_oom_goes_by_groups_too() -> None:
    """With no group at its limit, the highest with oom_group above the victim."""
    with machine() as m:
        group = m.cgroups.create("g", oom_group=True)
        p, q = m.spawn(), m.spawn()
        p.cgroup = q.cgroup = group
        p.touch(p.mmap(None, 2000 * PAGE, RW, LAZY), 2000 * PAGE, write=True)
        fill(m)
        assert (p.state, q.state) == ("gone", "gone")
        assert m.oom_reports[0].cgroup is None
        assert group.memory_events == {"low": 0, "high": 0, "max": 0, "oom": 0, "oom_kill": 2, "oom_group_kill": 1}


def test_lowering_memory_max_kills() -> None:
    """memory_max_write(): until what is charged fits; page cache of living files cannot go yet."""
    with machine("64MiB") as m:
        jail = m.cgroups.create("jail")
        some = [m.spawn() for _ in range(4)]
        for i, p in enumerate(some):
            p.cgroup = jail
            n = 100 * (i + 1)
            p.touch(p.mmap(None, n * PAGE, RW, LAZY), n * PAGE, write=True)
        jail.memory_max = 350 * PAGE
        assert [p.state for p in some] == ["running", "running", "gone", "gone"]
        assert jail.memory_events["oom_kill"] == jail.memory_events["oom"] == 2
        m.cgroupfs.write("jail/memory.max", "0")
        assert jail.memory_current == 0
        assert {p.state for p in some} == {"gone"}
        m.verify()


def test_a_group_without_anybody_to_kill() -> None:
    """The charge fails."""
    with machine("64MiB") as m:
        m.cgroups.create("jail", memory_max=MIB)
        p = m.spawn()
        p.cgroup = "jail"
        p.set_oom_score_adj(-1000)
        a = p.mmap(None, 4 * MIB, RW, LAZY)
        with pytest.raises(OutOfMemory):
            p.touch(a, 4 * MIB, write=True)
        assert p.state == "running"
        assert str(m.oom_reports[-1]).endswith("Out of memory and no killable processes...")
        m.verify()


# ---- the report ----


def test_report_reads_like_the_kernels() -> None:
    """Who asked, the table, who was chosen."""
    with machine() as m:
        p, q = holding(m, 2000), holding(m, 100, adj=-1000)
        p.set_name("big")
        q.set_name("asks")
        fill(m, q)
        report = m.oom_reports[0]
        assert (report.pid, report.name, report.oom_score_adj, report.cgroup) == (q.pid, "asks", -1000, None)
        lines = str(report).splitlines()
        assert lines[0].startswith("asks invoked oom-killer: gfp_mask=")
        assert "order=0, oom_score_adj=-1000" in lines[0]
        at = lines.index("Tasks state (memory values in pages):")
        assert lines[at + 1] == (
            "[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents "
            "oom_score_adj name"
        )
        assert lines[at + 2] == (
            "[      2]     0     2     2000     2000     2000        0         0    24576        0             0 big"
        )
        assert lines[-2:] == [
            (
                "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,"
                "task_memcg=/,task=big,pid=2,uid=0"
            ),
            (
                "Out of memory: Killed process 2 (big) total-vm:8000kB, anon-rss:8000kB, file-rss:0kB, shmem-rss:0kB, "
                "UID:0 pgtables:24kB oom_score_adj:0"
            ),
        ]


def test_long_tables_are_limited_as_the_log_is() -> None:
    """Of many processes ten in five seconds of the machine's clock; then one line for each kill."""
    with machine() as m:
        p = holding(m, 20)
        p.fork_many(100)
        needy = holding(m, 10, adj=-1000)
        a = needy.mmap(None, 16 * MIB, RW, LAZY)
        with pytest.raises(KernelPanic):
            needy.touch(a, 16 * MIB, write=True)
        listed = [r.candidates is not None for r in m.oom_reports]
        assert listed[:12] == [True] * 10 + [False] * 2
        assert listed[-1]  # few are left
        quiet = str(m.oom_reports[11]).splitlines()
        assert len(quiet) == 2
        assert quiet[0].startswith("oom-kill:")
        m.verify()


# ---- bombs ----


@pytest.mark.parametrize("mode", list(ForkMode))
@pytest.mark.parametrize("jailed", [False, True])
def test_fork_bombed_the_machine_never_wedges(mode: ForkMode, jailed: bool) -> None:
    """Each process forks and writes until many were killed; contents of who is left are right all the time."""
    rng = random.Random(7)
    with machine("8MiB" if not jailed else "16MiB", overcommit=Overcommit.ALWAYS) as m:
        guard = holding(m, 100, adj=-1000)
        bomb = m.spawn()
        if jailed:
            m.cgroups.create("jail", memory_max="6MiB")
            bomb.cgroup = "jail"
        a = bomb.mmap(None, 40 * PAGE, RW, ANON)
        bomb.write(a, b"\1" * (40 * PAGE))
        stamps = {bomb.pid: b"\1"}
        killed = 0
        for step in range(600):
            running = [p for p in stamps if p in m.processes and m.processes[p].state == "running"]
            if not running:
                break
            p = m.processes[rng.choice(running)]
            try:
                c = p.fork(mode)
                stamps[c.pid] = stamps[p.pid]
                stamp = bytes([rng.randrange(1, 256)])
                c.write(a, stamp * (20 * PAGE))
                stamps[c.pid] = stamp
                assert c.read(a + 19 * PAGE, PAGE) == stamp * PAGE
                assert c.read(a + 39 * PAGE, 1) == b"\1"
            except ProcessKilled:
                killed += 1
            if step % 40 == 0:
                m.verify()
                for pid in running:
                    if pid in m.processes and m.processes[pid].state == "running":
                        assert m.processes[pid].read(a, 1) in (stamps[pid], b"\1")
        assert len(m.oom_reports) > 20
        assert guard.state == "running"
        m.verify()


def test_choice_is_that_of_a_recount() -> None:
    """What the core remembers of spaces is what a look at all of them says, whatever happened in between."""
    rng = random.Random(3)
    with machine("2MiB", overcommit=Overcommit.ALWAYS) as m:
        f = m.create_file("f", bytes(40 * PAGE))
        alive = [holding(m, rng.randrange(20, 60)) for _ in range(12)]
        seen = 0
        for _ in range(300):
            alive = [p for p in alive if p.state == "running"] or [holding(m, 5)]
            p = rng.choice(alive)
            try:
                what = rng.randrange(7)
                if what == 0:
                    alive.append(p.fork(rng.choice(list(ForkMode))))
                elif what == 1:
                    p.mmap(None, 30 * PAGE, RW, LAZY | Map.POPULATE)
                elif what == 2 and p.maps():
                    p.munmap(p.maps()[0].start, 10 * PAGE)
                elif what == 3 and p.maps():
                    p.madvise(p.maps()[0].start, 8 * PAGE, Advice.DONTNEED)
                elif what == 4:
                    p.mmap(None, 40 * PAGE, RW, Map.SHARED | Map.POPULATE, f)
                elif what == 5:
                    f.truncate(rng.randrange(41) * PAGE)
                else:
                    p.set_oom_score_adj(rng.randrange(-200, 200))
            except ProcessKilled:
                pass
            except OutOfMemory:
                pass
            m.verify()  # compares what is remembered
            for report in m.oom_reports[seen:]:
                able = [c for c in report.candidates or () if c.points is not None]
                best = max(c.points or 0 for c in able)
                assert report.victim and report.victim.points == best
                assert report.victim.pid == [c.pid for c in able if c.points == best][-1]
            seen = len(m.oom_reports)
        assert seen > 3


def test_threads_of_the_host_that_run_out_together() -> None:
    """Each uses a process of its own; whoever is killed by another's need finds out, and nobody waits forever."""
    with machine("8MiB", overcommit=Overcommit.ALWAYS) as m:
        ends: list[str] = []

        def use(p: Process) -> None:
            try:
                for _ in range(30):
                    a = p.mmap(None, 2 * MIB, RW, LAZY)
                    for at in range(a, a + 2 * MIB, 16 * PAGE):
                        p.write(at, b"t" * (16 * PAGE))
                    p.munmap(a, 2 * MIB)
            except ProcessKilled as error:
                assert error.pid == p.pid
                ends.append("killed")
            except SyscallError as error:
                assert error.errno == errno.ESRCH
                ends.append("gone")
            else:
                ends.append("done")

        threads = [threading.Thread(target=use, args=(m.spawn(),)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(ends) == 6
        assert ends.count("done") == 6 - len(m.oom_reports)
        m.verify()
