"""Transparent huge pages: fault, fork, split, reuse, collapse, and what they fall back to."""

from __future__ import annotations

import contextlib
import errno
import random

import pytest
from machines import ANON, PAGE, RW, R, counts, every_mode, machine, mapcount, pfn

from vmemu import Advice, ForkMode, Machine, Map, Process, SyscallError

HUGE = 2 << 20
H = 0x4000_0000
"""A huge address, 1 GiB aligned."""


def area(p: Process, npages: int = 1, address: int = H, advice: int | None = Advice.HUGEPAGE) -> int:
    """Private anonymous memory of so many 2 MiB that asks for huge pages."""
    a = p.mmap(address, npages * HUGE, RW, ANON | Map.FIXED)
    if advice is not None:
        p.madvise(a, npages * HUGE, advice)
    return a


def level(p: Process, address: int) -> int:
    """Level of the leaf entry, 0 for none."""
    found = p.translate(address)
    return found.level if found else 0


@pytest.mark.parametrize(
    ("thp", "advice", "expected"),
    [
        ("never", Advice.HUGEPAGE, 1),
        ("madvise", None, 1),
        ("madvise", Advice.HUGEPAGE, 2),
        ("madvise", Advice.NOHUGEPAGE, 1),
        ("always", None, 2),
        ("always", Advice.NOHUGEPAGE, 1),
    ],
)
def test_who_gets_huge_pages(thp: str, advice: int | None, expected: int) -> None:
    with machine(thp=thp) as m:
        p = m.spawn()
        a = area(p, advice=advice)
        assert p.touch(a + 5 * PAGE, 1, write=True) == counts(zero_fill=1)
        assert level(p, a + 5 * PAGE) == expected
        assert p.rss == (HUGE if expected == 2 else PAGE)
        usage = p.smaps()[0]
        assert usage.anonhugepages == (HUGE if expected == 2 else 0)
        assert usage.thp_eligible == (expected == 2)


def test_one_entry_maps_an_aligned_run_of_frames_that_hold_zeros() -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.write(a + 7 * PAGE + 5, b"seven")
        first = pfn(p, a)
        assert first % 512 == 0
        assert [pfn(p, a + i * PAGE) for i in range(512)] == list(range(first, first + 512))
        where = p.translate(a + 7 * PAGE + 5)
        assert where is not None and where.physical == (first + 7) * PAGE + 5
        assert p.read(a, HUGE) == bytes(7 * PAGE + 5) + b"seven" + bytes(HUGE - 7 * PAGE - 10)
        assert p.page_tables == 3 * PAGE  # two levels above and the spare of the entry, as VmPTE counts it
        p.munmap(a, HUGE)
        assert p.page_tables == 0


@pytest.mark.parametrize("thp", ["always", "madvise"])
def test_no_huge_page_where_it_does_not_fit(thp: str) -> None:
    """Not in a mapping that covers no whole 2 MiB there, not over a page table, not without a block."""
    with machine(memory="6MiB", thp=thp) as m:
        p = m.spawn()
        a = area(p, 2)
        p.munmap(a, PAGE)
        p.touch(a + PAGE, 1, write=True)
        assert level(p, a + PAGE) == 1
        assert level(p, a + HUGE) == 0
        p.touch(a + HUGE, 1, write=True)
        assert level(p, a + HUGE) == 2  # one block holds tables, one small pages, one the huge page
        b = area(p, 1, H + (1 << 30))
        before = m.vmstat()["thp_fault_fallback"]
        p.touch(b, 1, write=True)
        assert level(p, b) == 1
        assert m.vmstat()["thp_fault_fallback"] == before + 1


def test_prctl_switches_them_off_and_is_inherited() -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        p.set_thp_disable(True)
        a = area(p)
        p.touch(a, 1, write=True)
        assert level(p, a) == 1
        c = p.fork()
        assert c.thp_disabled and not c.smaps()[0].thp_eligible
        c.set_thp_disable(False)
        b = area(c, 1, H + HUGE)
        c.touch(b, 1, write=True)
        assert level(c, b) == 2 and p.thp_disabled


