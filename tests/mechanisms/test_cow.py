"""Copy-on-write: who copies, who reuses, and how often."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from machines import (
    PAGE,
    RW,
    R,
    anon,
    change,
    counts,
    filled,
    machine,
    mapcount,
    pfn,
    program,
    prots,
    sharing_mode,
)

from vmemu import Advice, ForkMode, Machine, Process


@pytest.mark.parametrize("n", [2, 3, 5, 17])
@sharing_mode
def test_n_writers_of_one_page_make_n_minus_1_copies(mode: ForkMode, n: int) -> None:
    """N writers of one page make N-1 copies, in whatever order; the last one reuses the frame."""
    rng = random.Random(n)
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p)
        frame = pfn(p, a)
        writers = [p, *p.fork_many(n - 1)]
        rng.shuffle(writers)
        before = m.faults
        for i, w in enumerate(writers):
            assert mapcount(m, frame) == n - i
            last = i == n - 1
            assert w.touch(a, 1, write=True) == (counts(cow_reuse=1) if last else counts(cow_copy=1))
            assert (pfn(w, a) == frame) == last
        assert m.faults - before == counts(cow_copy=n - 1, cow_reuse=1)
        assert m.frame_stats().copied == n - 1
        assert len({pfn(w, a) for w in writers}) == n


@pytest.mark.parametrize("depth", [2, 3, 9])
@sharing_mode
def test_n_writers_in_a_line_of_descent(mode: ForkMode, depth: int) -> None:
    """The same where each is the child of the one before: N-1 copies, in random order."""
    rng = random.Random(depth)
    with machine(fork_mode=mode) as m:
        line = [m.spawn()]
        a = filled(line[0])
        while len(line) < depth:
            line.append(line[-1].fork())
        assert {pfn(w, a) for w in line} == {pfn(line[0], a)}
        rng.shuffle(line)
        before = m.faults
        for w in line:
            w.write(a, b"%d" % w.pid)
        assert m.faults - before == counts(cow_copy=depth - 1, cow_reuse=1)
        assert all(w.read(a, len(b"%d" % w.pid)) == b"%d" % w.pid for w in line)


@sharing_mode
def test_only_the_grandchild_writes_parent_and_child_still_share(mode: ForkMode) -> None:
    """Only the grandchild writes: one copy, parent and child go on sharing the old frame."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p)
        c = p.fork()
        g = c.fork()
        frame = pfn(p, a)
        g.write(a, b"grandchild")
        assert pfn(p, a) == pfn(c, a) == frame != pfn(g, a)
        assert (mapcount(m, frame), mapcount(m, pfn(g, a))) == (2, 1)
        assert g.faults == counts(cow_copy=1)
        assert p.pss == c.pss == PAGE // 2
        assert g.pss == PAGE
        assert m.frame_stats().copied == 1
        c.write(a, b"c")
        p.write(a, b"p")
        assert (c.faults, pfn(p, a)) == (counts(cow_copy=1), frame)
        assert m.frame_stats().copied == 2


def _exits(m: Machine, c: Process, a: int, path: Path) -> None:
    c.exit()


def _execs(m: Machine, c: Process, a: int, path: Path) -> None:
    c.execve(str(path))


def _unmaps(m: Machine, c: Process, a: int, path: Path) -> None:
    c.munmap(a, PAGE)


def _discards(m: Machine, c: Process, a: int, path: Path) -> None:
    c.madvise(a, PAGE, Advice.DONTNEED)


def _maps_over(m: Machine, c: Process, a: int, path: Path) -> None:
    anon(c, 1, a)


def _copies(m: Machine, c: Process, a: int, path: Path) -> None:
    c.write(a, b"x")


