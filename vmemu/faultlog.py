"""The fault log: every fault of a machine as a record, in a ring that the core writes.

A record is of `FAULT_DTYPE`, 32 bytes:

| field     | type | meaning |
|---|---|---|
| sequence  | u64  | number of the fault in this log, from 0 |
| address   | u64  | first byte that was accessed; 2^64 - 1 for one that has no 64-bit address |
| pid       | u32  | process whose memory it is |
| kind      | u16  | `FaultKind`; never NONE |
| access    | u16  | 0 read, 1 write, 2 instruction fetch |
| old_frame | u32  | frame that was mapped there before, `NO_FRAME` if none was |
| new_frame | u32  | frame that is mapped there now, `NO_FRAME` if none is |

All that `Machine.faults` counts is in it, from whichever call: accesses one by one and in batches, traces, populate and
mlock, what exec writes (also one that fails then, which the counts leave out), merged pages that are made single again.
And besides the accesses that the machine refused after it asked: beyond a stack's limit, a file that can't be read.
"""

from __future__ import annotations

import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from vmemu.errors import FaultsLost
from vmemu.kernel import Kernel
from vmemu.memory.args import integer
from vmemu.pids import PID_MAX

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FAULT_DTYPE: np.dtype[np.void]
    """Of a log's records."""

__all__ = ["FAULT_DTYPE", "NO_FRAME", "FaultLog"]

NO_FRAME = 0xFFFF_FFFF
"""Where a record has a frame: there is none."""
_FIELDS = [
    ("sequence", "<u8"),
    ("address", "<u8"),
    ("pid", "<u4"),
    ("kind", "<u2"),
    ("access", "<u2"),
    ("old_frame", "<u4"),
    ("new_frame", "<u4"),
]
_SIZE = 32
_SPACES = PID_MAX + 4096
"""Ids of spaces are below that: each is some task's, or about to be."""
_MOST = 1 << 30


if not TYPE_CHECKING:  # PEP 562

    def __getattr__(name: str) -> Any:
        """`FAULT_DTYPE`, made when it is asked for: NumPy is imported when it is first needed."""
        if name != "FAULT_DTYPE":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import numpy as np

        dtype = globals()["FAULT_DTYPE"] = np.dtype(_FIELDS)
        return dtype


class FaultLog:
    """Records of a machine's faults, made by `Machine.trace_faults`. When it is full, new ones take the place of the
    oldest: `lost` counts these, and who reads `records` without having asked for it is warned (`FaultsLost`).

    It records until it is closed, the machine is closed, or nothing refers to it any more. What it recorded can be read
    after `close` and after `Machine.close`.
    """

    def __init__(self, kernel: Kernel, capacity: SupportsIndex) -> None:
        import numpy as np

        number = integer(capacity, "trace_faults", "capacity")
        if not 0 < number <= _MOST:
            raise ValueError(f"capacity: {number} is not between 1 and {_MOST} records")
        self._kernel = kernel
        self._bytes = np.zeros(number * _SIZE, np.uint8)
        self._cleared = self._lost_read = 0
        with kernel.lock:
            owners = _owners(kernel)
            if not kernel.core.log_start(self._bytes, owners):
                raise ValueError("trace_faults: a log of this machine is open")
            kernel.log_owners = owners
            self._recording = kernel.log = _Recording(kernel)
        weakref.finalize(self, self._recording.stop).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._state()[0]

    def __repr__(self) -> str:
        kept, following = self._state()
        lost, closed = following - self._cleared - kept, "" if self._recording.end is None else ", closed"
        return f"<vmemu.FaultLog: {kept} of {self.capacity} records, {lost} lost{closed}>"

    @property
    def capacity(self) -> int:
        """How many records it can hold."""
        return len(self._bytes) // _SIZE

    @property
    def records(self) -> NDArray[np.void]:
        """The records, the oldest first: array of `FAULT_DTYPE`, shape (n,), read-only, a view of the ring itself.

        It is what it is until there are more faults, which may overwrite it; copy it to keep it. It stays valid when
        the log is gone. Warns with `FaultsLost` if records were lost since `lost` was read.
        """
        import numpy as np

        kept, following = self._state()
        lost = following - self._cleared - kept
        if lost > self._lost_read:
            self._lost_read = lost
            warnings.warn(
                f"{lost} faults were overwritten: there is room for {self.capacity}", FaultsLost, stacklevel=2
            )
        # of a read-only buffer: the array can't be made writable
        return np.frombuffer(self._bytes.data.toreadonly(), np.dtype(_FIELDS), kept)

    @property
    def lost(self) -> int:
        """How many records were overwritten since the log was opened or cleared."""
        kept, following = self._state()
        self._lost_read = following - self._cleared - kept
        return self._lost_read

    def clear(self) -> None:
        """Forgets the records, those lost too. Sequence numbers go on."""
        with self._kernel.lock:
            if self._recording.end is None:
                self._cleared = self._kernel.core.log_sort(True)[1]
            else:
                self._cleared = self._recording.end[1]
                self._recording.end = 0, self._cleared
            self._lost_read = 0

    def close(self) -> None:
        """Stops recording; `records` and `lost` stay."""
        self._recording.stop()

    def _state(self) -> tuple[int, int]:
        """(records in the ring, sequence number of the next one)."""
        with self._kernel.lock:
            return self._recording.end or self._kernel.core.log_sort(False)


class _Recording:
    """That a log is open: apart from it, so that the machine and whoever ends it do not keep the log alive."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.end: tuple[int, int] | None = None
        """When it is over: (records in the ring, in order; sequence number of the next one)."""

    def stop(self) -> None:
        """Ends it, unless that is done."""
        with self._kernel.lock:
            if self.end is None:
                self.end = self._kernel.core.log_sort(False)
                self._kernel.core.log_stop()
                self._kernel.log = self._kernel.log_owners = None


def _owners(kernel: Kernel) -> NDArray[np.uint32]:
    """Process by id of its space."""
    import numpy as np

    owners = np.zeros(_SPACES, np.uint32)
    table = kernel.processes
    for pid in table:
        for tid in table.tasks(pid):
            shared = kernel.shared.get(table.space[tid])
            owners[table.space[tid]] = table.process(shared.current) if shared else pid
    return owners