# ---- the huge zero page ----


def test_reads_share_one_huge_zero_page() -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a, b = area(p), area(p, 1, H + HUGE)
        assert p.touch(a, HUGE) == counts(zero_map=1, none=511)
        free = m.meminfo().free
        p.touch(b, HUGE)
        assert m.meminfo().free == free - PAGE  # the spare table of the entry
        assert pfn(p, a) == pfn(p, b) and level(p, a) == 2
        assert p.rss == 0 and mapcount(m, pfn(p, a)) == 0
        assert int(p.pagemap(a, 1)[0]) >> 61 & 1  # as Linux shows the huge one, and not the small one
        assert p.touch(a + PAGE, 1, write=True) == counts(zero_fill=1)
        assert level(p, a) == 2 and p.rss == HUGE
        assert m.vmstat()["thp_zero_page_alloc"] == 1


def test_no_huge_zero_page_without_a_zero_page() -> None:
    with machine(thp="always", zero_page=False) as m:
        p = m.spawn()
        a = area(p)
        assert p.touch(a, 1) == counts(zero_fill=1)
        assert level(p, a) == 2 and p.rss == HUGE


def test_the_huge_zero_page_splits_into_small_zero_pages() -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.touch(a, 1)
        p.mprotect(a, PAGE, R)
        assert level(p, a) == level(p, a + HUGE - PAGE) == 1
        assert pfn(p, a) == pfn(p, a + HUGE - PAGE) == m.zero_pfn
        assert p.read(a, HUGE) == bytes(HUGE)


