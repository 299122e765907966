"""Ratios of vmemu to a bound, both measured in this process, in turns, as the least of many short runs.

A ratio is a property of vmemu and of the CPU's make, not of how busy the machine is: what disturbs one side for longer
than a run disturbs the other too, and the least of many runs is of the moments when nothing did.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from bench.measure import pinned
from bench.native import bound, kernel_program
from bench.rows.common import MIB, PAGE, PRIVATE, RW, arena, clock, frames, map_small, reap, resident
from vmemu import ForkMode, Machine

__all__ = ["RATIOS", "measure_ratios"]

Run = Callable[[], float]
"""Does the work once and returns the nanoseconds of the part that counts."""

NPAGES = 1024
"""So few that the bookkeeping stays in the caches: four times as many were four times as unsteady."""
SIZE = NPAGES * PAGE
CALLS = 200


@dataclass(frozen=True)
class Ratio:
    """What is compared: a generator that sets up and yields (vmemu's run, the bound's run)."""

    name: str
    bound: str
    setup: Callable[[], Iterator[tuple[Run, Run]]]


RATIOS: list[Ratio] = []


def _ratio(name: str, of: str) -> Callable[[Callable[[], Iterator[tuple[Run, Run]]]], None]:
    def register(function: Callable[[], Iterator[tuple[Run, Run]]]) -> None:
        RATIOS.append(Ratio(name, of, function))

    return register


def _timed(work: Callable[[], object]) -> float:
    start = clock()
    work()
    return clock() - start


def _walk() -> Run:
    """Steps through a table of 16 KiB: as fast as the CPU's clock."""
    table = np.arange(4096, dtype=np.uint32)
    return lambda: _timed(lambda: bound().walk(table, 20_000))


def _calls() -> Run:
    """Calls of a small method in a loop: as fast as the interpreter."""

    class Counter:
        def __init__(self) -> None:
            self.table = {i: i for i in range(64)}

        def step(self, at: int, data: bytes) -> bytes:
            return data[: self.table[at & 63]]

    counter, data = Counter(), bytes(64)

    def work() -> None:
        step = counter.step
        for i in range(2000):
            step(i, data)

    return lambda: _timed(work)


@_ratio("cow.copy", "memcpy of the same frames")
def _cow_copy() -> Iterator[tuple[Run, Run]]:
    with Machine(memory="64MiB") as m:
        parent = m.spawn()
        address = resident(parent, SIZE)
        source, ram = frames(parent, address, NPAGES), arena(m)
        spent = 0.0

        def vmemu() -> float:
            nonlocal spent
            child = parent.fork()
            ns = _timed(lambda: child.touch(address, SIZE, write=True))
            to = frames(child, address, NPAGES)
            spent = _timed(lambda: bound().copy(ram, source, to))
            reap(parent, child)
            return ns

        yield vmemu, lambda: spent


def _faults(name: str, contents: bool) -> None:
    @_ratio(f"{name}.bookkeeping", "a walk in the cache")
    def _setup() -> Iterator[tuple[Run, Run]]:
        with Machine(memory="64MiB", contents=contents) as m:
            parent = m.spawn()
            address = resident(parent, SIZE)

            def cow() -> float:
                child = parent.fork()
                ns = _timed(lambda: child.touch(address, SIZE, write=True))
                reap(parent, child)
                return ns

            def reuse() -> float:
                reap(parent, parent.fork())
                return _timed(lambda: parent.touch(address, SIZE, write=True))

            def zero() -> float:
                where = parent.mmap(None, SIZE, RW, PRIVATE)
                ns = _timed(lambda: parent.touch(where, SIZE, write=True))
                parent.munmap(where, SIZE)
                return ns

            def fork() -> float:
                start = clock()
                children = [parent.fork() for _ in range(8)]
                ns = clock() - start
                for child in children:
                    child.exit(0)
                    parent.wait()
                return ns

            def hit() -> float:
                parent.touch(address, SIZE, write=True)
                return _timed(lambda: [parent.touch(address, SIZE) for _ in range(8)])

            yield {"cow": cow, "reuse": reuse, "zero": zero, "fork": fork, "hit": hit}[name], _walk()


for _name in ("cow", "reuse", "zero", "fork", "hit"):
    _faults(_name, contents=False)


@_ratio("access.random", "reads of a table in the same order")
def _access() -> Iterator[tuple[Run, Run]]:
    with Machine(memory="64MiB") as m:
        process = m.spawn()
        address = resident(process, 16 * MIB)
        pages = np.arange(16 * MIB // PAGE, dtype=np.uint64)
        np.random.default_rng(0).shuffle(pages)
        where = np.uint64(address) + pages * np.uint64(PAGE)
        yield (lambda: _timed(lambda: process.access(where))), _walk()


def _cycle(mode: ForkMode) -> None:
    @_ratio(f"cycle.{mode.name.lower()}", "calls in Python")
    def _setup() -> Iterator[tuple[Run, Run]]:
        with Machine(memory="64MiB") as m:
            parent = m.spawn()
            map_small(parent)

            def work() -> None:
                for _ in range(20):
                    parent.fork(mode=mode).exit(0)
                    parent.wait()

            yield (lambda: _timed(work)), _calls()


for _mode in (ForkMode.COW, ForkMode.ON_DEMAND):
    _cycle(_mode)


@_ratio("call.read", "calls in Python")
def _read() -> Iterator[tuple[Run, Run]]:
    with Machine(memory="64MiB") as m:
        process = m.spawn()
        address = resident(process, PAGE)
        yield (lambda: _timed(lambda: [process.read(address, 8) for _ in range(CALLS)])), _calls()


@_ratio("call.write", "calls in Python")
def _write() -> Iterator[tuple[Run, Run]]:
    with Machine(memory="64MiB") as m:
        process = m.spawn()
        address = resident(process, PAGE)

        def work() -> None:
            for _ in range(CALLS):
                process.write(address, b"12345678")

        yield (lambda: _timed(work)), _calls()


@_ratio("call.mmap", "calls in Python")
def _mmap() -> Iterator[tuple[Run, Run]]:
    with Machine(memory="64MiB") as m:
        process = m.spawn()

        def work() -> None:
            for _ in range(20):
                process.munmap(process.mmap(None, PAGE, RW, PRIVATE), PAGE)

        yield (lambda: _timed(work)), _calls()


@_ratio("exec", "calls in Python")
def _exec() -> Iterator[tuple[Run, Run]]:
    program = str(kernel_program())
    with Machine(memory="64MiB") as m:
        process = m.spawn(program, ["kernel"], {"PATH": "/bin"})
        yield (lambda: _timed(lambda: process.execve(program, ["kernel"], {"PATH": "/bin"}))), _calls()


def measure_ratios(names: Iterable[str] | None = None, seconds: float = 0.8, turn: int = 0) -> dict[str, float]:
    """Name -> vmemu's least time by the bound's, of as many runs as *seconds* hold; *turn* chooses the CPU."""
    wanted = None if names is None else set(names)
    found = {}
    with pinned(every_cpu=False, turn=turn):
        for ratio in RATIOS:
            if wanted is not None and ratio.name not in wanted:
                continue
            with contextmanager(ratio.setup)() as (vmemu, base):
                gc.collect()
                gc.disable()
                try:
                    pairs: list[tuple[float, float]] = []
                    end = clock() + seconds * 1e9
                    while clock() < end or len(pairs) < 50:
                        pairs.append((vmemu(), base()))
                finally:
                    gc.enable()
            mine, other = (min(values) for values in zip(*pairs[5:], strict=True))
            found[ratio.name] = mine / other
    return found
