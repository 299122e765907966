"""Files: size, reading and writing, truncation, inodes, page cache."""

from __future__ import annotations

import errno
import gc
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from machines import PAGE, RW, SHARED, R, counts, machine, pfn

from vmemu import BusError, File, Map, SyscallError

both = pytest.mark.parametrize("writenotify", [False, True], ids=["tmpfs", "ext4"])


@both
def test_pread_and_pwrite(writenotify: bool) -> None:
    """As pread(2) and pwrite(2): short at the end, extending, holes read as zeros."""
    with machine() as m:
        file = m.create_file("f", b"hello", writenotify=writenotify)
        assert (file.size, file.name) == (5, "f")
        assert file.pread(100, 0) == b"hello"
        assert file.pread(2, 1) == b"el"
        assert file.pread(1, 5) == file.pread(1, 10**12) == file.pread(0, 0) == b""
        assert file.pwrite(b"J", 0) == 1
        assert file.pwrite(b"end", 3 * PAGE) == 3
        assert file.size == 3 * PAGE + 3
        assert file.pread(4 * PAGE, 0) == b"Jello" + bytes(3 * PAGE - 5) + b"end"
        assert file.pwrite(b"", 100 * PAGE) == 0
        assert file.size == 3 * PAGE + 3


@both
def test_any_buffer_is_bytes(writenotify: bool) -> None:
    """Sizes are bytes, whatever the items are."""
    data = np.arange(10, dtype=np.uint64)
    with machine() as m:
        file = m.create_file("f", data, writenotify=writenotify)  # type: ignore[arg-type]
        assert (file.size, file.pread(99, 0)) == (80, data.tobytes())
        assert file.pwrite(data[:2], 80) == 16  # type: ignore[arg-type]
        assert file.size == 96


@both
def test_against_bytes(writenotify: bool) -> None:
    """Random writes and truncations against a bytearray; a shared mapping shows the same."""
    rng = random.Random(5)
    with machine() as m:
        model = bytearray(b"start")
        file = m.create_file("f", model, writenotify=writenotify)
        p = m.spawn()
        a = p.mmap(None, 40 * PAGE, RW, Map.SHARED, file)
        for _ in range(150):
            match rng.randrange(4):
                case 0:
                    data, at = rng.randbytes(rng.randrange(9000)), rng.randrange(20 * PAGE)
                    file.pwrite(data, at)
                    if data:
                        model.extend(bytes(max(0, at + len(data) - len(model))))
                        model[at : at + len(data)] = data
                case 1:
                    size = rng.randrange(30 * PAGE)
                    file.truncate(size)
                    del model[size:]
                    model.extend(bytes(size - len(model)))
                case 2:
                    if model:
                        at = rng.randrange(len(model))
                        data = rng.randbytes(min(5000, len(model) - at))
                        p.write(a + at, data)
                        model[at : at + len(data)] = data
                case 3:
                    if model:
                        at = rng.randrange(len(model))
                        n = min(9000, len(model) - at)
                        assert p.read(a + at, n) == model[at : at + n]
            assert file.size == len(model)
            at = rng.randrange(len(model) + 1)
            assert file.pread(7000, at) == model[at : at + 7000]
        assert file.pread(1 << 20, 0) == model


def test_truncate_takes_pages_from_every_mapping() -> None:
    """Beyond the new end every mapping loses its pages, private copies included; the tail of the last page is
    zeroed in the cache only; growing again reads zeros."""
    with machine() as m:
        file = m.create_file("f", b"f" * 4 * PAGE)
        p, q = m.spawn(), m.spawn()
        shared = p.mmap(None, 4 * PAGE, RW, Map.SHARED, file)
        private = q.mmap(None, 4 * PAGE, RW, Map.PRIVATE, file)
        p.read(shared, 4 * PAGE)
        q.write(private, b"q" * 4 * PAGE)
        c = q.fork()
        file.truncate(PAGE + 100)
        for who, a in ((p, shared), (q, private), (c, private)):
            with pytest.raises(BusError):
                who.read(a + 2 * PAGE, 1)
        assert p.read(shared + PAGE, PAGE) == b"f" * 100 + bytes(PAGE - 100)
        assert q.read(private + PAGE, PAGE) == c.read(private + PAGE, PAGE) == b"q" * PAGE
        file.truncate(4 * PAGE)
        assert p.read(shared + 2 * PAGE, 1) == q.read(private + 2 * PAGE, 1) == b"\0"
        file.truncate(0)
        assert m.meminfo().shmem == 0
        assert file.pread(1, 0) == b""


