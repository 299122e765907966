"""What the rooms of the border share: the core itself, its records as Python has them, one funnel for error codes."""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from vmemu._core import ffi, lib
from vmemu.errors import OutOfMemory, syscall_error
from vmemu.types import FaultKind, Operation

__all__ = ["Handle", "Trap", "Vma", "byte_view", "constants", "fail", "ffi", "lib", "to_trap", "to_vma"]


class constants:  # noqa: N801 - a namespace of the C constants, not a type to instantiate
    """The C constants that Python uses, under their own names without the prefix."""

    TRAP_FAULT: int = lib.VMEMU_TRAP_FAULT
    TRAP_PAGE: int = lib.VMEMU_TRAP_PAGE
    TRAP_STACK: int = lib.VMEMU_TRAP_STACK
    TRAP_PAUSE: int = lib.VMEMU_TRAP_PAUSE
    TRAP_CALL: int = lib.VMEMU_TRAP_CALL
    TRAP_CHARGE: int = lib.VMEMU_TRAP_CHARGE
    TRAP_FRAMES: int = lib.VMEMU_TRAP_FRAMES
    TRAP_SWAP: int = lib.VMEMU_TRAP_SWAP
    TRAP_RECLAIM: int = lib.VMEMU_TRAP_RECLAIM
    RC_SWPIN: int = lib.VMEMU_RC_SWPIN
    RC_SWPOUT: int = lib.VMEMU_RC_SWPOUT
    RC_SCAN_ANON: int = lib.VMEMU_RC_SCAN_ANON
    RC_SCAN_FILE: int = lib.VMEMU_RC_SCAN_FILE
    RC_STEAL_ANON: int = lib.VMEMU_RC_STEAL_ANON
    RC_STEAL_FILE: int = lib.VMEMU_RC_STEAL_FILE
    BAD_OPERATION: int = lib.VMEMU_BAD_OPERATION
    BAD_LABEL: int = lib.VMEMU_BAD_LABEL
    BAD_PID: int = lib.VMEMU_BAD_PID
    BAD_CHILD: int = lib.VMEMU_BAD_CHILD
    BAD_SIZE: int = lib.VMEMU_BAD_SIZE
    BAD_ADDRESS: int = lib.VMEMU_BAD_ADDRESS
    READ: int = lib.VMEMU_READ
    WRITE: int = lib.VMEMU_WRITE
    FETCH: int = lib.VMEMU_FETCH
    GUP_WRITE: int = lib.VMEMU_GUP_WRITE
    OPT_ZERO_PAGE: int = lib.VMEMU_OPT_ZERO_PAGE
    OPT_REUSE: int = lib.VMEMU_OPT_REUSE
    OPT_CONTENTS: int = lib.VMEMU_OPT_CONTENTS
    OPT_THP_MADVISE: int = lib.VMEMU_OPT_THP_MADVISE
    OPT_THP_ALWAYS: int = lib.VMEMU_OPT_THP_ALWAYS
    OPT_RELIEVE: int = lib.VMEMU_OPT_RELIEVE
    OBJ_SHMEM: int = lib.VMEMU_OBJ_SHMEM
    OBJ_FILE: int = lib.VMEMU_OBJ_FILE
    OBJ_WRITENOTIFY: int = lib.VMEMU_OBJ_WRITENOTIFY
    OBJ_HUGETLB: int = lib.VMEMU_OBJ_HUGETLB
    OBJ_GIANT: int = lib.VMEMU_OBJ_GIANT
    OBJ_RESERVE: int = lib.VMEMU_OBJ_RESERVE
    OBJ_ACCOUNT: int = lib.VMEMU_OBJ_ACCOUNT
    VM_READ: int = lib.VMEMU_VM_READ
    VM_WRITE: int = lib.VMEMU_VM_WRITE
    VM_EXEC: int = lib.VMEMU_VM_EXEC
    VM_SHARED: int = lib.VMEMU_VM_SHARED
    VM_MAYREAD: int = lib.VMEMU_VM_MAYREAD
    VM_MAYWRITE: int = lib.VMEMU_VM_MAYWRITE
    VM_MAYEXEC: int = lib.VMEMU_VM_MAYEXEC
    VM_MAYSHARE: int = lib.VMEMU_VM_MAYSHARE
    VM_GROWSDOWN: int = lib.VMEMU_VM_GROWSDOWN
    VM_MAYBE_GUARD: int = lib.VMEMU_VM_MAYBE_GUARD
    VM_LOCKED: int = lib.VMEMU_VM_LOCKED
    VM_SEQ_READ: int = lib.VMEMU_VM_SEQ_READ
    VM_RAND_READ: int = lib.VMEMU_VM_RAND_READ
    VM_DONTCOPY: int = lib.VMEMU_VM_DONTCOPY
    VM_DONTEXPAND: int = lib.VMEMU_VM_DONTEXPAND
    VM_LOCKONFAULT: int = lib.VMEMU_VM_LOCKONFAULT
    VM_ACCOUNT: int = lib.VMEMU_VM_ACCOUNT
    VM_NORESERVE: int = lib.VMEMU_VM_NORESERVE
    VM_HUGETLB: int = lib.VMEMU_VM_HUGETLB
    VM_GIANT: int = lib.VMEMU_VM_GIANT
    VM_POOL_OWNER: int = lib.VMEMU_VM_POOL_OWNER
    VM_SYNC: int = lib.VMEMU_VM_SYNC
    VM_WIPEONFORK: int = lib.VMEMU_VM_WIPEONFORK
    VM_DONTDUMP: int = lib.VMEMU_VM_DONTDUMP
    VM_SOFTDIRTY: int = lib.VMEMU_VM_SOFTDIRTY
    VM_HUGEPAGE: int = lib.VMEMU_VM_HUGEPAGE
    VM_NOHUGEPAGE: int = lib.VMEMU_VM_NOHUGEPAGE
    VM_MERGEABLE: int = lib.VMEMU_VM_MERGEABLE
    VM_SEALED: int = lib.VMEMU_VM_SEALED
    VM_DROPPABLE: int = lib.VMEMU_VM_DROPPABLE


