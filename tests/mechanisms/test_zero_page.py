"""The zero page: what reads of untouched memory cost, and what they would cost without it."""

from __future__ import annotations

import pytest
from machines import (
    ANON,
    PAGE,
    RW,
    R,
    anon,
    change,
    counts,
    every_mode,
    machine,
    mapcount,
    pfn,
    pfns,
    prots,
    sharing_mode,
)

from vmemu import ForkMode, Map, Prot, SegmentationFault

N = 8
ZERO_PAGE_FLAG = 1 << 24


def test_anonymous_reads_map_the_one_zero_page_of_the_machine() -> None:
    """Anonymous reads map one zero page, machine-wide, which is in nobody's RSS and takes no frame."""
    with machine() as m:
        p, q = m.spawn(), m.spawn()
        a, b = anon(p, N), anon(q, N, prot=R)
        before = m.meminfo()
        assert p.touch(a, N * PAGE) == counts(zero_map=N)
        assert q.read(b, N * PAGE) == bytes(N * PAGE)
        assert set(pfns(p, a, N)) == set(pfns(q, b, N)) == {m.zero_pfn}
        assert prots(p, a, N) == [R] * N
        assert (p.rss, p.pss, p.uss, q.rss) == (0, 0, 0, 0)
        moved = change(before, m.meminfo())
        assert moved == {"free": -8, "page_tables": 8}  # a path of four tables for each process, nothing else
        assert p.touch(a, N * PAGE) == counts(none=N)
        assert mapcount(m, m.zero_pfn or 0) == 0
        flags = m.procfs.read("kpageflags")
        zeros = [
            i for i in range(len(flags) // 8) if int.from_bytes(flags[8 * i : 8 * i + 8], "little") & ZERO_PAGE_FLAG
        ]
        assert zeros == [m.zero_pfn]


def test_first_write_gets_a_zeroed_frame_of_its_own() -> None:
    """The first write, after a read or not, gets a zeroed frame: zero_fill, nothing is copied; the zero page stays
    zero."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        p.touch(a, 2 * PAGE)
        before = m.meminfo()
        assert p.touch(a, 4 * PAGE, write=True) == counts(zero_fill=4)
        assert change(before, m.meminfo())["anon"] == 4
        assert m.frame_stats().copied == 0
        assert m.zero_pfn not in pfns(p, a, 4)
        assert len(set(pfns(p, a, 4))) == 4
        assert p.rss == p.uss == 4 * PAGE
        p.write(a, b"x" * PAGE)
        b = anon(p)
        assert p.read(b, PAGE) == bytes(PAGE)
        assert p.touch(a, 4 * PAGE, write=True) == counts(none=4)


def test_frames_that_were_used_before_come_zeroed() -> None:
    """A frame that held somebody's bytes is zero for the next one."""
    with machine(memory=64 * PAGE) as m:
        for round_ in range(5):
            p = m.spawn()
            a = anon(p, 40)
            for i in range(40):
                assert p.read(a + i * PAGE, PAGE) == bytes(PAGE)
            p.touch(a, 40 * PAGE, write=True)
            assert p.read(a, 40 * PAGE) == bytes(40 * PAGE)
            p.write(a, bytes([round_ + 1]) * (40 * PAGE))
            p.exit()


def test_without_a_zero_page_every_read_takes_a_frame() -> None:
    """Machine(zero_page=False): reads fill, and the counts show what the zero page saves."""
    with machine(zero_page=False) as m:
        assert m.zero_pfn is None
        p = m.spawn()
        a = anon(p, N)
        before = m.meminfo()
        assert p.touch(a, N * PAGE) == counts(zero_fill=N)
        assert change(before, m.meminfo())["anon"] == N
        assert len(set(pfns(p, a, N))) == N
        assert p.rss == N * PAGE
        assert p.touch(a, N * PAGE, write=True) == counts(none=N)
        assert p.read(a, PAGE) == bytes(PAGE)
        flags = m.procfs.read("kpageflags")
        assert not any(flags[8 * i + 3] & 1 for i in range(len(flags) // 8))


@every_mode
def test_fork_leaves_pages_that_only_held_the_zero_page_to_fault_again(mode: ForkMode) -> None:
    """Memory that was only read has no anon_vma: fork copies no entry of it (COW, EAGER), the child faults for itself.
    Where one page was written, the entries of the zero page are copied as well."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a, b = anon(p, 4), anon(p, 4, address=0x2000_0000)
        p.touch(a, 4 * PAGE)
        p.touch(b, 4 * PAGE)
        p.write(b, b"x")
        c = p.fork()
        refault = mode != ForkMode.ON_DEMAND
        assert c.touch(a, 4 * PAGE) == (counts(zero_map=4) if refault else counts(none=4))
        assert c.touch(b, 4 * PAGE) == counts(none=4)
        assert pfns(c, b, 4)[1:] == [m.zero_pfn] * 3
        assert c.touch(b + PAGE, PAGE, write=True) == counts(zero_fill=1)
        assert pfn(p, b + PAGE) == m.zero_pfn
        assert m.frame_stats().copied == (1 if mode == ForkMode.EAGER else 0)


@sharing_mode
def test_writes_to_the_zero_page_after_fork_copy_nothing(mode: ForkMode) -> None:
    """Parent and child write where both map the zero page: two zeroed frames, no copy, and neither sees the other."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = anon(p, 2)
        p.write(a, b"x")
        p.touch(a + PAGE, PAGE)
        c = p.fork()
        p.write(a + PAGE, b"p")
        c.write(a + PAGE + 1, b"c")
        assert p.faults - counts(zero_fill=1, zero_map=1) == counts(zero_fill=1)
        assert c.faults == counts(zero_fill=1)
        assert (p.read(a + PAGE, 3), c.read(a + PAGE, 3)) == (b"p\0\0", b"\0c\0")
        assert m.frame_stats().copied == 0


def test_shared_memory_does_not_use_the_zero_page() -> None:
    """A read of untouched shared memory takes a frame: others must see what is written there later."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * PAGE, RW, Map.SHARED | Map.ANONYMOUS)
        assert p.touch(a, 2 * PAGE) == counts(shm_fill=2)
        assert m.zero_pfn not in pfns(p, a, 2)
        assert p.rss == p.rss_by_kind.shmem == 2 * PAGE


@pytest.mark.parametrize("prot", [R, RW, Prot.READ | Prot.EXEC, Prot.WRITE])
def test_the_zero_page_is_never_writable(prot: Prot) -> None:
    """Whatever the mapping allows, the entry has no write permission, also after mprotect."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, PAGE, prot, ANON)
        p.touch(a, PAGE)
        assert not p.translate(a).prot & Prot.WRITE  # type: ignore[union-attr]
        p.mprotect(a, PAGE, R)
        with pytest.raises(SegmentationFault):
            p.write(a, b"x")
        p.mprotect(a, PAGE, RW)
        assert not p.translate(a).prot & Prot.WRITE  # type: ignore[union-attr]
        assert p.touch(a, PAGE, write=True) == counts(zero_fill=1)
