"""Same-page merging (Documentation/admin-guide/mm/ksm.rst). The figures are those of ksmd of Linux 6.18."""

from __future__ import annotations

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, counts, every_mode, machine, mapcount, pfn, pfns

from vmemu import Advice, ForkMode, Machine, Map, Process, SyscallError

SHORT = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")


def mergeable(p: Process, pages: str, address: int = A) -> int:
    """Private memory, a letter a page: its bytes are that letter, 0 for zeros, - for nothing."""
    anon(p, len(pages), address)
    p.madvise(address, len(pages) * PAGE, Advice.MERGEABLE)
    for i, letter in enumerate(pages):
        if letter != "-":
            p.write(address + i * PAGE, bytes([0 if letter == "0" else ord(letter)]) * PAGE)
    return address


def figures(m: Machine) -> tuple[int, ...]:
    """Shared, sharing, unshared, volatile."""
    return tuple(getattr(m.ksm.counts, name) for name in SHORT)


def scanned(m: Machine, passes: int = 1) -> tuple[int, ...]:
    m.ksm.scan(passes)
    m.verify()
    return figures(m)


def groups(p: Process, base: int, npages: int) -> str:
    """A letter for each page, the same for the same frame."""
    order: list[int] = []
    for frame in pfns(p, base, npages):
        if frame not in order:
            order.append(frame)
    return "".join("abcdefghij"[order.index(frame)] for frame in pfns(p, base, npages))


def is_ksm(m: Machine, frame: int) -> bool:
    return bool(int.from_bytes(m.procfs.read("kpageflags")[8 * frame : 8 * frame + 8], "little") >> 21 & 1)


def test_equal_pages_get_one_frame() -> None:
    """At the second pass that sees them unchanged: it is the frame of the one met second, read-only, dirty for ever."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AAABC-0")
        p.read(a + 5 * PAGE, 1)
        second = pfn(p, a + PAGE)
        assert scanned(m) == (0, 0, 0, 6)
        assert scanned(m) == (1, 2, 3, 0)
        assert scanned(m) == (1, 2, 3, 0)
        assert groups(p, a, 5) == "aaabc"
        assert pfn(p, a) == second
        assert is_ksm(m, second)
        assert mapcount(m, second) == 3
        assert m.meminfo().anon == 4 * PAGE
        usage = p.smaps()[0]
        assert (usage.ksm, usage.shared_dirty, usage.private_dirty, usage.anonymous) == tuple(
            n * PAGE for n in (3, 3, 3, 6)
        )
        assert f"KSM:            {12:8} kB\n".encode() in m.procfs.read(f"{p.pid}/smaps")
        assert (m.ksm.counts.general_profit, m.ksm.stat(p.pid)) == (7808, (6, 0, 3, 11904, True))
        assert (m.ksm.counts.full_scans, m.ksm.counts.pages_scanned) == (3, 18)


def test_scan_merges_all_that_is_equal_now() -> None:
    """Two passes, unless told otherwise."""
    with machine() as m:
        p, q = m.spawn(), m.spawn()
        mergeable(p, "AB")
        mergeable(q, "BA")
        found = m.ksm.scan()
        assert (found.pages_shared, found.pages_sharing, found.full_scans) == (2, 2, 2)
        assert found == m.ksm.counts
        assert sorted(pfns(p, A, 2)) == sorted(pfns(q, A, 2))


def test_a_write_copies_even_for_the_last_owner() -> None:
    """Never reused; the counters notice at the next pass."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AA")
        assert scanned(m, 2) == (1, 1, 0, 0)
        frame = pfn(p, a)
        for page, left in ((0, 1), (1, 0)):
            assert p.touch(a + page * PAGE, PAGE, write=True) == counts(cow_copy=1)
            assert p.touch(a + page * PAGE, PAGE, write=True) == counts(none=1)
            assert mapcount(m, frame) == left
            assert figures(m) == (1, 1, 0, 0)
        assert m.vmstat()["cow_ksm"] == 2
        p.write(a, b"BB")
        assert scanned(m) == (0, 0, 1, 1)  # the bytes of the other are what they were at the last pass
        assert p.read(a, 2 * PAGE) == b"BB" + b"A" * (2 * PAGE - 2)


