"""Control groups: the tree, who is in it, pids.max, who pays for which frame, and the files."""

from __future__ import annotations

import errno
import pickle
import random
import threading

import pytest
from machines import ANON, PAGE, RW

from vmemu import (
    Advice,
    Clone,
    ForkMode,
    Machine,
    Map,
    OutOfMemory,
    Overcommit,
    Process,
    ProcessKilled,
    Prot,
    SyscallError,
)

MIB = 1 << 20


def fails(number: int, function: object, *args: object, **named: object) -> None:
    """The call raises this errno."""
    with pytest.raises(SyscallError) as info:
        function(*args, **named)  # type: ignore[operator]
    assert info.value.errno == number


def filled(p: Process, npages: int) -> int:
    """Anonymous memory, written."""
    a = p.mmap(None, npages * PAGE, RW, ANON)
    p.touch(a, npages * PAGE, write=True)
    return a


# ---- the tree ----


def test_tree() -> None:
    """Groups are made below others, found by path, and removed when nobody is in them."""
    with Machine("16MiB") as m:
        a = m.cgroups.create("a", pids_max=9)
        b = m.cgroups.create("a/b")
        c = m.cgroups.create("c", parent=b)
        assert [a.path, b.path, c.path] == ["/a", "/a/b", "/a/b/c"]
        assert list(m.cgroups) == ["a", "a/b", "a/b/c"]
        assert m.cgroups["a/b"] is b is m.cgroups["/a/b/"]
        assert "a/x" not in m.cgroups
        assert m.cgroups["/"] is m.cgroups.root
        assert (a.parent, a.children, b.children, c.children) == (m.cgroups.root, [b], [c], [])
        fails(errno.EBUSY, m.cgroups.remove, "a/b")
        m.cgroups.remove(c)
        m.cgroups.remove("a/b")
        assert list(m.cgroups) == ["a"]
        fails(errno.ENODEV, m.cgroups.remove, b)
        fails(errno.ENOENT, m.cgroups.remove, "a/b")
        fails(errno.EBUSY, m.cgroups.remove, m.cgroups.root)
        with pytest.raises(SyscallError):
            b.pids_max = 3
        m.verify()


def test_bad_names_and_limits() -> None:
    """Nothing is made of what makes no sense."""
    with Machine("16MiB") as m, Machine("16MiB") as other:
        create = m.cgroups.create
        create("a")
        for number, path in (
            (errno.EEXIST, "a"),
            (errno.EEXIST, ""),
            (errno.EEXIST, "."),
            (errno.EEXIST, "a/pids.max"),
            (errno.ENOENT, "b/c"),
            (errno.EINVAL, "x\ny"),
            (errno.ENAMETOOLONG, "x" * 256),
        ):
            fails(number, create, path)
        fails(errno.EINVAL, create, "b", parent=other.cgroups.root)
        for wrong in (
            {"pids_max": -1},
            {"pids_max": 1 << 23},
            {"memory_max": -1},
            {"memory_max": "lots"},
            {"memory_max": "-1"},
            {"memory_max": ""},
            {"memory_swap_max": -PAGE},
            {"memory_high": "2MiB", "memory_max": "1MiB"},
        ):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                create("b", **wrong)
        for wrong in (
            {"pids_max": "3"},
            {"pids_max": True},
            {"pids_max": 1.0},
            {"memory_max": 1.5},
            {"memory_high": True},
            {"memory_max": b"max"},
            {"oom_group": "no"},
            {"oom_group": 2},
        ):
            name = next(iter(wrong))
            with pytest.raises(TypeError, match=name):
                create("b", **wrong)
            with pytest.raises(TypeError, match=name):
                setattr(m.cgroups["a"], name, wrong[name])
        a = m.cgroups["a"]
        a.memory_max = a.memory_high = "1MiB"
        a.memory_max = a.memory_high = a.memory_swap_max = a.pids_max = "max"
        assert (a.memory_max, a.memory_high, a.memory_swap_max, a.pids_max) == (None,) * 4
        with pytest.raises(ValueError, match="root"):
            m.cgroups.root.memory_max = "1MiB"
        assert list(m.cgroups) == ["a"]
        for thing in (m.cgroups, m.cgroups["a"]):
            with pytest.raises(TypeError):
                pickle.dumps(thing)
        m.verify()


# ---- who is where ----


