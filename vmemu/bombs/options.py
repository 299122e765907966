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
    """How a scenario is to run. ValueError for numbers that make no sense, TypeError for what is none; both name it."""

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
        for name, least, optional in (
            ("ticks", 1, False),
            ("max_processes", 1, False),
            ("generations", 0, True),
            ("dirty", 0, False),
            ("seed", 0, False),
            ("service", 1, True),
        ):
            value = getattr(self, name)
            if value is None and optional:
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name}: {value!r} is not an int{' or None' * optional}")
            value = value.__index__()  # NumPy's too, which JSON would not take
            if value < least:
                raise ValueError(f"{name}: {value} is less than {least}")
            object.__setattr__(self, name, value)
        for name in ("program", "policy"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                raise TypeError(f"{name}: {value!r} is not a str or None")
        if isinstance(self.argv, str | bytes):
            raise TypeError(f"argv: {self.argv!r} is one word, not a sequence of them")
        if not isinstance(self.fork, ForkMode | None):
            raise TypeError(f"fork: {self.fork!r} is not a ForkMode or None")
        if not isinstance(self.sharing, bool):
            raise TypeError(f"sharing: {self.sharing!r} is not a bool")
        if self.dirty > 1 << 20:
            raise ValueError(f"dirty: {self.dirty} pages are more than 4 GiB for each process")
