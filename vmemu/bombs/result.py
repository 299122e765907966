"""What a scenario found out: a sample a tick, every event, the processes that were, what became of the bystander."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from typing import TYPE_CHECKING, Any

from vmemu.types import FaultCounts, FaultKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vmemu.machine import Machine

__all__ = [
    "KINDS",
    "Bystander",
    "Ended",
    "Event",
    "Fate",
    "Refusal",
    "Result",
    "Sample",
    "Sharing",
]

KINDS = tuple(kind.name.lower() for kind in FaultKind if FaultKind.NONE < kind < FaultKind.SEGV_MAPERR)
"""The kinds of faults that are counted, in the order of `Sample.faults`."""


class Ended(enum.StrEnum):
    """Why a scenario ended."""

    CONTAINED = "contained"
    """The bomb is dead, or for some time it has not grown, a limit held it, and nobody else was hurt."""
    MEMORY = "memory"
    """No frame was left for some time, whoever was killed."""
    TICKS = "ticks"
    MAX_PROCESSES = "max-processes"
    GENERATIONS = "generations"
    PIDS = "pids"
    """No pid was free."""
    INTERRUPTED = "interrupted"
    """Someone asked to stop (Ctrl-C)."""
    SWAP = "swap"
    """The machine's swap device failed."""


class Refusal(enum.StrEnum):
    """What refused a fork."""

    NPROC = "nproc"
    """RLIMIT_NPROC: EAGAIN."""
    PIDS_MAX = "pids.max"
    """The cgroup's limit of tasks: EAGAIN."""
    OVERCOMMIT = "overcommit"
    """More than may be promised: ENOMEM."""
    MEMORY = "memory"
    """No frame was left, or none for its cgroup: ENOMEM."""
    PIDS = "pids"
    """No pid was free: EAGAIN."""


class Event(enum.IntEnum):
    """What happened to a process of the bomb, or to the bystander."""

    FORK = 0
    """`other` is the child."""
    EXEC = 1
    EXIT = 2
    KILLED = 3
    """Found killed in this tick, by the OOM killer or by the watcher."""
    REFUSED = 4
    """A fork; `other` is the index of the Refusal."""
    FAILED = 5
    """An access found no frame and no way to get one; the process tries again in its next turn."""
    STALL = 6
    """Of the bystander."""


