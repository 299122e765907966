"""kill(2) and tgkill(2): to whom a signal goes, and who may send it."""

from __future__ import annotations

import errno

from vmemu.dispositions import SIGNALS
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle.death import settle
from vmemu.lifecycle.signals import allowed, post
from vmemu.pids import INIT

__all__ = ["kill", "tgkill"]


def kill(kernel: Kernel, caller: int, pid: int, sig: int) -> None:
    """kill(2): to a process, to the caller's group (0), to all that it may (-1), or to a group (-pid). Signal 0 only
    asks. Fails if it reached nobody: ESRCH without a target, EINVAL for no signal, EPERM if not allowed."""
    table = kernel.processes
    me = table.process(caller)
    if pid > 0:
        target = table.process(pid)  # the number of any of its tasks will do
        if target not in table:
            raise _error(errno.ESRCH, pid, sig)
        failed = _send(kernel, caller, target, sig)
    elif pid == -1:
        others = [other for other in table if other not in (INIT, me)]
        failed = 0 if others else errno.ESRCH
        for other in others:
            error = _send(kernel, caller, other, sig)
            failed = failed if error == errno.EPERM else error
    elif pid == -(1 << 31):
        raise _error(errno.ESRCH, pid, sig)
    else:
        failed = errno.ESRCH
        for member in reversed(table.members(-pid or table.group[me])):
            error = _send(kernel, caller, member, sig)
            failed = failed and error
    settle(kernel)
    if failed:
        raise _error(failed, pid, sig)


def tgkill(kernel: Kernel, caller: int, pid: int, tid: int, sig: int) -> None:
    """tgkill(2): to one task of a process."""
    table = kernel.processes
    if pid <= 0 or tid <= 0:
        raise _error(errno.EINVAL, tid, sig)
    if table.process(tid) != pid or pid not in table:
        raise _error(errno.ESRCH, tid, sig)
    failed = _send(kernel, caller, pid, sig, tid)
    settle(kernel)
    if failed:
        raise _error(failed, tid, sig)


def _error(number: int, pid: int, sig: int) -> Exception:
    return syscall_error("kill", number, f"signal {sig} to {pid}")


def _send(kernel: Kernel, caller: int, pid: int, sig: int, tid: int = 0) -> int:
    """Sends to one process, or to one task of it -> errno."""
    if not 0 <= sig <= SIGNALS:
        return errno.EINVAL
    if not allowed(kernel, caller, tid or pid, sig):
        return errno.EPERM
    if sig and (not tid or tid in kernel.processes.tasks(pid)):
        post(kernel, pid, sig, tid)
    return 0
