"""Tables of calls and the errno that Linux gives: what the tests of this directory share."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from machines import ANON, PAGE, RW, SHARED, A, R, machine, snapshot

from vmemu import File, Machine, Map, Process, SyscallError

TOP = 0x7FFF_FFFF_F000
"""End of the user half."""
HUGE = (1 << 64) - 1
KERNEL = 0xFFFF_8000_0000_0000
RO_SHARED, HOLE, GROWS = A + (1 << 24), A + (2 << 24), A + (5 << 24)
"""In the `World`: a shared mapping of a read-only file; nothing; a stack."""


class World:
    """A process with four pages of written private memory at A, a hole behind them, then four more; a shared
    mapping of a read-only file, a private one, shared memory, a stack. `tmp` is in memory, `host` is read-only."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.p: Process = m.spawn()
        self.tmp: File = m.create_file("tmp", b"t" * 4 * PAGE)
        self.host: File = m.open_file(Path(__file__))
        self.p.mmap(A, 4 * PAGE, RW, ANON | Map.FIXED)
        self.p.write(A, b"a" * 4 * PAGE)
        self.p.mmap(A + 5 * PAGE, 4 * PAGE, RW, ANON | Map.FIXED)
        self.p.mmap(RO_SHARED, PAGE, R, Map.SHARED | Map.FIXED, self.host)
        self.shared = self.p.mmap(A + (1 << 25) + (1 << 23), 4 * PAGE, RW, SHARED | Map.FIXED)
        self.private = self.p.mmap(A + (1 << 25) + (1 << 22), 4 * PAGE, RW, Map.PRIVATE | Map.FIXED, self.tmp)
        self.p.mmap(GROWS, 4 * PAGE, RW, ANON | Map.FIXED | Map.GROWSDOWN)


@contextmanager
def world(**options: Any) -> Iterator[World]:
    """A world that verifies at the end."""
    with machine(**options) as m:
        yield World(m)


def outcome(call: Callable[[World], Any], changes: bool = False) -> str:
    """The errno's name, or ``"ok"``; a failed call must have changed nothing unless it may (*changes*)."""
    with world() as w:
        before = snapshot(w.m, w.tmp)
        try:
            call(w)
        except SyscallError as error:
            assert error.errno is not None
            assert errno.errorcode[error.errno] == error.name
            assert error.strerror
            if not changes:
                assert snapshot(w.m, w.tmp) == before
            return {"ENOTSUP": "EOPNOTSUPP"}.get(error.name, error.name)  # one number, two names
        return "ok"
