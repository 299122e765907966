"""Signals, signal(7): what they do by default, and what a process wants instead, an immutable record."""

from __future__ import annotations

import errno
import signal
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from vmemu.errors import syscall_error

__all__ = ["ALWAYS", "CORES", "NOTHING", "SIGNALS", "STOPS", "Dispositions", "bit", "in_order", "listed", "mask"]

SIGNALS = 64
SA_NOCLDSTOP = 1
SA_NOCLDWAIT = 2


def bit(sig: int) -> int:
    """The signal in a mask, as /proc/PID/status has them."""
    return 1 << (sig - 1)


def mask(signals: Iterable[int]) -> int:
    """All of them."""
    return sum(bit(sig) for sig in signals)


ALWAYS = mask((signal.SIGKILL, signal.SIGSTOP))
"""Can't be caught, blocked or ignored (SIG_KERNEL_ONLY_MASK)."""
STOPS = mask((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
"""Stop the process by default."""
NOTHING = mask((signal.SIGCONT, signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG))
"""Do nothing by default; SIGCONT has continued the process when it was sent."""
SYNCHRONOUS = mask((signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP, signal.SIGFPE, signal.SIGSYS))
"""Come before others."""
CORES = SYNCHRONOUS | mask((signal.SIGQUIT, signal.SIGABRT, signal.SIGXCPU, signal.SIGXFSZ))
"""End the process by default and leave a core."""


def listed(mask_: int) -> set[int]:
    """The signals of a mask."""
    return {sig for sig in range(1, SIGNALS + 1) if mask_ & bit(sig)}


def in_order(pending: int) -> int:
    """Of the pending signals the one that is delivered first (next_signal())."""
    first = pending & SYNCHRONOUS or pending
    return (first & -first).bit_length()


@dataclass(frozen=True, slots=True)
class Dispositions:
    """What a process does with each signal. The default is the default action for all."""

    ignored: int = 0
    """Mask of those set to SIG_IGN."""
    caught: int = 0
    """Mask of those with a handler."""
    handlers: tuple[tuple[int, Hashable], ...] = ()
    """(signal, handler) of those, in order."""
    nocldstop: bool = False
    nocldwait: bool = False
    """SA_NOCLDSTOP and SA_NOCLDWAIT of SIGCHLD."""

    def handler(self, sig: int) -> Hashable:
        """SIG_DFL, SIG_IGN, or what was set."""
        if self.ignored & bit(sig):
            return signal.SIG_IGN
        return dict(self.handlers).get(sig, signal.SIG_DFL)

    def ignores(self, sig: int) -> bool:
        """It is thrown away when it is sent, by choice or by default (sig_handler_ignored())."""
        return bool((self.ignored | NOTHING & ~self.caught) & bit(sig))

    def default(self, sig: int) -> bool:
        """Its default action is what happens."""
        return not (self.ignored | self.caught) & bit(sig)

    def replace(self, sig: int, handler: Hashable, flags: int) -> Dispositions:
        """sigaction(2). EINVAL for what is no signal, SIGKILL and SIGSTOP."""
        if not 1 <= sig <= SIGNALS or bit(sig) & ALWAYS:
            raise syscall_error("sigaction", errno.EINVAL, f"signal {sig}")
        ignored, caught = self.ignored & ~bit(sig), self.caught & ~bit(sig)
        handlers = tuple(pair for pair in self.handlers if pair[0] != sig)
        if handler == signal.SIG_IGN:
            ignored |= bit(sig)
        elif handler != signal.SIG_DFL:
            caught |= bit(sig)
            handlers = tuple(sorted((*handlers, (sig, handler)), key=lambda pair: pair[0]))
        child = (self.nocldstop, self.nocldwait)
        if sig == signal.SIGCHLD:
            child = (bool(flags & SA_NOCLDSTOP), bool(flags & SA_NOCLDWAIT))
        return Dispositions(ignored, caught, handlers, *child)

    def after_exec(self) -> Dispositions:
        """Handlers are gone, what is ignored stays (flush_signal_handlers())."""
        return Dispositions(self.ignored)