def test_a_page_that_changes_between_passes_waits() -> None:
    """It must be seen twice alike, be it equal to a merged page or not."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AA-")
        assert scanned(m, 2) == (1, 1, 0, 0)
        p.write(a + 2 * PAGE, b"A" * PAGE)
        assert scanned(m) == (1, 1, 0, 1)
        p.write(a + 2 * PAGE, b"B")
        assert scanned(m) == (1, 1, 0, 1)
        p.write(a + 2 * PAGE, b"A")
        assert scanned(m) == (1, 1, 0, 1)
        assert scanned(m) == (1, 2, 0, 0)


def test_only_mergeable_private_anonymous_pages() -> None:
    """Not shared memory, not page cache, not the zero page; copies of file pages, locked and forbidden pages are."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AA")
        p.madvise(a + PAGE, PAGE, Advice.UNMERGEABLE)
        file = m.create_file("f", b"A" * 4 * PAGE)
        b = p.mmap(None, 4 * PAGE, RW, Map.PRIVATE, file)
        s = p.mmap(None, PAGE, RW, SHARED)
        p.write(s, b"A" * PAGE)
        for where, n in ((b, 4), (s, 1)):
            p.madvise(where, n * PAGE, Advice.MERGEABLE)
        p.read(b + 2 * PAGE, 1)
        p.write(b, b"A")
        p.write(b + PAGE, b"A")
        p.mprotect(b + PAGE, PAGE, 0)
        assert scanned(m, 2) == (1, 2, 0, 0)
        assert pfn(p, a) == pfn(p, b) == pfn(p, b + PAGE)
        assert len({pfn(p, a), pfn(p, a + PAGE), pfn(p, b + 2 * PAGE)}) == 3


@every_mode
def test_fork(mode: ForkMode) -> None:
    """The child shares merged frames and its pages count from the next pass on; what fork shares is not merged anew."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = mergeable(p, "AAB")
        assert scanned(m, 2) == (1, 1, 1, 0)
        c = p.fork()
        assert m.ksm.stat(c.pid).ksm_rmap_items == 0
        assert c.read(a, 3 * PAGE) == p.read(a, 3 * PAGE)
        expected = (2, 4, 0, 0) if mode == ForkMode.EAGER else (1, 3, 1, 1)
        assert scanned(m, 2) == expected
        c.write(a, b"c")
        assert p.read(a, 1) == b"A"
        c.exit()
        assert figures(m) == expected
        assert scanned(m)[:2] == ((2, 1) if mode == ForkMode.EAGER else (1, 1))


@every_mode
def test_equal_pages_of_parent_and_child(mode: ForkMode) -> None:
    """Pages that fork shares, equal among each other: one frame for all four in the end."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = mergeable(p, "AA")
        c = p.fork()
        assert scanned(m, 2) == (1, 3, 0, 0)
        assert pfns(p, a, 2) == pfns(c, a, 2)
        c.write(a, b"c")
        assert mapcount(m, pfn(p, a)) == 3


def test_unmergeable_gives_frames_back() -> None:
    """A copy each, as a fault of the caller: clean, exclusive, and write-protected until it is written."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AAA")
        m.ksm.scan()
        before = p.faults
        p.madvise(a, 2 * PAGE, Advice.UNMERGEABLE)
        assert p.faults - before == counts(cow_copy=2)
        assert groups(p, a, 3) == "abc"
        assert (p.smaps()[0].private_clean, p.smaps()[0].ksm) == (2 * PAGE, 0)
        assert p.touch(a, PAGE, write=True) == counts(cow_reuse=1)
        assert p.read(a, 3 * PAGE) == b"A" * 3 * PAGE
        assert scanned(m) == (1, 0, 0, 0)


def test_unmergeable_without_memory() -> None:
    """Some pages have theirs by then, the rest and the advice stay."""
    with Machine("256KiB") as m:
        p = m.spawn()
        a = mergeable(p, "A" * 20)
        m.ksm.scan()
        b = anon(p, 60)
        with pytest.raises(MemoryError):
            p.touch(b, 60 * PAGE, write=True)
        with pytest.raises((MemoryError, SyscallError)):
            p.madvise(a, 20 * PAGE, Advice.UNMERGEABLE)
        m.verify()
        assert "mg" in p.maps()[0].flags
        assert p.read(a, 20 * PAGE) == b"A" * 20 * PAGE


def test_mremap_takes_merged_pages_apart() -> None:
    """They would turn up at addresses that ksmd knows nothing of (prep_move_vma())."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AA")
        m.ksm.scan()
        before = p.faults
        b = p.mremap(a, PAGE, PAGE, 3, A + 20 * PAGE)
        assert p.faults - before == counts(cow_copy=1)
        assert not is_ksm(m, pfn(p, b))
        assert scanned(m) == (1, 0, 0, 1)
        assert scanned(m) == (1, 1, 0, 0)


