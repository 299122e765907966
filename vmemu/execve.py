"""execve(2) carried out: a plan of the loader becomes mappings and bytes in a new space, or nothing happens.

Everything is built beside the old space, which the caller replaces when all has succeeded; so every failure leaves the
process as it was. Those that Linux meets past the point of no return are PastReturn; then the caller ends the process.

A request that is made again while the host's files are as they were leads to the same plan, which is kept; and while
the page caches of its files live, to the same mappings, which the core then makes all at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dictionary
from typing import NamedTuple

from vmemu import loader, plans
from vmemu._native import Pattern, Trap
from vmemu._native import constants as c
from vmemu.errors import OutOfMemory, syscall_error
from vmemu.kernel import Image, Kernel
from vmemu.limits import Resource
from vmemu.loader import ExecPlan, PastReturn, Seen, Segment
from vmemu.memory import mprotect
from vmemu.memory.mmap import map_private, vm_prot
from vmemu.memory.shortage import call
from vmemu.memory.space import Space
from vmemu.openfile import File
from vmemu.plans import Kept, Made
from vmemu.types import PAGE_SIZE, Overcommit, Prot

__all__ = ["Executed", "build"]

_MAY = c.VM_MAYREAD | c.VM_MAYWRITE | c.VM_MAYEXEC
_WRITE = int(Prot.WRITE)
"""A plain number: flags of an enum take long to combine."""


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
    if isinstance(argv, (str, bytes)):
        raise TypeError("argv must be a sequence of strings, not one string")
    if argv is not None and not isinstance(argv, Iterable):
        raise TypeError(f"argv must be a sequence of strings, not {type(argv).__name__}")
    strings = (program,) if argv is None else tuple(argv)
    variables: plans.Environment = {} if environment is None else environment
    if type(variables) is not dict and not isinstance(variables, Dictionary | str | bytes):
        with contextlib.suppress(TypeError):  # the loader says what is wrong with it
            variables = tuple(variables)
    who, stack = kernel.credentials.of(pid), kernel.limits.of(pid).soft(Resource.STACK)
    request = None
    if kernel.rng is None:
        request = plans.request_of(strings, variables, program, who.uid, who.euid, who.gid, who.egid, stack, bool(link))
    with kernel.lock:
        found = None if request is None else plans.find(kernel.plans, request, strings, variables)
        sid = 0 if found is None or found.made is None else call(kernel, pid, _make_again, kernel, pid, found.made)
        if found is not None and (sid or found.seen.names_unchanged()):
            kept = found
        else:
            layout = loader.Layout(
                stack_limit=stack, rng=kernel.rng, uid=who.uid, euid=who.euid, gid=who.gid, egid=who.egid
            )
            seen = Seen()
            kept = Kept(loader.plan(program, strings, variables, layout=layout, link=link, seen=seen), seen)
        if sid:
            holds = not kept.stored
        else:
            sid, made = call(kernel, pid, _make, kernel, pid, kept.plan)
            kept.carried_out(made)
            holds = kept.seen.lasting and request is not None and kept.seen.unchanged()
        if holds and request is not None:
            plans.keep(kernel.plans, request, kept, strings, variables)
    return Executed(sid, kept.image, kept.name, kept.credentials.euid, kept.credentials.egid)


def _make(kernel: Kernel, pid: int, plan: ExecPlan) -> tuple[int, Made]:
    """A new space as the plan says."""
    sid = kernel.core.space_new(kernel.processes.cgroup[pid], "execve")
    kernel.own(sid, kernel.processes.process(pid))
    try:
        return sid, _carry_out(Space(kernel, sid, pid), plan)
    except BaseException:
        kernel.core.space_abandon(sid)
        kernel.files.tidy()
        raise


def _make_again(kernel: Kernel, pid: int, made: Made) -> int:
    """The same once more; 0 if it may come out otherwise: a page cache is gone, a limit could be met."""
    if kernel.log_owners is not None:  # whose the faults are is said when the space is there
        return 0
    if kernel.overcommit == Overcommit.NEVER or kernel.max_map_count != made.max_map_count:
        return 0
    if kernel.overcommit == Overcommit.HEURISTIC and made.charged > kernel.npages:
        return 0
    for inode, object_ in made.inodes:
        if inode.object != object_:
            return 0
    try:
        sid, written, trap = kernel.core.space_build(made.pattern, kernel.processes.cgroup[pid], "execve")
    except OutOfMemory:
        kernel.files.tidy()
        raise
    if trap is not None:
        try:
            _finish(Space(kernel, sid, pid), made.pattern, written, trap)
        except BaseException:
            kernel.core.space_abandon(sid)
            kernel.files.tidy()
            raise
    return sid


def _finish(space: Space, pattern: Pattern, written: int, trap: Trap) -> None:
    """The rest of a pattern from a write on that needs a decision."""
    address, data = pattern.writes[written]
    space.write_on(trap, address, data)
    for address, data in pattern.writes[written + 1 :]:
        space.write(address, data)
    for start, end, flags in pattern.changes:
        space.kernel.core.reflag(space.sid, start, end, flags, "execve")


def _carry_out(space: Space, plan: ExecPlan) -> Made:
    kernel = space.kernel
    kernel.core.set_words(space.sid, plan.words)
    files: dict[str, File] = {}  # held until everything is mapped
    try:
        for segment in plan.segments:
            _map(space, segment, files)
        inodes = [file.hold(kernel.files, "execve") for file in files.values()]
    finally:
        for file in files.values():
            file.close()
    vmas = kernel.core.mapped(space.sid)
    writes = [(plan.stack_data_address, plan.stack_data), *((start, bytes(end - start)) for start, end in plan.zero)]
    for address, data in writes:
        space.write(address, data)
    protected: list[tuple[int, int, int]] = []
    for start, end, prot in plan.protect:
        protected += mprotect.mprotect(space, start, end - start, prot)
    return Made(
        pattern=Pattern(vmas, plan.words, writes, protected),
        inodes=tuple((inode, inode.object) for inode in inodes),
        charged=max(segment.size // PAGE_SIZE for segment in plan.segments if int(segment.prot) & _WRITE),
        max_map_count=kernel.max_map_count,
    )


def _given_back(kernel: Kernel, tid: int) -> int:
    """Pages that are promised to who executes and no longer will be."""
    sid = kernel.processes.space[tid]
    alone = kernel.overcommit is Overcommit.NEVER and sid and sid not in kernel.shared
    return int(kernel.core.sums(sid).account) if alone else 0


def _map(space: Space, segment: Segment, files: dict[str, File]) -> None:
    """One mapping of the plan, charged as mmap charges it."""
    kernel = space.kernel
    npages, prot = (segment.end - segment.start) // PAGE_SIZE, int(segment.prot)
    # by the time that Linux maps segments the old memory has gone (begin_new_exec())
    given = 0 if segment.growsdown else _given_back(kernel, space.tid)
    if prot & _WRITE and not space.enough_memory(npages - given):
        why = f"overcommit: {npages} pages for the {segment.role}"
        if segment.growsdown:
            raise syscall_error("execve", errno.ENOMEM, why)
        raise PastReturn(errno.ENOMEM, f"execve: {os.strerror(errno.ENOMEM)} ({why})")
    if segment.path is None:
        extra = c.VM_GROWSDOWN if segment.growsdown else 0
        map_private(space, segment.start, segment.end, prot, "execve", extra)
        return
    file = files.get(segment.path)
    if file is None:
        file = files[segment.path] = kernel.files.open_executable(segment.path)
    flags = vm_prot(prot) | _MAY | (c.VM_ACCOUNT if prot & _WRITE else 0)
    inode = file.hold(kernel.files, "execve")
    kernel.core.map(
        space.sid, segment.start, segment.end, flags, inode.object, segment.offset // PAGE_SIZE, file.tag, "execve"
    )