def test_the_unused_huge_zero_page_goes_when_memory_is_short() -> None:
    with machine(memory="6MiB", thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.touch(a, 1)
        p.munmap(a, HUGE)
        assert m.vmstat()["thp_zero_page_alloc"] == 1
        assert m.meminfo().free < 4 << 20
        b = area(p, 2, H, Advice.NOHUGEPAGE)
        assert p.touch(b, 900 * PAGE, write=True).oom == 0
        assert p.rss == 900 * PAGE


# ---- fork ----


@every_mode
def test_fork_copies_the_entry(mode: ForkMode) -> None:
    with machine(thp="always", fork_mode=mode) as m:
        p = m.spawn()
        a = area(p)
        p.write(a + 9 * PAGE, b"nine")
        c = p.fork()
        assert level(c, a) == level(p, a) == 2
        assert c.read(a + 9 * PAGE, 4) == b"nine"
        eager = mode == ForkMode.EAGER
        assert (pfn(c, a) == pfn(p, a)) == (not eager)
        assert c.rss == p.rss == HUGE and c.pss == (HUGE if eager else HUGE // 2)


def test_a_write_splits_the_writers_entry_only() -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.write(a + 3 * PAGE, b"old")
        frame = pfn(p, a)
        c = p.fork()
        assert c.touch(a + 3 * PAGE, 1, write=True) == counts(cow_copy=1)
        c.write(a + 3 * PAGE, b"new")
        assert p.read(a + 3 * PAGE, 3) == b"old"
        assert level(p, a) == 2 and level(c, a) == 1
        assert [pfn(c, a + i * PAGE) - frame for i in (0, 1, 2, 4, 511)] == [0, 1, 2, 4, 511]
        assert mapcount(m, frame + 3) == 1 and mapcount(m, frame + 4) == 2
        # the parent splits too, and its page 3 is its own now but not known to be: it is copied, unlike a page of 4 KiB
        assert p.touch(a + 3 * PAGE, 1, write=True) == counts(cow_copy=1)
        assert level(p, a) == 1
        assert m.vmstat()["thp_split_pmd"] == 2


def test_the_last_owner_writes_the_whole_page_in_place() -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.touch(a, 1, write=True)
        c = p.fork()
        c.exit()
        p.wait()
        assert p.touch(a, HUGE, write=True) == counts(cow_reuse=1, none=511)
        assert level(p, a) == 2


def test_after_a_split_the_only_space_left_reuses_page_by_page() -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.touch(a, 1, write=True)
        c = p.fork()
        p.touch(a, 1, write=True)
        c.exit()
        p.wait()
        assert p.touch(a, 4 * PAGE, write=True) == counts(cow_reuse=3, none=1)


def test_a_third_space_is_not_known_to_be_the_last() -> None:
    """Two spaces are remembered for each folio; pages of the third are copied though nobody else is left."""
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.touch(a, 1, write=True)
        children = [p.fork() for _ in range(2)]
        children[1].touch(a, 1, write=True)
        p.munmap(a, HUGE)
        children[0].exit()
        assert children[1].touch(a + PAGE, 1, write=True) == counts(cow_copy=1)


@every_mode
def test_the_huge_zero_page_is_copied_by_fork(mode: ForkMode) -> None:
    with machine(thp="always", fork_mode=mode) as m:
        p = m.spawn()
        a = area(p)
        p.touch(a, 1)
        c = p.fork()
        assert level(c, a) == 2 and pfn(c, a) == pfn(p, a)
        assert c.touch(a, 1) == counts(none=1)


def test_eager_fork_copies_in_parts_where_no_block_is_left() -> None:
    with machine(memory="8MiB", thp="always", fork_mode=ForkMode.EAGER) as m:
        p = m.spawn()
        a = area(p)
        p.write(a + 5 * PAGE, b"five")
        blocks = area(p, 1, H + (1 << 30), Advice.NOHUGEPAGE)
        p.touch(blocks, 2 * PAGE, write=True)
        q = m.spawn()
        b = area(q, 2, H, Advice.NOHUGEPAGE)
        for i in range(500):
            q.touch(b + i * PAGE, 1, write=True)
        c = p.fork()
        assert level(p, a) == 2
        assert c.read(a + 5 * PAGE, 4) == b"five" and pfn(c, a) != pfn(p, a)


# ---- parts ----


@pytest.mark.parametrize("how", ["munmap", "mprotect", "dontneed", "madvise", "mremap", "mlock"])
def test_what_changes_a_part_splits(how: str) -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.write(a, bytes(range(256)) * (HUGE // 256))
        part, n = a + 10 * PAGE, 20 * PAGE
        match how:
            case "munmap":
                p.munmap(part, n)
            case "mprotect":
                p.mprotect(part, n, R)
            case "dontneed":
                p.madvise(part, n, Advice.DONTNEED)
            case "madvise":
                p.madvise(part, n, Advice.DONTFORK)
            case "mremap":
                assert p.mremap(part, n, n, 3, H + HUGE) == H + HUGE
                assert p.read(H + HUGE, 256) == bytes(range(256))
            case "mlock":
                p.mlock(part, n)
        assert level(p, a) == 1
        assert p.read(a, 256) == p.read(a + HUGE - 256, 256) == bytes(range(256))
        gone = how in ("munmap", "dontneed")
        assert p.rss == HUGE - (n if gone else 0)
        assert m.meminfo().anon == p.rss
        assert m.vmstat()["thp_deferred_split_page"] == gone
        assert p.touch(a, PAGE, write=True) == counts(none=1)  # exclusive pages stay writable


def test_frames_of_a_folio_are_free_when_all_of_it_is_unmapped_or_memory_is_short() -> None:
    with machine(memory="6MiB", thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.touch(a, 1, write=True)
        p.madvise(a, HUGE - 2 * PAGE, Advice.DONTNEED)
        assert m.meminfo().free < 4 << 20 and p.rss == 2 * PAGE
        b = area(p, 3, H + HUGE, Advice.NOHUGEPAGE)
        assert p.touch(b, 1200 * PAGE, write=True).oom == 0  # takes the folio's idle frames
        assert m.vmstat()["thp_split_page"] == 1
        assert p.rss == 1202 * PAGE
        p.munmap(a, HUGE)
        c = area(p, 1, H + 4 * HUGE)
        p.touch(c, 1, write=True)
        p.madvise(c, HUGE - PAGE, Advice.DONTNEED)
        p.munmap(b, 3 * HUGE)
        p.munmap(c, HUGE)
        assert m.meminfo().anon == 0


@pytest.mark.parametrize("shift", [0, PAGE])
def test_mremap_moves_a_huge_page_as_one_if_it_fits(shift: int) -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.write(a + PAGE, b"one")
        frame = pfn(p, a)
        to = H + (1 << 30) + shift
        assert p.mremap(a, HUGE, HUGE, 3, to) == to
        assert p.read(to + PAGE, 3) == b"one" and pfn(p, to) == frame
        assert level(p, to) == (1 if shift else 2)
        assert p.touch(to, 1, write=True) == counts(none=1)


def test_mprotect_of_the_whole_keeps_the_entry() -> None:
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p)
        p.touch(a, 1, write=True)
        for prot in (R, 0, RW):
            p.mprotect(a, HUGE, prot)
            assert level(p, a) == 2
        assert p.touch(a, 1, write=True) == counts(none=1)
        assert m.vmstat()["thp_split_pmd"] == 0


def test_dontneed_of_two_mebibytes_gives_the_table_back() -> None:
    """Linux since 6.14 (reclaim_pt): so the next fault can bring a huge page."""
    with machine(thp="madvise") as m:
        p = m.spawn()
        a = area(p, advice=None)
        p.touch(a, HUGE, write=True)
        p.madvise(a, HUGE, Advice.HUGEPAGE)
        p.madvise(a, HUGE - PAGE, Advice.DONTNEED)
        p.touch(a, 1, write=True)
        assert level(p, a) == 1
        p.madvise(a, HUGE, Advice.DONTNEED)
        p.touch(a, 1, write=True)
        assert level(p, a) == 2


# ---- collapse ----


def test_collapse_makes_a_huge_page_of_small_ones() -> None:
    with machine(thp="never") as m:
        p = m.spawn()
        a = area(p)
        p.write(a + 3 * PAGE, b"three")
        p.write(a + 500 * PAGE, b"five hundred")
        c = p.fork()
        before = p.faults
        tables = p.page_tables
        p.madvise(a, HUGE, Advice.COLLAPSE)
        assert level(p, a) == 2 and p.rss == HUGE and p.page_tables == tables
        assert p.faults == before
        assert p.read(a + 3 * PAGE, 5) + p.read(a + 500 * PAGE, 12) == b"threefive hundred"
        assert c.read(a + 3 * PAGE, 5) == b"three" and level(c, a + 3 * PAGE) == 1
        assert p.touch(a, 1, write=True) == counts(none=1)
        p.madvise(a, HUGE, Advice.COLLAPSE)  # it is one already
        assert m.vmstat()["thp_collapse_alloc"] == 1


@pytest.mark.parametrize("case", ["untouched", "second untouched", "nohugepage", "disabled", "small"])
def test_collapse_refuses(case: str) -> None:
    """As probed on Linux 6.18."""
    with machine(thp="always") as m:
        p = m.spawn()
        a = area(p, 2, advice=None)
        if case == "small":
            p.munmap(a + HUGE - PAGE, HUGE + PAGE)
        p.madvise(a, PAGE, Advice.NOHUGEPAGE)
        p.madvise(a, PAGE, Advice.NORMAL)
        if case != "untouched":
            p.touch(a, 1, write=True)
        p.madvise(a, 2 * HUGE if case != "small" else HUGE - PAGE, Advice.NOHUGEPAGE)
        if case != "nohugepage":
            p.madvise(a, 2 * HUGE if case != "small" else HUGE - PAGE, Advice.HUGEPAGE)
        if case == "disabled":
            p.set_thp_disable(True)
        with pytest.raises(SyscallError) as error:
            p.madvise(a, 2 * HUGE if case == "second untouched" else PAGE, Advice.COLLAPSE)
        assert error.value.errno == errno.EINVAL
        assert level(p, a) == (2 if case == "second untouched" else 0 if case == "untouched" else 1)


def test_collapse_without_a_block() -> None:
    with machine(memory="4MiB", thp="never") as m:
        p = m.spawn()
        a = area(p, 2)
        p.touch(a, HUGE + PAGE, write=True)
        with pytest.raises(SyscallError) as error:
            p.madvise(a, HUGE, Advice.COLLAPSE)
        assert error.value.errno == errno.ENOMEM and level(p, a) == 1


# ---- at random ----


def step(rng: random.Random, processes: list[Process], kept: list[bytearray | None]) -> None:
    """One random call on one process, and the same to the bytes it should have (None: dead)."""
    i = rng.choice([k for k, data in enumerate(kept) if data is not None])
    p, data = processes[i], kept[i]
    assert data is not None
    at = rng.randrange(0, 2 * 512 - 1)
    n = rng.choice([1, 3, 512, 700])
    n = min(n, 1024 - at)
    if n == 512:
        at = rng.choice([0, 512])
    where, size = H + at * PAGE, n * PAGE
    match rng.randrange(9):
        case 0 | 1 | 2:
            p.write(where + 100, bytes([rng.randrange(1, 256)]) * 50)
            data[at * PAGE + 100 : at * PAGE + 150] = p.read(where + 100, 50)
        case 3:
            p.madvise(where, size, Advice.DONTNEED)
            data[at * PAGE : (at + n) * PAGE] = bytes(size)
        case 4:
            p.mprotect(where, size, R)
            p.mprotect(where, size, RW)
        case 5:
            p.touch(where, size, write=False)
        case 6:
            p.madvise(where, size, rng.choice([Advice.HUGEPAGE, Advice.NOHUGEPAGE, Advice.DONTFORK, Advice.DOFORK]))
            p.madvise(H, 2 * HUGE, Advice.DOFORK)
        case 7:
            with contextlib.suppress(SyscallError):
                p.madvise(H, 2 * HUGE, Advice.COLLAPSE)
        case 8:
            if len(processes) < 6:
                processes.append(p.fork())
                kept.append(bytearray(data))
            elif sum(d is not None for d in kept) > 1:
                p.exit()
                kept[i] = None


@every_mode
@pytest.mark.parametrize("seed", range(6))
def test_contents_at_random(mode: ForkMode, seed: int) -> None:
    """Whatever is split, shared, collapsed and copied, each process finds what it wrote."""
    rng = random.Random(f"{seed}")
    with Machine(memory="64MiB", thp="always", fork_mode=mode) as m:
        processes = [m.spawn()]
        area(processes[0], 2, advice=None)
        kept: list[bytearray | None] = [bytearray(2 * HUGE)]
        for _ in range(60):
            step(rng, processes, kept)
            m.verify()
        for p, data in zip(processes, kept, strict=True):
            if data is not None:
                assert p.read(H, 2 * HUGE) == bytes(data)
        m.verify()
        for p in list(m.processes.values()):
            if p.pid != 1 and p.state == "running":
                p.exit()
        m.verify()


def test_pagemap_says_of_a_huge_entry_what_holds_for_its_first_page() -> None:
    """Bit 56, mapped once (pagemap_pmd_range()): not what holds for each page, which smaps goes by."""
    with machine(memory="64MiB", thp="madvise") as m:
        parent = m.spawn()
        a = area(parent)
        parent.write(a, b"x")
        child = parent.fork()
        child.write(a + 3 * PAGE, b"y")  # split in the child; of the third page the parent is the only owner now
        assert [int(entry) >> 56 & 1 for entry in parent.pagemap(a, 5)] == [0] * 5
        assert int(parent.pagemap(a + 3 * PAGE, 1)[0]) >> 56 & 1 == 0
        assert parent.uss == PAGE
        child.write(a, b"y")
        assert [int(entry) >> 56 & 1 for entry in parent.pagemap(a, 5)] == [1] * 5
        assert parent.uss == 2 * PAGE
        assert [int(entry) >> 56 & 1 for entry in child.pagemap(a, 5)] == [1, 0, 0, 1, 0]
