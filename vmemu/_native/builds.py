"""Spaces made in one piece and put in another's place."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from vmemu._native.border import Handle, Trap, fail, ffi, lib, to_trap
from vmemu.types import PAGE_SIZE

__all__ = ["BuildCalls", "Pattern"]


class Pattern:
    """How a space was made, as the core wants it to make another such space (struct vmemu_pattern)."""

    __slots__ = ("_held", "changes", "struct", "writes")

    def __init__(self, vmas: Any, words: Sequence[int], writes: Sequence[Any], changes: Sequence[Any]) -> None:
        """*writes*: (address, bytes); *changes*: (start, end, VM flags)."""
        self.writes, self.changes = tuple(writes), tuple(changes)
        data = [ffi.from_buffer(data) for _, data in writes]
        pieces = [(address, len(text), there) for (address, text), there in zip(writes, data, strict=True)]
        parts = vmas, ffi.new("struct vmemu_write[]", pieces), ffi.new("struct vmemu_change[]", self.changes)
        self._held = (data, parts)  # the struct has but pointers
        self.struct = ffi.new("struct vmemu_pattern *", (*parts, *map(len, parts), words))

    def with_last(self, start: int, end: int, words: Sequence[int], write: tuple[int, bytes]) -> Pattern:
        """The same with other words, another last mapping of anonymous memory and another first write."""
        vmas = ffi.new("struct vmemu_vma[]", self.struct.nvmas)
        ffi.memmove(vmas, self.struct.vmas, ffi.sizeof(vmas))
        last = vmas[self.struct.nvmas - 1]
        last.start, last.end, last.pgoff = start, end, start // PAGE_SIZE
        return Pattern(vmas, words, (write, *self.writes[1:]), self.changes)


class BuildCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def mapped(self, space: int) -> Any:
        """The mappings of a space, for a Pattern."""
        sums = ffi.new("struct vmemu_sums *")
        lib.vmemu_space_sums(self._m, space, sums)
        vmas = ffi.new("struct vmemu_vma[]", sums.nvmas)
        n = lib.vmemu_space_vmas(self._m, space, 0, vmas, sums.nvmas)
        assert n == sums.nvmas  # noqa: S101 - a space that nobody else has
        return vmas

    def space_build(self, pattern: Pattern, cgroup: int, call: str) -> tuple[int, int, Trap | None]:
        """(space, writes done, why the next one stopped); (0, 0, None) if one of its objects is gone. A cgroup pays."""
        out = ffi.new("struct vmemu_built *")
        rc = lib.vmemu_space_build(self._m, pattern.struct, cgroup, out)
        if rc < 0 and rc != -errno.ESTALE:
            fail(rc, call)
        return out.space, out.written, to_trap(rc, out.trap) if rc > 0 else None

    def space_succeed(self, space: int, old: int, call: str) -> None:
        """A space takes the place of another, which ends."""
        rc = lib.vmemu_space_succeed(self._m, space, old)
        if rc:
            fail(rc, call)
