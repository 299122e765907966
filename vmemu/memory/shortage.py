"""What is done where a frame is missing: reclaim, then the OOM killer, else the access or the call fails."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import TypeVar

from vmemu._native import Trap
from vmemu.errors import OutOfMemory, ProcessKilled, syscall_error
from vmemu.kernel import Kernel
from vmemu.memory.reclaim import share, shrink
from vmemu.pids import INIT
from vmemu.whole import whole

__all__ = ["call", "make_room", "relieve", "squeeze"]

_T = TypeVar("_T")
_BATCH = 32
"""Frames that reclaim is asked for at once (SWAP_CLUSTER_MAX)."""


def relieve(kernel: Kernel, pid: int, trap: Trap, vain: bool = False) -> bool:
    """An access of *pid* stopped for want of a frame -> whether to make it again. *vain*: nothing came of reclaim.
    Raises ProcessKilled if the process was chosen to make room, KernelPanic with panic_on_oom."""
    return _relieve(kernel, pid, trap.object, 0 if vain else _BATCH)


def call(kernel: Kernel, pid: int, function: Callable[..., _T], *args: object) -> _T:
    """The result of a system call that does all or nothing, made again as long as frames that it lacks can be had."""
    wanted = _BATCH
    while True:
        try:
            return function(*args)
        except OutOfMemory as error:
            if not make_room(kernel, pid, error, wanted):
                raise
        wanted *= 2


def make_room(kernel: Kernel, pid: int, error: OutOfMemory, wanted: int = _BATCH) -> bool:
    """A system call of *pid* failed so -> whether to make it again; else as `relieve`."""
    return error.cgroup is not None and _relieve(kernel, pid, error.cgroup, wanted)


def squeeze(kernel: Kernel, cgroup: int, most: int) -> None:
    """Brings what a control group is charged for down to *most* pages, as far as it goes (memory_max_write())."""
    while (over := int(kernel.core.cgroup_info(cgroup).usage) - most) > 0:
        if shrink(kernel, over, cgroup):
            continue
        kernel.cgroups.by_id[cgroup].event("oom")
        if kernel.out_of_memory is None or not kernel.out_of_memory(kernel, INIT, cgroup):
            return


def _relieve(kernel: Kernel, pid: int, cgroup: int, wanted: int) -> bool:
    return _relieve_now(kernel, pid, cgroup, wanted, kernel.oom_kills)


@whole
def _relieve_now(kernel: Kernel, pid: int, cgroup: int, wanted: int, deaths: int) -> bool:
    """With the lock, which may have taken a while: *deaths* had been before."""
    table = kernel.processes
    pid = table.process(pid)
    if not table.alive(pid):  # by now
        if table.state[pid] and os.WIFSIGNALED(table.status[pid]):
            raise ProcessKilled(pid, os.WTERMSIG(table.status[pid]))
        raise syscall_error("access", errno.ESRCH, f"process {pid} has exited")
    group = kernel.cgroups.by_id.get(cgroup)
    if group is None:  # by now
        return True
    if cgroup:
        group.event("max")
    if kernel.oom_kills != deaths or (wanted and shrink(kernel, max(wanted, share(kernel, cgroup)), cgroup)):
        return True
    if cgroup:
        group.event("oom")
    if kernel.out_of_memory is None:
        return False
    killed = kernel.out_of_memory(kernel, pid, cgroup)
    if not table.alive(pid):
        raise ProcessKilled(pid, signal.SIGKILL)
    return killed