_NO_FRAME: int = lib.VMEMU_NO_FRAME


class Vma(NamedTuple):
    """One mapping as the core has it; `pgoff` in pages, the rest in bytes."""

    start: int
    end: int
    pgoff: int
    flags: int
    anon: int
    object: int
    tag: int


class Trap(NamedTuple):
    """Where and why an access stopped; `reason` 0 if it did not."""

    reason: int
    done: int
    address: int = 0
    page: int = 0
    """Index of the missing page in `object`."""
    object: int = 0
    kind: int = 0
    access: int = 0


def byte_view(data: Any) -> memoryview:
    """The bytes of any contiguous buffer. TypeError or ValueError for what is none, or holds references."""
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"data must be a bytes-like object, not {type(data).__name__}") from None
    if "O" in view.format:
        raise TypeError("data must be bytes, not Python objects")
    return view.cast("B")


def _no_frame(cgroup: int, call: str) -> OutOfMemory:
    """Made here, for a frame that raises what it has in a variable is a cycle."""
    why = "a memory cgroup is at its limit" if cgroup else "no frame is left"
    error = OutOfMemory(errno.ENOMEM, f"{call}: Cannot allocate memory ({why})")
    error.cgroup = cgroup
    return error


def fail(rc: int, call: str) -> None:
    """Raises what a negative result means."""
    if rc <= -_NO_FRAME:
        raise _no_frame(-rc - _NO_FRAME, call)
    if rc == -errno.ENOMEM:
        raise OutOfMemory(errno.ENOMEM, f"{call}: Cannot allocate memory (the host has no memory for it)")
    if rc == -errno.EBADF:  # ended by another thread since it was looked up
        raise syscall_error(call, errno.ESRCH, "the process has exited")
    raise syscall_error(call, -rc)


def to_trap(reason: int, trap: Any) -> Trap:
    """A struct vmemu_trap with what the call returned."""
    if reason < 0:
        fail(reason, "access")
    return Trap(reason, trap.done, trap.address, trap.index, trap.object, trap.kind, trap.access)


def to_vma(v: Any) -> Vma:
    """A struct vmemu_vma."""
    return Vma(v.start, v.end, v.pgoff, v.flags, v.anon, v.object, v.tag)


class Handle:
    """One machine in C, for the rooms of the border: each has the functions of one part of csrc/vmemu_cdef.h."""

    __slots__ = ("_ended", "_lent", "_m")
    _m: Any
    _lent: Any
    """What the fault log keeps alive."""
    _ended: Any
    """Scratch of space_end."""


assert [int(getattr(lib, f"VMEMU_{kind.name}")) for kind in FaultKind] == list(FaultKind)  # noqa: S101
assert [int(getattr(lib, f"VMEMU_OP_{op.name}")) for op in Operation] == list(Operation)  # noqa: S101
