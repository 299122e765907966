"""Spaces made in one piece and put in another's place."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from vmemu._native.border import Handle, Trap, fail, ffi, lib, to_trap

__all__ = ["BuildCalls", "Pattern"]

_WORDS = f"uint64_t[{lib.VMEMU_NWORDS}]"


class Pattern:
    """How a space was made, as the core wants it to make another such space (struct vmemu_pattern)."""

    __slots__ = ("_held", "changes", "struct", "writes")

    def __init__(self, vmas: Any, words: Any, writes: Sequence[tuple[int, bytes]], changes: Sequence[Any]) -> None:
        self.writes, self.changes = tuple(writes), tuple(changes)
        data = [ffi.from_buffer(data) for _, data in writes]
        pieces = [(address, len(text), there) for (address, text), there in zip(writes, data, strict=True)]
        parts = vmas, ffi.new("struct vmemu_write[]", pieces), ffi.new("struct vmemu_change[]", self.changes)
        self._held = (data, parts)  # the struct has but pointers
        self.struct = ffi.new("struct vmemu_pattern *", (*parts, *map(len, parts), words))


class BuildCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def mapped(self, space: int) -> tuple[Any, Any]:
        """The mappings and the words of a space, for a Pattern."""
        sums = ffi.new("struct vmemu_sums *")
        lib.vmemu_space_sums(self._m, space, sums)
        vmas, words = ffi.new("struct vmemu_vma[]", sums.nvmas), ffi.new(_WORDS)
        n = lib.vmemu_space_vmas(self._m, space, 0, vmas, sums.nvmas)
        assert n == sums.nvmas  # noqa: S101 - a space that nobody else has
        lib.vmemu_space_words(self._m, space, words)
        return vmas, words

    def space_build(self, pattern: Pattern, call: str) -> tuple[int, int, Trap | None]:
        """(space, writes done, why the next one stopped); (0, 0, None) if one of its objects is gone."""
        space, written, trap = ffi.new("uint32_t *"), ffi.new("uint32_t *"), ffi.new("struct vmemu_trap *")
        rc = lib.vmemu_space_build(self._m, pattern.struct, space, written, trap)
        if rc < 0 and rc != -errno.ESTALE:
            fail(rc, call)
        return space[0], written[0], to_trap(rc, trap) if rc > 0 else None

    def space_succeed(self, space: int, old: int, call: str) -> None:
        """A space takes the place of another, which ends."""
        rc = lib.vmemu_space_succeed(self._m, space, old)
        if rc:
            fail(rc, call)
