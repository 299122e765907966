"""Birth: fork, vfork, and what a child inherits: the memory as the mode says, the rest as the process table says."""

from __future__ import annotations

import errno
import signal
from array import array
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dictionary
from time import perf_counter

from vmemu._native import constants as c
from vmemu.credentials import Capability
from vmemu.errors import OutOfMemory, syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle import mending
from vmemu.lifecycle.death import die, reap, settle
from vmemu.lifecycle.memory import leave_space, look, share_space, use
from vmemu.lifecycle.program import execve
from vmemu.limits import Resource
from vmemu.memory.args import MASK
from vmemu.memory.shortage import call, make_room
from vmemu.memory.space import Space
from vmemu.memory.words import EMPTY
from vmemu.pids import BIRTH_NS, INIT, Flag
from vmemu.types import PAGE_SIZE, Clone, ForkMode, Overcommit
from vmemu.whole import whole

__all__ = ["boot", "clone", "fork", "fork_many", "posix_spawn", "spawn", "vfork"]

_SLICE_SECONDS = 0.04
"""What one call into the core may take at most, roughly."""
CSIGNAL = 0xFF
_ALL = sum(int(flag) for flag in Clone)
_VM, _FS, _SIGHAND, _PIDFD = int(Clone.VM), int(Clone.FS), int(Clone.SIGHAND), int(Clone.PIDFD)
_VFORK, _PARENT, _THREAD, _DETACHED = int(Clone.VFORK), int(Clone.PARENT), int(Clone.THREAD), int(Clone.DETACHED)
_NEWNS, _NEWUSER, _NEWPID, _NEWIPC = int(Clone.NEWNS), int(Clone.NEWUSER), int(Clone.NEWPID), int(Clone.NEWIPC)
_SYSVSEM = int(Clone.SYSVSEM)
NAMESPACES = _NEWNS | _NEWUSER | _NEWPID | _NEWIPC | int(Clone.NEWCGROUP | Clone.NEWUTS | Clone.NEWNET)
_ALWAYS, _HEURISTIC = Overcommit.ALWAYS, Overcommit.HEURISTIC
_EXEC_FAILED = 127 << 8
"""Status of a child of posix_spawn that could not exec (SPAWN_ERROR)."""


def boot(kernel: Kernel) -> int:
    """Makes process 1, with an empty memory: root, leader of a session."""
    mending.watch(kernel)
    pid = _empty(kernel, 0)
    kernel.processes.unborn = ()
    kernel.names.give(pid, b"init")
    return pid


@whole
def spawn(
    kernel: Kernel,
    program: str | None,
    argv: Sequence[str | bytes] | None,
    environment: Dictionary[str, str] | Sequence[str | bytes] | None,
    link: bool,
) -> int:
    """A child of init, which inherits from it as after a fork; empty or executing *program*."""
    table = kernel.processes
    if table.torn:
        kernel.mend()
    pid = _empty(kernel, INIT)
    if program is not None:
        try:
            execve(kernel, pid, program, argv, environment, link)
        except BaseException:
            if pid in table and pid in table.unborn:  # else it was killed, or is mended away
                leave_space(kernel, pid)
                reap(kernel, pid)
            table.unborn = ()
            raise
    table.unborn = ()
    return pid


def _empty(kernel: Kernel, parent: int) -> int:
    """A process without any mapping and without an image, unborn."""
    table = kernel.processes
    if table.cgroup[parent]:
        kernel.cgroups.of(parent).refuse(1)
    pid = table.reserve_one("spawn")
    new = kernel.core.space_new
    sid = call(kernel, parent, new, table.cgroup[parent], "spawn") if parent else new(0, "spawn")
    kernel.core.set_words(sid, EMPTY)
    table.unborn = (pid,)
    _enrol(kernel, pid, parent, kernel.credentials.of(parent).uid, sid)
    kernel.own(sid, pid)
    table.image[pid] = 0
    return pid


