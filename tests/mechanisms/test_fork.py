"""fork(2): what is shared, what the first write costs, what each mode copies."""

from __future__ import annotations

import random

import pytest
from machines import (
    ANON,
    PAGE,
    RW,
    A,
    R,
    anon,
    change,
    counts,
    every_mode,
    filled,
    machine,
    mapcount,
    pfn,
    pfns,
    prots,
    sharing_mode,
)

from vmemu import Advice, ForkMode, Map, Prot

N = 16


@sharing_mode
def test_fork_shares_every_private_page_and_both_sides_are_read_only(mode: ForkMode) -> None:
    """fork shares every private page: same frames, mapcount 2, no write permission on either side."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, N)
        assert prots(p, a, N) == [RW] * N
        free, faults = m.meminfo(), m.faults
        c = p.fork()
        assert pfns(c, a, N) == pfns(p, a, N)
        assert len(set(pfns(p, a, N))) == N
        assert prots(p, a, N) == prots(c, a, N) == [R] * N
        assert {mapcount(m, frame) for frame in pfns(p, a, N)} == {2}
        assert p.rss == c.rss == N * PAGE
        assert p.pss == c.pss == N * PAGE // 2
        assert p.uss == c.uss == 0
        assert m.faults == faults
        assert c.faults == counts()
        tables = 4 if mode == ForkMode.COW else 0  # a root and one of each level below; or nothing at all
        moved = change(free, m.meminfo())
        assert moved.get("anon", 0) == 0
        assert moved.get("free", 0) == -tables
        assert moved.get("page_tables", 0) == tables


@pytest.mark.parametrize("writer", ["parent", "child"])
@sharing_mode
def test_first_write_copies_exactly_one_frame_and_completes(mode: ForkMode, writer: str) -> None:
    """The first write in either copies exactly one frame of 4096 bytes and completes the access that faulted; the next
    write there faults no more."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, N)
        c = p.fork()
        w, other = (p, c) if writer == "parent" else (c, p)
        frame, before, mine = pfn(p, a + PAGE), m.meminfo(), w.faults
        w.write(a + PAGE + 100, b"NEW")
        assert w.faults - mine == counts(cow_copy=1)
        assert m.frame_stats().copied == 1
        tables = 0 if mode == ForkMode.COW else 4  # the writer's own path
        moved = change(before, m.meminfo())
        assert moved.get("anon") == 1
        assert moved.get("free") == -1 - tables
        assert w.read(a + PAGE, PAGE) == b"\2" * 100 + b"NEW" + b"\2" * (PAGE - 103)
        assert other.read(a + PAGE, PAGE) == b"\2" * PAGE
        assert pfn(other, a + PAGE) == frame != pfn(w, a + PAGE)
        assert mapcount(m, frame) == mapcount(m, pfn(w, a + PAGE)) == 1
        assert w.touch(a + PAGE, PAGE, write=True) == counts(none=1)
        w.write(a + PAGE, b"again")
        assert w.faults - mine == counts(cow_copy=1)
        for i in {0, *range(2, N)}:  # nothing else changed hands
            assert pfn(p, a + i * PAGE) == pfn(c, a + i * PAGE)


@every_mode
def test_fork_child_sees_what_the_parent_had_and_neither_sees_the_other(mode: ForkMode) -> None:
    """Contents after fork are the parent's at that moment; later writes of each side are its own."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, N)
        c = p.fork()
        p.write(a, b"P" * PAGE)
        c.write(a + PAGE, b"C" * PAGE)
        assert c.read(a, 3 * PAGE) == b"\1" * PAGE + b"C" * PAGE + b"\3" * PAGE
        assert p.read(a, 3 * PAGE) == b"P" * PAGE + b"\2" * PAGE + b"\3" * PAGE


@every_mode
def test_one_write_over_a_page_boundary_copies_both_pages(mode: ForkMode) -> None:
    """An access that faults is completed, over page boundaries too."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 3)
        c = p.fork()
        before = c.faults
        c.write(a + PAGE - 2, b"abcd" + b"e" * PAGE)
        copies = 0 if mode == ForkMode.EAGER else 3
        assert c.faults - before == counts(cow_copy=copies)
        assert c.read(a + PAGE - 3, 6) == b"\1abcde"
        assert p.read(a, 3 * PAGE) == b"\1" * PAGE + b"\2" * PAGE + b"\3" * PAGE


