"""wait(2): which children a parent may ask for, and what it is told of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle.death import reap, uncount
from vmemu.lifecycle.memory import use
from vmemu.lifecycle.signals import CONTINUED
from vmemu.pids import SIGCHLD, ZOMBIE
from vmemu.whole import whole

__all__ = ["wait4", "waitid"]

WCLONE, WALL, WNOTHREAD = 0x8000_0000, 0x4000_0000, 0x2000_0000
_EXITED, _NOWAIT = os.WEXITED, os.WNOWAIT
_COMMON = os.WNOHANG | os.WCONTINUED | WCLONE | WALL | WNOTHREAD
_WAIT4 = _COMMON | os.WUNTRACED
_WAITID = _COMMON | os.WNOWAIT | os.WEXITED | os.WSTOPPED
_EVENTS = os.WEXITED | os.WSTOPPED | os.WCONTINUED


def wait4(kernel: Kernel, caller: int, pid: int, options: int) -> tuple[int, int]:
    """wait4(2) -> (pid, status); (0, 0) with WNOHANG if no child has anything to tell."""
    try:
        kernel.lock.acquire()
        table = kernel.processes
        eldest = table.first_child[caller]
        usual = pid == -1 and table.plain and not (options or table.threads)
        if not usual or table.state[eldest] != ZOMBIE or table.exit_signal[eldest] != SIGCHLD:
            return _wait4(kernel, caller, pid, options)
        # the same where any child will do, the first is dead, and all may run and have one task
        status = table.status[eldest]
        table.remove(eldest, True)
        if table.odd[eldest]:
            uncount(kernel, eldest)
        else:  # root's; a count of 0 would do no harm
            kernel.users[0] -= 1
        return eldest, status
    except BaseException as error:
        table = kernel.processes
        table.torn, table.plain, table.quiet = True, False, False
        kernel.interrupted(error)
        raise
    finally:
        kernel.lock.release()


def _wait4(kernel: Kernel, caller: int, pid: int, options: int) -> tuple[int, int]:
    options &= 0xFFFF_FFFF  # an int, of which __WCLONE is the sign
    if options & ~_WAIT4:
        raise syscall_error("wait", errno.EINVAL, f"options {options:#x}")
    if pid == -(1 << 31):
        raise syscall_error("wait", errno.ESRCH, f"{pid}")
    table = kernel.processes
    if not (table.plain and table.space[caller]):
        use(kernel, caller, "wait")
    if pid > 0:
        among: Iterable[int] = _named(kernel, caller, pid)
    elif pid == -1:
        among = table.children(table.process(caller))
    else:
        among = _grouped(kernel, caller, -pid)
    return _wait(kernel, caller, among, options | _EXITED)


@whole
def waitid(kernel: Kernel, caller: int, idtype: int, number: int, options: int) -> tuple[int, int, int]:
    """waitid(2) -> (pid, real uid, status); zeros with WNOHANG if no child has anything to tell."""
    options &= 0xFFFF_FFFF
    if options & ~_WAITID or not options & _EVENTS:
        raise syscall_error("waitid", errno.EINVAL, f"options {options:#x}")
    use(kernel, caller, "waitid")
    table = kernel.processes
    if idtype == os.P_ALL:
        among: Iterable[int] = table.children(table.process(caller))
    elif idtype == os.P_PID and number > 0:
        among = _named(kernel, caller, number)
    elif idtype == os.P_PGID and number >= 0:
        among = _grouped(kernel, caller, number)
    else:
        raise syscall_error("waitid", errno.EINVAL, f"idtype {idtype}, id {number}")
    users = {}
    among = list(among)
    for child in among:
        users[child] = kernel.credentials.of(child).uid
    pid, status = _wait(kernel, caller, among, options)
    return pid, users.get(pid, 0), status


def _named(kernel: Kernel, caller: int, pid: int) -> list[int]:
    table = kernel.processes
    return [pid] if pid in table and table.parent[pid] == table.process(caller) else []


def _grouped(kernel: Kernel, caller: int, group: int) -> list[int]:
    """Children in a process group; 0: the caller's."""
    table = kernel.processes
    parent = table.process(caller)
    group = group or table.group[parent]
    return [child for child in table.children(parent) if table.group[child] == group]


def _wait(kernel: Kernel, caller: int, among: Iterable[int], options: int) -> tuple[int, int]:
    """do_wait(): the first of *among*, in order of birth, that has something to tell."""
    table = kernel.processes
    nobody = True
    for child in among:
        if not options & WALL and (table.exit_signal[child] != SIGCHLD) != bool(options & WCLONE):
            continue
        if table.state[child] != ZOMBIE or child in table.threads:  # some task of it is alive
            nobody = False
            status = _event(kernel, child, options)
            if status >= 0:
                return child, status
        elif options & _EXITED:
            return child, _bury(kernel, child, options)
    if nobody:
        raise syscall_error("wait", errno.ECHILD, f"process {caller} has no such child")
    if options & os.WNOHANG:
        return 0, 0
    raise syscall_error("wait", errno.EAGAIN, "every child is alive; a real process would block")


def _bury(kernel: Kernel, child: int, options: int) -> int:
    """The status of a dead child, which is then gone (wait_task_zombie())."""
    status = kernel.processes.status[child]
    if not options & _NOWAIT:
        reap(kernel, child, True)
    return status


def _event(kernel: Kernel, child: int, options: int) -> int:
    """That a living child stopped or went on, which is then told, -1 if it did not (wait_consider_child())."""
    table = kernel.processes
    status = table.report.get(child, -1)
    wanted = os.WCONTINUED if status == CONTINUED else os.WSTOPPED
    if status < 0 or not options & wanted:
        return -1
    if not options & _NOWAIT:
        del table.report[child]
    return status
