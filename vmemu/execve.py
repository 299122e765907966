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
from collections.abc import Hashable, Sequence
from collections.abc import Mapping as Dictionary
from typing import NamedTuple

from vmemu import loader
from vmemu._native import Pattern, Trap
from vmemu._native import constants as c
from vmemu.credentials import Credentials
from vmemu.errors import OutOfMemory, syscall_error
from vmemu.files import File, Inode
from vmemu.kernel import Image, Kernel
from vmemu.limits import Resource
from vmemu.loader import ExecPlan, PastReturn, Seen, Segment
from vmemu.memory import mprotect
from vmemu.memory.mmap import map_private, vm_prot
from vmemu.memory.space import Space
from vmemu.types import PAGE_SIZE, Overcommit, Prot

__all__ = ["Executed", "build"]

_MAY = c.VM_MAYREAD | c.VM_MAYWRITE | c.VM_MAYEXEC
_KEPT_MAX = 128
"""Plans that one machine keeps."""
_STACK_MAX = 64 << 10
"""Bytes of strings and vectors with which a plan is too large to keep."""


class Executed(NamedTuple):
    """What execve made, not yet anybody's."""

    space: int
    image: Image
    name: bytes
    """Of the task, at most 15 bytes."""
    euid: int
    egid: int
    """Effective ids, set-ID bits taken into account."""


class _Made(NamedTuple):
    """What a plan came to in the core, to be made again."""

    pattern: Pattern
    inodes: tuple[tuple[Inode, int], ...]
    """The files in it, and the objects that they had."""
    charged: int
    """Pages of the largest mapping that is charged."""
    max_map_count: int


class _Kept:
    """What one request led to."""

    __slots__ = ("image", "made", "plan", "seen")

    def __init__(self, plan: ExecPlan, seen: Seen) -> None:
        self.plan, self.seen = plan, seen
        self.made: _Made | None = None
        self.image = Image(
            path=plan.path,
            exec_fn=plan.exec_fn,
            argv=plan.argv,
            envp=plan.envp,
            auxv=plan.auxv,
            stack_pointer=plan.stack_pointer,
            entry_point=plan.entry_point,
        )


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
    strings = (program,) if argv is None else tuple(argv)
    variables: Dictionary[str, str] | Sequence[str | bytes] = {} if environment is None else environment
    if type(variables) is not dict and not isinstance(variables, Dictionary | str | bytes):
        with contextlib.suppress(TypeError):  # the loader says what is wrong with it
            variables = tuple(variables)
    who, stack = kernel.credentials.of(pid), kernel.limits.of(pid).soft(Resource.STACK)
    request = None if kernel.rng is not None else _request(program, strings, variables, who, stack, link)
    with kernel.lock:
        kept: _Kept | None = kernel.plans.get(request)
        sid = 0
        if kept is not None and (
            not kept.seen.unchanged()
            or (not (sid := _make_again(kernel, pid, kept)) and not kept.seen.names_unchanged())
        ):
            kept = None
        if kept is None:
            layout = loader.Layout(
                stack_limit=stack, rng=kernel.rng, uid=who.uid, euid=who.euid, gid=who.gid, egid=who.egid
            )
            seen = Seen()
            kept = _Kept(loader.plan(program, strings, variables, layout=layout, link=link, seen=seen), seen)
        may_keep = sid != 0
        if not sid:
            sid, kept.made = _make(kernel, pid, kept.plan)
            may_keep = request is not None and _may_keep(kept, strings, variables)
        kernel.plans.pop(request, None)
        if may_keep:
            kernel.plans[request] = kept  # the last used is the last
            if len(kernel.plans) > _KEPT_MAX:
                del kernel.plans[next(iter(kernel.plans))]
    return Executed(sid, kept.image, kept.plan.comm, kept.plan.credentials.euid, kept.plan.credentials.egid)


def _request(
    program: str,
    argv: tuple[str | bytes, ...],
    environment: Dictionary[str, str] | Sequence[str | bytes],
    who: Credentials,
    stack: int,
    link: bool,
) -> Hashable:
    """What a plan depends on besides the host's files, without randomisation. None if that cannot be compared."""
    variables: object = environment
    if type(environment) is dict or isinstance(environment, Dictionary):
        variables = tuple(environment.items())
    elif type(environment) is not tuple:
        return None
    request = (program, argv, variables, who.uid, who.euid, who.gid, who.egid, stack, bool(link))
    try:
        hash(request)
    except TypeError:
        return None
    return request


def _may_keep(
    kept: _Kept, argv: tuple[str | bytes, ...], environment: Dictionary[str, str] | Sequence[str | bytes]
) -> bool:
    """Whether a plan just carried out can be found again, is small, and is still what the host's files say."""
    if len(kept.plan.stack_data) > _STACK_MAX or not kept.seen.lasting:
        return False
    flat = (
        [text for pair in environment.items() for text in pair] if isinstance(environment, Dictionary) else environment
    )
    comparable = all(type(text) in (str, bytes) for text in (*argv, *flat))
    return comparable and kept.seen.unchanged()


def _make(kernel: Kernel, pid: int, plan: ExecPlan) -> tuple[int, _Made]:
    """A new space as the plan says."""
    sid = kernel.core.space_new("execve")
    kernel.own(sid, kernel.processes.process(pid))
    try:
        return sid, _carry_out(Space(kernel, sid, pid), plan)
    except BaseException:
        kernel.core.space_abandon(sid)
        kernel.files.tidy()
        raise


def _make_again(kernel: Kernel, pid: int, kept: _Kept) -> int:
    """The same once more; 0 if it may come out otherwise: a page cache is gone, a limit could be met."""
    made = kept.made
    if kernel.log_owners is not None:  # whose the faults are is said when the space is there
        return 0
    if made is None or kernel.overcommit == Overcommit.NEVER or kernel.max_map_count != made.max_map_count:
        return 0
    if kernel.overcommit == Overcommit.HEURISTIC and made.charged > kernel.npages:
        return 0
    for inode, object_ in made.inodes:
        if inode.object != object_:
            return 0
    try:
        sid, written, trap = kernel.core.space_build(made.pattern, "execve")
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


def _carry_out(space: Space, plan: ExecPlan) -> _Made:
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
        inodes = [file.hold(kernel.files, "execve") for file in files.values()]
    finally:
        for file in files.values():
            file.close()
    vmas, words = kernel.core.mapped(space.sid)
    writes = [(plan.stack_data_address, plan.stack_data), *((start, bytes(end - start)) for start, end in plan.zero)]
    for address, data in writes:
        space.write(address, data)
    protected: list[tuple[int, int, int]] = []
    for start, end, prot in plan.protect:
        protected += mprotect.mprotect(space, start, end - start, prot)
    return _Made(
        pattern=Pattern(vmas, words, writes, protected),
        inodes=tuple((inode, inode.object) for inode in inodes),
        charged=max(segment.size // PAGE_SIZE for segment in plan.segments if segment.prot & Prot.WRITE),
        max_map_count=kernel.max_map_count,
    )


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
