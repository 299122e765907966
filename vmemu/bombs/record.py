"""What a run writes down while it runs, in columns, and the arrays that become of it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vmemu.bombs.result import KINDS, Event, Refusal, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Record"]

_REFUSED = tuple(f"refused_{name.value.replace('.', '_')}" for name in Refusal)
_COUNTS = ("tick", "processes", "runnable", "forks", "kills", "oom_kills", "bystander")
_BYTES = ("free", "anon", "file", "shmem", "page_tables", "swap_used")


class Record:
    """Samples, events, and the tree of processes, of which each has an index."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._events = tuple(array(code) for code in "IBII")
        self.pids = array("I")
        self._parents = array("i")
        self._born = array("i")
        self._died = array("i")
        self._fates = bytearray()

    def event(self, tick: int, event: Event, pid: int, other: int = 0) -> None:
        """Something happened."""
        for column, value in zip(self._events, (tick, event, pid, other), strict=True):
            column.append(value)

    def born(self, tick: int, pid: int, parent: int) -> int:
        """A process is there, whose parent has index *parent*, -1 for the first -> its index."""
        self.pids.append(pid)
        self._parents.append(parent)
        self._born.append(tick)
        self._died.append(-1)
        self._fates.append(Event.FORK)
        return len(self.pids) - 1

    def died(self, tick: int, index: int, fate: Event) -> None:
        """It is gone."""
        self._died[index] = tick
        self._fates[index] = fate

    @staticmethod
    def _records(names: Iterable[str], columns: Iterable[Any]) -> NDArray[Any]:
        import numpy as np

        arrays = [np.array(column) for column in columns]
        records = np.empty(len(arrays[0]), [(name, one.dtype) for name, one in zip(names, arrays, strict=True)])
        for name, one in zip(names, arrays, strict=True):
            records[name] = one
        return records

    def events(self) -> NDArray[Any]:
        """See `Result.events`."""
        return self._records(("tick", "event", "pid", "other"), self._events)

    def tree(self) -> NDArray[Any]:
        """See `Result.tree`."""
        names = ("pid", "parent", "born", "died", "fate")
        return self._records(names, (self.pids, self._parents, self._born, self._died, self._fates))

    def series(self) -> NDArray[Any]:
        """See `Result.samples`."""
        import numpy as np

        fields: list[tuple[str, type[np.generic]]] = [(name, np.uint32) for name in _COUNTS]
        fields += [(name, np.uint64) for name in _BYTES]
        fields += [(name, np.uint64) for name in KINDS]
        fields += [(name, np.uint32) for name in _REFUSED]
        records = np.zeros(len(self.samples), fields)
        for name in (*_COUNTS, *_BYTES):
            records[name] = [getattr(sample, name) for sample in self.samples]
        for name, values in zip(KINDS, zip(*(sample.faults for sample in self.samples), strict=True), strict=False):
            records[name] = values
        for name, values in zip(_REFUSED, zip(*(sample.refused for sample in self.samples), strict=True), strict=False):
            records[name] = values
        return records
