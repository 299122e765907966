"""Spaces and their mappings."""

from __future__ import annotations

import array
import errno
from collections.abc import Iterator, Sequence
from typing import Any

from vmemu._native.border import Handle, Vma, fail, ffi, lib, to_vma

__all__ = ["SpaceCalls"]

_COUNTS = f"uint64_t[{lib.VMEMU_NKINDS}]"
_WORDS = f"uint64_t[{lib.VMEMU_NWORDS}]"
_SURVEY, _VMA = ffi.typeof("struct vmemu_survey *"), ffi.typeof("struct vmemu_vma *")
_BATCH = 64
_UNFINISHED: int = lib.VMEMU_UNFINISHED
_NKINDS: int = lib.VMEMU_NKINDS
_fork_one, _end = lib.vmemu_space_fork_one, lib.vmemu_space_end
_map_plain, _unmap_plain = lib.vmemu_space_map_plain, lib.vmemu_space_unmap_plain


class SpaceCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def space_new(self, call: str) -> int:
        """A new, empty space."""
        out = ffi.new("uint32_t *")
        rc = lib.vmemu_space_new(self._m, out)
        if rc:
            fail(rc, call)
        return int(out[0])

    def space_free(self, space: int) -> None:
        """Ends a space."""
        lib.vmemu_space_free(self._m, space)

    def space_fork(self, space: int, mode: int, n: int) -> Sequence[int]:
        """Ids of n children; all or none."""
        if n == 1:
            out = ffi.new("uint32_t *")
            rc = lib.vmemu_space_fork(self._m, space, mode, 1, out)
        else:
            ids = array.array("I", bytes(4 * n))
            rc = lib.vmemu_space_fork(self._m, space, mode, n, ffi.from_buffer("uint32_t[]", ids))
        if rc:
            fail(rc, "fork")
        return (out[0],) if n == 1 else ids

    def space_fork_one(self, space: int, mode: int, most: int) -> int:
        """Id of one child; 0 if more than *most* pages are charged for the space."""
        child: int = _fork_one(self._m, space, mode, most)
        if child < 0:
            if child == -errno.EDQUOT:
                return 0
            fail(child, "fork")
        if child >= _UNFINISHED:  # a large memory takes several time slices
            child -= _UNFINISHED
            rc = 1
            try:
                while rc > 0:
                    rc = lib.vmemu_space_fork_on(self._m, space, child, mode)
            except BaseException:
                lib.vmemu_space_free(self._m, child)
                raise
            if rc:
                fail(rc, "fork")
        return child

    def space_end(self, space: int) -> tuple[Sequence[int], int]:
        """Ends a space -> (its faults by kind, () if it had none; how many memory objects are left). One thread at a
        time."""
        left: int = _end(self._m, space, self._ended)
        return ffi.unpack(self._ended, _NKINDS) if left & 1 else (), left >> 1

    def space_end_many(self, spaces: array.array[int]) -> tuple[array.array[int], array.array[int]]:
        """Ends spaces -> the minor and the major faults of each."""
        n = len(spaces)
        minor, major = array.array("Q", bytes(8 * n)), array.array("Q", bytes(8 * n))
        rc = lib.vmemu_space_end_many(
            self._m,
            ffi.from_buffer("uint32_t[]", spaces),
            n,
            ffi.from_buffer("uint64_t[]", minor),
            ffi.from_buffer("uint64_t[]", major),
        )
        if rc:
            fail(rc, "exit")
        return minor, major

    def space_abandon(self, space: int) -> None:
        """Ends a space that came to nothing."""
        lib.vmemu_space_abandon(self._m, space)

    def sums(self, space: int) -> Any:
        """struct vmemu_sums."""
        out = ffi.new("struct vmemu_sums *")
        lib.vmemu_space_sums(self._m, space, out)
        return out

    def survey(self, space: int) -> Any:
        """struct vmemu_survey."""
        out = ffi.new(_SURVEY)
        lib.vmemu_space_survey(self._m, space, out)
        return out

    def faults(self, space: int) -> tuple[int, ...]:
        """Faults counted on a space, by kind."""
        out = ffi.new(_COUNTS)
        lib.vmemu_space_faults(self._m, space, out)
        return tuple(out)

    def set_faults(self, space: int, counts: Sequence[int]) -> None:
        """Sets what `faults` returns."""
        lib.vmemu_space_set_faults(self._m, space, ffi.new(_COUNTS, list(counts)))

    def words(self, space: int) -> list[int]:
        """The caller's words of a space."""
        out = ffi.new(_WORDS)
        lib.vmemu_space_words(self._m, space, out)
        return list(out)

    def set_words(self, space: int, words: Sequence[int]) -> None:
        """Sets all of them."""
        lib.vmemu_space_set_words(self._m, space, ffi.new(_WORDS, list(words)))

    def find(self, space: int, address: int) -> Vma | None:
        """First mapping that ends above address."""
        out = ffi.new("struct vmemu_vma *")
        return None if lib.vmemu_space_find(self._m, space, address, out) else to_vma(out)

    def find_before(self, space: int, address: int) -> Vma | None:
        """Last mapping that ends at or below address."""
        out = ffi.new("struct vmemu_vma *")
        return None if lib.vmemu_space_find_before(self._m, space, address, out) else to_vma(out)

    def vmas(self, space: int, start: int, end: int) -> Iterator[Vma]:
        """The mappings that overlap [start, end), each read when it is asked for."""
        out = ffi.new(f"struct vmemu_vma[{_BATCH}]")
        while start < end:
            n = lib.vmemu_space_vmas(self._m, space, start, out, _BATCH)
            for i in range(n):
                if out[i].start >= end:
                    return
                yield to_vma(out[i])
            if n < _BATCH:
                return
            start = out[n - 1].end

    def hole(self, space: int, low: int, high: int, length: int, align: int, top: bool) -> int | None:
        """Start of a hole, None if there is none."""
        out = ffi.new("uint64_t *")
        rc = lib.vmemu_space_hole(self._m, space, low, high, length, align, top, out)
        return None if rc else int(out[0])

    def map(
        self,
        space: int,
        start: int,
        end: int,
        flags: int,
        object_: int,
        pgoff: int,
        tag: int,
        call: str,
        apart: bool = False,
    ) -> None:
        """Maps [start, end), replacing what is there; *apart*: not as one mapping with its neighbours."""
        vma = ffi.new("struct vmemu_vma *", (start, end, pgoff, flags, 0, object_, tag))
        rc = lib.vmemu_space_map(self._m, space, vma, apart)
        if rc:
            fail(rc, call)

    def unmap(self, space: int, start: int, end: int, call: str) -> None:
        """Unmaps [start, end)."""
        rc = lib.vmemu_space_unmap(self._m, space, start, end)
        if rc:
            fail(rc, call)

    def map_plain(self, space: int, length: int, flags: int, base: int, nvmas: int, total: int, data: int) -> int:
        """Where it is now; 0: it is not the usual case."""
        start: int = _map_plain(self._m, space, length, flags, base, nvmas, total, data)
        if start < 0:
            if start == -errno.EAGAIN:
                return 0
            fail(start, "mmap")
        return start

    def unmap_plain(self, space: int, start: int, end: int, call: str) -> bool:
        """False: it is not the usual case."""
        rc = _unmap_plain(self._m, space, start, end)
        if rc and rc != -errno.EAGAIN:
            fail(rc, call)
        return not rc

    def reflag(self, space: int, start: int, end: int, flags: int, call: str) -> None:
        """New flags for a range inside one mapping."""
        rc = lib.vmemu_space_reflag(self._m, space, start, end, flags)
        if rc:
            fail(rc, call)

    def prepare_anon(self, space: int, at: int, call: str) -> None:
        """Gives the mapping that holds at an identity."""
        rc = lib.vmemu_space_prepare_anon(self._m, space, at)
        if rc:
            fail(rc, call)

    def split(self, space: int, at: int, call: str) -> None:
        """Makes two mappings of one."""
        rc = lib.vmemu_space_split(self._m, space, at)
        if rc:
            fail(rc, call)

    def zap(self, space: int, start: int, end: int, call: str) -> None:
        """Drops the pages of a range."""
        rc = lib.vmemu_space_zap(self._m, space, start, end)
        if rc:
            fail(rc, call)

    def move(self, space: int, start: int, end: int, to: int, length: int, keep: bool, call: str) -> None:
        """Moves a range inside one mapping to a hole."""
        rc = lib.vmemu_space_move(self._m, space, start, end, to, length, keep)
        if rc:
            fail(rc, call)

    def extend(self, space: int, edge: int, to: int, down: bool, call: str) -> None:
        """Extends a mapping into the hole beside it."""
        rc = lib.vmemu_space_extend(self._m, space, edge, to, down)
        if rc:
            fail(rc, call)
