"""What a terminal shows while a bomb goes off: processes, memory, swap, faults, kills, the bystander."""

from __future__ import annotations

import math
import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from vmemu.bombs import Fate, Refusal, Sample
from vmemu.lab.console import Console
from vmemu.lab.tables import size
from vmemu.machine import Machine

__all__ = ["LiveView", "MatrixProgress", "bar", "sparkline"]

_LEVELS = " ▁▂▃▄▅▆▇█"
_WIDTH = 30
_INTERVAL = 0.1
"""Seconds between two pictures."""


def sparkline(values: list[float]) -> str:
    """One character for each value, as high as it is; the largest fills the line."""
    most = max(values, default=0)
    if most <= 0:
        return _LEVELS[0] * len(values)
    return "".join(_LEVELS[math.ceil(8 * value / most)] for value in values)


def bar(part: float, width: int = _WIDTH) -> tuple[str, str]:
    """A bar of *width* characters that is so full, 0 to 1: the full and the empty part."""
    filled = min(width, max(0, round(width * part)))
    return "█" * filled, "░" * (width - filled)


class LiveView:
    """A context manager; `update` shows how far the bomb is, at most ten times a second."""

    def __init__(self, shape: str, ticks: int, machine: Machine) -> None:
        info = machine.meminfo()
        self.shape, self.ticks, self.total, self.swap = shape, ticks, info.total, info.swap_total
        self.live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
        self.processes: deque[float] = deque(maxlen=_WIDTH)
        self._shown_at = self._began = time.perf_counter()
        self._faults = 0
        self._rate = 0.0

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def update(self, _machine: Machine, sample: Sample) -> None:
        """A tick is over."""
        self.processes.append(sample.processes)
        now = time.perf_counter()
        if now - self._shown_at < _INTERVAL and sample.tick > 1:
            return
        faults = sum(sample.faults)
        self._rate = (faults - self._faults) / max(now - self._shown_at, 1e-9)
        self._faults, self._shown_at = faults, now
        self.live.update(self.picture(sample), refresh=True)

    def picture(self, sample: Sample) -> Group:
        """The lines to show."""
        used, rest = bar(1 - sample.free / self.total)
        full = "red" if sample.free < self.total / 50 else "green"
        lines = [
            Text.assemble((f"{self.shape} bomb", "bold"), ("  tick ", "dim"), f"{sample.tick:,} of {self.ticks:,}"),
            Text.assemble(
                ("processes    ", "dim"), (sparkline(list(self.processes)).ljust(_WIDTH), "cyan"),
                f"  {sample.processes:,}", (" alive, ", "dim"), f"{sample.runnable:,}", (" runnable", "dim"),
            ),
            Text.assemble(
                ("memory       ", "dim"), (used, full), (rest, "dim"),
                f"  {size(sample.free)}", (" free of ", "dim"), size(self.total),
            ),
        ]  # fmt: skip
        if self.swap:
            used, rest = bar(sample.swap_used / self.swap)
            lines.append(
                Text.assemble(
                    ("swap         ", "dim"), (used, "yellow"), (rest, "dim"),
                    f"  {size(sample.swap_used)}", (" used of ", "dim"), size(self.swap),
                )
            )  # fmt: skip
        refused = [f"{n:,} by {why.value}" for why, n in zip(Refusal, sample.refused, strict=True) if n]
        lines.append(
            Text.assemble(
                f"{self._rate:,.0f}", (" faults/s   ", "dim"), f"{sample.forks:,}", (" forks   ", "dim"),
                (f"{sample.kills:,}", "red" if sample.kills else ""), (" killed   ", "dim"),
                f"{sum(sample.refused):,}", (" refused", "dim"), (f": {', '.join(refused)}" if refused else "", "dim"),
            )
        )  # fmt: skip
        style = {Fate.FINE: "green", Fate.STALLED: "yellow", Fate.KILLED: "bold red"}[sample.bystander]
        lines.append(Text.assemble(("bystander    ", "dim"), (sample.bystander.name.lower(), style)))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*lines)


class MatrixProgress:
    """The line that tells which runs of a matrix are done; a context manager."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self.live.start()
        self.update(0, "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def update(self, done: int, what: str) -> None:
        """*done* runs are over, the last one was *what*."""
        full, rest = bar(done / self.runs)
        line = Text.assemble((full, "cyan"), (rest, "dim"), f"  {done} of {self.runs}  ", (what, "dim"))
        line.no_wrap, line.overflow = True, "ellipsis"
        self.live.update(line, refresh=True)