def _enrol(kernel: Kernel, pid: int, creator: int, uid: int, space: int, parent: int = -1) -> None:
    """A row for a new process with a space, which inherits from *creator*, a task of user *uid*, and is a child of its
    process or of *parent*."""
    table = kernel.processes
    like = table.process(creator)
    table.add_one(pid, like if parent < 0 else parent, like, kernel.clock_ns, space)
    if creator != like:
        _inherit_from_thread(kernel, (pid,), creator)
    _count(kernel, creator, uid, 1)


def _enrol_many(kernel: Kernel, pids: range, creator: int, uid: int, spaces: array[int]) -> None:
    """The same for some, all children of the creator's process."""
    table = kernel.processes
    like = table.process(creator)
    table.add(pids, like, like, kernel.clock_ns, spaces)
    if creator != like:
        _inherit_from_thread(kernel, pids, creator)
    _count(kernel, creator, uid, len(pids))


def _inherit_from_thread(kernel: Kernel, pids: Iterable[int], creator: int) -> None:
    """What a task has of its own comes from that task, not from the first of its process."""
    table = kernel.processes
    for column in (table.image, table.name, table.credentials, table.blocked):
        for pid in pids:
            column[pid] = column[creator]


def _count(kernel: Kernel, creator: int, uid: int, n: int) -> None:
    """*n* tasks more for a user, and the time that it took to make them. What the last change of user left to tell is
    told (copy_process())."""
    flags = kernel.processes.flags
    kernel.users[uid] = kernel.users.get(uid, 0) + n
    kernel.clock_ns += BIRTH_NS
    if flags[creator]:
        flags[creator] &= ~Flag.NPROC_EXCEEDED
    if kernel.processes.cgroup[creator]:
        kernel.cgroups.of(creator).charge(n)


def _check_nproc(kernel: Kernel, creator: int, n: int) -> int:
    """Whether its user and its control group may have *n* tasks more (copy_process()) -> the user. Raises EAGAIN. Linux
    asks the group when the memory is copied already, which is the same unless that fails."""
    who = kernel.credentials.of(creator)
    if who.uid and not who.capable(Capability.SYS_RESOURCE) and not who.capable(Capability.SYS_ADMIN):
        limit = kernel.limits.of(kernel.processes.process(creator)).soft(Resource.NPROC)
        if kernel.users[who.uid] + n > limit:
            raise syscall_error("fork", errno.EAGAIN, f"RLIMIT_NPROC: user {who.uid} may have {limit} tasks")
    if kernel.processes.cgroup[creator]:
        kernel.cgroups.of(creator).refuse(n)
    return who.uid


def fork(kernel: Kernel, creator: int, mode: ForkMode) -> int:
    """One child. EAGAIN without a pid or over RLIMIT_NPROC, ENOMEM under overcommit, OutOfMemory without frames."""
    try:
        kernel.lock.acquire()
        table = kernel.processes
        sid = table.space[creator]
        if not (table.plain and sid):
            sid = use(kernel, creator, "fork").sid
        if table.odd[creator] or table.leader:
            pid = _fork(kernel, creator, sid, mode)
            table.unborn = ()
            return pid
        # the same by a process that has nothing rare, so is root's, and is no thread, as there are none
        pid = table.reserve_one("fork")
        child = _fork_space(kernel, creator, sid, mode)
        table.add_one(pid, creator, creator, kernel.clock_ns, child)
        kernel.users[0] += 1
        kernel.clock_ns += BIRTH_NS
        if kernel.log_owners is not None:
            kernel.own(child, pid)
        return pid
    except BaseException as error:
        table = kernel.processes
        table.torn, table.plain, table.quiet = True, False, False
        kernel.interrupted(error)
        raise
    finally:
        kernel.lock.release()