def test_pages_that_go_away() -> None:
    """munmap, DONTNEED, exit and exec take nothing apart; the counters follow at the next pass."""
    with machine() as m:
        p, q = m.spawn(), m.spawn()
        a, b = mergeable(p, "AAAA"), mergeable(q, "AB")
        assert scanned(m, 2) == (1, 4, 1, 0)
        p.munmap(a, PAGE)
        p.madvise(a + PAGE, PAGE, Advice.DONTNEED)
        assert mapcount(m, pfn(p, a + 2 * PAGE)) == 3
        assert figures(m) == (1, 4, 1, 0)
        assert scanned(m) == (1, 2, 1, 0)
        q.exit()
        assert scanned(m) == (1, 1, 0, 0)
        p.munmap(a, 4 * PAGE)
        assert scanned(m) == (0, 0, 0, 0)
        assert (m.meminfo().anon, m.ksm.counts.general_profit, b) == (0, 0, A)


def test_a_frame_that_is_used_again_is_not_mistaken() -> None:
    """The merged frame was freed and holds something else now."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AA")
        m.ksm.scan()
        p.munmap(a, 2 * PAGE)
        mergeable(p, "BBAA", A + 8 * PAGE)
        assert scanned(m, 2) == (2, 2, 0, 0)
        assert groups(p, A + 8 * PAGE, 4) == "aabb"
        assert p.read(A + 8 * PAGE, 4 * PAGE) == b"B" * 2 * PAGE + b"A" * 2 * PAGE


def test_a_frame_that_only_strangers_map_is_not_merged_with() -> None:
    """Here a child that was born before its parent's memory was mergeable."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 3, A)
        p.write(a + PAGE, b"A" * PAGE)
        c = p.fork()
        p.madvise(a, 3 * PAGE, Advice.MERGEABLE)
        p.write(a, b"A" * PAGE)
        assert scanned(m, 2) == (1, 1, 0, 0)
        assert pfn(p, a) == pfn(c, a + PAGE)
        p.write(a, b"B" * 2 * PAGE)
        p.write(a + 2 * PAGE, b"A" * PAGE)
        assert scanned(m) == (0, 0, 0, 3)
        assert scanned(m) == (1, 1, 1, 0)
        assert is_ksm(m, pfn(c, a + PAGE))
        assert not is_ksm(m, pfn(p, a + 2 * PAGE))


def test_zero_pages() -> None:
    """With use_zero_pages they become the zero page and count as such; UNMERGEABLE and writes take them back."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "00A")
        m.ksm.use_zero_pages = True
        assert scanned(m, 2) == (0, 0, 1, 2)
        assert pfns(p, a, 2) == [m.zero_pfn] * 2
        assert (m.ksm.counts.ksm_zero_pages, m.ksm.stat(p.pid).ksm_zero_pages, p.rss) == (2, 2, PAGE)
        assert scanned(m) == (0, 0, 1, 0)
        assert p.touch(a, PAGE, write=True) == counts(zero_fill=1)
        assert m.ksm.counts.ksm_zero_pages == 1
        p.madvise(a, 3 * PAGE, Advice.UNMERGEABLE)
        assert m.ksm.counts.ksm_zero_pages == 0
        assert p.read(a, 3 * PAGE) == bytes(2 * PAGE) + b"A" * PAGE
        assert p.touch(a + PAGE, PAGE, write=True) == counts(cow_reuse=1)


def test_max_page_sharing() -> None:
    """One frame stands for so many pages; the next equal ones get another."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "A" * 10)
        m.ksm.max_page_sharing = 4
        m.ksm.scan(2)
        found = m.ksm.counts
        assert sorted(map(groups(p, a, 10).count, set(groups(p, a, 10)))) == [2, 4, 4]
        assert (found.pages_shared, found.pages_sharing) == (3, 7)
        assert (found.stable_node_chains, found.stable_node_dups) == (1, 3)


