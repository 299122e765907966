"""Looking at a space without changing it."""

from __future__ import annotations

import array
import errno
from typing import Any

from vmemu._native.border import Handle, fail, ffi, lib

__all__ = ["LookCalls"]


class LookCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def space_info(self, space: int) -> Any:
        """struct vmemu_space_info."""
        out = ffi.new("struct vmemu_space_info *")
        lib.vmemu_space_info(self._m, space, out)
        return out

    def space_sizes(self, spaces: array.array[int]) -> array.array[int]:
        """Six numbers for each space, those of struct vmemu_space_size."""
        n = len(spaces)
        out = array.array("Q", bytes(48 * n))
        rows = ffi.from_buffer("struct vmemu_space_size[]", out)
        lib.vmemu_machine_space_sizes(self._m, ffi.from_buffer("uint32_t[]", spaces), n, rows)
        return out

    def worst(
        self,
        state: bytearray,
        wanted: int,
        space: array.array[int],
        adjust: array.array[int],
        never: int,
        started: array.array[int],
        group: array.array[int],
        rank: array.array[int] | None,
        step: int,
    ) -> int:
        """Index of the task worth most, -1 if there is none; columns as struct vmemu_tasks has them."""
        ranks = ffi.NULL if rank is None else ffi.from_buffer("uint16_t[]", rank)
        columns = (  # held until the call is over
            ffi.from_buffer("uint8_t[]", state),
            ffi.from_buffer("uint32_t[]", space),
            ffi.from_buffer("int16_t[]", adjust),
            ffi.from_buffer("uint64_t[]", started),
            ffi.from_buffer("uint16_t[]", group),
        )
        tasks = ffi.new(
            "struct vmemu_tasks *", (*columns, ranks, len(state), step, 0 if rank is None else len(rank), never, wanted)
        )
        found = int(lib.vmemu_machine_worst(self._m, tasks))
        for column in columns:
            ffi.release(column)  # they may grow again
        return found if found >= 0 else -1

    def pagemap(self, space: int, address: int, npages: int, out: Any) -> None:
        """Fills out (uint64) as /proc/PID/pagemap."""
        rc = lib.vmemu_space_pagemap(self._m, space, address, npages, ffi.from_buffer("uint64_t[]", out))
        if rc:
            fail(rc, "pagemap")

    def reset_peak(self, space: int) -> None:
        """The most that was resident is what is resident now."""
        lib.vmemu_space_reset_peak(self._m, space)

    def peek(self, space: int, address: int, length: int) -> bytes:
        """Bytes of private anonymous memory, nothing changed; fewer than *length* where no such memory is."""
        buffer = bytearray(length)
        n = lib.vmemu_space_peek(self._m, space, address, ffi.from_buffer("uint8_t[]", buffer), length)
        if n < 0:
            fail(int(n), "peek")
        return bytes(buffer[:n])

    def translate(self, space: int, address: int) -> Any | None:
        """struct vmemu_translation, None if nothing is there."""
        out = ffi.new("struct vmemu_translation *")
        return None if lib.vmemu_space_translate(self._m, space, address, out) else out

    def usage(self, space: int, start: int, end: int) -> Any:
        """struct vmemu_usage of a range."""
        out = ffi.new("struct vmemu_usage *")
        rc = lib.vmemu_space_usage(self._m, space, start, end, out)
        if rc:
            fail(rc, "smaps")
        return out

    def mincore(self, space: int, start: int, end: int) -> bytes | None:
        """One byte a page; None if part of the range is not mapped."""
        out = bytearray((end - start) // 4096)
        rc = lib.vmemu_space_mincore(self._m, space, start, end, ffi.from_buffer("uint8_t[]", out))
        if rc == -errno.ENOMEM:
            return None
        if rc:
            fail(rc, "mincore")
        return bytes(out)
