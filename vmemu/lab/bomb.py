"""The fork bomb: a real program in an emulated machine, forked until a limit or memory ends it.

Each living process forks once a generation, so their number doubles, and each new child writes some pages of its
private memory, which the seed chooses.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vmemu.bombs import Refusal
from vmemu.bombs.options import MAX_PROCESSES
from vmemu.bombs.program import default_program, find_program, start
from vmemu.errors import SyscallError
from vmemu.lab.film import Film
from vmemu.lab.report import BombReport, Generation, Stopped
from vmemu.machine import Machine
from vmemu.process import Process
from vmemu.procfs.export import check
from vmemu.types import PAGE_SIZE, ForkMode

__all__ = ["MAX_PROCESSES", "default_program", "eager_bytes", "ended_by", "find_program", "run", "start"]

_PAGES = 1 << 35
"""Of the user half of an address space."""
_PROGRESS_EVERY = 64
"""Forks between two calls of a progress function."""


def eager_bytes(machine: Machine, processes: Sequence[Process]) -> int:
    """RAM in bytes that *processes* would take if nothing were shared by copy-on-write.

    Each process's resident anonymous pages and its page tables, plus the page cache and shared memory once.
    """
    info = machine.meminfo()
    root = PAGE_SIZE  # which `page_tables`, as VmPTE, leaves out
    own = machine.usage(processes)
    return info.file + info.shmem + int(own[:, 0].sum() + own[:, 3].sum()) + root * len(processes)


def run(
    program: str | None = None,
    argv: Sequence[str] | None = None,
    *,
    memory: int | str = "256MiB",
    fork: ForkMode = ForkMode.COW,
    generations: int | None = None,
    max_processes: int = MAX_PROCESSES,
    dirty: int = 1,
    seed: int = 0,
    progress: Callable[[Generation], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    procfs: str | os.PathLike[str] | None = None,
    film: Film | None = None,
) -> BombReport:
    """Run a fork bomb and report it.

    *memory* is the machine's RAM (bytes or a text such as "256MiB"), *dirty* the number of distinct pages that each
    new process writes. *progress* is called now and then with the state reached; the run ends early when *stop()*
    is true. Running out of memory is an outcome (`stopped`), also when not even the program fits (then `processes` is
    0). The machine is verified then and again after all processes have exited. *procfs* is a directory for a tree of
    the machine's /proc at its fullest, before any process exits; it is checked first (see ProcFS.export). *film* takes
    down every fork, and how the machine is after each generation.

    Raises SyscallError if the program can't be executed, ValueError for numbers that make no sense, InvariantError if
    the machine is found inconsistent.
    """
    for name, value, least in (
        ("generations", generations or 0, 0),
        ("max_processes", max_processes, 1),
        ("dirty", dirty, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: {value} is less than {least}")
    if dirty > _PAGES:
        raise ValueError(f"dirty: {dirty} pages are more than an address space has")
    if procfs is not None:
        check(procfs)
    path = find_program(default_program() if program is None else program)
    arguments = list(argv) if argv is not None else [path if program is None else program]
    clock = time.perf_counter
    began = clock()
    with Machine(memory=memory, fork_mode=fork, seed=seed) as machine:
        bomb = _Bomb(machine, dirty, random.Random(seed), stop, film)
        total = machine.meminfo().total
        bomb.light(path, arguments)
        started = clock()

        def state(number: int) -> Generation:
            return Generation(number, len(bomb.alive), bomb.forks, total - machine.meminfo().free, clock() - started)

        history = [state(0)]
        for _ in bomb.explode(generations, max_processes):
            if bomb.complete == history[-1].number + 1:
                history.append(state(bomb.complete))
                bomb.filmed()
            if progress:
                progress(state(bomb.complete))
        ended = clock()
        bomb.filmed_last()
        info = machine.meminfo()
        frames = machine.frame_stats()
        found: dict[str, Any] = {
            "faults": machine.faults,
            "frames_shared": frames.shared,
            "frames_copied": frames.copied,
            "page_table_bytes": info.page_tables,
            "anon_bytes": info.anon,
            "file_bytes": info.file,
            "used_bytes": info.total - info.free,
            "eager_bytes": eager_bytes(machine, bomb.alive),
        }
        if procfs is not None:
            machine.procfs.export(procfs)
        measured = clock()
        machine.verify()
        verified = clock()
        for process in bomb.alive:
            process.exit(0)
        exited = clock()
        machine.verify()
        verify_seconds = verified - measured + clock() - exited
    return BombReport(
        program=path,
        argv=arguments,
        fork=fork,
        memory=total,
        seed=seed,
        dirty=dirty,
        stopped=bomb.stopped,
        generations=bomb.complete,
        processes=len(bomb.alive),
        forks=bomb.forks,
        history=history,
        seconds=ended - started,
        start_seconds=started - began,
        exit_seconds=exited - verified,
        verify_seconds=verify_seconds,
        **found,
    )


def ended_by(error: SyscallError) -> Stopped:
    """The outcome that *error* is; raises it again if it is none."""
    if error.errno == errno.ENOMEM:
        return Stopped.MEMORY
    if error.errno == errno.EAGAIN:
        return Stopped.PIDS
    raise error


class _Bomb:
    """The processes of one run; `explode()` makes them."""

    def __init__(
        self, machine: Machine, dirty: int, rng: random.Random, stop: Callable[[], bool], film: Film | None
    ) -> None:
        self.machine = machine
        self.dirty = dirty
        self.rng = rng
        self.stop = stop
        self.film = film
        self.alive: list[Process] = []
        self.pages: list[int] = []
        self.forks = 0
        self.complete = 0
        self.stopped = Stopped.DONE

    def light(self, program: str, argv: Sequence[str]) -> None:
        """Start the first process, if memory suffices."""
        try:
            process, self.pages = start(self.machine, program, argv, self.dirty)
        except SyscallError as error:
            self.stopped = ended_by(error)
        else:
            self.alive.append(process)
            if self.film is not None:
                self.film.born(0, process.pid, -1)

    def filmed(self) -> None:
        """A generation is complete."""
        if self.film is not None:
            self.film.sample(self.complete, self.machine, len(self.alive), self.forks, None)

    def filmed_last(self) -> None:
        """All is over, perhaps within a generation."""
        if self.film is None:
            return
        refused = {Stopped.MEMORY: Refusal.MEMORY, Stopped.PIDS: Refusal.PIDS}.get(self.stopped)
        generation = self.complete
        if refused is not None or self.forks > (1 << self.complete) - 1:
            generation += 1
            self.film.sample(generation, self.machine, len(self.alive), self.forks, refused)
        self.film.look(generation, self.machine, len(self.alive))

    def explode(self, generations: int | None, max_processes: int) -> Iterator[None]:
        """Fork until something ends it, and say in `stopped` what; yields now and then."""
        try:
            while self.alive:
                if self.complete == generations:
                    self.stopped = Stopped.GENERATIONS
                    return
                for index, parent in enumerate(self.alive[:]):
                    if len(self.alive) >= max_processes:
                        self.stopped = Stopped.MAX_PROCESSES
                        return
                    if self.stop():
                        self.stopped = Stopped.INTERRUPTED
                        return
                    self._fork(parent, index)
                    if self.forks % _PROGRESS_EVERY == 0:
                        yield
                self.complete += 1
                yield
        except SyscallError as error:
            self.stopped = ended_by(error)

    def _fork(self, parent: Process, index: int) -> None:
        child = parent.fork()
        self.forks += 1
        self.alive.append(child)
        if self.film is not None:
            self.film.born(self.complete + 1, child.pid, index)
        if self.dirty:
            mark = child.pid.to_bytes(8, "little")
            for address in self.rng.sample(self.pages, self.dirty):
                child.write(address, mark)
