"""The fewest pages that any policy must read back: Belady's throws out what is needed last, for it knows the trace.

A trace becomes a sequence of pages: each private page that was written is one, shared by fork until one side writes it;
reading what nobody wrote takes none. The bound has all frames for pages: no page tables, none kept free.
L. A. Belady, A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5 (1966).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Any

from vmemu.types import PAGE_SIZE, Operation

__all__ = ["misses", "pages"]

_NEVER = 1 << 62


class _Memory:
    """One address space: what is mapped where, and which page each virtual page is."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.objects: list[int] = []
        """Of each mapping 0, or the number of what it shares."""
        self.private: dict[int, int] = {}

    def copy(self) -> _Memory:
        child = _Memory()
        child.starts, child.ends, child.objects = self.starts[:], self.ends[:], self.objects[:]
        child.private = dict(self.private)
        return child

    def unmap(self, first: int, last: int) -> list[int]:
        """Takes [first, last) away -> the private pages that were there."""
        old = list(zip(self.starts, self.ends, self.objects, strict=True))
        kept = [(start, min(end, first), shared) for start, end, shared in old if start < first]
        kept += [(max(start, last), end, shared) for start, end, shared in old if end > last]
        self.starts = [start for start, _, _ in kept]
        self.ends = [end for _, end, _ in kept]
        self.objects = [shared for _, _, shared in kept]
        gone = [n for n in self.private if first <= n < last]
        return [self.private.pop(n) for n in gone]

    def map(self, first: int, last: int, shared: int) -> None:
        at = bisect_right(self.starts, first)
        self.starts.insert(at, first)
        self.ends.insert(at, last)
        self.objects.insert(at, shared)

    def find(self, n: int) -> int:
        """Index of the mapping that holds page *n*, -1: none."""
        at = bisect_right(self.starts, n) - 1
        return at if at >= 0 and n < self.ends[at] else -1


class _Reader:
    """Turns records into pages."""

    def __init__(self) -> None:
        self.out: list[int] = []
        self.memories: dict[int, _Memory] = {}
        self.users: list[int] = [0]
        """By page, how many have it; page 0 is none."""
        self.shared: dict[tuple[int, int], int] = {}
        self.nobjects = 0
        self.live = self.peak = 0
        """Pages that somebody has, now and at most."""

    def new(self) -> int:
        self.users.append(1)
        self.live += 1
        self.peak = max(self.peak, self.live)
        return len(self.users) - 1

    def drop(self, gone: Iterable[int]) -> None:
        for page in gone:
            self.users[page] -= 1
            self.live -= not self.users[page]

    def record(self, address: int, size: int, label: int, operation: int) -> None:
        if operation == Operation.SPAWN:
            self.memories[label] = _Memory()
        elif operation == Operation.FORK:
            child = self.memories[address] = self.memories[label].copy()
            for page in child.private.values():
                self.users[page] += 1
        elif operation == Operation.EXIT:
            self.drop(self.memories.pop(label).private.values())
        elif operation in (Operation.MMAP, Operation.MMAP_SHARED, Operation.MUNMAP):
            memory, first = self.memories[label], address // PAGE_SIZE
            last = -(-(address + size) // PAGE_SIZE)
            self.drop(memory.unmap(first, last))
            if operation == Operation.MMAP_SHARED:
                self.nobjects += 1
            if operation != Operation.MUNMAP:
                memory.map(first, last, self.nobjects if operation == Operation.MMAP_SHARED else 0)
        elif operation <= Operation.FETCH:
            memory = self.memories[label]
            for n in range(address // PAGE_SIZE, (address + size - 1) // PAGE_SIZE + 1):
                at = memory.find(n)
                if at < 0:
                    return
                self.access(memory, n, memory.objects[at], operation == Operation.WRITE)

    def access(self, memory: _Memory, n: int, shared: int, write: bool) -> None:
        if shared:
            page = self.shared.get((shared, n)) or self.shared.setdefault((shared, n), self.new())
        else:
            page = memory.private.get(n, 0)
            if write and self.users[page] != 1:
                if page:  # copied from
                    self.use(page)
                    self.users[page] -= 1
                page = memory.private[n] = self.new()
        if page:
            self.use(page)

    def use(self, page: int) -> None:
        if not self.out or self.out[-1] != page:
            self.out.append(page)


def pages(trace: Any) -> tuple[list[int], int]:
    """(the pages that a trace needs, in order, each a number; most that there are at once). Runs of one page count
    once."""
    reader = _Reader()
    for record in trace.tolist():
        reader.record(*record)
    return reader.out, reader.peak


def misses(sequence: Sequence[int], nframes: int) -> int:
    """How often a page has to be read back with so many frames, at least."""
    following, last = [_NEVER] * len(sequence), dict[int, int]()
    for i in range(len(sequence) - 1, -1, -1):
        following[i] = last.get(sequence[i], _NEVER)
        last[sequence[i]] = i
    resident: dict[int, int] = {}
    seen: set[int] = set()
    heap: list[tuple[int, int]] = []
    count = 0
    for page, needed in zip(sequence, following, strict=True):
        if page not in resident:
            count += page in seen
            seen.add(page)
            while len(resident) >= nframes:
                when, victim = heappop(heap)
                if resident.get(victim) == -when:  # else it has been used since
                    del resident[victim]
        resident[page] = needed
        heappush(heap, (-needed, page))
    return count