class Fate(enum.IntEnum):
    """How the bystander is."""

    FINE = 0
    STALLED = 1
    """In this tick one of its accesses had to reclaim, to read from swap or a file, or could not complete."""
    KILLED = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The machine at the end of a tick; counts are since the start, memory is in bytes."""

    tick: int
    processes: int
    """Of the bomb, alive."""
    runnable: int
    """Those that neither sleep nor wait."""
    free: int
    anon: int
    file: int
    shmem: int
    page_tables: int
    swap_used: int
    faults: tuple[int, ...]
    """Of the whole machine since the scenario began, in the order of `KINDS`."""
    forks: int
    kills: int
    """Processes of the bomb that were killed."""
    oom_kills: int
    """Processes that the OOM killer killed, the bystander included."""
    refused: tuple[int, ...]
    """Forks refused, in the order of `Refusal`."""
    bystander: Fate

    @classmethod
    def of(cls, machine: Machine, faults: FaultCounts, **counts: Any) -> Sample:
        """As *machine* is now, with *faults* since the scenario began, and what the scenario itself has to tell."""
        info = machine.meminfo()
        return cls(
            free=info.free,
            anon=info.anon,
            file=info.file,
            shmem=info.shmem,
            page_tables=info.page_tables,
            swap_used=info.swap_total - info.swap_free,
            faults=tuple(getattr(faults, kind) for kind in KINDS),
            **counts,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Bystander:
    """What a service that ran along had to suffer."""

    first_stall: int | None
    """Tick of its first stall; None: it never stalled."""
    stalls: int
    """Ticks in which it stalled."""
    major_faults: int
    killed_at: int | None
    """Tick at which it was found killed; None: it lives."""

    @property
    def verdict(self) -> str:
        """``"unharmed"``, ``"stalled"`` or ``"killed"``."""
        if self.killed_at is not None:
            return "killed"
        return "unharmed" if self.first_stall is None else "stalled"


@dataclasses.dataclass(frozen=True, slots=True)
class Sharing:
    """Which frames were mapped how often, at the tick at which the bomb was largest or nearly so."""

    tick: int
    processes: int
    mapcounts: NDArray[np.int64]
    """By pfn, shape (frames,): how many page-table entries map the frame, 0 for a free one, for a page of files that
    nobody maps, and for a page table."""
    flags: NDArray[np.uint64]
    """By pfn: as /proc/kpageflags."""

    @classmethod
    def of(cls, machine: Machine, tick: int, processes: int) -> Sharing:
        """As *machine* is now."""
        import numpy as np

        counts = np.frombuffer(machine.procfs.read("kpagecount"), np.uint64).astype(np.int64)
        return cls(tick, processes, counts, np.frombuffer(machine.procfs.read("kpageflags"), np.uint64))


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A scenario from beginning to end. Arrays are by tick, by event, or by process in order of birth."""

    shape: str
    settings: dict[str, Any]
    """What reproduces it; `machine` are the arguments of Machine."""
    ended: Ended
    ticks: int
    samples: NDArray[Any]
    """One record a tick: the fields of `Sample`, `faults` one field for each of `KINDS`, `refused` one for each
    `Refusal` (``refused_nproc`` and so on)."""
    events: NDArray[Any]
    """Every event in order: `tick`, `event` (an `Event`), `pid`, `other`."""
    tree: NDArray[Any]
    """Processes of the bomb in order of birth: `pid`, `parent` (index here, -1 for the first), `born` and `died`
    (ticks, -1 while alive), `fate` (an `Event`: EXIT, KILLED, or FORK while alive)."""
    forks: int
    kills: int
    oom_kills: int
    refused: dict[str, int]
    """Forks refused, by `Refusal`."""
    peak_processes: int
    peak_tick: int
    """The first at which there were so many at its end."""
    contained_at: int | None
    """Ticks until the bomb was contained: dead, or as large as it got and nobody hurt from then on; None if it was
    not."""
    bystander: Bystander
    sharing: Sharing | None
    """None unless asked for."""
    failure: str | None = None
    """What ended it before its time."""

    @property
    def digest(self) -> str:
        """SHA-256 of all samples and events: equal for equal runs."""
        return hashlib.sha256(self.samples.tobytes() + self.events.tobytes()).hexdigest()

    def counters(self) -> dict[str, int]:
        """What a regression test compares: counts that depend on nothing but the settings and the program."""
        last = self.samples[-1] if len(self.samples) else None
        counts = {"ticks": self.ticks, "forks": self.forks, "kills": self.kills, "oom_kills": self.oom_kills}
        counts |= {"peak_processes": self.peak_processes, "peak_tick": self.peak_tick, "events": len(self.events)}
        counts |= {f"refused.{name}": count for name, count in self.refused.items()}
        counts |= {f"faults.{kind}": 0 if last is None else int(last[kind]) for kind in KINDS}
        fate = self.bystander
        counts |= {"bystander.stalls": fate.stalls, "bystander.major_faults": fate.major_faults}
        ticks = (
            ("contained_at", self.contained_at),
            ("bystander.first_stall", fate.first_stall),
            ("bystander.killed_at", fate.killed_at),
        )
        counts |= {name: -1 if tick is None else tick for name, tick in ticks}
        return counts

    def to_json(self) -> dict[str, Any]:
        """As an object for `json.dumps`; series by name, events left out but for their number and digest."""
        return {
            "shape": self.shape,
            "settings": self.settings,
            "ended": self.ended.value,
            "ticks": self.ticks,
            "forks": self.forks,
            "kills": self.kills,
            "oom_kills": self.oom_kills,
            "refused": self.refused,
            "peak_processes": self.peak_processes,
            "peak_tick": self.peak_tick,
            "contained_at": self.contained_at,
            "failure": self.failure,
            "bystander": {**dataclasses.asdict(self.bystander), "verdict": self.bystander.verdict},
            "events": len(self.events),
            "digest": self.digest,
            "series": {name: self.samples[name].tolist() for name in self.samples.dtype.names or ()},
        }