def _fork(kernel: Kernel, creator: int, sid: int, mode: ForkMode, parent: int = -1) -> int:
    """A child, unborn."""
    uid = _check_nproc(kernel, creator, 1)
    pid = kernel.processes.reserve_one("fork")
    child = _fork_space(kernel, creator, sid, mode)
    kernel.processes.unborn = (pid,)
    _enrol(kernel, pid, creator, uid, child, parent)
    kernel.own(child, pid)
    return pid


def _fork_space(kernel: Kernel, creator: int, sid: int, mode: ForkMode) -> int:
    """A copy of a space -> its id."""
    overcommit = kernel.overcommit
    # as `_check_commit` decides, which is asked unless it is plain
    most = MASK if overcommit is _ALWAYS else kernel.npages + kernel.swap_pages if overcommit is _HEURISTIC else 0
    try:
        child = kernel.core.space_fork_one(sid, mode, most)
    except OutOfMemory as error:
        if not make_room(kernel, creator, error):
            raise
        child = call(kernel, creator, kernel.core.space_fork_one, sid, mode, most)
    if not child:
        _check_commit(look(kernel, creator, "fork"), 1)
        child = call(kernel, creator, kernel.core.space_fork_one, sid, mode, MASK)
    return child


@whole
def fork_many(kernel: Kernel, creator: int, n: int, mode: ForkMode) -> range:
    """*n* > 0 children, all or none; else as fork()."""
    space = use(kernel, creator, "fork")
    table = kernel.processes
    uid = _check_nproc(kernel, creator, n)
    pids = table.reserve(n, "fork")
    _check_commit(space, n)
    spaces = call(kernel, creator, _fork_spaces, space, mode, n)
    table.unborn = pids
    _enrol_many(kernel, pids, creator, uid, spaces)
    if kernel.log_owners is not None:
        for sid, pid in zip(spaces, pids, strict=True):
            kernel.own(sid, pid)
    table.unborn = ()
    return pids


