"""Every bomb against every defence: who survives."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from typing import Any

from vmemu.bombs import SHAPES, Defences, Result
from vmemu.lab import explode
from vmemu.types import ForkMode, parse_size, size_word

__all__ = ["Defence", "Matrix", "defences_for", "run"]

_PROCESSES = 100
"""nproc and pids.max."""
_TURN_SECONDS = 0.2

Cell = tuple[str, str]
"""Shape and name of the defence."""


@dataclasses.dataclass(frozen=True, slots=True)
class Defence:
    """A defence, or several: a name and what it stands for."""

    name: str
    defences: Defences


@dataclasses.dataclass(frozen=True, slots=True)
class Matrix:
    """Results by shape and name of the defence; some are missing if it was interrupted."""

    settings: dict[str, Any]
    shapes: list[str]
    defences: list[Defence]
    results: dict[Cell, Result]
    interrupted: bool

    def to_json(self) -> dict[str, Any]:
        """As an object for `json.dumps`: one record for each run, without its series."""
        return {
            "settings": self.settings,
            "shapes": self.shapes,
            "defences": {row.name: row.defences.words for row in self.defences},
            "interrupted": self.interrupted,
            "results": [
                {
                    "shape": shape,
                    "defence": name,
                    **{key: value for key, value in result.to_json().items() if key not in ("shape", "series")},
                }
                for (shape, name), result in self.results.items()
            ],
        }


def defences_for(memory: int) -> list[Defence]:
    """The defences of the table for a machine with *memory* bytes of RAM: none, each one, and all together."""
    quarter = max(memory // 4, 4096)
    each = {
        "none": Defences(),
        f"nproc={_PROCESSES}": Defences(nproc=_PROCESSES),
        f"pids.max={_PROCESSES}": Defences(pids_max=_PROCESSES),
        f"memory.max={size_word(quarter)}": Defences(memory_max=quarter),
        "overcommit=2": Defences(overcommit=2),
        "protect": Defences(protect=True),
        "watcher": Defences(watcher=50),
        "all": Defences(_PROCESSES, _PROCESSES, quarter, 2, True, 50),
    }
    return [Defence(name, defences) for name, defences in each.items()]


def run(
    *,
    memory: int | str = "64MiB",
    fork: ForkMode | None = None,
    ticks: int = 1000,
    max_processes: int | None = None,
    generations: int | None = None,
    dirty: int = 1,
    seed: int = 0,
    shapes: Sequence[str] = tuple(SHAPES),
    jobs: int = 1,
    progress: Callable[[int, str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Matrix:
    """Runs all *shapes* with the built-in program against all defences, each on a machine of its own.

    *jobs* processes of the host share the work, and results are the same for any number of them; more than one needs
    the caller to be importable (multiprocessing, "spawn"). *progress* is called with the number of runs that are done
    and the last one's name. Raises as `explode.run`.
    """
    total = parse_size(memory, "memory")
    explode.boot(total).close()  # what is wrong with it is said once
    rows = defences_for(total)
    settings: dict[str, Any] = {"ticks": ticks, "dirty": dirty, "seed": seed, "generations": generations}
    if max_processes is not None:
        settings["max_processes"] = max_processes
    cells = [(shape, row) for row in rows for shape in shapes]
    cells.sort(key=lambda cell: cell[1].name not in ("none", "protect"))  # the longest first
    found: dict[Cell, Result] = {}

    def keep(shape: str, row: Defence, result: Result) -> None:
        found[shape, row.name] = result
        if progress is not None:
            progress(len(found), f"{shape}, {row.name}")

    if jobs > 1:
        _in_parallel(cells, jobs, (total, fork, settings), keep, stop)
    else:
        for shape, row in cells:
            if stop():
                break
            keep(shape, row, _one(shape, row.defences, total, fork, settings))
    order = [(shape, row.name) for shape in shapes for row in rows]
    return Matrix(
        settings={"memory": total, "fork": None if fork is None else fork.name.lower(), **settings},
        shapes=list(shapes),
        defences=rows,
        results={cell: found[cell] for cell in order if cell in found},
        interrupted=len(found) < len(order),
    )


def _one(shape: str, defences: Defences, memory: int, fork: ForkMode | None, settings: dict[str, Any]) -> Result:
    return explode.run(explode.boot(memory, fork), shape, defences=defences, fork=fork, **settings)


def _in_parallel(
    cells: Sequence[tuple[str, Defence]],
    jobs: int,
    common: tuple[int, ForkMode | None, dict[str, Any]],
    keep: Callable[[str, Defence, Result], None],
    stop: Callable[[], bool],
) -> None:
    work = [(shape, row, *common) for shape, row in cells]
    with multiprocessing.get_context("spawn").Pool(jobs, _leave_interrupts) as pool:  # leaving it ends the others
        results = pool.imap_unordered(_job, work)
        for _ in work:
            while True:
                if stop():
                    return
                with contextlib.suppress(multiprocessing.TimeoutError):
                    keep(*results.next(_TURN_SECONDS))
                    break


def _job(work: tuple[str, Defence, int, ForkMode | None, dict[str, Any]]) -> tuple[str, Defence, Result]:
    shape, row, memory, fork, settings = work
    return shape, row, _one(shape, row.defences, memory, fork, settings)


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that waits for the results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
