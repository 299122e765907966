"""Single calls from Python, 100 of each at a time, and a trace. `extra_info["units"]` says how many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.rows.common import PAGE, PRIVATE, RW, resident
from vmemu import Machine, Process, workloads

Measure = Callable[..., None]
CALLS = 100


def _often(call: Callable[..., object], *arguments: Any) -> Callable[[Any], None]:
    def work(_: Any) -> None:
        for _ in range(CALLS):
            call(*arguments)

    return work


@pytest.mark.parametrize("call", ["read", "write", "touch", "translate"])
def bench_call(measure: Measure, process: Process, call: str) -> None:
    """What reaches the core on the shortest way."""
    address = resident(process, PAGE)
    arguments = {"read": (8,), "write": (b"12345678",), "touch": (PAGE,), "translate": ()}
    measure(_often(getattr(process, call), address, *arguments[call]), units=CALLS)


@pytest.mark.parametrize("nvmas", [10, 10_000])
def bench_mmap_munmap(measure: Measure, process: Process, nvmas: int) -> None:
    """A page is mapped, written and unmapped beside other mappings."""
    for _ in range(nvmas // 2):
        process.mmap(None, PAGE, RW, PRIVATE)
        process.mmap(None, PAGE, 0, PRIVATE)

    def work(_: Any) -> None:
        for _ in range(CALLS):
            address = process.mmap(None, PAGE, RW, PRIVATE)
            process.touch(address, PAGE, write=True)
            process.munmap(address, PAGE)

    measure(work, units=CALLS)


def bench_trace(measure: Measure, machine: Machine) -> None:
    """200,000 accesses of 16 processes, with the forks and the exits of all."""
    records = workloads.mixed(nprocesses=16, npages=256, naccesses=200_000)

    def end(_: Any) -> None:
        for process in list(machine.init.children):
            process.exit(0)
        for process in list(machine.processes.values()):
            if process.pid != 1 and process.state != "Z":
                process.exit(0)

    measure(lambda _: machine.run(records, outcomes=False), after=end, units=len(records))
