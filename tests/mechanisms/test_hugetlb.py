"""Huge pages of reserved pools (MAP_HUGETLB): reservations, faults, copies, refusals. As probed on Linux 6.18."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest
from machines import PAGE, RW, R, counts, every_mode, machine

from vmemu import Advice, BusError, ForkMode, Machine, Map, Process, SegmentationFault, SyscallError

HUGE, GIANT = 2 << 20, 1 << 30
PRIVATE = Map.PRIVATE | Map.ANONYMOUS | Map.HUGETLB
SHARED = Map.SHARED | Map.ANONYMOUS | Map.HUGETLB
GIANT_FLAG = 30 << 26


def pool(m: Machine, size: int = HUGE) -> tuple[int, int, int]:
    """(total, free, reserved)."""
    found = m.hugepages[size]
    return found.total, found.free, found.reserved


def refused(call: Callable[[], Any]) -> int:
    """The errno of a call that fails."""
    with pytest.raises(SyscallError) as error:
        call()
    assert error.value.errno is not None
    return error.value.errno


def with_pool(n: int = 4, **options: Any) -> Any:
    """A machine of 64 MiB with n huge pages of 2 MiB."""
    return machine(memory="64MiB", hugepages={"2MiB": n}, **options)


def test_mmap_reserves_and_faults_take() -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 3 * HUGE, RW, PRIVATE)
        assert pool(m) == (4, 4, 3) and a % HUGE == 0
        assert refused(lambda: p.mmap(None, 2 * HUGE, RW, PRIVATE)) == errno.ENOMEM
        assert p.touch(a + 5 * PAGE, 1) == counts(zero_fill=1)
        assert pool(m) == (4, 3, 2)
        assert p.touch(a, HUGE, write=True) == counts(cow_reuse=1, none=511)
        assert p.touch(a + HUGE, 1, write=True) == counts(zero_fill=1)
        where = p.translate(a + HUGE + 3 * PAGE)
        assert where is not None and where.level == 2 and where.pfn % 512 == 3
        assert p.rss == 0 and p.page_tables == 2 * PAGE
        usage = p.smaps()[0]
        assert (usage.page_size, usage.private_hugetlb, usage.shared_hugetlb, usage.rss) == (HUGE, 2 * HUGE, 0, 0)
        assert usage.mapping.name == "/anon_hugepage (deleted)"
        assert usage.mapping.flags == ("rd", "wr", "mr", "mw", "me", "de", "ht")
        p.munmap(a, 3 * HUGE)
        assert pool(m) == (4, 4, 0)


def test_without_a_reservation_the_last_page_is_a_bus_error() -> None:
    with with_pool() as m:
        p = m.spawn()
        p.mmap(None, 3 * HUGE, RW, PRIVATE)
        b = p.mmap(None, 2 * HUGE, RW, PRIVATE | Map.NORESERVE)
        p.write(b, b"one")
        with pytest.raises(BusError):
            p.write(b + HUGE, b"two")
        assert pool(m) == (4, 3, 3)


def test_dropping_a_page_reserves_it_again() -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * HUGE, RW, PRIVATE)
        p.write(a, b"gone")
        assert pool(m) == (4, 3, 1)
        p.madvise(a, HUGE, Advice.DONTNEED)
        assert pool(m) == (4, 4, 2)
        assert p.read(a, 4) == bytes(4)


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda p, a: p.munmap(a + PAGE, PAGE), errno.EINVAL),
        (lambda p, a: p.munmap(a, PAGE), errno.EINVAL),
        (lambda p, a: p.mprotect(a, PAGE, R), errno.EINVAL),
        (lambda p, a: p.madvise(a + PAGE, HUGE, Advice.DONTNEED), errno.EINVAL),
        (lambda p, a: p.madvise(a, PAGE, Advice.RANDOM), errno.EINVAL),
        (lambda p, a: p.madvise(a, HUGE, Advice.FREE), errno.EINVAL),
        (lambda p, a: p.madvise(a, HUGE, Advice.COLD), errno.EINVAL),
        (lambda p, a: p.madvise(a, HUGE, Advice.PAGEOUT), errno.EINVAL),
        (lambda p, a: p.madvise(a, HUGE, Advice.GUARD_INSTALL), errno.EINVAL),
        (lambda p, a: p.madvise(a, HUGE, Advice.COLLAPSE), errno.EINVAL),
        (lambda p, a: p.madvise(a, HUGE, Advice.WIPEONFORK), errno.EINVAL),
        (lambda p, a: p.madvise(a, HUGE, Advice.REMOVE), errno.EACCES),
        (lambda p, a: p.mremap(a, 2 * HUGE, 3 * HUGE, 1), errno.EINVAL),
        (lambda p, a: p.mremap(a, HUGE, HUGE, 3, (1 << 40) + PAGE), errno.EINVAL),
        (lambda p, a: p.mremap(a, HUGE, HUGE, 5), errno.EINVAL),
        (lambda p, a: p.mmap(a + PAGE, HUGE, RW, PRIVATE | Map.FIXED), errno.EINVAL),
        (lambda p, a: p.mmap(a + PAGE, PAGE, RW, Map.PRIVATE | Map.ANONYMOUS | Map.FIXED), errno.EINVAL),
        (lambda p, a: p.mmap(None, HUGE, RW, PRIVATE | 22 << 26), errno.EINVAL),
        (lambda p, a: p.mmap(None, HUGE, RW, PRIVATE | Map.GROWSDOWN), errno.EINVAL),
        (lambda p, a: p.mmap(None, 0, RW, PRIVATE), errno.EINVAL),
        (lambda p, a: p.mmap(None, GIANT, RW, PRIVATE | GIANT_FLAG), errno.ENOMEM),
    ],
)
def test_what_is_refused(call: Callable[[Process, int], Any], number: int) -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * HUGE, RW, PRIVATE)
        p.write(a, b"here")
        before = (m.procfs.read(f"{p.pid}/maps"), pool(m))
        assert refused(lambda: call(p, a)) == number
        assert (m.procfs.read(f"{p.pid}/maps"), pool(m)) == before
        assert p.read(a, 4) == b"here"


@pytest.mark.parametrize("advice", [Advice.HUGEPAGE, Advice.MERGEABLE, Advice.DONTFORK, Advice.POPULATE_WRITE])
def test_what_is_taken(advice: Advice) -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * HUGE, RW, PRIVATE)
        p.madvise(a, HUGE, advice)
        p.mlock(a, 2 * HUGE)
        assert "lo" not in p.smaps()[0].mapping.flags
        p.madvise(a, PAGE, Advice.DONTNEED)  # less than a page: nothing
        assert pool(m)[1] == 2


def test_a_page_made_read_only_and_back_faults_again() -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * HUGE, RW, PRIVATE)
        p.write(a + HUGE, b"x")
        p.mprotect(a + HUGE, HUGE, R)
        with pytest.raises(SegmentationFault):
            p.write(a + HUGE, b"y")
        p.mprotect(a + HUGE, HUGE, RW)
        assert p.touch(a + HUGE, 1, write=True) == counts(cow_reuse=1)
        assert len(p.maps()) == 2  # they do not merge


def test_mremap_moves_and_shrinks() -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 3 * HUGE, RW, PRIVATE)
        p.write(a + HUGE, b"moved")
        assert p.mremap(a, 3 * HUGE, 2 * HUGE) == a
        assert pool(m) == (4, 3, 1)
        to = 1 << 40
        assert p.mremap(a, 2 * HUGE, 2 * HUGE, 3, to) == to
        assert p.read(to + HUGE, 5) == b"moved"
        assert pool(m) == (4, 3, 1)
        assert p.mremap(to, PAGE, 2 * PAGE, 1) == to  # both are one huge page


@every_mode
def test_children_copy_from_what_is_free(mode: ForkMode) -> None:
    with with_pool(fork_mode=mode) as m:
        p = m.spawn()
        a = p.mmap(None, 2 * HUGE, RW, PRIVATE)
        p.write(a, b"parent")
        p.write(a + HUGE, b"second")
        c = p.fork()
        assert pool(m) == (4, 2, 0)
        c.write(a, b"child!")
        assert pool(m) == (4, 1, 0)
        assert p.read(a, 6) == b"parent" and c.read(a, 6) == b"child!"
        usages = c.smaps()[0]
        assert (usages.private_hugetlb, usages.shared_hugetlb) == (HUGE, HUGE)
        c.exit()
        p.wait()
        assert pool(m) == (4, 2, 0)
        assert p.touch(a, 1, write=True) == counts(cow_reuse=1)


@every_mode
def test_the_owner_robs_its_children_when_no_page_is_free(mode: ForkMode) -> None:
    """unmap_ref_private(): the child's page is gone, and it is told so when it looks."""
    with with_pool(fork_mode=mode) as m:
        p = m.spawn()
        a = p.mmap(None, 2 * HUGE, RW, PRIVATE)
        p.write(a, b"first")
        p.write(a + HUGE, b"second")
        c = p.fork()
        b = p.mmap(None, 2 * HUGE, RW, PRIVATE)
        assert pool(m) == (4, 2, 2)
        with pytest.raises(BusError):
            c.write(a, b"child")
        p.write(a, b"FIRST")
        assert pool(m) == (4, 2, 2)
        with pytest.raises(BusError):
            c.read(a, 5)
        assert c.read(a + HUGE, 6) == b"second" and p.read(a, 5) == b"FIRST"
        m.verify()
        c.exit()
        p.munmap(b, 2 * HUGE)