@every_mode
def test_a_child_that_only_reads_causes_no_copy(mode: ForkMode) -> None:
    """A child that only reads causes no copy, no fault and takes no frame."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, N)
        c = p.fork()
        before, copied = m.meminfo(), m.frame_stats().copied
        assert c.touch(a, N * PAGE) == counts(none=N)
        assert c.read(a, N * PAGE) == p.read(a, N * PAGE)
        assert m.frame_stats().copied == copied
        assert m.meminfo() == before
        assert c.faults == counts()


def test_eager_fork_copies_every_anonymous_frame() -> None:
    """EAGER: every anonymous frame is copied at fork, writable at once on both sides; no write faults afterwards."""
    with machine(fork_mode=ForkMode.EAGER) as m:
        p = m.spawn()
        a = filled(p, N)
        before = m.meminfo()
        c = p.fork()
        assert m.frame_stats().copied == N
        assert change(before, m.meminfo())["anon"] == N
        assert not set(pfns(p, a, N)) & set(pfns(c, a, N))
        assert prots(p, a, N) == prots(c, a, N) == [RW] * N
        assert p.uss == c.uss == p.rss == N * PAGE
        before_write = m.faults
        assert p.touch(a, N * PAGE, write=True) == c.touch(a, N * PAGE, write=True) == counts(none=N)
        assert m.faults == before_write
        assert c.read(a, 2 * PAGE) == b"\1" * PAGE + b"\2" * PAGE


def test_eager_fork_shares_the_page_cache_and_the_zero_page() -> None:
    """EAGER copies what COW would share write-protected and anonymous; page cache and zero page stay shared."""
    with machine(fork_mode=ForkMode.EAGER, fault_around=1) as m:
        p = m.spawn()
        file = m.create_file("f", b"f" * 4 * PAGE)
        f = p.mmap(None, 4 * PAGE, RW, Map.PRIVATE, file)
        z = anon(p, 2)
        p.touch(f, 4 * PAGE)
        p.write(f, b"x")
        p.touch(z, PAGE)
        p.write(z + PAGE, b"x")
        c = p.fork()
        assert m.frame_stats().copied == 1 + 2  # the file page before, and the two anonymous ones
        assert pfns(c, f, 4)[1:] == pfns(p, f, 4)[1:]
        assert pfn(c, f) != pfn(p, f)
        assert pfn(c, z) == pfn(p, z) == m.zero_pfn
        assert pfn(c, z + PAGE) != pfn(p, z + PAGE)


@every_mode
def test_mode_may_be_given_for_one_fork(mode: ForkMode) -> None:
    """fork(mode=...) overrides the machine's, as an IntEnum or as a number."""
    with machine(fork_mode=ForkMode.COW) as m:
        p = m.spawn()
        a = filled(p, 1)
        for given in (mode, int(mode)):
            c = p.fork(mode=given)
            assert (pfn(c, a) == pfn(p, a)) == (mode != ForkMode.EAGER)
            c.exit()
            p.wait()


@every_mode
def test_fork_many_is_fork_many_times(mode: ForkMode) -> None:
    """fork_many(n): n children with consecutive pids, each as fork() makes it; can be iterated twice."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 2)
        kids = p.fork_many(5)
        assert len(kids) == 5
        assert [k.pid for k in kids] == [k.pid for k in kids] == list(range(p.pid + 1, p.pid + 6))
        assert [k.ppid for k in kids] == [p.pid] * 5
        assert kids[-1].pid == p.pid + 5
        assert [k.pid for k in kids[1:3]] == [p.pid + 2, p.pid + 3]
        assert list(p.children) == list(kids)
        owners = 6 if mode != ForkMode.EAGER else 1
        assert mapcount(m, pfn(p, a)) == owners
        assert {k.read(a, 1) for k in kids} == {b"\1"}
        with pytest.raises(IndexError):
            kids[5]
        assert len(p.fork_many(0)) == 0


@every_mode
def test_children_of_one_parent_are_independent(mode: ForkMode) -> None:
    """Random writers among twenty processes of one family: each sees its own writes and, where it wrote nothing, its
    ancestor's at the time of the fork."""
    rng = random.Random(1)
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 8)
        family = {p: [bytes([i + 1]) for i in range(8)]}
        for _ in range(300):
            who = rng.choice(list(family))
            if len(family) < 20 and rng.random() < 0.15:
                family[who.fork()] = list(family[who])
            else:
                page, value = rng.randrange(8), bytes([rng.randrange(256)])
                who.write(a + page * PAGE + 7, value)
                family[who][page] = value
        for who, pages in family.items():
            assert [who.read(a + i * PAGE + 7, 1) for i in range(8)] == pages


