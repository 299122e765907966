"""What is done where a frame is missing: reclaim, else the access or the call fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vmemu._native import Trap
from vmemu.errors import OutOfMemory
from vmemu.kernel import Kernel
from vmemu.memory.reclaim import shrink

__all__ = ["call", "relieve"]

_T = TypeVar("_T")
_BATCH = 32
"""Frames that reclaim is asked for at once (SWAP_CLUSTER_MAX)."""


def relieve(kernel: Kernel, pid: int, trap: Trap) -> bool:
    """An access of *pid* stopped for want of a frame -> whether to make it again."""
    return shrink(kernel, _BATCH) > 0


def call(kernel: Kernel, pid: int, function: Callable[..., _T], *args: object) -> _T:
    """The result of a system call that does all or nothing, made again as long as frames that it lacks can be had."""
    wanted = _BATCH
    while True:
        try:
            return function(*args)
        except OutOfMemory:
            if not shrink(kernel, wanted):
                raise
        wanted *= 2
