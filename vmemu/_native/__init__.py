"""The border: the only package that imports `_core`. Handles, buffers and one funnel for error codes; no policy.

A `Core` is one machine in C. Its methods are the functions of csrc/vmemu_cdef.h with Python values for out-parameters;
what they do, require and return is documented there and not repeated here. cffi drops the GIL around every
call, and the core takes its own lock.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from vmemu._native.accesses import AccessCalls, read_short, to_short_trap, touch_short, write_short
from vmemu._native.border import Trap, Vma, byte_view, constants, ffi, lib
from vmemu._native.builds import BuildCalls, Pattern
from vmemu._native.cgroups import CgroupCalls
from vmemu._native.looks import LookCalls
from vmemu._native.machine import MachineCalls
from vmemu._native.objects import ObjectCalls
from vmemu._native.pages import PageCalls
from vmemu._native.reclaims import ReclaimCalls
from vmemu._native.spaces import SpaceCalls
from vmemu._native.traces import TraceCalls, TraceRun
from vmemu.errors import OutOfMemory, VmemuError

__all__ = [
    "Closed",
    "Core",
    "Pattern",
    "TraceRun",
    "Trap",
    "Vma",
    "byte_view",
    "constants",
    "read_short",
    "to_short_trap",
    "touch_short",
    "write_short",
]


class Core(
    MachineCalls,
    SpaceCalls,
    PageCalls,
    AccessCalls,
    LookCalls,
    ObjectCalls,
    BuildCalls,
    TraceCalls,
    CgroupCalls,
    ReclaimCalls,
):
    """One machine in C. When the last reference to its handle goes, so does the machine: a call under way
    keeps it alive."""

    __slots__ = ("handle",)

    def __init__(self, nframes: int, options: int, around: int) -> None:
        handle = lib.vmemu_machine_new(nframes, options, around)
        if handle == ffi.NULL:
            raise OutOfMemory(errno.ENOMEM, f"the host has no address space for a machine of {nframes} frames")
        self._m = ffi.gc(handle, lib.vmemu_machine_free)
        self._lent = None
        self._ended = ffi.new("uint64_t[]", lib.VMEMU_NKINDS)
        self.handle = self._m
        """For `read_short` and `write_short`."""


class Closed:
    """Stands in for the parts of a closed machine: whatever is asked of it raises."""

    def __getattr__(self, name: str) -> Any:
        raise VmemuError("the machine is closed")

    def __len__(self) -> int:
        raise VmemuError("the machine is closed")

    def __iter__(self) -> Iterator[Any]:
        raise VmemuError("the machine is closed")
