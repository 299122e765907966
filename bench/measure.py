"""Experiments: what is timed together, in which order, and what has to come out.

An experiment sets something up and then has *sides* (`kernel`, `bound`, `vmemu`), functions that do the work once and
return nanoseconds (or bytes, or a gain) for one unit of each of its *lines*. The sides are called in turn, round by
round; a line's figure for a side is the median of the rounds, and a ratio is one of two such medians of one run.
"""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Line",
    "Result",
    "Side",
    "Sides",
    "Skip",
    "Target",
    "at_most",
    "chosen",
    "experiment",
    "faster",
    "measure",
    "within",
]

Side = Callable[[], dict[str, float]]
Sides = dict[str, Side]


class Skip(Exception):
    """A side, or a whole experiment, cannot be had here; the message says why."""


@dataclass(frozen=True)
class Target:
    """What a line must reach: *of* / vmemu >= limit where *faster*, vmemu / *of* <= limit otherwise.

    With *of* empty the figure is vmemu's own, and at most *limit*.
    """

    of: str
    limit: float
    faster: bool = False
    aim: float | None = None

    def figure(self, values: dict[str, float]) -> float | None:
        """The ratio that is judged; None if a side is missing."""
        mine, other = values.get("vmemu"), values.get(self.of) if self.of else 1.0
        if mine is None or other is None:
            return None
        if self.faster:
            return other / mine if mine else float("inf")
        return mine / other

    def met(self, values: dict[str, float]) -> bool | None:
        """Whether the limit is kept; None if that can't be told."""
        figure = self.figure(values)
        if figure is None:
            return None
        return figure >= self.limit if self.faster else figure <= self.limit


def faster(of: str, limit: float, aim: float | None = None) -> Target:
    """*limit* times as fast as *of*."""
    return Target(of, limit, True, aim)


def within(of: str, limit: float, aim: float | None = None) -> Target:
    """At most *limit* times what *of* takes."""
    return Target(of, limit, False, aim)


def at_most(limit: float) -> Target:
    """At most *limit*, in the line's unit."""
    return Target("", limit)


@dataclass(frozen=True)
class Line:
    """One line of the table: *what* is measured, for one of which *unit*, what the bound is, and the targets."""

    key: str
    what: str
    unit: str
    targets: tuple[Target, ...]
    bound: str = ""
    note: str = ""
    measure: str = "ns"
    """"ns" or "bytes"."""


@dataclass(frozen=True)
class Experiment:
    """Lines that are measured together. *rounds* is the most that make sense."""

    name: str
    lines: tuple[Line, ...]
    setup: Callable[[], AbstractContextManager[Sides]]
    rounds: int
    every_cpu: bool = False
    """Not on one CPU only."""


EXPERIMENTS: list[Experiment] = []


def experiment(
    name: str, *lines: Line, rounds: int = 99, every_cpu: bool = False
) -> Callable[[Callable[[], Iterator[Sides]]], Callable[[], Iterator[Sides]]]:
    """Registers a generator that sets up, yields the sides, and tears down."""

    def register(function: Callable[[], Iterator[Sides]]) -> Callable[[], Iterator[Sides]]:
        EXPERIMENTS.append(Experiment(name, lines, contextmanager(function), rounds, every_cpu))
        return function

    return register


@dataclass
class Result:
    """What came out for a line: medians and all samples by side."""

    line: Line
    samples: dict[str, list[float]] = field(default_factory=dict)
    skipped: str = ""
    failed: str = ""

    @property
    def values(self) -> dict[str, float]:
        """Side -> median."""
        return {side: statistics.median(values) for side, values in self.samples.items() if values}

    @property
    def met(self) -> bool | None:
        """All targets are met; None if one can't be told."""
        if self.failed:
            return False
        verdicts = [target.met(self.values) for target in self.line.targets]
        return False if False in verdicts else None if None in verdicts or not verdicts else True


@contextmanager
def pinned(every_cpu: bool, turn: int = 0) -> Iterator[None]:
    """On one CPU, the last that this process may use (or *turn* before it), and so are the programs it starts."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus if every_cpu else {sorted(cpus, reverse=True)[turn % len(cpus)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def measure(experiment: Experiment, rounds: int, progress: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Runs an experiment: *rounds* times each side in turn. A failed check is in the results, not raised."""
    results = {line.key: Result(line) for line in experiment.lines}

    def tell(attribute: str, message: str, only_empty: bool = False) -> None:
        for result in results.values():
            if not (only_empty and "vmemu" in result.samples):
                setattr(result, attribute, message)

    try:
        with pinned(experiment.every_cpu), experiment.setup() as sides:
            missing: set[str] = set()
            for number in range(min(rounds, experiment.rounds)):
                for name, side in sides.items():
                    if name in missing:
                        continue
                    progress(f"{experiment.name}: round {number + 1}, {name}")
                    gc.collect()
                    gc.disable()
                    try:
                        found = side()
                    except Skip as reason:
                        missing.add(name)
                        tell("skipped", f"{name}: {reason}")
                        continue
                    finally:
                        gc.enable()
                    for key, value in found.items():
                        results[key].samples.setdefault(name, []).append(value)
    except Skip as reason:
        tell("skipped", str(reason), only_empty=True)
    except Exception as error:  # a row that fails must not hide the others
        tell("failed", f"{type(error).__name__}: {error}")
    return list(results.values())


def chosen(experiments: Sequence[Experiment], pattern: str) -> list[Experiment]:
    """Those whose name or lines contain *pattern* (any of several, apart by commas)."""
    words = [word for word in pattern.split(",") if word]
    return [
        one
        for one in experiments
        if not words or any(word in text for word in words for text in (one.name, *(line.key for line in one.lines)))
    ]
