"""PID/cmdline, environ, auxv, comm: what is in the process's memory now, as the kernel reads it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from machines import PAGE, RW, machine, program, snapshot

from vmemu import Machine, Process, SyscallError


def field(m: Machine, p: Process, number: int) -> int:
    """Of PID/stat."""
    return int(m.procfs.read(f"{p.pid}/stat").rpartition(b")")[2].split()[number - 3])


def started(m: Machine, path: Path) -> Process:
    return m.spawn(str(program(path)), ["name", "first", "second"], {"KEY": "value", "B": ""})


def test_as_executed(tmp_path: Path) -> None:
    """Arguments and environment, each with its 0; the auxiliary vector with AT_NULL."""
    with machine() as m:
        p = started(m, tmp_path)
        assert m.procfs.read(f"{p.pid}/cmdline") == b"name\0first\0second\0"
        assert m.procfs.read(f"{p.pid}/environ") == b"KEY=value\0B=\0"
        raw = m.procfs.read(f"{p.pid}/auxv")
        words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
        assert list(zip(words[::2], words[1::2], strict=True)) == [*p.auxv, (0, 0)]
        assert m.procfs.read(f"{p.fork().pid}/cmdline") == b"name\0first\0second\0"


def test_nothing_executed() -> None:
    """No strings at all."""
    with machine() as m:
        p = m.spawn()
        assert [m.procfs.read(f"{p.pid}/{file}") for file in ("cmdline", "environ", "auxv")] == [b""] * 3


def test_overwritten(tmp_path: Path) -> None:
    """What the process wrote over its strings is what is read; a title that runs over their end goes on to its 0
    (get_mm_cmdline())."""
    with machine() as m:
        p = started(m, tmp_path)
        start = field(m, p, 48)
        p.write(start, b"NAME")
        assert m.procfs.read(f"{p.pid}/cmdline") == b"NAME\0first\0second\0"
        p.write(start, b"title\0")
        assert m.procfs.read(f"{p.pid}/cmdline") == b"title\0irst\0second\0"
        p.write(start, b"a title that is longer")
        assert m.procfs.read(f"{p.pid}/cmdline") == b"a title that is longervalue\0"
        assert m.procfs.read(f"{p.pid}/environ") == b"ngervalue\0B=\0"


def test_memory_that_is_gone(tmp_path: Path) -> None:
    """Up to where memory ends or is no private anonymous memory (FOLL_ANON)."""
    with machine() as m:
        p = started(m, tmp_path)
        stack = next(v for v in p.maps() if v.name == "[stack]")
        p.munmap(stack.start, stack.size)
        assert m.procfs.read(f"{p.pid}/cmdline") == m.procfs.read(f"{p.pid}/environ") == b""
        anon_end = field(m, p, 49) // PAGE * PAGE
        p.mmap(anon_end, PAGE, RW, 0x32)
        assert m.procfs.read(f"{p.pid}/cmdline") == bytes(len(b"name\0first\0second\0"))


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Not an accessed bit, not a fault."""
    with machine() as m:
        p = started(m, tmp_path)
        m.procfs.write(f"{p.pid}/clear_refs", b"5")
        before = snapshot(m), m.procfs.read(f"{p.pid}/smaps")
        for file in m.procfs.listdir(str(p.pid)):
            if file not in ("clear_refs", "pagemap", "task", "fd", "fdinfo", "exe", "cwd", "root"):
                m.procfs.read(f"{p.pid}/{file}")
        assert (snapshot(m), m.procfs.read(f"{p.pid}/smaps")) == before


def test_without_contents(tmp_path: Path) -> None:
    """A machine whose frames hold no bytes knows what was executed."""
    with machine(contents=False) as m:
        p = started(m, tmp_path)
        assert m.procfs.read(f"{p.pid}/cmdline") == b"name\0first\0second\0"
        assert m.procfs.read(f"{p.pid}/environ") == b"KEY=value\0B=\0"


def test_comm(tmp_path: Path) -> None:
    """Written by the process itself, up to 15 bytes and a 0 (comm_write())."""
    with machine() as m:
        p = started(m, tmp_path)
        assert m.procfs.write(f"{p.pid}/comm", b"a" * 20, by=p.pid) == 20
        assert m.procfs.read(f"{p.pid}/comm") == b"a" * 15 + b"\n"
        assert m.procfs.write(f"{p.pid}/task/{p.pid}/comm", "x\0y") == 3
        assert (m.procfs.read(f"{p.pid}/comm"), p.comm) == (b"x\n", "x")
        assert m.procfs.write(f"{p.pid}/comm", b"") == 0
        assert m.procfs.read(f"{p.pid}/comm") == b"\n"
        with pytest.raises(SyscallError) as caught:
            m.procfs.write(f"{p.pid}/comm", b"other", by=1)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.linux
def test_titles_as_this_kernel_reads_them(tmp_path: Path) -> None:
    """The same bytes written over the strings of a real process and of an emulated one give the same files."""
    code = r"""
import ctypes, os, sys
fields = open("/proc/self/stat", "rb").read().rpartition(b")")[2].split()
start, end, env_start, env_end = (int(fields[i - 3]) for i in (48, 49, 50, 51))
for title in eval(sys.argv[2]):
    ctypes.memmove(start, title, len(title))
    for file in ("cmdline", "environ"):
        print(open(f"/proc/self/{file}", "rb").read())
print((start, end, env_start, env_end))
"""
    titles = [b"one\0", b"no end", b"x" * 9, b"long" * 500 + b"\0rest", b"y" * 5000 + b"\0"]
    real = subprocess.run(
        [sys.executable, "-c", code, "-", repr(titles), "padding" * 400],
        env={"A": "b" * 4000},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    with Machine(memory="32MiB") as m:
        argv = [sys.executable, "-c", code, "-", repr(titles), "padding" * 400]
        p = m.spawn(str(program(tmp_path)), argv, {"A": "b" * 4000})
        mine = []
        for title in titles:
            p.write(field(m, p, 48), title)
            mine += [repr(m.procfs.read(f"{p.pid}/{file}")).encode() for file in ("cmdline", "environ")]
        assert mine == real[:-1]


def test_links_follow_exec(tmp_path: Path) -> None:
    """exe is the program's real path."""
    with machine() as m:
        p = started(m, tmp_path)
        link = tmp_path / "link"
        link.symlink_to(program(tmp_path, "other"))
        p.execve(str(link))
        assert m.procfs.readlink(f"{p.pid}/exe") == os.path.realpath(link)
        assert re.fullmatch(rb"link\n", m.procfs.read(f"{p.pid}/comm"))
