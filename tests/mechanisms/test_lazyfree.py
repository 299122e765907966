"""Pages that may go: MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED (madvise(2))."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import ANON, PAGE, RW, SHARED, R, anon, counts, every_mode, filled, machine, pfn, pfns

from vmemu import Advice, ForkMode, Machine, Map, Process


def usage(p: Process, field: str) -> int:
    """Sum over all mappings, in pages."""
    return int(sum(getattr(u, field) for u in p.smaps())) // PAGE


def drain(p: Process, a: int) -> None:
    """MADV_COLD begins with it; on a page where nothing is."""
    p.madvise(a, PAGE, Advice.COLD)


def swap_backed(m: Machine, frame: int) -> bool:
    """From /proc/kpageflags."""
    return bool(int.from_bytes(m.procfs.read("kpageflags")[8 * frame : 8 * frame + 8], "little") >> 14 & 1)


def test_free_keeps_pages_until_they_are_wanted_elsewhere() -> None:
    """Clean, not accessed, still there; reading and writing take no fault, and a write makes the page dirty again."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 3)
        before = pfns(p, a, 3)
        p.madvise(a, 2 * PAGE, Advice.FREE)
        assert (usage(p, "private_clean"), usage(p, "private_dirty"), usage(p, "referenced")) == (2, 1, 1)
        assert p.read(a, 1) == b"\1"
        assert p.touch(a, 2 * PAGE, write=True) == counts(none=2)
        assert (usage(p, "private_dirty"), pfns(p, a, 3)) == (3, before)


