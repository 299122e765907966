"""MAP_SHARED stays shared, MAP_PRIVATE of a file copies from the page cache, text is in RAM once."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from machines import (
    BSS,
    DATA,
    PAGE,
    RW,
    SHARED,
    TEXT,
    R,
    change,
    counts,
    every_mode,
    machine,
    mapcount,
    pfn,
    pfns,
    program,
)

from vmemu import Advice, ForkMode, Map, Prot, SegmentationFault, SyscallError

N = 8


@every_mode
def test_shared_anonymous_memory_stays_shared_over_many_forks(mode: ForkMode) -> None:
    """MAP_SHARED anonymous stays shared over any number of forks: every write is seen by all, nothing is copied."""
    rng = random.Random(3)
    with machine(fork_mode=mode) as m:
        family = [m.spawn()]
        a = family[0].mmap(None, N * PAGE, RW, SHARED)
        family[0].write(a, bytes(N * PAGE))
        expected = bytearray(N * PAGE)
        for i in range(40):
            if i < 15:
                family.append(rng.choice(family).fork())
            who, at, data = rng.choice(family), rng.randrange(N * PAGE - 8), rng.randbytes(8)
            who.write(a + at, data)
            expected[at : at + 8] = data
            assert rng.choice(family).read(a, N * PAGE) == expected
        for who in family:
            assert who.read(a, N * PAGE) == expected
        assert len({tuple(pfns(who, a, N)) for who in family}) == 1
        assert {mapcount(m, frame) for frame in pfns(family[0], a, N)} == {len(family)}
        assert m.frame_stats().copied == 0
        assert m.meminfo().shmem == N * PAGE
        assert m.meminfo().anon == 0
        for who in family[:-1]:
            who.exit()
        assert family[-1].read(a, N * PAGE) == expected
        family[-1].exit()
        assert m.meminfo().shmem == 0


@pytest.mark.parametrize("writenotify", [False, True], ids=["tmpfs", "ext4"])
@every_mode
def test_a_shared_file_mapping_stays_shared_over_many_forks(mode: ForkMode, writenotify: bool) -> None:
    """MAP_SHARED of a file: all processes and read(2)/write(2) see the same bytes; no copy."""
    with machine(fork_mode=mode) as m:
        file = m.create_file("data", bytes(N * PAGE), writenotify=writenotify)
        p = m.spawn()
        a = p.mmap(None, N * PAGE, RW, Map.SHARED, file)
        family = [p, *p.fork_many(5)]
        family += [family[-1].fork(), m.spawn()]
        other = family[-1].mmap(None, N * PAGE, RW, Map.SHARED, file)  # elsewhere, in a process of its own
        where = [a] * 7 + [other]
        for i, (who, at) in enumerate(zip(family, where, strict=True)):
            who.write(at + i * PAGE + 1, b"%d" % i)
        file.pwrite(b"file", 100)
        for who, at in zip(family, where, strict=True):
            assert [who.read(at + i * PAGE + 1, 1) for i in range(N)] == [b"%d" % i for i in range(8)]
            assert who.read(at + 100, 4) == b"file"
        assert file.pread(2, 3 * PAGE) == b"\x003"
        assert mapcount(m, pfn(p, a + PAGE)) == len(family)
        assert m.frame_stats().copied == 0
        info = m.meminfo()
        assert (info.file, info.shmem)[not writenotify] == N * PAGE


@pytest.mark.parametrize("writenotify", [False, True], ids=["tmpfs", "ext4"])
@every_mode
def test_private_file_mapping_copies_from_the_cache_and_never_changes_it(mode: ForkMode, writenotify: bool) -> None:
    """MAP_PRIVATE of a file copies from the page cache and never changes it, whoever writes."""
    data = bytes(range(256)) * (4 * PAGE // 256)
    with machine(fork_mode=mode) as m:
        file = m.create_file("data", data, writenotify=writenotify)
        p = m.spawn()
        a = p.mmap(None, 4 * PAGE, RW, Map.PRIVATE, file)
        s = p.mmap(None, 4 * PAGE, R, Map.SHARED, file)
        assert p.read(a, 4 * PAGE) == data
        cached = pfns(p, a, 4)
        assert pfns(p, s, 4) == cached or p.read(s, 1)
        before = m.meminfo()
        assert p.touch(a, 2 * PAGE, write=True) == counts(cow_copy=2)
        assert change(before, m.meminfo())["anon"] == 2
        p.write(a, b"private")
        c = p.fork()
        c.write(a + PAGE, b"child")
        c.write(a + 2 * PAGE, b"child")
        assert file.pread(4 * PAGE, 0) == p.read(s, 4 * PAGE) == data
        assert p.read(a, 8) == b"private" + data[7:8]
        assert p.read(a + PAGE, 3 * PAGE) == data[PAGE:]
        assert c.read(a + 2 * PAGE, 5) == b"child"
        assert pfn(p, a + 3 * PAGE) == cached[3]
        p.madvise(a, 4 * PAGE, Advice.DONTNEED)  # back to the cache
        assert p.read(a, 4 * PAGE) == data


def test_private_write_on_a_page_that_was_not_mapped_copies_at_once() -> None:
    """One fault, no detour over a read mapping; the cache page stays as it is and unmapped."""
    with machine() as m:
        file = m.create_file("data", b"d" * 2 * PAGE)
        p = m.spawn()
        a = p.mmap(None, 2 * PAGE, RW, Map.PRIVATE, file)
        assert p.touch(a, PAGE, write=True) == counts(cow_copy=1)
        assert p.read(a, PAGE) == b"d" * PAGE
        assert p.translate(a + PAGE) is None
        assert p.rss_by_kind.anon == p.rss == PAGE


def test_an_uncopied_private_page_shows_what_is_written_to_the_file() -> None:
    """Until it is copied, a private page is the cache's: write(2) shows; afterwards it does not."""
    with machine() as m:
        file = m.create_file("data", b"d" * 2 * PAGE)
        p = m.spawn()
        a = p.mmap(None, 2 * PAGE, RW, Map.PRIVATE, file)
        p.read(a, 2 * PAGE)
        p.write(a, b"x")
        file.pwrite(b"FILE", 2)
        file.pwrite(b"FILE", PAGE)
        assert p.read(a, 6) == b"xddddd"
        assert p.read(a + PAGE, 4) == b"FILE"


