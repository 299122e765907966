"""What is put on pages without mapping anything: guards, lazy freeing, ages, huge pages, merging."""

from __future__ import annotations

import array
import errno

from vmemu._native.border import Handle, fail, ffi, lib

__all__ = ["PageCalls"]


class PageCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def collapse(self, sid: int, address: int) -> int:
        """Makes a huge page of 2 MiB -> 0 or the errno that says why not."""
        rc: int = lib.vmemu_space_collapse(self._m, sid, address)
        if rc == -errno.EBADF:
            fail(rc, "madvise")
        return errno.ENOMEM if rc <= -lib.VMEMU_NO_FRAME else -rc

    def no_thp(self, sid: int, off: int, call: str) -> bool:
        """Transparent huge pages of a space switched off (1) or on (0), or as they are (-1) -> whether they are off."""
        rc: int = lib.vmemu_space_no_thp(self._m, sid, off)
        if rc < 0:
            fail(rc, call)
        return bool(rc)

    def guard(self, space: int, start: int, end: int, call: str) -> None:
        """Puts guards on a range inside one mapping."""
        rc = lib.vmemu_space_guard(self._m, space, start, end)
        if rc:
            fail(rc, call)

    def unguard(self, space: int, start: int, end: int, call: str) -> None:
        """Takes guards off a range inside one mapping."""
        rc = lib.vmemu_space_unguard(self._m, space, start, end)
        if rc:
            fail(rc, call)

    def lazyfree(self, space: int, start: int, end: int, call: str) -> None:
        """MADV_FREE for a range inside one mapping."""
        rc = lib.vmemu_space_lazyfree(self._m, space, start, end)
        if rc:
            fail(rc, call)

    def cold(self, space: int, start: int, end: int, call: str) -> None:
        """MADV_COLD for a range inside one mapping."""
        rc = lib.vmemu_space_cold(self._m, space, start, end)
        if rc:
            fail(rc, call)

    def pageout(self, space: int, start: int, end: int, call: str) -> None:
        """MADV_PAGEOUT for a range inside one mapping."""
        rc = lib.vmemu_space_pageout(self._m, space, start, end)
        if rc:
            fail(rc, call)

    def clear_refs(self, space: int, what: int) -> None:
        """What /proc/PID/clear_refs does for 1 to 4."""
        rc = lib.vmemu_space_clear_refs(self._m, space, what)
        if rc:
            fail(rc, "clear_refs")

    def ksm_spaces(self) -> list[tuple[int, int]]:
        """Spaces with mergeable mappings now or before, in the order in which they came to it: (number, id)."""
        n = lib.vmemu_machine_ksm_spaces(self._m, ffi.NULL, 0)
        out = ffi.new("struct vmemu_ksm_space[]", max(1, n))
        n = min(n, lib.vmemu_machine_ksm_spaces(self._m, out, n))
        return sorted((int(out[i].since), int(out[i].space)) for i in range(n))

    def ksm_pages(self, space: int, start: int, end: int, out: array.array[int]) -> int:
        """Anonymous pages present in a range into out, four numbers each: address, hash, pfn, merged. How many."""
        rows = ffi.from_buffer("struct vmemu_ksm_page[]", out)
        n = int(lib.vmemu_space_ksm_pages(self._m, space, start, end, rows, len(rows)))
        if n < 0:
            fail(n, "ksm")
        return n

    def ksm_make(self, space: int, address: int) -> bool:
        """Makes a KSM frame of a page's. False if it can't be done now."""
        return bool(lib.vmemu_space_ksm_make(self._m, space, address) == 0)

    def ksm_merge(self, space: int, address: int, pfn: int) -> int:
        """Maps a page to a KSM frame, or the zero page, of the same bytes: 0, or the errno why not."""
        return -int(lib.vmemu_space_ksm_merge(self._m, space, address, pfn))

    def ksm_break(self, space: int, start: int, end: int, call: str) -> None:
        """Gives merged pages frames of their own."""
        rc = lib.vmemu_space_ksm_break(self._m, space, start, end)
        if rc:
            fail(rc, call)

    def ksm_zero_pages(self, space: int) -> int:
        """Pages merged with the zero page."""
        return max(0, int(lib.vmemu_space_ksm_zero_pages(self._m, space)))
