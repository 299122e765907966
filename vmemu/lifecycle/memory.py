"""Whose memory a process uses, and which faults are its own."""

from __future__ import annotations

import errno

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.memory.space import Space
from vmemu.pids import RUNNING

__all__ = ["faults", "leave_space", "look", "use"]


def look(kernel: Kernel, pid: int, call: str) -> Space:
    """The memory of a process, for looking. ESRCH if it has exited."""
    table = kernel.processes
    if pid >= len(table.state) or table.state[pid] != RUNNING:
        raise syscall_error(call, errno.ESRCH, f"process {pid} has exited")
    return Space(kernel, table.space[pid], pid)


def use(kernel: Kernel, pid: int, call: str) -> Space:
    """The memory of a process, for using it. EBUSY while a vfork child has it."""
    space = look(kernel, pid, call)
    borrower = kernel.processes.borrower[pid]
    if borrower:
        raise syscall_error(call, errno.EBUSY, f"process {pid} is suspended in vfork until {borrower} execs or exits")
    return space


def leave_space(kernel: Kernel, pid: int) -> None:
    """Gives a borrowed space back to the parent, which goes on, or frees its own."""
    table = kernel.processes
    before = kernel.borrowed_at.pop(pid, None)
    if before is None:
        kernel.core.space_free(table.space[pid])
        kernel.files.tidy()
    else:
        kernel.core.set_faults(table.space[pid], before)
        table.borrower[table.parent[pid]] = 0
    table.space[pid] = 0


def faults(kernel: Kernel, pid: int) -> list[int]:
    """Faults by kind that are this process's own, vfork taken into account."""
    table = kernel.processes
    borrower = table.borrower[pid]
    counted = kernel.borrowed_at[borrower] if borrower else kernel.core.faults(table.space[pid])
    before = kernel.borrowed_at.get(pid)
    return list(counted) if before is None else [a - b for a, b in zip(counted, before, strict=True)]