def test_children_inherit_and_processes_move() -> None:
    """A process moves with all its tasks, what it forks is born where it is."""
    with Machine("16MiB") as m:
        a, b = m.cgroups.create("a"), m.cgroups.create("b")
        p = m.spawn()
        assert p.cgroup is m.cgroups.root
        p.cgroup = a
        t = p.clone(Clone.THREAD | Clone.VM | Clone.SIGHAND)
        kids = [p.fork(), t.fork(), *p.fork_many(3), p.vfork()]
        kids[-1].exit()
        assert {k.cgroup for k in kids} == {a}
        assert (a.pids_current, b.pids_current, a.pids_peak) == (8, 0, 8)
        t.cgroup = "b"  # all of the process
        assert (p.cgroup, t.cgroup, kids[0].cgroup) == (b, b, a)
        assert (a.pids_current, b.pids_current, b.procs) == (6, 2, [p.pid])
        assert p.fork().cgroup is b
        t.exit()
        assert b.pids_current == 2
        fails(errno.ENOENT, setattr, p, "cgroup", "x")
        fails(errno.EBUSY, m.cgroups.remove, a)
        m.verify()


def test_zombies_count_and_do_not_keep_a_group() -> None:
    """A zombie counts until it is reaped, for those above even if its group is gone (pids_free())."""
    with Machine("16MiB") as m:
        a = m.cgroups.create("a")
        b = m.cgroups.create("a/b")
        p = m.spawn()
        p.cgroup = a
        c = p.fork()
        c.cgroup = b
        assert b.populated
        c.exit()
        assert (b.procs, b.populated, b.pids_current, a.pids_current) == ([], False, 1, 2)
        fails(errno.ESRCH, setattr, c, "cgroup", a)
        assert c.cgroup is b
        m.cgroups.remove(b)
        assert (a.pids_current, c.cgroup) == (2, a)
        m.verify()
        p.wait()
        assert a.pids_current == 1
        p.exit()  # init reaps
        assert (a.pids_current, a.procs) == (0, [])
        fails(errno.ESRCH, getattr, p, "cgroup")
        m.verify()


def test_spawn_is_a_child_of_init() -> None:
    """It is born in init's group, whose limit holds."""
    with Machine("16MiB") as m:
        a = m.cgroups.create("a", pids_max=2)
        m.init.cgroup = a
        p = m.spawn()
        assert p.cgroup is a
        fails(errno.EAGAIN, m.spawn)
        assert (a.pids_current, a.pids_events) == (2, 1)
        m.init.cgroup = "/"
        assert m.spawn().cgroup is m.cgroups.root
        m.verify()


# ---- pids.max ----


def test_pids_max_all_the_way_up() -> None:
    """A fork is refused by the first limit that it would exceed, here or above, which counts it with all above it."""
    with Machine("16MiB") as m:
        a = m.cgroups.create("a", pids_max=4)
        b = m.cgroups.create("a/b", pids_max=3)
        p = m.spawn()
        p.cgroup = b
        kids = [p.fork(), p.fork()]
        for call in (p.fork, p.vfork, lambda: p.fork_many(2), lambda: p.clone(Clone.THREAD | Clone.VM | Clone.SIGHAND)):
            fails(errno.EAGAIN, call)
        assert [(g.pids_events, g.pids_events_local) for g in (a, b)] == [(4, 0), (4, 4)]
        q = m.spawn()
        q.cgroup = a
        kids[0].exit()
        p.wait()
        b.pids_max = None
        assert (a.pids_current, b.pids_current) == (3, 2)
        p.fork()
        fails(errno.EAGAIN, p.fork)
        assert [(g.pids_events, g.pids_events_local) for g in (a, b)] == [(5, 1), (4, 4)]
        assert (a.pids_peak, b.pids_peak) == (4, 4)  # a limit above was met: this counter had moved already
        a.pids_max = 0
        r = m.spawn()
        r.cgroup = b  # moving in may exceed
        assert (a.pids_current, b.pids_current, a.pids_peak) == (5, 4, 5)
        fails(errno.EAGAIN, r.fork)
        m.verify()


@pytest.mark.parametrize("mode", list(ForkMode))
def test_a_refused_fork_changes_nothing(mode: ForkMode) -> None:
    """Memory, pids and counters are as before."""
    with Machine("16MiB") as m:
        m.cgroups.create("a", pids_max=1)
        p = m.spawn()
        p.cgroup = "a"
        filled(p, 30)
        before = (m.meminfo(), dict(m.processes), p.faults, m.cgroups["a"].pids_current)
        fails(errno.EAGAIN, p.fork, mode)
        assert (m.meminfo(), dict(m.processes), p.faults, m.cgroups["a"].pids_current) == before
        m.verify()