def test_inodes_are_unique_and_never_reused() -> None:
    """File.inode is unique over all files and shared anonymous objects, names are labels; maps shows it."""
    with machine() as m:
        p = m.spawn()
        seen: set[int] = set()
        for i in range(40):
            file = m.create_file("same", b"x")
            a = p.mmap(None, PAGE, R, Map.SHARED, file)
            s = p.mmap(None, PAGE, RW, SHARED)
            numbers = {v.start: v.inode for v in p.maps()}
            assert numbers[a] == file.inode
            assert not {file.inode, numbers[s]} & seen
            seen |= {file.inode, numbers[s]}
            p.munmap(a, PAGE)
            p.munmap(s, PAGE)
            if i % 2:
                file.close()
        del file
        gc.collect()
        host = m.open_file("/bin/sh")
        assert host.inode not in seen
        assert host.inode == os.stat("/bin/sh").st_ino or host.inode > 0


def test_a_file_lives_as_long_as_it_is_open_or_mapped() -> None:
    """Closing leaves mappings as they are; the last user's end gives the frames back."""
    with machine() as m:
        boot = m.meminfo()
        p = m.spawn()
        file = m.create_file("f", b"f" * 4 * PAGE)
        a = p.mmap(None, 4 * PAGE, RW, Map.SHARED, file)
        p.write(a, b"x")
        file.close()
        for call in (
            lambda: file.pread(1, 0),
            lambda: file.pwrite(b"", 0),
            lambda: file.truncate(0),
            lambda: file.size,
        ):
            with pytest.raises(SyscallError) as caught:
                call()
            assert caught.value.errno == errno.EBADF
        file.close()  # twice is fine
        assert p.read(a, 2) == b"xf"
        c = p.fork()
        p.exit()
        assert c.read(a, 2) == b"xf"
        assert m.meminfo().shmem == 4 * PAGE
        c.munmap(a, 4 * PAGE)
        assert m.meminfo().shmem == 0
        c.exit()
        assert m.meminfo() == boot


def test_a_dropped_handle_is_a_closed_one() -> None:
    """The last reference gone, the file is closed; in a cycle, when the collector comes."""
    with machine() as m:
        boot = m.meminfo()
        file = m.create_file("f", b"f" * PAGE)
        file.me = file  # type: ignore[attr-defined]
        del file
        gc.collect()
        assert m.meminfo() == boot


def test_host_files_are_read_once_and_read_only(tmp_path: Path) -> None:
    """One page cache per inode, read on demand with some around; writing is EBADF or EINVAL."""
    path = tmp_path / "f"
    data = os.urandom(200 * PAGE + 5)
    path.write_bytes(data)
    with machine() as m:
        file, again = m.open_file(str(path)), m.open_file(path)
        assert file.inode == again.inode
        assert file.size == len(data)
        assert m.meminfo().file == 0
        assert file.pread(10, 100 * PAGE) == data[100 * PAGE : 100 * PAGE + 10]
        assert 0 < m.meminfo().file <= 64 * PAGE
        assert file.pread(len(data) + 9, 0) == data
        assert m.meminfo().file == 201 * PAGE
        assert again.pread(5, len(data) - 5) == data[-5:]
        for call, number in (
            (lambda: file.pwrite(b"x", 0), errno.EBADF),
            (lambda: file.truncate(0), errno.EINVAL),
        ):
            with pytest.raises(SyscallError) as caught:
                call()
            assert caught.value.errno == number


def test_a_host_file_that_changes_is_another_file(tmp_path: Path) -> None:
    """Opened again after it changed, it is read anew; who had it open keeps what was read."""
    path = tmp_path / "f"
    path.write_bytes(b"old" * PAGE)
    with machine() as m:
        old = m.open_file(path)
        assert old.pread(3, 0) == b"old"
        path.write_bytes(b"newer" * PAGE)
        new = m.open_file(path)
        assert new.pread(5, 0) == b"newer"
        assert old.pread(3, 0) == b"old"
        assert new.size == 5 * PAGE


