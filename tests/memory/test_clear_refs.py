"""/proc/PID/clear_refs and soft-dirty pages (Documentation/admin-guide/mm/soft-dirty.rst, proc_pid_clear_refs(5))."""

from __future__ import annotations

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, counts, every_mode, filled, machine, pfns

from vmemu import Advice, ForkMode, Machine, Map, Process, VmemuError

SOFT = 1 << 55


def forget(m: Machine, p: Process, what: int = 4) -> None:
    m.procfs.write(f"{p.pid}/clear_refs", f"{what}\n".encode())


def dirty(p: Process, base: int, npages: int) -> list[int]:
    """Numbers of the dirty pages, from pagemap and from dirty_pages alike."""
    found = [i for i, entry in enumerate(p.pagemap(base, npages).tolist()) if entry & SOFT]
    pages = p.dirty_pages(base, npages * PAGE)
    assert pages.dtype.name == "uint64"
    assert pages.tolist() == [base + i * PAGE for i in found]
    return found


def referenced(p: Process) -> list[int]:
    """By mapping, in pages."""
    return [u.referenced // PAGE for u in p.smaps()]


@every_mode
def test_what_is_written_after_clearing_is_dirty(mode: ForkMode) -> None:
    """The first write to each page faults, copies nothing and marks it; reading marks nothing."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 6)
        forget(m, p)
        assert dirty(p, a, 6) == []
        assert p.dirty_pages().tolist() == []
        p.read(a, 6 * PAGE)
        assert p.touch(a + 2 * PAGE, 2 * PAGE, write=True) == counts(cow_reuse=2)
        assert p.touch(a + 2 * PAGE, 2 * PAGE, write=True) == counts(none=2)
        assert dirty(p, a, 6) == [2, 3]
        forget(m, p)
        p.write(a + PAGE - 1, b"two")
        assert dirty(p, a, 6) == [0, 1]
        assert p.read(a, 6 * PAGE)[PAGE - 1 : PAGE + 2] == b"two"


def test_new_mappings_are_dirty_from_end_to_end() -> None:
    """Present or not, and what they merge with; memory filled in an old one as well, read in an old one not."""
    with machine() as m:
        p = m.spawn()
        anon(p, 4, A)
        forget(m, p)
        p.read(A, 1)
        p.write(A + PAGE, b"x")
        assert dirty(p, A, 4) == [1]
        anon(p, 2, A + 6 * PAGE, prot=R)
        assert dirty(p, A, 8) == [1, 6, 7]
        assert ["sd" in v.flags for v in p.maps()] == [False, True]
        anon(p, 2, A + 4 * PAGE)
        assert dirty(p, A, 8) == list(range(8))
        assert len(p.maps()) == 2


def test_the_range_of_dirty_pages() -> None:
    """Address and length may be given, or either, or neither; pages count as a whole."""
    with machine() as m:
        p = m.spawn()
        filled(p, 4, A)
        assert p.dirty_pages(A + PAGE).tolist() == [A + i * PAGE for i in (1, 2, 3)]
        assert p.dirty_pages(A + 5, PAGE).tolist() == [A, A + PAGE]
        assert p.dirty_pages(length=A + PAGE).tolist() == [A]
        assert p.dirty_pages(A, 0).tolist() == []
        assert p.dirty_pages(0x7FFF_FFFF_F000, 1 << 60).tolist() == []


@pytest.mark.parametrize("soft_dirty", [None, True, False])
def test_when_it_shows(soft_dirty: bool | None) -> None:
    """From the start, from the first use on, or never: then clearing has no effect at all."""
    with machine(soft_dirty=soft_dirty) as m:
        p = m.spawn()
        a = filled(p, 2)
        shown = bool(p.pagemap(a, 1)[0] & SOFT), "sd" in p.maps()[0].flags
        assert shown == ((True, True) if soft_dirty else (False, False))
        forget(m, p)
        taken = p.touch(a, PAGE, write=True)
        assert taken == (counts(none=1) if soft_dirty is False else counts(cow_reuse=1))
        assert bool(p.pagemap(a, 1)[0] & SOFT) == (soft_dirty is not False)
        assert "sd" not in p.maps()[0].flags
        if soft_dirty is False:
            with pytest.raises(VmemuError, match="soft_dirty"):
                p.dirty_pages()


@every_mode
def test_fork_hands_it_on(mode: ForkMode) -> None:
    """The child's pages are as dirty as the parent's; clearing one side says nothing of the other."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 4)
        forget(m, p)
        p.write(a, b"p")
        c = p.fork()
        assert dirty(c, a, 4) == [0]
        forget(m, c)
        assert (dirty(c, a, 4), dirty(p, a, 4)) == ([], [0])
        c.write(a + PAGE, b"c")
        p.write(a + 2 * PAGE, b"p")
        assert (dirty(c, a, 4), dirty(p, a, 4)) == ([1], [0, 2])
        assert c.read(a, 3 * PAGE)[::PAGE] == b"p" + b"c" + b"\3"


def test_moved_pages_are_dirty() -> None:
    """mremap marks what it moves (move_soft_dirty_pte()), and nothing else of the mapping."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        p.write(a, b"x")
        p.write(a + 2 * PAGE, b"x")
        forget(m, p)
        b = p.mremap(a, 4 * PAGE, 4 * PAGE, 3, A)
        assert dirty(p, b, 4) == [0, 2]


@pytest.mark.parametrize("kind", ["shared", "tmpfs", "ext4", "private file"])
def test_file_and_shared_memory(kind: str) -> None:
    """Shared mappings are mapped read-only while they are watched, so that the first write is seen."""
    with machine() as m:
        p = m.spawn()
        if kind == "shared":
            a = p.mmap(None, 4 * PAGE, RW, SHARED)
        else:
            file = m.create_file("f", b"f" * 4 * PAGE, writenotify=kind == "ext4")
            a = p.mmap(None, 4 * PAGE, RW, Map.PRIVATE if kind == "private file" else Map.SHARED, file)
        p.write(a, b"x")
        forget(m, p)
        p.read(a, 4 * PAGE)
        assert dirty(p, a, 4) == []
        p.write(a, b"y")
        p.write(a + PAGE, b"y")
        assert dirty(p, a, 4) == [0, 1]
        assert p.read(a, 2 * PAGE)[::PAGE] == b"yy"


def test_mprotect_does_not_skip_the_fault() -> None:
    """Write permission comes back at once only to pages known to be dirty (pte_needs_soft_dirty_wp())."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 3)
        forget(m, p)
        p.write(a, b"x")
        p.mprotect(a, 3 * PAGE, R)
        p.mprotect(a, 3 * PAGE, RW)
        assert p.touch(a, 3 * PAGE, write=True) == counts(none=1, cow_reuse=2)
        assert dirty(p, a, 3) == [0, 1, 2]


def test_what_is_dropped_is_not_dirty() -> None:
    """An absent page of an old mapping is not; filled again, by the kernel or the CPU, it is."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 3)
        forget(m, p)
        p.write(a, b"x")
        p.madvise(a, 3 * PAGE, Advice.DONTNEED)
        assert dirty(p, a, 3) == []
        p.madvise(a, PAGE, Advice.POPULATE_WRITE)
        p.read(a + PAGE, 1)
        assert dirty(p, a, 3) == [0]


def test_huge_pages() -> None:
    """One bit for all of it; split, each page keeps what the whole said and the rest is told apart."""
    with machine(thp="always") as m:
        p = m.spawn()
        a = p.mmap(0x4000_0000, 1024 * PAGE, RW, ANON | Map.FIXED)
        p.touch(a, 1024 * PAGE, write=True)
        forget(m, p)
        assert dirty(p, a, 1024) == []
        assert p.touch(a + 5 * PAGE, 1, write=True) == counts(cow_reuse=1)
        assert dirty(p, a, 1024) == list(range(512))
        forget(m, p)
        p.mprotect(a, PAGE, R)
        p.mprotect(a, PAGE, RW)
        p.write(a + 7 * PAGE, b"x")
        assert dirty(p, a, 1024) == [7]
        b = p.mremap(a + 512 * PAGE, 512 * PAGE, 512 * PAGE, 3, 0x5000_0000)
        assert dirty(p, b, 512) == list(range(512))


@every_mode
def test_accessed_bits(mode: ForkMode) -> None:
    """1: all, 2: anonymous memory, 3: files and shared memory; in this process only."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 2, A)
        s = p.mmap(A + 4 * PAGE, PAGE, RW, SHARED | Map.FIXED)
        p.write(s, b"s")
        c = p.fork()
        c.read(a, 2 * PAGE)
        c.read(s, 1)
        for what, left in ((2, [0, 1]), (3, [0, 0])):
            forget(m, c, what)
            assert referenced(c) == left
        c.read(a, 2 * PAGE)
        c.read(s, 1)
        assert referenced(c) == [2, 1]
        forget(m, c, 1)
        assert (referenced(c), referenced(p)) == ([0, 0], [2, 1])
        assert c.touch(a, 2 * PAGE, write=False) == counts(none=2)
        assert pfns(p, a, 1) != [0]


def test_dirty_pages_of_odd_addresses() -> None:
    """An address is of 64 bits; above all mappings nothing is dirty."""
    with machine() as m:
        p = m.spawn()
        p.mmap(None, PAGE, RW, ANON)
        for address in (-1, 1 << 47, (1 << 64) - 1, -(1 << 70)):
            assert p.dirty_pages(address, PAGE).size == 0
