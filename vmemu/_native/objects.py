"""Memory objects: page caches and shared memory."""

from __future__ import annotations

import errno
from typing import Any

from vmemu._native.border import Handle, fail, ffi, lib

__all__ = ["ObjectCalls"]


class ObjectCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def object_new(self, kind: int, size: int) -> int:
        """A new object with one hold."""
        out = ffi.new("uint32_t *")
        rc = lib.vmemu_object_new(self._m, kind, size, out)
        if rc:
            fail(rc, "mmap")
        return int(out[0])

    def object_hold(self, object_: int) -> bool:
        """One more hold; False if the object is gone."""
        return bool(lib.vmemu_object_hold(self._m, object_) == 0)

    def object_release(self, object_: int) -> None:
        """One hold less."""
        lib.vmemu_object_release(self._m, object_)

    def object_info(self, object_: int) -> Any | None:
        """struct vmemu_object_info, None if the object is gone."""
        out = ffi.new("struct vmemu_object_info *")
        return None if lib.vmemu_object_info(self._m, object_, out) else out

    def object_fill(
        self, object_: int, index: int, npages: int, data: bytes, major: int | None, call: str, cgroup: int = 0
    ) -> None:
        """Puts pages into the cache, for which a cgroup pays; nothing happens if the object is gone."""
        mark = 0xFFFF_FFFF_FFFF_FFFF if major is None else major
        rc = lib.vmemu_object_fill(self._m, object_, index, npages, ffi.from_buffer(data), len(data), mark, cgroup)
        if rc and rc != -errno.EBADF:
            fail(rc, call)

    def object_read(self, object_: int, offset: int, buffer: bytearray, start: int) -> int:
        """Bytes read into buffer[start:] before the first page that is not in memory."""
        data = ffi.from_buffer("uint8_t[]", buffer)
        return int(lib.vmemu_object_read(self._m, object_, offset, data + start, len(buffer) - start))

    def object_write(self, object_: int, offset: int, buffer: Any, start: int) -> int:
        """Bytes written from buffer[start:] before the first page that is not in memory."""
        data = ffi.from_buffer("uint8_t[]", buffer)
        rc = int(lib.vmemu_object_write(self._m, object_, offset, data + start, len(data) - start))
        if rc < 0:
            fail(rc, "pwrite")
        return rc

    def object_resize(self, object_: int, size: int) -> None:
        """Truncates or extends."""
        rc = lib.vmemu_object_resize(self._m, object_, size)
        if rc:
            fail(rc, "ftruncate")

    def object_clear_tail(self, object_: int, written: bool) -> None:
        """Zeroes what the cache holds of the last page beyond the end, and marks it as written if so."""
        lib.vmemu_object_clear_tail(self._m, object_, int(written))

    def object_punch(self, object_: int, first: int, npages: int) -> None:
        """Drops cached pages and unmaps them."""
        rc = lib.vmemu_object_punch(self._m, object_, first, npages)
        if rc:
            fail(rc, "madvise")