@pytest.mark.parametrize("goes", [_exits, _execs, _unmaps, _discards, _maps_over, _copies])
@pytest.mark.parametrize("survivor", ["parent", "child"])
@sharing_mode
def test_the_last_owner_writes_in_place(mode: ForkMode, goes: object, survivor: str, tmp_path: Path) -> None:
    """After the other owner is gone or has copied, the last owner's write is one fault and no copy; then none.

    ON_DEMAND takes even that fault away where the tables were given back before they were copied.
    """
    path = program(tmp_path)
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p)
        c = p.fork()
        stays, leaves = (p, c) if survivor == "parent" else (c, p)
        goes(m, leaves, a, path)  # type: ignore[operator]
        frame, copied, free, before = pfn(stays, a), m.frame_stats().copied, m.meminfo(), stays.faults
        assert mapcount(m, frame) == 1
        protected = prots(stays, a, 1) == [R]
        assert protected or mode == ForkMode.ON_DEMAND
        stays.write(a + 5, b"mine")
        taken = stays.faults - before  # ON_DEMAND: the frame may be writable below a table that is not
        assert taken == counts(cow_reuse=int(protected)) or (mode, taken) == (ForkMode.ON_DEMAND, counts(spurious=1))
        assert (m.frame_stats().copied, pfn(stays, a)) == (copied, frame)
        assert change(free, m.meminfo()).get("anon", 0) == 0
        assert prots(stays, a, 1) == [RW]
        assert stays.touch(a, 1, write=True) == counts(none=1)
        assert stays.read(a, 10) == b"\1" * 5 + b"mine\1"


@sharing_mode
def test_without_reuse_the_last_owner_copies_as_well(mode: ForkMode) -> None:
    """Machine(reuse=False): N writers make N copies; the counts show what reuse buys."""
    with machine(fork_mode=mode, reuse=False) as m:
        p = m.spawn()
        a = filled(p)
        writers = [p, *p.fork_many(4)]
        before, free = m.faults, m.meminfo()
        for w in writers:
            w.write(a, b"x")
        assert m.faults - before == counts(cow_copy=5)
        assert m.frame_stats().copied == 5
        assert change(free, m.meminfo())["anon"] == 4
        assert {w.touch(a, 1, write=True).none for w in writers} == {1}


@sharing_mode
def test_mprotect_to_writable_shares_no_write(mode: ForkMode) -> None:
    """mprotect(RO), mprotect(RW) on a shared page never makes the frame writable, the write still copies; on a page
    that is exclusive it costs no fault."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 2)
        p.mprotect(a, PAGE, R)
        p.mprotect(a, PAGE, RW)
        assert p.touch(a, PAGE, write=True) == counts(none=1)
        c = p.fork()
        for who in (p, c):
            who.mprotect(a, 2 * PAGE, R)
            who.mprotect(a, 2 * PAGE, RW)
            assert prots(who, a, 1) == [R]
        assert c.touch(a, 2 * PAGE, write=True) == counts(cow_copy=2)
        assert p.touch(a, 2 * PAGE, write=True) == counts(cow_reuse=2)


@sharing_mode
def test_a_moved_page_stays_shared(mode: ForkMode) -> None:
    """mremap moves entries as they are: the frame stays shared copy-on-write at its new address, nothing is copied."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 2)
        c = p.fork()
        to = c.mremap(a, 2 * PAGE, 2 * PAGE, 3, a - (1 << 30))
        assert (pfn(c, to), pfn(c, to + PAGE)) == (pfn(p, a), pfn(p, a + PAGE))
        assert c.faults == counts()
        assert c.touch(to, 1, write=True) == counts(cow_copy=1)
        assert p.touch(a, 2 * PAGE, write=True) == counts(cow_reuse=1, cow_copy=1)


@sharing_mode
def test_repeated_forks_protect_again(mode: ForkMode) -> None:
    """Each fork write-protects anew: a parent that writes after every fork copies each time while the child lives, and
    reuses when it is gone."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p)
        for generation in range(1, 6):
            p.fork()
            p.write(a, bytes([generation]))
            assert m.frame_stats().copied == generation
        assert [c.read(a, 1) for c in p.children] == [b"\1", b"\1", b"\2", b"\3", b"\4"]
        for _ in range(3):
            p.fork().exit()
            p.wait()
            taken = p.touch(a, 1, write=True)
            assert taken == counts(cow_reuse=1) or (mode == ForkMode.ON_DEMAND and taken == counts(none=1))
        assert m.frame_stats().copied == 5
