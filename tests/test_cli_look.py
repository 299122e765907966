"""vmemu ps, vmemu top and vmemu bomb --procfs, run as commands."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import psutil
import pytest
from commands import COMMAND, vmemu
from machines import PAGE, RW, SHARED

from vmemu import Machine


def on_terminal(columns: int, lines: int, *arguments: str) -> str:
    """What a command prints on a terminal of that size."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "LINES": str(lines), "TERM": "xterm"}
    with subprocess.Popen([*COMMAND, *arguments], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        out = b""
        try:
            while more := os.read(ours, 65536):
                out += more
        except OSError:  # the other side is closed
            pass
        assert process.wait() == 0, out
    os.close(ours)
    return out.decode().replace("\r\n", "\n")


def plain(text: str) -> list[str]:
    return re.sub(r"\033\[[0-9;]*m", "", text).splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A shell, two children of which the first wrote more, a grandchild, a zombie."""
    with Machine(memory="64MiB") as m:
        p = m.spawn("/bin/sh", ["sh", "-c", "x" * 200], {}, link=True)
        p.touch(p.mmap(None, 64 * PAGE, RW, SHARED), 64 * PAGE, write=True)
        first, second = p.fork(), p.fork()
        first.touch(first.mmap(None, 256 * PAGE, RW, 0x22), 256 * PAGE, write=True)
        second.set_name("second")
        second.fork()
        p.fork().exit()
        m.procfs.export(tmp_path / "tree")
    return tmp_path / "tree"


def test_ps(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each process, figures as psutil reads them from the same tree."""
    lines = vmemu("ps", str(tree)).stdout.splitlines()
    assert lines[0].split() == "USER PID PPID %MEM VSZ RSS PSS STAT COMMAND".split()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tree))
    seen = {int(row.split()[1]): row.split(maxsplit=8) for row in lines[1:]}
    assert sorted(seen) == psutil.pids() == [1, 2, 3, 4, 5, 6]
    for pid in (2, 3, 4, 5):
        one, full = psutil.Process(pid), psutil.Process(pid).memory_full_info()
        numbers = [one.ppid(), full.vms >> 10, full.rss >> 10, full.pss >> 10]
        assert [int(seen[pid][i]) for i in (2, 4, 5, 6)] == numbers
        assert float(seen[pid][3]) == round(one.memory_percent(), 1)
        assert seen[pid][8] == "sh -c " + "x" * 200
    assert (seen[6][7], seen[6][8]) == ("Z", "[sh] <defunct>")
    assert seen[1][8] == "[init]"


def test_ps_columns_order_forest(tree: Path) -> None:
    """-o by any name that ps or top has, --sort by several, --forest as ps draws it."""
    out = vmemu("ps", "-o", "pid,res,COMM", "--sort", "-rss,pid", "--no-headers", str(tree)).stdout
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows][:2] == ["3", "2"]
    assert [int(row[1]) for row in rows] == sorted((int(row[1]) for row in rows), reverse=True)
    assert {row[0]: row[2] for row in rows}["4"] == "second"
    forest = vmemu("ps", "-o", "pid,comm", "--forest", str(tree)).stdout.splitlines()
    assert [line.rstrip() for line in forest] == [
        "PID COMMAND",
        "  1 init",
        "  2  \\_ sh",
        "  3      \\_ sh",
        "  4      \\_ second",
        "  5      |   \\_ second",
        "  6      \\_ sh",
    ]


def test_top(tree: Path) -> None:
    """The summary, then the largest first."""
    lines = vmemu("top", "-b", str(tree)).stdout.splitlines()
    assert re.fullmatch(r"top - up 00:00, .*/tree", lines[0])
    assert lines[1] == "Tasks:   6 total,   5 running,   0 sleeping,   0 stopped,   1 zombie"
    assert lines[2].split()[:5] == ["MiB", "Mem", ":", "64.0", "total,"]
    head = next(i for i, line in enumerate(lines) if "COMMAND" in line)
    assert lines[head].split() == "PID USER VIRT RES SHR PSS S %MEM nMin nMaj COMMAND".split()
    sizes = [int(line.split()[3]) for line in lines[head + 1 :]]
    assert sizes == sorted(sizes, reverse=True)
    assert lines[head + 1].split()[0] == "3"
    lines = vmemu("top", "-o", "+pid", str(tree)).stdout.splitlines()
    assert [line.split()[0] for line in lines[head + 1 :]] == ["1", "2", "3", "4", "5", "6"]