@every_mode
def test_dontfork_and_wipeonfork(mode: ForkMode) -> None:
    """MADV_DONTFORK keeps a mapping from the child and costs the parent nothing; MADV_WIPEONFORK gives it zeros."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        filled(p, 6, A)
        p.madvise(A + PAGE, PAGE, Advice.DONTFORK)
        p.madvise(A + 3 * PAGE, PAGE, Advice.WIPEONFORK)
        c = p.fork()
        assert [(v.start - A) // PAGE for v in c.maps()] == [0, 2, 3, 4]
        assert c.translate(A + PAGE) is None
        copied = m.frame_stats().copied
        for untouched in (A + PAGE, A + 3 * PAGE):
            assert p.touch(untouched, PAGE, write=True) == counts(none=1) or mode == ForkMode.ON_DEMAND
        assert m.frame_stats().copied == copied
        assert c.read(A + 3 * PAGE, 2 * PAGE) == bytes(PAGE) + b"\5" * PAGE
        assert p.read(A + PAGE, 1) == b"\2"
        assert p.read(A + 3 * PAGE, 1) == b"\4"
        grandchild = c.fork()  # the advice is inherited
        c.write(A + 3 * PAGE, b"c")
        assert c.fork().read(A + 3 * PAGE, 1) == grandchild.read(A + 3 * PAGE, 1) == b"\0"
        p.madvise(A, 6 * PAGE, Advice.DOFORK)
        p.madvise(A, 6 * PAGE, Advice.KEEPONFORK)
        assert p.fork().read(A, 6 * PAGE) == p.read(A, 6 * PAGE)


@sharing_mode
def test_fork_of_memory_without_write_permission_shares_it_too(mode: ForkMode) -> None:
    """Pages that mprotect made read-only or unreachable are shared as well; once it is allowed, a write copies."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 2)
        p.mprotect(a, PAGE, R)
        p.mprotect(a + PAGE, PAGE, Prot.NONE)
        c = p.fork()
        assert pfns(c, a, 2) == pfns(p, a, 2)
        c.mprotect(a, 2 * PAGE, RW)
        assert c.touch(a, 2 * PAGE, write=True) == counts(cow_copy=2)
        assert p.read(a, PAGE) == b"\1" * PAGE


def test_on_demand_fork_takes_no_frame_however_much_is_mapped() -> None:
    """ON_DEMAND shares the page tables from the root down: no frame is taken, whatever the size."""
    with machine(memory="64MiB", contents=False) as m:
        p = m.spawn()
        a = p.mmap(None, 32 << 20, RW, ANON)
        p.touch(a, 32 << 20, write=True)
        before = m.meminfo()
        kids = p.fork_many(100, mode=ForkMode.ON_DEMAND)
        after = m.meminfo()
        assert (after.free, after.page_tables, after.anon) == (before.free, before.page_tables, before.anon)
        assert kids[50].page_tables == p.page_tables  # each counts what it reaches, in full
        assert kids[99].pss == 8192 * ((PAGE << 12) // 101) >> 12
        for k in kids:
            k.exit()
        assert m.meminfo() == before


@every_mode
def test_fork_inherits_the_program_break(mode: ForkMode) -> None:
    """The break is the child's own from then on."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        top = p.brk(p.brk() + 3 * PAGE)
        c = p.fork()
        assert c.brk() == top
        assert c.brk(top + PAGE) == top + PAGE
        assert p.brk() == top
        assert m.procfs.read(f"{p.pid}/maps") != m.procfs.read(f"{c.pid}/maps")
