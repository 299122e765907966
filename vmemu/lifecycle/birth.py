"""Birth: fork, vfork, and what a child inherits: the memory as the mode says, the rest as the process table says."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from time import perf_counter

from vmemu._native import constants as c
from vmemu.credentials import Capability
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle.death import reap
from vmemu.lifecycle.memory import use
from vmemu.lifecycle.program import execve
from vmemu.limits import Resource
from vmemu.memory.commit import enough_memory
from vmemu.memory.space import Space
from vmemu.memory.words import EMPTY
from vmemu.pids import INIT, Flag
from vmemu.types import PAGE_SIZE, ForkMode, Overcommit

__all__ = ["boot", "fork", "spawn", "vfork"]

_SLICE_SECONDS = 0.04
"""What one call into the core may take at most, roughly."""
BIRTH_NS = 1_000_000
"""What one call that makes processes takes on the machine's clock."""


def boot(kernel: Kernel) -> int:
    """Makes process 1, with an empty memory: root, leader of a session."""
    pid = _empty(kernel, 0)
    kernel.names.give(pid, b"init")
    return pid


def spawn(
    kernel: Kernel,
    program: str | None,
    argv: Sequence[str | bytes] | None,
    environment: Dictionary[str, str] | Sequence[str | bytes] | None,
    link: bool,
) -> int:
    """A child of init, which inherits from it as after a fork; empty or executing *program*."""
    with kernel.lock:
        pid = _empty(kernel, INIT)
        if program is not None:
            try:
                execve(kernel, pid, program, argv, environment, link)
            except BaseException:
                kernel.core.space_free(kernel.processes.space[pid])
                reap(kernel, pid)
                raise
        return pid


def _empty(kernel: Kernel, parent: int) -> int:
    """A process without any mapping and without an image."""
    table = kernel.processes
    pids = table.reserve(1, "spawn")
    sid = kernel.core.space_new("spawn")
    _enrol(kernel, pids, parent)
    table.space[pids[0]] = sid
    table.image[pids[0]] = 0
    kernel.core.set_words(sid, EMPTY)
    return pids[0]


def _enrol(kernel: Kernel, pids: range, parent: int) -> None:
    """Rows for new processes."""
    kernel.processes.add(pids, parent, kernel.clock_ns)
    uid = kernel.credentials.of(pids[0]).uid
    kernel.users[uid] = kernel.users.get(uid, 0) + len(pids)
    kernel.clock_ns += BIRTH_NS


def _check_nproc(kernel: Kernel, parent: int, n: int) -> None:
    """Whether its user may have *n* tasks more (copy_process()). Raises EAGAIN."""
    who = kernel.credentials.of(parent)
    limit = kernel.limits.of(parent).soft(Resource.NPROC)
    exempt = not who.uid or who.capable(Capability.SYS_RESOURCE) or who.capable(Capability.SYS_ADMIN)
    if not exempt and kernel.users[who.uid] + n > limit:
        raise syscall_error("fork", errno.EAGAIN, f"RLIMIT_NPROC: user {who.uid} may have {limit} tasks")


def fork(kernel: Kernel, parent: int, n: int, mode: ForkMode) -> range:
    """*n* > 0 children, all or none. EAGAIN without pids or over RLIMIT_NPROC, ENOMEM under overcommit, OutOfMemory
    without frames."""
    with kernel.lock:
        space = use(kernel, parent, "fork")
        table = kernel.processes
        _check_nproc(kernel, parent, n)
        pids = table.reserve(n, "fork")
        _check_commit(space, n)
        spaces = _fork_spaces(space, mode, n)
        _enrol(kernel, pids, parent)
        table.flags[parent] &= ~Flag.NPROC_EXCEEDED
        table.space[pids[0] : pids[-1] + 1] = spaces
        return pids


def _fork_spaces(space: Space, mode: ForkMode, n: int) -> array[int]:
    """Ids of *n* children of a space, all or none; made in batches, between which Ctrl-C has its chance."""
    core = space.kernel.core
    spaces, batch = array("I"), 16
    try:
        while len(spaces) < n:
            began = perf_counter()
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
    if kernel.overcommit == Overcommit.HEURISTIC and pages <= kernel.npages:
        return
    if sums.special or kernel.overcommit == Overcommit.HEURISTIC:
        sizes = [
            (vma.end - vma.start) // PAGE_SIZE
            for vma in space.vmas()
            if vma.flags & (c.VM_ACCOUNT | c.VM_DONTCOPY) == c.VM_ACCOUNT
        ]
        pages = max(sizes, default=0) if kernel.overcommit == Overcommit.HEURISTIC else sum(sizes)
    needed = pages if kernel.overcommit == Overcommit.HEURISTIC else pages * n
    if not enough_memory(kernel, space.sid, needed):
        raise syscall_error("fork", errno.ENOMEM, f"overcommit: {needed} pages more than may be promised")


def vfork(kernel: Kernel, parent: int) -> int:
    """A child in the parent's memory; the parent is suspended. What the space counts from now on is the child's."""
    with kernel.lock:
        space = use(kernel, parent, "vfork")
        table = kernel.processes
        _check_nproc(kernel, parent, 1)
        pids = table.reserve(1, "vfork")
        counted = kernel.core.faults(space.sid)
        _enrol(kernel, pids, parent)
        table.flags[parent] &= ~Flag.NPROC_EXCEEDED
        child = pids[0]
        table.space[child] = space.sid
        table.borrower[parent] = child
        kernel.borrowed_at[child] = counted
        return child
