"""Scenarios: functions on a Machine that let a bomb go off on it, beside a service that only wants to work.

Each takes the same options, yields a `Sample` after each tick, and has a `Result` in the end:

    with Machine(memory="64MiB", oom="kill") as m:
        scenario = bombs.classic(m, defences=["nproc=200"])
        for sample in scenario:
            print(sample.tick, sample.processes, sample.free)
        scenario.result.bystander.verdict
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypedDict, Unpack

from vmemu.bombs.defences import Defences
from vmemu.bombs.options import Options
from vmemu.bombs.result import Result, Sample
from vmemu.bombs.run import Run
from vmemu.bombs.shapes import SHAPES
from vmemu.machine import Machine
from vmemu.types import ForkMode

__all__ = [
    "Scenario",
    "Settings",
    "chain",
    "classic",
    "exec",
    "exponential",
    "linear",
    "scenario",
    "touch",
    "vfork",
    "waiting",
]


class Settings(TypedDict, total=False):
    """The options of every scenario, see `Options` for what is not said here."""

    defences: Defences | Iterable[str]
    """Or words, as ``["nproc=200", "protect"]``."""
    ticks: int
    max_processes: int
    generations: int | None
    dirty: int
    seed: int
    program: str | None
    argv: Sequence[str] | None
    fork: ForkMode | None
    policy: str | None
    service: int | None
    sharing: bool


class Scenario(Iterator[Sample]):
    """A scenario that runs as far as it is iterated over. Ticks follow one another without any clock."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._samples = run.go()
        self._result: Result | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Sample:
        try:
            return next(self._samples)
        except StopIteration:
            if self._result is None:
                self._result = self._run.result()
            raise StopIteration(self._result) from None

    def stop(self) -> None:
        """Lets it end before the next turn of a process."""
        self._run.until(lambda: True)

    def until(self, stop: Callable[[], bool]) -> None:
        """Lets it end as soon as *stop()* is true, which is asked before each turn of a process."""
        self._run.until(stop)

    @property
    def result(self) -> Result:
        """What came out; runs what has not run yet."""
        while self._result is None:
            next(self, None)
        return self._result


def scenario(machine: Machine, shape: str, **settings: Unpack[Settings]) -> Scenario:
    """The scenario of that name, one of `SHAPES`. ValueError for an unknown one, and for options without sense."""
    if shape not in SHAPES:
        raise ValueError(f"{shape!r} is no bomb; there are {', '.join(SHAPES)}")
    options: dict[str, Any] = dict(settings)
    defences = options.pop("defences", ())
    if isinstance(defences, str):
        raise TypeError(f"defences: {defences!r} is one word, not a sequence of them")
    if not isinstance(defences, Defences):
        defences = Defences.parse(defences)
    return Scenario(Run(machine, shape, Options(defences=defences, **options)))


def classic(machine: Machine, **settings: Unpack[Settings]) -> Scenario:
    """``:(){ :|:& };:`` as bash does it: each process forks one for either end of its pipe, and exits."""
    return scenario(machine, "classic", **settings)


def waiting(machine: Machine, **settings: Unpack[Settings]) -> Scenario:
    """``:(){ :|:; };:``: each process forks two and waits for them."""
    return scenario(machine, "waiting", **settings)


def exponential(machine: Machine, **settings: Unpack[Settings]) -> Scenario:
    """``while (1) fork();``."""
    return scenario(machine, "exponential", **settings)


def linear(machine: Machine, **settings: Unpack[Settings]) -> Scenario:
    """One process forks, its children only wait."""
    return scenario(machine, "linear", **settings)


def chain(machine: Machine, **settings: Unpack[Settings]) -> Scenario:
    """The child forks, the parent exits: few processes, and never the same."""
    return scenario(machine, "chain", **settings)


def touch(machine: Machine, **settings: Unpack[Settings]) -> Scenario:
    """As exponential, but each process first writes all of its memory."""
    return scenario(machine, "touch", **settings)


def exec(machine: Machine, **settings: Unpack[Settings]) -> Scenario:  # noqa: A001 - the shape's name
    """As exponential, but each child executes the program, so that nothing is shared by copy-on-write."""
    return scenario(machine, "exec", **settings)


def vfork(machine: Machine, **settings: Unpack[Settings]) -> Scenario:
    """Each process vforks; all are in one memory, and only the youngest runs."""
    return scenario(machine, "vfork", **settings)
