"""What one would write first in Python: page tables as dictionaries. The peer of the mixed trace."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bench.rows.common import PAGE, cpu_clock
from vmemu import Operation

__all__ = ["DictionaryMachine"]

_WRITE = int(Operation.WRITE)  # an enumeration's member would be slower to compare


class _Page:
    """An entry: which frame, and whether it may be written."""

    __slots__ = ("frame", "writable")

    def __init__(self, frame: int, writable: bool) -> None:
        self.frame = frame
        self.writable = writable


class DictionaryMachine:
    """Processes with a dictionary each from page number to entry; frames with bytes and a reference count."""

    def __init__(self) -> None:
        self.tables: dict[int, dict[int, _Page]] = {}
        self.mapped: dict[int, list[range]] = {}
        self.frames: list[bytearray] = []
        self.references: list[int] = []
        self.zero_fill = self.cow_copy = self.cow_reuse = 0

    def _frame(self, contents: bytes | bytearray) -> int:
        self.frames.append(bytearray(contents))
        self.references.append(1)
        return len(self.frames) - 1

    def translate(self, pid: int, address: int, write: bool) -> int:
        """The physical address, after the fault if there is one."""
        number = address // PAGE
        page = self.tables[pid].get(number)
        if page is None or (write and not page.writable):
            page = self._fault(pid, number, page)
        return page.frame * PAGE + address % PAGE

    def _fault(self, pid: int, number: int, page: _Page | None) -> _Page:
        if page is None:
            if not any(number in pages for pages in self.mapped[pid]):
                raise MemoryError(f"process {pid}: {number * PAGE:#x} is not mapped")
            page = self.tables[pid][number] = _Page(self._frame(bytes(PAGE)), True)
            self.zero_fill += 1
        elif self.references[page.frame] == 1:
            page.writable = True
            self.cow_reuse += 1
        else:
            self.references[page.frame] -= 1
            page.frame = self._frame(self.frames[page.frame])
            page.writable = True
            self.cow_copy += 1
        return page

    def fork(self, pid: int, child: int) -> None:
        """Both keep the frames, neither may write them."""
        table = {}
        for number, page in self.tables[pid].items():
            page.writable = False
            self.references[page.frame] += 1
            table[number] = _Page(page.frame, False)
        self.tables[child] = table
        self.mapped[child] = list(self.mapped[pid])

    def run(self, trace: NDArray[np.void], chunk: int = 250_000) -> Iterator[float]:
        """Runs a trace; yields the nanoseconds of each chunk, without those for making Python's integers of it."""
        for start in range(0, len(trace), chunk):
            part = trace[start : start + chunk]
            columns = [part[name].tolist() for name in ("operation", "pid", "address", "size")]
            began = cpu_clock()
            for operation, pid, address, size in zip(*columns, strict=True):
                if operation <= _WRITE and size <= PAGE:
                    self.translate(pid, address, operation == _WRITE)
                elif operation <= _WRITE:
                    for at in range(address, address + size, PAGE):
                        self.translate(pid, at, operation == _WRITE)
                elif operation == Operation.SPAWN:
                    self.tables[pid], self.mapped[pid] = {}, []
                elif operation == Operation.MMAP:
                    self.mapped[pid].append(range(address // PAGE, (address + size) // PAGE))
                elif operation == Operation.FORK:
                    self.fork(pid, address)
                else:
                    raise NotImplementedError(Operation(operation).name)
            yield cpu_clock() - began
