"""A machine for one scenario of `vmemu.bombs`, from the power button to the proof that it is consistent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from vmemu.bombs import Result, Sample, scenario
from vmemu.bombs.scenarios import Settings
from vmemu.machine import Machine
from vmemu.types import ForkMode

__all__ = ["Shown", "boot", "run"]

Shown = Callable[[Machine, Sample], None]


def boot(
    memory: int | str,
    fork: ForkMode | None = None,
    swap: int | str = 0,
    swap_file: str | None = None,
    policy: str | None = None,
) -> Machine:
    """A machine with *memory* of RAM and *swap*, in the host's memory or in *swap_file*, where the OOM killer ends what
    can't go on. Raises as Machine does."""
    more: dict[str, Any] = {"swap_file": swap_file, "policy": policy}
    more = {name: value for name, value in more.items() if value is not None}
    return Machine(memory, swap, ForkMode.COW if fork is None else fork, oom="kill", **more)


def run(
    machine: Machine,
    shape: str,
    *,
    progress: Shown | None = None,
    stop: Callable[[], bool] | None = None,
    at_end: Callable[[Machine], None] | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """The result of a scenario on *machine*, which is closed then.

    *progress* is called after each tick, *stop* ends it as soon as it is true, *at_end* sees the machine as the bomb
    left it. The machine is verified: InvariantError if it is inconsistent. ValueError for settings without sense, as
    spawn() raises if the program can't be executed.
    """
    with machine:
        going = scenario(machine, shape, **settings)
        if stop is not None:
            going.until(stop)
        for sample in going:
            if progress is not None:
                progress(machine, sample)
        if at_end is not None:
            at_end(machine)
        machine.verify()
        return going.result
