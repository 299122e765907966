"""The process table: who is whose child, in columns by pid. State only; what the calls do with it is in `lifecycle`.

A process is a row: a few bytes in each column, no object. Links make each parent's list of children in order of birth,
as task_struct's children and sibling do. Row 0 is the end of every list, and what the first process inherits.
"""

from __future__ import annotations

import errno
import signal
from array import array
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from vmemu.errors import syscall_error

__all__ = ["FREE", "INIT", "PID_MAX", "RUNNING", "SIGCHLD", "THREAD", "ZOMBIE", "Flag", "ProcessTable"]

FREE, RUNNING, ZOMBIE, HELD, THREAD = 0, 1, 2, 3, 4
"""Of a row. HELD is no task: the number is still that of a process group or session, so it is not given again. THREAD
runs and is not the first of its process; the first may be a ZOMBIE while others run."""
INIT = 1
PID_MAX = 4_194_304
"""Linux's limit on 64-bit machines (PID_MAX_LIMIT)."""
SIGCHLD = int(signal.SIGCHLD)
RESERVED_PIDS = 300
"""Where the search begins again after a wrap-around."""


class Flag:
    """Bits of `ProcessTable.flags`."""

    UNDUMPABLE = 1
    """PR_SET_DUMPABLE 0."""
    NPROC_EXCEEDED = 2
    """A change of user went over RLIMIT_NPROC, which the next execve will tell (PF_NPROC_EXCEEDED)."""
    EXECED = 4
    """Executed a program since it was forked (PF_FORKNOEXEC is not set): its parent may not set its process group."""
    SUBREAPER = 8
    """Adopts the orphans among its descendants (PR_SET_CHILD_SUBREAPER)."""

    INHERITED = UNDUMPABLE | NPROC_EXCEEDED


_INHERITED = Flag.INHERITED
_V = TypeVar("_V")


class Watched(dict[int, _V]):
    """A dictionary of what makes tasks other than plain; it tells the table when something came or went."""

    __slots__ = ("_changed",)

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed

    def __setitem__(self, key: int, value: _V) -> None:
        super().__setitem__(key, value)
        self._changed()

    def __delitem__(self, key: int) -> None:
        super().__delitem__(key)
        self._changed()

    def pop(self, key: int, default: Any = None) -> Any:
        """As a dict's, with None as the default."""
        value = super().pop(key, default)
        self._changed()
        return value

    def setdefault(self, key: int, default: Any = None) -> _V:
        """As a dict's."""
        value: _V = super().setdefault(key, default)
        self._changed()
        return value