def test_what_the_owner_leaves_stays_with_the_child() -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * HUGE, RW, PRIVATE)
        p.write(a, b"heirloom")
        c = p.fork()
        p.munmap(a, 2 * HUGE)
        assert pool(m) == (4, 3, 0)
        assert c.read(a, 8) == b"heirloom"
        assert c.touch(a, 1, write=True) == counts(cow_reuse=1)


@every_mode
def test_what_a_child_does_not_get_stays_reserved_for_the_owner(mode: ForkMode) -> None:
    with with_pool(3) as m:
        p = m.spawn()
        a = p.mmap(None, 3 * HUGE, RW, PRIVATE)
        p.write(a, b"one")
        p.madvise(a, 3 * HUGE, Advice.DONTFORK)
        child = p.fork(mode)
        assert pool(m) == (3, 2, 2)
        m.verify()
        with pytest.raises(SegmentationFault):
            child.read(a, 1)
        child.exit()
        p.wait()
        assert p.read(a, 3) == b"one"
        assert p.touch(a + HUGE, 2 * HUGE, write=True) == counts(zero_fill=2, none=2 * 512 - 2)
        assert pool(m) == (3, 0, 0)
        p.munmap(a, 3 * HUGE)
        assert pool(m) == (3, 3, 0)


def test_a_dropped_page_that_a_child_keeps_costs_others_theirs() -> None:
    """The owner's next page is taken from what is free, whoever it was promised to (__unmap_hugepage_range())."""
    with with_pool(2) as m:
        p = m.spawn()
        a = p.mmap(None, HUGE, RW, PRIVATE)
        p.write(a, b"kept")
        other = p.mmap(None, HUGE, RW, SHARED)
        c = p.fork()
        assert pool(m) == (2, 1, 1)
        p.madvise(a, HUGE, Advice.DONTNEED)
        assert pool(m) == (2, 1, 1)
        p.write(a, b"more")
        assert pool(m) == (2, 0, 0)
        with pytest.raises(BusError):
            p.write(other, b"none")
        assert c.read(a, 4) == b"kept"
        c.exit()
        assert pool(m) == (2, 1, 1)
        p.write(other, b"some")


