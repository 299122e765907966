"""Traces: what many processes do to their memory, as one array, and running it on a machine.

A trace is a structured NumPy array of `TRACE_DTYPE`, shape (n,), 24 bytes a record, which the core reads as it is:

| field     | type | meaning |
|---|---|---|
| address   | u64  | bytes; FORK: the child's label; EXIT: the exit code |
| size      | u64  | bytes |
| pid       | u32  | label of the process, chosen by the trace, below 2^22 |
| operation | u32  | an `Operation` |

Labels are not pids: SPAWN and FORK give them to the processes that they make, EXIT frees them for others, and the
processes that a trace starts with come with it (`Machine.run(trace, processes)`).
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmemu._native import Core, TraceRun, Trap
from vmemu._native import constants as c
from vmemu.errors import TraceError, VmemuError
from vmemu.kernel import Kernel
from vmemu.lifecycle import birth
from vmemu.lifecycle.memory import use
from vmemu.memory import mmap
from vmemu.memory.args import integer
from vmemu.memory.space import Space
from vmemu.pids import PID_MAX
from vmemu.process import Process
from vmemu.types import FaultCounts, FaultKind, Map, Operation, Prot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    TRACE_DTYPE: np.dtype[np.void]
    """Of a trace's records."""

__all__ = ["TRACE_DTYPE", "RunResult", "as_trace", "check_trace", "load_trace", "run", "save_trace"]

_FIELDS = [("address", "<u8"), ("size", "<u8"), ("pid", "<u4"), ("operation", "<u4")]
_LABELS = PID_MAX
_KINDS = len(FaultKind)
_RW = Prot.READ | Prot.WRITE
_MMAPS = {
    Operation.MMAP: Map.PRIVATE | Map.ANONYMOUS | Map.FIXED,
    Operation.MMAP_SHARED: Map.SHARED | Map.ANONYMOUS | Map.FIXED,
}
_WRONG = {
    c.BAD_OPERATION: "there is no operation {operation}",
    c.BAD_LABEL: f"a label is not below {_LABELS}",
    c.BAD_PID: "no process alive has label {pid}",
    c.BAD_CHILD: "label {child} is that of a process alive",
    c.BAD_SIZE: "size 0",
    c.BAD_ADDRESS: "{address:#x} + {size:#x} is not page aligned, or beyond the address space",
}


