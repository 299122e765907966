"""Ends of threads and processes on this kernel and in vmemu: whose exit code counts, who execs, who may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import machine, program

from vmemu import Clone, Process

pytestmark = pytest.mark.linux
THREAD = Clone.VM | Clone.SIGHAND | Clone.THREAD
Calls = list[tuple[str, int]]
"""What one thread does: exit, exit_group, kill (its own process), exec."""
CASES: dict[str, tuple[Calls, Calls]] = {
    "the first ends first": ([("exit", 3)], [("exit", 4)]),
    "the first ends last": ([("sleep", 0), ("exit", 3)], [("exit", 4)]),
    "exit_group after the first": ([("exit", 3)], [("exit_group", 6)]),
    "exit_group of the first": ([("exit_group", 6)], [("sleep", 0), ("exit", 4)]),
    "killed after the first": ([("exit", 3)], [("kill", signal.SIGTERM)]),
    "killed": ([("sleep", 0)], [("kill", signal.SIGKILL)]),
    "exec of the second": ([("sleep", 0), ("exit", 3)], [("exec", 0)]),
    "exec of the second, after the first": ([("exit", 3)], [("exec", 0)]),
}


def on_this_host(first: Calls, second: Calls) -> int:
    """The exit code of a process with two threads; the second begins when the first has done what it can at once."""
    script = Path(__file__).with_name("threadplay.py")
    return subprocess.run([sys.executable, str(script), json.dumps([first, second])]).returncode


def emulated(first: Calls, second: Calls, path: str) -> int:
    """The same in vmemu: the first until it sleeps, the second until it sleeps, the rest of the first."""
    with machine() as m:
        parent = m.spawn()
        p = parent.fork()
        tasks = [p, p.clone(THREAD)]
        calls = {
            "exit": Process.exit_thread,
            "exit_group": Process.exit_group,
            "kill": lambda task, sig: task.kill(p.pid, sig),
            "exec": lambda task, _: task.execve(path),
        }
        rest: list[Callable[[], object]] = []
        for task, script in zip(tasks, (first, second), strict=True):
            asleep = False
            for name, value in script:
                asleep = asleep or name == "sleep"
                if asleep and name != "sleep":
                    rest.append(lambda task=task, name=name, value=value: calls[name](task, value))
                elif not asleep and task.state == "running":
                    calls[name](task, value)
        if p.state == "running" and p.exe:
            p.exit(7)
        for late in rest:
            if p.threads:
                late()
        assert [child.pid for child in parent.children] == [p.pid]
        return os.waitstatus_to_exitcode(parent.wait()[1])


@pytest.mark.parametrize("case", CASES)
def test_same_as_this_kernel(case: str, tmp_path: Path) -> None:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("needs Linux on x86-64")
    assert emulated(*CASES[case], str(program(tmp_path))) == on_this_host(*CASES[case])
