"""The machine as a whole: counters, frames, pools."""

from __future__ import annotations

import array
import errno
from typing import Any

from vmemu._native.border import Handle, fail, ffi, lib
from vmemu.errors import InvariantError
from vmemu.types import FaultCounts

__all__ = ["MachineCalls"]

EVENTS = tuple(
    name.removeprefix("VMEMU_EV_").lower()
    for _, name in sorted(ffi.typeof("enum vmemu_event").elements.items())
    if name != "VMEMU_NEVENTS"
)
_COUNTS = f"uint64_t[{lib.VMEMU_NKINDS}]"
_EVENT_COUNTS = f"uint64_t[{lib.VMEMU_NEVENTS}]"


class MachineCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def info(self) -> Any:
        """struct vmemu_machine_info."""
        out = ffi.new("struct vmemu_machine_info *")
        lib.vmemu_machine_info(self._m, out)
        return out

    def machine_faults(self) -> FaultCounts:
        """Faults of all processes since boot."""
        out = ffi.new(_COUNTS)
        lib.vmemu_machine_faults(self._m, out)
        return FaultCounts(*out)

    def events(self) -> dict[str, int]:
        """Counts since boot by the name of enum vmemu_event, without its prefix and in lower case."""
        out = ffi.new(_EVENT_COUNTS)
        lib.vmemu_machine_events(self._m, out)
        return dict(zip(EVENTS, out, strict=True))

    def zero_page(self) -> int:
        """Takes a frame for the zero page and returns its pfn."""
        out = ffi.new("uint64_t *")
        rc = lib.vmemu_machine_zero_page(self._m, out)
        if rc:
            fail(rc, "zero_page")
        return int(out[0])

    def pool_grow(self, giant: bool) -> bool:
        """Sets one more huge page aside; False if there is no room for it."""
        return not lib.vmemu_pool_grow(self._m, giant)

    def pool_info(self, giant: bool) -> tuple[int, int, int]:
        """(total, free, reserved) huge pages of a pool."""
        out = ffi.new("struct vmemu_pool *")
        lib.vmemu_pool_info(self._m, giant, out)
        return out.total, out.free, out.reserved

    def fail(self, nth: int) -> None:
        """The nth allocation from now fails once."""
        lib.vmemu_machine_fail(self._m, nth)

    def spaces(self) -> array.array[int]:
        """Ids of the spaces that live, ascending."""
        n = lib.vmemu_machine_spaces(self._m, ffi.NULL, 0)
        out = array.array("I", bytes(4 * n))
        found = lib.vmemu_machine_spaces(self._m, ffi.from_buffer("uint32_t[]", out), n)
        return out[:found]

    def objects(self) -> dict[int, int]:
        """How many holds each memory object has that lives, by its id."""
        n = lib.vmemu_machine_objects(self._m, ffi.NULL, ffi.NULL, 0)
        ids, held = array.array("I", bytes(4 * n)), array.array("I", bytes(4 * n))
        found = lib.vmemu_machine_objects(
            self._m, ffi.from_buffer("uint32_t[]", ids), ffi.from_buffer("uint32_t[]", held), n
        )
        return dict(zip(ids[:found], held[:found], strict=True))

    def check(self) -> None:
        """Raises InvariantError with what is wrong."""
        message = ffi.new("char[512]")
        rc = lib.vmemu_machine_check(self._m, message, 512)
        if rc == -errno.EUCLEAN:
            raise InvariantError(ffi.string(message).decode())
        if rc:
            fail(rc, "verify")

    def mapcounts(self, first: int, n: int) -> array.array[int]:
        """Mapcounts of the frames [first, first + n)."""
        return self._per_frame(lib.vmemu_machine_mapcounts, first, n)

    def frame_flags(self, first: int, n: int) -> array.array[int]:
        """Flags of frames as kpageflags has them."""
        return self._per_frame(lib.vmemu_machine_frame_flags, first, n)

    def _per_frame(self, function: Any, first: int, n: int) -> array.array[int]:
        out = array.array("Q", bytes(8 * n))
        rc = function(self._m, first, n, ffi.from_buffer("uint64_t[]", out))
        if rc:
            fail(rc, "kpagecount")
        return out

    def count_frames(self, with_: int, without: int) -> int:
        """Frames that have all of some flags and none of others."""
        out = ffi.new("uint64_t *")
        rc = lib.vmemu_machine_count_frames(self._m, with_, without, out)
        if rc:
            fail(rc, "kpageflags")
        return int(out[0])

    def whole(self) -> int:
        """Free frames in blocks that are free as a whole."""
        out = ffi.new("uint64_t *")
        lib.vmemu_machine_whole(self._m, out)
        return int(out[0])

    def sharing(self) -> tuple[int, int]:
        """(frames mapped, frames mapped more than once)."""
        mapped, shared = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        rc = lib.vmemu_machine_sharing(self._m, mapped, shared)
        if rc:
            fail(rc, "sharing")
        return int(mapped[0]), int(shared[0])

    def ram(self, nframes: int) -> memoryview:
        """RAM itself, nframes * 4096 bytes, read-only and not copied; the machine lives as long as the view."""
        handle = self._m
        base = ffi.gc(lib.vmemu_machine_ram(handle), lambda _: handle)  # what holds on to it is its destructor
        return memoryview(ffi.buffer(base, nframes * 4096)).toreadonly()

    def show_soft_dirty(self, on: bool) -> None:
        """Whether pagemap shows what is soft-dirty."""
        lib.vmemu_machine_show_soft_dirty(self._m, on)

    def drain(self) -> None:
        """Marks of MADV_FREE that wait in a batch are seen from now on."""
        lib.vmemu_machine_drain(self._m)
