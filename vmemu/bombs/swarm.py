"""The processes of a bomb: whose turn it is, what a turn can do, who is born and who is dead."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Sequence

from vmemu.bombs.options import Options
from vmemu.bombs.program import ENVIRONMENT, warm_up
from vmemu.bombs.record import Record
from vmemu.bombs.result import Ended, Event, Refusal
from vmemu.bombs.shapes import CHILD, FOREVER, Life, Shape
from vmemu.errors import OutOfMemory, ProcessKilled, SyscallError
from vmemu.process import Process

__all__ = ["Actor", "Swarm"]

_DEAD = ("zombie", "gone")


class Actor:
    """A living process of the bomb."""

    __slots__ = ("generation", "index", "interrupted", "life", "may_retry", "parent", "pid", "process", "sleeps")

    def __init__(self, process: Process, index: int, parent: Actor | None) -> None:
        self.process = process
        self.pid = process.pid
        self.index = index
        self.parent = parent
        self.generation: int = 0 if parent is None else parent.generation + 1
        self.life: Life
        self.interrupted = False
        self.may_retry = False
        self.sleeps = 0
        """Tick at which it is to be woken; 0 if it doesn't sleep, or nothing wakes it but its child."""


class Swarm:
    """All of them; the `Field` that they live in."""

    def __init__(self, options: Options, shape: Shape, rng: random.Random, record: Record) -> None:
        self.options = options
        self.shape = shape
        self.rng = rng
        self.record = record
        self.tick = 0
        self.alive: dict[int, Actor] = {}
        self.ready: list[Actor] = []
        """Those who have a turn in the next tick."""
        self._sleepers: dict[int, list[Actor]] = {}
        self._suspended: list[Actor] = []
        self._newborn: list[Actor] = []
        self.forks = 0
        self.kills = 0
        self.refused = dict.fromkeys(Refusal, 0)
        self.short = False
        """In this tick memory was missing, and not only in the bomb's cgroup."""
        self.limited = False
        """A limit has refused something."""
        self.ended: Ended | None = None
        self.stop: Callable[[], bool] = lambda: False
        self.program = ""
        self.pages: list[int] = []
        self._top = 0

    def light(self, process: Process, program: str, pages: list[int]) -> None:
        """The first one, which has executed *program* and written *pages*."""
        self.program, self.pages, self._top = program, pages, process.brk()
        self.ready.append(self._new(process, None, self.shape))
        self._newborn.clear()

    def _new(self, process: Process, parent: Actor | None, life: Shape) -> Actor:
        index = self.record.born(self.tick, process.pid, -1 if parent is None else parent.index)
        actor = Actor(process, index, parent)
        actor.life = life(self, actor)
        self.alive[process.pid] = actor
        self._newborn.append(actor)
        return actor

    # ---- turns ----

    def begin(self, tick: int) -> list[Actor]:
        """A tick begins -> those who have a turn in it."""
        self.tick, self.short = tick, False
        for actor in self._sleepers.pop(tick, ()):
            if actor.sleeps == tick and actor.pid in self.alive:
                actor.sleeps = 0
                self.ready.append(actor)
        turns, self.ready = self.ready, []
        return turns

    def turn(self, actor: Actor) -> None:
        """Its turn."""
        if self.stop():
            self.ended = Ended.INTERRUPTED
            return
        if actor.process.state in _DEAD:
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
                self._suspended.append(actor)
            elif wish != FOREVER:
                self._sleep(actor, self.tick + wish)

    def _sleep(self, actor: Actor, until: int) -> None:
        actor.sleeps = until
        self._sleepers.setdefault(until, []).append(actor)

    def end(self) -> None:
        """The tick is over."""
        self.ready += self._newborn
        self._newborn = []
        self.bury()
        if self._suspended:
            awake = {actor.pid for actor in self._suspended if actor.process.state == "running"}
            self.ready += [actor for actor in self._suspended if actor.pid in awake]
            self._suspended = [actor for actor in self._suspended if actor.pid not in awake]

    def bury(self) -> None:
        """Finds those that were killed."""
        dead = [actor for actor in self.alive.values() if actor.process.state in _DEAD]
        if dead:
            for actor in dead:
                self._lost(actor, Event.KILLED)
            self.ready = [actor for actor in self.ready if actor.pid in self.alive]
            self._newborn = [actor for actor in self._newborn if actor.pid in self.alive]
            self._suspended = [actor for actor in self._suspended if actor.pid in self.alive]

    def _lost(self, actor: Actor, how: Event) -> None:
        if self.alive.pop(actor.pid, None) is None:
            return
        self.kills += how is Event.KILLED
        self.record.event(self.tick, how, actor.pid)
        self.record.died(self.tick, actor.index, how)
        parent = actor.parent
        if parent is not None and parent.pid in self.alive:
            parent.interrupted = True
            if parent.sleeps > self.tick + 1:  # SIGCHLD wakes it
                self._sleep(parent, self.tick + 1)

    # ---- what a turn can do: see `Field` ----

    def fork(self, me: Actor, life: Shape, vfork: bool = False) -> bool:
        """A child, unless it is refused."""
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

    def _refused(self, me: Actor, error: SyscallError) -> None:
        why = _refusal(error)
        self.refused[why] += 1
        me.may_retry = error.errno == errno.EAGAIN
        self.record.event(self.tick, Event.REFUSED, me.pid, list(Refusal).index(why))
        if why is Refusal.PIDS:
            self.ended = Ended.PIDS
        elif why is Refusal.MEMORY:
            self._short(error)
        else:
            self.limited = True

    def _short(self, error: SyscallError) -> None:
        """A frame was missing, in the machine or in the bomb's cgroup."""
        if getattr(error, "cgroup", 0):
            self.limited = True
        else:
            self.short = True

    def reap(self, me: Actor) -> None:
        """It waits for its dead."""
        with contextlib.suppress(SyscallError):
            while me.process.wait(-1, os.WNOHANG)[0]:
                pass

    def dirty(self, me: Actor) -> Life:
        """It writes the pages of a new process."""
        if self.options.dirty:
            yield from self._write(me, self.rng.sample(self.pages, self.options.dirty))

    def write_all(self, me: Actor, npages: int) -> Life:
        """It writes all of its pages, some each turn."""
        for first in range(0, len(self.pages), npages):
            yield from self._write(me, self.pages[first : first + npages])
            yield None

    def _write(self, me: Actor, addresses: Sequence[int]) -> Life:
        mark = me.pid.to_bytes(8, "little")
        for address in addresses:
            while True:
                try:
                    me.process.write(address, mark)
                    break
                except OutOfMemory as error:
                    self.record.event(self.tick, Event.FAILED, me.pid)
                    self._short(error)
                yield None

    def exec(self, me: Actor) -> Life:
        """It executes the program and starts up."""
        executed = False
        while True:
            try:
                if not executed:
                    me.process.execve(self.program, list(self.options.argv or ["sh"]), ENVIRONMENT, link=True)
                    self.record.event(self.tick, Event.EXEC, me.pid)
                    executed = True
                warm_up(me.process, 0, max(0, self._top - me.process.brk()))
                return
            except OutOfMemory as error:
                self._short(error)
            except SyscallError as error:
                if isinstance(error, ProcessKilled) or error.errno != errno.ENOMEM:
                    raise
                self.limited = True  # nobody promises it that memory
            self.record.event(self.tick, Event.FAILED, me.pid)
            yield None


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