def test_shared_pages_belong_to_their_object() -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * HUGE, RW, SHARED)
        assert pool(m) == (4, 4, 2)
        assert p.touch(a, 1) == counts(shm_fill=1)
        assert p.touch(a, 1, write=True) == counts(none=1)
        c = p.fork()
        c.write(a, b"both")
        assert p.read(a, 4) == b"both"
        c.write(a + HUGE, b"later")
        assert p.touch(a + HUGE, 1) == counts(file_minor=1)
        assert pool(m) == (4, 2, 0)
        c.exit()
        p.munmap(a, HUGE)
        assert pool(m) == (4, 2, 0)
        p.munmap(a + HUGE, HUGE)
        assert pool(m) == (4, 4, 0)


def test_pages_of_one_gibibyte() -> None:
    with Machine(memory="3GiB", contents=False, hugepages={"1GiB": 1, "2MiB": 3}) as m:
        assert pool(m) == (3, 3, 0) and pool(m, GIANT) == (1, 1, 0)
        p = m.spawn()
        a = p.mmap(None, 1, RW, PRIVATE | GIANT_FLAG)
        assert p.touch(a + 5 * HUGE, 1, write=True) == counts(zero_fill=1)
        where = p.translate(a + 700 * PAGE)
        assert where is not None and where.level == 3 and where.pfn % (1 << 18) == 700
        assert p.page_tables == PAGE
        c = p.fork()
        assert c.smaps()[0].shared_hugetlb == GIANT and c.smaps()[0].page_size == GIANT
        with pytest.raises(BusError):
            c.touch(a, 1, write=True)
        assert refused(lambda: p.munmap(a, HUGE)) == errno.EINVAL
        m.verify()
        p.exit()
        assert c.touch(a, 1, write=True) == counts(cow_reuse=1)
        c.exit()
        m.verify()
        assert pool(m, GIANT) == (1, 1, 0)


