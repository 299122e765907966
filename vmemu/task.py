"""What processes do to each other: signals, ends, waiting. `persona` is who they are, `process` adds the memory.

A handle is a pid and a machine; what the calls do is in `lifecycle`.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

from vmemu import dispositions
from vmemu.errors import syscall_error
from vmemu.lifecycle import death, identity, signals, waiting
from vmemu.lifecycle.memory import faults, process_faults
from vmemu.lifecycle.sending import block, force, kill, tgkill
from vmemu.memory.args import integer
from vmemu.persona import Persona
from vmemu.pids import INIT
from vmemu.types import FaultCounts

__all__ = ["ChildInfo", "Task", "Usage", "exit_status"]


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """What waitid(2) tells of a child, its signal being SIGCHLD."""

    si_pid: int
    si_uid: int
    """The child's real user."""
    si_status: int
    """Exit code, or the signal."""
    si_code: int
    """os.CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_STOPPED or CLD_CONTINUED."""

    @classmethod
    def of(cls, pid: int, uid: int, status: int) -> ChildInfo:
        """From a status as wait(2) has it."""
        if os.WIFCONTINUED(status):
            return cls(pid, uid, signal.SIGCONT, os.CLD_CONTINUED)
        if os.WIFSTOPPED(status):
            return cls(pid, uid, os.WSTOPSIG(status), os.CLD_STOPPED)
        if os.WIFEXITED(status):
            return cls(pid, uid, os.WEXITSTATUS(status), os.CLD_EXITED)
        code = os.CLD_DUMPED if os.WCOREDUMP(status) else os.CLD_KILLED
        return cls(pid, uid, os.WTERMSIG(status), code)


class Usage(NamedTuple):
    """What getrusage(2) tells."""

    ru_minflt: int
    ru_majflt: int


def exit_status(code: int) -> int:
    """An exit code as wait(2) tells it."""
    if not isinstance(code, int):
        raise TypeError(f"exit: code must be an int, not {type(code).__name__}")
    return (code & 0xFF) << 8


