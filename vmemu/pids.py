"""The process table: who is whose child, in columns by pid. State only; what the calls do with it is in `process`.

A process is a row: a few bytes in each column, no object. Links make each parent's list of children in order of birth,
as task_struct's children and sibling do. Row 0 is the end of every list.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator

from vmemu.errors import syscall_error

__all__ = ["FREE", "INIT", "PID_MAX", "RUNNING", "ZOMBIE", "ProcessTable"]

FREE, RUNNING, ZOMBIE = 0, 1, 2
INIT = 1
PID_MAX = 4_194_304
"""Linux's limit on 64-bit machines (PID_MAX_LIMIT)."""
RESERVED_PIDS = 300
"""Where the search begins again after a wrap-around."""


class ProcessTable:
    """Columns by pid; `len()` counts processes, zombies included."""

    def __init__(self) -> None:
        self.state = bytearray([FREE])
        self.parent = array("I", [0])
        self.space = array("I", [0])
        """Id of the space in the core; a vfork child has its parent's until it execs or exits."""
        self.status = array("I", [0])
        """Of a zombie, as wait(2) gives it."""
        self.borrower = array("I", [0])
        """The vfork child that has this process's space, 0 if none: the process is suspended."""
        self.image = array("I", [0])
        """What it executes: index into `Kernel.images`, 0 for nothing."""
        self.first_child = array("I", [0])
        self.last_child = array("I", [0])
        self.next = array("I", [0])
        self.prev = array("I", [0])
        self._columns = (
            self.parent,
            self.space,
            self.status,
            self.borrower,
            self.image,
            self.first_child,
            self.last_child,
            self.next,
            self.prev,
        )
        self._last = 0
        self._wrapped = False
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        """Pids in increasing order, zombies included."""
        state = self.state
        return (pid for pid in range(1, len(state)) if pid < len(state) and state[pid])

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

    def _search(self, start: int, n: int) -> int:
        """First of n free pids in a row from *start* on, -1 if there are none."""
        found = self.state.find(bytes(n), start)
        if found < 0:  # the end of the columns, and what lies behind it
            found = max(start, len(self.state.rstrip(bytes([FREE]))))
        return found if found + n <= PID_MAX else -1

    def add(self, pids: range, parent: int, image: int) -> None:
        """New running processes, youngest children of *parent* in order."""
        n, first, last = len(pids), pids[0], pids[-1]
        missing = last + 1 - len(self.state)
        if missing > 0:
            self.state.extend(bytes(missing))
            for column in self._columns:
                column.extend(array("I", [0]) * missing)
        self.state[first : last + 1] = bytes([RUNNING]) * n
        for column in self._columns:
            column[first : last + 1] = array("I", [0]) * n
        self.parent[first : last + 1] = array("I", [parent]) * n
        self.image[first : last + 1] = array("I", [image]) * n
        if n > 1:
            self.next[first:last] = array("I", range(first + 1, last + 1))
            self.prev[first + 1 : last + 1] = array("I", range(first, last))
        self._append(parent, first, last)
        self._last = last
        self._count += n

    def _append(self, parent: int, first: int, last: int) -> None:
        tail = self.last_child[parent]
        self.prev[first] = tail
        self.next[last] = 0
        if tail:
            self.next[tail] = first
        else:
            self.first_child[parent] = first
        self.last_child[parent] = last

    def children(self, pid: int) -> Iterator[int]:
        """Pids of the children in order of birth, zombies included."""
        child = self.first_child[pid]
        while child:
            following = self.next[child]
            yield child
            child = following

    def unlink(self, pid: int) -> None:
        """Takes a process out of its parent's list."""
        parent, before, after = self.parent[pid], self.prev[pid], self.next[pid]
        if before:
            self.next[before] = after
        else:
            self.first_child[parent] = after
        if after:
            self.prev[after] = before
        else:
            self.last_child[parent] = before

    def adopt(self, pid: int, by: int) -> None:
        """Gives all children of *pid* to *by*, behind its own."""
        first, last = self.first_child[pid], self.last_child[pid]
        if not first:
            return
        for child in self.children(pid):
            self.parent[child] = by
        self.first_child[pid] = self.last_child[pid] = 0
        self._append(by, first, last)

    def remove(self, pid: int) -> None:
        """Frees the row of a process without children."""
        self.unlink(pid)
        self.state[pid] = FREE
        self._count -= 1