def test_smart_scan_passes_over_pages_that_do_not_merge() -> None:
    """From the fourth pass on every other time, and so on."""
    with machine() as m:
        p = m.spawn()
        mergeable(p, "AB")
        m.ksm.smart_scan = True
        skipped = [m.ksm.scan(1).pages_skipped for _ in range(8)]
        assert skipped == [0, 0, 0, 0, 2, 2, 4, 6]


def test_huge_pages_are_split_to_be_merged() -> None:
    """Only those of which a page is merged."""
    with machine(memory="32MiB", thp="always") as m:
        p = m.spawn()
        a = p.mmap(0x4000_0000, 1024 * PAGE, RW, ANON | Map.FIXED)
        p.touch(a, 1024 * PAGE, write=True)
        for i in range(1024):
            p.write(a + i * PAGE, i.to_bytes(2, "little"))
        p.write(a + 7 * PAGE, b"\5\0")
        p.madvise(a, 1024 * PAGE, Advice.MERGEABLE)
        assert scanned(m, 2) == (1, 1, 1022, 0)
        assert p.smaps()[0].anonhugepages == 512 * PAGE
        assert pfn(p, a + 5 * PAGE) == pfn(p, a + 7 * PAGE)


def test_merged_pages_are_soft_clean_as_before() -> None:
    """Merging writes nothing; a write to a merged page is seen."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AAA")
        m.procfs.write(f"{p.pid}/clear_refs", b"4")
        p.write(a, b"A")
        m.ksm.scan()
        assert p.dirty_pages().tolist() == [a]
        p.write(a + PAGE, b"x")
        assert p.dirty_pages().tolist() == [a, a + PAGE]


def test_what_was_freed_lazily_and_waits_is_left_alone() -> None:
    """A page in the batch has a reference nobody can explain (write_protect_page())."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AA")
        m.ksm.scan(1)
        p.madvise(a + PAGE, PAGE, Advice.FREE)
        m.ksm.scan(1)
        assert groups(p, a, 2) == "ab"
        p.madvise(a, PAGE, Advice.COLD)
        m.ksm.scan()
        assert groups(p, a, 2) == "aa"


def test_errors() -> None:
    """Without bytes there is nothing to compare; the rest is said plainly."""
    with Machine("4MiB", contents=False) as m:
        p = m.spawn()
        anon(p, 2, A)
        p.madvise(A, 2 * PAGE, Advice.MERGEABLE)
        with pytest.raises(NotImplementedError, match="KSM"):
            m.ksm.scan()
        assert sum(figures(m)) == 0
    with machine() as m:
        with pytest.raises(ValueError, match="-1"):
            m.ksm.scan(-1)
        with pytest.raises(TypeError):
            m.ksm.scan("2")  # type: ignore[arg-type]
        with pytest.raises(SyscallError) as caught:
            m.ksm.stat(77)
        assert caught.value.name == "ESRCH"
        assert m.ksm.scan(0).full_scans == 0


def test_read_only_mappings_stay_read_only() -> None:
    """Permissions are the mapping's; made writable again, a write copies."""
    with machine() as m:
        p = m.spawn()
        a = mergeable(p, "AA")
        p.mprotect(a, PAGE, R)
        assert scanned(m, 2) == (1, 1, 0, 0)
        p.mprotect(a, PAGE, RW)
        assert p.touch(a, 2 * PAGE, write=True) == counts(cow_copy=2)
