"""execve(2) carried out: a plan of the loader becomes mappings and bytes in a new space, or nothing happens.

Everything is built beside the old space, which the caller replaces when all has succeeded; so every failure leaves the
process as it was. Those that Linux meets past the point of no return are PastReturn; then the caller ends the process.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from typing import NamedTuple

from vmemu import loader
from vmemu._native import constants as c
from vmemu.errors import syscall_error
from vmemu.files import File
from vmemu.kernel import Image, Kernel
from vmemu.limits import Resource
from vmemu.loader import ExecPlan, PastReturn, Segment
from vmemu.memory import mprotect
from vmemu.memory.mmap import map_private, vm_prot
from vmemu.memory.space import Space
from vmemu.types import PAGE_SIZE, Prot

__all__ = ["Executed", "build"]

_MAY = c.VM_MAYREAD | c.VM_MAYWRITE | c.VM_MAYEXEC


class Executed(NamedTuple):
    """What execve made, not yet anybody's."""

    space: int
    image: Image
    name: bytes
    """Of the task, at most 15 bytes."""
    euid: int
    egid: int
    """Effective ids, set-ID bits taken into account."""


def build(
    kernel: Kernel,
    pid: int,
    program: str,
    argv: Sequence[str | bytes] | None,
    environment: Dictionary[str, str] | Sequence[str | bytes] | None,
    link: bool,
) -> Executed:
    """A new space that holds *program* at its first instruction, and what to remember of it, for process *pid* with its
    credentials and limits.

    *argv* is ``[program]`` if None, the environment empty if None. Raises SyscallError as execve(2) and the loader say,
    PastReturn where Linux kills the process, OutOfMemory if there are not enough frames.
    """
    if isinstance(argv, str | bytes):
        raise TypeError("argv must be a sequence of strings, not one string")
    who = kernel.credentials.of(pid)
    plan = loader.plan(
        program,
        [program] if argv is None else list(argv),
        {} if environment is None else environment,
        layout=loader.Layout(
            stack_limit=kernel.limits.of(pid).soft(Resource.STACK),
            rng=kernel.rng,
            uid=who.uid,
            euid=who.euid,
            gid=who.gid,
            egid=who.egid,
        ),
        link=link,
    )
    with kernel.lock:
        sid = kernel.core.space_new("execve")
        kernel.own(sid, kernel.processes.process(pid))
        try:
            _carry_out(Space(kernel, sid, pid), plan)
        except BaseException:
            kernel.core.space_abandon(sid)
            kernel.files.tidy()
            raise
    image = Image(
        path=plan.path,
        exec_fn=plan.exec_fn,
        argv=plan.argv,
        envp=plan.envp,
        auxv=plan.auxv,
        stack_pointer=plan.stack_pointer,
        entry_point=plan.entry_point,
    )
    return Executed(sid, image, plan.comm, plan.credentials.euid, plan.credentials.egid)


def _carry_out(space: Space, plan: ExecPlan) -> None:
    kernel = space.kernel
    kernel.core.set_words(
        space.sid,
        [
            plan.start_brk,
            plan.brk,
            plan.mmap_base,
            plan.start_stack,
            plan.arg_start,
            plan.arg_end,
            plan.env_start,
            plan.env_end,
            plan.start_code,
            plan.end_code,
            plan.start_data,
            plan.end_data,
            0,
            0,
        ],
    )
    files: dict[str, File] = {}  # held until everything is mapped
    try:
        for segment in plan.segments:
            _map(space, segment, files)
    finally:
        for file in files.values():
            file.close()
    space.write(plan.stack_data_address, plan.stack_data)
    for start, end in plan.zero:
        space.write(start, bytes(end - start))
    for start, end, prot in plan.protect:
        mprotect.mprotect(space, start, end - start, prot)


def _map(space: Space, segment: Segment, files: dict[str, File]) -> None:
    """One mapping of the plan, charged as mmap charges it."""
    kernel = space.kernel
    npages = (segment.end - segment.start) // PAGE_SIZE
    if segment.prot & Prot.WRITE and not space.enough_memory(npages):
        why = f"overcommit: {npages} pages for the {segment.role}"
        if segment.growsdown:
            raise syscall_error("execve", errno.ENOMEM, why)
        raise PastReturn(errno.ENOMEM, f"execve: {os.strerror(errno.ENOMEM)} ({why})")
    if segment.path is None:
        extra = c.VM_GROWSDOWN if segment.growsdown else 0
        map_private(space, segment.start, segment.end, segment.prot, "execve", extra)
        return
    file = files.get(segment.path)
    if file is None:
        file = files[segment.path] = kernel.files.open_executable(segment.path)
    flags = vm_prot(segment.prot) | _MAY | (c.VM_ACCOUNT if segment.prot & Prot.WRITE else 0)
    inode = file.hold(kernel.files, "execve")
    kernel.core.map(
        space.sid, segment.start, segment.end, flags, inode.object, segment.offset // PAGE_SIZE, file.tag, "execve"
    )