def test_meminfo_and_status_show_them() -> None:
    with with_pool() as m:
        p = m.spawn()
        a = p.mmap(None, 3 * HUGE, RW, PRIVATE)
        p.touch(a, 1, write=True)
        lines = dict(line.split(":") for line in m.procfs.read("meminfo").decode().splitlines())
        assert [int(lines[f"HugePages_{key}"]) for key in ("Total", "Free", "Rsvd", "Surp")] == [4, 3, 2, 0]
        assert lines["Hugetlb"].split() == ["8192", "kB"] and lines["Hugepagesize"].split() == ["2048", "kB"]
        status = dict(line.split(":", 1) for line in m.procfs.read(f"{p.pid}/status").decode().splitlines())
        assert status["HugetlbPages"].split() == ["2048", "kB"]
        assert status["VmRSS"].split() == status["VmHWM"].split() == ["0", "kB"]
        assert m.meminfo().commit_limit == (64 - 8 << 20) // 2


@pytest.mark.parametrize(
    ("pages", "error"),
    [({"4MiB": 1}, ValueError), ({"2MiB": -1}, ValueError), ({"2MiB": 40}, ValueError), ({"2MiB": "x"}, TypeError)],
)
def test_bad_pools(pages: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="hugepages"):
        Machine(memory="64MiB", hugepages=pages)


@every_mode
def test_contents_at_random(mode: ForkMode) -> None:
    """Processes that fork, write and go find what they wrote, or are told that it is gone."""
    rng = random.Random(7)
    with with_pool(9, fork_mode=mode) as m:
        first = m.spawn()
        a = first.mmap(None, 3 * HUGE, RW, PRIVATE)
        kept: dict[Process, list[bytes]] = {first: [bytes(4)] * 3}
        for _ in range(300):
            p = rng.choice(list(kept))
            i = rng.randrange(3)
            data = rng.randbytes(4)
            match rng.randrange(5):
                case 0 | 1:
                    try:
                        p.write(a + i * HUGE, data)
                    except BusError:
                        assert p is not first
                        continue
                    kept[p][i] = data
                case 2:
                    try:
                        assert p.read(a + i * HUGE, 4) == kept[p][i]
                    except BusError:
                        assert p is not first
                case 3 if len(kept) < 5:
                    kept[p.fork()] = list(kept[p])
                case 4 if p is not first:
                    del kept[p]
                    p.exit()
            m.verify()
        for p in kept:
            p.exit()
        assert pool(m) == (9, 9, 0)


def test_kpageflags() -> None:
    """A private page is anonymous in head and tails, and not backed by swap; a shared one is neither."""
    with with_pool() as m:
        p = m.spawn()
        for flags, expected in ((PRIVATE, [0x2_9800, 0x3_1800]), (SHARED, [0x2_8800, 0x3_0800])):
            a = p.mmap(None, HUGE, RW, flags)
            p.write(a, b"x")
            found = p.translate(a)
            assert found
            seen = memoryview(m.procfs.read("kpageflags", 8 * found.pfn, 16)).cast("Q")
            assert [flag & 0x3_D800 for flag in seen] == expected
        assert b"Mapped:                0 kB" in m.procfs.read("meminfo")  # that is of page caches
