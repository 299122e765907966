"""execve(2): what of a process changes with its program."""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from typing import NamedTuple

from vmemu.credentials import Credentials
from vmemu.errors import KilledInExec, syscall_error
from vmemu.execve import Executed, build
from vmemu.kernel import Kernel
from vmemu.lifecycle.death import die, settle, stay_alone
from vmemu.lifecycle.memory import leave_space, use
from vmemu.limits import Resource
from vmemu.loader import PastReturn
from vmemu.pids import INIT, Flag
from vmemu.whole import whole

__all__ = ["execve", "go_on"]


class _Made(NamedTuple):
    """An execve that can't go back."""

    tid: int
    pid: int
    made: Executed
    before: Credentials
    after: Credentials


@whole
def execve(
    kernel: Kernel,
    tid: int,
    program: str,
    argv: Sequence[str | bytes] | None,
    environment: Dictionary[str, str] | Sequence[str | bytes] | None,
    link: bool,
) -> None:
    """Replaces the memory. Pid, parent, session, limits, oom_score_adj and fault counts stay; name and credentials are
    those of the program, other threads end, signal handlers are gone. EAGAIN if a change of user went over RLIMIT_NPROC
    and still does (do_execveat_common()). Raises ProcessKilled if it fails past the point of no return."""
    use(kernel, tid, "execve")
    table = kernel.processes
    pid = table.process(tid)
    _check_nproc(kernel, tid)
    try:
        made = build(kernel, tid, program, argv, environment, link)
    except PastReturn as error:
        if pid == INIT:  # Linux would panic; nobody could adopt orphans
            raise syscall_error("execve", error.errno or errno.ENOEXEC, f"init: {error.strerror}") from None
        die(kernel, pid, signal.SIGSEGV)
        settle(kernel)
        raise KilledInExec(pid, signal.SIGSEGV, error.errno or 0, error.strerror or "") from None
    before = kernel.credentials.of(tid)
    table.executing = _Made(tid, pid, made, before, before.after_exec(made.euid, made.egid))
    go_on(kernel)
    settle(kernel)


def go_on(kernel: Kernel) -> None:
    """The part of an execve from which there is no way back, from wherever it was interrupted."""
    table = kernel.processes
    tid, pid, made, before, after = table.executing
    if (tid != pid and table.leader.get(tid) == pid) or pid in table.threads:
        stay_alone(kernel, tid)
    if table.space[pid] != made.space:
        _change_space(kernel, pid, made.space)
    kernel.images.give(pid, made.image)
    kernel.names.give(pid, made.name)
    _change_credentials(kernel, pid, before, after)
    table.flags[pid] |= Flag.EXECED
    table.exit_signal[pid] = signal.SIGCHLD
    if table.signals[pid]:
        if pid in table.same_handlers:
            table.same_handlers.pop(pid).discard(pid)
        kernel.signals.give(pid, kernel.signals.of(pid).after_exec())
    table.executing = None


def _change_space(kernel: Kernel, pid: int, space: int) -> None:
    """The new memory for the old, which goes on if others use it. Faults are counted on, PR_SET_THP_DISABLE stays."""
    table, core = kernel.processes, kernel.core
    old = table.space[pid]
    if old in kernel.shared or pid in table.lender:
        core.no_thp(space, int(core.no_thp(old, -1, "execve")), "execve")
        counted = leave_space(kernel, pid)
        core.set_faults(space, [a + b for a, b in zip(counted, core.faults(space), strict=True)])
    else:
        core.space_succeed(space, old, "execve")
    table.space[pid] = space
    kernel.files.tidy()


def _check_nproc(kernel: Kernel, tid: int) -> None:
    table = kernel.processes
    if table.flags[tid] & Flag.NPROC_EXCEEDED:
        limit = kernel.limits.of(table.process(tid)).soft(Resource.NPROC)
        uid = kernel.credentials.of(tid).uid
        if kernel.users[uid] > limit:
            raise syscall_error("execve", errno.EAGAIN, f"RLIMIT_NPROC: user {uid} may have {limit} tasks")
        table.flags[tid] &= ~Flag.NPROC_EXCEEDED


def _change_credentials(kernel: Kernel, pid: int, before: Credentials, after: Credentials) -> None:
    """What set-ID bits and capabilities make of the user (begin_new_exec())."""
    flags = kernel.processes.flags
    if after is not before:
        kernel.credentials.give(pid, after)
    if (after.euid, after.egid) != (before.euid, before.egid):
        kernel.processes.death_signal.pop(pid, None)
    if (after.euid, after.egid) == (after.uid, after.gid):
        flags[pid] &= ~Flag.UNDUMPABLE
    else:
        flags[pid] |= Flag.UNDUMPABLE  # fs.suid_dumpable is 0