def _fork_spaces(space: Space, mode: ForkMode, n: int) -> array[int]:
    """Ids of *n* children of a space, all or none; made in batches, between which Ctrl-C has its chance."""
    core = space.kernel.core
    spaces, batch = array("I"), 1
    try:
        while len(spaces) < n:
            began = perf_counter()
            if batch == 1:  # a large memory, perhaps, which takes several time slices
                spaces.append(core.space_fork_one(space.sid, mode, MASK))
            else:
                spaces.extend(core.space_fork(space.sid, mode, min(batch, n - len(spaces))))
            batch = batch * 2 if perf_counter() - began < _SLICE_SECONDS / 4 else max(1, batch // 2)
    except BaseException:
        for sid in spaces:
            core.space_free(sid)
        raise
    return spaces


def _check_commit(space: Space, n: int) -> None:
    """Whether *n* children may be promised their memory: each accountable mapping that they get is charged on its own
    (dup_mmap()), which matters to the heuristic. Raises ENOMEM.
    """
    kernel = space.kernel
    sums = kernel.core.sums(space.sid)
    pages = int(sums.account)
    if kernel.overcommit == Overcommit.ALWAYS or not pages:
        return
    if kernel.overcommit == Overcommit.HEURISTIC and pages <= kernel.npages + kernel.swap_pages:
        return
    if sums.special or kernel.overcommit == Overcommit.HEURISTIC:
        sizes = [
            (vma.end - vma.start) // PAGE_SIZE
            for vma in space.vmas()
            if vma.flags & (c.VM_ACCOUNT | c.VM_DONTCOPY) == c.VM_ACCOUNT
        ]
        pages = max(sizes, default=0) if kernel.overcommit == Overcommit.HEURISTIC else sum(sizes)
    needed = pages if kernel.overcommit == Overcommit.HEURISTIC else pages * n
    if not space.enough_memory(needed):
        raise syscall_error("fork", errno.ENOMEM, f"overcommit: {needed} more pages can't be promised")


def vfork(kernel: Kernel, creator: int) -> int:
    """A child in the creator's memory, which is suspended until the child execs or exits."""
    return clone(kernel, creator, _VM | _VFORK | signal.SIGCHLD, kernel.fork_mode)


@whole
def posix_spawn(
    kernel: Kernel,
    creator: int,
    program: str,
    argv: Sequence[str | bytes] | None,
    environment: Dictionary[str, str] | Sequence[str | bytes] | None,
    link: bool,
) -> int:
    """posix_spawn(3): a child of vfork that execs. Raises what that raised, and then there is no child."""
    table = kernel.processes
    child = vfork(kernel, creator)
    try:
        execve(kernel, child, program, argv, environment, link)
    except BaseException:
        if child in table and table.alive(child):
            die(kernel, child, _EXEC_FAILED)
        if child in table:  # waited for
            reap(kernel, child, True)
        settle(kernel)
        raise
    return child


@whole
def clone(kernel: Kernel, creator: int, flags: int, mode: ForkMode) -> int:
    """clone(2) -> the number of the new task. The low byte of *flags* is the signal that the parent gets in the end.
    EINVAL for flags that contradict each other, EPERM for namespaces without CAP_SYS_ADMIN."""
    use(kernel, creator, "clone")
    table = kernel.processes
    first = table.process(creator)
    _check_flags(kernel, creator, flags)
    if flags & _THREAD:
        new = _new_thread(kernel, creator)
    elif flags & _VM:
        uid = _check_nproc(kernel, creator, 1)
        new = table.reserve_one("clone")
        table.unborn = (new,)
        _enrol(kernel, new, creator, uid, table.space[creator], table.parent[first] if flags & _PARENT else -1)
        share_space(kernel, creator, new)
    else:
        sid = look(kernel, creator, "fork").sid
        new = _fork(kernel, creator, sid, mode, table.parent[first] if flags & _PARENT else -1)
    if not flags & _THREAD:
        table.exit_signal[new] = table.exit_signal[first] if flags & _PARENT else flags & CSIGNAL
        if flags & _SIGHAND:
            table.same_handlers[new] = table.same_handlers.setdefault(first, {first})
            table.same_handlers[new].add(new)
    if flags & _VFORK:
        table.borrower[creator], table.lender[new] = new, creator
    table.unborn = ()
    return new


def _new_thread(kernel: Kernel, creator: int) -> int:
    """A thread, unborn."""
    table = kernel.processes
    uid = _check_nproc(kernel, creator, 1)
    tid = table.reserve_one("clone")
    table.unborn = (tid,)
    table.add_thread(tid, table.process(creator), creator, kernel.clock_ns)
    _count(kernel, creator, uid, 1)
    share_space(kernel, creator, tid)
    return tid


def _check_flags(kernel: Kernel, creator: int, flags: int) -> None:
    """copy_process()'s own checks, in its order, and those of namespaces."""
    if not flags & ~(_VM | _VFORK | CSIGNAL):
        return
    together = (_NEWNS | _FS, _NEWUSER | _FS, _THREAD | _NEWUSER, _THREAD | _NEWPID, _PIDFD | _DETACHED)
    wrong = (
        any(flags & pair == pair for pair in together)
        or (flags & _THREAD and not flags & _SIGHAND)
        or (flags & _SIGHAND and not flags & _VM)
        or (flags & _PARENT and kernel.processes.process(creator) == INIT)
    )
    if wrong:
        raise syscall_error("clone", errno.EINVAL, f"{Clone(flags & _ALL)!r}")
    if flags & NAMESPACES:
        if flags & NAMESPACES & ~_NEWUSER and not kernel.credentials.of(creator).capable(Capability.SYS_ADMIN):
            raise syscall_error("clone", errno.EPERM, "CAP_SYS_ADMIN is missing")
        if flags & _NEWIPC and flags & _SYSVSEM:
            raise syscall_error("clone", errno.EINVAL, "CLONE_NEWIPC with CLONE_SYSVSEM")
        raise NotImplementedError(f"clone: {Clone(flags & NAMESPACES)!r}")