def test_a_host_file_that_became_shorter_is_a_bus_error(tmp_path: Path) -> None:
    """What cannot be read any more: SIGBUS for who maps it; pread ends or fails, it does not hang."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100 * PAGE)
    with machine() as m:
        file = m.open_file(path)
        p = m.spawn()
        a = p.mmap(None, 100 * PAGE, R, Map.PRIVATE, file)
        assert p.read(a, 1) == b"x"
        os.truncate(path, PAGE)
        with pytest.raises(BusError):
            p.read(a + 90 * PAGE, 1)
        try:
            assert file.pread(10, 90 * PAGE) in (b"", bytes(10))
        except SyscallError as error:
            assert error.errno == errno.EIO
        assert p.read(a, 1) == b"x"


def test_closed_files_and_ended_programs_leave_no_descriptors(tmp_path: Path) -> None:
    """The host's file is closed with its last user."""
    before = len(os.listdir("/proc/self/fd"))
    with machine() as m:
        for i in range(20):
            path = tmp_path / f"{i}"
            path.write_bytes(b"x")
            m.open_file(path).close()
        m.spawn("/bin/sh").exit()
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/no/such/file", errno.ENOENT),
        ("/tmp", errno.ENODEV),
        ("/dev/null", errno.ENODEV),
        ("/etc/passwd/x", errno.ENOTDIR),
        ("", errno.ENOENT),
        ("a\0b", errno.EINVAL),
        ("/" + "x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_be_opened(path: str, number: int) -> None:
    """Errors as open(2); no descriptor is left open."""
    with machine() as m:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(SyscallError) as caught:
            m.open_file(path)
        assert caught.value.errno == number
        assert len(os.listdir("/proc/self/fd")) == before


def test_pipes_and_sockets_are_refused_without_blocking(tmp_path: Path) -> None:
    """A FIFO without a writer does not hang."""
    os.mkfifo(tmp_path / "fifo")
    with machine() as m, pytest.raises(SyscallError) as caught:
        m.open_file(tmp_path / "fifo")
    assert caught.value.errno == errno.ENODEV


BAD: list[tuple[Callable[[File], object], int]] = [
    (lambda f: f.pread(-1, 0), errno.EINVAL),
    (lambda f: f.pread(1, -1), errno.EINVAL),
    (lambda f: f.pwrite(b"x", -1), errno.EINVAL),
    (lambda f: f.pwrite(b"x", (1 << 63) - 1), errno.EFBIG),
    (lambda f: f.pwrite(b"x", 1 << 70), errno.EFBIG),
    (lambda f: f.truncate(-1), errno.EINVAL),
    (lambda f: f.truncate(1 << 63), errno.EFBIG),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_numbers(number: int) -> None:
    """Negative and absurd sizes and offsets: an errno, nothing changed."""
    call, expected = BAD[number]
    with machine() as m:
        file = m.create_file("f", b"abc")
        with pytest.raises(SyscallError) as caught:
            call(file)
        assert caught.value.errno == expected
        assert (file.size, file.pread(9, 0)) == (3, b"abc")


def test_sparse_files_take_frames_for_what_is_there() -> None:
    """A file of many terabytes with a byte at its end."""
    with machine() as m:
        before = m.meminfo()
        file = m.create_file("sparse")
        file.truncate((1 << 62) + 5)
        file.pwrite(b"end", 1 << 62)
        assert file.pread(10, 1 << 62) == b"end\0\0"
        assert file.pread(5, 1 << 45) == bytes(5)
        assert m.meminfo().shmem - before.shmem == PAGE
        p = m.spawn()
        a = p.mmap(None, PAGE, RW, Map.SHARED, file, 1 << 62)
        assert p.read(a, 3) == b"end"
        with pytest.raises(SyscallError) as caught:
            p.mmap(None, PAGE, R, Map.SHARED, file, (1 << 63) - PAGE)
        assert caught.value.errno == errno.EOVERFLOW


def test_writenotify_faults_at_the_first_write() -> None:
    """writenotify: a page mapped by a read faults again at the first write; without, it is writable at once."""
    for notify, expected in ((False, counts(none=1)), (True, counts(file_minor=1))):
        with machine(fault_around=1) as m:
            p = m.spawn()
            a = p.mmap(None, PAGE, RW, Map.SHARED, m.create_file("f", b"f" * PAGE, writenotify=notify))
            p.read(a, 1)
            assert p.touch(a, PAGE, write=True) == expected
            assert p.touch(a, PAGE, write=True) == counts(none=1)


def test_files_of_another_machine_are_refused() -> None:
    """EBADF, and nothing is mapped."""
    with machine() as m, machine() as other:
        file = other.create_file("f", b"x" * PAGE)
        p = m.spawn()
        with pytest.raises(SyscallError) as caught:
            p.mmap(None, PAGE, R, Map.PRIVATE, file)
        assert caught.value.errno == errno.EBADF
        assert p.maps() == []


def test_private_mappings_of_one_file_at_different_offsets() -> None:
    """Offsets in pages: each mapping shows its part, frames are the file's."""
    with machine(fault_around=1) as m:
        file = m.create_file("f", b"".join(bytes([i]) * PAGE for i in range(10)))
        p = m.spawn()
        maps = [p.mmap(None, 2 * PAGE, R, Map.PRIVATE, file, i * PAGE) for i in range(9)]
        for i, a in enumerate(maps):
            assert p.read(a, 2 * PAGE) == bytes([i]) * PAGE + bytes([i + 1]) * PAGE
        assert pfn(p, maps[0] + PAGE) == pfn(p, maps[1])
        assert len({pfn(p, a) for a in maps}) == 9
