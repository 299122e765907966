"""brk(2)."""

from __future__ import annotations

import pytest
from machines import PAGE, RW, anon, every_mode, machine

from vmemu import ForkMode, Overcommit, SegmentationFault


def test_the_break_moves_by_bytes_and_the_mapping_by_pages() -> None:
    """brk returns the new break; the heap covers it in whole pages and is called [heap]."""
    with machine() as m:
        p = m.spawn()
        start = p.brk()
        assert p.brk(0) == start
        assert p.maps() == []
        assert p.brk(start + 1) == start + 1
        assert [(v.start, v.end, v.name, v.prot) for v in p.maps()] == [(start, start + PAGE, "[heap]", RW)]
        assert p.brk(start + 3 * PAGE) == start + 3 * PAGE
        p.write(start, b"h" * 3 * PAGE)
        assert p.brk(start + PAGE + 5) == start + PAGE + 5
        assert p.read(start, 2 * PAGE) == b"h" * 2 * PAGE
        with pytest.raises(SegmentationFault):
            p.read(start + 2 * PAGE, 1)
        assert p.brk(start + 3 * PAGE) == start + 3 * PAGE
        assert p.read(start + 2 * PAGE, PAGE) == bytes(PAGE)
        assert p.brk(start) == start
        assert p.maps() == []
        assert p.rss == 0


@pytest.mark.parametrize("new", [1, -1, 1 << 47, 0x7FFF_FFFF_F000, 1 << 63, (1 << 64) - 1])
def test_where_it_cannot_go_it_stays(new: int) -> None:
    """Below its start, beyond the address space: the break is returned as it was; never an error."""
    with machine() as m:
        p = m.spawn()
        top = p.brk(p.brk() + PAGE)
        maps = p.maps()
        assert p.brk(new) == top
        assert p.maps() == maps


def test_it_stops_before_other_mappings_and_limits() -> None:
    """A mapping in the way, more than may be promised, too many mappings: nothing moves."""
    with machine(overcommit=Overcommit.NEVER, memory=1000 * PAGE) as m:
        p = m.spawn()
        top = p.brk(p.brk() + PAGE)
        anon(p, 1, top + 10 * PAGE)
        assert p.brk(top + 9 * PAGE) == top + 9 * PAGE
        assert p.brk(top + 10 * PAGE) == top + 9 * PAGE
        assert p.brk(top + 20 * PAGE) == top + 9 * PAGE
        p.munmap(top + 10 * PAGE, PAGE)
        assert p.brk(top + 600 * PAGE) == top + 9 * PAGE
        assert p.brk(top + 400 * PAGE) == top + 400 * PAGE


@every_mode
def test_each_process_has_its_own(mode: ForkMode) -> None:
    """After fork the breaks move apart."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        start = p.brk()
        p.brk(start + 2 * PAGE)
        p.write(start, b"p")
        c = p.fork()
        assert c.brk(start + 4 * PAGE) == start + 4 * PAGE
        assert p.brk(start + PAGE) == start + PAGE
        c.write(start, b"c" * 4 * PAGE)
        assert p.read(start, 1) == b"p"
        assert c.brk() == start + 4 * PAGE


def test_it_extends_no_mapping_below_its_start() -> None:
    """Private memory that ends where the heap starts, as the bss of a program loaded without randomisation does, stays
    a mapping of its own; the heap itself grows (vma_prev_limit() in brk(2))."""
    with machine() as m:
        p = m.spawn()
        start = p.brk()
        anon(p, 2, start - 2 * PAGE)
        for end in (start + PAGE, start + 3 * PAGE, start, start + PAGE):
            assert p.brk(end) == end
            heap = [(start, end, "[heap]")] if end > start else []
            assert [(v.start, v.end, v.name) for v in p.maps()] == [(start - 2 * PAGE, start, ""), *heap]
        p.munmap(start, PAGE)
        anon(p, 1, start)  # by mmap they become one
        assert [(v.start, v.end) for v in p.maps()] == [(start - 2 * PAGE, start + PAGE)]
        p.brk(start + 2 * PAGE)  # and what holds the start of the heap is looked at
        assert [(v.start, v.end) for v in p.maps()] == [(start - 2 * PAGE, start + 2 * PAGE)]
