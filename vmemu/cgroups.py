"""Control groups: the tree, who is in it, and what it limits, as cgroup v2 has them (kernel/cgroup/pids.c).

Every group has the controllers pids and memory; a group with children may have processes too. Counters are
hierarchical: what a group has, its ancestors have. The root limits nothing and counts nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from collections.abc import Mapping as Dictionary
from contextlib import AbstractContextManager
from typing import SupportsIndex

from vmemu._native import Core
from vmemu.errors import syscall_error
from vmemu.pids import PID_MAX, ProcessTable

__all__ = ["FILES", "ROOT_FILES", "Cgroup", "Cgroups"]

_MOST = 65535
"""Groups that a machine may have, the root too; a frame has 16 bits for whose it is."""
_NAME_MAX = 255
ROOT_FILES = ("cgroup.controllers", "cgroup.procs", "cgroup.threads")
FILES = (
    *ROOT_FILES,
    "cgroup.events",
    "cgroup.kill",
    "pids.current",
    "pids.events",
    "pids.events.local",
    "pids.max",
    "pids.peak",
)
"""What is in the directory of a group, which no child can be called."""


class Cgroup:
    """One group, made by `Cgroups.create`. Its settings can be changed at any time; `None` is no limit."""

    __slots__ = (
        "_children",
        "_groups",
        "_id",
        "_parent",
        "_pids",
        "_pids_max",
        "_pids_peak",
        "name",
        "pids_events",
        "pids_events_local",
    )

    def __init__(self, groups: Cgroups, number: int, name: str, parent: Cgroup | None) -> None:
        self._groups = groups
        self._id = number
        self._parent = parent
        self._children: dict[str, Cgroup] = {}
        self._pids = 0
        self._pids_peak = 0
        self._pids_max: int | None = None
        self.name = name
        """The last part of its path; empty for the root."""
        self.pids_events = 0
        """Forks that its limit or one below it refused (`max` in pids.events)."""
        self.pids_events_local = 0
        """Those that its own did."""

    def __repr__(self) -> str:
        return f"<vmemu.Cgroup {self.path}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Cgroup belongs to its Machine and cannot be pickled")

    @property
    def path(self) -> str:
        """As /proc/PID/cgroup shows it: ``"/"``, ``"/a/b"``."""
        names = [group.name for group in self.above()]
        return "/" + "/".join(reversed(names))

    def above(self) -> Iterator[Cgroup]:
        """Itself and those above, without the root."""
        group = self
        while group._parent is not None:
            yield group
            group = group._parent

    def below(self) -> Iterator[Cgroup]:
        """Itself and those below, each before its children."""
        yield self
        for child in self._children.values():
            yield from child.below()

    @property
    def parent(self) -> Cgroup | None:
        """The group that it is in, None for the root."""
        return self._parent

    @property
    def children(self) -> list[Cgroup]:
        """The groups in it, in the order in which they were made."""
        return list(self._children.values())

    @property
    def procs(self) -> list[int]:
        """Pids of the living processes in it, ascending; those of its children are not."""
        with self._groups.lock:
            return self._groups.members(self)

    @property
    def populated(self) -> bool:
        """A process lives in it or below."""
        with self._groups.lock:
            return any(self._groups.members(group) for group in self.below())

    # ---- pids ----

    @property
    def pids_current(self) -> int:
        """Tasks in it and below, zombies until they are reaped."""
        table = self._groups.table
        return self._pids if self._parent else len(table) + len(table.leader)

    @property
    def pids_peak(self) -> int:
        """The most that there were."""
        return self._pids_peak

    @property
    def pids_max(self) -> int | None:
        """How many there may be for a fork to succeed; moving processes into it may exceed it."""
        return self._pids_max

    @pids_max.setter
    def pids_max(self, most: SupportsIndex | None) -> None:
        self._settable("pids_max")
        self._pids_max = None if most is None else _count(most)

    def _settable(self, what: str) -> None:
        if self._parent is None:
            raise ValueError(f"{what}: the root of the cgroups has no limits")
        if self._groups.by_id.get(self._id) is not self:
            raise syscall_error("open", errno.ENODEV, f"the cgroup {self.name} was removed")

    # ---- for the machine ----

    def refuse(self, n: int) -> None:
        """Raises EAGAIN if *n* tasks more are too many here or above (pids_try_charge(), pids_event())."""
        full = None
        for group in self.above():
            if group._pids_max is not None and group._pids + n > group._pids_max:
                full = group
                break
        if full is None:
            return
        for group in self.above():
            if group is full:
                break
            group._pids_peak = max(group._pids_peak, group._pids + n)
        full.pids_events_local += 1
        for group in full.above():
            group.pids_events += 1
        why = f"pids.max: cgroup {full.path} may have {full._pids_max} tasks"
        raise syscall_error("fork", errno.EAGAIN, why)

    def charge(self, n: int) -> None:
        """*n* tasks more, here and above."""
        for group in self.above():
            group._pids += n
            group._pids_peak = max(group._pids_peak, group._pids)


def _count(most: SupportsIndex) -> int:
    if isinstance(most, bool) or not hasattr(most, "__index__"):
        raise TypeError(f"pids_max: {most!r} is neither an int nor None")
    number = most.__index__()
    if not 0 <= number <= PID_MAX:
        raise ValueError(f"pids_max: {number} is not between 0 and {PID_MAX}")
    return number


class Cgroups(Dictionary[str, Cgroup]):
    """`Machine.cgroups`: path -> `Cgroup` of all groups but the root, parents before their children; a live view."""

    def __init__(self, core: Core, table: ProcessTable, lock: AbstractContextManager[object]) -> None:
        self.core = core
        self.table = table
        self.lock = lock
        self.root = Cgroup(self, 0, "", None)
        """Where every process is at first."""
        self.by_id = {0: self.root}
        self.kill: Callable[[list[int]], None]
        """Kills processes at once; the machine sets it."""

    # ---- a dictionary ----

    def _find(self, path: str) -> Cgroup | None:
        if not isinstance(path, str):
            raise TypeError(f"cgroups: path must be a str, not {type(path).__name__}")
        group = self.root
        for name in path.strip("/").split("/"):
            child = group._children.get(name)
            if child is None:
                return None
            group = child
        return group

    def __getitem__(self, path: str) -> Cgroup:
        group = self.root if path == "/" else self._find(path)
        if group is None:
            raise KeyError(path)
        return group

    def __iter__(self) -> Iterator[str]:
        return (group.path[1:] for group in list(self.root.below()) if group is not self.root)

    def __len__(self) -> int:
        return len(self.by_id) - 1

    def __repr__(self) -> str:
        return f"<vmemu.Cgroups: {len(self)}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("Cgroups belong to their Machine and cannot be pickled")

    # ---- the tree ----

    def create(
        self,
        path: str,
        *,
        parent: Cgroup | str | None = None,
        pids_max: SupportsIndex | None = None,
    ) -> Cgroup:
        """mkdir(2): a new group at *path* below *parent* (the root by default), with the limits given.

        ``create("a/b")`` needs ``a``. EEXIST, ENOENT, ENAMETOOLONG, EINVAL as mkdir says, EAGAIN above 65,535 groups;
        ValueError for a limit that makes no sense. Nothing is made then.
        """
        with self.lock:
            above, name = self._place(path, parent)
            number = next((i for i in range(1, _MOST) if i not in self.by_id), 0)
            if not number:
                raise syscall_error("mkdir", errno.EAGAIN, f"{path}: there are {_MOST} cgroups")
            group = Cgroup(self, number, name, above)
            self.by_id[number] = group
            try:
                group.pids_max = pids_max
            except BaseException:
                del self.by_id[number]
                raise
            above._children[name] = group
            self.table.group_tasks()
            return group

    def _place(self, path: str, parent: Cgroup | str | None) -> tuple[Cgroup, str]:
        """Where a new group is to be, and its name."""
        if not isinstance(path, str):
            raise TypeError(f"cgroups: path must be a str, not {type(path).__name__}")
        above = self.root if parent is None else self.find(parent, "mkdir")
        words = path.strip("/").split("/")
        for word in words[:-1]:
            if word not in above._children:
                raise syscall_error("mkdir", errno.ENOENT, f"cgroup {path!r}: there is no {word!r}")
            above = above._children[word]
        name = words[-1]
        if len(os.fsencode(name)) > _NAME_MAX:
            raise syscall_error("mkdir", errno.ENAMETOOLONG, f"cgroup {path!r}")
        if "\n" in name or "\0" in name:
            raise syscall_error("mkdir", errno.EINVAL, f"cgroup {path!r}")
        if name in ("", ".", "..") or name in FILES or name in above._children:
            raise syscall_error("mkdir", errno.EEXIST, f"cgroup {path!r}")
        return above, name

    def find(self, group: Cgroup | str, call: str) -> Cgroup:
        """A group by object or path. ENOENT if it is not there, ENODEV if it was removed, EINVAL if it is another
        machine's."""
        if isinstance(group, str):
            found = self.root if group.strip("/") == "" else self._find(group)
            if found is None:
                raise syscall_error(call, errno.ENOENT, f"cgroup {group!r}")
            return found
        if not isinstance(group, Cgroup):
            raise TypeError(f"{call}: {group!r} is neither a Cgroup nor the path of one")
        if group._groups is not self:
            raise syscall_error(call, errno.EINVAL, f"{group!r} belongs to another machine")
        if self.by_id.get(group._id) is not group:
            raise syscall_error(call, errno.ENODEV, f"the cgroup {group.name} was removed")
        return group

    def remove(self, group: Cgroup | str) -> None:
        """rmdir(2): EBUSY while a process lives in it, or it has children; zombies do not matter."""
        with self.lock:
            gone = self.find(group, "rmdir")
            above = gone._parent
            if above is None or gone._children or self.members(gone):
                raise syscall_error("rmdir", errno.EBUSY, f"cgroup {gone.path}")
            column = self.table.cgroup
            for tid in self._rows(gone):  # zombies, which those above go on counting
                column[tid] = above._id
            del above._children[gone.name]
            del self.by_id[gone._id]

    # ---- who is where ----

    def _rows(self, group: Cgroup) -> Iterator[int]:
        """Rows of the table that have the number of a group; freed ones too."""
        column, at = self.table.cgroup, 0
        while True:
            try:
                at = column.index(group._id, at + 1)
            except ValueError:
                return
            yield at

    def members(self, group: Cgroup) -> list[int]:
        """Pids of the living processes in a group."""
        table = self.table
        if not group._id:
            return [pid for pid in table if not table.cgroup[pid] and table.alive(pid)]
        return [pid for pid in self._rows(group) if pid in table and table.alive(pid)]

    def of(self, tid: int) -> Cgroup:
        """The group of a task."""
        return self.by_id[self.table.cgroup[tid]]

    def move(self, pid: int, group: Cgroup) -> None:
        """Puts a living process, with all its tasks, into a group; limits on tasks do not count (pids_can_attach())."""
        table = self.table
        old, tids = self.of(pid), [pid, *table.threads.get(pid, ())]
        if old is group:
            return
        group.charge(len(tids))
        old.charge(-len(tids))
        for tid in tids:
            table.cgroup[tid] = group._id
