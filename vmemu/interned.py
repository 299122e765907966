"""Immutable records that many processes share: a process has an index in a column, equal records have one index."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

__all__ = ["Interned"]

T = TypeVar("T", bound=Hashable)


class Interned(Generic[T]):
    """Record <-> index; 0 is the record of the first process. What nobody has any more is dropped now and then."""

    def __init__(self, first: T, column: array[int], state: bytearray) -> None:
        """*column* has the index by pid, *state* is 0 for rows that are free."""
        self._column = column
        self._state = state
        self._records: list[Any] = [first]
        self._indices: dict[T, int] = {first: 0}
        self._free: list[int] = []
        self._enough = 64

    def __len__(self) -> int:
        return len(self._indices)

    def of(self, pid: int) -> T:
        """The record of a process."""
        record: T = self._records[self._column[pid]]
        return record

    def give(self, pid: int, record: T) -> None:
        """Makes *record* that of a process."""
        self._column[pid] = self.index(record)

    def index(self, record: T) -> int:
        """The index of a record, new if no process has an equal one."""
        found = self._indices.get(record)
        if found is None:
            if len(self._indices) >= self._enough:
                self._sweep()
            if self._free:
                found = self._free.pop()
                self._records[found] = record
            else:
                found = len(self._records)
                self._records.append(record)
            self._indices[record] = found
        return found

    def _sweep(self) -> None:
        used = {self._column[pid] for pid, state in enumerate(self._state) if state} | {0}
        for record, index in list(self._indices.items()):
            if index not in used:
                del self._indices[record]
                self._records[index] = None
                self._free.append(index)
        self._enough = 64 + 2 * len(used)
