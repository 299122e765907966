"""exit(2): the memory goes at once, a zombie stays for the parent, children get another one."""

from __future__ import annotations

import errno

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle.memory import faults, leave_space, use
from vmemu.pids import INIT, ZOMBIE
from vmemu.types import FaultKind

__all__ = ["exit_", "reap"]


def exit_(kernel: Kernel, pid: int, code: int) -> None:
    """Frees the memory and leaves a zombie; children go to init, which reaps at once (forget_original_parent())."""
    with kernel.lock:
        use(kernel, pid, "exit")
        if pid == INIT:
            raise syscall_error("exit", errno.EPERM, "init cannot exit")
        table = kernel.processes
        counts = faults(kernel, pid)
        table.major[pid] = major = counts[FaultKind.FILE_MAJOR] + counts[FaultKind.SWAP_IN]
        table.minor[pid] = sum(counts[1 : FaultKind.SEGV_MAPERR]) - major
        leave_space(kernel, pid)
        table.state[pid] = ZOMBIE
        table.status[pid] = (code & 0xFF) << 8
        dead = [child for child in table.children(pid) if table.state[child] == ZOMBIE]
        table.adopt(pid, INIT)
        if table.parent[pid] == INIT:
            dead.append(pid)
        for one in dead:
            reap(kernel, one)


def reap(kernel: Kernel, pid: int) -> None:
    """Frees the row of a process that is dead and has no children (release_task())."""
    uid = kernel.credentials.of(pid).uid
    kernel.users[uid] -= 1
    if not kernel.users[uid]:
        del kernel.users[uid]
    kernel.processes.remove(pid)
