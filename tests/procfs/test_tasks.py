"""Threads, signals and stopped processes as /proc shows them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from machines import PAGE, anon, machine

from vmemu import Clone, Machine, SyscallError

THREAD = Clone.VM | Clone.SIGHAND | Clone.THREAD


def fields(m: Machine, path: str) -> dict[str, str]:
    """Lines of a status file."""
    return dict(line.split(":\t", 1) for line in m.procfs.read(f"{path}/status").decode().splitlines())


def numbers(m: Machine, path: str) -> list[str]:
    """Fields of a stat file behind the name; field n of proc(5) is at n - 3."""
    return m.procfs.read(f"{path}/stat").decode().rsplit(") ", 1)[1].split()


def test_threads_have_directories(tmp_path: Path) -> None:
    """Below task, and hidden at the top; a thread's own faults, name and pid there, the process's sums above."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 8)
        t = p.clone(THREAD)
        t.set_name("worker")
        t.touch(a, 3 * PAGE, write=True)
        p.touch(a, 5 * PAGE, write=True)
        assert m.procfs.listdir(f"{p.pid}/task") == [str(p.pid), str(t.tid)]
        assert str(t.tid) not in m.procfs.listdir()
        one = fields(m, f"{p.pid}/task/{t.tid}")
        assert (one["Name"], one["Tgid"], one["Pid"], one["Threads"]) == ("worker", str(p.pid), str(t.tid), "2")
        assert [fields(m, str(t.tid))[key] for key in ("Tgid", "Pid")] == [str(p.pid), str(t.tid)]
        assert [numbers(m, f"{p.pid}{rest}")[7] for rest in ("", f"/task/{p.pid}", f"/task/{t.tid}")] == ["5", "2", "3"]
        assert numbers(m, f"{p.pid}/task/{t.tid}")[35] == "-1"
        assert m.procfs.read(f"{p.pid}/maps") == m.procfs.read(f"{p.pid}/task/{t.tid}/maps")
        with pytest.raises(SyscallError):
            m.procfs.read(f"{p.pid}/task/1/stat")
        m.procfs.export(tmp_path / "proc", pid_offset=1000)
        tasks = tmp_path / "proc" / str(p.pid + 1000) / "task"
        assert sorted(os.listdir(tasks)) == [str(p.pid + 1000), str(t.tid + 1000)]
        assert (tasks / str(t.tid + 1000) / "comm").read_text() == "worker\n"
        p.exit_thread()
        assert fields(m, str(p.pid))["State"] == "Z (zombie)"
        assert fields(m, f"{p.pid}/task/{t.tid}")["State"] == "R (running)"


def test_signals_and_stops() -> None:
    with machine() as m:
        p = m.spawn()
        p.setsid()
        c = p.fork()
        c.setpgid()
        c.signal(signal.SIGUSR1, "handler")
        c.signal(signal.SIGUSR2, signal.SIG_IGN)
        c.sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
        p.kill(c.pid, signal.SIGTERM)
        p.tgkill(c.pid, c.pid, signal.SIGHUP)
        p.kill(c.pid, signal.SIGSTOP)
        status = fields(m, str(c.pid))
        assert status["State"] == "T (stopped)"
        masks = [int(status[key], 16) for key in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")]
        assert masks == [1, 1 << 14, 1 << 14 | 1, 1 << 11, 1 << 9]
        assert status["SigQ"].split("/")[0] == "2"
        assert [int(n) for n in numbers(m, str(c.pid))[28:32]] == [1, 1 << 14 | 1, 1 << 11, 1 << 9]
