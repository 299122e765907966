"""mmap(2) and munmap(2): errors as recorded from Linux, where things go, what merges."""

from __future__ import annotations

import mmap as host_mmap
import random
from collections.abc import Callable
from typing import Any

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, counts, machine, prove, snapshot
from memory.errnos import GROWS, HOLE, HUGE, KERNEL, TOP, World, outcome, world

from vmemu import FaultKind, Machine, Map, OutOfMemory, Overcommit, Prot, Resource, SegmentationFault, SyscallError

FIXED, NOREPLACE = Map.FIXED, Map.FIXED_NOREPLACE
Call = Callable[[World], Any]

ERRORS: dict[str, tuple[Call, str]] = {
    "neither shared nor private": (lambda w: w.p.mmap(None, PAGE, RW, Map.ANONYMOUS), "EINVAL"),
    "length 0": (lambda w: w.p.mmap(None, 0, RW, ANON), "EINVAL"),
    "length wraps to 0": (lambda w: w.p.mmap(None, HUGE, RW, ANON), "ENOMEM"),
    "length negative": (lambda w: w.p.mmap(None, -1, RW, ANON), "ENOMEM"),
    "length over the address space": (lambda w: w.p.mmap(None, TOP + PAGE, RW, ANON), "ENOMEM"),
    "length is all of it": (lambda w: w.p.mmap(None, TOP, R, ANON | Map.NORESERVE), "ENOMEM"),
    "fixed misaligned": (lambda w: w.p.mmap(A + 1, PAGE, RW, ANON | FIXED), "EINVAL"),
    "fixed at the top": (lambda w: w.p.mmap(TOP, PAGE, RW, ANON | FIXED), "ENOMEM"),
    "fixed over the top": (lambda w: w.p.mmap(TOP - PAGE, 2 * PAGE, RW, ANON | FIXED), "ENOMEM"),
    "fixed in the kernel half": (lambda w: w.p.mmap(KERNEL, PAGE, RW, ANON | FIXED), "ENOMEM"),
    "fixed negative": (lambda w: w.p.mmap(-PAGE, PAGE, RW, ANON | FIXED), "ENOMEM"),
    "fixed 0 as root": (lambda w: w.p.mmap(0, PAGE, RW, ANON | FIXED), "ok"),
    "hint in the kernel half": (lambda w: w.p.mmap(KERNEL, PAGE, RW, ANON), "ok"),
    "no file": (lambda w: w.p.mmap(None, PAGE, RW, Map.PRIVATE), "EBADF"),
    "closed file": (lambda w: (w.tmp.close(), w.p.mmap(None, PAGE, R, Map.PRIVATE, w.tmp)), "EBADF"),
    "shared write on a read-only file": (lambda w: w.p.mmap(None, PAGE, RW, Map.SHARED, w.host), "EACCES"),
    "private write on a read-only file": (lambda w: w.p.mmap(None, PAGE, RW, Map.PRIVATE, w.host), "ok"),
    "offset misaligned": (lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, w.tmp, 1), "EINVAL"),
    "offset misaligned, anonymous": (lambda w: w.p.mmap(None, PAGE, R, ANON, None, 1), "EINVAL"),
    "offset beyond all files": (lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, w.tmp, 1 << 63), "EOVERFLOW"),
    "offset negative": (lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, w.tmp, -PAGE), "EOVERFLOW"),
    "offset plus length": (lambda w: w.p.mmap(None, 1 << 40, R, Map.PRIVATE, w.tmp, (1 << 63) - PAGE), "EOVERFLOW"),
    "anonymous offset ignored": (lambda w: w.p.mmap(None, PAGE, R, ANON, None, 1 << 40), "ok"),
    "unknown protection bits ignored": (lambda w: w.p.mmap(None, PAGE, 0xFF0 | R, ANON), "ok"),
    "unknown flags ignored": (lambda w: w.p.mmap(None, PAGE, R, ANON | 1 << 25), "ok"),
    "validate, sync": (lambda w: w.p.mmap(None, PAGE, R, 3 | Map.SYNC, w.tmp), "EOPNOTSUPP"),
    "validate, anonymous": (lambda w: w.p.mmap(None, PAGE, R, 3 | Map.ANONYMOUS), "EINVAL"),
    "validate": (lambda w: w.p.mmap(None, PAGE, RW, 3, w.tmp), "ok"),
    "grows down, shared": (lambda w: w.p.mmap(None, PAGE, R, SHARED | Map.GROWSDOWN), "EINVAL"),
    "grows down, file": (lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE | Map.GROWSDOWN, w.tmp), "EINVAL"),
    "huge pages, none reserved": (lambda w: w.p.mmap(None, 2 << 20, R, ANON | Map.HUGETLB), "ENOMEM"),
    "noreplace over a mapping": (lambda w: w.p.mmap(A, PAGE, R, ANON | NOREPLACE), "EEXIST"),
    "noreplace over the end": (lambda w: w.p.mmap(A - PAGE, 2 * PAGE, R, ANON | NOREPLACE), "EEXIST"),
    "noreplace around": (lambda w: w.p.mmap(A - PAGE, 64 * PAGE, R, ANON | NOREPLACE), "EEXIST"),
    "noreplace in a hole": (lambda w: w.p.mmap(HOLE, PAGE, R, ANON | NOREPLACE), "ok"),
    "more than ram": (lambda w: w.p.mmap(None, 17 << 20, RW, ANON), "ENOMEM"),
    "more than ram, not reserved": (lambda w: w.p.mmap(None, 17 << 20, RW, ANON | Map.NORESERVE), "ok"),
    "more than ram, read-only": (lambda w: w.p.mmap(None, 17 << 20, R, ANON), "ok"),
    "more than ram, shared": (lambda w: w.p.mmap(None, 17 << 20, RW, SHARED), "ENOMEM"),
    "more than ram, file": (lambda w: w.p.mmap(None, 17 << 20, RW, Map.SHARED, w.tmp), "ok"),
    "over a sealed mapping": (lambda w: (w.p.mseal(A, PAGE), w.p.mmap(A, PAGE, R, ANON | FIXED)), "EPERM"),
    "munmap misaligned": (lambda w: w.p.munmap(A + 1, PAGE), "EINVAL"),
    "munmap length 0": (lambda w: w.p.munmap(A, 0), "EINVAL"),
    "munmap over the top": (lambda w: w.p.munmap(TOP - PAGE, 2 * PAGE), "EINVAL"),
    "munmap huge": (lambda w: w.p.munmap(A, HUGE), "EINVAL"),
    "munmap negative": (lambda w: w.p.munmap(A, -PAGE), "EINVAL"),
    "munmap in the kernel half": (lambda w: w.p.munmap(KERNEL, PAGE), "EINVAL"),
    "munmap of nothing": (lambda w: w.p.munmap(HOLE, PAGE), "ok"),
    "munmap over holes": (lambda w: w.p.munmap(A - PAGE, 64 * PAGE), "ok"),
    "munmap of all": (lambda w: w.p.munmap(0, TOP), "ok"),
    "munmap sealed": (lambda w: (w.p.mseal(A, PAGE), w.p.munmap(A - PAGE, 2 * PAGE)), "EPERM"),
}