# ---- who pays ----


def test_first_toucher_pays_copier_pays_and_charges_stay() -> None:
    """Anonymous memory is charged where it was touched first, a copy to who made it, until it is free."""
    with Machine("32MiB") as m:
        a, b = m.cgroups.create("a"), m.cgroups.create("b")
        p = m.spawn()
        p.cgroup = a
        at = filled(p, 100)
        tables = p.page_tables + PAGE
        stat = {"anon": 100 * PAGE, "file": 0, "kernel": tables, "pagetables": tables, "shmem": 0, "swapcached": 0}
        assert a.memory_stat == stat
        assert a.memory_current == a.memory_peak == 100 * PAGE + tables
        c = p.fork()
        c.cgroup = b
        assert b.memory_current == 0  # its tables were charged at the fork
        c.touch(at, 40 * PAGE, write=True)
        assert b.memory_stat["anon"] == 40 * PAGE
        assert a.memory_stat["anon"] == 100 * PAGE
        p.touch(at, 50 * PAGE, write=True)  # 40 in place, 10 copied
        assert (a.memory_stat["anon"], b.memory_stat["anon"]) == (110 * PAGE, 40 * PAGE)
        p.exit()
        assert a.memory_stat["anon"] == 60 * PAGE  # what c still maps
        m.cgroups.remove(a)  # to the root, which counts nothing
        c.exit()
        assert b.memory_current == 0
        m.verify()


def test_page_cache_and_shared_memory_are_of_who_touched_them_first() -> None:
    """A page of a file or of shared memory is charged once."""
    with Machine("32MiB") as m:
        a, b = m.cgroups.create("a"), m.cgroups.create("b")
        f = m.create_file("f", bytes(64 * PAGE), writenotify=True)
        g = m.create_file("g")
        g.truncate(64 * PAGE)
        p, q = m.spawn(), m.spawn()
        p.cgroup, q.cgroup = a, b
        for one in (p, q):
            for file in (f, g):
                at = one.mmap(None, 64 * PAGE, RW, Map.SHARED, file)
                one.touch(at, (16 if one is p else 64) * PAGE, write=True)
        assert (a.memory_stat["file"], a.memory_stat["shmem"]) == (16 * PAGE, 16 * PAGE)  # f was written by nobody
        assert (b.memory_stat["file"], b.memory_stat["shmem"]) == (48 * PAGE, 48 * PAGE)
        q.exit()
        assert b.memory_stat["shmem"] == 48 * PAGE  # the file holds it
        g.truncate(0)
        assert a.memory_stat["shmem"] == b.memory_stat["shmem"] == 0
        m.verify()


def test_pages_read_ahead_are_of_who_asked() -> None:
    """MADV_WILLNEED brings in what there is room for, and fails for no frame."""
    with Machine("32MiB") as m:
        a = m.cgroups.create("a", memory_max=MIB)
        f = m.create_file("f", b"", writenotify=True)
        f.truncate(2 * MIB)
        p = m.spawn()
        p.cgroup = a
        at = p.mmap(None, 2 * MIB, Prot.READ, Map.SHARED, f)
        p.madvise(at, 100 * PAGE, Advice.WILLNEED)
        assert a.memory_stat["file"] == 100 * PAGE
        p.madvise(at, 2 * MIB, Advice.WILLNEED)
        assert 100 * PAGE < a.memory_current <= MIB
        assert (a.memory_events["oom"], a.memory_events["oom_kill"]) == (0, 0)
        m.verify()


def test_charges_are_hierarchical_and_go_to_the_parent() -> None:
    """What is charged below counts above; what a removed group had is its parent's."""
    with Machine("32MiB") as m:
        a = m.cgroups.create("a")
        b = m.cgroups.create("a/b")
        p = m.spawn()
        p.cgroup = b
        at = filled(p, 10)
        assert a.memory_current == b.memory_current > 10 * PAGE
        assert a.memory_stat == b.memory_stat
        p.cgroup = "/"
        m.cgroups.remove(b)
        assert a.memory_stat["anon"] == 10 * PAGE
        m.verify()
        p.munmap(at, 10 * PAGE)
        assert a.memory_stat["anon"] == 0
        m.verify()