def test_marks_are_seen_a_batch_later() -> None:
    """LazyFree of smaps counts what the next madvise, mlock or populate has drained, or 31 pages at once."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 40)
        b = anon(p, 4)
        p.madvise(a, PAGE, Advice.FREE)
        assert usage(p, "lazyfree") == 0
        p.madvise(a + PAGE, PAGE, Advice.FREE)
        assert usage(p, "lazyfree") == 1
        p.madvise(a + 2 * PAGE, 32 * PAGE, Advice.FREE)
        assert usage(p, "lazyfree") == 2 + 31
        for call in (
            lambda: p.madvise(b, PAGE, Advice.WILLNEED),
            lambda: p.madvise(b, PAGE, Advice.PAGEOUT),
            lambda: p.madvise(b, PAGE, Advice.POPULATE_READ),
            lambda: p.mlock(b, PAGE),
            lambda: p.munlock(b, PAGE),
            lambda: p.mmap(None, PAGE, RW, ANON | Map.POPULATE),
        ):
            p.touch(a, 40 * PAGE, write=True)
            p.madvise(a, 40 * PAGE, Advice.DONTNEED)
            p.touch(a, PAGE, write=True)
            p.madvise(a, PAGE, Advice.FREE)
            assert usage(p, "lazyfree") == 0
            call()
            assert usage(p, "lazyfree") == 1
        assert m.vmstat()["pglazyfree"] == 2 + 31 + 6


def test_a_page_in_the_batch_has_one_reference_more() -> None:
    """The last owner copies a page that was just freed; once drained, it reuses it (wp_can_reuse_anon_folio())."""
    with machine() as m:
        p = m.spawn()
        a, b = filled(p, 2), anon(p)
        p.fork().exit()
        p.madvise(a, PAGE, Advice.FREE)
        assert p.touch(a, 2 * PAGE, write=True) == counts(cow_copy=1, cow_reuse=1)
        p.fork().exit()
        p.madvise(a, PAGE, Advice.FREE)
        drain(p, b)
        assert p.touch(a, PAGE, write=True) == counts(cow_reuse=1)


def test_free_of_pages_shared_after_fork() -> None:
    """One side's entry becomes clean; what the other side's still says keeps the page."""
    with machine() as m:
        p = m.spawn()
        a, b = filled(p, 1), anon(p)
        c = p.fork()
        c.madvise(a, PAGE, Advice.FREE)
        drain(c, b)
        assert (usage(c, "shared_clean"), usage(c, "lazyfree")) == (1, 1)
        assert (usage(p, "shared_dirty"), usage(p, "lazyfree")) == (1, 0)
        assert not swap_backed(m, pfn(p, a))
        c.exit()
        p.madvise(a, PAGE, Advice.PAGEOUT)
        assert p.read(a, 1) == b"\1"
        assert swap_backed(m, pfn(p, a))


def test_what_was_written_by_the_kernel_is_dirty_for_all() -> None:
    """POPULATE_WRITE marks the frame, not the entry: then MADV_FREE of one of two owners does nothing."""
    with machine() as m:
        p = m.spawn()
        a, b = filled(p, 1), anon(p)
        p.madvise(a, PAGE, Advice.FREE)
        p.madvise(a, PAGE, Advice.POPULATE_WRITE)
        assert (usage(p, "private_dirty"), usage(p, "lazyfree")) == (1, 0)
        c = p.fork()
        for side in (p, c):
            side.madvise(a, PAGE, Advice.FREE)
            drain(side, b)
            assert (usage(side, "shared_dirty"), usage(side, "lazyfree")) == (1, 0)
        c.exit()
        p.madvise(a, PAGE, Advice.FREE)
        drain(p, b)
        assert (usage(p, "private_clean"), usage(p, "lazyfree")) == (1, 1)


def test_what_somebody_locked_is_not_marked() -> None:
    """The entry is clean all the same; once nobody has it locked, the advice counts."""
    with machine() as m:
        p = m.spawn()
        a, b = filled(p, 1), anon(p)
        p.mlock(a, PAGE)
        c = p.fork()
        for unlock in (False, True):
            if unlock:
                p.munlock(a, PAGE)
            c.madvise(a, PAGE, Advice.FREE)
            drain(c, b)
            assert (usage(c, "shared_clean"), usage(c, "lazyfree")) == (1, unlock)


@pytest.mark.parametrize("then", ["nothing", "read", "written", "shared", "PROT_NONE"])
def test_pageout_takes_what_was_freed(then: str) -> None:
    """A clean page mapped once goes and reads as zeros; one written since stays and is ordinary again."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2)
        p.madvise(a, PAGE, Advice.FREE)
        if then == "read":
            p.read(a, 1)
        elif then == "written":
            p.write(a, b"w")
        elif then == "shared":
            p.fork()
        elif then == "PROT_NONE":
            p.mprotect(a, 2 * PAGE, 0)
        p.madvise(a, 2 * PAGE, Advice.PAGEOUT)
        kept = then in ("written", "shared")
        assert [f != 0 for f in pfns(p, a, 2)] == [kept, True]
        assert m.vmstat()["pglazyfreed"] == (not kept)
        if then == "written":
            assert swap_backed(m, pfn(p, a))
        p.mprotect(a, 2 * PAGE, RW)
        assert p.read(a, 1) == {"written": b"w", "shared": b"\1"}.get(then, b"\0")
        assert p.read(a + PAGE, 1) == b"\2"


def test_droppable_memory_need_not_be_kept() -> None:
    """MAP_DROPPABLE: not swap-backed from the start, lazily free while clean, gone when paged out, written or not."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * PAGE, RW, Map.ANONYMOUS | Map.DROPPABLE)
        p.write(a, b"x")
        assert (usage(p, "lazyfree"), swap_backed(m, pfn(p, a))) == (0, False)
        p.madvise(a, PAGE, Advice.FREE)
        assert usage(p, "lazyfree") == 1
        p.write(a, b"y")
        p.madvise(a, PAGE, Advice.MERGEABLE)
        assert "mg" not in p.maps()[0].flags
        p.madvise(a, PAGE, Advice.PAGEOUT)
        assert p.read(a, 1) == b"\0"


def test_cold_takes_the_accessed_bit_where_nobody_else_maps_the_page() -> None:
    """Frames and contents stay. Pages that a child shares, and pages mapped twice, keep theirs."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2)
        s = p.mmap(None, PAGE, RW, SHARED)
        p.write(s, b"s")
        p.madvise(a, 2 * PAGE, Advice.COLD)
        p.madvise(s, PAGE, Advice.COLD)
        assert usage(p, "referenced") == 0
        assert p.touch(a, 2 * PAGE, write=True) == counts(none=2)
        c = p.fork()
        p.madvise(a, 2 * PAGE, Advice.COLD)
        assert usage(p, "referenced") == 2
        p.write(a, b"own")
        p.madvise(a, 2 * PAGE, Advice.COLD)
        assert usage(p, "referenced") == 1
        assert c.read(a, 1) == b"\1"


