"""PID/oom_score, oom_score_adj and oom_adj: the kernel's formulas and errnos (probed on 6.18)."""

from __future__ import annotations

import errno
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import PAGE, anon, machine

from vmemu import Clone, Machine, Process, SyscallError
from vmemu.credentials import ALL_CAPABILITIES

RESOURCE = 1 << 24


@pytest.fixture
def m() -> Iterator[Machine]:
    with machine(memory="16MiB") as m:
        yield m


def weak(m: Machine) -> Process:
    """A process without CAP_SYS_RESOURCE."""
    p = m.spawn()
    p.capset(ALL_CAPABILITIES & ~RESOURCE, ALL_CAPABILITIES & ~RESOURCE)
    return p


def write(m: Machine, p: Process, file: str, data: bytes, by: Process | None = None) -> int:
    """0, or the errno."""
    try:
        assert m.procfs.write(f"{p.pid}/{file}", data, by=by.pid if by else None) == len(data)
    except SyscallError as error:
        assert error.errno is not None
        return error.errno
    return 0


def read(m: Machine, p: Process, file: str) -> int:
    text = m.procfs.read(f"{p.pid}/{file}")
    assert text.endswith(b"\n")
    return int(text)


def test_score(m: Machine) -> None:
    """(1000 + badness in thousandths of RAM) * 2 / 3, where tables and oom_score_adj count; never the exempt."""
    p = m.spawn()
    assert read(m, p, "oom_score") == 666
    a = anon(p, 1024)
    p.touch(a, 1024 * PAGE, write=True)
    badness = (p.rss + p.page_tables) // PAGE
    assert badness > 1024
    assert read(m, p, "oom_score") == (1000 + badness * 1000 // 4096) * 2 // 3
    for adj in (-999, -500, 1, 500, 1000):
        write(m, p, "oom_score_adj", b"%d" % adj)
        points = badness + adj * (4096 // 1000)
        thousandths = abs(points) * 1000 // 4096 * (1 if points >= 0 else -1)
        assert read(m, p, "oom_score") == (1000 + thousandths) * 2 // 3
    write(m, p, "oom_score_adj", b"-1000")
    assert read(m, p, "oom_score") == 0
    assert m.procfs.read("1/oom_score") == b"0\n"


def test_score_of_a_vfork_child(m: Machine) -> None:
    """Who borrows memory is not chosen for it; the lender is."""
    p = m.spawn()
    c = p.vfork()
    assert (read(m, c, "oom_score"), read(m, p, "oom_score")) == (0, 666)


@pytest.mark.parametrize(
    ("data", "result", "value"),
    [
        (b"0", 0, 0),
        (b"1000", 0, 1000),
        (b"-1000", 0, -1000),
        (b"5\n", 0, 5),
        (b" 7", 0, 7),
        (b"7 ", 0, 7),
        (b"+5", 0, 5),
        (b"0x10", 0, 16),
        (b"010", 0, 8),
        (b"1\0", 0, 1),
        (b"1001", errno.EINVAL, 3),
        (b"-1001", errno.EINVAL, 3),
        (b"x", errno.EINVAL, 3),
        (b"", errno.EINVAL, 3),
        (b"1 2", errno.EINVAL, 3),
        (b"08", errno.EINVAL, 3),
        (b"99999999999", errno.ERANGE, 3),
        (b"123456789012345678", errno.ERANGE, 3),
    ],
)
def test_numbers(m: Machine, data: bytes, result: int, value: int) -> None:
    """What is a number (kstrtoint(), base 0) and in range is taken."""
    p = m.spawn()
    p.set_oom_score_adj(3)
    assert write(m, p, "oom_score_adj", data) == result
    assert (read(m, p, "oom_score_adj"), p.oom_score_adj) == (value, value)


def test_lowering_needs_a_capability(m: Machine) -> None:
    """Not below what it was last set to with CAP_SYS_RESOURCE; children inherit value and bound."""
    p = weak(m)
    steps = [(b"1000", 0), (b"0", 0), (b"-1", errno.EACCES), (b"5", 0), (b"-5", errno.EACCES)]
    assert [write(m, p, "oom_score_adj", data, by=p) for data, _ in steps] == [result for _, result in steps]
    assert write(m, p, "oom_score_adj", b"100") == 0
    assert write(m, p.fork(), "oom_score_adj", b"99", by=p) == errno.EACCES
    assert write(m, p, "oom_score_adj", b"100", by=p) == 0


def test_the_old_scale(m: Machine) -> None:
    """-17 to 15; any lowering needs the capability (oom_adj_write())."""
    p = weak(m)
    p.set_oom_score_adj(5)
    steps = [
        (b"0", errno.EACCES, 5, 0),
        (b"15", 0, 1000, 15),
        (b"16", errno.EINVAL, 1000, 15),
        (b"-16", errno.EACCES, 1000, 15),
        (b"-18", errno.EINVAL, 1000, 15),
        (b"x", errno.EINVAL, 1000, 15),
    ]
    got = [
        (data, write(m, p, "oom_adj", data, by=p), read(m, p, "oom_score_adj"), read(m, p, "oom_adj"))
        for data, *_ in steps
    ]
    assert got == steps
    for old, new in ((-17, -1000), (-16, -941), (8, 470), (1, 58), (-1, -58)):
        assert write(m, p, "oom_adj", b"%d" % old) == 0
        assert read(m, p, "oom_score_adj") == new
    assert read(m, p, "oom_adj") == 0  # -58 * 17 / 1000, towards 0


def test_who_shares_memory_shares_the_value(m: Machine) -> None:
    """The kernel kills all users of a memory together, so a write is for all of them; but a vfork child."""
    p = m.spawn()
    c = p.clone(Clone.VM | signal.SIGCHLD)
    v = p.vfork()
    write(m, p, "oom_score_adj", b"300")
    assert (p.oom_score_adj, c.oom_score_adj, v.oom_score_adj) == (300, 300, 0)
    write(m, v, "oom_score_adj", b"-300")
    write(m, c, "oom_adj", b"15")
    assert (p.oom_score_adj, c.oom_score_adj, v.oom_score_adj) == (1000, 1000, -300)


@pytest.mark.linux
def test_a_small_process_scores_as_on_this_kernel() -> None:
    """Of a process that takes under a thousandth of RAM nothing but oom_score_adj counts."""
    with Machine(memory="4GiB") as m, subprocess.Popen(["sleep", "60"]) as real:
        p, theirs = m.spawn(), Path("/proc", str(real.pid))
        try:
            for adj in (0, 1, 500, 1000):
                (theirs / "oom_score_adj").write_text(str(adj))
                write(m, p, "oom_score_adj", b"%d" % adj)
                assert abs(read(m, p, "oom_score") - int((theirs / "oom_score").read_text())) <= 1
        finally:
            real.kill()
