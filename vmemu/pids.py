"""The process table: who is whose child, in columns by pid. State only; what the calls do with it is in `lifecycle`.

A process is a row: a few bytes in each column, no object. Links make each parent's list of children in order of birth,
as task_struct's children and sibling do. Row 0 is the end of every list, and what the first process inherits.
"""

from __future__ import annotations

import errno
import signal
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from vmemu.columns import Rare, Watched
from vmemu.errors import syscall_error

__all__ = ["BIRTH_NS", "FREE", "INIT", "PID_MAX", "RUNNING", "SIGCHLD", "THREAD", "ZOMBIE", "Flag", "ProcessTable"]

FREE, RUNNING, ZOMBIE, HELD, THREAD = 0, 1, 2, 3, 4
"""Of a row. HELD is no task: the number is still that of a process group or session, so it is not given again. THREAD
runs and is not the first of its process; the first may be a ZOMBIE while others run."""
INIT = 1
BIRTH_NS = 1_000_000
"""What one call that makes processes takes on the machine's clock."""
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


class ProcessTable:
    """Columns by pid; `len()` counts processes, zombies included."""

    __slots__ = (
        "_count",
        "_fresh",
        "_groups",
        "_inherited",
        "_last",
        "_last_child",
        "_members",
        "_suspending",
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
        "dying",
        "ended",
        "executing",
        "exit_signal",
        "first_child",
        "flags",
        "group",
        "image",
        "killing",
        "leader",
        "leaving",
        "lender",
        "limits",
        "major",
        "mending",
        "minor",
        "name",
        "next",
        "odd",
        "oom_adj",
        "oom_adj_min",
        "parent",
        "pending",
        "pending_task",
        "plain",
        "prev",
        "quiet",
        "rare",
        "report",
        "same_handlers",
        "sending",
        "session",
        "signals",
        "space",
        "started_ns",
        "state",
        "status",
        "stopped",
        "stopping",
        "threads",
        "torn",
        "unborn",
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
        self.odd = bytearray([0])
        """1: the row may hold something in a `Rare` column."""
        self.image = array("I", [0])
        self.name = array("I", [0])
        self.credentials = Rare("I", self.odd)
        self.limits = Rare("I", self.odd)
        self.signals = Rare("I", self.odd)
        """Indices of records in the kernel's pools."""
        self.blocked = Rare("Q", self.odd)
        """Mask of the signals that wait."""
        self.group = array("I", [INIT])
        self.session = array("I", [INIT])
        """Numbers of its process group and session."""
        self.oom_adj = Rare("h", self.odd)
        self.oom_adj_min = Rare("h", self.odd)
        """oom_score_adj, and how far it may be lowered without CAP_SYS_RESOURCE."""
        self.flags = bytearray([0])
        """Bits of `Flag`."""
        self.cgroup = Rare("H", self.odd)
        """Number of its control group, 0 for the root."""

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
        adjusted = (self.oom_adj, self.oom_adj_min)
        self.rare = (self.credentials, self.limits, self.signals, self.blocked, self.cgroup, *adjusted)
        self._inherited = (self.image, self.name, self.group, self.session, *self.rare)

        # what few have, by pid or tid
        self._suspending: list[Watched[Any]] = []
        self._watched: list[Watched[Any]] = []
        self.plain = True
        """No task is suspended or stopped, each is alone in its memory."""
        self.quiet = True
        """Nor is there anything else in a `Watched`: each process is one task, no signal is on its way."""
        self.threads: Watched[list[int]] = self.watch()
        """Of a process: its tasks besides the first, in order of birth."""
        self.leader: Watched[int] = self.watch()
        """Of such a task: its process."""
        self.borrower: Watched[int] = self.watch(suspending=True)
        self.lender: Watched[int] = self.watch()
        """A task suspended in vfork -> the child that it waits for, and back."""
        self.stopped: Watched[int] = self.watch(suspending=True)
        """Of a stopped process: the signal that did it."""
        self.report: Watched[int] = self.watch()
        """Of a process that stopped or went on since it was last waited for: its status."""
        self.pending: Watched[int] = self.watch()
        self.pending_task: Watched[int] = self.watch()
        """Masks of signals that were sent and not delivered, to a process and to one task."""
        self.same_handlers: Watched[set[int]] = self.watch()
        """Processes that share their dispositions (CLONE_SIGHAND without CLONE_THREAD)."""
        self.death_signal: Watched[int] = self.watch()
        """PR_SET_PDEATHSIG."""

        # what is under way, for `lifecycle.mending`
        self.torn = self.mending = False
        """A call was interrupted: what is derived may not agree. Nothing is plain or quiet then, so that everybody asks
        `lifecycle.memory.use`."""
        self.unborn: Sequence[int] = ()
        """Tasks that have their rows and are not complete."""
        self.dying = self.leaving = 0
        """A process that ends, a task that ends alone; `status` is set."""
        self.ended: list[int] = []
        """Processes whose memory has gone and whose end was not made known."""
        self.executing: Any = None
        """An execve that can't go back."""
        self.stopping: Any = None
        """A process that a signal stops: (process, task, signal)."""
        self.sending: Any = None
        """A signal, and who gets it: (process, task or 0)."""
        self.killing: Any = None
        """Processes that SIGKILL ends together, and what is counted with that."""

        self._members: dict[int, int] = {}
        """By process group: how many processes are in it."""
        self._groups: dict[int, int] = {}
        """By session: how many process groups are in it."""
        self._used = 1
        """Rows from here on were never anybody's: all zero."""
        self._last = 0
        self.born = 0
        """Processes made so far."""
        self._wrapped = False
        self._count = 0

    def watch(self, *, suspending: bool = False) -> Watched[Any]:
        """One more dictionary that `quiet` depends on, and `plain` if it is *suspending*."""
        watched: Watched[Any] = Watched(self.look_round)
        self._watched.append(watched)
        if suspending:
            self._suspending.append(watched)
        return watched

    def look_round(self) -> None:
        """Sets `plain` and `quiet`."""
        self.plain = not (self.torn or any(self._suspending))
        self.quiet = not (self.torn or any(self._watched))

    def calm(self) -> None:
        """Nothing is torn any more, which is one step."""
        plain, quiet = not any(self._suspending), not any(self._watched)
        self.plain, self.quiet, self.mending, self.torn = plain, quiet, False, False

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

    def add_one(self, pid: int, parent: int, like: int, now_ns: int, space: int) -> None:
        """A new running process with a space, the youngest child of *parent*, with what a fork of *like* inherits."""
        if pid >= len(self.state):
            self._grow(pid + 1)
        if pid < self._used:
            self._clear(pid)
        else:
            self._used = pid + 1
        self.parent[pid] = parent
        self.space[pid] = space
        self.started_ns[pid] = now_ns
        self.exit_signal[pid] = SIGCHLD
        if self.image[like]:
            self.image[pid] = self.image[like]
        self.name[pid] = self.name[like]
        self.group[pid] = group = self.group[like]
        self.session[pid] = self.session[like]
        if self.odd[like]:
            for column in self.rare:
                if column[like]:
                    column[pid] = column[like]
        if self.flags[like]:
            self.flags[pid] = self.flags[like] & _INHERITED
        # from here on it is there: links and counters can be made again from the columns
        self.state[pid] = RUNNING
        self._last = pid
        self.born += 1
        self._count += 1
        tail = self._last_child[parent]
        if tail:
            self.prev[pid] = tail
            self.next[tail] = pid
        else:
            self.first_child[parent] = pid
        self._last_child[parent] = pid
        if group in self._members:
            self._members[group] += 1
        else:
            self._join(group, self.session[pid], 1)

    def _clear(self, pid: int) -> None:
        """Zeros for what was somebody's."""
        for column in self._fresh:
            column[pid] = 0
        self.image[pid] = self.flags[pid] = 0
        if self.odd[pid]:
            for column in self.rare:
                column[pid] = 0
            self.odd[pid] = 0

    def add(self, pids: range, parent: int, like: int, now_ns: int, spaces: array[int]) -> None:
        """The same for some with pids in a row, the eldest first."""
        n, first, last = len(pids), pids[0], pids[-1]
        if last >= len(self.state):
            self._grow(last + 1)
        self._fill_rows(first, last + 1, parent, like, now_ns)
        self.space[first : last + 1] = spaces
        running = bytes([RUNNING]) * n
        self.state[first : last + 1] = running
        self._last = last
        self.born += n
        self._count += n
        self._append(parent, first, last)
        self._join(self.group[first], self.session[first], n)

    def _fill_rows(self, first: int, end: int, parent: int, like: int, now_ns: int) -> None:
        n = end - first
        if first < self._used:
            for column in (*self._fresh, *self._inherited):
                column[first:end] = array(column.typecode, bytes(n * column.itemsize))
            self.odd[first:end] = bytes(n)
        self._used = max(self._used, end)
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
        """One more task of process *first*, with what *creator*, a task of it, has, its memory too."""
        if tid >= len(self.state):
            self._grow(tid + 1)
        self._used = max(self._used, tid + 1)
        for column in self._fresh:
            column[tid] = 0
        for column in self._inherited:
            column[tid] = column[creator]
        self.group[tid] = self.session[tid] = 0  # its process's
        self.parent[tid] = 0
        self.started_ns[tid] = now_ns
        self.flags[tid] = self.flags[creator] & Flag.INHERITED
        self.space[tid] = self.space[creator]
        self.leader[tid] = first
        self.state[tid] = THREAD
        self._last = tid
        self.born += 1
        self.threads.setdefault(first, []).append(tid)

    def remove_thread(self, tid: int) -> None:
        """Frees the row of a task that is not the first of its process."""
        self.state[tid] = FREE
        first = self.leader.pop(tid)
        self.threads[first].remove(tid)
        if not self.threads[first]:
            del self.threads[first]

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
        for column in (self.state, self.exit_signal, self.flags, self.odd):
            column.extend(zeros[:more])
        for wide in (self.parent, self.started_ns, *self._fresh, *self._inherited):
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
        self._append(by, first, last)
        self.first_child[pid] = self._last_child[pid] = 0

    def remove(self, pid: int, counted: bool) -> None:
        """Frees the row of a process without children. Its number stays taken while a group or session has it.
        *counted*: what it used is added to what its parent's children used (wait_task_zombie())."""
        before, after, parent = self.prev[pid], self.next[pid], self.parent[pid]
        members, group = self._members, self.group[pid]
        # from here on it is gone: links and counters can be made again from the columns
        self.state[pid] = HELD if pid in members or pid in self._groups else FREE
        self._count -= 1
        if counted and (self.minor[pid] or self.major[pid] or self.children_minor[pid] or self.children_major[pid]):
            self.children_minor[parent] += self.minor[pid] + self.children_minor[pid]
            self.children_major[parent] += self.major[pid] + self.children_major[pid]
        if before:
            self.next[before] = after
        else:
            self.first_child[parent] = after
        if after:
            self.prev[after] = before
        else:
            self._last_child[parent] = before
        left = members[group] - 1
        if left:
            members[group] = left
        else:
            self._part(group, self.session[pid])

    def move(self, pid: int, group: int, session: int) -> None:
        """Puts a process into a group and session."""
        self._join(group, session, 1)
        self._part(self.group[pid], self.session[pid])
        self.group[pid], self.session[pid] = group, session

    def _join(self, group: int, session: int, n: int) -> None:
        """*n* processes more in a group, which is in a session."""
        if group not in self._members:
            self._members[group] = 0
            self._groups[session] = self._groups.get(session, 0) + 1
        self._members[group] += n

    def _part(self, group: int, session: int) -> None:
        """One process less. Without members there is no group, without groups no session."""
        self._members[group] -= 1
        if not self._members[group]:
            del self._members[group]
            self._groups[session] -= 1
            if not self._groups[session]:
                del self._groups[session]
        for number in (group, session):
            if self.state[number] == HELD and number not in self._members and number not in self._groups:
                self.state[number] = FREE

    def named(self) -> tuple[dict[int, int], dict[int, int]]:
        """How many members each process group has, how many groups each session: for `check`."""
        return self._members, self._groups

    def members(self, group: int) -> list[int]:
        """Processes of a process group, zombies included, in increasing order of pid."""
        return [pid for pid in _where(self.group, group) if self.state[pid] in (RUNNING, ZOMBIE)]


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
