"""What a plan found of the host's files, noted so that the plan can be kept: while all is as it was then, planning anew
would find the same.

A file that was read is as it was while its inode, times, size, owner and mode are: each change of contents or mode, and
each of its names that comes or goes, sets the time of change. So what it is called once symbolic links are resolved
changes by itself only where a directory above it is moved and a link put in its place, or where it has several names.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Generic, TypeVar

__all__ = ["FILES_MAX", "RACY_NS", "ByFile", "Seen"]

T = TypeVar("T")

FILES_MAX = 256
"""Files of which `ByFile` keeps something."""

RACY_NS = 100_000_000
"""A file changed less than this ago is not kept: changed again within a tick of the clock, it would look the same."""
_identity = attrgetter(
    "st_dev", "st_ino", "st_ctime_ns", "st_mtime_ns", "st_size", "st_mode", "st_uid", "st_gid"
)  # as it is, however many fields the system adds


class Seen:
    """Asks the host and notes the answers."""

    __slots__ = ("_above", "_absent", "_executable", "_files", "_flags", "_names", "_since", "lasting", "names_count")

    def __init__(self) -> None:
        self._files: dict[str, Any] = {}
        """Path -> identity."""
        self._absent: set[str] = set()
        """Paths that lead nowhere."""
        self._executable: set[str] = set()
        """Files that this process itself may execute, so that they are on no mount without that (access(2))."""
        self._flags: dict[str, int] = {}
        """Path -> flags of the mount, of other files."""
        self._names: dict[str, str] = {}
        """Path -> the same resolved."""
        self._above: set[str] = set()
        """Directories above the name that is shown."""
        self._since = time.time_ns() - RACY_NS
        self.lasting = True
        """Whether `unchanged` can tell: no file was changed just now, no path depends on the working directory."""
        self.names_count = False
        """Something was looked for beside a file, where its name says that it is."""

    def stat(self, path: str | bytes) -> os.stat_result:
        """stat(2). Raises OSError."""
        name = os.fsdecode(path)
        self.lasting &= name[:1] == "/"
        try:
            st = os.stat(path)
        except OSError:
            self._absent.add(name)
            raise
        self._files[name] = _identity(st)
        if st.st_ctime_ns > self._since:
            self.lasting = False
        return st

    def mount_flags(self, path: str | bytes, st: os.stat_result) -> int:
        """f_flag of statvfs(3), of a file of which `stat` said *st*. Raises OSError."""
        name, flags = os.fsdecode(path), os.statvfs(path).f_flag
        if not st.st_mode & (stat.S_ISUID | stat.S_ISGID) and os.access(path, os.X_OK):
            self._executable.add(name)
        else:
            self._flags[name] = flags
        return flags

    def realpath(self, path: str | bytes) -> str:
        """The path with all symbolic links resolved."""
        name = os.fsdecode(path)
        real = self._names[name] = os.path.realpath(name)
        return real

    def show(self, real: str, st: os.stat_result) -> None:
        """The resolved path of a file is shown to others, and so has to be right whatever is done with the plan."""
        if st.st_nlink > 1:
            self.names_count = True
        above = os.path.dirname(real)
        while above.strip("/"):
            self._above.add(above)
            above = os.path.dirname(above)

    def unchanged(self) -> bool:
        """All is as it was, but for names that are not shown."""
        try:
            for name, identity in self._files.items():
                if _identity(os.stat(name)) != identity:
                    return False
            for name in self._executable:
                if not os.access(name, os.X_OK):
                    return False
            for name in self._above:
                if stat.S_ISLNK(os.lstat(name).st_mode):
                    return False
            for name, flags in self._flags.items():
                if os.statvfs(name).f_flag != flags:
                    return False
        except OSError:
            return False
        if self._absent and any(os.path.exists(name) for name in self._absent):
            return False
        return not self.names_count or self.names_unchanged()

    def names_unchanged(self) -> bool:
        """All names are as they were."""
        return all(os.path.realpath(name) == real for name, real in self._names.items())


class ByFile(Generic[T]):
    """What was made of the contents of a file, kept per file identity, bounded.

    Without a lock: signal handlers come here in the middle of it, and each step on the dictionary is one.
    """

    def __init__(self) -> None:
        self._kept: dict[Any, T] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, fd: int, make: Callable[[int], T]) -> T:
        """What *make* made of the file open as *fd*, given its size. Raises what fstat(2) and *make* do."""
        st = os.fstat(fd)
        key = _identity(st)
        found = self._kept.get(key)
        if found is not None:
            return found
        made = make(st.st_size)
        if time.time_ns() - st.st_ctime_ns > RACY_NS:
            while len(self._kept) >= FILES_MAX:
                with contextlib.suppress(StopIteration, RuntimeError):  # others do the same
                    self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = made
        return made