@pytest.mark.parametrize("what", list(ERRORS))
def test_errno(what: str) -> None:
    """The errno that Linux gives; a call that fails changes nothing."""
    call, expected = ERRORS[what]
    assert outcome(call, changes="sealed" in what or "closed" in what) == expected


@pytest.mark.parametrize("bit", [*range(18, 32)])
def test_shared_validate_refuses_flags_that_it_does_not_know(bit: int) -> None:
    """As recorded on 6.18: 19 to 25 and 31 are EOPNOTSUPP, 18 (MAP_HUGETLB of an ordinary file) EINVAL, 26 to 30
    taken."""
    expected = "EINVAL" if bit == 18 else "ok" if 26 <= bit <= 30 else "EOPNOTSUPP"
    assert outcome(lambda w: w.p.mmap(None, PAGE, R, Map.SHARED_VALIDATE | 1 << bit, w.tmp)) == expected


def test_numbers_of_the_standard_module_work_too() -> None:
    """Plain integers and the constants of Python's mmap module are taken like Prot and Map."""
    with machine() as m:
        p = m.spawn()
        flags = host_mmap.MAP_PRIVATE | host_mmap.MAP_ANONYMOUS
        a = p.mmap(None, PAGE, host_mmap.PROT_READ | host_mmap.PROT_WRITE, flags)
        p.write(a, b"x")
        assert p.maps()[0].prot == RW