def test_a_move_changes_who_pays_from_now_on() -> None:
    """The owner of shared memory pays, who is the eldest that uses it (mm->owner)."""
    with Machine("32MiB") as m:
        a, b = m.cgroups.create("a"), m.cgroups.create("b")
        p = m.spawn()
        at = p.mmap(None, MIB, RW, ANON)
        c = p.clone(Clone.VM | 17)
        c.cgroup = b
        c.touch(at, 10 * PAGE, write=True)
        assert b.memory_current == 0
        p.cgroup = a
        c.touch(at + 10 * PAGE, 10 * PAGE, write=True)
        assert (a.memory_stat["anon"], b.memory_stat["anon"]) == (10 * PAGE, 0)
        p.exit()
        c.touch(at + 20 * PAGE, 5 * PAGE, write=True)
        assert (a.memory_stat["anon"], b.memory_stat["anon"]) == (10 * PAGE, 5 * PAGE)
        m.verify()


def test_limit_without_a_killer() -> None:
    """With oom="raise" the access fails at the limit of a group, and others go on."""
    with Machine("32MiB") as m:
        a = m.cgroups.create("a", memory_max=MIB)
        p = m.spawn()
        p.cgroup = a
        at = p.mmap(None, 4 * MIB, RW, ANON)
        with pytest.raises(OutOfMemory, match="memory cgroup"):
            p.touch(at, 4 * MIB, write=True)
        assert a.memory_current == MIB
        assert a.memory_events == {"low": 0, "high": 0, "max": 1, "oom": 1, "oom_kill": 0, "oom_group_kill": 0}
        assert p.faults.oom == m.faults.oom == 1
        with pytest.raises(OutOfMemory, match="memory cgroup"):
            p.fork()
        kinds = p.access([at, at + 3 * MIB, at + PAGE], write=True)
        assert list(kinds) == [0, 13, 0]
        q = m.spawn()
        filled(q, 600)
        a.memory_max = None
        p.touch(at, 4 * MIB, write=True)
        m.verify()


def test_the_limit_of_an_ancestor_holds() -> None:
    """The charge that fails is nobody's, and no peak moves."""
    with Machine("32MiB") as m:
        a = m.cgroups.create("a", memory_max=MIB)
        b = m.cgroups.create("a/b")
        p = m.spawn()
        p.cgroup = b
        with pytest.raises(OutOfMemory):
            filled(p, 1000)
        assert a.memory_current == b.memory_current == MIB
        assert (a.memory_peak, b.memory_peak) == (MIB, MIB)
        assert (a.memory_events["max"], b.memory_events["max"]) == (1, 0)
        assert a.memory_events_local["max"] == 1
        m.verify()