class ProcessTable:
    """Columns by pid; `len()` counts processes, zombies included."""

    __slots__ = (
        "_columns",
        "_count",
        "_fresh",
        "_inherited",
        "_last",
        "_last_child",
        "_used",
        "_watched",
        "_wrapped",
        "blocked",
        "born",
        "borrower",
        "cgroup",
        "children_major",
        "children_minor",
        "credentials",
        "death_signal",
        "exit_signal",
        "first_child",
        "flags",
        "group",
        "grouped",
        "image",
        "leader",
        "lender",
        "limits",
        "major",
        "minor",
        "name",
        "next",
        "oom_adj",
        "oom_adj_min",
        "parent",
        "pending",
        "pending_task",
        "plain",
        "prev",
        "report",
        "same_handlers",
        "session",
        "signals",
        "space",
        "started_ns",
        "state",
        "status",
        "stopped",
        "threads",
        "uses",
    )

    def __init__(self) -> None:
        self.state = bytearray([FREE])

        # what a child has anew
        self.parent = array("I", [0])
        self.space = array("I", [0])
        """Id of the space in the core; a vfork child has its parent's until it execs or exits."""
        self.status = array("I", [0])
        """Of a zombie, as wait(2) gives it."""
        self.first_child = array("I", [0])
        self._last_child = array("I", [0])
        self.next = array("I", [0])
        self.prev = array("I", [0])
        self.started_ns = array("Q", [0])
        """When it was born, on the machine's clock."""
        self.minor = array("Q", [0])
        self.major = array("Q", [0])
        """Faults of a zombie."""
        self.children_minor = array("Q", [0])
        self.children_major = array("Q", [0])
        """Faults of the children that were waited for, and of theirs (cmin_flt and cmaj_flt)."""
        self.exit_signal = bytearray([0])
        """What the parent is sent when it dies: SIGCHLD, or what clone said."""

        # what it inherits
        self.image = array("I", [0])
        self.name = array("I", [0])
        self.credentials = array("I", [0])
        self.limits = array("I", [0])
        self.signals = array("I", [0])
        """Indices of records in the kernel's pools."""
        self.blocked = array("Q", [0])
        """Mask of the signals that wait."""
        self.group = array("I", [INIT])
        self.session = array("I", [INIT])
        """Numbers of its process group and session."""
        self.oom_adj = array("h", [0])
        self.oom_adj_min = array("h", [0])
        """oom_score_adj, and how far it may be lowered without CAP_SYS_RESOURCE."""
        self.flags = bytearray([0])
        """Bits of `Flag`."""
        self.cgroup = array("H", [0])
        """Number of its control group."""
        self.grouped = False
        """There is or was another group than the root, which 0 is; only then the column is inherited."""

        self._fresh = (
            self.space,
            self.status,
            self.first_child,
            self._last_child,
            self.next,
            self.prev,
            self.minor,
            self.major,
            self.children_minor,
            self.children_major,
        )
        self._inherited: tuple[array[int], ...] = (
            self.image,
            self.name,
            self.credentials,
            self.limits,
            self.signals,
            self.blocked,
            self.group,
            self.session,
            self.oom_adj,
            self.oom_adj_min,
        )
        self._columns = (self.parent, self.started_ns, self.cgroup, *self._fresh, *self._inherited)
        # what few have, by pid or tid
        self.threads: dict[int, list[int]] = {}
        """Of a process: its tasks besides the first, in order of birth."""
        self.leader: dict[int, int] = {}
        """Of such a task: its process."""
        self._watched: list[Watched[Any]] = []
        self.plain = True
        """Nothing is in any `Watched`: no task is suspended or stopped, each is alone in its memory."""
        self.borrower: Watched[int] = self.watch()
        self.lender: dict[int, int] = {}
        """A task suspended in vfork -> the child that it waits for, and back."""
        self.stopped: Watched[int] = self.watch()
        """Of a stopped process: the signal that did it."""
        self.report: dict[int, int] = {}
        """Of a process that stopped or went on since it was last waited for: its status."""
        self.pending: dict[int, int] = {}
        self.pending_task: dict[int, int] = {}
        """Masks of signals that were sent and not delivered, to a process and to one task."""
        self.same_handlers: dict[int, set[int]] = {}
        """Processes that share their dispositions (CLONE_SIGHAND without CLONE_THREAD)."""
        self.death_signal: dict[int, int] = {}
        """PR_SET_PDEATHSIG."""

        self.uses: dict[int, int] = {}
        """By number: how many processes have it as their group or session."""
        self._used = 1
        """Rows from here on were never anybody's: all zero."""
        self._last = 0
        self.born = 0
        """Processes made so far."""
        self._wrapped = False
        self._count = 0

    def watch(self) -> Watched[Any]:
        """One more dictionary that `plain` depends on."""
        self._watched.append(Watched(self._look_round))
        return self._watched[-1]

    def _look_round(self) -> None:
        self.plain = not any(self._watched)

    def group_tasks(self) -> None:
        """From now on tasks are in control groups."""
        if not self.grouped:
            self.grouped = True
            self._inherited += (self.cgroup,)

    def __len__(self) -> int:
        return self._count

    @property
    def last(self) -> int:
        """The process made last."""
        return self._last

    def __iter__(self) -> Iterator[int]:
        """Pids in increasing order, zombies included."""
        return (pid for pid, state in enumerate(self.state) if state in (RUNNING, ZOMBIE))

    def __contains__(self, pid: object) -> bool:
        return isinstance(pid, int) and 0 < pid < len(self.state) and self.state[pid] in (RUNNING, ZOMBIE)

    def reserve(self, n: int, call: str) -> range:
        """The next n pids in a row that are free. EAGAIN if there are none (alloc_pid(): pid_max)."""
        first = self._last + 1 if n < PID_MAX else -1
        if first >= 0 and (self._wrapped or first + n > PID_MAX):
            first = self._search(first, n)
            if first < 0:
                first = self._search(RESERVED_PIDS, n)
                self._wrapped |= first >= 0
        if first < 0:
            raise syscall_error(call, errno.EAGAIN, f"no {n} free pids in a row below {PID_MAX}")
        return range(first, first + n)

    def reserve_one(self, call: str) -> int:
        """The same for one."""
        pid = self._last + 1
        return self.reserve(1, call)[0] if self._wrapped or pid >= PID_MAX else pid

    def _search(self, start: int, n: int) -> int:
        """First of n free pids in a row from *start* on, -1 if there are none."""
        found = self.state.find(bytes(n), start)
        if found < 0:  # the end of the columns, and what lies behind it
            found = max(start, len(self.state.rstrip(bytes([FREE]))))
        return found if found + n <= PID_MAX else -1

    def add_one(self, pid: int, parent: int, like: int, now_ns: int) -> None:
        """A new running process, the youngest child of *parent*, with what a fork of *like* inherits."""
        state, uses = self.state, self.uses
        if pid >= len(state):
            self._grow(pid + 1)
        if pid < self._used:  # the row was somebody's
            for column in (*self._fresh, *self._inherited):
                column[pid] = 0
        else:
            self._used = pid + 1
        for column in self._inherited:
            value = column[like]
            if value:
                column[pid] = value
        state[pid] = RUNNING
        self.parent[pid] = parent
        self.started_ns[pid] = now_ns
        self.exit_signal[pid] = SIGCHLD
        flags = self.flags[like]
        self.flags[pid] = flags & _INHERITED if flags else 0
        tail = self._last_child[parent]
        if tail:
            self.prev[pid] = tail
            self.next[tail] = pid
        else:
            self.first_child[parent] = pid
        self._last_child[parent] = pid
        group, session = self.group[pid], self.session[pid]
        uses[group] = uses.get(group, 0) + 1
        uses[session] = uses.get(session, 0) + 1
        self._last = pid
        self.born += 1
        self._count += 1

    def add(self, pids: range, parent: int, like: int, now_ns: int) -> None:
        """The same for some with pids in a row, the eldest first."""
        n, first, last = len(pids), pids[0], pids[-1]
        if last >= len(self.state):
            self._grow(last + 1)
        self._fill_rows(first, last + 1, parent, like, now_ns)
        self._append(parent, first, last)
        self._use(self.group[first], n)
        self._use(self.session[first], n)
        self._last = last
        self.born += n
        self._count += n

    def _fill_rows(self, first: int, end: int, parent: int, like: int, now_ns: int) -> None:
        n = end - first
        if first < self._used:
            for column in (*self._fresh, *self._inherited):
                column[first:end] = array(column.typecode, bytes(n * column.itemsize))
        self._used = max(self._used, end)
        self.state[first:end] = bytes([RUNNING]) * n
        self.parent[first:end] = array("I", [parent]) * n
        self.started_ns[first:end] = array("Q", [now_ns]) * n
        self.exit_signal[first:end] = bytes([SIGCHLD]) * n
        self.flags[first:end] = bytes([self.flags[like] & _INHERITED]) * n
        for column in self._inherited:
            if column[like]:
                column[first:end] = array(column.typecode, [column[like]]) * n
        self.next[first : end - 1] = array("I", range(first + 1, end))
        self.prev[first + 1 : end] = array("I", range(first, end - 1))

    def add_thread(self, tid: int, first: int, creator: int, now_ns: int) -> None:
        """One more task of process *first*, with what *creator*, a task of it, has."""
        if tid >= len(self.state):
            self._grow(tid + 1)
        for column in self._fresh:
            column[tid] = 0
        for column in self._inherited:
            column[tid] = column[creator]
        self.group[tid] = self.session[tid] = 0  # its process's
        self.parent[tid] = 0
        self.started_ns[tid] = now_ns
        self.flags[tid] = self.flags[creator] & Flag.INHERITED
        self.state[tid] = THREAD
        self.leader[tid] = first
        self.threads.setdefault(first, []).append(tid)
        self._last = tid
        self.born += 1
        self._used = max(self._used, tid + 1)

    def remove_thread(self, tid: int) -> None:
        """Frees the row of a task that is not the first of its process."""
        first = self.leader.pop(tid)
        self.threads[first].remove(tid)
        if not self.threads[first]:
            del self.threads[first]
        self.state[tid] = FREE

    def process(self, tid: int) -> int:
        """The pid of a task's process."""
        return self.leader.get(tid, tid) if self.leader else tid

    def tasks(self, pid: int) -> list[int]:
        """The running tasks of a process, the first one first."""
        first = [pid] if self.state[pid] == RUNNING else []
        return first + self.threads.get(pid, [])

    def alive(self, pid: int) -> bool:
        """Some task of the process runs."""
        return self.state[pid] == RUNNING or pid in self.threads

    def _grow(self, end: int) -> None:
        """Rows up to *end* at least, and some to spare; new ones are free."""
        more = min(max(end, len(self.state) * 9 // 8 + 64), PID_MAX) - len(self.state)
        zeros = memoryview(bytes(8 * more))
        for column in (self.state, self.exit_signal, self.flags):
            column.extend(zeros[:more])
        for wide in self._columns:
            wide.frombytes(zeros[: more * wide.itemsize])

    def _append(self, parent: int, first: int, last: int) -> None:
        tail = self._last_child[parent]
        self.prev[first] = tail
        self.next[last] = 0
        if tail:
            self.next[tail] = first
        else:
            self.first_child[parent] = first
        self._last_child[parent] = last

    def children(self, pid: int) -> Iterator[int]:
        """Pids of the children in order of birth, zombies included."""
        child = self.first_child[pid]
        while child:
            following = self.next[child]
            yield child
            child = following

    def youngest(self, pid: int) -> int:
        """The last of them, 0 if there are none."""
        return self._last_child[pid]

    def adopt(self, pid: int, by: int) -> None:
        """Gives all children of *pid* to *by*, behind its own."""
        first, last = self.first_child[pid], self._last_child[pid]
        if not first:
            return
        for child in self.children(pid):
            self.parent[child] = by
        self.first_child[pid] = self._last_child[pid] = 0
        self._append(by, first, last)

    def remove(self, pid: int) -> None:
        """Frees the row of a process without children. Its number stays taken while a group or session has it."""
        before, after = self.prev[pid], self.next[pid]
        if before:
            self.next[before] = after
        else:
            self.first_child[self.parent[pid]] = after
        if after:
            self.prev[after] = before
        else:
            self._last_child[self.parent[pid]] = before
        self._count -= 1
        uses, group, session = self.uses, self.group[pid], self.session[pid]
        self.state[pid] = HELD if pid in uses else FREE
        if uses[group] > 2 and uses[session] > 2:  # others have them too
            uses[group] -= 1
            uses[session] -= 1
        else:
            self._use(group, -1)
            self._use(session, -1)
        self.group[pid] = self.session[pid] = 0

    def move(self, pid: int, group: int, session: int) -> None:
        """Puts a process into a group and session."""
        self._use(group, 1)
        self._use(session, 1)
        self._use(self.group[pid], -1)
        self._use(self.session[pid], -1)
        self.group[pid], self.session[pid] = group, session

    def _use(self, number: int, by: int) -> None:
        uses = self.uses.get(number, 0) + by
        if uses:
            self.uses[number] = uses
        else:
            del self.uses[number]
            if self.state[number] == HELD:
                self.state[number] = FREE

    def members(self, group: int) -> list[int]:
        """Processes of a process group, zombies included, in increasing order of pid."""
        return [pid for pid in _where(self.group, group) if self.state[pid]]


def _where(column: array[int], value: int) -> Iterator[int]:
    """Indices at which a column has a value, row 0 left out."""
    at, end = 1, len(column)
    while at < end:
        try:
            at = column.index(value, at)
        except ValueError:
            return
        yield at
        at += 1
