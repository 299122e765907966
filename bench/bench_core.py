"""What single operations cost: a call, a translation, a fault, a fork, an exec.

Times are of one call of the benchmarked function; where that does many things, `extra_info` says how many
(`pages`, `addresses`), and the time divided by it is the cost of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vmemu import ForkMode, Machine, Map, Process, Prot

MIB = 1 << 20
PAGE = 4096
RW = Prot.READ | Prot.WRITE
PRIVATE = Map.PRIVATE | Map.ANONYMOUS


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(memory="1GiB") as m:
        yield m


@pytest.fixture
def process(machine: Machine) -> Process:
    return machine.spawn()


def resident(process: Process, length: int) -> int:
    """The address of *length* bytes of private memory that is all written."""
    address = process.mmap(None, length, RW, PRIVATE)
    process.touch(address, length, write=True)
    return address


def bench_call_overhead(benchmark: Any, process: Process) -> None:
    """The shortest call that reaches the core: one translation."""
    address = resident(process, PAGE)
    benchmark(process.translate, address)


def bench_read_8_bytes(benchmark: Any, process: Process) -> None:
    address = resident(process, PAGE)
    benchmark(process.read, address, 8)


def bench_write_8_bytes(benchmark: Any, process: Process) -> None:
    address = resident(process, PAGE)
    benchmark(process.write, address, b"12345678")


@pytest.mark.parametrize("order", ["sequential", "random"])
def bench_access_resident(benchmark: Any, process: Process, order: str) -> None:
    """Translation: accesses in one batch to 64 MiB that is resident."""
    import numpy as np

    address = resident(process, 64 * MIB)
    pages = np.arange(64 * MIB // PAGE, dtype=np.uint64)
    if order == "random":
        np.random.default_rng(0).shuffle(pages)
    addresses = np.uint64(address) + pages * np.uint64(PAGE)
    benchmark.extra_info["addresses"] = len(addresses)
    kinds = benchmark(process.access, addresses, False)
    assert not kinds.any()


@pytest.mark.parametrize("mib", [1, 64])
def bench_demand_zero_fault(benchmark: Any, process: Process, mib: int) -> None:
    """First writes to anonymous memory."""

    def setup() -> tuple[tuple[int], dict[str, Any]]:
        return (process.mmap(None, mib * MIB, RW, PRIVATE),), {}

    def fill(address: int) -> None:
        process.touch(address, mib * MIB, write=True)

    def teardown(address: int) -> None:
        process.munmap(address, mib * MIB)

    benchmark.extra_info["pages"] = mib * MIB // PAGE
    benchmark.pedantic(fill, setup=setup, teardown=teardown, rounds=20)


@pytest.mark.parametrize("mib", [1, 64])
@pytest.mark.parametrize("mode", [ForkMode.COW, ForkMode.ON_DEMAND], ids=["cow", "on-demand"])
def bench_cow_fault(benchmark: Any, process: Process, mib: int, mode: ForkMode) -> None:
    """A child writes each page of what it shares with its parent: one copy each."""
    address = resident(process, mib * MIB)

    def setup() -> tuple[tuple[Process], dict[str, Any]]:
        return (process.fork(mode=mode),), {}

    def write(child: Process) -> None:
        faults = child.touch(address, mib * MIB, write=True)
        assert faults.cow_copy == mib * MIB // PAGE

    benchmark.extra_info["pages"] = mib * MIB // PAGE
    benchmark.pedantic(write, setup=setup, teardown=lambda child: reap(process, child), rounds=20)


def bench_cow_reuse(benchmark: Any, process: Process) -> None:
    """The parent writes 64 MiB again after its child is gone: faults without a copy."""
    address = resident(process, 64 * MIB)

    def setup() -> None:
        reap(process, process.fork())

    def write() -> None:
        faults = process.touch(address, 64 * MIB, write=True)
        assert faults.cow_copy == 0

    benchmark.extra_info["pages"] = 64 * MIB // PAGE
    benchmark.pedantic(write, setup=setup, rounds=20)


@pytest.mark.parametrize("mode", ForkMode, ids=lambda mode: mode.name.lower())
def bench_fork_64_mib(benchmark: Any, process: Process, mode: ForkMode) -> None:
    resident(process, 64 * MIB)
    children: list[Process] = []

    def fork() -> None:
        children.append(process.fork(mode=mode))

    benchmark.pedantic(fork, teardown=lambda: reap(process, children.pop()), rounds=20)


@pytest.mark.parametrize("mode", ForkMode, ids=lambda mode: mode.name.lower())
def bench_fork_exit_wait_64_mib(benchmark: Any, process: Process, mode: ForkMode) -> None:
    resident(process, 64 * MIB)
    benchmark.pedantic(lambda: reap(process, process.fork(mode=mode)), rounds=20)


def bench_vfork_exit_wait_64_mib(benchmark: Any, process: Process) -> None:
    resident(process, 64 * MIB)
    benchmark(lambda: reap(process, process.vfork()))


def bench_exec_sh(benchmark: Any, machine: Machine) -> None:
    """Execve of /bin/sh, its files in the page cache."""
    process = machine.spawn("/bin/sh", ["sh"], {"PATH": "/bin"})
    benchmark(process.execve, "/bin/sh", ["sh"], {"PATH": "/bin"})


def bench_boot_and_exec_sh(benchmark: Any) -> None:
    """A new machine and the first execve in it."""

    def boot() -> None:
        with Machine(memory="256MiB") as machine:
            machine.spawn("/bin/sh", ["sh"], {"PATH": "/bin"})

    benchmark(boot)


def reap(parent: Process, child: Process) -> None:
    """End *child* and take its exit status."""
    child.exit(0)
    parent.wait()