@pytest.mark.parametrize("how", [Map.SHARED, Map.PRIVATE], ids=["shared", "private"])
def test_pageout_drops_clean_pages_of_a_file(tmp_path: Path, how: Map) -> None:
    """They leave mapping and cache, and the next access reads the file: a major fault. Copies stay."""
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([65 + i]) * PAGE for i in range(8)))
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 8 * PAGE, R if how == Map.SHARED else RW, how, m.open_file(path))
        p.read(a, 1)
        if how == Map.PRIVATE:
            p.write(a + PAGE, b"copy")
        before = m.meminfo().file
        p.madvise(a, 4 * PAGE, Advice.PAGEOUT)
        assert [f != 0 for f in pfns(p, a, 8)] == [False, how == Map.PRIVATE, False, False] + [True] * 4
        assert before - m.meminfo().file == (3 if how == Map.PRIVATE else 4) * PAGE
        assert p.mincore(a, 8 * PAGE) == bytes([0, how == Map.PRIVATE, 0, 0, 1, 1, 1, 1])
        taken = p.touch(a, PAGE, write=False)
        assert (taken.major, p.read(a, 3 * PAGE)[2 * PAGE :: PAGE]) == (1, b"C")


def test_pageout_leaves_what_others_map_or_nobody_does(tmp_path: Path) -> None:
    """Pages mapped twice stay mapped; cached pages that this mapping does not map stay cached."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8 * PAGE)
    with machine(fault_around=1) as m:
        p = m.spawn()
        file = m.open_file(path)
        a, b = (p.mmap(None, 8 * PAGE, R, Map.SHARED, file) for _ in range(2))
        p.read(a, 1)
        p.read(b, 1)
        p.read(a + PAGE, 1)
        p.madvise(a, 8 * PAGE, Advice.PAGEOUT)
        assert [f != 0 for f in pfns(p, a, 2)] == [True, False]
        assert p.mincore(a, 8 * PAGE) == bytes([1, 0, 1, 1, 1, 1, 1, 1])


def test_pageout_of_written_pages_unmaps_them() -> None:
    """A dirty page must be written first, which is not waited for: it stays in the cache and the write is not lost."""
    with machine() as m:
        p = m.spawn()
        data = b"".join(bytes([65 + i]) * PAGE for i in range(4))
        file = m.create_file("f", data, writenotify=True)
        a = p.mmap(None, 4 * PAGE, RW, Map.SHARED, file)
        p.write(a + PAGE, b"written")
        p.read(a, 1)
        p.madvise(a, 4 * PAGE, Advice.PAGEOUT)
        assert pfns(p, a, 4) == [0] * 4
        assert p.mincore(a, 4 * PAGE) == b"\0\1\0\0"
        assert p.touch(a + PAGE, PAGE, write=False).minor == 1
        assert p.touch(a + PAGE, PAGE, write=True) == counts(file_minor=1)
        assert p.touch(a, PAGE, write=False).major == 1
        assert file.pread(4 * PAGE, 0) == data[:PAGE] + b"written" + data[PAGE + 7 :]


def test_fault_around_passes_over_what_is_to_be_reclaimed() -> None:
    """A dirty page that was paged out is mapped by a fault of its own, and by fault-around from then on."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 4 * PAGE, RW, Map.SHARED, m.create_file("f", b"x" * 4 * PAGE, writenotify=True))
        p.write(a, b"w")
        p.madvise(a, PAGE, Advice.PAGEOUT)
        p.read(a + PAGE, 1)
        assert [f != 0 for f in pfns(p, a, 4)] == [False, True, True, True]
        assert p.touch(a, PAGE, write=False) == counts(file_minor=1)
        p.madvise(a, 4 * PAGE, Advice.DONTNEED)
        p.read(a + PAGE, 1)
        assert [f != 0 for f in pfns(p, a, 4)] == [True] * 4


