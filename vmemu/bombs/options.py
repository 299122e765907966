"""How a scenario is to run, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vmemu.bombs.defences import Defences
from vmemu.types import ForkMode

__all__ = ["MAX_PROCESSES", "Options"]

MAX_PROCESSES = 32768
"""Linux's default pid_max on small machines (PID_MAX_DEFAULT)."""
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
    policy: str | None = None
    """What reclaim goes by, which the machine was made with: said in the result only."""
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
