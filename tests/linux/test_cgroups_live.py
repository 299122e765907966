"""Small bombs one step at a time in a control group of this kernel and in an emulated one: refusals, peaks, victims."""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from linux.cgroups_host import Group, Hog, Tree, build_hog, controller, group, may_protect

from vmemu import Machine, Map, ProcessKilled, Prot, SyscallError

pytestmark = pytest.mark.linux

PAGE = 4096
SLOTS = 9
RW = Prot.READ | Prot.WRITE
LAZY = Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE


@pytest.fixture
def pids() -> Iterator[tuple[Group, Group]]:
    """Two groups, one in the other, that can limit tasks."""
    where = controller("pids")
    if isinstance(where, str):
        pytest.skip(where)
    with group("pids", where) as outer, group("pids", where, outer) as inner:
        yield outer, inner


@pytest.fixture
def memory() -> Iterator[Group]:
    """A group that can limit memory."""
    where = controller("memory")
    if isinstance(where, str):
        pytest.skip(where)
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        pytest.skip("with swap the victims depend on what is swapped out")
    with group("memory", where) as one:
        yield one


@pytest.mark.parametrize("seed", range(12))
def test_pids_max(pids: tuple[Group, Group], seed: int) -> None:
    """Forks, ends and waits of a few processes, limits that change: what is refused, how many there are, the peak."""
    rng, real, compared = random.Random(seed), dict(zip(("outer", "outer/inner"), pids, strict=True)), 0
    tree = Tree(SLOTS)
    try:
        with Machine("16MiB") as m:
            groups = {"outer": m.cgroups.create("outer"), "outer/inner": m.cgroups.create("outer/inner")}
            table = {0: m.spawn()}
            pids[1].write("cgroup.procs", tree.pids[0])
            table[0].cgroup = "outer/inner"
            dead: dict[int, int] = {}
            for _ in range(150):
                living = [slot for slot in table if slot not in dead]
                slot, what = rng.choice(living), rng.random()
                kids = [k for k in table if table[k].ppid == table[slot].pid]
                free = [k for k in range(SLOTS) if k not in table]
                if what < 0.5 and free:
                    try:
                        table[free[0]] = table[slot].fork()
                        ours = 0
                    except SyscallError as error:
                        ours = -(error.errno or 0)
                    assert tree.fork(slot, free[0]) == ours
                    assert ours in (0, -errno.EAGAIN)
                elif what < 0.65 and slot and not kids:
                    tree.exit(slot)
                    table[slot].exit()
                    dead[slot] = next(k for k in table if table[k].pid == table[slot].ppid)
                elif what < 0.85 and dead:
                    child = rng.choice(list(dead))
                    tree.wait(dead[child], child)
                    table[dead[child]].wait(table.pop(child).pid)
                    del dead[child]
                elif what < 0.95:
                    name, limit = rng.choice(list(real)), rng.choice(("max", 1, 2, 3, 4, 5, 6))
                    real[name].write("pids.max", limit)
                    m.cgroupfs.write(f"{name}/pids.max", str(limit))
                for name, host in real.items():
                    for file in ("pids.current", "pids.peak", "pids.max"):
                        if (host.path / file).exists():  # the peak came with Linux 5.19
                            assert m.cgroupfs.read(f"{name}/{file}").decode() == host.read(file), (name, file)
                            compared += 1
                if pids[0].version == 2:
                    for name, host in real.items():
                        assert m.cgroupfs.read(f"{name}/pids.events").decode() == host.read("pids.events")
                else:  # there all refused forks count in the group of who forked
                    assert pids[1].values("pids.events")["max"] == groups["outer"].pids_events
                m.verify()
            assert groups["outer"].pids_events and compared > 500
    finally:
        tree.close()


SHARES = (500, 1000, 2000, 4000)
"""Pages that processes hold at first; another one grows."""
LIMIT = 40 << 20
STEP = 100


def _plan(seed: int) -> tuple[list[int], list[int]]:
    """Who holds how much, and their oom_score_adj: none; one is rather killed; the largest is not, where that may be
    said."""
    shares, adjusted = random.Random(seed).sample(SHARES, 4), [0, 0, 0, 0]
    if seed % 4 in (1, 3):
        adjusted[shares.index(1000)] = 500  # 5,000 pages more
    if seed % 4 in (2, 3) and may_protect():
        adjusted[shares.index(4000)] = -1000
    return shares, adjusted


def _emulated(shares: list[int], adjusted: list[int]) -> tuple[list[int], int, int]:
    """Victims in order, the grower being the last of the processes; anonymous bytes before it grew; the peak."""
    with Machine("256MiB", oom="kill") as m:
        jail = m.cgroups.create("jail", memory_max=LIMIT)
        some = [m.spawn() for _ in range(5)]
        for p, npages, adj in zip(some, [*shares, 1], [*adjusted, 0], strict=True):
            p.cgroup = jail
            p.set_oom_score_adj(adj)
            p.touch(p.mmap(None, npages * PAGE, RW, LAZY), npages * PAGE, write=True)
        anon = jail.memory_stat["anon"]
        with contextlib.suppress(ProcessKilled):
            while True:
                some[-1].touch(some[-1].mmap(None, STEP * PAGE, RW, LAZY), STEP * PAGE, write=True)
        m.verify()
        pids = [p.pid for p in some]
        return [pids.index(report.victim.pid) for report in m.oom_reports if report.victim], anon, jail.memory_peak


def _real(memory: Group, program: Path, shares: list[int], adjusted: list[int]) -> tuple[list[int], int, int, int]:
    """The same on this kernel; last what of the peak is kernel memory."""
    v2 = memory.version == 2
    memory.write("memory.max" if v2 else "memory.limit_in_bytes", LIMIT)
    some = [Hog(program, memory, adj) for adj in [*adjusted, 0]]
    deaths: list[int] = []
    try:
        for hog, npages in zip(some, shares, strict=False):
            assert hog.touch(npages)
        stat = memory.values("memory.stat")
        anon = stat["anon" if v2 else "rss"]
        kernel = stat["kernel"] if v2 else memory.number("memory.kmem.usage_in_bytes")
        alive = True
        while alive:
            alive = some[-1].touch(STEP)
            kills = memory.values("memory.events" if v2 else "memory.oom_control")["oom_kill"]
            end = time.monotonic() + 20
            while len(deaths) < kills and time.monotonic() < end:  # a victim takes its time to die
                deaths += [i for i, hog in enumerate(some) if i not in deaths and hog.dead()]
        return deaths, anon, memory.number("memory.peak" if v2 else "memory.max_usage_in_bytes"), kernel
    finally:
        for hog in some:
            hog.close()


@pytest.mark.parametrize("seed", range(12))
def test_memory_max(memory: Group, tmp_path: Path, seed: int) -> None:
    """Processes of one, two, four and eight shares and one that grows: the victims are the same, in the same order."""
    program = build_hog(tmp_path)
    if program is None:
        pytest.skip("no compiler that links statically")
    shares, adjusted = _plan(seed)
    victims, anon, peak = _emulated(shares, adjusted)
    real_victims, real_anon, real_peak, kernel = _real(memory, program, shares, adjusted)
    assert victims == real_victims, (shares, adjusted)
    assert len(victims) >= (1 if -1000 in adjusted else 2)
    assert victims[-1] == 4
    assert anon == pytest.approx(real_anon, rel=0.1)
    assert peak == pytest.approx(real_peak - kernel, rel=0.1)
