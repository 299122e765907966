"""Guard regions: MADV_GUARD_INSTALL and MADV_GUARD_REMOVE (madvise(2); madvise_guard_install())."""

from __future__ import annotations

import pytest
from machines import ANON, GUARD, PAGE, RW, SHARED, A, R, anon, counts, every_mode, filled, machine, mapcount, pfn

from vmemu import Advice, BusError, FaultKind, ForkMode, Machine, Map, Process, SegmentationFault, SyscallError


def install(p: Process, address: int, npages: int = 1) -> None:
    p.madvise(address, npages * PAGE, Advice.GUARD_INSTALL)


def remove(p: Process, address: int, npages: int = 1) -> None:
    p.madvise(address, npages * PAGE, Advice.GUARD_REMOVE)


def flags(p: Process) -> list[tuple[int, bool]]:
    """Mappings: pages, and whether they ever had a guard."""
    return [(v.size // PAGE, "gu" in v.flags) for v in p.maps()]


def test_a_guard_is_as_if_nothing_were_mapped() -> None:
    """Read, write and fetch give MAPERR and count nothing; the frame is gone, the mapping stays one."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 3)
        before = p.faults
        anonymous = m.meminfo().anon
        install(p, a + PAGE)
        for access in (
            lambda: p.read(a + PAGE, 1),
            lambda: p.write(a + PAGE, b"x"),
            lambda: p.touch(a + PAGE, 1, True),
        ):
            with pytest.raises(SegmentationFault) as caught:
                access()
            assert (caught.value.kind, caught.value.address) == (FaultKind.SEGV_MAPERR, a + PAGE)
        assert p.access([a + PAGE, a], write=True).tolist() == [FaultKind.SEGV_MAPERR, FaultKind.NONE]
        assert (p.faults - before).total == 0
        assert m.meminfo().anon == anonymous - PAGE
        assert flags(p) == [(3, True)]
        assert p.pagemap(a, 3)[1] == GUARD
        assert p.translate(a + PAGE) is None
        assert p.mincore(a, 3 * PAGE) == b"\1\0\1"
        assert (p.rss, p.read(a, 1), p.read(a + 2 * PAGE, 1)) == (2 * PAGE, b"\1", b"\3")


def test_permission_is_looked_at_first() -> None:
    """In a mapping that forbids the access a guard is ACCERR."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 2, prot=0)
        install(p, a)
        with pytest.raises(SegmentationFault) as caught:
            p.read(a, 1)
        assert caught.value.kind == FaultKind.SEGV_ACCERR
        p.mprotect(a, 2 * PAGE, R)
        with pytest.raises(SegmentationFault) as caught:
            p.read(a, 1)
        assert caught.value.kind == FaultKind.SEGV_MAPERR


def test_removing_gives_untouched_memory() -> None:
    """Only guards go; the mapping stays marked for good, and what is between stays."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 4)
        install(p, a)
        install(p, a + 2 * PAGE, 2)
        remove(p, a, 3)
        assert p.read(a, 3 * PAGE) == bytes(PAGE) + b"\2" * PAGE + bytes(PAGE)
        assert p.pagemap(a, 4)[3] == GUARD
        assert flags(p) == [(4, True)]


@pytest.mark.parametrize("advice", [Advice.DONTNEED, Advice.DONTNEED_LOCKED, Advice.WILLNEED], ids=lambda a: a.name)
def test_advice_that_leaves_guards(advice: Advice) -> None:
    """Zapping pages is not unmapping them: guards stay (zap_drop_markers())."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 3)
        install(p, a + PAGE)
        p.madvise(a, 3 * PAGE, advice)
        assert p.pagemap(a, 3)[1] == GUARD


def test_what_goes_with_the_mapping() -> None:
    """munmap and a mapping on top drop guards; the place is as new."""
    with machine() as m:
        p = m.spawn()
        anon(p, 4, A)
        install(p, A, 4)
        p.munmap(A, PAGE)
        anon(p, 2, A)
        assert p.read(A, 2 * PAGE) == bytes(2 * PAGE)
        assert p.pagemap(A, 4).tolist()[2:] == [GUARD, GUARD]


@every_mode
def test_fork_copies_guards(mode: ForkMode) -> None:
    """The child has them, and each side takes off its own; a mapping with guards is copied like one with frames."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = anon(p, 3)
        p.read(a, 1)
        install(p, a + PAGE)
        c = p.fork()
        assert c.pagemap(a, 3)[1] == GUARD
        assert pfn(c, a) == m.zero_pfn
        assert flags(c) == [(3, True)]
        remove(c, a + PAGE)
        c.write(a + PAGE, b"c")
        with pytest.raises(SegmentationFault):
            p.read(a + PAGE, 1)
        grandchild = c.fork()
        install(grandchild, a, 3)
        assert c.read(a + PAGE, 1) == b"c"
        with pytest.raises(SegmentationFault):
            grandchild.read(a + PAGE, 1)


@every_mode
def test_wipeonfork_wipes_guards(mode: ForkMode) -> None:
    """The child's mapping is empty and still marked."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = anon(p, 2)
        install(p, a)
        p.madvise(a, 2 * PAGE, Advice.WIPEONFORK)
        c = p.fork()
        assert c.read(a, PAGE) == bytes(PAGE)
        assert flags(c) == [(2, True)]


@pytest.mark.parametrize("kind", ["shared", "file shared", "file private"])
def test_memory_that_others_see(kind: str) -> None:
    """Guards are this mapping's: the object keeps its pages. Forked, its pages are copied with the guards."""
    with machine(fault_around=1) as m:
        p = m.spawn()
        file = m.create_file("f", b"f" * 4 * PAGE) if kind != "shared" else None
        how = Map.PRIVATE if kind == "file private" else Map.SHARED
        a = p.mmap(None, 4 * PAGE, RW, how if file else SHARED, file)
        p.write(a, b"one")
        p.read(a + 2 * PAGE, 1)
        p.read(a + 3 * PAGE, 1)
        install(p, a, 3)
        assert file is None or file.pread(3, 0) == (b"fff" if kind == "file private" else b"one")
        c = p.fork()
        assert [int(entry) for entry in c.pagemap(a, 3)] == [GUARD] * 3
        assert pfn(c, a + 3 * PAGE) == pfn(p, a + 3 * PAGE)
        assert mapcount(m, pfn(p, a + 3 * PAGE)) == 2
        if file is not None:
            file.truncate(0)
            assert p.pagemap(a, 1)[0] == GUARD
            remove(p, a)
            with pytest.raises(BusError):
                p.read(a, 1)
        else:
            remove(c, a)
            assert c.read(a, 3) == b"one"


def test_a_shared_page_copied_with_guards_is_clean_in_the_child() -> None:
    """copy_present_pte() takes the dirty bit from shared pages; smaps says dirty for the page all the same."""
    with machine() as m:
        p = m.spawn()
        file = m.create_file("f", b"f" * 2 * PAGE, writenotify=True)
        a = p.mmap(None, 2 * PAGE, RW, Map.SHARED, file)
        p.write(a, b"x")
        install(p, a + PAGE)
        c = p.fork()
        found = c.translate(a)
        assert found is not None
        assert (found.dirty, found.accessed) == (False, False)
        assert c.touch(a, 1, write=True) == counts(none=1)


@every_mode
def test_moving(mode: ForkMode) -> None:
    """mremap takes guards along, out of what a child shares too."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 4)
        install(p, a + PAGE, 2)
        c = p.fork()
        b = c.mremap(a, 4 * PAGE, 4 * PAGE, 3, A)
        assert c.pagemap(b, 4).tolist()[1:3] == [GUARD, GUARD]
        assert c.read(b, 1) == b"\1"
        assert p.pagemap(a, 4).tolist()[1:3] == [GUARD, GUARD]
        assert flags(c) == [(4, True)]


def test_mappings_merge_however_they_are_marked() -> None:
    """The mark does not keep neighbours apart; what they make together has it (VM_STICKY)."""
    with machine() as m:
        p = m.spawn()
        anon(p, 2, A)
        install(p, A)
        remove(p, A)
        anon(p, 2, A + 2 * PAGE)
        assert flags(p) == [(4, True)]
        p.mprotect(A + 2 * PAGE, 2 * PAGE, R)
        assert flags(p) == [(2, True), (2, True)]
        q = m.spawn()
        anon(q, 4, A)
        q.mprotect(A + 2 * PAGE, 2 * PAGE, R)
        install(q, A + 3 * PAGE)
        assert flags(q) == [(2, False), (2, True)]
        q.mprotect(A + 2 * PAGE, 2 * PAGE, RW)
        assert flags(q) == [(4, True)]


def test_a_guard_gives_anonymous_memory_an_identity() -> None:
    """As a first write would: two neighbours that got theirs alone do not merge. Private file memory gets none."""
    with machine() as m:
        p = m.spawn()
        for start in (A, A + 4 * PAGE):
            anon(p, 2, start)
            install(p, start)
        anon(p, 2, A + 2 * PAGE)
        assert flags(p) == [(4, True), (2, True)]
        file = m.create_file("f", bytes(6 * PAGE))
        p.munmap(A, 6 * PAGE)
        for page in (0, 4, 2):
            p.mmap(A + page * PAGE, 2 * PAGE, RW, Map.PRIVATE | Map.FIXED, file, page * PAGE)
            install(p, A + page * PAGE)
        assert flags(p) == [(6, True)]


def test_populate_and_mlock_stop_at_a_guard() -> None:
    """What lies before it is there afterwards; the mapping is locked although mlock failed."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        install(p, a + 2 * PAGE)
        with pytest.raises(SyscallError, match="madvise"):
            p.madvise(a, 4 * PAGE, Advice.POPULATE_WRITE)
        assert [entry != 0 for entry in p.pagemap(a, 4).tolist()] == [True, True, True, False]
        with pytest.raises(SyscallError) as caught:
            p.mlock(a, 4 * PAGE)
        assert caught.value.name == "ENOMEM"
        assert "lo" in p.maps()[0].flags


def test_a_large_range_is_guarded_whole_or_not_at_all() -> None:
    """Guards need page tables; without frames for all of them nothing is guarded."""
    with Machine("256KiB") as m:
        p = m.spawn()
        a = p.mmap(None, 1 << 30, RW, ANON | Map.NORESERVE)
        p.write(a, b"x")
        with pytest.raises(MemoryError):
            p.madvise(a, 1 << 30, Advice.GUARD_INSTALL)
        assert p.read(a, 1) == b"x"
        assert flags(p) == [(1 << 18, False)]
        m.verify()
        install(p, a, 1024)
        assert p.pagemap(a, 1025).tolist()[1023:] == [GUARD, 0]
        m.verify()
