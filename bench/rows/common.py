"""What the rows share: sizes, clocks, frames of a range, checks.

`cpu_clock` is what this thread has had of the CPU: for what may take longer than a time slice, as in kernel.c.
"""

from __future__ import annotations

from time import perf_counter_ns as clock
from time import thread_time_ns as cpu_clock

import numpy as np
from numpy.typing import NDArray

from vmemu import FaultCounts, Machine, Map, Process, Prot

__all__ = [
    "GIB",
    "MIB",
    "PAGE",
    "PRIVATE",
    "RW",
    "arena",
    "clock",
    "cpu_clock",
    "expect",
    "frames",
    "map_small",
    "reap",
    "resident",
]

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
RW = Prot.READ | Prot.WRITE
PRIVATE = Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE
SMALL = (20, 10, 10)
"""Pages of the regions of a small process; kernel.c has the same."""


def resident(process: Process, length: int) -> int:
    """The address of *length* bytes of private memory that is all written."""
    address = process.mmap(None, length, RW, PRIVATE)
    process.touch(address, length, write=True)
    return address


def map_small(process: Process) -> list[int]:
    """40 pages in three regions, written; their addresses."""
    found = []
    for npages in SMALL:
        found.append(resident(process, npages * PAGE))
        process.mmap(None, PAGE, Prot.NONE, PRIVATE)  # keeps the regions apart
    return found


def frames(process: Process, address: int, npages: int) -> NDArray[np.uint64]:
    """Frame numbers of pages that are all present."""
    entries = process.pagemap(address, npages)
    assert (entries >> np.uint64(63)).all(), "a page is not present"
    return entries & np.uint64((1 << 55) - 1)


def arena(machine: Machine) -> int:
    """Host address of the emulated RAM, for the bound to work on the very frames that vmemu used."""
    return int(machine.ram.ctypes.data)


def expect(faults: FaultCounts, **counts: int) -> None:
    """The faults of a call are these and no others."""
    found = {kind: n for kind, n in faults.as_dict().items() if n}
    assert found == counts, f"faults {found}, expected {counts}"


def reap(parent: Process, child: Process) -> None:
    """Ends *child* and takes its exit status."""
    child.exit(0)
    assert parent.wait() == (child.pid, 0)
