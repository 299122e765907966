"""wait(2): what is left of a child is taken note of, and its pid is free again."""

from __future__ import annotations

import errno
import os

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle.death import reap
from vmemu.lifecycle.memory import use
from vmemu.pids import ZOMBIE

__all__ = ["wait"]


def wait(kernel: Kernel, parent: int, pid: int, options: int) -> tuple[int, int]:
    """Reaps a zombie child -> (pid, status); (0, 0) with WNOHANG if none is dead yet (do_wait())."""
    if options & ~os.WNOHANG:
        raise syscall_error("wait", errno.EINVAL, f"options {options:#x}")
    with kernel.lock:
        use(kernel, parent, "wait")
        table = kernel.processes
        alive = False
        named = 0 < pid < len(table.state) and table.state[pid] and table.parent[pid] == parent
        for child in table.children(parent) if pid == -1 else [pid] if named else []:
            alive = True
            if table.state[child] == ZOMBIE:
                status = table.status[child]
                table.children_minor[parent] += table.minor[child] + table.children_minor[child]
                table.children_major[parent] += table.major[child] + table.children_major[child]
                reap(kernel, child)
                return child, status
    if not alive:
        raise syscall_error("wait", errno.ECHILD, f"process {parent} has no such child")
    if options & os.WNOHANG:
        return 0, 0
    raise syscall_error("wait", errno.EAGAIN, "every child is alive; a real process would block")
