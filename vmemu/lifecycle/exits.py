"""The ends of many processes at once: where all are plain, what `death.die` does to each is done to columns."""

from __future__ import annotations

import errno
from array import array

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle.death import die, settle
from vmemu.lifecycle.memory import use
from vmemu.pids import INIT, RUNNING, SIGCHLD, ZOMBIE
from vmemu.whole import whole

__all__ = ["exit_many"]

_AT_ONCE = 1024
"""Ends between which Ctrl-C has its chance."""


def exit_many(kernel: Kernel, pids: range, status: int) -> None:
    """Processes with pids in a row exit, the first one first. The first that cannot raises ESRCH, EBUSY or EPERM; those
    before it have ended then."""
    for first in range(pids.start, pids.stop, _AT_ONCE):
        _some(kernel, first, min(first + _AT_ONCE, pids.stop), status)


@whole
def _some(kernel: Kernel, first: int, end: int, status: int) -> None:
    if _plain(kernel, first, end):
        _end_plain(kernel, first, end, status)
        return
    for pid in range(first, end):
        use(kernel, pid, "exit")
        if pid == INIT:
            raise syscall_error("exit", errno.EPERM, "init cannot exit")
        die(kernel, pid, status)
        settle(kernel)


def _plain(kernel: Kernel, first: int, end: int) -> bool:
    """Each runs, alone in its memory and without threads, children or a signal to anybody; the parent, who is one for
    all, is told nothing but waits for them."""
    table, n = kernel.processes, end - first
    parent = table.parent[first]
    return (
        end <= len(table.state)
        and table.quiet
        and parent != INIT
        and not (table.signals[parent] or table.blocked[parent])
        and table.state.count(RUNNING, first, end) == n
        and table.exit_signal.count(SIGCHLD, first, end) == n
        and table.parent[first:end].count(parent) == n
        and table.first_child[first:end].count(0) == n
    )


def _end_plain(kernel: Kernel, first: int, end: int, status: int) -> None:
    table, n = kernel.processes, end - first
    table.status[first:end] = array("I", [status]) * n
    zeros, dead = array("I", [0]) * n, bytes([ZOMBIE]) * n
    minor, major = kernel.core.space_end_many(table.space[first:end])
    for column, values in ((table.minor, minor), (table.major, major)):
        column[first:end] = values
    table.state[first:end] = dead
    table.space[first:end] = zeros
    kernel.files.tidy()
