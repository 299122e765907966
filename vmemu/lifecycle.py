"""The life of processes: fork, vfork, execve, exit, wait, and whose memory is whose meanwhile.

What a child inherits is decided here: the memory as its fork mode says, the image, nothing else yet. Functions take the
kernel and a pid; `process` makes handles of that.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from time import perf_counter

from vmemu._native import constants as c
from vmemu.errors import syscall_error
from vmemu.execve import build
from vmemu.kernel import Kernel
from vmemu.memory.commit import enough_memory
from vmemu.memory.space import Space
from vmemu.memory.words import EMPTY
from vmemu.pids import INIT, RUNNING, ZOMBIE
from vmemu.types import PAGE_SIZE, ForkMode, Overcommit

__all__ = ["boot", "execve", "exit_", "faults", "fork", "look", "spawn", "use", "vfork", "wait"]

Strings = Sequence[str | bytes]
Environment = Dictionary[str, str] | Strings

_SLICE_SECONDS = 0.04
"""What one call into the core may take at most, roughly."""


def look(kernel: Kernel, pid: int, call: str) -> Space:
    """The memory of a process, for looking. ESRCH if it has exited."""
    table = kernel.processes
    if pid >= len(table.state) or table.state[pid] != RUNNING:
        raise syscall_error(call, errno.ESRCH, f"process {pid} has exited")
    return Space(kernel, table.space[pid], pid)


def use(kernel: Kernel, pid: int, call: str) -> Space:
    """The memory of a process, for using it. EBUSY while a vfork child has it."""
    space = look(kernel, pid, call)
    borrower = kernel.processes.borrower[pid]
    if borrower:
        raise syscall_error(call, errno.EBUSY, f"process {pid} is suspended in vfork until {borrower} execs or exits")
    return space


# ---- birth ----


def boot(kernel: Kernel) -> int:
    """Makes process 1, with an empty memory."""
    return _add(kernel, 0, kernel.core.space_new("boot"), 0)


def spawn(
    kernel: Kernel, program: str | None, argv: Strings | None, environment: Environment | None, link: bool
) -> int:
    """A child of init, empty or executing *program*."""
    with kernel.lock:
        if program is None:
            return _add(kernel, INIT, kernel.core.space_new("spawn"), 0)
        pid = kernel.processes.reserve(1, "spawn")[0]
        sid, image = build(kernel, pid, program, argv, environment, link)
        return _add(kernel, INIT, sid, kernel.new_image(image))


def _add(kernel: Kernel, parent: int, sid: int, image: int) -> int:
    table = kernel.processes
    pids = table.reserve(1, "spawn")
    table.add(pids, parent, image)
    table.space[pids[0]] = sid
    if not image:
        kernel.core.set_words(sid, EMPTY)
    return pids[0]


def fork(kernel: Kernel, parent: int, n: int, mode: ForkMode) -> range:
    """*n* > 0 children, all or none. EAGAIN without pids, ENOMEM under overcommit, OutOfMemory without frames."""
    with kernel.lock:
        space = use(kernel, parent, "fork")
        table = kernel.processes
        pids = table.reserve(n, "fork")
        _check_commit(space, n)
        spaces = _fork_spaces(space, mode, n)
        table.add(pids, parent, table.image[parent])
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
        pids = table.reserve(1, "vfork")
        counted = kernel.core.faults(space.sid)
        table.add(pids, parent, table.image[parent])
        child = pids[0]
        table.space[child] = space.sid
        table.borrower[parent] = child
        kernel.borrowed_at[child] = counted
        return child


# ---- change and end ----


def execve(
    kernel: Kernel, pid: int, program: str, argv: Strings | None, environment: Environment | None, link: bool
) -> None:
    """Replaces the memory; the fault counts go on."""
    with kernel.lock:
        use(kernel, pid, "execve")
        sid, image = build(kernel, pid, program, argv, environment, link)
        counted = faults(kernel, pid)
        _leave_space(kernel, pid)
        kernel.core.set_faults(sid, [a + b for a, b in zip(counted, kernel.core.faults(sid), strict=True)])
        kernel.processes.space[pid] = sid
        kernel.processes.image[pid] = kernel.new_image(image)


def exit_(kernel: Kernel, pid: int, code: int) -> None:
    """Frees the memory and leaves a zombie; children go to init, which reaps at once (forget_original_parent())."""
    with kernel.lock:
        use(kernel, pid, "exit")
        if pid == INIT:
            raise syscall_error("exit", errno.EPERM, "init cannot exit")
        table = kernel.processes
        _leave_space(kernel, pid)
        table.state[pid] = ZOMBIE
        table.status[pid] = (code & 0xFF) << 8
        dead = [child for child in table.children(pid) if table.state[child] == ZOMBIE]
        table.adopt(pid, INIT)
        if table.parent[pid] == INIT:
            dead.append(pid)
        for one in dead:
            table.remove(one)


def _leave_space(kernel: Kernel, pid: int) -> None:
    """Gives a borrowed space back to the parent, which goes on, or frees its own."""
    table = kernel.processes
    before = kernel.borrowed_at.pop(pid, None)
    if before is None:
        kernel.core.space_free(table.space[pid])
        kernel.files.tidy()
    else:
        kernel.core.set_faults(table.space[pid], before)
        table.borrower[table.parent[pid]] = 0
    table.space[pid] = 0


def wait(kernel: Kernel, parent: int, pid: int, options: int) -> tuple[int, int]:
    """Reaps a zombie child -> (pid, status); (0, 0) with WNOHANG if none is dead yet (do_wait())."""
    if options & ~os.WNOHANG:
        raise syscall_error("wait", errno.EINVAL, f"options {options:#x}")
    with kernel.lock:
        use(kernel, parent, "wait")
        table = kernel.processes
        alive = False
        named = 0 < pid < len(table.state) and table.state[pid] and table.parent[pid] == parent
        for child in table.children(parent) if pid == -1 else [pid] if named else []:
            alive = True
            if table.state[child] == ZOMBIE:
                status = table.status[child]
                table.remove(child)
                return child, status
    if not alive:
        raise syscall_error("wait", errno.ECHILD, f"process {parent} has no such child")
    if options & os.WNOHANG:
        return 0, 0
    raise syscall_error("wait", errno.EAGAIN, "every child is alive; a real process would block")


def faults(kernel: Kernel, pid: int) -> list[int]:
    """Faults by kind that are this process's own, vfork taken into account."""
    table = kernel.processes
    borrower = table.borrower[pid]
    counted = kernel.borrowed_at[borrower] if borrower else kernel.core.faults(table.space[pid])
    before = kernel.borrowed_at.get(pid)
    return list(counted) if before is None else [a - b for a, b in zip(counted, before, strict=True)]
