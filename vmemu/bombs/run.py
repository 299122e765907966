"""One run of a bomb on a machine: processes take turns in an order that a seed shuffles anew in each tick."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vmemu.bombs.defences import Defences
from vmemu.bombs.program import ENVIRONMENT, find_program, start, synthetic_file, warm_up
from vmemu.bombs.record import Record
from vmemu.bombs.result import KINDS, Ended, Event, Fate, Refusal, Result, Sample, Sharing
from vmemu.bombs.services import SERVICE_TEXT, Service, Watcher
from vmemu.bombs.shapes import CHILD, FOREVER, SHAPES, Life, Shape
from vmemu.errors import OutOfMemory, ProcessKilled, SyscallError
from vmemu.limits import RLIM_INFINITY, Resource
from vmemu.machine import Machine
from vmemu.process import Process
from vmemu.types import PAGE_SIZE, ForkMode

if TYPE_CHECKING:
    from vmemu.types import FaultCounts

__all__ = ["MAX_PROCESSES", "SETTLE", "Options", "Run"]

MAX_PROCESSES = 32768
"""Linux's default pid_max on small machines (PID_MAX_DEFAULT)."""
SETTLE = 50
"""Ticks without growth or harm after which a limited bomb counts as contained; ticks without memory after which memory
counts as gone."""
_USER = 1000
_HEAP = 128 << 10
"""Of the built-in program, bytes."""
_SNAPSHOT_GROWTH = 1.15
"""How much larger the bomb has to be for the sharing to be looked at again."""

_NONE = Defences()


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How a scenario is to run. ValueError for numbers that make no sense."""

    defences: Defences = _NONE
    ticks: int = 1000
    max_processes: int = MAX_PROCESSES
    generations: int | None = None
    """The scenario ends when a process of this generation would fork; the first process is of generation 0."""
    dirty: int = 1
    """Distinct pages that each new process writes."""
    seed: int = 0
    program: str | None = None
    """The bomb's program; None: the built-in one."""
    argv: Sequence[str] | None = None
    fork: ForkMode | None = None
    """None: the machine's."""
    service: int | None = None
    """Bytes of the bystander's heap; None: a twentieth of RAM, at most 64 MiB."""
    sharing: bool = False
    """Look at which frames are shared while the bomb grows."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("ticks", self.ticks, 1),
            ("max_processes", self.max_processes, 1),
            ("generations", self.generations or 0, 0),
            ("dirty", self.dirty, 0),
            ("seed", self.seed, 0),
            ("service", 1 if self.service is None else self.service, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: {value} is less than {least}")
        if self.dirty > 1 << 20:
            raise ValueError(f"dirty: {self.dirty} pages are more than 4 GiB for each process")


class _Actor:
    """A living process of the bomb."""

    __slots__ = ("generation", "index", "interrupted", "life", "may_retry", "parent", "pid", "process", "sleeps")

    def __init__(self, process: Process, index: int, parent: _Actor | None, generation: int) -> None:
        self.process = process
        self.pid = process.pid
        self.index = index
        self.parent = parent
        self.generation = generation
        self.life: Life
        self.interrupted = False
        self.may_retry = False
        self.sleeps = 0
        """Tick at which it is to be woken; 0 if it doesn't sleep, or nothing wakes it but its child."""


