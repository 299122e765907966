"""Memory cgroups."""

from __future__ import annotations

from typing import Any

from vmemu._native.border import Handle, fail, ffi, lib

__all__ = ["CgroupCalls"]

_MOST = (1 << 64) - 1


class CgroupCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    def cgroup_new(self, number: int, parent: int) -> None:
        """A group below another one, 0 for the root."""
        rc = lib.vmemu_cgroup_new(self._m, number, parent)
        if rc:
            fail(rc, "mkdir")

    def cgroup_free(self, number: int) -> None:
        """Gives what is charged to it to its parent."""
        lib.vmemu_cgroup_free(self._m, number)

    def cgroup_limit(self, number: int, most: int | None, high: int | None, swap: int | None) -> None:
        """Limits in pages."""
        limits = [_MOST if limit is None else limit for limit in (most, high, swap)]
        lib.vmemu_cgroup_limit(self._m, number, *limits)

    def cgroup_settled(self, number: int, more: int) -> None:
        """It was tried to bring it below `high`; if it is not, another time after so many frames."""
        lib.vmemu_cgroup_settled(self._m, number, more)

    def cgroup_info(self, number: int) -> Any:
        """struct vmemu_cgroup_info."""
        out = ffi.new("struct vmemu_cgroup_info *")
        lib.vmemu_cgroup_info(self._m, number, out)
        return out