class Task(Persona):
    """What a process is besides its memory."""

    __slots__ = ()

    # ---- signals ----

    def kill(self, pid: SupportsIndex, sig: SupportsIndex) -> None:
        """kill(2): sends a signal to process *pid*, to its own group (0), to all it may (-1), or to group -pid.

        What it does to the receivers is done when this returns, also to this process. ESRCH, EPERM, EINVAL.
        """
        with self._kernel.lock:
            self._use("kill")
            kill(self._kernel, self.tid, integer(pid, "kill", "pid"), integer(sig, "kill", "sig"))

    def tgkill(self, pid: SupportsIndex, tid: SupportsIndex, sig: SupportsIndex) -> None:
        """tgkill(2): sends a signal to one task of a process."""
        numbers = [integer(one, "tgkill", "number") for one in (pid, tid, sig)]
        with self._kernel.lock:
            self._use("tgkill")
            tgkill(self._kernel, self.tid, numbers[0], numbers[1], numbers[2])

    def force_signal(self, sig: SupportsIndex) -> None:
        """What the kernel does about a bad access of this task, or another trap: a handler of *sig* has it; without
        one, also if it is blocked or ignored, the default action happens.

        The MemoryFault of an access leaves the process alive; ``p.force_signal(fault.signal)`` is how it dies of it.
        EPERM for init, EINVAL for what is no signal that a program can handle.
        """
        number = integer(sig, "signal", "sig")
        with self._kernel.lock:
            self._use("signal")
            if self.pid == INIT:
                raise syscall_error("signal", errno.EPERM, "init cannot die")
            self._kernel.signals.of(self.pid).replace(number, signal.SIG_DFL, 0)  # EINVAL
            force(self._kernel, self.tid, number)

    def signal(self, sig: SupportsIndex, handler: Hashable, flags: int = 0) -> Hashable:
        """sigaction(2): signal.SIG_DFL, signal.SIG_IGN, or anything else, which stands for a handler -> the one before.

        A handler is kept and never called: the signal then does nothing. *flags*: of SIGCHLD SA_NOCLDSTOP (1) and
        SA_NOCLDWAIT (2) count.
        """
        with self._kernel.lock:
            self._use("sigaction")
            return signals.dispose(self._kernel, self.pid, integer(sig, "sigaction", "sig"), handler, flags)

    def sigmask(self, how: SupportsIndex, mask: Iterable[int]) -> set[int]:
        """sigprocmask(2): signal.SIG_BLOCK, SIG_UNBLOCK or SIG_SETMASK, and signals -> those that were blocked."""
        with self._kernel.lock:
            self._use("sigprocmask")
            bits = dispositions.mask(set(mask))
            old = block(self._kernel, self.tid, integer(how, "sigprocmask", "how"), bits)
        return dispositions.listed(old)

    @property
    def pending(self) -> set[int]:
        """sigpending(2): signals that were sent to it and wait."""
        table, tid = self._kernel.processes, self._known("sigpending")
        return dispositions.listed(table.pending_task.get(tid, 0) | table.pending.get(self.pid, 0))

    def set_death_signal(self, sig: SupportsIndex) -> None:
        """PR_SET_PDEATHSIG: what it is sent when its parent dies; 0 for nothing. EINVAL."""
        number = integer(sig, "prctl", "sig")
        with self._kernel.lock:
            self._use("prctl")
            identity.set_death_signal(self._kernel, self.tid, number)

    def set_child_subreaper(self, on: bool) -> None:
        """PR_SET_CHILD_SUBREAPER: it adopts the orphans among its descendants."""
        with self._kernel.lock:
            self._use("prctl")
            identity.set_child_subreaper(self._kernel, self.pid, on)

    # ---- its end, and that of its children ----

    def exit_group(self, code: int = 0) -> None:
        """exit_group(2), which _exit(2) is: all tasks of the process end; a zombie stays for the parent, children get
        another parent. EPERM for init."""
        death.exit_group(self._kernel, self.tid, exit_status(code))

    def exit_thread(self, code: int = 0) -> None:
        """The system call exit(2): this task ends; the process too if it was the last."""
        status = exit_status(code)
        with self._kernel.lock:
            self._use("exit")
            if self.pid == INIT and len(self._kernel.processes.tasks(INIT)) == 1:
                raise syscall_error("exit", errno.EPERM, "init cannot exit")
            death.end_task(self._kernel, self.tid, status)

    def wait(self, pid: SupportsIndex = -1, options: SupportsIndex = 0) -> tuple[int, int]:
        """waitpid(2): what a child has to tell, the oldest first -> (pid, status as in os.wait()); zombies are reaped.

        *pid*: a child, -1 for any, 0 for those of its own process group, -group for those of another. *options*:
        os.WNOHANG, WUNTRACED, WCONTINUED, __WALL, __WCLONE. ECHILD without such a child. Where a real process would
        block because none has anything to tell: with os.WNOHANG (0, 0), else EAGAIN, as nobody else runs meanwhile.
        """
        which = pid if type(pid) is int else integer(pid, "wait", "pid")
        how = options if type(options) is int else integer(options, "wait", "options")
        return waiting.wait4(self._kernel, self.tid, which, how)

    def getrusage(self, who: SupportsIndex = 0) -> Usage:
        """getrusage(2): 0 (RUSAGE_SELF), -1 (RUSAGE_CHILDREN: those that it waited for, and theirs) or 1
        (RUSAGE_THREAD) -> what is counted here of that. EINVAL."""
        table, whose = self._kernel.processes, integer(who, "getrusage", "who")
        with self._kernel.lock:
            self._use("getrusage")
            if whose == -1:
                return Usage(table.children_minor[self.pid], table.children_major[self.pid])
            if whose not in (0, 1):
                raise syscall_error("getrusage", errno.EINVAL, f"who {whose}")
            counts = faults(self._kernel, self.tid) if whose else process_faults(self._kernel, self.pid)
        own = FaultCounts(*counts)
        return Usage(own.minor, own.major)

    def waitid(self, idtype: SupportsIndex, number: SupportsIndex, options: SupportsIndex) -> ChildInfo | None:
        """waitid(2): os.P_ALL, P_PID or P_PGID; os.WEXITED, WSTOPPED, WCONTINUED, WNOHANG, WNOWAIT. None with WNOHANG
        if no child has anything to tell; else as `wait`."""
        numbers = [integer(one, "waitid", "number") for one in (idtype, number, options)]
        pid, uid, status = waiting.waitid(self._kernel, self.tid, numbers[0], numbers[1], numbers[2])
        return ChildInfo.of(pid, uid, status) if pid else None