def test_lengths_round_up_and_mappings_go_down_from_the_top() -> None:
    """Each mapping takes whole pages and goes to the highest hole that fits."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 1, R, SHARED)
        b = p.mmap(None, PAGE + 1, R, SHARED)
        c = p.mmap(None, 3 * PAGE, R, SHARED)
        assert (a - b, b - c) == (2 * PAGE, 3 * PAGE)
        p.munmap(b, 2 * PAGE)
        assert p.mmap(None, 3 * PAGE, R, SHARED) == c - 3 * PAGE  # does not fit
        assert p.mmap(None, PAGE, R, SHARED) == b + PAGE  # the highest that fits, at its top
        assert p.mmap(None, PAGE, R, SHARED) == b


def test_a_hint_is_taken_where_it_fits() -> None:
    """A hint that is free is used, rounded down to a page; one that is taken is ignored."""
    with machine() as m:
        p = m.spawn()
        assert p.mmap(A + 123, 2 * PAGE, R, ANON) == A
        assert p.mmap(A + PAGE, PAGE, R, ANON) not in range(A, A + 2 * PAGE)
        assert p.mmap(A - PAGE, 2 * PAGE, R, ANON) > A
        assert p.mmap(A - PAGE, PAGE, R, ANON) == A - PAGE
        assert p.mmap(0x1000, PAGE, R, ANON) == 0x10000  # moved up to mmap_min_addr


def test_fixed_replaces_what_is_there() -> None:
    """MAP_FIXED: the old pages are gone, neighbours stay."""
    with machine() as m:
        p = m.spawn()
        anon(p, 5, A)
        p.write(A, b"".join(bytes([i + 1]) * PAGE for i in range(5)))
        p.mmap(A + PAGE, 2 * PAGE, RW, SHARED | Map.FIXED)
        assert p.read(A, 5 * PAGE) == b"\1" * PAGE + bytes(2 * PAGE) + b"\4" * PAGE + b"\5" * PAGE
        assert [(v.start - A) // PAGE for v in p.maps()] == [0, 1, 3]


def test_neighbours_merge() -> None:
    """Adjacent anonymous memory with the same flags is one mapping; different protection, sharing or file are not."""
    with machine() as m:
        p = m.spawn()
        for i in (0, 2, 1):
            anon(p, 1, A + i * PAGE)
        assert [(v.start, v.size) for v in p.maps()] == [(A, 3 * PAGE)]
        anon(p, 1, A + 3 * PAGE, prot=R)
        p.mmap(A + 4 * PAGE, PAGE, RW, SHARED | Map.FIXED)
        p.mmap(A + 5 * PAGE, PAGE, RW, SHARED | Map.FIXED)
        assert [v.size // PAGE for v in p.maps()] == [3, 1, 1, 1]
        file = m.create_file("f", bytes(4 * PAGE))
        for i in (0, 1, 3):
            p.mmap(HOLE + i * PAGE, PAGE, R, Map.PRIVATE | Map.FIXED, file, i * PAGE)
        p.mmap(HOLE + 2 * PAGE, PAGE, R, Map.PRIVATE | Map.FIXED, file, 0)
        assert [v.size // PAGE for v in p.maps()][-3:] == [2, 1, 1]


def test_populate_faults_as_linux_does() -> None:
    """MAP_POPULATE: write faults for private writable memory, read faults otherwise, none for PROT_NONE."""
    with machine(fault_around=1) as m:
        file = m.create_file("f", b"f" * 4 * PAGE)
        expected = [
            (RW, ANON, None, counts(zero_fill=4)),
            (R, ANON, None, counts(zero_map=4)),
            (Prot.NONE, ANON, None, counts()),
            (RW, SHARED, None, counts(shm_fill=4)),
            (R, Map.PRIVATE, file, counts(file_minor=4)),
            (RW, Map.PRIVATE, file, counts(cow_copy=4)),
            (RW, Map.SHARED, file, counts(file_minor=4)),
        ]
        for prot, flags, what, faults in expected:
            p = m.spawn()
            a = p.mmap(None, 4 * PAGE, prot, flags | Map.POPULATE, what)
            assert p.faults == faults
            if prot:
                assert p.touch(a, 4 * PAGE) == counts(none=4)


def test_beyond_the_end_of_the_file_is_a_bus_error() -> None:
    """Pages wholly beyond the end: BUS_ADRERR; the tail of the last page reads as zeros."""
    with machine() as m:
        file = m.create_file("f", b"f" * 100)
        p = m.spawn()
        a = p.mmap(None, 3 * PAGE, RW, Map.SHARED, file)
        assert p.read(a, PAGE) == b"f" * 100 + bytes(PAGE - 100)
        kinds = p.access([a + PAGE, a + PAGE, a + 3 * PAGE], write=[False, True, False])
        assert list(kinds) == [FaultKind.BUS_ADRERR, FaultKind.BUS_ADRERR, FaultKind.SEGV_MAPERR]
        p.write(a + 50, b"x" * 100)
        assert file.size == 100
        assert file.pread(200, 0) == b"f" * 50 + b"x" * 50


def test_stack_grows_at_any_access_down_to_its_limit_and_gap() -> None:
    """MAP_GROWSDOWN: an access below extends it to that page, RLIMIT_STACK and the guard gap permitting."""
    with world() as w:
        p = w.p
        assert p.touch(GROWS - 10 * PAGE, PAGE) == counts(zero_map=1)
        assert min(v.start for v in p.maps() if v.end == GROWS + 4 * PAGE) == GROWS - 10 * PAGE
        with pytest.raises(SegmentationFault) as caught:
            p.write(GROWS - (8 << 20), b"x")
        assert caught.value.kind == FaultKind.SEGV_MAPERR
        anon(p, 1, GROWS - 300 * PAGE)
        p.read(GROWS - (300 - 257) * PAGE, 1)  # 256 pages above the neighbour's end
        with pytest.raises(SegmentationFault):
            p.read(GROWS - (300 - 256) * PAGE, 1)
        fresh = p.mmap(None, PAGE, RW, ANON | Map.GROWSDOWN)
        assert anon(p) <= fresh - 257 * PAGE  # nothing is put into the gap


def test_mapping_limit() -> None:
    """max_map_count: no mapping more; splits fail too; replacing goes on."""
    with machine(max_map_count=10) as m:
        p = m.spawn()
        for i in range(9):
            anon(p, 1, A + 2 * i * PAGE)
        anon(p, 3, HOLE)
        before = snapshot(m)
        for call in (
            lambda: p.munmap(HOLE + PAGE, PAGE),
            lambda: p.mprotect(HOLE + PAGE, PAGE, R),
            lambda: p.madvise(HOLE + PAGE, PAGE, 10),
            lambda: p.mlock(HOLE + PAGE, PAGE),
        ):
            with pytest.raises(SyscallError) as caught:
                call()
            assert caught.value.name == "ENOMEM"
            m.verify()
        assert [v.size for v in p.maps()] == [PAGE] * 9 + [3 * PAGE]
        assert p.fork().maps() == p.maps()
        p.munmap(A, PAGE)
        assert before["meminfo"].free >= m.meminfo().free


@pytest.mark.parametrize("seed", range(5))
def test_holes_against_a_model(seed: int) -> None:
    """Random mmap and munmap against a set of pages: what is mapped is what a plain set says, and each new mapping
    is in the highest hole that fits."""
    rng = random.Random(seed)
    with machine(overcommit=Overcommit.ALWAYS) as m:
        p = m.spawn()
        top = p.mmap(None, PAGE, R, SHARED) + PAGE
        p.munmap(top - PAGE, PAGE)
        taken: set[int] = set()  # pages below the top
        for _ in range(250):
            n = rng.choice([1, 1, 2, 3, 7, 20])
            if rng.random() < 0.6:
                where = p.mmap(None, n * PAGE, rng.choice([R, RW]), SHARED)
                first = (top - where) // PAGE  # counted down: this page is the mapping's lowest
                expected = n
                while taken & set(range(expected - n + 1, expected + 1)):
                    expected += 1
                assert first == expected
                taken |= set(range(first - n + 1, first + 1))
            else:
                last = rng.randrange(1, 300)
                p.munmap(top - (last + n - 1) * PAGE, n * PAGE)
                taken -= set(range(last, last + n))
            if rng.random() < 0.1:
                mapped = {(top - at) // PAGE for v in p.maps() for at in range(v.start, v.end, PAGE)}
                assert mapped == taken
        prove(m)


def test_many_mappings_stay_fast_and_right() -> None:
    """Twenty thousand mappings: all there, in order; a fork under each mode has them too."""
    with Machine("64MiB", overcommit=Overcommit.ALWAYS) as m:
        p = m.spawn()
        for i in range(20_000):
            p.mmap(A + 2 * i * PAGE, PAGE, R, ANON | FIXED)
        assert [v.start for v in p.maps()] == [A + 2 * i * PAGE for i in range(20_000)]
        kids = [p.fork(mode=mode) for mode in range(3)]
        for k in kids:
            k.munmap(A, 20_000 * PAGE)
            assert len(k.maps()) == 10_000
        assert len(p.maps()) == 20_000
        m.verify()


def test_no_frame_is_taken_by_mapping() -> None:
    """mmap takes address space, not frames."""
    with machine() as m:
        p = m.spawn()
        free = m.meminfo().free
        anon(p, 1000)
        p.mmap(None, 1 << 45, R, ANON | Map.NORESERVE)
        assert m.meminfo().free == free
        with pytest.raises(OutOfMemory):
            p.touch(p.maps()[0].start, 1 << 45)
        p.munmap(p.maps()[0].start, 1 << 45)
        assert m.meminfo().free == free


def test_the_highest_hole_that_fits() -> None:
    """Thousands of mappings come and go; where each new one lies is what a list of them says."""
    rng = random.Random(2)
    with machine(max_map_count=1 << 20) as m:
        p = m.spawn()
        top = p.mmap(None, PAGE, 0, ANON) + PAGE
        live = [(top - PAGE, PAGE)]
        for step in range(6000):
            if len(live) > 1 and rng.random() < (0.3 if step < 4000 else 0.9):
                p.munmap(*live.pop(rng.randrange(1, len(live))))
                continue
            size = PAGE * rng.choice((1, 1, 2, 3, 7, 40))
            where = p.mmap(None, size, rng.choice((0, 1, 3)), ANON)
            if step % 40 == 0:
                low = top
                for start, length in sorted(live, reverse=True):
                    if low - (start + length) >= size:
                        break
                    low = start
                assert where == low - size
            live.append((where, size))
            if step % 1000 == 0:
                m.verify()
        m.verify()


class Index:
    """An integer that is no int: with it mmap goes the long way."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


