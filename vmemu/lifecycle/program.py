"""execve(2): what of a process changes with its program."""

from __future__ import annotations

import errno
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence

from vmemu.errors import syscall_error
from vmemu.execve import build
from vmemu.kernel import Kernel
from vmemu.lifecycle.memory import faults, leave_space, use
from vmemu.limits import Resource
from vmemu.pids import Flag

__all__ = ["execve"]


def execve(
    kernel: Kernel,
    pid: int,
    program: str,
    argv: Sequence[str | bytes] | None,
    environment: Dictionary[str, str] | Sequence[str | bytes] | None,
    link: bool,
) -> None:
    """Replaces the memory. Pid, parent, session, limits, oom_score_adj and fault counts stay; name and credentials are
    those of the program. EAGAIN if a change of user went over RLIMIT_NPROC and still does (do_execveat_common())."""
    with kernel.lock:
        use(kernel, pid, "execve")
        table = kernel.processes
        before = kernel.credentials.of(pid)
        if table.flags[pid] & Flag.NPROC_EXCEEDED:
            limit = kernel.limits.of(pid).soft(Resource.NPROC)
            if kernel.users[before.uid] > limit:
                raise syscall_error("execve", errno.EAGAIN, f"RLIMIT_NPROC: user {before.uid} may have {limit} tasks")
            table.flags[pid] &= ~Flag.NPROC_EXCEEDED
        made = build(kernel, pid, program, argv, environment, link)
        kernel.core.no_thp(made.space, int(kernel.core.no_thp(table.space[pid], -1, "execve")), "execve")
        counted = faults(kernel, pid)
        leave_space(kernel, pid)
        kernel.core.set_faults(
            made.space, [a + b for a, b in zip(counted, kernel.core.faults(made.space), strict=True)]
        )
        table.space[pid] = made.space
        kernel.images.give(pid, made.image)
        kernel.names.give(pid, made.name)
        after = before.after_exec(made.euid, made.egid)
        kernel.credentials.give(pid, after)
        table.flags[pid] |= Flag.EXECED
        if (after.euid, after.egid) == (after.uid, after.gid):
            table.flags[pid] &= ~Flag.UNDUMPABLE
        else:
            table.flags[pid] |= Flag.UNDUMPABLE  # fs.suid_dumpable is 0
