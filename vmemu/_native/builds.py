"""Spaces made in one piece and put in another's place."""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from vmemu._native.border import Handle, fail, ffi, lib

__all__ = ["BuildCalls", "Pattern"]

_WORDS = f"uint64_t[{lib.VMEMU_NWORDS}]"


class Pattern(NamedTuple):
    """Mappings and words of a space, as the core wants them to make another such space."""

    vmas: Any
    n: int
    words: Any


class BuildCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def pattern(self, space: int) -> Pattern:
        """The mappings and the words of a space."""
        sums = ffi.new("struct vmemu_sums *")
        lib.vmemu_space_sums(self._m, space, sums)
        vmas, words = ffi.new("struct vmemu_vma[]", sums.nvmas), ffi.new(_WORDS)
        n = lib.vmemu_space_vmas(self._m, space, 0, vmas, sums.nvmas)
        lib.vmemu_space_words(self._m, space, words)
        return Pattern(vmas, n, words)

    def space_build(self, pattern: Pattern, call: str) -> int:
        """A new space made after a pattern; 0 if one of its objects is gone."""
        out = ffi.new("uint32_t *")
        rc = lib.vmemu_space_build(self._m, pattern.vmas, pattern.n, pattern.words, out)
        if rc == -errno.ESTALE:
            return 0
        if rc:
            fail(rc, call)
        return int(out[0])

    def space_succeed(self, space: int, old: int, call: str) -> None:
        """A space takes the place of another, which ends."""
        rc = lib.vmemu_space_succeed(self._m, space, old)
        if rc:
            fail(rc, call)
