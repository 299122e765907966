"""Every exception that vmemu raises, and the one way from an errno to an exception.

Two families, as on a real machine: a *system call* fails with an errno (`SyscallError`), an *access* to memory
faults (`MemoryFault`). Running out of frames can happen in both, so `OutOfMemory` is a `SyscallError` with
ENOMEM and a `MemoryError` at once.
"""

from __future__ import annotations

import errno as _errno
import os
import signal

from vmemu.types import FaultKind

__all__ = [
    "BusError",
    "FaultsLost",
    "InvariantError",
    "KernelPanic",
    "KilledInExec",
    "MemoryFault",
    "OutOfMemory",
    "ProcessKilled",
    "SegmentationFault",
    "SwapError",
    "SyscallError",
    "TraceError",
    "VmemuError",
    "syscall_error",
]


class VmemuError(Exception):
    """Base of everything that vmemu raises on purpose."""


class SyscallError(VmemuError, OSError):
    """A system call failed: `.errno` as in errno(3), `.strerror`, and the call's name in the message.

    Where Python has a class for the errno (PermissionError, FileNotFoundError, ...) the exception is of that class too.
    """

    partial: bytes = b""
    """What the call had already given when it failed: mincore's vector up to the hole."""

    @property
    def name(self) -> str:
        """The errno's symbolic name, e.g. ``"EINVAL"``."""
        return _errno.errorcode.get(self.errno or 0, str(self.errno))

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.args, self.filename, isinstance(self, OutOfMemory))


class TraceError(VmemuError, ValueError):
    """What should be a trace is none, or has a bad record: `.index` says which, None if it is not about one."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message, index)
        self.index = index

    def __str__(self) -> str:
        return str(self.args[0])


class FaultsLost(UserWarning):
    """A fault log was full: its oldest records were overwritten before they were read."""


class OutOfMemory(SyscallError, MemoryError):
    """No free frame was left in the emulated machine (or no memory in the host for its bookkeeping); errno is
    ENOMEM."""

    cgroup: int | None = None
    """What had no frame left: 0 the machine, else the number of a memory cgroup; None: it was the host's memory, or an
    access."""


class SwapError(SyscallError):
    """The machine's swap device failed under whatever access or call came first: errno EIO, in the message the device
    and why. What can't be written stays in memory, and nothing is written to it any more; what can't be read back can
    be asked for again, where Linux would send SIGBUS."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)

    def __reduce__(self) -> tuple[object, ...]:
        return SwapError, self.args


class KernelPanic(VmemuError):
    """Linux would have stopped the machine: memory ran out and nobody could be killed, or ``vm.panic_on_oom`` is set.
    `.report` is the OOM report. The machine goes on here, as it does after OutOfMemory."""

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report

    def __str__(self) -> str:
        return f"Kernel panic - not syncing: {self.args[0]}"


class InvariantError(VmemuError, AssertionError):
    """`Machine.verify()` found the machine inconsistent: a bug in vmemu, never a user's mistake."""


class MemoryFault(VmemuError):
    """An access that the machine refused: `.pid`, `.address` (first byte that could not be accessed), `.access`
    (``"read"``, ``"write"`` or ``"fetch"``) and `.kind` (a fatal `FaultKind`). The process lives on, as if it
    had a handler."""

    signal: signal.Signals = signal.SIGSEGV

    def __init__(self, pid: int, address: int, access: str, kind: FaultKind) -> None:
        super().__init__(pid, address, access, kind)
        self.pid = pid
        self.address = address
        self.access = access
        self.kind = kind

    def __str__(self) -> str:
        code = self.kind.name.replace("BUS_", "BUS/").replace("SEGV_", "SEGV/")
        return f"pid {self.pid}: {self.access} at {self.address:#x}: {self.signal.name} ({code})"


class SegmentationFault(MemoryFault):
    """SIGSEGV: nothing is mapped there (SEGV_MAPERR) or the mapping forbids the access (SEGV_ACCERR)."""


class BusError(MemoryFault):
    """SIGBUS, BUS_ADRERR: the mapping is there, but the file ends before it."""

    signal = signal.SIGBUS


class ProcessKilled(VmemuError):
    """The process that made the call was killed in it (by the OOM killer, or an execve that could not go back): `.pid`,
    `.signal`."""

    def __init__(self, pid: int, signum: int) -> None:
        super().__init__(pid, signum)
        self.pid = pid
        self.signal = signal.Signals(signum)

    def __str__(self) -> str:
        return f"pid {self.pid} was killed by {self.signal.name}"


class KilledInExec(ProcessKilled, SyscallError):
    """execve failed when the old memory was gone already, and Linux killed the process: `.errno` is what it had and
    dropped."""

    def __init__(self, pid: int, signum: int, number: int, text: str) -> None:
        OSError.__init__(self, number, text)
        self.pid = pid
        self.signal = signal.Signals(signum)

    def __str__(self) -> str:
        return f"{ProcessKilled.__str__(self)}: {self.strerror}"

    def __reduce__(self) -> tuple[object, ...]:
        return KilledInExec, (self.pid, int(self.signal), self.errno, self.strerror)


class _PermissionError(SyscallError, PermissionError):
    pass


class _FileNotFoundError(SyscallError, FileNotFoundError):
    pass


class _FileExistsError(SyscallError, FileExistsError):
    pass


class _BlockingIOError(SyscallError, BlockingIOError):
    pass


class _ChildProcessError(SyscallError, ChildProcessError):
    pass


class _ProcessLookupError(SyscallError, ProcessLookupError):
    pass


class _IsADirectoryError(SyscallError, IsADirectoryError):
    pass


class _NotADirectoryError(SyscallError, NotADirectoryError):
    pass


_BY_ERRNO: dict[int, type[SyscallError]] = {
    _errno.EPERM: _PermissionError,
    _errno.EACCES: _PermissionError,
    _errno.ENOENT: _FileNotFoundError,
    _errno.EEXIST: _FileExistsError,
    _errno.EAGAIN: _BlockingIOError,
    _errno.ECHILD: _ChildProcessError,
    _errno.ESRCH: _ProcessLookupError,
    _errno.EISDIR: _IsADirectoryError,
    _errno.ENOTDIR: _NotADirectoryError,
}
for _cls in set(_BY_ERRNO.values()):  # shown as SyscallError; the builtin base is for `except`
    _cls.__name__ = _cls.__qualname__ = "SyscallError"


def syscall_error(call: str, number: int, why: str = "", filename: str | None = None) -> SyscallError:
    """The exception for a failed system call.

    *call* is the system call's name, *number* the errno, *why* what exactly was wrong (shown after the errno's text).
    """
    text = f"{call}: {os.strerror(number)}"
    if why:
        text += f" ({why})"
    cls = _BY_ERRNO.get(number, SyscallError)
    return cls(number, text, filename) if filename is not None else cls(number, text)


def _again(args: tuple[int, str], filename: str | None, memory: bool) -> SyscallError:
    """A pickled one: the classes by errno have no name of their own under which to be found."""
    cls = OutOfMemory if memory else _BY_ERRNO.get(args[0], SyscallError)
    return cls(*args, filename) if filename is not None else cls(*args)


_OURS = (VmemuError, TypeError, ValueError, OverflowError, NotImplementedError)


def own(error: BaseException) -> bool:
    """It was raised by a statement of vmemu's, not by a signal handler that ran in the middle of one."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = "" if at is None else str(at.tb_frame.f_globals.get("__name__"))
    return isinstance(error, _OURS) and where.startswith("vmemu.")