@pytest.mark.parametrize("seed", range(8))
def test_the_least_limit_above_holds(seed: int) -> None:
    """However deep a group lies and in whatever order limits are set: what its processes can have is the least."""
    rng = random.Random(seed)
    with Machine("32MiB", overcommit=Overcommit.ALWAYS) as m:
        groups = [m.cgroups.create("/".join("abcdef"[: i + 1])) for i in range(6)]
        limits = [rng.choice((None, *range(100, 1000, 50))) for _ in groups]
        for i in rng.sample(range(6), 6):
            most = limits[i]
            groups[i].memory_max = None if most is None else most * PAGE
            groups[i].pids_max = None if most is None else most // 50
        known = [most for most in limits if most is not None] or [2000]
        p = m.spawn()
        p.cgroup = groups[-1]
        a = p.mmap(None, 1500 * PAGE, RW, ANON)
        done = 0
        try:
            for at in range(a, a + 1500 * PAGE, PAGE):
                p.touch(at, PAGE, write=True)
                done += 1
        except OutOfMemory:
            assert {g.memory_current for g in groups} == {min(known) * PAGE}
            assert done == min(known) - p.page_tables // PAGE - 1  # and the root of the tables
            stopped = [g.memory_events_local["max"] for g in groups]
            assert stopped == [int(i == max(j for j in range(6) if limits[j] == min(known))) for i in range(6)]
        else:
            assert min(known) > 1500
        for g in groups:
            g.memory_max = None
        n = 1
        try:
            while n < 30:
                p.clone(Clone.VM | 17)
                n += 1
        except SyscallError as error:
            assert error.errno == errno.EAGAIN
        assert n == min(30, min(known) // 50)
        m.verify()


@pytest.mark.parametrize("thp", ["never", "always"])
@pytest.mark.parametrize("seed", range(4))
def test_peaks_are_the_most_that_was_charged(thp: str, seed: int) -> None:
    """Whatever was refused in between: at a limit, for want of a frame, for want of a block for a huge page."""
    rng = random.Random(seed)
    with Machine(f"{8 * MIB + 96 * PAGE}", thp=thp, overcommit=Overcommit.ALWAYS) as m:
        groups = [m.cgroups.create("a", memory_max="7MiB"), *(m.cgroups.create(f"a/{i}") for i in range(3))]
        groups[2].memory_max = "3MiB"
        some = []
        for group in groups[1:]:
            p = m.spawn()
            p.cgroup = group
            some.append(p)
        most, refused = [0] * 4, 0
        for _ in range(300):
            p = rng.choice(some)
            try:
                if p.maps() and rng.random() < 0.4:
                    victim = rng.choice(p.maps())
                    p.munmap(victim.start, rng.choice((victim.size, PAGE)))
                else:
                    size = rng.choice((PAGE, 40 * PAGE, MIB, 3 * MIB))
                    a = p.mmap(None, size, RW, ANON)
                    for at in range(a, a + size, PAGE):
                        p.touch(at, PAGE, write=True)
                        most = [max(n, g.memory_current) for n, g in zip(most, groups, strict=True)]
            except OutOfMemory:
                refused += 1
            most = [max(n, g.memory_current) for n, g in zip(most, groups, strict=True)]
        assert [g.memory_peak for g in groups] == most
        assert refused > 10
        m.verify()


def test_memory_high_counts() -> None:
    """Each charge over it is an event, here and above."""
    with Machine("32MiB") as m:
        a = m.cgroups.create("a")
        b = m.cgroups.create("a/b", memory_high=20 * PAGE)
        p = m.spawn()
        p.cgroup = b
        at = p.mmap(None, MIB, RW, ANON)
        p.touch(at, PAGE, write=True)
        over = b.memory_current // PAGE
        p.touch(at, 30 * PAGE, write=True)
        expected = 30 - 1 + over - 20
        assert b.memory_events["high"] == b.memory_events_local["high"] == a.memory_events["high"] == expected
        assert a.memory_events_local["high"] == 0


def test_huge_pages_are_charged_and_fall_back() -> None:
    """Without room for a huge page a small one is taken; the huge zero page is nobody's."""
    with Machine("32MiB", thp="always") as m:
        a = m.cgroups.create("a", memory_max=3 * MIB)
        p = m.spawn()
        p.cgroup = a
        at = p.mmap(None, 8 * MIB, RW, ANON)
        p.read(at + 4 * MIB, 1)
        assert a.memory_stat["anon"] == 0
        p.write(at, b"x")
        assert a.memory_stat["anon"] == 2 * MIB
        p.write(at + 2 * MIB, b"x")
        assert a.memory_stat["anon"] == 2 * MIB + PAGE
        p.munmap(at, 8 * MIB)
        assert a.memory_stat["anon"] == 0
        m.verify()


@pytest.mark.parametrize("mode", list(ForkMode))
def test_a_fork_that_cannot_be_paid(mode: ForkMode) -> None:
    """It fails and leaves nothing charged."""
    with Machine("32MiB") as m:
        a = m.cgroups.create("a")
        p = m.spawn()
        p.cgroup = a
        at = filled(p, 600)
        before = a.memory_current
        a.memory_max = before
        try:
            c = p.fork(mode)
        except OutOfMemory:
            assert mode is not ForkMode.ON_DEMAND
        else:
            assert mode is ForkMode.ON_DEMAND
            c.exit()
            p.wait()
        assert a.memory_current == before
        assert p.read(at, 1) == b"\0"
        m.verify()


# ---- files ----


def test_files() -> None:
    """Formats as cgroup v2 has them."""
    with Machine("16MiB", oom="kill") as m:
        m.cgroups.create("jail", pids_max=3, memory_max="4MiB")
        m.cgroups.create("jail/in")
        fs, p = m.cgroupfs, m.spawn()
        assert fs.write("/sys/fs/cgroup/jail/in/cgroup.procs", f"{p.pid}\n") == 2
        at = p.mmap(None, MIB, RW, ANON)
        p.touch(at, 10 * PAGE, write=True)
        t = p.clone(Clone.THREAD | Clone.VM | Clone.SIGHAND)
        read = {name: fs.read(f"jail/in/{name}").decode() for name in fs.listdir("jail/in") if name != "cgroup.kill"}
        tables = p.page_tables + PAGE
        assert read == {
            "cgroup.controllers": "memory pids\n",
            "cgroup.events": "populated 1\nfrozen 0\n",
            "cgroup.procs": f"{p.pid}\n",
            "cgroup.subtree_control": "\n",
            "cgroup.threads": f"{p.pid}\n{t.tid}\n",
            "cgroup.type": "domain\n",
            "memory.current": f"{10 * PAGE + tables}\n",
            "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
            "memory.events.local": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
            "memory.high": "max\n",
            "memory.max": "max\n",
            "memory.oom.group": "0\n",
            "memory.peak": f"{10 * PAGE + tables}\n",
            "memory.stat": f"anon {10 * PAGE}\nfile 0\nkernel {tables}\npagetables {tables}\nshmem 0\nswapcached 0\n",
            "memory.swap.current": "0\n",
            "memory.swap.events": "high 0\nmax 0\nfail 0\n",
            "memory.swap.max": "max\n",
            "memory.swap.peak": "0\n",
            "pids.current": "2\n",
            "pids.events": "max 0\n",
            "pids.events.local": "max 0\n",
            "pids.max": "max\n",
            "pids.peak": "2\n",
        }
        assert fs.read("jail/pids.max") == b"3\n"
        assert fs.read("jail/memory.max") == b"4194304\n"
        assert fs.listdir() == [
            "cgroup.controllers",
            "cgroup.procs",
            "cgroup.subtree_control",
            "cgroup.threads",
            "jail",
        ]
        assert fs.read("cgroup.subtree_control") == b"memory pids\n"
        assert fs.read("cgroup.procs") == b"1\n"
        assert m.procfs.read(f"{p.pid}/cgroup") == b"0::/jail/in\n"
        fs.write("jail/cgroup.kill", "1")
        assert (p.state, fs.read("jail/cgroup.events")) == ("gone", b"populated 0\nfrozen 0\n")
        m.verify()


@pytest.mark.parametrize(
    ("name", "data", "result"),
    [
        ("pids.max", "12", "12\n"),
        ("pids.max", "max\n", "max\n"),
        ("pids.max", "0x10", "16\n"),
        ("pids.max", "-1", errno.EINVAL),
        ("pids.max", "4194305", errno.EINVAL),
        ("pids.max", "x", errno.EINVAL),
        ("memory.max", "5000", "4096\n"),
        ("memory.max", "1m", "1048576\n"),
        ("memory.max", "0x10k\n", "16384\n"),
        ("memory.max", "010K", "8192\n"),
        ("memory.high", "2M", "2097152\n"),
        ("memory.high", "max", "max\n"),
        ("memory.swap.max", "1G", "1073741824\n"),
        ("memory.max", "-1", errno.EINVAL),
        ("memory.max", "1MiB", errno.EINVAL),
        ("memory.oom.group", "1", "1\n"),
        ("memory.oom.group", "2", errno.EINVAL),
        ("cgroup.kill", "0", errno.ERANGE),
        ("cgroup.kill", "a", errno.EINVAL),
        ("cgroup.procs", "99", errno.ESRCH),
        ("cgroup.procs", "-1", errno.EINVAL),
        ("pids.current", "1", errno.EINVAL),
        ("memory.stat", "1", errno.EINVAL),
        ("cgroup.subtree_control", "+pids +memory", "memory pids\n"),
        ("cgroup.subtree_control", "+memory -memory\n", "\n"),
        ("cgroup.subtree_control", "", "\n"),
        ("cgroup.subtree_control", "memory", errno.EINVAL),
        ("cgroup.subtree_control", "+cpu", errno.EINVAL),
        ("cgroup.type", "threaded", errno.EOPNOTSUPP),
        ("cgroup.type", "domain", errno.EINVAL),
    ],
)
def test_writing(name: str, data: str, result: str | int) -> None:
    """What is written is what is read, or refused and nothing changed."""
    with Machine("16MiB") as m:
        m.cgroups.create("j")
        if isinstance(result, int):
            fails(result, m.cgroupfs.write, f"j/{name}", data)
        else:
            assert m.cgroupfs.write(f"j/{name}", data) == len(data)
            assert m.cgroupfs.read(f"j/{name}").decode() == result


def test_no_internal_processes() -> None:
    """A group that hands the domain controller memory on has no processes, and the other way round."""
    with Machine("16MiB") as m:
        a = m.cgroups.create("a", memory_max="1MiB")
        p, q = m.spawn(), m.spawn()
        p.cgroup = a
        b = m.cgroups.create("a/b", memory_max="512KiB")  # here the parent may have some
        fails(errno.EBUSY, m.cgroupfs.write, "a/cgroup.subtree_control", "+pids +memory")
        assert a.subtree_control == frozenset()
        a.subtree_control = {"pids"}  # no domain controller, and nobody is below
        q.cgroup = a
        p.cgroup = b
        fails(errno.EBUSY, setattr, p, "cgroup", a)  # now somebody is
        a.subtree_control = ()
        p.cgroup = a
        for one in (p, q):
            one.cgroup = b
        m.cgroupfs.write("a/cgroup.subtree_control", "+memory")
        fails(errno.EBUSY, setattr, p, "cgroup", a)
        fails(errno.EBUSY, m.cgroupfs.write, "a/cgroup.procs", str(p.pid))
        assert p.fork().cgroup is b
        for one in (p, q, *p.children):
            one.exit()
        b.subtree_control = {"memory"}
        fails(errno.EBUSY, setattr, a, "subtree_control", ())
        fails(errno.EINVAL, setattr, a, "subtree_control", "cpu")
        b.subtree_control = ()
        a.subtree_control = ()
        m.spawn().cgroup = a
        m.cgroups.remove(b)
        fails(errno.ENODEV, setattr, b, "subtree_control", {"pids"})
        m.verify()


def test_files_that_are_not_there() -> None:
    """ENOENT, EISDIR, ENOTDIR; the root has no limits."""
    with Machine("16MiB") as m:
        m.cgroups.create("j")
        for number, path in (
            (errno.ENOENT, "pids.max"),
            (errno.ENOENT, "x/pids.max"),
            (errno.EISDIR, "j"),
            (errno.EISDIR, ""),
            (errno.ENOTDIR, "j/pids.max/x"),
            (errno.EINVAL, "j/cgroup.kill"),
        ):
            fails(number, m.cgroupfs.read, path)
        fails(errno.ENOTDIR, m.cgroupfs.listdir, "j/pids.max")
        fails(errno.ENOENT, m.cgroupfs.listdir, "k")


# ---- what is interrupted ----


def test_counters_are_mended() -> None:
    """What groups count follows from where tasks are."""
    with Machine("16MiB") as m:
        a = m.cgroups.create("a")
        b = m.cgroups.create("a/b")
        p = m.spawn()
        p.cgroup = b
        p.fork_many(4)
        a._pids, b._pids = 77, 0
        m._kernel.mend()
        assert (a.pids_current, b.pids_current) == (5, 5)
        m.verify()


def test_limits_set_by_two_threads_at_once() -> None:
    """No limit, and one: each is set as a whole."""
    with Machine("8MiB") as m:
        group, failures = m.cgroups.create("g"), []

        def change(limit: int | None) -> None:
            try:
                for _ in range(3000):
                    group.memory_max = group.memory_high = limit
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=change, args=(limit,)) for limit in (None, MIB)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_the_greatest_limit_is_none() -> None:
    """PAGE_COUNTER_MAX, as page_counter_memparse() has it."""
    with Machine("8MiB") as m:
        group = m.cgroups.create("g", memory_max=MIB)
        m.cgroupfs.write("g/memory.max", str((1 << 63) - 1))
        assert m.cgroupfs.read("g/memory.max") == b"max\n" and group.memory_max is None
        m.cgroupfs.write("g/memory.max", str((1 << 63) - 4097))
        assert group.memory_max is not None


def test_the_report_of_a_group_has_its_swap() -> None:
    with Machine("8MiB", swap="8MiB", oom="kill") as m:
        p = m.spawn()
        p.cgroup = m.cgroups.create("g", memory_max="256KiB", memory_swap_max="128KiB")
        a = p.mmap(None, MIB, 3, 0x22)
        with pytest.raises(ProcessKilled):
            p.touch(a, MIB, write=True)
        assert "swap: usage 128kB, limit 128kB, failcnt " in str(m.oom_reports[0])
