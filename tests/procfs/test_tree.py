"""The tree of /proc: paths, directories, links, and what cannot be read or written."""

from __future__ import annotations

import errno
import os

import pytest
from machines import anon, machine

from vmemu import Machine, SyscallError, VmemuError


def test_paths() -> None:
    """With or without /proc in front; what is not there is ENOENT, zombies have no mappings."""
    with machine() as m:
        p = m.spawn()
        anon(p)
        text = m.procfs.read(f"{p.pid}/maps")
        assert m.procfs.read(f"/proc/{p.pid}/maps") == text
        assert isinstance(text, bytes)
        c = p.fork()
        c.exit()
        assert m.procfs.read(f"{c.pid}/maps") == b""
        assert m.procfs.read("1/maps") == b""
        p.wait()
        for path in (
            f"{c.pid}/maps",
            "99999/maps",
            "0/maps",
            "",
            "x",
            f"{p.pid}",
            f"{p.pid}/nothing",
            "-1/maps",
            "../x",
        ):
            with pytest.raises(SyscallError) as caught:
                m.procfs.read(path)
            assert caught.value.errno in (errno.ENOENT, errno.EISDIR)


def failure(call: object, *args: object) -> int:
    with pytest.raises(SyscallError) as caught:
        call(*args)  # type: ignore[operator]
    assert caught.value.errno is not None
    return caught.value.errno


def test_paths_are_walked_as_the_kernel_walks_them() -> None:
    """Dots and double slashes; a file is no directory, a directory no file."""
    with machine() as m:
        p = m.spawn()
        text = m.procfs.read(f"{p.pid}/stat")
        assert m.procfs.read(f"//{p.pid}//./task/../stat") == text
        assert m.procfs.read(f"{p.pid}/task/{p.pid}/stat") == text
        assert m.procfs.read("/proc/sys/kernel/../vm/max_map_count") == b"65530\n"
        wrong = {
            f"{p.pid}/stat/x": errno.ENOTDIR,
            "meminfo/x": errno.ENOTDIR,
            f"{p.pid}/task": errno.EISDIR,
            f"{p.pid}/task/{p.pid}": errno.EISDIR,
            f"{p.pid}/fd": errno.EISDIR,
            "sys/vm": errno.EISDIR,
            "/proc": errno.EISDIR,
            f"{p.pid}/task/1/stat": errno.ENOENT,
            f"{p.pid}/task/{p.pid}/task": errno.ENOENT,
            f"0{p.pid}/stat": errno.ENOENT,
            "sys/vm/nothing": errno.ENOENT,
            "../etc/passwd": errno.ENOENT,
        }
        assert {path: failure(m.procfs.read, path) for path in wrong} == wrong


def test_slices() -> None:
    """Any file can be read in parts; behind its end there is nothing."""
    with machine() as m:
        whole = m.procfs.read("meminfo")
        assert m.procfs.read("meminfo", 9, 20) == whole[9:29]
        assert m.procfs.read("meminfo", len(whole) - 3) == whole[-3:]
        assert m.procfs.read("meminfo", len(whole) + 3, 5) == b""
        with pytest.raises(TypeError):
            m.procfs.read("meminfo", "0")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            m.procfs.read(7)  # type: ignore[arg-type]


def test_every_file_that_is_listed_can_be_opened() -> None:
    """Each name is a file, a link or a directory; what is no link cannot be followed."""
    with Machine(memory="64MiB") as m:
        p = m.spawn("/bin/sh")
        seen = 0
        waiting = [""]
        while waiting:
            at = waiting.pop()
            for name in m.procfs.listdir(at):
                path = f"{at}/{name}".strip("/")
                seen += 1
                if name in ("exe", "cwd", "root"):
                    continue
                try:
                    m.procfs.read(path, 0, 64)
                except SyscallError as error:
                    if error.errno == errno.EISDIR:
                        waiting.append(path)
                    else:
                        assert (name, error.errno) == ("clear_refs", errno.EINVAL), path
                assert failure(m.procfs.readlink, path) == errno.EINVAL
        assert seen > 100
        assert m.procfs.readlink(f"{p.pid}/exe") == os.path.realpath("/bin/sh") == p.exe
        assert m.procfs.readlink(f"{p.pid}/cwd") == m.procfs.readlink(f"{p.pid}/task/{p.pid}/root") == "/"


def test_directories() -> None:
    """Processes by number, then files; a thread's directory has all but task."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        assert m.procfs.listdir()[:3] == ["1", str(p.pid), str(c.pid)]
        c.exit()
        assert str(c.pid) in m.procfs.listdir("/proc")
        files = m.procfs.listdir(str(c.pid))
        assert set(files) - set(m.procfs.listdir(f"{c.pid}/task/{c.pid}")) == {"task"}
        assert m.procfs.listdir(f"{c.pid}/task") == [str(c.pid)]
        assert m.procfs.listdir(f"{c.pid}/fd") == []
        assert m.procfs.listdir("sys") == ["fs", "kernel", "vm"]
        p.wait()
        wrong = {str(c.pid): errno.ENOENT, f"{p.pid}/stat": errno.ENOTDIR, "meminfo": errno.ENOTDIR, "x": errno.ENOENT}
        assert {path: failure(m.procfs.listdir, path) for path in wrong} == wrong
        assert failure(m.procfs.readlink, f"{c.pid}/exe") == errno.ENOENT


def test_zombies() -> None:
    """Files on memory are empty or cannot be opened, links lead nowhere, the others are there (probed on 6.18)."""
    with machine() as m:
        p = m.spawn()
        anon(p)
        c = p.fork()
        c.exit(3)
        read = m.procfs.read
        assert [read(f"{c.pid}/{file}") for file in ("maps", "smaps", "cmdline")] == [b""] * 3
        assert read(f"{c.pid}/statm") == b"0 0 0 0 0 0 0\n"
        assert [read(f"{c.pid}/{file}") for file in ("oom_score", "oom_score_adj", "oom_adj")] == [b"0\n"] * 3
        for file in ("smaps_rollup", "environ", "auxv", "pagemap"):
            assert failure(read, f"{c.pid}/{file}") == errno.ESRCH
        for link in ("exe", "cwd", "root"):
            assert failure(m.procfs.readlink, f"{c.pid}/{link}") == errno.ENOENT
        assert m.procfs.write(f"{c.pid}/clear_refs", b"1") == 1


def test_what_can_only_be_read() -> None:
    """EINVAL of a process's files, EIO of the machine's, EACCES of its constants; nothing where nothing is."""
    with machine() as m:
        p = m.spawn()
        wrong = {
            f"{p.pid}/stat": errno.EINVAL,
            f"{p.pid}/pagemap": errno.EINVAL,
            "meminfo": errno.EIO,
            "kpagecount": errno.EIO,
            "sys/kernel/ostype": errno.EACCES,
            "x": errno.ENOENT,
            "9999/comm": errno.ENOENT,
            f"{p.pid}": errno.EISDIR,
        }
        assert {path: failure(m.procfs.write, path, b"x") for path in wrong} == wrong
        with pytest.raises(TypeError):
            m.procfs.write("meminfo", 7)  # type: ignore[arg-type]


def test_a_machine_that_is_closed() -> None:
    """It says so."""
    m = Machine(memory="1MiB")
    m.close()
    for call in (m.procfs.read, m.procfs.listdir):
        with pytest.raises(VmemuError, match="the machine is closed"):
            call("1/stat" if call == m.procfs.read else "")
