"""Swap and reclaim: slots, victims, watermarks."""

from __future__ import annotations

import errno
from typing import Any

from vmemu._native.border import Handle, fail, ffi, lib

__all__ = ["ReclaimCalls"]


class ReclaimCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def swap_on(self, nslots: int) -> None:
        """A swap device of so many pages."""
        rc = lib.vmemu_swap_on(self._m, nslots)
        if rc:
            fail(rc, "swapon")

    def swap_lend(self, memory: Any, fd: int) -> Any:
        """The device's bytes, in memory or a file of the host, until the next call -> what has to be kept as long."""
        held = None if memory is None else ffi.from_buffer("uint8_t[]", memory)
        lib.vmemu_swap_lend(self._m, ffi.NULL if held is None else held, fd)
        return held

    def swap_write(self, victims: Any, n: int) -> int:
        """Writes those that have a slot to the device -> 0 or an errno."""
        return -int(lib.vmemu_swap_write(self._m, victims, n))

    def swap_info(self) -> Any:
        """struct vmemu_swap."""
        out = ffi.new("struct vmemu_swap *")
        lib.vmemu_swap_info(self._m, out)
        return out

    def swap_fill(self, slot: int, data: Any) -> None:
        """The bytes of a slot, 4096 or none where frames hold no bytes."""
        rc = lib.vmemu_swap_fill(self._m, slot, ffi.from_buffer(data) if data else ffi.NULL)
        if rc:
            fail(rc, "swap")

    def object_slot(self, object_: int, index: int) -> int:
        """The slot of a page of shared memory, 0 if it is in none or in memory still."""
        return max(0, int(lib.vmemu_object_slot(self._m, object_, index)))

    def object_swap_fill(self, object_: int, index: int, data: Any, major: bool) -> None:
        """The bytes of such a page."""
        buffer = ffi.from_buffer(data) if data else ffi.NULL
        rc = lib.vmemu_object_swap_fill(self._m, object_, index, buffer, major)
        if rc and rc != -errno.EBADF:  # gone meanwhile
            fail(rc, "swap")

    def policy(self, number: int, seed: int) -> None:
        """Which frames go first."""
        rc = lib.vmemu_machine_policy(self._m, number, seed)
        if rc:
            fail(rc, "policy")

    def free_frames(self) -> int:
        """Frames that are free."""
        return int(lib.vmemu_machine_free_frames(self._m))

    def watermark(self, low: int) -> None:
        """Faults stop while fewer frames are free; 0: never."""
        lib.vmemu_machine_watermark(self._m, low)

    def stalled(self) -> None:
        """Nothing can be reclaimed now."""
        lib.vmemu_machine_stalled(self._m)

    def reclaim(self, npages: int, swappiness: int, cgroups: bytes | None, sealed: bool) -> tuple[Any, int, int]:
        """Up to *npages* frames, *sealed*: without writing to the swap device -> (victims to be written, how many,
        frames freed already)."""
        what = ffi.new("struct vmemu_reclaim *")
        what.npages, what.swappiness, what.sealed = npages, swappiness, sealed
        if cgroups is not None:
            held = ffi.from_buffer("uint8_t[]", cgroups)
            what.cgroups, what.ncgroups = held, len(cgroups)
        out, done = ffi.new("struct vmemu_victim[]", npages), ffi.new("uint64_t *")
        n = int(lib.vmemu_machine_reclaim(self._m, what, out, npages, done))
        if n < 0:
            fail(n, "reclaim")
        return out, n, int(done[0])

    def reclaimed(self, victims: Any, n: int) -> int:
        """Those with `written` set are -> how many frames are free by that."""
        return max(0, int(lib.vmemu_machine_reclaimed(self._m, victims, n)))

    def swap_out(self, space: int, start: int, end: int, call: str) -> tuple[Any, int]:
        """MADV_PAGEOUT for a range inside one mapping, where there is swap -> (victims to be written, how many)."""
        cap = (end - start) // 4096
        out = ffi.new("struct vmemu_victim[]", cap)
        n = int(lib.vmemu_space_swap_out(self._m, space, start, end, out, cap))
        if n < 0:
            fail(n, call)
        return out, n
