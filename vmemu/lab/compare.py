"""One workload under each way to make a process, and what each cost.

A program makes children one after the other; each writes some pages and stays, then all exit. Under vfork the child
borrows the parent's memory and the parent waits, so it can't write pages of its own: it only exits, and the next one
is made after that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from vmemu.errors import SyscallError
from vmemu.lab import bomb
from vmemu.lab.report import CompareReport, ForkCost, Stopped
from vmemu.machine import Machine
from vmemu.process import Process
from vmemu.types import PAGE_SIZE, ForkMode, fork_word, parse_size

__all__ = ["WAYS", "run"]

WAYS = (*(fork_word(mode) for mode in (ForkMode.EAGER, ForkMode.COW, ForkMode.ON_DEMAND)), "vfork")


def run(
    program: str | None = None,
    argv: Sequence[str] | None = None,
    *,
    memory: int | str = "1GiB",
    processes: int = 100,
    dirty: int = 4,
    heap: int | str = "1MiB",
    seed: int = 0,
    repeat: int = 3,
    progress: Callable[[str], None] | None = None,
) -> CompareReport:
    """Run the workload under each of `WAYS`, *repeat* times each on a new machine, and report the least times.

    *memory* is each machine's RAM (bytes or a text such as "256MiB"), *processes* the number of children, *dirty* the
    number of distinct pages that each writes, *heap* how much heap the parent has written before the first fork;
    *progress* is called with the name of what runs next.
    Running out of memory ends that way's run and is reported.

    Raises SyscallError if the program can't be executed, ValueError for numbers that make no sense, InvariantError if
    a machine is found inconsistent.
    """
    for name, value, least in (("processes", processes, 1), ("dirty", dirty, 0), ("repeat", repeat, 1)):
        if value < least:
            raise ValueError(f"{name}: {value} is less than {least}")
    path = bomb.find_program(bomb.default_program() if program is None else program)
    arguments = list(argv) if argv is not None else [path if program is None else program]
    heap_bytes = parse_size(heap, "heap")
    costs = []
    for way in WAYS:
        if progress:
            progress(way)
        runs = [_Run(way, memory, path, arguments, processes, dirty, heap_bytes, seed) for _ in range(repeat)]
        costs.append(_least([each.cost() for each in runs]))
    return CompareReport(
        program=path,
        argv=arguments,
        memory=runs[0].memory,
        processes=processes,
        dirty=dirty,
        heap=heap_bytes,
        seed=seed,
        repeat=repeat,
        resident_bytes=runs[0].resident,
        costs=costs,
    )


class _Run:
    """One run of the workload on a machine of its own."""

    def __init__(
        self,
        way: str,
        memory: int | str,
        path: str,
        argv: list[str],
        processes: int,
        dirty: int,
        heap: int,
        seed: int,
    ) -> None:
        self.way = way
        self.size = memory
        self.path = path
        self.argv = argv
        self.processes = processes
        self.dirty = dirty
        self.heap = heap
        self.rng = random.Random(seed)
        self.memory = 0
        self.resident = 0
        self.stopped = Stopped.DONE
        self.fork_seconds = self.write_seconds = self.exit_seconds = 0.0
        self.made = 0

    def cost(self) -> ForkCost:
        """Do it. Raises OutOfMemory if not even the program fits."""
        mode = ForkMode.COW if self.way == "vfork" else ForkMode[self.way.upper().replace("-", "_")]
        with Machine(memory=self.size, fork_mode=mode) as machine:
            parent, pages = bomb.start(machine, self.path, self.argv, self.dirty, self.heap)
            before = machine.meminfo()
            self.memory, self.resident = before.total, parent.rss
            faults, copied = machine.faults, machine.frame_stats().copied
            children: list[Process] = []
            try:
                if self.way == "vfork":
                    self._vforks(parent)
                else:
                    self._forks(parent, pages, children)
            except SyscallError as error:
                self.stopped = bomb.ended_by(error)
            after, frames = machine.meminfo(), machine.frame_stats()
            self._exits(parent, children)
            cost = ForkCost(
                how=self.way,
                stopped=self.stopped,
                processes=self.made,
                faults=machine.faults - faults,
                frames_shared=frames.shared,
                frames_copied=frames.copied - copied,
                frames_used=(before.free - after.free) // PAGE_SIZE,
                page_table_bytes=after.page_tables,
                fork_seconds=self.fork_seconds,
                write_seconds=self.write_seconds,
                exit_seconds=self.exit_seconds,
            )
            parent.exit(0)
            machine.verify()
        return cost

    def _forks(self, parent: Process, pages: list[int], children: list[Process]) -> None:
        clock = time.perf_counter
        for _ in range(self.processes):
            chosen = self.rng.sample(pages, self.dirty)
            began = clock()
            child = parent.fork()
            forked = clock()
            self.fork_seconds += forked - began
            self.made += 1
            children.append(child)
            mark = child.pid.to_bytes(8, "little")
            for address in chosen:
                child.write(address, mark)
            self.write_seconds += clock() - forked

    def _vforks(self, parent: Process) -> None:
        clock = time.perf_counter
        for _ in range(self.processes):
            began = clock()
            child = parent.vfork()
            self.fork_seconds += clock() - began
            self.made += 1
            self._exits(parent, [child])

    def _exits(self, parent: Process, children: list[Process]) -> None:
        clock = time.perf_counter
        began = clock()
        for child in children:
            child.exit(0)
            parent.wait()
        self.exit_seconds += clock() - began


def _least(costs: list[ForkCost]) -> ForkCost:
    """The run that took the least time in all: counts are the same in all of them."""
    return min(costs, key=lambda cost: cost.total_seconds)
