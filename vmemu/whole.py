"""Calls that happen as a whole or not at all, whatever interrupts them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from vmemu.pids import ProcessTable

__all__ = ["Mended", "whole"]


class Mended(Protocol):
    """What has a process table that can be mended: the kernel, and its control groups."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """The machine's."""

    @property
    def processes(self) -> ProcessTable:
        """The table."""

    @property
    def interrupted(self) -> Callable[[BaseException], None]:
        """Completes or takes back what a call had begun, see `Kernel.interrupted`."""


_M = TypeVar("_M", bound=Mended)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def whole(call: Callable[Concatenate[_M, _P], _R]) -> Callable[Concatenate[_M, _P], _R]:
    """For a call that changes what processes or control groups there are, or what they are: it has the lock, and
    whatever interrupts it, it has happened as a whole or not at all. Short calls that are made often do the same by
    themselves."""

    @wraps(call)
    def made(of: _M, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with of.lock:
            try:
                return call(of, *args, **kwargs)
            except BaseException as error:
                table = of.processes
                table.torn, table.plain, table.quiet = True, False, False
                of.interrupted(error)
                raise

    return made
