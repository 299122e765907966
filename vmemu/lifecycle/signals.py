"""Signals on their way: what a process does with them, which ones wait, and sending one.

`post` is what the sender does: the signal is thrown away or put down, a SIGCONT continues. What it does to the receiver
is `death.settle`'s, as if the receiver ran at once.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Hashable

from vmemu.credentials import Capability
from vmemu.dispositions import ALWAYS, CORES, NOTHING, STOPS, Dispositions, bit
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.pids import INIT
from vmemu.whole import whole

__all__ = ["allowed", "block", "dispose", "fatal", "force", "post", "tell_parent"]

CONTINUED = 0xFFFF
"""Status of a child that goes on."""
_EVERY = (1 << 64) - 1


@whole
def dispose(kernel: Kernel, pid: int, sig: int, handler: Hashable, flags: int) -> Hashable:
    """sigaction(2) -> the handler before. What is ignored from now on does not wait any more."""
    old = kernel.signals.of(pid)
    new = old.replace(sig, handler, flags)
    for other in kernel.processes.same_handlers.get(pid, (pid,)):
        kernel.signals.give(other, new)
    if new.ignores(sig):
        _forget(kernel, pid, bit(sig))
    return old.handler(sig)


def block(kernel: Kernel, tid: int, how: int, mask: int) -> int:
    """sigprocmask(2) of masks -> the one before. SIGKILL and SIGSTOP can't be blocked."""
    blocked = kernel.processes.blocked
    old = blocked[tid]
    mask &= _EVERY & ~ALWAYS
    if how == signal.SIG_BLOCK:
        blocked[tid] = old | mask
    elif how == signal.SIG_UNBLOCK:
        blocked[tid] = old & ~mask
    elif how == signal.SIG_SETMASK:
        blocked[tid] = mask
    else:
        raise syscall_error("sigprocmask", errno.EINVAL, f"how {how}")
    kernel.signalled.append(kernel.processes.process(tid))
    return old


def allowed(kernel: Kernel, sender: int, tid: int, sig: int) -> bool:
    """Whether one task may send a signal to another one (check_kill_permission())."""
    table = kernel.processes
    me, it = kernel.credentials.of(sender), kernel.credentials.of(tid)
    mine, its = table.process(sender), table.process(tid)
    return (
        mine == its
        or bool({me.euid, me.uid} & {it.suid, it.uid})
        or me.capable(Capability.KILL)
        or (sig == signal.SIGCONT and table.session[mine] == table.session[its])
    )


def post(kernel: Kernel, pid: int, sig: int, tid: int = 0) -> None:
    """Sends a signal to a process, or to one task of it (prepare_signal(), complete_signal())."""
    table = kernel.processes
    if not table.alive(pid):
        return
    one = bit(sig)
    if one & STOPS:
        _forget(kernel, pid, bit(signal.SIGCONT))
    elif sig == signal.SIGCONT:
        _forget(kernel, pid, STOPS)
        if table.stopped.pop(pid, 0):
            table.report[pid] = CONTINUED
            tell_parent(kernel, pid)
            kernel.signalled.append(pid)
    if _thrown_away(kernel, pid, one, tid):
        return
    waiting, who = (table.pending_task, tid) if tid else (table.pending, pid)
    waiting[who] = waiting.get(who, 0) | one
    kernel.signalled.append(pid)


def _thrown_away(kernel: Kernel, pid: int, one: int, tid: int) -> bool:
    """sig_ignored(): not if it is blocked, as the disposition may have changed by the time it is not."""
    table = kernel.processes
    tasks = table.tasks(pid)
    if table.blocked[tid or tasks[0]] & one:
        return False
    dispositions = kernel.signals.of(pid)
    if pid == INIT and dispositions.default(one.bit_length()):
        return True
    return dispositions.ignores(one.bit_length())


def _forget(kernel: Kernel, pid: int, mask: int) -> None:
    """Signals that do not wait any more, neither for the process nor for one of its tasks."""
    table = kernel.processes
    for waiting, who in [(table.pending, pid), *((table.pending_task, tid) for tid in table.tasks(pid))]:
        left = waiting.get(who, 0) & ~mask
        if left:
            waiting[who] = left
        else:
            waiting.pop(who, None)


def fatal(dispositions: Dispositions, sig: int) -> bool:
    """It ends the process at once, wherever that is: by default, and without a core (complete_signal())."""
    return dispositions.default(sig) and not bit(sig) & (NOTHING | STOPS | CORES)


def force(kernel: Kernel, tid: int, sig: int) -> None:
    """A signal for what a task did itself, a bad access for one: a handler has it, unless it is blocked or ignored;
    then the default action happens all the same (force_sig_info_to_task())."""
    table = kernel.processes
    pid, one = table.process(tid), bit(sig)
    if table.blocked[tid] & one or kernel.signals.of(pid).ignored & one:
        for other in table.same_handlers.get(pid, (pid,)):
            kernel.signals.give(other, kernel.signals.of(pid).replace(sig, signal.SIG_DFL, 0))
        table.blocked[tid] &= ~one
    post(kernel, pid, sig, tid)


def tell_parent(kernel: Kernel, pid: int) -> None:
    """SIGCHLD for a child that stopped or goes on (do_notify_parent_cldstop())."""
    parent = kernel.processes.parent[pid]
    dispositions = kernel.signals.of(parent)
    if not dispositions.nocldstop and not dispositions.ignored & bit(signal.SIGCHLD):
        post(kernel, parent, signal.SIGCHLD)
