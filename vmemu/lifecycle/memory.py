"""Whose memory a task uses, who shares it, and which faults are whose."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel, SharedSpace
from vmemu.memory.space import Space
from vmemu.pids import RUNNING, THREAD
from vmemu.types import FaultKind

__all__ = ["faults", "hand_on_space", "leave_space", "look", "process_faults", "share_space", "sharers", "use"]

_KINDS = len(FaultKind)
_NO_FAULTS = (0,) * _KINDS


def look(kernel: Kernel, tid: int, call: str) -> Space:
    """The memory of a task, for looking. ESRCH if it has exited."""
    table = kernel.processes
    state = table.state[tid] if tid < len(table.state) else 0
    if state == RUNNING:
        return Space(kernel, table.space[tid], tid)
    if state == THREAD:
        return Space(kernel, table.space[tid], table.leader[tid], tid)
    raise syscall_error(call, errno.ESRCH, f"process {tid} has exited")


def use(kernel: Kernel, tid: int, call: str) -> Space:
    """The memory of a task, for using it. EBUSY while it is suspended in vfork, or stopped."""
    table = kernel.processes
    if table.torn:
        with kernel.lock:
            kernel.mend()
    space = look(kernel, tid, call)
    if tid in table.borrower:
        why = f"process {tid} is suspended in vfork until {table.borrower[tid]} execs or exits"
        raise syscall_error(call, errno.EBUSY, why)
    if table.stopped and space.pid in table.stopped:
        raise syscall_error(call, errno.EBUSY, f"process {space.pid} is stopped")
    if kernel.shared and space.sid in kernel.shared:
        with kernel.lock:
            _switch(kernel, space.sid, tid)
    return space


def sharers(kernel: Kernel, tid: int) -> list[int]:
    """The tasks that use this task's space, itself included."""
    shared = kernel.shared.get(kernel.processes.space[tid])
    return list(shared.saved) if shared else [tid]


def share_space(kernel: Kernel, tid: int, new: int) -> None:
    """A task has the space of another one, which is to be known."""
    table = kernel.processes
    sid = table.space[tid]
    shared = kernel.shared.setdefault(sid, SharedSpace(tid, {tid: [0] * _KINDS}))
    shared.saved[new] = [0] * _KINDS


def leave_space(kernel: Kernel, tid: int) -> Sequence[int]:
    """Takes its memory from a task, which frees it unless others use it -> the task's faults by kind. Who lent it in
    vfork goes on."""
    table = kernel.processes
    sid = table.space[tid]
    shared = kernel.shared.get(sid) if kernel.shared else None
    if shared is None:
        counted, nobjects = kernel.core.space_end(sid)
        kernel.files.tidy(nobjects)
        counted = counted or _NO_FAULTS
    else:
        counted = faults(kernel, tid)
        del shared.saved[tid]
        if shared.current == tid:
            shared.current = next(iter(shared.saved))
            kernel.core.set_faults(sid, shared.saved[shared.current])
            kernel.own(sid, table.process(shared.current))
        if kernel.cgroups:  # the eldest is the owner, who pays (mm_update_next_owner())
            kernel.core.space_cgroup(sid, table.cgroup[next(iter(shared.saved))])
        if len(shared.saved) == 1:
            del kernel.shared[sid]
    table.space[tid] = 0
    if table.lender:
        lender = table.lender.pop(tid, 0)
        if lender:
            del table.borrower[lender]
            kernel.signalled.append(table.process(lender))
    return counted


def hand_on_space(kernel: Kernel, tid: int, to: int) -> None:
    """One task takes the place of another, which has no memory."""
    table = kernel.processes
    sid = table.space[to] = table.space[tid]
    table.space[tid] = 0
    shared = kernel.shared.get(sid)
    if shared is not None:
        shared.saved[to] = shared.saved.pop(tid)
        shared.current = to if shared.current == tid else shared.current
    kernel.own(sid, table.process(shared.current if shared else to))
    lender = table.lender.pop(tid, 0)
    if lender:
        table.lender[to], table.borrower[lender] = lender, to


def _switch(kernel: Kernel, sid: int, tid: int) -> None:
    """From now on the space counts for this task."""
    shared = kernel.shared.get(sid)
    if shared is not None and shared.current != tid:
        kernel.own(sid, kernel.processes.process(tid))
        shared.saved[shared.current] = list(kernel.core.faults(sid))
        kernel.core.set_faults(sid, shared.saved[tid])
        shared.current = tid


def faults(kernel: Kernel, tid: int) -> list[int]:
    """Faults by kind that are this task's own."""
    sid = kernel.processes.space[tid]
    shared = kernel.shared.get(sid)
    if shared is None or shared.current == tid:
        return list(kernel.core.faults(sid))
    return shared.saved[tid]


def process_faults(kernel: Kernel, pid: int) -> Sequence[int]:
    """Faults by kind of a process: of all its tasks, also those that have ended."""
    table = kernel.processes
    counts: list[Sequence[int]] = [faults(kernel, tid) for tid in table.tasks(pid)]
    ended = kernel.threads_faults.get(pid)
    if ended:
        counts.append(ended)
    return counts[0] if len(counts) == 1 else [sum(kinds) for kinds in zip(*counts, strict=True)]
