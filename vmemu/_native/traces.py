"""Runs of traces, and the fault log."""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from vmemu._native.border import Handle, Trap, ffi, lib, to_trap

__all__ = ["Record", "TraceCalls", "TraceRun"]


class Record(NamedTuple):
    """One record of a trace."""

    address: int
    size: int
    pid: int
    operation: int


class TraceRun:
    """A trace on its way: the cursor, and what it is lent (records, spaces by label, kinds, counts)."""

    __slots__ = ("_m", "_n", "_nlabels", "_run", "_trap", "counts", "kinds", "records", "spaces")

    def __init__(self, m: Any, records: Any, n: int, spaces: Any, kinds: Any, counts: Any) -> None:
        self._m, self._n = m, n
        self.records = ffi.from_buffer("struct vmemu_record[]", records)
        self.spaces = ffi.from_buffer("uint32_t[]", spaces, require_writable=True)
        self._nlabels = len(self.spaces)
        self.kinds = ffi.NULL if kinds is None else ffi.from_buffer("uint8_t[]", kinds, require_writable=True)
        self.counts = ffi.from_buffer("uint64_t[]", counts, require_writable=True)
        self._run = ffi.new("struct vmemu_run *")
        self._trap = ffi.new("struct vmemu_trap *")

    def go(self) -> Trap:
        """Goes on until a decision is needed, reason 0 at the end. ESRCH for a label of no space."""
        rc = lib.vmemu_machine_run(
            self._m,
            self.records,
            self._n,
            self.spaces,
            self._nlabels,
            self.kinds,
            self.counts,
            self._run,
            self._trap,
        )
        if rc == -errno.ESRCH:
            rc = -errno.EBADF  # which the funnel knows as a process that has ended
        return to_trap(rc, self._trap)

    @property
    def at(self) -> int:
        """Index of the record that is next, or under way."""
        return int(self._run.at)

    @property
    def record(self) -> Record:
        """That record."""
        r = self.records[self._run.at]
        return Record(r.address, r.size, r.pid, r.operation)

    def done(self, kind: int | None = None) -> None:
        """That record is done: an access that came to a fatal *kind*, or a system call."""
        if kind is not None:
            self.counts[kind] += 1
            if self.kinds != ffi.NULL:
                self.kinds[self._run.at] = kind
        self._run.at += 1
        self._run.bytes = self._run.worst = 0


class TraceCalls(Handle):
    """See csrc/vmemu_cdef.h."""

    __slots__ = ()

    @staticmethod
    def trace_check(records: Any, n: int, alive: Any) -> tuple[int, int]:
        """(what is wrong, index of the record), (0, 0) for nothing; *alive* (uint8 by label) is as it is after the
        trace."""
        bad = ffi.new("uint64_t *")
        rows = ffi.from_buffer("struct vmemu_record[]", records)
        labels = ffi.from_buffer("uint8_t[]", alive, require_writable=True)
        return int(lib.vmemu_trace_check(rows, n, labels, len(labels), bad)), int(bad[0])

    def trace(self, records: Any, n: int, spaces: Any, kinds: Any, counts: Any) -> TraceRun:
        """A run of a trace, at its beginning."""
        return TraceRun(self._m, records, n, spaces, kinds, counts)

    def log_start(self, ring: Any, owners: Any) -> bool:
        """Records faults in *ring* (32 bytes each), and whose they are by *owners* (uint32 by space). False: it is on.
        Both are lent until the log is stopped or this is gone."""
        rows = ffi.from_buffer("struct vmemu_fault[]", ring, require_writable=True)
        by_space = ffi.from_buffer("uint32_t[]", owners)
        if lib.vmemu_machine_log(self._m, rows, len(rows), by_space, len(by_space)):
            return False
        self._lent = (rows, by_space)
        return True

    def log_stop(self) -> None:
        """Stops that."""
        lib.vmemu_machine_log(self._m, ffi.NULL, 0, ffi.NULL, 0)
        self._lent = None

    def log_sort(self, clear: bool) -> tuple[int, int]:
        """(records in the ring, in order from now on; sequence number of the next one); then *clear* empties it."""
        out = ffi.new("struct vmemu_log_info *")
        lib.vmemu_machine_log_sort(self._m, clear, out)
        return int(out.n), int(out.next)

    def log_refused(self, space: int, address: int, access: int, kind: int) -> None:
        """Records what an access came to that was not made after a trap; OOM is counted."""
        lib.vmemu_space_log(self._m, space, address, access, kind)