if not TYPE_CHECKING:  # PEP 562

    def __getattr__(name: str) -> Any:
        """`TRACE_DTYPE`, made when it is asked for: NumPy is imported when it is first needed."""
        if name != "TRACE_DTYPE":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import numpy as np

        dtype = globals()["TRACE_DTYPE"] = np.dtype(_FIELDS)
        return dtype


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a trace led to."""

    counts: FaultCounts
    """Faults of its accesses by kind, a page each; `.none` for pages without one."""
    outcomes: NDArray[np.uint8] | None
    """uint8 array (n,): of each record the greatest `FaultKind` of its pages, 0 for system calls. A fatal one says that
    the record was not finished. None if it was not asked for."""
    processes: dict[int, Process]
    """Label -> process, of those that are alive at the end."""


# ---- arrays ----


def as_trace(records: Any) -> NDArray[np.void]:
    """*records* as a contiguous array of `TRACE_DTYPE`: itself if it is one, else a copy of a structured array that has
    the four fields with integers. Raises TypeError for what has not, TraceError for numbers that do not fit."""
    import numpy as np

    try:
        found = np.asarray(records)
    except ValueError:
        found = np.asarray(None)  # a ragged sequence
    dtype = np.dtype(_FIELDS)
    if found.dtype == dtype and found.ndim == 1:
        return np.ascontiguousarray(found)
    if found.dtype.names is None:
        given = f"array of {found.dtype}" if isinstance(records, np.ndarray) else type(records).__name__
        raise TypeError(f"a trace must be a structured array with the fields of TRACE_DTYPE, not {given}")
    missing = [name for name in dtype.names or () if name not in found.dtype.names]
    if missing:
        raise TypeError(f"a trace must have the fields of TRACE_DTYPE: {missing[0]} is missing")
    if found.ndim != 1:
        raise TraceError(f"a trace has one dimension, not {found.ndim}")
    out = np.empty(found.shape, dtype)
    for name in dtype.names or ():
        column, most = found[name], np.iinfo(dtype[name]).max
        if column.dtype.kind not in "iu":
            raise TypeError(f"a trace: field {name} must hold integers, not {column.dtype}")
        bad = np.flatnonzero((column < 0) | (column > most))
        if bad.size:
            index = int(bad[0])
            raise TraceError(f"record {index}: {name} {column[index]} is not between 0 and {most}", index)
        out[name] = column
    return out


def save_trace(path: str | os.PathLike[str], trace: Any) -> None:
    """Writes a trace to *path* in NumPy's format, exactly at that name.

    TypeError for what is no structured array with the fields of TRACE_DTYPE, TraceError for numbers that do not fit;
    then nothing is written.
    """
    import numpy as np

    records = as_trace(trace)
    with open(path, "wb") as file:
        np.save(file, records, allow_pickle=False)


def load_trace(path: str | os.PathLike[str]) -> NDArray[np.void]:
    """The trace that a ``.npy`` file holds. TraceError for a file that is none or holds another array."""
    import numpy as np
    from numpy.lib import format as npy

    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            found = npy.read_array(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise TraceError(f"{name}: not a .npy file of a trace: {error}") from None
    if found.dtype != np.dtype(_FIELDS) or found.ndim != 1:
        raise TraceError(f"{name} holds an array of {found.dtype}, shape {found.shape}, and no trace (TRACE_DTYPE)")
    return found


def check_trace(trace: Any) -> None:
    """TraceError for the first bad record of a trace that makes all the processes it has."""
    _check(as_trace(trace), ())


# ---- running one ----


def run(
    kernel: Kernel, trace: Any, processes: Mapping[int, Process] | Sequence[Process] | None, outcomes: bool
) -> RunResult:
    """Runs a trace. See Machine.run()."""
    import numpy as np

    records = as_trace(trace)
    n = len(records)
    with kernel.lock:
        if kernel.closed:
            raise VmemuError("the machine is closed")
        given = _given(kernel, processes)
        runner = _Runner(kernel, given, _check(records, given))
        kinds = np.zeros(n, np.uint8) if outcomes else None
        counts = array("Q", bytes(8 * _KINDS))
        runner.run(kernel.core.trace(records, n, runner.spaces, kinds, counts))
        return RunResult(
            FaultCounts(*counts), kinds, {label: Process(kernel, pid) for label, pid in runner.pids.items()}
        )


def _check(records: NDArray[np.void], given: Iterable[int]) -> int:
    """How many labels there have to be. TraceError for the first bad record."""
    import numpy as np

    nlabels = max(given, default=0) + 1
    while True:
        nlabels = min(_LABELS, 1 << max(10, (nlabels - 1).bit_length()))
        alive = np.zeros(nlabels, np.uint8)
        alive[list(given)] = 1
        wrong, index = Core.trace_check(records, len(records), alive)
        if not wrong:
            return nlabels
        bad = records[index]
        label = max(int(bad["pid"]), int(bad["address"]) if bad["operation"] == Operation.FORK else 0)
        if wrong != c.BAD_LABEL or label >= _LABELS:
            raise _complaint(wrong, index, bad)
        nlabels = label + 1


def _given(kernel: Kernel, processes: Mapping[int, Process] | Sequence[Process] | None) -> dict[int, int]:
    """Label -> task of the processes that a trace starts with."""
    if processes is None:
        return {}
    items = processes.items() if isinstance(processes, Mapping) else enumerate(processes)
    given: dict[int, int] = {}
    for label, process in items:
        if not isinstance(process, Process):
            raise TypeError(f"run: label {label} must be a Process, not {type(process).__name__}")
        if process._kernel is not kernel:
            raise ValueError(f"run: process {process.pid} of label {label} is of another machine")
        number = integer(label, "run", "a label")
        if not 0 <= number < _LABELS:
            raise ValueError(f"run: label {number} is not between 0 and {_LABELS - 1}")
        given[number] = process.tid
    return given


def _complaint(wrong: int, index: int, record: Any) -> TraceError:
    """Says what is wrong with a record."""
    fields = {name: int(record[name]) for name, _ in _FIELDS}
    operation = fields["operation"]
    fields["child"] = fields["address"] if operation == Operation.FORK else fields["pid"]
    return TraceError(f"record {index} ({_name(operation)}): {_WRONG[wrong].format(**fields)}", index)


def _name(operation: int) -> str:
    return Operation(operation).name if operation < len(Operation) else "?"


class _Runner:
    """Who is who while a trace runs, and the decisions that it needs. The kernel's lock is held, so nobody else makes
    or ends processes; accesses of other threads come between the slices of the run."""

    def __init__(self, kernel: Kernel, given: dict[int, int], nlabels: int) -> None:
        import numpy as np

        self.kernel = kernel
        self.pids = given
        """Task by label."""
        self.spaces = np.zeros(nlabels, np.uint32)
        """Id of its space by label, as lent to the core."""
        owners: dict[int, int] = {}
        for label, tid in given.items():
            sid = use(kernel, tid, "run").sid
            if sid in owners:
                raise ValueError(f"run: labels {owners[sid]} and {label} have the same memory")
            owners[sid] = label
            self.spaces[label] = sid

    def run(self, going: TraceRun) -> None:
        """Runs all of it."""
        try:
            while True:
                trap = going.go()
                if not trap.reason:
                    return
                killed = self.kernel.oom_kills
                if trap.reason == c.TRAP_CALL:
                    self._call(going)
                elif trap.reason != c.TRAP_PAUSE:
                    self._decide(going, trap)
                if self.kernel.oom_kills != killed:
                    self._forget_dead()
        except VmemuError as error:
            record = going.record
            error.add_note(f"at record {going.at} of the trace: {_name(record.operation)}, label {record.pid}")
            raise

    def _decide(self, going: TraceRun, trap: Trap) -> None:
        """What a fault needs."""
        label = going.record.pid
        space = Space(self.kernel, int(self.spaces[label]), self.kernel.processes.process(self.pids[label]))
        kind = space._decide(trap)
        if kind is not None:
            going.done(kind)

    def _call(self, going: TraceRun) -> None:
        """The system calls from here on, up to the next access."""
        record = going.record
        call = _CALLS.get(record.operation)
        born = {int(Operation.SPAWN): record.pid, int(Operation.FORK): record.address}.get(record.operation)
        if (
            call is None
            or (record.operation != Operation.SPAWN and record.pid not in self.pids)
            or (born is not None and (born >= len(self.spaces) or born in self.pids))
        ):
            raise TraceError(f"record {going.at}: the trace has changed since it was checked", going.at)
        call(self, record.pid, record.address, record.size)
        going.done()

    # ---- system calls ----

    def _born(self, label: int, pid: int) -> None:
        self.pids[label] = pid
        self.spaces[label] = self.kernel.processes.space[pid]

    def spawn(self, label: int, _address: int, _size: int) -> None:
        """SPAWN."""
        self._born(label, birth.spawn(self.kernel, None, None, None, False))

    def fork(self, label: int, child: int, _size: int) -> None:
        """FORK."""
        self._born(child, birth.fork(self.kernel, self.pids[label], self.kernel.fork_mode))

    def exit(self, label: int, code: int, _size: int) -> None:
        """EXIT."""
        table = self.kernel.processes
        others = bool(table.death_signal or table.stopped)  # who may die of it
        Process(self.kernel, self.pids[label]).exit(code & 0xFF)
        del self.pids[label]
        self.spaces[label] = 0
        if others:
            self._forget_dead()

    def _forget_dead(self) -> None:
        """Who died of something else than its own record has no memory any more."""
        table = self.kernel.processes
        for label, pid in self.pids.items():
            self.spaces[label] = table.space[pid] if table.alive(pid) else 0

    def wait(self, label: int, _address: int, _size: int) -> None:
        """WAIT."""
        parent = Process(self.kernel, self.pids[label])
        for child in list(self.kernel.processes.children(parent.pid)):
            if not self.kernel.processes.alive(child):
                parent.wait(child)

    def munmap(self, label: int, address: int, size: int) -> None:
        """MUNMAP."""
        mmap.munmap(use(self.kernel, self.pids[label], "munmap"), address, size)

    def mmap(self, label: int, address: int, size: int) -> None:
        """MMAP."""
        self._map(label, address, size, Operation.MMAP)

    def mmap_shared(self, label: int, address: int, size: int) -> None:
        """MMAP_SHARED."""
        self._map(label, address, size, Operation.MMAP_SHARED)

    def _map(self, label: int, address: int, size: int, how: Operation) -> None:
        mmap.mmap(use(self.kernel, self.pids[label], "mmap"), address, size, _RW, _MMAPS[how], None, 0)


_CALLS = {
    int(operation): getattr(_Runner, operation.name.lower()) for operation in Operation if operation > Operation.FETCH
}
