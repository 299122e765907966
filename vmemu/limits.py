"""Resource limits, getrlimit(2): an immutable record that processes share until one of them changes its own."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

__all__ = ["RLIM_INFINITY", "Limits", "Resource"]

RLIM_INFINITY = 0xFFFF_FFFF_FFFF_FFFF
"""No limit; -1 in a signed rlim_t."""


class Resource(IntEnum):
    """What is limited, numbered as RLIMIT_* of Linux (and of the `resource` module on Linux)."""

    CPU = 0
    FSIZE = 1
    DATA = 2
    STACK = 3
    CORE = 4
    RSS = 5
    NPROC = 6
    NOFILE = 7
    MEMLOCK = 8
    AS = 9
    LOCKS = 10
    SIGPENDING = 11
    MSGQUEUE = 12
    NICE = 13
    RTPRIO = 14
    RTTIME = 15


_NONE = (RLIM_INFINITY, RLIM_INFINITY)


@dataclass(frozen=True, slots=True)
class Limits:
    """(soft, hard) by Resource; inherited by fork, kept by execve."""

    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def at_boot(cls, npages: int) -> Self:
        """Those of the first process of a machine with *npages* of RAM (INIT_RLIMITS, and fork_init(): half of the
        threads for which an eighth of RAM holds stacks)."""
        pairs = [_NONE] * len(Resource)
        threads = min(max(npages * 4096 // (16384 * 8), 20), 0x3FFF_FFFF) // 2
        pairs[Resource.STACK] = (8 << 20, RLIM_INFINITY)
        pairs[Resource.CORE] = (0, RLIM_INFINITY)
        pairs[Resource.NPROC] = pairs[Resource.SIGPENDING] = (threads, threads)
        pairs[Resource.NOFILE] = (1024, 4096)
        pairs[Resource.MEMLOCK] = (8 << 20, 8 << 20)
        pairs[Resource.MSGQUEUE] = (819200, 819200)
        pairs[Resource.NICE] = pairs[Resource.RTPRIO] = (0, 0)
        return cls(tuple(pairs))

    def __getitem__(self, resource: int) -> tuple[int, int]:
        """(soft, hard) of a resource."""
        return self.pairs[resource]

    def soft(self, resource: int) -> int:
        """What is enforced; RLIM_INFINITY for no limit."""
        return self.pairs[resource][0]

    def replace(self, resource: int, soft: int, hard: int) -> Self:
        """The same with one resource limited otherwise. Whether that is allowed, the caller has checked."""
        pairs = list(self.pairs)
        pairs[resource] = (soft, hard)
        return type(self)(tuple(pairs))
