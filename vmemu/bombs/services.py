"""Who lives on the machine besides the bomb: a service that only wants to work, and the watcher."""

from __future__ import annotations

import signal

from vmemu.bombs.program import start
from vmemu.bombs.result import Bystander, Fate
from vmemu.errors import OutOfMemory, ProcessKilled
from vmemu.machine import Machine
from vmemu.process import Process
from vmemu.types import PAGE_SIZE, Advice, Prot

__all__ = ["Service", "Watcher"]

_REQUEST = 4 * PAGE_SIZE
"""What it gives back to the kernel after each request, and needs for the next."""
_PERIOD = 10


class Service:
    """The bystander: in each tick it reads its program, writes its heap, and writes a little memory that it had given
    back (madvise MADV_DONTNEED, as allocators do). All of that together is its working set."""

    def __init__(self, machine: Machine, program: str, heap: int) -> None:
        self.machine = machine
        self.process, _ = start(machine, program, ["service"], heap=heap)
        self.parts: list[tuple[int, int, bool]] = []
        for mapping in self.process.maps():
            if mapping.prot & Prot.READ and mapping.name != "[stack]":
                self.parts.append((mapping.start, mapping.size, bool(mapping.prot & Prot.WRITE)))
            if mapping.name == "[heap]":
                self.request = mapping.end - _REQUEST
        self._enough = max(machine.meminfo().total // 8, 2 * self.working_set)
        """Free bytes with which it need not be asked who reclaims."""
        self.first_stall: int | None = None
        self.last_stall: int | None = None
        self.stalls = 0
        self.major = 0
        self.killed_at: int | None = None

    @property
    def working_set(self) -> int:
        """Bytes that it touches each tick."""
        return sum(size for _, size, _ in self.parts)

    def turn(self, tick: int) -> Fate:
        """What it does in a tick, and how it went."""
        if self.found_killed(tick):
            return Fate.KILLED
        stalled = False
        near = self.machine.meminfo().free < self._enough
        before = _stalls(self.machine) if near else 0
        try:
            for address, size, write in self.parts:
                faults = self.process.touch(address, size, write)
                self.major += faults.major
                stalled |= faults.major > 0
            self.process.madvise(self.request, _REQUEST, Advice.DONTNEED)
        except ProcessKilled:
            self.found_killed(tick)
            return Fate.KILLED
        except OutOfMemory:
            stalled = True
        if not stalled and not (near and _stalls(self.machine) != before):
            return Fate.FINE
        self.stalls += 1
        self.last_stall = tick
        if self.first_stall is None:
            self.first_stall = tick
        return Fate.STALLED

    def found_killed(self, tick: int) -> bool:
        """It is dead."""
        if self.killed_at is None and self.process.state in ("zombie", "gone"):
            self.killed_at = tick
        return self.killed_at is not None

    @property
    def fate(self) -> Bystander:
        """What became of it."""
        return Bystander(self.first_stall, self.stalls, self.major, self.killed_at)


def _stalls(machine: Machine) -> int:
    """How often so far a call or an access had to reclaim memory for itself."""
    return machine.vmstat()["allocstall_normal"]


class Watcher:
    """A process of root that looks every tenth tick how many processes the bomb has."""

    def __init__(self, machine: Machine, threshold: int) -> None:
        self.process: Process = machine.spawn()
        self.threshold = threshold

    def turn(self, tick: int, processes: int, group: int) -> bool:
        """Kills process group *group* if there are too many; whether it did."""
        if tick % _PERIOD or processes < self.threshold or self.process.state != "running":
            return False
        self.process.kill(-group, signal.SIGKILL)
        return True
