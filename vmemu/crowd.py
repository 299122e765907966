"""What is done to many processes at once."""

from __future__ import annotations

from collections.abc import Iterable

from vmemu.handles import Children
from vmemu.kernel import Kernel
from vmemu.lifecycle import exits
from vmemu.process import Process, Thread
from vmemu.task import exit_status

__all__ = ["exit_many"]


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