class Run:
    """The state of one scenario. `go()` yields the samples; `result()` is valid afterwards."""

    def __init__(self, machine: Machine, name: str, options: Options) -> None:
        self.machine = machine
        self.name = name
        self.shape: Shape = SHAPES[name]
        self.options = options
        self.rng = random.Random(options.seed)
        self.record = Record()
        self.tick = 0
        self.alive: dict[int, _Actor] = {}
        self.ready: list[_Actor] = []
        self.sleepers: dict[int, list[_Actor]] = {}
        self.suspended: list[_Actor] = []
        self.newborn: list[_Actor] = []
        self.stop = False
        """Set by whoever wants the run to end at once."""
        self.ended: Ended | None = None
        self.forks = 0
        self.kills = 0
        self.refused = dict.fromkeys(Refusal, 0)
        self.short = False
        """In this tick memory was missing, and not only in the bomb's cgroup."""
        self.short_ticks = 0
        self.peak = self.peak_tick = 0
        self.trouble = 0
        """The last tick in which the bomb grew, somebody else was hurt, or memory was missing."""
        self.contained_at: int | None = None
        self.shots: Sharing | None = None
        self._group = 0
        self._seen_kills = 0

    # ---- from beginning to end ----

    def go(self) -> Iterator[Sample]:
        """Runs the scenario, and yields after each tick."""
        options, machine = self.options, self.machine
        options.defences.check(machine.meminfo().total)
        with contextlib.ExitStack() as files:
            self.program = (
                find_program(options.program) if options.program else files.enter_context(synthetic_file("sh"))
            )
            service = files.enter_context(synthetic_file("service", SERVICE_TEXT))
            self.faults = machine.faults
            self._prepare(service)
            while self.ended is None:
                self.tick += 1
                self._one_tick()
                sample = self._sample()
                self._judge(sample)
                self.record.samples.append(sample)
                yield sample

    def _prepare(self, service: str) -> None:
        """Starts the service, the watcher and the bomb's first process."""
        machine, options = self.machine, self.options
        defences = options.defences
        if defences.overcommit is not None:
            machine.procfs.write("sys/vm/overcommit_memory", str(defences.overcommit).encode())
        self.watcher: Watcher | None = None
        heap = options.service or min(machine.meminfo().total // 20, 64 << 20)
        self.service = Service(machine, service, max(heap & -PAGE_SIZE, 8 * PAGE_SIZE))
        if defences.protect:
            self.service.process.set_oom_score_adj(-1000)
        if defences.watcher is not None:
            self.watcher = Watcher(machine, defences.watcher)
        argv = list(options.argv or [options.program or "sh"])
        heap = 0 if options.program else _HEAP
        first, self.pages = start(machine, self.program, argv, options.dirty, heap, self._enter)
        self.top = first.brk()
        self._group = first.pid
        self.alive[first.pid] = self._new(first, None)
        self.ready.append(self.alive[first.pid])
        self.newborn.clear()

    def _enter(self, process: Process) -> None:
        """The bomb's user logs in: a session of its own, no capabilities, its limits."""
        defences = self.options.defences
        limit = RLIM_INFINITY if defences.nproc is None else defences.nproc
        process.setsid()
        process.setrlimit(Resource.NPROC, (limit, limit))
        process.setgid(_USER)
        process.setuid(_USER)

    def _new(self, process: Process, parent: _Actor | None, shape: Shape | None = None) -> _Actor:
        index = self.record.born(self.tick, process.pid, -1 if parent is None else parent.index)
        actor = _Actor(process, index, parent, 0 if parent is None else parent.generation + 1)
        actor.life = (shape or self.shape)(self, actor)
        self.alive[process.pid] = actor
        self.newborn.append(actor)
        return actor

    def result(self) -> Result:
        """What came out."""
        options = self.options
        settings = {
            "bomb": self.name,
            "defences": options.defences.words,
            "memory": self.machine.meminfo().total,
            "swap": self.machine.meminfo().swap_total,
            "fork": None if options.fork is None else options.fork.name.lower().replace("_", "-"),
            "ticks": options.ticks,
            "max_processes": options.max_processes,
            "generations": options.generations,
            "dirty": options.dirty,
            "seed": options.seed,
            "program": options.program,
            "argv": None if options.argv is None else list(options.argv),
            "service": self.service.working_set,
        }
        return Result(
            shape=self.name,
            settings=settings,
            ended=self.ended or Ended.INTERRUPTED,
            ticks=self.tick,
            samples=self.record.series(),
            events=self.record.events(),
            tree=self.record.tree(),
            forks=self.forks,
            kills=self.kills,
            oom_kills=self._seen_kills,
            refused={name.value: count for name, count in self.refused.items()},
            peak_processes=self.peak,
            peak_tick=self.peak_tick,
            contained_at=self.contained_at,
            bystander=self.service.fate,
            sharing=self.shots,
        )

    # ---- a tick ----

    def _one_tick(self) -> None:
        self.short = False
        for actor in self.sleepers.pop(self.tick, ()):
            if actor.sleeps == self.tick and actor.pid in self.alive:
                actor.sleeps = 0
                self.ready.append(actor)
        turns: list[_Actor | Service | Watcher] = [*self.ready, self.service]
        if self.watcher is not None:
            turns.append(self.watcher)
        self.rng.shuffle(turns)
        self.ready = []
        for who in turns:
            if isinstance(who, _Actor):
                self._turn(who)
                if self.ended is not None:
                    break
            elif isinstance(who, Service):
                self._serve()
            elif who.turn(self.tick, len(self.alive), self._group):
                self._bury()
        self.ready += self.newborn
        self.newborn = []

    def _serve(self) -> None:
        fate = self.service.turn(self.tick)
        if fate is Fate.STALLED or self.service.killed_at == self.tick:
            self.record.event(
                self.tick, Event.STALL if fate is Fate.STALLED else Event.KILLED, self.service.process.pid
            )
            self.trouble = self.tick

    def _turn(self, actor: _Actor) -> None:
        if self.stop:
            self.ended = Ended.INTERRUPTED
            return
        if actor.process.state in ("zombie", "gone"):
            self._lost(actor, Event.KILLED)
            return
        try:
            wish = next(actor.life)
        except StopIteration:
            actor.process.exit(0)
            self._lost(actor, Event.EXIT)
        except ProcessKilled:
            self._lost(actor, Event.KILLED)
        else:
            if wish is None:
                self.ready.append(actor)
            elif wish == CHILD:
                self.suspended.append(actor)
            elif wish != FOREVER:
                actor.sleeps = self.tick + wish
                self.sleepers.setdefault(actor.sleeps, []).append(actor)

    def _lost(self, actor: _Actor, how: Event) -> None:
        """It is dead."""
        if self.alive.pop(actor.pid, None) is None:
            return
        self.kills += how is Event.KILLED
        self.record.event(self.tick, how, actor.pid)
        self.record.died(self.tick, actor.index, how)
        parent = actor.parent
        if parent is not None and parent.pid in self.alive:
            parent.interrupted = True
            if parent.sleeps > self.tick:  # the signal wakes it
                parent.sleeps = self.tick + 1
                self.sleepers.setdefault(parent.sleeps, []).append(parent)

    def _bury(self) -> None:
        """Finds those that were killed."""
        dead = [actor for actor in self.alive.values() if actor.process.state in ("zombie", "gone")]
        if not dead:
            return
        for actor in dead:
            self._lost(actor, Event.KILLED)
        self.ready = [actor for actor in self.ready if actor.pid in self.alive]
        self.newborn = [actor for actor in self.newborn if actor.pid in self.alive]
        self.suspended = [actor for actor in self.suspended if actor.pid in self.alive]

    # ---- what lives can do ----

    def fork(self, me: _Actor, life: Shape, vfork: bool = False) -> bool:
        """See `Field`."""
        if me.generation == self.options.generations:
            self.ended = Ended.GENERATIONS
            return True
        me.interrupted = False
        try:
            child = me.process.vfork() if vfork else me.process.fork(self.options.fork)
        except SyscallError as error:
            self._refused(me, error)
            return False
        self.forks += 1
        self.record.event(self.tick, Event.FORK, me.pid, child.pid)
        self._new(child, me, life)
        if len(self.alive) >= self.options.max_processes:
            self.ended = Ended.MAX_PROCESSES
        return True

    def _refused(self, me: _Actor, error: SyscallError) -> None:
        why = _refusal(error)
        self.refused[why] += 1
        me.may_retry = error.errno == errno.EAGAIN
        self.record.event(self.tick, Event.REFUSED, me.pid, list(Refusal).index(why))
        if why is Refusal.MEMORY:
            self.short = True
        elif why is Refusal.PIDS:
            self.ended = Ended.PIDS

    def reap(self, me: _Actor) -> None:
        """See `Field`."""
        with contextlib.suppress(SyscallError):
            while me.process.wait(-1, os.WNOHANG)[0]:
                pass

    def dirty(self, me: _Actor) -> Life:
        """See `Field`."""
        if self.options.dirty:
            yield from self._write(me, self.rng.sample(self.pages, self.options.dirty))

    def write_all(self, me: _Actor, npages: int) -> Life:
        """See `Field`."""
        for first in range(0, len(self.pages), npages):
            yield from self._write(me, self.pages[first : first + npages])
            yield None

    def _write(self, me: _Actor, addresses: Sequence[int]) -> Life:
        mark = me.pid.to_bytes(8, "little")
        for address in addresses:
            while True:
                try:
                    me.process.write(address, mark)
                    break
                except OutOfMemory:
                    self._failed(me)
                yield None

    def _failed(self, me: _Actor) -> None:
        self.record.event(self.tick, Event.FAILED, me.pid)
        self.short = True

    def exec(self, me: _Actor) -> Life:
        """See `Field`."""
        argv = list(self.options.argv or ["sh"])
        executed = False
        while True:
            try:
                if not executed:
                    me.process.execve(self.program, argv, ENVIRONMENT, link=True)
                    self.record.event(self.tick, Event.EXEC, me.pid)
                    executed = True
                warm_up(me.process, 0, max(0, self.top - me.process.brk()))
                return
            except OutOfMemory:
                self._failed(me)
            except SyscallError as error:
                if isinstance(error, ProcessKilled) or error.errno != errno.ENOMEM:
                    raise
                self.record.event(self.tick, Event.FAILED, me.pid)  # nobody promises it that memory
            yield None

    # ---- after a tick ----

    def _sample(self) -> Sample:
        machine = self.machine
        self._seen_kills = oom_kills(machine)
        self._bury()
        if self.service.killed_at is None and self.service.found_killed(self.tick):
            self.trouble = self.tick
            self.record.event(self.tick, Event.KILLED, self.service.process.pid)
        if self.suspended:
            awake = [actor for actor in self.suspended if actor.process.state == "running"]
            self.ready += awake
            self.suspended = [actor for actor in self.suspended if actor not in awake]
        info = machine.meminfo()
        faults = machine.faults - self.faults
        service = self.service
        if service.killed_at is not None:
            fate = Fate.KILLED
        else:
            fate = Fate.STALLED if service.last_stall == self.tick else Fate.FINE
        return Sample(
            tick=self.tick,
            processes=len(self.alive),
            runnable=len(self.ready),
            free=info.free,
            anon=info.anon,
            file=info.file,
            shmem=info.shmem,
            page_tables=info.page_tables,
            swap_used=info.swap_total - info.swap_free,
            faults=_by_kind(faults),
            forks=self.forks,
            kills=self.kills,
            oom_kills=self._seen_kills,
            refused=tuple(self.refused.values()),
            bystander=fate,
        )

    def _judge(self, sample: Sample) -> None:
        """Whether that was the last tick."""
        if sample.processes > self.peak:
            self.peak, self.peak_tick = sample.processes, self.tick
            self.trouble = self.tick
        self._look(sample.processes)
        if self.short:
            self.short_ticks += 1
            self.trouble = self.tick
        if self.ended is not None:
            return
        limits = (Refusal.NPROC, Refusal.PIDS_MAX, Refusal.OVERCOMMIT)
        if not self.alive:
            self.ended, self.contained_at = Ended.CONTAINED, self.tick
        elif any(self.refused[limit] for limit in limits) and self.tick - self.trouble >= SETTLE:
            self.ended, self.contained_at = Ended.CONTAINED, self.trouble
        elif self.short_ticks >= SETTLE:
            self.ended = Ended.MEMORY
        elif self.tick >= self.options.ticks:
            self.ended = Ended.TICKS

    def _look(self, processes: int) -> None:
        if not self.options.sharing or processes < (self.shots.processes if self.shots else 0) * _SNAPSHOT_GROWTH:
            return
        import numpy as np

        read = self.machine.procfs.read
        counts = np.frombuffer(read("kpagecount"), np.uint64).astype(np.int64)
        self.shots = Sharing(self.tick, processes, counts, np.frombuffer(read("kpageflags"), np.uint64))


def oom_kills(machine: Machine) -> int:
    """How many processes the OOM killer has killed."""
    return machine.vmstat()["oom_kill"]


def _refusal(error: SyscallError) -> Refusal:
    if error.errno == errno.EAGAIN:
        text = str(error)
        if "RLIMIT_NPROC" in text:
            return Refusal.NPROC
        return Refusal.PIDS_MAX if "pids.max" in text else Refusal.PIDS
    if isinstance(error, OutOfMemory):
        return Refusal.MEMORY
    if error.errno == errno.ENOMEM:
        return Refusal.OVERCOMMIT
    raise error


def _by_kind(faults: FaultCounts) -> tuple[int, ...]:
    return tuple(getattr(faults, kind) for kind in KINDS)
