"""Faults in batch, by kind and size. Times are of one call of the work; `extra_info["units"]` says how many pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.rows.common import MIB, PAGE, PRIVATE, RW, reap, resident
from vmemu import ForkMode, Map, Process

Measure = Callable[..., None]


@pytest.mark.parametrize("mib", [1, 64])
def bench_demand_zero(measure: Measure, process: Process, mib: int) -> None:
    """First writes to anonymous memory."""
    measure(
        lambda address: process.touch(address, mib * MIB, write=True),
        lambda: process.mmap(None, mib * MIB, RW, PRIVATE),
        lambda address: process.munmap(address, mib * MIB),
        units=mib * MIB // PAGE,
    )


def bench_zero_page(measure: Measure, process: Process) -> None:
    """First reads of 64 MiB of anonymous memory."""
    measure(
        lambda address: process.touch(address, 64 * MIB),
        lambda: process.mmap(None, 64 * MIB, RW, PRIVATE),
        lambda address: process.munmap(address, 64 * MIB),
        units=64 * MIB // PAGE,
    )


@pytest.mark.parametrize("mib", [1, 64])
@pytest.mark.parametrize("mode", [ForkMode.COW, ForkMode.ON_DEMAND], ids=["cow", "on-demand"])
def bench_cow_copy(measure: Measure, process: Process, mib: int, mode: ForkMode) -> None:
    """A child writes each page of what it shares with its parent: one copy each."""
    address = resident(process, mib * MIB)
    measure(
        lambda child: child.touch(address, mib * MIB, write=True),
        lambda: process.fork(mode=mode),
        lambda child: reap(process, child),
        units=mib * MIB // PAGE,
    )


def bench_cow_reuse(measure: Measure, process: Process) -> None:
    """The parent writes 64 MiB again after its child is gone: faults without a copy."""
    address = resident(process, 64 * MIB)
    measure(
        lambda _: process.touch(address, 64 * MIB, write=True),
        lambda: reap(process, process.fork()),
        units=64 * MIB // PAGE,
    )


def bench_file_read(measure: Measure, machine: Any, process: Process) -> None:
    """Reads of a mapped file of 16 MiB that is in the page cache, with fault-around."""
    file = machine.create_file("data", bytes(16 * MIB))
    measure(
        lambda address: process.touch(address, 16 * MIB),
        lambda: process.mmap(None, 16 * MIB, RW, Map.PRIVATE, file),
        lambda address: process.munmap(address, 16 * MIB),
        units=16 * MIB // PAGE,
    )


@pytest.mark.parametrize("order", ["sequential", "random"])
def bench_translation(measure: Measure, process: Process, order: str) -> None:
    """Accesses in one batch to 64 MiB that is resident: no faults."""
    import numpy as np

    address = resident(process, 64 * MIB)
    pages = np.arange(64 * MIB // PAGE, dtype=np.uint64)
    if order == "random":
        np.random.default_rng(0).shuffle(pages)
    addresses = np.uint64(address) + pages * np.uint64(PAGE)
    measure(lambda _: process.access(addresses), units=len(addresses))
