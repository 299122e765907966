"""One run of a bomb on a machine: processes take turns in an order that a seed shuffles anew in each tick."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

from vmemu.bombs.options import Options
from vmemu.bombs.program import find_program, start, synthetic_file
from vmemu.bombs.record import Record
from vmemu.bombs.result import Bystander, Ended, Event, Fate, Result, Sample, Sharing
from vmemu.bombs.services import Service, Watcher
from vmemu.bombs.shapes import SHAPES
from vmemu.bombs.swarm import Actor, Swarm
from vmemu.cgroups import Cgroup
from vmemu.errors import KernelPanic, OutOfMemory, ProcessKilled, SwapError
from vmemu.limits import RLIM_INFINITY, Resource
from vmemu.machine import Machine
from vmemu.oom import OomReport
from vmemu.process import Process
from vmemu.types import PAGE_SIZE, ForkMode, fork_word

__all__ = ["SETTLE", "Run"]

SETTLE = 50
"""Ticks without growth or harm after which a limited bomb counts as contained; ticks without memory after which memory
counts as gone."""
_USER = 1000
_HEAP = 128 << 10
"""Of the built-in program, bytes."""
_SERVICE_TEXT = 1 << 20
_SERVICE_HEAP = 64 << 20
"""At most, bytes."""
_KILLS = 10
"""Runs of the OOM killer in a tick, which is 10 ms, after which there is no time left in it for the bomb."""
_SNAPSHOT_GROWTH = 1.15
"""How much larger the bomb has to be for the sharing to be looked at again."""


class Run:
    """The state of one scenario. `go()` yields the samples; `result()` is valid afterwards."""

    def __init__(self, machine: Machine, name: str, options: Options) -> None:
        options.defences.check(machine.meminfo().total)
        self.machine = machine
        self.made = machine.settings  # before a defence changes them
        self.name = name
        self.options = options
        self.rng = random.Random(options.seed)
        self.record = Record()
        self.swarm = Swarm(options, SHAPES[name], self.rng, self.record)
        self.tick = 0
        self.service: Service | None = None
        self.watcher: Watcher | None = None
        self.ended: Ended | None = None
        self.failure: str | None = None
        self.short_ticks = 0
        self.peak = self.peak_tick = 0
        self.trouble = 0
        """The last tick in which the bomb grew, somebody else was hurt, or memory was missing."""
        self.contained_at: int | None = None
        self.sharing: Sharing | None = None
        self._group = 0
        self._cgroup: Cgroup | None = None
        self._kills = 0
        self._last_report: OomReport | None = None

    def until(self, stop: Callable[[], bool]) -> None:
        """Ends as soon as *stop* is true."""
        self.swarm.stop = stop

    # ---- from beginning to end ----

    def go(self) -> Iterator[Sample]:
        """Runs the scenario, and yields after each tick."""
        with contextlib.ExitStack() as files:
            total = self.machine.meminfo().total
            program = self.options.program
            path = find_program(program) if program else files.enter_context(synthetic_file("sh"))
            text = max(min(_SERVICE_TEXT, total // 64 & -PAGE_SIZE), PAGE_SIZE)
            self.faults = self.machine.faults
            self._prepare(path, files.enter_context(synthetic_file("service", text)))
            while self.ended is None:
                self.tick += 1
                try:
                    self._one_tick()
                except KernelPanic:  # only those are left that may not be killed
                    self.ended = Ended.MEMORY
                except SwapError as error:
                    self.ended, self.failure = Ended.SWAP, str(error.strerror)
                sample = self._sample()
                self._judge(sample)
                self.record.samples.append(sample)
                yield sample

    def _prepare(self, program: str, service: str) -> None:
        """Starts the service, the watcher and the bomb's first process."""
        machine, options = self.machine, self.options
        defences = options.defences
        if defences.overcommit is not None:
            machine.procfs.write("sys/vm/overcommit_memory", str(defences.overcommit).encode())
        heap = options.service or min(machine.meminfo().total // 20, _SERVICE_HEAP)
        self.service = Service(machine, service, max(heap & -PAGE_SIZE, 8 * PAGE_SIZE))
        if defences.protect:
            self.service.process.set_oom_score_adj(-1000)
        if defences.watcher is not None:
            self.watcher = Watcher(machine, defences.watcher)
        if (defences.pids_max, defences.memory_max) != (None, None):
            self._cgroup = machine.cgroups.create("bomb", pids_max=defences.pids_max, memory_max=defences.memory_max)
        argv = list(options.argv or [options.program or "sh"])
        heap = 0 if options.program else _HEAP
        try:
            first, pages = start(machine, program, argv, options.dirty, heap, self._enter)
        except (OutOfMemory, KernelPanic):
            self.ended = Ended.MEMORY
        except ProcessKilled:
            self._look_for_kills()
            if self.swarm.short:
                self.ended = Ended.MEMORY
            else:  # its cgroup is too small even for one
                self.ended, self.contained_at = Ended.CONTAINED, 0
        else:
            self._look_for_kills()
            self._group = first.pid
            self.swarm.light(first, program, pages)
        self.service.found_killed(0)

    def _enter(self, process: Process) -> None:
        """The bomb's user logs in: a session of its own, no capabilities, its limits."""
        nproc = self.options.defences.nproc
        limit = RLIM_INFINITY if nproc is None else nproc
        process.setsid()
        process.setrlimit(Resource.NPROC, (limit, limit))
        if self._cgroup is not None:
            process.cgroup = self._cgroup
        process.setgid(_USER)
        process.setuid(_USER)

    def result(self) -> Result:
        """What came out."""
        options, swarm, info = self.options, self.swarm, self.machine.meminfo()
        fork = ForkMode(self.made["fork_mode"]) if options.fork is None else options.fork
        settings = {
            "bomb": self.name,
            "defences": options.defences.words,
            "memory": info.total,
            "swap": info.swap_total,
            "swap_file": self.machine.swap_file,
            "policy": self.made["policy"],
            "fork": fork_word(fork),
            "ticks": options.ticks,
            "max_processes": options.max_processes,
            "generations": options.generations,
            "dirty": options.dirty,
            "seed": options.seed,
            "program": options.program,
            "argv": None if options.argv is None else list(options.argv),
            "service": self.service.working_set if self.service else 0,
            "machine": self.made,
        }
        return Result(
            shape=self.name,
            settings=settings,
            ended=self.ended or Ended.INTERRUPTED,
            ticks=self.tick,
            samples=self.record.series(),
            events=self.record.events(),
            tree=self.record.tree(),
            forks=swarm.forks,
            kills=swarm.kills,
            oom_kills=self._kills,
            refused={name.value: count for name, count in swarm.refused.items()},
            peak_processes=self.peak,
            peak_tick=self.peak_tick,
            contained_at=self.contained_at,
            bystander=self.service.fate if self.service else Bystander(None, 0, 0, None),
            sharing=self.sharing,
            failure=self.failure,
        )

    # ---- a tick ----

    def _one_tick(self) -> None:
        swarm = self.swarm
        turns: list[Actor | Service | Watcher] = [*swarm.begin(self.tick)]
        turns += [other for other in (self.service, self.watcher) if other is not None]
        self.rng.shuffle(turns)
        kills = self._kills
        for who in turns:
            if isinstance(who, Actor):
                if self._kills - kills >= _KILLS:
                    swarm.ready.append(who)
                    continue
                swarm.turn(who)
                self._look_for_kills()
                if swarm.ended is not None:
                    self.ended = swarm.ended
                    break
            elif isinstance(who, Service):
                self._serve(who)
            elif who.turn(self.tick, len(swarm.alive), self._group):
                swarm.bury()
        self._look_for_kills()
        swarm.end()

    def _look_for_kills(self) -> None:
        """What the OOM killer has done since the last look."""
        reports = self.machine.oom_reports
        for report in reversed(reports):
            if report is self._last_report:
                break
            if report.cgroup is not None:
                self.swarm.limited = True
            else:
                self.swarm.short = True
            self._kills += len(report.killed)
        self._last_report = reports[-1] if reports else None

    def _serve(self, service: Service) -> None:
        if service.killed_at is not None:
            return
        fate = service.turn(self.tick)
        if fate is not Fate.FINE:
            how = Event.STALL if fate is Fate.STALLED else Event.KILLED
            self.record.event(self.tick, how, service.process.pid)
            self.trouble = self.tick

    def _sample(self) -> Sample:
        swarm = self.swarm
        return Sample.of(
            self.machine,
            self.machine.faults - self.faults,
            tick=self.tick,
            processes=len(swarm.alive),
            runnable=len(swarm.ready),
            forks=swarm.forks,
            kills=swarm.kills,
            oom_kills=self._kills,
            refused=tuple(swarm.refused.values()),
            bystander=self._fate(),
        )

    def _fate(self) -> Fate:
        service = self.service
        if service is None:
            return Fate.FINE
        if service.killed_at is None and service.found_killed(self.tick):  # after its turn
            self.trouble = self.tick
            self.record.event(self.tick, Event.KILLED, service.process.pid)
        if service.killed_at is not None:
            return Fate.KILLED
        return Fate.STALLED if service.last_stall == self.tick else Fate.FINE

    def _judge(self, sample: Sample) -> None:
        """Whether that was the last tick."""
        swarm = self.swarm
        if sample.processes > self.peak:
            self.peak, self.peak_tick = sample.processes, self.tick
            self.trouble = self.tick
        self._look(sample.processes)
        if swarm.short:
            self.short_ticks += 1
            self.trouble = self.tick
        if self.ended is not None:
            return
        if not swarm.alive:
            self.ended, self.contained_at = Ended.CONTAINED, self.tick
        elif swarm.limited and self.tick - self.trouble >= SETTLE:
            self.ended, self.contained_at = Ended.CONTAINED, self.trouble
        elif self.short_ticks >= SETTLE:
            self.ended = Ended.MEMORY
        elif self.tick >= self.options.ticks:
            self.ended = Ended.TICKS

    def _look(self, processes: int) -> None:
        """At the sharing, if the bomb is clearly larger than it was the last time."""
        before = self.sharing.processes if self.sharing else 0
        if not self.options.sharing or processes < before * _SNAPSHOT_GROWTH:
            return
        self.sharing = Sharing.of(self.machine, self.tick, processes)