def test_top_again(tree: Path) -> None:
    """-n times, with -d between."""
    out = vmemu("top", "-n", "3", "-d", "0", str(tree)).stdout
    assert out.count("Tasks:   6 total") == 3


def test_json(tree: Path) -> None:
    """All that is known, in the order asked for."""
    found = json.loads(vmemu("ps", "--json", "--sort", "-pid", str(tree)).stdout)
    assert [one["pid"] for one in found["processes"]] == [6, 5, 4, 3, 2, 1]
    assert found["memory"]["total"] == 64 << 20
    assert json.loads(vmemu("top", "--json", str(tree)).stdout)["processes"][0]["pid"] == 3


def test_without_a_tree() -> None:
    """A small workload, the same each time; as ps aux is typed too."""
    first = vmemu("ps").stdout
    assert len(first.splitlines()) == 1 + 1 + 8
    assert vmemu("ps", "aux").stdout == vmemu("ps", "-e").stdout == first
    assert vmemu("ps", "--seed", "1").stdout.splitlines()[0] == first.splitlines()[0]
    assert "a shell forked for three generations" in vmemu("top").stdout


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal(tree: Path, width: int) -> None:
    """No line is longer than the terminal is wide, and top no longer than it is high."""
    out = plain(on_terminal(width, 12, "ps", str(tree)))
    assert max(map(len, out)) == width
    assert len(out) == 7
    out = plain(on_terminal(width, 12, "top", str(tree)))
    assert len(out) == 11
    assert max(map(len, out)) <= width
    assert len(plain(on_terminal(width, 12, "top", "-b", str(tree)))) == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ps", "/no/such/tree"], "No such file or directory (/no/such/tree)"),
        (["ps", "/etc/passwd"], "Not a directory"),
        (["top", "/etc"], "/etc is not a tree of /proc"),
        (["ps", "-o", "nothing"], "'nothing' is no column; there are "),
        (["ps", "-o", ""], "no column is named"),
        (["ps", "--sort", "-nothing"], "'nothing' is no column"),
        (["top", "-o", "nothing"], "'nothing' is no column"),
        (["top", "-n", "0"], "-n: 0 is less than 1"),
        (["top", "-d", "-1"], "-d: -1 is not a time"),
        (["bomb", "--procfs", "/etc"], "--procfs: export: Directory not empty (/etc holds something"),
        (["bomb", "--procfs", "/etc/passwd"], "--procfs: export: Not a directory"),
        (["bomb", "--procfs", "/no/such/tree"], "--procfs: export: No such file or directory"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str) -> None:
    done = vmemu(*arguments, status=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_bomb_leaves_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine when the bomb has stopped: every process alive, memory as the report has it."""
    tree = tmp_path / "tree"
    report = json.loads(vmemu("bomb", "--generations", "4", "--procfs", str(tree), "--json").stdout)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tree))
    assert len(psutil.pids()) == report["processes"] + 1 == 17
    memory = psutil.virtual_memory()
    assert memory.total - memory.free == report["used_bytes"]
    out = vmemu("ps", str(tree)).stdout.splitlines()
    assert len(out) == 1 + 17
    vmemu("bomb", "--generations", "1", "--procfs", str(tree))  # replaces it
    assert len(psutil.pids()) == 3


@pytest.mark.linux
def test_the_hosts_own_processes() -> None:
    """Any /proc can be read: this process is in it."""
    rows = json.loads(vmemu("ps", "--json", "/proc").stdout)["processes"]
    me = next(row for row in rows if row["pid"] == os.getpid())
    assert me["ppid"] == os.getppid()
    assert me["rss"] > 1 << 20
