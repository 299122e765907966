"""What a run of `vmemu bomb`, `exec` or `compare` found out: plain records, and their form as JSON.

Values are in the units that their names or comments say. What depends on the host's clock has `seconds`, `_ns` or
`per_s` in its name, what depends on the host's memory has `host`; everything else is the same for the same command
and seed.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from vmemu.types import PAGE_SIZE, ByKind, FaultCounts, ForkMode, Mapping, fork_word

__all__ = [
    "BombReport",
    "CompareReport",
    "ExecReport",
    "ForkCost",
    "Generation",
    "Stopped",
    "to_json",
]


class Stopped(enum.StrEnum):
    """Why a run ended."""

    MEMORY = "memory"
    """No frame was left."""
    GENERATIONS = "generations"
    """The limit of generations was reached."""
    MAX_PROCESSES = "max-processes"
    """The limit of processes was reached."""
    PIDS = "pids"
    """No pid was free."""
    INTERRUPTED = "interrupted"
    """Someone asked to stop (Ctrl-C)."""
    DONE = "done"
    """There was nothing left to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Generation:
    """The state after one generation of a fork bomb, or within one (then it is what the progress display gets)."""

    number: int
    """0 is the program before its first fork."""
    processes: int
    """Alive."""
    forks: int
    """Since the start."""
    used_bytes: int
    """Of the machine's RAM: frames and page tables."""
    seconds: float
    """Since the first fork."""


@dataclasses.dataclass(frozen=True, slots=True)
class BombReport:
    """A fork bomb at the moment it stopped, before its processes exited."""

    program: str
    argv: list[str]
    fork: ForkMode
    memory: int
    """RAM of the machine in bytes."""
    seed: int
    dirty: int
    """Pages that each process wrote after its fork."""
    stopped: Stopped
    generations: int
    """Complete ones."""
    processes: int
    """Alive at the end; none died before."""
    forks: int
    faults: FaultCounts
    """Of the whole machine, from the start of the program on."""
    frames_shared: int
    """Frames of data that are mapped more than once."""
    frames_copied: int
    """Copies of a frame made by a write or by an eager fork."""
    page_table_bytes: int
    """Page tables of all processes; a table that several share counts once."""
    anon_bytes: int
    """Frames of private anonymous memory, each counted once."""
    file_bytes: int
    """Page cache."""
    used_bytes: int
    """All RAM in use."""
    eager_bytes: int
    """RAM that the same processes with the same pages would take if nothing were shared by copy-on-write: each
    process's resident anonymous pages and its page tables, plus the page cache once. The zero page takes nothing."""
    history: list[Generation]
    seconds: float
    """From the first fork to the last write."""
    start_seconds: float
    """Making the machine, execve and the program's first touches."""
    exit_seconds: float
    """Until all processes were gone."""
    verify_seconds: float
    """Proving the machine consistent, before and after that."""

    @property
    def forks_per_s(self) -> float:
        """Forks a second, the writes after each fork included."""
        return self.forks / self.seconds if self.seconds > 0 else 0.0

    def predicted(self) -> tuple[int, float, int] | None:
        """How many processes memory has room for, the bytes that one takes, and the generation from which that is
        known: the first with a thousand processes, or the last one; None before the first."""
        known = [state for state in self.history if state.processes > 1]
        if not known:
            return None
        state = next((state for state in known if state.processes >= 1000), known[-1])
        first = self.history[0]
        each = (state.used_bytes - first.used_bytes) / (state.processes - first.processes)
        return (int((self.memory - first.used_bytes) / each) + 1 if each else 0), each, state.number


@dataclasses.dataclass(frozen=True, slots=True)
class ExecReport:
    """A program at its first instruction."""

    program: str
    argv: list[str]
    pid: int
    maps: list[Mapping]
    rss: ByKind
    pss: ByKind
    uss: int
    page_table_bytes: int
    stack_pointer: int
    entry_point: int
    auxv: list[tuple[int, str, int, str]]
    """(type, name, value, the text or bytes that the value points at, if it does)."""
    faults: FaultCounts
    maps_text: str
    """As /proc/PID/maps prints it."""


@dataclasses.dataclass(frozen=True, slots=True)
class ForkCost:
    """What one way to make processes cost for the workload of `vmemu compare`."""

    how: str
    """``eager``, ``cow``, ``on-demand`` or ``vfork``."""
    stopped: Stopped
    processes: int
    """Children made."""
    faults: FaultCounts
    """By forks, writes and exits together; without those of loading the program."""
    frames_shared: int
    frames_copied: int
    frames_used: int
    """Frames that forks and writes took (data and tables), with all children alive."""
    page_table_bytes: int
    """Of all processes, with all children alive."""
    fork_seconds: float
    """Of all forks together; the least of the repetitions, as for the other times."""
    write_seconds: float
    exit_seconds: float

    @property
    def total_seconds(self) -> float:
        """Fork, write and exit."""
        return self.fork_seconds + self.write_seconds + self.exit_seconds

    @property
    def copied_bytes(self) -> int:
        """Bytes of data copied."""
        return self.frames_copied * PAGE_SIZE


@dataclasses.dataclass(frozen=True, slots=True)
class CompareReport:
    """One workload under each way to make a process."""

    program: str
    argv: list[str]
    memory: int
    processes: int
    """Children asked for."""
    dirty: int
    heap: int
    """Bytes of heap that the parent has written."""
    seed: int
    repeat: int
    resident_bytes: int
    """RSS of the parent when it forks."""
    costs: list[ForkCost]


def to_json(report: BombReport | ExecReport | CompareReport | ForkCost) -> dict[str, Any]:
    """The report as an object for `json.dumps`: its fields and what is derived from them."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(report):
        if field.name != "maps_text":
            out[field.name] = _plain(getattr(report, field.name))
    if isinstance(report, BombReport):
        out["forks_per_s"] = report.forks_per_s
    elif isinstance(report, ExecReport):
        out["auxv"] = [
            {"type": kind, "name": name, "value": value, **({"text": text} if text else {})}
            for kind, name, value, text in report.auxv
        ]
    elif isinstance(report, ForkCost):
        out["total_seconds"] = report.total_seconds
    return out


def _plain(value: object) -> object:
    match value:
        case ForkMode():
            return fork_word(value)
        case FaultCounts():
            return value.as_dict()
        case Mapping():
            return {
                "start": value.start,
                "end": value.end,
                "perms": value.perms,
                "offset": value.offset,
                "device": list(value.device),
                "inode": value.inode,
                "name": value.name,
            }
        case ByKind():
            return {"anon": value.anon, "file": value.file, "shmem": value.shmem, "total": value.total}
        case ForkCost():
            return to_json(value)
        case Generation():
            return dataclasses.asdict(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value