def test_a_file_that_left_the_cache_keeps_its_size() -> None:
    """truncate cuts what is not in memory as well; growing again shows zeros."""
    with machine() as m:
        p = m.spawn()
        file = m.create_file("f", b"x" * 3 * PAGE, writenotify=True)
        a = p.mmap(None, 3 * PAGE, RW, Map.SHARED, file)
        p.read(a, 1)
        p.madvise(a, 3 * PAGE, Advice.PAGEOUT)
        file.truncate(PAGE + 100)
        file.truncate(3 * PAGE)
        assert file.pread(3 * PAGE, 0) == b"x" * (PAGE + 100) + bytes(2 * PAGE - 100)


def test_pageout_of_shared_memory() -> None:
    """Without swap it stays in memory, unmapped; a page that was never written is not worth keeping."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 4 * PAGE, RW, SHARED)
        p.write(a, b"kept")
        p.read(a + PAGE, 1)
        p.madvise(a, 4 * PAGE, Advice.PAGEOUT)
        assert pfns(p, a, 4) == [0] * 4
        assert p.mincore(a, 4 * PAGE) == b"\1\0\0\0"
        assert m.meminfo().shmem == PAGE
        assert p.read(a, 4) == b"kept"


@every_mode
def test_pageout_in_a_child(mode: ForkMode) -> None:
    """Whatever fork copied: the parent's pages are the parent's."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 3)
        c = p.fork()
        c.write(a + PAGE, b"c")
        c.madvise(a, 2 * PAGE, Advice.FREE)
        c.madvise(a, 3 * PAGE, Advice.COLD)
        c.madvise(a, 3 * PAGE, Advice.PAGEOUT)
        assert c.read(a + PAGE, 1) == b"\0"
        assert p.read(a, 3 * PAGE) == b"\1" * PAGE + b"\2" * PAGE + b"\3" * PAGE


