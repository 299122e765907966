"""Who a process is: users and groups, process groups and sessions, its name, and what prctl(2) and /proc let it say."""

from __future__ import annotations

import errno

from vmemu import credentials
from vmemu.cgroups import Cgroup
from vmemu.credentials import Capability, Credentials
from vmemu.dispositions import SIGNALS
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle.memory import sharers
from vmemu.limits import Resource
from vmemu.pids import INIT, Flag
from vmemu.whole import whole

__all__ = [
    "become",
    "capset",
    "getpgid",
    "getsid",
    "prlimit",
    "set_cgroup",
    "set_child_subreaper",
    "set_death_signal",
    "set_dumpable",
    "set_name",
    "set_oom_score_adj",
    "setpgid",
    "setsid",
    "who_shares",
]

# ---- users and groups ----


@whole
def become(kernel: Kernel, pid: int, new: Credentials) -> None:
    """Gives a process credentials that it may have (commit_creds()). Going over RLIMIT_NPROC as another user does not
    fail; the next execve does."""
    old = kernel.credentials.of(pid)
    table, users = kernel.processes, kernel.users
    if new.uid != old.uid:
        over = users.get(new.uid, 0) > kernel.limits.of(table.process(pid)).soft(Resource.NPROC)
        table.flags[pid] &= ~Flag.NPROC_EXCEEDED
        table.flags[pid] |= Flag.NPROC_EXCEEDED if over and new.uid else 0
        users[new.uid] = users.get(new.uid, 0) + 1
        users[old.uid] -= 1
        if not users[old.uid]:
            del users[old.uid]
    ids = (new.euid, new.egid, new.fsuid, new.fsgid)
    if ids != (old.euid, old.egid, old.fsuid, old.fsgid) or new.permitted & ~old.permitted:
        _set_dumpable(kernel, pid, False)
        table.death_signal.pop(pid, None)
    kernel.credentials.give(pid, new)


