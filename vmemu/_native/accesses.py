"""Accesses: bytes in and out, and batches."""

from __future__ import annotations

import array
from typing import Any

from vmemu._native.border import Handle, Trap, constants, fail, ffi, lib, to_trap

__all__ = ["AccessCalls", "read_short", "to_short_trap", "touch_short", "write_short"]

read_short = lib.vmemu_space_read_short
write_short = lib.vmemu_space_write_short
touch_short = lib.vmemu_space_touch_short
"""The calls themselves: (handle, space, address, bytes, length) -> 0 when all is done. cffi hands bytes on as they
are."""
_STOPPED: int = lib.VMEMU_STOPPED


def to_short_trap(outcome: int, address: int) -> Trap:
    """What such a call returned when it stopped; after a stop other than a fatal one it is to be made again."""
    if outcome < 0:
        fail(outcome, "access")
    done, kind = outcome >> 8, outcome & 0xFF
    if kind == _STOPPED:
        return Trap(constants.TRAP_PAUSE, done, address + done)
    return Trap(constants.TRAP_FAULT, done, address + done, kind=kind)


class AccessCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def read(self, space: int, address: int, buffer: Any, offset: int, length: int, access: int) -> Trap:
        """Reads into a buffer from offset on; a bytes object may be given that nothing else refers to yet."""
        trap = ffi.new("struct vmemu_trap *")
        data = ffi.from_buffer("uint8_t[]", buffer)
        return to_trap(lib.vmemu_space_read(self._m, space, address, data + offset, length, access, trap), trap)

    def write(self, space: int, address: int, buffer: Any, offset: int, length: int) -> Trap:
        """Writes from a buffer."""
        trap = ffi.new("struct vmemu_trap *")
        data = ffi.from_buffer("uint8_t[]", buffer)
        return to_trap(lib.vmemu_space_write(self._m, space, address, data + offset, length, trap), trap)

    def touch(self, space: int, address: int, length: int, access: int, counts: array.array[int]) -> Trap:
        """One access a page; adds to counts by kind."""
        trap = ffi.new("struct vmemu_trap *")
        data = ffi.from_buffer("uint64_t[]", counts)
        return to_trap(lib.vmemu_space_touch(self._m, space, address, length, access, data, trap), trap)

    def access(self, space: int, addresses: Any, writes: Any, access: int, start: int, n: int, kinds: Any) -> Trap:
        """Accesses [start, n) of a batch; addresses uint64, writes uint8 or None, kinds uint8."""
        trap = ffi.new("struct vmemu_trap *")
        where = ffi.from_buffer("uint64_t[]", addresses)
        which = ffi.from_buffer("uint8_t[]", writes) + start if writes is not None else ffi.NULL
        out = ffi.from_buffer("uint8_t[]", kinds, require_writable=True)
        rc = lib.vmemu_space_access(self._m, space, where + start, which, access, n - start, out + start, trap)
        return to_trap(rc, trap)