def test_a_host_file_is_never_written(tmp_path: Path) -> None:
    """MAP_PRIVATE of a host file: writes stay in the process, the cache and the host's file are as before."""
    path = tmp_path / "file"
    data = os.urandom(3 * PAGE + 100)
    path.write_bytes(data)
    stamp = path.stat().st_mtime_ns
    with machine() as m:
        file = m.open_file(path)
        p = m.spawn()
        a = p.mmap(None, 4 * PAGE, RW, Map.PRIVATE, file)
        assert p.read(a, 4 * PAGE) == data + bytes(PAGE - 100)
        p.write(a, b"x" * (4 * PAGE))
        p.fork().write(a, b"y" * PAGE)
        assert file.pread(10 * PAGE, 0) == data
        with pytest.raises(SyscallError):
            p.mmap(None, PAGE, RW, Map.SHARED, file)
        shared = p.mmap(None, 4 * PAGE, R, Map.SHARED, file)
        assert p.read(shared, len(data)) == data
        with pytest.raises(SyscallError):
            p.mprotect(shared, PAGE, RW)
        with pytest.raises(SegmentationFault):
            p.write(shared, b"x")
    assert path.read_bytes() == data
    assert path.stat().st_mtime_ns == stamp


@every_mode
def test_text_of_one_binary_in_ten_processes_is_in_ram_once(mode: ForkMode, tmp_path: Path) -> None:
    """Text of the same binary in ten processes, forked or executed, is in RAM once."""
    path = program(tmp_path)
    with machine(fork_mode=mode) as m:
        first = m.spawn(path)
        processes = [first, *(m.spawn(path) for _ in range(5)), *first.fork_many(4)]
        assert {p.read(TEXT + 0x200, 4, fetch=True) for p in processes} == {b"TEXT"}
        (frame,) = {pfn(p, TEXT) for p in processes}
        assert mapcount(m, frame) == 10
        assert m.meminfo().file == 2 * PAGE  # the whole file, once
        assert all(p.pss_by_kind.file <= 2 * PAGE // 5 for p in processes)
        for p in processes:
            p.write(DATA, b"own")
            p.write(BSS, b"own")
        assert m.meminfo().file == 2 * PAGE
        for p in processes:
            p.exit()
        assert m.meminfo().file == 0


def test_the_same_file_by_two_names_is_in_ram_once(tmp_path: Path) -> None:
    """The page cache belongs to the inode: opened twice, by hard link or symbolic link, the frames are the same."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 2 * PAGE)
    (tmp_path / "hard").hardlink_to(path)
    (tmp_path / "soft").symlink_to(path)
    with machine() as m:
        p = m.spawn()
        files = [m.open_file(tmp_path / name) for name in ("file", "hard", "soft", "file")]
        maps = [p.mmap(None, 2 * PAGE, R, Map.PRIVATE, file) for file in files]
        for a in maps:
            p.read(a, 2 * PAGE)
        assert len({tuple(pfns(p, a, 2)) for a in maps}) == 1
        assert len({file.inode for file in files}) == 1
        assert m.meminfo().file == 2 * PAGE
        assert p.rss == 4 * 2 * PAGE
        assert p.pss == 2 * PAGE


def test_punched_and_truncated_pages_leave_every_mapper() -> None:
    """What changes the file reaches all who map it: MADV_REMOVE and truncate, also through shared page tables."""
    with machine() as m:
        file = m.create_file("data", b"d" * 4 * PAGE)
        p = m.spawn()
        a = p.mmap(None, 4 * PAGE, RW, Map.SHARED, file)
        p.read(a, 4 * PAGE)
        c = p.fork(mode=ForkMode.ON_DEMAND)
        c.madvise(a, PAGE, Advice.REMOVE)
        assert p.read(a, PAGE) == c.read(a, PAGE) == bytes(PAGE)
        file.truncate(2 * PAGE)
        for who in (p, c):
            assert who.read(a + PAGE, PAGE) == b"d" * PAGE
            assert who.translate(a + 2 * PAGE) is None
        file.truncate(4 * PAGE)
        assert p.read(a + 2 * PAGE, PAGE) == bytes(PAGE)


def test_exec_permission_is_needed_to_fetch(tmp_path: Path) -> None:
    """Text can be fetched and not written, data written and not fetched."""
    with machine() as m:
        p = m.spawn(program(tmp_path))
        assert p.read(TEXT, 4, fetch=True) == b"\x7fELF"
        with pytest.raises(SegmentationFault):
            p.write(TEXT, b"x")
        with pytest.raises(SegmentationFault):
            p.read(DATA, 1, fetch=True)
        assert [v.prot for v in p.maps() if v.start == TEXT] == [Prot.READ | Prot.EXEC]
