"""Who a process is, to itself and others: a number, a state, users and groups, limits, a session, a name.

The part of a handle that has to do with neither signals nor memory; `task` and `process` add those.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import SupportsIndex

from vmemu import credentials
from vmemu.cgroups import Cgroup
from vmemu.credentials import Credentials
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle import identity
from vmemu.lifecycle.memory import use
from vmemu.memory.args import integer, u32, u64
from vmemu.pids import RUNNING, THREAD, ZOMBIE, Flag

__all__ = ["Persona"]


class Persona:
    """A handle: a pid, a task's number and a machine. Calls that change something fail with ESRCH once it has exited;
    looking works until it is reaped."""

    __slots__ = ("_kernel", "pid", "tid")

    def __init__(self, kernel: Kernel, pid: int, tid: int = 0) -> None:
        self._kernel = kernel
        self.pid = pid
        """Of the process, getpid(2)."""
        self.tid = tid or pid
        """Of the task, gettid(2); the first task of a process has its number."""

    def __repr__(self) -> str:
        return f"<vmemu.Process {self.pid} {'of a closed machine' if self._kernel.closed else self.state}>"

    def belongs_to(self, kernel: Kernel) -> bool:
        """It is a process of that machine."""
        return self._kernel is kernel

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Persona) or self._kernel is not other._kernel:
            return False
        return (self.pid, self.tid) == (other.pid, other.tid)

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
    def cgroup(self) -> Cgroup:
        """The control group that it is in. Set to a `Cgroup` or the path of one to move the process there, with all its
        tasks; memory that it has touched stays charged to where it was. Children are born where their parent is then.
        ENOENT, ENODEV for a group that is not there; ESRCH when it has exited."""
        return self._kernel.cgroups.of(self._process("cgroup"))

    @cgroup.setter
    def cgroup(self, group: Cgroup | str) -> None:
        identity.set_cgroup(self._kernel, self.pid, group)

    @property
    def started_ns(self) -> int:
        """When it was born, in nanoseconds of `Machine.clock_ns`."""
        return self._kernel.processes.started_ns[self._known("started_ns")]
