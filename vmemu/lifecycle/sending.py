"""kill(2) and tgkill(2): to whom a signal goes, and who may send it; and what else lets signals arrive."""

from __future__ import annotations

import errno

from vmemu.dispositions import SIGNALS
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle import signals
from vmemu.lifecycle.death import settle
from vmemu.lifecycle.signals import allowed, post
from vmemu.pids import INIT
from vmemu.whole import whole

__all__ = ["block", "force", "kill", "tgkill"]


@whole
def kill(kernel: Kernel, caller: int, pid: int, sig: int) -> None:
    """kill(2): to a process, to the caller's group (0), to all that it may (-1), or to a group (-pid). Signal 0 only
    asks. Fails if it reached nobody: ESRCH without a target, EINVAL for no signal, EPERM if not allowed."""
    table = kernel.processes
    me = table.process(caller)
    to: list[tuple[int, int]] = []
    if pid > 0:
        target = table.process(pid)  # the number of any of its tasks will do
        if target not in table:
            raise _error(errno.ESRCH, pid, sig)
        failed = _may(kernel, caller, target, sig, to)
    elif pid == -1:
        others = [other for other in table if other not in (INIT, me)]
        failed = 0 if others else errno.ESRCH
        for other in others:
            error = _may(kernel, caller, other, sig, to)
            failed = failed if error == errno.EPERM else error
    elif pid == -(1 << 31):
        raise _error(errno.ESRCH, pid, sig)
    else:
        failed = errno.ESRCH
        for member in reversed(table.members(-pid or table.group[me])):
            error = _may(kernel, caller, member, sig, to)
            failed = failed and error
    _send(kernel, sig, to)
    if failed:
        raise _error(failed, pid, sig)


@whole
def tgkill(kernel: Kernel, caller: int, pid: int, tid: int, sig: int) -> None:
    """tgkill(2): to one task of a process."""
    table = kernel.processes
    to: list[tuple[int, int]] = []
    if pid <= 0 or tid <= 0:
        raise _error(errno.EINVAL, tid, sig)
    if table.process(tid) != pid or pid not in table:
        raise _error(errno.ESRCH, tid, sig)
    failed = _may(kernel, caller, pid, sig, to, tid)
    _send(kernel, sig, to)
    if failed:
        raise _error(failed, tid, sig)


def _error(number: int, pid: int, sig: int) -> Exception:
    return syscall_error("kill", number, f"signal {sig} to {pid}")


def _may(kernel: Kernel, caller: int, pid: int, sig: int, to: list[tuple[int, int]], tid: int = 0) -> int:
    """Adds one process, or one task of it, to those that get the signal -> errno if it may not."""
    if not 0 <= sig <= SIGNALS:
        return errno.EINVAL
    if not allowed(kernel, caller, tid or pid, sig):
        return errno.EPERM
    if sig and (not tid or tid in kernel.processes.tasks(pid)):
        to.append((pid, tid))
    return 0


def _send(kernel: Kernel, sig: int, to: list[tuple[int, int]]) -> None:
    """Sends to all of them; where it is interrupted, `mending` goes on."""
    kernel.processes.sending = (sig, to)
    for pid, tid in to:
        post(kernel, pid, sig, tid)
    kernel.processes.sending = None
    settle(kernel)


@whole
def block(kernel: Kernel, tid: int, how: int, mask: int) -> int:
    """See signals.block(); what is not blocked any more arrives."""
    old = signals.block(kernel, tid, how, mask)
    settle(kernel)
    return old


@whole
def force(kernel: Kernel, tid: int, sig: int) -> None:
    """See signals.force(); it arrives."""
    signals.force(kernel, tid, sig)
    settle(kernel)
