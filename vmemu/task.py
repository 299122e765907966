"""Processes without their memory: who they are, whose children, what they may do. `process` adds the rest.

A handle is a pid and a machine; what the calls do is in `lifecycle`.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

from vmemu import credentials, dispositions
from vmemu.credentials import Credentials
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle import death, identity, signals, waiting
from vmemu.lifecycle.memory import faults, process_faults, use
from vmemu.lifecycle.sending import kill, tgkill
from vmemu.memory.args import integer, u32, u64
from vmemu.pids import INIT, RUNNING, THREAD, ZOMBIE, Flag
from vmemu.types import FaultCounts

__all__ = ["ChildInfo", "Task", "Usage"]


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


class Task:
    """What a process is besides its memory. Calls that change something fail with ESRCH once it has exited; looking
    works until it is reaped."""

    __slots__ = ("_kernel", "pid", "tid")

    def __init__(self, kernel: Kernel, pid: int, tid: int = 0) -> None:
        self._kernel = kernel
        self.pid = pid
        """Of the process, getpid(2)."""
        self.tid = tid or pid
        """Of the task, gettid(2); the first task of a process has its number."""

    def __repr__(self) -> str:
        return f"<vmemu.Process {self.pid} {'of a closed machine' if self._kernel.closed else self.state}>"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Task) and (self.pid, self.tid) == (other.pid, other.tid) and self._kernel is other._kernel
        )

    def __hash__(self) -> int:
        return hash((id(self._kernel), self.tid))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Process belongs to its Machine and cannot be pickled")

    @property
    def state(self) -> str:
        """``"running"``, ``"stopped"`` (by a signal), ``"suspended"`` (in vfork), ``"zombie"`` or ``"gone"``."""
        table = self._kernel.processes
        state = table.state[self.tid] if self.tid < len(table.state) else 0
        if state in (RUNNING, THREAD):
            if self.tid in table.borrower:
                return "suspended"
            return "stopped" if self.pid in table.stopped else "running"
        return "zombie" if state == ZOMBIE else "gone"

    @property
    def ppid(self) -> int:
        """Pid of the parent; 0 for init. ESRCH when reaped."""
        return self._kernel.processes.parent[self._process("getppid")]

    def _known(self, call: str) -> int:
        """The number of the task, which is still in the table."""
        if self.state == "gone":
            raise syscall_error(call, errno.ESRCH, f"process {self.tid} is gone")
        return self.tid

    def _process(self, call: str) -> int:
        """The number of its process, which is still in the table."""
        self._known(call)
        return self.pid

    def _use(self, call: str) -> None:
        """It can make a system call now. ESRCH, EBUSY."""
        use(self._kernel, self.tid, call)

    # ---- users and groups ----

    @property
    def credentials(self) -> Credentials:
        """Ids of user and groups, and capabilities: an immutable record."""
        return self._kernel.credentials.of(self._known("credentials"))

    @property
    def uid(self) -> int:
        """getuid(2)."""
        return self.credentials.uid

    @property
    def euid(self) -> int:
        """geteuid(2)."""
        return self.credentials.euid

    @property
    def gid(self) -> int:
        """getgid(2)."""
        return self.credentials.gid

    @property
    def egid(self) -> int:
        """getegid(2)."""
        return self.credentials.egid

    @property
    def groups(self) -> tuple[int, ...]:
        """getgroups(2), in increasing order."""
        return self.credentials.groups

    def setuid(self, uid: SupportsIndex) -> None:
        """setuid(2)."""
        self._setid("setuid", uid, False)

    def setgid(self, gid: SupportsIndex) -> None:
        """setgid(2)."""
        self._setid("setgid", gid, True)

    def _setid(self, call: str, to: SupportsIndex, group: bool) -> None:
        with self._kernel.lock:
            self._become(credentials.setid(self._mine(call), integer(to, call, "id"), group))

    def seteuid(self, euid: SupportsIndex) -> None:
        """seteuid(3): setresuid(-1, euid, -1)."""
        self.setresuid(-1, euid, -1)

    def setegid(self, egid: SupportsIndex) -> None:
        """setegid(3): setresgid(-1, egid, -1)."""
        self.setresgid(-1, egid, -1)

    def setreuid(self, ruid: SupportsIndex, euid: SupportsIndex) -> None:
        """setreuid(2); -1 leaves an id as it is."""
        self._setre("setreuid", ruid, euid, False)

    def setregid(self, rgid: SupportsIndex, egid: SupportsIndex) -> None:
        """setregid(2); -1 leaves an id as it is."""
        self._setre("setregid", rgid, egid, True)

    def _setre(self, call: str, real: SupportsIndex, effective: SupportsIndex, group: bool) -> None:
        ids = [integer(one, call, "id") for one in (real, effective)]
        with self._kernel.lock:
            self._become(credentials.setre(self._mine(call), ids[0], ids[1], group))

    def setresuid(self, ruid: SupportsIndex, euid: SupportsIndex, suid: SupportsIndex) -> None:
        """setresuid(2); -1 leaves an id as it is."""
        self._setres("setresuid", (ruid, euid, suid), False)

    def setresgid(self, rgid: SupportsIndex, egid: SupportsIndex, sgid: SupportsIndex) -> None:
        """setresgid(2); -1 leaves an id as it is."""
        self._setres("setresgid", (rgid, egid, sgid), True)

    def _setres(self, call: str, given: tuple[SupportsIndex, ...], group: bool) -> None:
        ids = [integer(one, call, "id") for one in given]
        with self._kernel.lock:
            self._become(credentials.setres(self._mine(call), ids[0], ids[1], ids[2], group))

    def setfsuid(self, uid: SupportsIndex) -> int:
        """setfsuid(2) -> the id before; what is not allowed changes nothing."""
        return self._setfs("setfsuid", uid, False)

    def setfsgid(self, gid: SupportsIndex) -> int:
        """setfsgid(2) -> the id before; what is not allowed changes nothing."""
        return self._setfs("setfsgid", gid, True)

    def _setfs(self, call: str, to: SupportsIndex, group: bool) -> int:
        with self._kernel.lock:
            before = self._mine(call)
            self._become(credentials.setfs(before, integer(to, call, "id"), group))
        return before.fsgid if group else before.fsuid

    def setgroups(self, groups: Iterable[SupportsIndex]) -> None:
        """setgroups(2)."""
        ids = tuple(integer(one, "setgroups", "group") for one in groups)
        with self._kernel.lock:
            self._become(credentials.setgroups(self._mine("setgroups"), ids))

    def capset(self, effective: int, permitted: int, inheritable: int = 0) -> None:
        """capset(2): capability sets as bit masks. EPERM for more than it may have."""
        with self._kernel.lock:
            self._mine("capset")
            identity.capset(self._kernel, self.tid, effective, permitted, inheritable)

    def _mine(self, call: str) -> Credentials:
        self._use(call)
        return self._kernel.credentials.of(self.tid)

    def _become(self, new: Credentials) -> None:
        identity.become(self._kernel, self.tid, new)

    # ---- resource limits ----

    def prlimit(
        self, resource: SupportsIndex, limits: tuple[SupportsIndex, SupportsIndex] | None = None
    ) -> tuple[int, int]:
        """prlimit(2) on itself: the (soft, hard) limits that a `Resource` has, set to *limits* unless None.

        -1 and RLIM_INFINITY mean none. EINVAL for a soft limit above the hard one, EPERM for a hard one that is raised
        without CAP_SYS_RESOURCE.
        """
        which = u32(resource, "prlimit", "resource")
        new = None
        if limits is not None:
            soft, hard = limits
            new = u64(soft, "prlimit", "soft limit"), u64(hard, "prlimit", "hard limit")
        with self._kernel.lock:
            self._mine("prlimit")
            return identity.prlimit(self._kernel, self.tid, which, new)

    def getrlimit(self, resource: SupportsIndex) -> tuple[int, int]:
        """getrlimit(2): (soft, hard), RLIM_INFINITY for none."""
        return self.prlimit(resource)

    def setrlimit(self, resource: SupportsIndex, limits: tuple[SupportsIndex, SupportsIndex]) -> None:
        """setrlimit(2); see `prlimit`."""
        self.prlimit(resource, limits)

    # ---- process groups and sessions ----

    def setpgid(self, pid: SupportsIndex = 0, pgid: SupportsIndex = 0) -> None:
        """setpgid(2): puts *pid* (0: itself) into a process group (0: a new one of its own number)."""
        with self._kernel.lock:
            self._use("setpgid")
            where = integer(pid, "setpgid", "pid"), integer(pgid, "setpgid", "pgid")
            identity.setpgid(self._kernel, self.pid, *where)

    def setsid(self) -> int:
        """setsid(2): leads a new session, with a new process group -> its number."""
        with self._kernel.lock:
            self._use("setsid")
            return identity.setsid(self._kernel, self.pid)

    def getpgid(self, pid: SupportsIndex = 0) -> int:
        """getpgid(2): the process group of *pid* (0: its own)."""
        return identity.getpgid(self._kernel, self._process("getpgid"), integer(pid, "getpgid", "pid"))

    def getsid(self, pid: SupportsIndex = 0) -> int:
        """getsid(2): the session of *pid* (0: its own)."""
        return identity.getsid(self._kernel, self._process("getsid"), integer(pid, "getsid", "pid"))

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
            signals.force(self._kernel, self.tid, number)
            death.settle(self._kernel)

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
            old = signals.block(self._kernel, self.tid, integer(how, "sigprocmask", "how"), bits)
            death.settle(self._kernel)
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
        self._end(code, True)

    def exit_thread(self, code: int = 0) -> None:
        """The system call exit(2): this task ends; the process too if it was the last."""
        self._end(code, False)

    def _end(self, code: int, group: bool) -> None:
        if not isinstance(code, int):
            raise TypeError(f"exit: code must be an int, not {type(code).__name__}")
        with self._kernel.lock:
            self._use("exit")
            if self.pid == INIT and (group or len(self._kernel.processes.tasks(INIT)) == 1):
                raise syscall_error("exit", errno.EPERM, "init cannot exit")
            if group:
                death.die(self._kernel, self.pid, (code & 0xFF) << 8)
            else:
                death.end_task(self._kernel, self.tid, (code & 0xFF) << 8)
            death.settle(self._kernel)

    def wait(self, pid: SupportsIndex = -1, options: SupportsIndex = 0) -> tuple[int, int]:
        """waitpid(2): what a child has to tell, the oldest first -> (pid, status as in os.wait()); zombies are reaped.

        *pid*: a child, -1 for any, 0 for those of its own process group, -group for those of another. *options*:
        os.WNOHANG, WUNTRACED, WCONTINUED, __WALL, __WCLONE. ECHILD without such a child. Where a real process would
        block because none has anything to tell: with os.WNOHANG (0, 0), else EAGAIN, as nobody else runs meanwhile.
        """
        which, how = integer(pid, "wait", "pid"), integer(options, "wait", "options")
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

    # ---- its name, and what prctl and /proc let it say ----

    @property
    def comm(self) -> str:
        """Name of the task, at most 15 bytes: the program's, or what `set_name` said."""
        return os.fsdecode(self._kernel.names.of(self._known("comm")))

    def set_name(self, name: str | bytes) -> None:
        """PR_SET_NAME: the first 15 bytes of *name*."""
        with self._kernel.lock:
            self._use("prctl")
            identity.set_name(self._kernel, self.tid, os.fsencode(name))

    @property
    def dumpable(self) -> int:
        """PR_GET_DUMPABLE: 1, or 0 after a change of user or group."""
        return int(not self._kernel.processes.flags[self._known("prctl")] & Flag.UNDUMPABLE)

    def set_dumpable(self, value: SupportsIndex) -> None:
        """PR_SET_DUMPABLE: 0 or 1, else EINVAL."""
        with self._kernel.lock:
            self._use("prctl")
            identity.set_dumpable(self._kernel, self.tid, integer(value, "prctl", "dumpable"))

    @property
    def oom_score_adj(self) -> int:
        """-1000 (never killed for want of memory) to 1000; inherited."""
        return self._kernel.processes.oom_adj[self._process("oom_score_adj")]

    def set_oom_score_adj(self, value: SupportsIndex) -> None:
        """What writing *value* to its own /proc/self/oom_score_adj does. EINVAL outside [-1000, 1000]; EACCES below
        the least that it was set to with CAP_SYS_RESOURCE, without that."""
        with self._kernel.lock:
            number = integer(value, "write", "oom_score_adj")
            identity.set_oom_score_adj(self._kernel, self.pid, number, self._mine("write"))

    @property
    def started_ns(self) -> int:
        """When it was born, in nanoseconds of `Machine.clock_ns`."""
        return self._kernel.processes.started_ns[self._known("started_ns")]
