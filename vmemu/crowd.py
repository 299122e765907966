"""What is done to many processes at once."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vmemu.handles import Children
from vmemu.kernel import Kernel
from vmemu.lifecycle import exits
from vmemu.process import Process, Thread
from vmemu.task import exit_status
from vmemu.types import PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["exit_many", "usage"]

_AT_ONCE = 4096
"""Processes looked at between which Ctrl-C has its chance."""


def exit_many(kernel: Kernel, processes: Iterable[Process], code: int) -> None:
    """See Machine.exit_many."""
    status = exit_status(code)
    for run in _runs(kernel, processes):
        if isinstance(run, Process):
            run.exit(code)
        else:
            exits.exit_many(kernel, run, status)


def _runs(kernel: Kernel, processes: Iterable[Process]) -> list[range | Process]:
    """Processes with pids that follow one another as ranges; threads by themselves."""
    if isinstance(processes, Children) and processes.kernel is kernel and processes.pids.step == 1:
        return [processes.pids]
    runs: list[range | Process] = []
    if not isinstance(processes, Iterable):
        raise TypeError(f"exit_many: processes must be a sequence of Process, not {type(processes).__name__}")
    for process in processes:
        if not isinstance(process, Process):
            raise TypeError(f"exit_many: {process!r} is not a Process")
        if not process.belongs_to(kernel):
            raise ValueError(f"exit_many: {process!r} belongs to another machine")
        last = runs[-1] if runs else None
        if isinstance(process, Thread):
            runs.append(process)
        elif isinstance(last, range) and process.pid == last.stop:
            runs[-1] = range(last.start, last.stop + 1)
        else:
            runs.append(range(process.pid, process.pid + 1))
    return runs


def usage(kernel: Kernel, processes: Iterable[Process]) -> NDArray[np.uint64]:
    """See Machine.usage."""
    import numpy as np

    spaces, column = array("I"), kernel.processes.space
    for process in processes:
        if not isinstance(process, Process):
            raise TypeError(f"usage: {process!r} is not a Process")
        if not process.belongs_to(kernel):
            raise ValueError(f"usage: {process!r} belongs to another machine")
        spaces.append(column[process.tid])
    found = np.zeros((len(spaces), 4), np.uint64)
    for first in range(0, len(spaces), _AT_ONCE):
        part = spaces[first : first + _AT_ONCE]
        rows = np.frombuffer(kernel.core.space_sizes(part), np.uint64).reshape(len(part), -1)
        found[first : first + len(part)] = rows[:, 1:5] * np.uint64(PAGE_SIZE)
    return found