@pytest.mark.parametrize("overcommit", Overcommit)
@pytest.mark.parametrize(
    "limit",
    [
        lambda p: None,
        lambda p: p.setrlimit(Resource.AS, (8 * PAGE, 8 * PAGE)),
        lambda p: p.setrlimit(Resource.DATA, (5 * PAGE, 6 * PAGE)),
        lambda p: p.setrlimit(Resource.DATA, (0, 6 * PAGE)),
        lambda p: p.mlockall(2),
        lambda p: p.mmap(0x1000, 0x7FFF_F7FF_E000, 0, ANON | FIXED | Map.NORESERVE),
    ],
)
def test_the_short_way_is_the_long_one(limit: Callable[[Any], Any], overcommit: Overcommit) -> None:
    """mmap and munmap of private memory anywhere take one call where nothing is to be refused."""
    results = []
    for number in (int, Index):
        with Machine(memory="2MiB", max_map_count=6, overcommit=overcommit) as m:
            p = m.spawn()
            limit(p)
            seen: list[object] = []
            for length, prot in (
                (1, 3),
                (PAGE, 1),
                (3 * PAGE, RW),
                (2 << 20, 3),
                (3 << 20, 1),
                (PAGE, 8),
                (0, 3),
                (9, 2),
            ):
                try:
                    seen.append(p.mmap(None, number(length), prot, ANON))
                except SyscallError as error:
                    seen.append(str(error))
            for vma in p.maps():
                for start, length in ((vma.start + PAGE, PAGE), (vma.start, vma.size)):
                    try:
                        p.munmap(number(start), number(length))
                    except SyscallError as error:
                        seen.append(str(error))
            results.append([seen, p.maps(), m.meminfo()])
            m.verify()
    assert results[0] == results[1]
