"""Files about the whole machine and about limits: stat, uptime, loadavg, sys/, PID/limits, PID/io, clear_refs."""

from __future__ import annotations

import errno
import re

import pytest
from machines import ANON, PAGE, RW, A, filled, machine
from procfs.shape import host, status

from vmemu import Machine, Overcommit, SyscallError
from vmemu.limits import Resource


def test_time_and_processes() -> None:
    """The machine's clock in seconds; forks since boot, those alive, the last pid."""
    with machine() as m:
        p = m.spawn()
        kids = p.fork_many(5)
        kids[0].exit()
        kids[1].vfork()
        m.sleep(12_345_678_901)
        seconds = f"{m.clock_ns // 10**7 / 100:.2f}"
        assert m.procfs.read("uptime") == f"{seconds} {seconds}\n".encode()
        assert m.procfs.read("loadavg") == b"0.00 0.00 0.00 6/8 8\n"
        lines = dict(line.split(maxsplit=1) for line in m.procfs.read("stat").decode().splitlines())
        assert (lines["processes"], lines["procs_running"]) == ("8", "6")
        assert int(lines["cpu"].split()[3]) == m.clock_ns // 10**7
        assert int(m.procfs.read(f"{kids[4].pid}/stat").split()[21]) == kids[4].started_ns // 10**7
        kids[0].pid, p.wait(kids[0].pid)
        p.fork()
        assert m.procfs.read("loadavg") == b"0.00 0.00 0.00 7/8 9\n"


@pytest.mark.linux
@pytest.mark.parametrize("file", ["stat", "swaps", "loadavg", "uptime", "buddyinfo", "self/io", "self/statm"])
def test_keys_are_the_kernels(file: str) -> None:
    """The first word of each line, and how many numbers follow."""

    def form(text: bytes) -> list[list[bytes]]:
        lines = [re.sub(rb"\b\d+(\.\d\d)?\b", b"#", line).split() for line in text.splitlines()]
        return [line[:1] if line[0] in (b"intr", b"cpu#") else line for line in lines if line[0] != b"cpu1"]

    with machine() as m:
        mine, real = form(m.procfs.read(file.replace("self", "1"))), form(host(file))
        if file == "buddyinfo":
            assert mine[0] == real[-1]
        elif file == "swaps":
            assert mine == real[:1]
        else:
            assert [line for line in mine if line[0] != b"cpu0"] == [
                line for line in real if not re.fullmatch(rb"cpu\d+", line[0])
            ]


@pytest.mark.linux
def test_limits_are_laid_out_as_the_kernels() -> None:
    """The same rows, columns and units; values those of the process."""

    def form(text: bytes) -> list[bytes]:
        return [
            re.sub(rb"(unlimited|\d+) *", lambda found: b"#%d " % len(found[0]), line) for line in text.splitlines()
        ]

    with machine() as m:
        p = m.spawn()
        assert form(m.procfs.read(f"{p.pid}/limits")) == form(host("self/limits"))
        lines = m.procfs.read(f"{p.pid}/limits").decode().splitlines()[1:]
        assert len(lines) == len(Resource)
        assert lines[Resource.STACK].split() == ["Max", "stack", "size", "8388608", "unlimited", "bytes"]
        p.fork().exit()
        assert m.procfs.read("3/limits") == m.procfs.read("2/limits")


@pytest.mark.parametrize(
    ("data", "result"),
    [
        *((data, 0) for data in (b"5", b"5\n", b" 5", b"5 ", b"05", b"5\n\n", b"5\0")),
        *((data, errno.EINVAL) for data in (b"0", b"6", b"-1", b"x", b"", b"5x", b"0x5")),
        *((data, errno.ERANGE) for data in (b"99999999999999", b"123456789012345678")),
    ],
)
def test_clear_refs_numbers(data: bytes, result: int) -> None:
    """Probed on 6.18."""
    with machine() as m:
        p = m.spawn()
        try:
            assert m.procfs.write(f"{p.pid}/clear_refs", data) == len(data)
            assert not result
        except SyscallError as error:
            assert error.errno == result


def test_clear_refs_5_resets_the_high_water_mark() -> None:
    """VmHWM is VmRSS again; VmPeak stays."""
    with machine() as m:
        p = m.spawn()
        filled(p, 8, A)
        p.munmap(A + PAGE, 7 * PAGE)
        assert status(m, p)["VmHWM"] == 8 * PAGE
        m.procfs.write(f"{p.pid}/clear_refs", b"5")
        got = status(m, p)
        assert (got["VmHWM"], got["VmRSS"], got["VmPeak"]) == (PAGE, PAGE, 8 * PAGE)


def test_settings() -> None:
    """sys/vm: read, written, and heeded."""
    with machine() as m:
        p = m.spawn()
        assert m.procfs.read("sys/vm/overcommit_memory") == b"0\n"
        with pytest.raises(SyscallError):
            p.mmap(None, 1 << 30, RW, ANON)
        assert m.procfs.write("sys/vm/overcommit_memory", b"1\n") == 2
        p.mmap(None, 1 << 30, RW, ANON)
        for data in (b"3", b"-1", b"x"):
            with pytest.raises(SyscallError) as caught:
                m.procfs.write("sys/vm/overcommit_memory", data)
            assert caught.value.errno == errno.EINVAL
        assert m.procfs.write("sys/vm/overcommit_memory", b"") == 0
        assert m.procfs.read("sys/vm/overcommit_memory") == b"1\n"
        with pytest.raises(SyscallError) as caught:
            m.procfs.write("sys/kernel/randomize_va_space", b"1")
        assert caught.value.errno == errno.EACCES
    with Machine(memory="1MiB", overcommit=Overcommit.NEVER, overcommit_ratio=7, aslr=True) as m:
        assert [m.procfs.read(f"sys/vm/overcommit_{what}") for what in ("memory", "ratio")] == [b"2\n", b"7\n"]
        assert m.procfs.read("sys/kernel/randomize_va_space") == b"2\n"
