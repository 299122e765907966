"""The defences that Linux has against fork bombs, by name, and their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from vmemu.types import Overcommit, parse_size, size_word

__all__ = ["NAMES", "Defences"]

NAMES = ("nproc", "pids.max", "memory.max", "overcommit", "protect", "watcher")
WATCHER_THRESHOLD = 50
"""Processes at which the watcher acts, unless told otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Defences:
    """What stands against a bomb; None: that defence is not there. ValueError for what makes no sense."""

    nproc: int | None = None
    """RLIMIT_NPROC of the bomb's user, who has no capabilities."""
    pids_max: int | None = None
    """pids.max of the cgroup that the bomb is in."""
    memory_max: int | None = None
    """memory.max of that cgroup, bytes."""
    overcommit: int | None = None
    """vm.overcommit_memory."""
    protect: bool = False
    """The bystander has oom_score_adj -1000."""
    watcher: int | None = None
    """A process of root that looks every tenth tick, and kills the bomb's whole process group if it finds so many."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("nproc", self.nproc, 1),
            ("pids.max", self.pids_max, 1),
            ("memory.max", self.memory_max, 4096),
            ("watcher", self.watcher, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name}: {value} is less than {least}")
        if self.overcommit is not None and self.overcommit not in list(Overcommit):
            raise ValueError(f"overcommit: {self.overcommit} is not one of 0, 1, 2")

    @classmethod
    def parse(cls, words: Iterable[str]) -> Defences:
        """From words such as ``"nproc=200"``, ``"memory.max=16MiB"`` and ``"protect"``; ValueError says what is wrong
        with which."""
        found: dict[str, int | bool] = {}
        for word in words:
            name, given, text = word.partition("=")
            if name not in NAMES:
                raise ValueError(f"{name!r} is no defence; there are {', '.join(NAMES)}")
            value = _value(name, text if given else None)
            if found.get(name, value) != value:
                raise ValueError(f"{name}: {word.partition('=')[2] or value} contradicts {found[name]}")
            found[name] = value
        fields = {name.replace(".", "_"): value for name, value in found.items()}
        return cls(**fields)  # type: ignore[arg-type]

    @property
    def words(self) -> list[str]:
        """As `parse` takes them."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            name = field.name.replace("_max", ".max")
            if value is not None and value is not False:
                text = size_word(value) if name == "memory.max" else value
                words.append(name if value is True else f"{name}={text}")
        return words

    def check(self, memory: int) -> None:
        """ValueError if a limit can't be meant for a machine with *memory* bytes of RAM."""
        if self.memory_max is not None and self.memory_max > memory:
            raise ValueError(f"memory.max: {self.memory_max} bytes are more than the machine has, which is {memory}")


def _value(name: str, text: str | None) -> int | bool:
    if name == "protect":
        if text is not None:
            raise ValueError(f"protect takes no value, {text!r} was given")
        return True
    if text is None:
        if name == "watcher":
            return WATCHER_THRESHOLD
        raise ValueError(f"{name} needs a value: {name}={'SIZE' if name == 'memory.max' else 'N'}")
    if name == "memory.max":
        if text.strip().startswith("-"):
            raise ValueError(f"memory.max: {text} is negative")
        return parse_size(text, "memory.max")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a whole number") from None