def test_willneed_reads_ahead(tmp_path: Path) -> None:
    """The pages of the range are in the cache, the first access is a minor fault."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * (5 * PAGE + 1))
    with machine(fault_around=1) as m:
        p = m.spawn()
        a = p.mmap(None, 8 * PAGE, R, Map.PRIVATE, m.open_file(path))
        p.madvise(a + PAGE, 2 * PAGE, Advice.WILLNEED)
        assert p.mincore(a, 8 * PAGE) == bytes([0, 1, 1, 0, 0, 0, 0, 0])
        assert p.touch(a + PAGE, PAGE, write=False) == counts(file_minor=1)
        p.madvise(a, 8 * PAGE, Advice.WILLNEED)
        assert p.mincore(a, 8 * PAGE) == bytes([1, 1, 1, 1, 1, 1, 0, 0])


def test_mergeable_is_a_flag_of_private_memory() -> None:
    """Shared mappings take the advice and ignore it (ksm_madvise())."""
    with machine() as m:
        p = m.spawn()
        a, s = anon(p, 4), p.mmap(None, PAGE, RW, SHARED)
        p.madvise(a, 2 * PAGE, Advice.MERGEABLE)
        p.madvise(s, PAGE, Advice.MERGEABLE)
        assert [(v.size // PAGE, "mg" in v.flags) for v in p.maps() if not v.shared] == [(2, True), (2, False)]
        assert not any("mg" in v.flags for v in p.maps() if v.shared)
        assert ["mg" in v.flags for v in p.fork().maps() if not v.shared] == [True, False]
        p.madvise(a, 4 * PAGE, Advice.UNMERGEABLE)
        assert [v.size // PAGE for v in p.maps() if not v.shared] == [4]


def huge(m: Machine) -> tuple[Process, int]:
    """A process with a huge page, something other than zero in all of it."""
    p = m.spawn()
    a = p.mmap(0x4000_0000, 512 * PAGE, RW, ANON | Map.FIXED)
    p.madvise(a, 512 * PAGE, Advice.HUGEPAGE)
    p.write(a, b"x" * 512 * PAGE)
    return p, a


def test_a_huge_page_is_freed_at_once_and_whole() -> None:
    """It waits in no batch; clean it goes as one."""
    with machine(thp="madvise") as m:
        p, a = huge(m)
        p.madvise(a, 512 * PAGE, Advice.FREE)
        assert [usage(p, f) for f in ("private_clean", "lazyfree", "anonhugepages")] == [512, 512, 512]
        p.madvise(a, 512 * PAGE, Advice.PAGEOUT)
        assert (usage(p, "rss"), m.meminfo().anon) == (0, 0)


def test_part_of_a_huge_page_is_freed() -> None:
    """The folio is split; the marks of small pages wait for their batch, 31 at a time."""
    with machine(thp="madvise") as m:
        p, a = huge(m)
        p.madvise(a, 256 * PAGE, Advice.FREE)
        assert [usage(p, f) for f in ("private_clean", "private_dirty", "lazyfree")] == [256, 256, 8 * 31]
        assert (usage(p, "anonhugepages"), m.vmstat()["thp_split_page"]) == (0, 1)
        p.madvise(a, 512 * PAGE, Advice.PAGEOUT)
        assert usage(p, "rss") == 256


def test_a_huge_page_in_small_entries() -> None:
    """All of it, or what is left of it, is marked as its frames are; partly unmapped, frame by frame."""
    with machine(thp="madvise") as m:
        p, a = huge(m)
        p.mprotect(a, PAGE, R)
        p.mprotect(a, 512 * PAGE, RW)
        p.madvise(a, 512 * PAGE, Advice.COLD)
        assert (usage(p, "anonhugepages"), usage(p, "referenced")) == (0, 0)
        p.madvise(a, 512 * PAGE, Advice.FREE)
        assert usage(p, "lazyfree") == 512
        q, b = huge(m)
        q.mprotect(b, PAGE, R)
        q.madvise(b, 100 * PAGE, Advice.DONTNEED)
        q.madvise(b, 512 * PAGE, Advice.FREE)
        assert usage(q, "lazyfree") == 412 // 31 * 31


@pytest.mark.parametrize("advice", [Advice.FREE, Advice.COLD, Advice.PAGEOUT], ids=lambda a: a.name)
def test_a_huge_page_that_a_child_shares_is_left_alone(advice: Advice) -> None:
    """Not even split where the range ends inside it."""
    with machine(thp="madvise") as m:
        p, a = huge(m)
        c = p.fork()
        before = [process.smaps() for process in (p, c)]
        p.madvise(a, 256 * PAGE, advice)
        p.madvise(a, 512 * PAGE, advice)
        assert [process.smaps() for process in (p, c)] == before


def test_paging_out_a_huge_page_without_swap_makes_small_ones() -> None:
    """They stay. What was freed lazily and then written stays too, and is wanted again."""
    with machine(thp="madvise") as m:
        for freed in (False, True):
            p, a = huge(m)
            if freed:
                p.madvise(a, 512 * PAGE, Advice.FREE)
                p.write(a + 5 * PAGE, b"w")
            p.madvise(a, 512 * PAGE, Advice.PAGEOUT)
            assert [usage(p, f) for f in ("rss", "private_dirty", "anonhugepages")] == [512, 512, 0]
            assert swap_backed(m, pfn(p, a))
            p.exit()


def test_cold_in_part_of_a_huge_page() -> None:
    """It is split for that."""
    with machine(thp="madvise") as m:
        p, a = huge(m)
        p.madvise(a, 512 * PAGE, Advice.COLD)
        assert (usage(p, "referenced"), usage(p, "anonhugepages")) == (0, 512)
        p.touch(a, PAGE, write=False)
        p.madvise(a + 512 * PAGE - PAGE, PAGE, Advice.COLD)
        assert (usage(p, "referenced"), usage(p, "anonhugepages")) == (511, 0)
