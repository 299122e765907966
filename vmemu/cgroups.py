"""Control groups: the tree, who is in it, and what it limits, as cgroup v2 has them (kernel/cgroup/pids.c).

Every group has the controllers pids and memory from the start, whatever its parent's subtree_control says; so a group
with children may have processes too, as long as nobody writes to its subtree_control. Counters are hierarchical: what a
group has, its ancestors have; so the least limit from a group up is what holds for it. The root limits nothing and
counts nothing.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Mapping as Dictionary
from contextlib import AbstractContextManager
from typing import Any, SupportsIndex

from vmemu._native import Core
from vmemu.errors import syscall_error
from vmemu.pids import BIRTH_NS, PID_MAX, ProcessTable
from vmemu.types import PAGE_SIZE, parse_size
from vmemu.whole import whole

__all__ = ["CONTROLLERS", "FILES", "ROOT_FILES", "Cgroup", "Cgroups"]

_MOST = 65535
"""Groups that a machine may have, the root too; a frame has 16 bits for whose it is."""
_NAME_MAX = 255
_EVENTS = ("max", "oom", "oom_kill", "oom_group_kill")
CONTROLLERS = ("memory", "pids")
ROOT_FILES = ("cgroup.controllers", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
FILES = (
    *ROOT_FILES,
    "cgroup.events",
    "cgroup.kill",
    "cgroup.type",
    "memory.current",
    "memory.events",
    "memory.events.local",
    "memory.high",
    "memory.max",
    "memory.oom.group",
    "memory.peak",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.events",
    "memory.swap.max",
    "memory.swap.peak",
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
        "_high",
        "_max",
        "_oom_group",
        "_parent",
        "_pids",
        "_pids_max",
        "_pids_peak",
        "_subtree",
        "_swap_max",
        "events",
        "events_local",
        "name",
        "number",
        "pids_events",
        "pids_events_local",
    )

    def __init__(self, groups: Cgroups, number: int, name: str, parent: Cgroup | None) -> None:
        self._groups = groups
        self.number = number
        """In the machine; 0 is the root."""
        self._parent = parent
        self._children: dict[str, Cgroup] = {}
        self._pids = 0
        self._pids_peak = 0
        self._pids_max: int | None = None
        self._max: int | None = None
        self._high: int | None = None
        self._swap_max: int | None = None
        self._oom_group = False
        self._subtree = frozenset(() if parent else CONTROLLERS)
        self.events: dict[str, int] = dict.fromkeys(_EVENTS, 0)
        """Here and below: times that the limit stopped an access or a call (`max`), that reclaim did not help (`oom`),
        processes (`oom_kill`) and whole groups (`oom_group_kill`) that were killed."""
        self.events_local: dict[str, int] = dict.fromkeys(_EVENTS, 0)
        """The same, here alone."""
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

    def child(self, name: str) -> Cgroup | None:
        """One of them, None if there is no such."""
        return self._children.get(name)

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

    @property
    def subtree_control(self) -> frozenset[str]:
        """The controllers that it hands on by cgroup.subtree_control: none until somebody sets them, the root both.
        With ``"memory"`` among them no process may be in it.

        Setting it: EBUSY while processes are in it (as long as no domain controller and no process below are concerned,
        ``"pids"`` may be handed on nevertheless), or to take one away that a child hands on; EINVAL for others.
        """
        return self._subtree

    @subtree_control.setter
    def subtree_control(self, controllers: Collection[str]) -> None:
        wanted = frozenset((controllers,) if isinstance(controllers, str) else controllers)
        for name in sorted(wanted.difference(CONTROLLERS)):
            raise syscall_error("write", errno.EINVAL, f"there is no controller {name!r}")
        with self._groups.lock:
            gone, new = self._subtree - wanted, wanted - self._subtree
            self._settled()
            for child in self._children.values():
                if gone & child._subtree:
                    raise syscall_error("write", errno.EBUSY, f"{child.path} hands {min(gone & child._subtree)} on")
            if new and self._parent and self.procs and ("memory" in new or not self._takes_threads()):
                raise syscall_error("write", errno.EBUSY, f"processes are in cgroup {self.path}")
            self._subtree = wanted

    def _takes_threads(self) -> bool:
        """It hands on nothing that processes in it would compete for, and there are none below
        (cgroup_can_be_thread_root())."""
        return "memory" not in self._subtree and not any(child.populated for child in self._children.values())

    def check_room(self) -> None:
        """EBUSY if no process may be in it because it hands controllers on (cgroup_migrate_vet_dst())."""
        if self._parent and self._subtree and not self._takes_threads():
            raise syscall_error("cgroup", errno.EBUSY, f"{self.path} hands controllers on: no process may be in it")

    # ---- pids ----

    @property
    def pids_current(self) -> int:
        """Tasks in it and below, zombies until they are reaped."""
        table = self._groups.processes
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
    def pids_max(self, most: SupportsIndex | str | None) -> None:
        with self._groups.lock:
            self._settable("pids_max")
            self._pids_max = _count(most)

    def _settable(self, what: str) -> None:
        if self._parent is None:
            raise ValueError(f"{what}: the root of the cgroups has no limits")
        self._settled()

    def _settled(self) -> None:
        if self._groups.by_id.get(self.number) is not self:
            raise syscall_error("open", errno.ENODEV, f"the cgroup {self.name} was removed")

    # ---- memory ----

    @property
    def oom_group(self) -> bool:
        """Whether the OOM killer kills all of it when it chooses one (memory.oom.group)."""
        return self._oom_group

    @oom_group.setter
    def oom_group(self, yes: bool) -> None:
        with self._groups.lock:
            self._settable("oom_group")
            self._oom_group = _flag(yes)

    def _info(self) -> Any:
        return self._groups.core.cgroup_info(self.number)

    @property
    def memory_current(self) -> int:
        """Bytes that it and those below are charged for; 0 for the root."""
        return int(self._info().usage) * PAGE_SIZE

    @property
    def memory_peak(self) -> int:
        """The most that there were."""
        return int(self._info().peak) * PAGE_SIZE

    @property
    def memory_max(self) -> int | None:
        """Bytes beyond which memory is reclaimed or somebody in it is killed. Set to bytes or ``"64MiB"``."""
        return _bytes(self._max)

    @memory_max.setter
    def memory_max(self, most: int | str | None) -> None:
        with self._groups.lock:
            self._settable("memory_max")
            pages = _pages(most, "memory_max")
            self._limit(pages, self._high)
            if pages is not None:
                self._groups.squeeze(self.number, pages)

    @property
    def memory_high(self) -> int | None:
        """Bytes beyond which charges are counted as events, and memory is reclaimed where that is on; what else Linux
        does then is to slow down."""
        return _bytes(self._high)

    @memory_high.setter
    def memory_high(self, most: int | str | None) -> None:
        with self._groups.lock:
            self._settable("memory_high")
            pages = _pages(most, "memory_high")
            self._limit(self._max, pages)
            if pages is not None:
                self._groups.trim(self.number, pages)

    def _limit(self, most: int | None, high: int | None) -> None:
        self._max, self._high = most, high
        self._groups.core.cgroup_limit(self.number, most, high, self._swap_max)

    @property
    def memory_swap_max(self) -> int | None:
        """Bytes that it and those below may have in swap. What is there stays."""
        return _bytes(self._swap_max)

    @memory_swap_max.setter
    def memory_swap_max(self, most: int | str | None) -> None:
        with self._groups.lock:
            self._settable("memory_swap_max")
            self._swap_max = _pages(most, "memory_swap_max")
            self._limit(self._max, self._high)

    @property
    def memory_swap_current(self) -> int:
        """Bytes that they have; 0 for the root."""
        return int(self._info().swap) * PAGE_SIZE

    @property
    def memory_swap_peak(self) -> int:
        """The most that there were."""
        return int(self._info().swap_peak) * PAGE_SIZE

    @property
    def memory_swap_events(self) -> dict[str, int]:
        """memory.swap.events, here and below: batches of reclaim in which pages stayed because of the limit (`max`), or
        of that or a full device (`fail`); `high` stays 0, there is no memory.swap.high."""
        most, fail = self._info().swap_refused
        return {"high": 0, "max": int(most), "fail": int(fail)}

    @property
    def memory_events(self) -> dict[str, int]:
        """memory.events: low, high, max, oom, oom_kill, oom_group_kill, since it was made, here and below."""
        return {"low": 0, "high": int(self._info().high), **self.events}

    @property
    def memory_events_local(self) -> dict[str, int]:
        """The same, here alone."""
        return {"low": 0, "high": int(self._info().high_local), **self.events_local}

    @property
    def memory_stat(self) -> dict[str, int]:
        """What it and those below are charged for, in bytes: `anon`, `file` (with `shmem`), `shmem`, `pagetables`, and
        of anon and shmem what is in the swap cache, `swapcached`."""
        sums = [0] * 5
        with self._groups.lock:
            for group in self.below():
                info = group._info()
                sums = [a + int(b) * PAGE_SIZE for a, b in zip(sums, (*info.kinds, info.cached), strict=True)]
        anon, file, shmem, tables, cached = sums
        return {
            "anon": anon,
            "file": file + shmem,
            "kernel": tables,
            "pagetables": tables,
            "shmem": shmem,
            "swapcached": cached,
        }

    def event(self, name: str) -> None:
        """Counts one (memcg_memory_event())."""
        for events in self.counters():
            events[name] += 1

    def counters(self) -> list[dict[str, int]]:
        """Where its events are counted."""
        return [*(group.events for group in self.above()), self.events_local]

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
        for group in full.above():
            group.pids_events += 1
        full.pids_events_local += 1
        why = f"pids.max: cgroup {full.path} may have {full._pids_max} tasks"
        raise syscall_error("fork", errno.EAGAIN, why)

    def charge(self, n: int) -> None:
        """*n* tasks more, here and above."""
        for group in self.above():
            group._pids += n
            group._pids_peak = max(group._pids_peak, group._pids)


def _bytes(pages: int | None) -> int | None:
    return None if pages is None else pages * PAGE_SIZE


def _pages(size: int | str | None, what: str) -> int | None:
    """Whole pages in a size (page_counter_memparse())."""
    return None if size is None or size == "max" else min(parse_size(size, what) // PAGE_SIZE, (1 << 52) - 1)


def _flag(yes: object) -> bool:
    if not isinstance(yes, bool) and yes not in (0, 1):
        raise TypeError(f"oom_group: {yes!r} is not a bool")
    return bool(yes)


def _count(most: SupportsIndex | str | None) -> int | None:
    if most is None or most == "max":
        return None
    if isinstance(most, bool | str) or not hasattr(most, "__index__"):
        raise TypeError(f"pids_max: {most!r} is neither an int nor None")
    number = most.__index__()
    if not 0 <= number <= PID_MAX:
        raise ValueError(f"pids_max: {number} is not between 0 and {PID_MAX}")
    return number


class Cgroups(Dictionary[str, Cgroup]):
    """`Machine.cgroups`: path -> `Cgroup` of all groups but the root, parents before their children; a live view."""

    def __init__(self, core: Core, table: ProcessTable, lock: AbstractContextManager[object]) -> None:
        self.core = core
        self.processes = table
        self.lock = lock
        self.root = Cgroup(self, 0, "", None)
        """Where every process is at first."""
        self.by_id = {0: self.root}
        self._arrived: dict[int, tuple[int, int]] = {}
        """By pid, of who was moved: when it was born, its place in the order of arrival."""
        self._moves = 0
        self._doubtful: Cgroup | None = None
        """A group that is being made or removed, which the core may have while it is not in the tree."""
        self.kill: Callable[[list[int]], None]
        """Kills processes at once; the machine sets it."""
        self.squeeze: Callable[[int, int], None]
        """Brings a group, by number, down to so many pages, whatever that takes; the machine sets it."""
        self.trim: Callable[[int, int], None]
        """The same by reclaim alone."""
        self.owners: Callable[[int], Iterable[int]] = lambda sid: ()
        """By space: who uses it, if there are several, the eldest first; the kernel sets it."""
        self.interrupted: Callable[[BaseException], None]
        """Mends what an exception left half done; the kernel sets it."""

    def close(self, closed: Any) -> None:
        """The machine is closed; *closed* stands in for its core and table. Nothing leads back to the machine, which
        would stay for the garbage collector else."""
        self.core = self.processes = closed
        self.kill = lambda _: None
        self.squeeze = self.trim = lambda *_: None
        self.owners = lambda _: ()

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

    @whole
    def create(
        self,
        path: str,
        *,
        parent: Cgroup | str | None = None,
        pids_max: SupportsIndex | str | None = None,
        memory_max: int | str | None = None,
        memory_high: int | str | None = None,
        memory_swap_max: int | str | None = None,
        oom_group: bool = False,
    ) -> Cgroup:
        """mkdir(2): a new group at *path* below *parent* (the root by default), with the limits given; None and
        ``"max"`` are no limit. Here the parent may have processes, its subtree_control stays as it is.

        ``create("a/b")`` needs ``a``. EEXIST, ENOENT, ENAMETOOLONG, EINVAL as mkdir says, EAGAIN above 65,535 groups;
        ValueError for a limit that makes no sense. Nothing is made then.
        """
        above, name = self._place(path, parent)
        number = next((i for i in range(1, _MOST) if i not in self.by_id), 0)
        if not number:
            raise syscall_error("mkdir", errno.EAGAIN, f"{path}: there are {_MOST} cgroups")
        most, high = _pages(memory_max, "memory_max"), _pages(memory_high, "memory_high")
        swap, tasks, together = _pages(memory_swap_max, "memory_swap_max"), _count(pids_max), _flag(oom_group)
        if most is not None and high is not None and high > most:
            raise ValueError(f"memory_high: {memory_high!r} is more than memory_max, {memory_max!r}")
        group = Cgroup(self, number, name, above)
        group._pids_max, group._swap_max, group._oom_group = tasks, swap, together
        self._doubtful = group
        self.core.cgroup_new(number, above.number)
        group._limit(most, high)
        above._children[name] = group  # from here on it is there
        self.by_id[number] = group
        self._doubtful = None
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
        if self.by_id.get(group.number) is not group:
            raise syscall_error(call, errno.ENODEV, f"the cgroup {group.name} was removed")
        return group

    @whole
    def remove(self, group: Cgroup | str) -> None:
        """rmdir(2): EBUSY while a process lives in it, or it has children; zombies do not matter."""
        gone = self.find(group, "rmdir")
        above = gone._parent
        if above is None or gone._children or self.members(gone):
            raise syscall_error("rmdir", errno.EBUSY, f"cgroup {gone.path}")
        self._doubtful = gone
        del above._children[gone.name]  # from here on it is gone
        del self.by_id[gone.number]
        self._bury(gone, above.number)

    def _bury(self, gone: Cgroup, above: int) -> None:
        """Of a group that is not in the tree: who was in it, and what it paid for, is of the one above."""
        column = self.processes.cgroup
        for tid in self._rows(gone):  # zombies, which those above go on counting
            column[tid] = above
        self.core.cgroup_free(gone.number)
        self._doubtful = None

    def recount(self, tasks: Iterable[int]) -> None:
        """Finds the groups in the tree, and sets what they count, from all tasks."""
        self.by_id = {group.number: group for group in self.root.below()}
        odd = self._doubtful
        if odd is not None and odd._parent is not None and self.by_id.get(odd.number) is not odd:
            self._bury(odd, odd._parent.number)
        self._doubtful = None
        for group in self.by_id.values():
            group._pids = 0
        for number, n in Counter(map(self.processes.cgroup.__getitem__, tasks)).items():
            self.by_id[number].charge(n)

    # ---- who is where ----

    def _rows(self, group: Cgroup) -> Iterator[int]:
        """Rows of the table that have the number of a group; freed ones too."""
        column, at = self.processes.cgroup, 0
        while True:
            try:
                at = column.index(group.number, at + 1)
            except ValueError:
                return
            yield at

    def members(self, group: Cgroup) -> list[int]:
        """Pids of the living processes in a group."""
        table = self.processes
        if not group.number:
            return [pid for pid in table if not table.cgroup[pid] and table.alive(pid)]
        return [pid for pid in self._rows(group) if pid in table and table.alive(pid)]

    def of(self, tid: int) -> Cgroup:
        """The group of a task."""
        return self.by_id[self.processes.cgroup[tid]]

    def arrivals(self) -> array[int]:
        """By pid: what orders the processes of a group by when they came into it, by birth or from elsewhere
        (css_set_move_task()). It is not to be changed."""
        born = self.processes.started_ns
        if not self._arrived:
            return born
        places = array("Q", born)
        for pid, (since, place) in list(self._arrived.items()):
            if pid < len(born) and born[pid] == since and pid in self.processes:
                places[pid] = place
            else:
                del self._arrived[pid]
        return places

    def move(self, pid: int, group: Cgroup, now: int) -> None:
        """Puts a living process, with all its tasks, into a group; limits on tasks do not count (pids_can_attach()).
        *now*: ns on the machine's clock, at which the next one will be born."""
        table = self.processes
        old, tids = self.of(pid), [pid, *table.threads.get(pid, ())]
        if old is group:
            return
        group.check_room()
        self._moves = self._moves % (BIRTH_NS - 2) + 1
        self._arrived[pid] = table.started_ns[pid], now - BIRTH_NS + self._moves
        for tid in tids:  # from the first on, whose the others are, it has moved
            table.cgroup[tid] = group.number
        group.charge(len(tids))
        old.charge(-len(tids))
        sid = table.space[tids[0]] or table.space[tids[-1]]
        if next(iter(self.owners(sid)), pid) in tids:  # the owner of the memory pays (mm->owner)
            self.core.space_cgroup(sid, group.number)
