"""Forks, exits and exec. Times are of one call of the work; `extra_info["units"]` says how many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.rows.common import MIB, map_small, reap, resident
from vmemu import ForkMode, Machine, Process

Measure = Callable[..., None]
MODES = pytest.mark.parametrize("mode", ForkMode, ids=lambda mode: mode.name.lower())


@MODES
def bench_fork_64_mib(measure: Measure, process: Process, mode: ForkMode) -> None:
    resident(process, 64 * MIB)
    children: list[Process] = []
    measure(lambda _: children.append(process.fork(mode=mode)), after=lambda _: reap(process, children.pop()))


@MODES
def bench_exit_64_mib(measure: Measure, process: Process, mode: ForkMode) -> None:
    resident(process, 64 * MIB)
    measure(lambda child: child.exit(0), lambda: process.fork(mode=mode), lambda _: process.wait())


@MODES
def bench_small_cycle(measure: Measure, process: Process, mode: ForkMode) -> None:
    """Fork, exit and wait of a process with 40 pages, 50 times."""
    map_small(process)

    def work(_: Any) -> None:
        for _ in range(50):
            process.fork(mode=mode).exit(0)
            process.wait()

    measure(work, units=50)


def bench_vfork_cycle(measure: Measure, process: Process) -> None:
    resident(process, 64 * MIB)
    measure(lambda _: reap(process, process.vfork()))


@pytest.mark.parametrize("mode", [ForkMode.COW, ForkMode.ON_DEMAND], ids=["cow", "on-demand"])
def bench_fork_many(measure: Measure, process: Process, mode: ForkMode) -> None:
    """1,000 children in one call."""
    map_small(process)
    children: list[Any] = []

    def end(_: Any) -> None:
        for child in children.pop():
            reap(process, child)

    measure(lambda _: children.append(process.fork_many(1000, mode=mode)), after=end, units=1000)


@pytest.mark.parametrize("link", [False, True], ids=["program", "linked"])
def bench_exec_sh(measure: Measure, process: Process, link: bool) -> None:
    """Execve of /bin/sh, its files in the page cache."""
    argv, environment = ["sh"], {"PATH": "/bin"}
    process.execve("/bin/sh", argv, environment, link=link)
    measure(lambda _: process.execve("/bin/sh", argv, environment, link=link))


def bench_boot_and_exec_sh(benchmark: Any) -> None:
    """A new machine and the first execve in it."""

    def boot() -> None:
        with Machine(memory="256MiB") as machine:
            machine.spawn("/bin/sh", ["sh"], {"PATH": "/bin"})

    benchmark(boot)
