"""Reclaim: which pages go, in what order, and which stay."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from machines import ANON, PAGE, RW, R, machine

from vmemu import Advice, Machine, Map, OutOfMemory, Process, SyscallError
from vmemu.memory.reclaim import shrink
from vmemu.swap import POLICIES, watermarks

PRESENT = 1 << 63


def resident(p: Process, address: int, npages: int) -> list[int]:
    """Indexes of pages that are in memory."""
    return [i for i, entry in enumerate(p.pagemap(address, npages)) if int(entry) & PRESENT]


def forget_accesses(m: Machine, p: Process) -> None:
    m.procfs.write(f"{p.pid}/clear_refs", "1")


def test_watermarks() -> None:
    """As on a machine of 4 GiB in one zone; a small one keeps less."""
    least, low, high = watermarks((4 << 30) // PAGE)
    assert least == 8192 * 1024 // PAGE
    assert (low, high) == (least + 4 * 262, least + 8 * 262) or (low - least == high - low and low > least)
    for npages in (16, 64, 256, 4096):
        least, low, high = watermarks(npages)
        assert 0 < least < low < high <= npages // 4


def test_watermarks_and_swappiness_are_seen() -> None:
    """In /proc/zoneinfo and sys/vm, where swappiness can be changed; without reclaim there are none."""
    with machine(swap="1MiB", swappiness=60) as m:
        least, low, high = watermarks((16 << 20) // PAGE)
        lines = dict(line.split() for line in m.procfs.read("zoneinfo").decode().splitlines() if len(line.split()) == 2)
        found = [int(lines[name]) for name in ("min", "low", "high", "promo", "managed")]
        assert found == [least, low, high, high + (high - low), 4096]
        assert int(lines["nr_free_pages"]) * PAGE == m.meminfo().free
        assert m.procfs.read("sys/vm/swappiness") == b"60\n"
        m.procfs.write("sys/vm/swappiness", "200")
        assert m._kernel.paging is not None and m._kernel.paging.swappiness == 200
        with pytest.raises(SyscallError):
            m.procfs.write("sys/vm/swappiness", "201")
    with machine() as m:
        assert b"min      0\n" in m.procfs.read("zoneinfo")


def test_clock_spares_what_was_accessed() -> None:
    with machine(swap="4MiB", policy="clock") as m:
        p = m.spawn()
        a = p.mmap(None, 64 * PAGE, RW, ANON)
        p.touch(a, 64 * PAGE, write=True)
        forget_accesses(m, p)
        wanted = [1, 2, 3, 30, 31, 63]
        for i in wanted:
            p.read(a + i * PAGE, 1)
        assert shrink(m._kernel, 58) == 58
        assert resident(p, a, 64) == wanted
        shrink(m._kernel, 6)  # the second visit
        assert not resident(p, a, 64)


def test_fifo_takes_what_came_first() -> None:
    with machine(swap="4MiB", policy="fifo") as m:
        p = m.spawn()
        a = p.mmap(None, 64 * PAGE, RW, ANON)
        order = list(range(64))
        random.Random(1).shuffle(order)
        for i in order:
            p.write(a + i * PAGE, b"x")
        p.touch(a, 64 * PAGE)  # makes no difference
        shrink(m._kernel, 32)
        assert resident(p, a, 64) == sorted(order[32:])


@pytest.mark.parametrize("how", ["read", "touch", "access", "run"])
def test_lru_is_exact(how: str) -> None:
    from vmemu import TRACE_DTYPE, Operation

    with machine(swap="4MiB", policy="lru") as m:
        p = m.spawn()
        a = p.mmap(None, 64 * PAGE, RW, ANON)
        p.touch(a, 64 * PAGE, write=True)
        order = [*range(64), 7, 8, 9, 7]
        random.Random(2).shuffle(order)
        if how == "access":
            p.access([a + i * PAGE for i in order], False)
        elif how == "run":
            import numpy as np

            rows = [(a + i * PAGE, 8, 0, int(Operation.READ)) for i in order]
            m.run(np.array(rows, np.dtype(TRACE_DTYPE)), [p])
        for i in order if how in ("read", "touch") else ():
            if how == "read":
                p.read(a + i * PAGE + 5, 3)
            else:
                p.touch(a + i * PAGE, 1)
        last = {i: at for at, i in enumerate(order)}
        shrink(m._kernel, 32)
        assert resident(p, a, 64) == sorted(sorted(last, key=last.__getitem__)[32:])


def test_random_is_seeded() -> None:
    def run(seed: int) -> list[int]:
        with machine(swap="4MiB", policy="random", seed=seed) as m:
            p = m.spawn()
            a = p.mmap(None, 64 * PAGE, RW, ANON)
            p.touch(a, 64 * PAGE, write=True)
            shrink(m._kernel, 32)
            assert len(resident(p, a, 64)) == 32
            return resident(p, a, 64)

    assert run(1) == run(1) != run(2)


def test_aging_keeps_the_younger_generation() -> None:
    with machine(swap="4MiB", policy="aging") as m:
        p = m.spawn()
        a = p.mmap(None, 96 * PAGE, RW, ANON)
        p.touch(a, 64 * PAGE, write=True)
        shrink(m._kernel, 32)  # the generation of all becomes the older one
        old = resident(p, a, 64)
        assert len(old) == 32
        p.touch(a + 64 * PAGE, 32 * PAGE, write=True)  # the younger
        forget_accesses(m, p)
        p.read(a + old[3] * PAGE, 1)
        shrink(m._kernel, 31)
        assert resident(p, a, 96) == [old[3], *range(64, 96)]


@pytest.mark.parametrize("policy", POLICIES)
def test_locked_pages_stay(policy: str) -> None:
    with machine(memory="2MiB", swap="8MiB", policy=policy) as m:
        p = m.spawn()
        a = p.mmap(None, 200 * PAGE, RW, ANON)
        p.mlock(a, 100 * PAGE)
        c = p.fork()
        b = c.mmap(None, 500 * PAGE, RW, ANON)
        c.touch(b, 500 * PAGE, write=True)
        while shrink(m._kernel, 100):
            pass
        assert len(resident(p, a, 100)) == 100
        p.munlock(a, 100 * PAGE)
        while shrink(m._kernel, 100):
            pass
        assert not resident(p, a, 100)


def test_page_cache_stays_and_goes_first(tmp_path: Path) -> None:
    """What nobody has open or mapped is still there for the next one, until memory is wanted for something else."""
    path = tmp_path / "file"
    path.write_bytes(b"cached" * 10_000)
    with machine(swap="4MiB") as m:
        p = m.spawn()
        a = p.mmap(None, 16 * PAGE, RW, ANON)
        p.touch(a, 16 * PAGE, write=True)
        forget_accesses(m, p)
        with contextlib.closing(m.open_file(path)) as f:
            f.pread(60_000, 0)
            cached = m.meminfo().file
            assert cached >= 60_000
        assert m.meminfo().file == cached
        read = m._kernel.files.bytes_read
        f = m.open_file(path)
        assert f.pread(6, 6) == b"cached"
        assert m._kernel.files.bytes_read == read
        f.close()
        shrink(m._kernel, cached // PAGE)
        assert m.meminfo().file == 0
        assert len(resident(p, a, 16)) == 16
        assert not m._kernel.files._kept
    with machine() as m:  # nothing is reclaimed, so nothing is kept
        m.open_file(path).pread(60_000, 0)
        assert m.meminfo().file == 0


@pytest.mark.parametrize(("swappiness", "anon"), [(0, 32), (200, 0)])
def test_swappiness(tmp_path: Path, swappiness: int, anon: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(32 * PAGE))
    with machine(swap="4MiB", swappiness=swappiness) as m:
        p, f = m.spawn(), m.open_file(path)
        a = p.mmap(None, 32 * PAGE, RW, ANON)
        p.touch(a, 32 * PAGE, write=True)
        b = p.mmap(None, 32 * PAGE, R, Map.SHARED, f)
        p.touch(b, 32 * PAGE)
        assert shrink(m._kernel, 32) == 32
        assert (len(resident(p, a, 32)), len(resident(p, b, 32))) == (anon, 32 - anon)


def test_dirty_pages_of_files_are_written_back() -> None:
    with machine(memory="2MiB", policy="clock") as m:
        p, f = m.spawn(), m.create_file("f", bytes(64 * PAGE), writenotify=True)
        a = p.mmap(None, 64 * PAGE, RW, Map.SHARED, f)
        for i in range(64):
            p.write(a + i * PAGE, b"page %d" % i)
        while shrink(m._kernel, 64):
            pass
        assert m.meminfo().file == 0
        before = p.faults
        assert [p.read(a + i * PAGE, 7).rstrip(b"\0") for i in range(64)] == [b"page %d" % i for i in range(64)]
        assert (p.faults - before).file_major > 0
        assert f.pread(6, 63 * PAGE) == b"page 6"


def test_without_swap_anonymous_memory_stays() -> None:
    with machine(policy="clock") as m:
        p = m.spawn()
        a = p.mmap(None, 16 * PAGE, RW, ANON)
        p.touch(a, 16 * PAGE, write=True)
        assert shrink(m._kernel, 16) == 0
        p.madvise(a, 8 * PAGE, Advice.FREE)
        assert shrink(m._kernel, 16) == 8
        assert resident(p, a, 16) == list(range(8, 16))


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("npages", [200, 300, 400])
def test_a_full_device_while_folios_are_cut(npages: int, policy: str) -> None:
    """The second look for victims, when folios were cut, took the slots of those that the first one had found, and
    what they held was gone."""
    with Machine("6MiB", swap="64KiB", policy=policy, thp="always", overcommit=1) as m:
        p, q, r = m.spawn(), m.spawn(), m.spawn()
        a = q.mmap(None, npages * PAGE, RW, ANON)
        for i in range(npages):
            q.write(a + i * PAGE, b"%d" % i)
        p.touch(p.mmap(None, 4 << 20, RW, ANON), 2 << 20, write=True)
        b = r.mmap(None, 8 << 20, RW, ANON)
        with pytest.raises(OutOfMemory):
            for at in range(b, b + (8 << 20), PAGE):
                r.touch(at, PAGE, write=True)
        assert m.vmstat()["thp_split_page"] > 0
        assert all(q.pagemap(a, npages))
        m.verify()
        r.exit()
        assert [q.read(a + i * PAGE, 3).rstrip(b"\0") for i in range(npages)] == [b"%d" % i for i in range(npages)]


def test_off_unless_asked_for() -> None:
    with machine() as m:
        assert shrink(m._kernel, 10) == 0
        assert m.meminfo().swap_total == 0


def test_kept_above_the_watermark() -> None:
    """What kswapd does: after each access no fewer frames are free than the low watermark asks for."""
    with machine(memory="4MiB", swap="16MiB") as m:
        paging = m._kernel.paging
        assert paging is not None
        p = m.spawn()
        a = p.mmap(None, 3000 * PAGE, RW, ANON)
        for i in range(3000):
            p.write(a + i * PAGE, b"x")
            assert m._kernel.core.free_frames() >= paging.low - 4
        stat = m.vmstat()
        assert stat["pgsteal_kswapd"] == stat["pgsteal_anon"] > 1000
        assert stat["pgscan_kswapd"] >= stat["pgsteal_kswapd"]
        assert stat["pageoutrun"] > 0 and stat["allocstall_normal"] == 0


def test_peak_is_remembered() -> None:
    with machine(swap="4MiB") as m:
        p = m.spawn()
        a = p.mmap(None, 64 * PAGE, RW, ANON)
        p.touch(a, 64 * PAGE, write=True)
        shrink(m._kernel, 64)
        assert b"VmHWM:\t     256 kB" in m.procfs.read(f"{p.pid}/status")


def test_what_an_access_needs_does_not_go_for_ever() -> None:
    """Two frames are needed, one is there: the page of the file goes for its copy, and is read again for it."""
    with Machine("256KiB", policy="fifo", overcommit=1) as m:
        p = m.spawn()
        file = m.create_file("f", b"x" * PAGE, writenotify=True)
        a = p.mmap(None, PAGE, RW, Map.PRIVATE, file)
        p.read(a, 1)
        b = p.mmap(None, 100 * PAGE, RW, ANON)
        while m._kernel.core.free_frames() > 1:
            p.write(b, b"y")
            b += PAGE
        with pytest.raises(OutOfMemory):
            p.mlock(a, PAGE)
        m.verify()
        p.munmap(b - PAGE, PAGE)
        p.mlock(a, PAGE)
        assert p.read(a, 1) == b"x"