def capset(kernel: Kernel, pid: int, effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for the process itself (cap_capset())."""
    old = kernel.credentials.of(pid)
    effective, permitted, inheritable = (
        given & credentials.ALL_CAPABILITIES for given in (effective, permitted, inheritable)
    )
    within = old.inheritable | old.bounding
    if not old.capable(Capability.SETPCAP):
        within &= old.inheritable | old.permitted
    if inheritable & ~within or permitted & ~old.permitted or effective & ~permitted:
        raise syscall_error("capset", errno.EPERM, "capabilities that it may not have")
    become(kernel, pid, old.with_capabilities(effective, permitted, inheritable))


# ---- resource limits ----

_NR_OPEN = 1 << 20
"""fs.nr_open: no process may have more files than that."""


def prlimit(kernel: Kernel, tid: int, resource: int, new: tuple[int, int] | None) -> tuple[int, int]:
    """Reads a limit of a task's process and, unless None, sets it, on its own behalf (do_prlimit()) -> what it was."""
    if not 0 <= resource < len(Resource):
        raise syscall_error("prlimit", errno.EINVAL, f"resource {resource}")
    pid = kernel.processes.process(tid)
    limits = kernel.limits.of(pid)
    before = limits[resource]
    if new is not None:
        soft, hard = new
        if soft > hard:
            raise syscall_error("prlimit", errno.EINVAL, f"soft limit {soft} above the hard one, {hard}")
        if resource == Resource.NOFILE and hard > _NR_OPEN:
            raise syscall_error("prlimit", errno.EPERM, f"RLIMIT_NOFILE {hard} is above {_NR_OPEN}")
        if hard > before[1] and not kernel.credentials.of(tid).capable(Capability.SYS_RESOURCE):
            raise syscall_error(
                "prlimit", errno.EPERM, f"hard limit {hard} above {before[1]}, without CAP_SYS_RESOURCE"
            )
        kernel.limits.give(pid, limits.replace(resource, soft, hard))
    return before


# ---- process groups and sessions ----


@whole
def setpgid(kernel: Kernel, caller: int, pid: int, group: int) -> None:
    """setpgid(2): puts itself or a child that has not executed a program yet into a group of its session."""
    table = kernel.processes
    pid = pid or caller
    group = group or pid
    if pid in table.leader:
        raise syscall_error("setpgid", errno.EINVAL, f"{pid} is a thread")

    def fail(number: int, why: str) -> Exception:
        return syscall_error("setpgid", number, why)

    if group < 0:
        raise fail(errno.EINVAL, f"group {group}")
    if pid not in table or (pid != caller and table.parent[pid] != caller):
        raise fail(errno.ESRCH, f"{pid} is neither process {caller} nor a child of it")
    if pid != caller and table.session[pid] != table.session[caller]:
        raise fail(errno.EPERM, f"process {pid} is in another session")
    if pid != caller and table.flags[pid] & Flag.EXECED:
        raise fail(errno.EACCES, f"process {pid} has executed a program")
    if table.session[pid] == pid:
        raise fail(errno.EPERM, f"process {pid} leads a session")
    if group != pid:
        members = table.members(group)
        if not members or table.session[members[0]] != table.session[caller]:
            raise fail(errno.EPERM, f"there is no process group {group} in its session")
    table.move(pid, group, table.session[pid])


@whole
def setsid(kernel: Kernel, pid: int) -> int:
    """setsid(2): leads a new session with a new group -> its number. EPERM if a group of that number exists."""
    table = kernel.processes
    if table.session[pid] == pid or table.members(pid):
        raise syscall_error("setsid", errno.EPERM, f"there is a process group {pid}")
    table.move(pid, pid, pid)
    return pid


def getpgid(kernel: Kernel, caller: int, pid: int) -> int:
    """getpgid(2); 0 means the caller. ESRCH."""
    return kernel.processes.group[_find(kernel, caller, pid, "getpgid")]


def getsid(kernel: Kernel, caller: int, pid: int) -> int:
    """getsid(2); 0 means the caller. ESRCH."""
    return kernel.processes.session[_find(kernel, caller, pid, "getsid")]


def _find(kernel: Kernel, caller: int, pid: int, call: str) -> int:
    if pid and kernel.processes.process(pid) not in kernel.processes:
        raise syscall_error(call, errno.ESRCH, f"there is no process {pid}")
    return kernel.processes.process(pid or caller)


# ---- prctl and /proc ----


def set_name(kernel: Kernel, pid: int, name: bytes) -> None:
    """PR_SET_NAME, or a write to /proc/PID/comm: what lies before a NUL, at most 15 bytes."""
    kernel.names.give(pid, name.split(b"\0", 1)[0][:15])


@whole
def set_dumpable(kernel: Kernel, tid: int, value: int) -> None:
    """PR_SET_DUMPABLE. EINVAL for all but 0 and 1."""
    if value not in (0, 1):
        raise syscall_error("prctl", errno.EINVAL, f"PR_SET_DUMPABLE, {value}")
    _set_dumpable(kernel, tid, bool(value))


def _set_dumpable(kernel: Kernel, tid: int, yes: bool) -> None:
    """It is a matter of the memory, so of all who share it."""
    flags = kernel.processes.flags
    for other in sharers(kernel, tid):
        flags[other] = flags[other] & ~Flag.UNDUMPABLE | (0 if yes else Flag.UNDUMPABLE)


def set_child_subreaper(kernel: Kernel, pid: int, on: bool) -> None:
    """PR_SET_CHILD_SUBREAPER."""
    flags = kernel.processes.flags
    flags[pid] = flags[pid] & ~Flag.SUBREAPER | (Flag.SUBREAPER if on else 0)


def set_death_signal(kernel: Kernel, tid: int, sig: int) -> None:
    """PR_SET_PDEATHSIG; 0 for none. EINVAL."""
    if not 0 <= sig <= SIGNALS:
        raise syscall_error("prctl", errno.EINVAL, f"PR_SET_PDEATHSIG, {sig}")
    if sig:
        kernel.processes.death_signal[tid] = sig
    else:
        kernel.processes.death_signal.pop(tid, None)


@whole
def set_oom_score_adj(kernel: Kernel, pid: int, value: int, writer: Credentials) -> None:
    """A write to /proc/PID/oom_score_adj (__set_oom_adj()). EINVAL outside [-1000, 1000]; EACCES for going below the
    least that it was set to with CAP_SYS_RESOURCE, for who does not have that."""
    table = kernel.processes
    if not -1000 <= value <= 1000:
        raise syscall_error("write", errno.EINVAL, f"oom_score_adj {value} is not between -1000 and 1000")
    able = writer.capable(Capability.SYS_RESOURCE)
    if value < table.oom_adj_min[pid] and not able:
        raise syscall_error("write", errno.EACCES, f"oom_score_adj below {table.oom_adj_min[pid]}")
    for other in who_shares(kernel, pid):
        table.oom_adj[other] = value
        if able:
            table.oom_adj_min[other] = value


def who_shares(kernel: Kernel, pid: int) -> set[int]:
    """The processes whose oom_score_adj this one's is: itself, and who uses the same memory but for vfork."""
    table = kernel.processes
    if pid in table.lender or not table.alive(pid):
        return {pid}
    tid = table.tasks(pid)[0]
    return {pid} | {table.process(other) for other in sharers(kernel, tid) if other not in table.lender} - {INIT}


@whole
def set_cgroup(kernel: Kernel, pid: int, group: Cgroup | str) -> None:
    """Moves a process to a control group, given by object or path. ESRCH if it is not alive."""
    table = kernel.processes
    if pid not in table or not table.alive(pid):
        raise syscall_error("cgroup", errno.ESRCH, f"process {pid} has exited")
    kernel.cgroups.move(pid, kernel.cgroups.find(group, "cgroup"), kernel.clock_ns)
