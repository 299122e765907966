"""One process as the files of its directory see it: what they share, each part asked for once and when it is needed."""

from __future__ import annotations

import errno
from functools import cached_property
from typing import Any

from vmemu.credentials import Credentials
from vmemu.errors import syscall_error
from vmemu.kernel import Image, Kernel
from vmemu.lifecycle.memory import faults, look, process_faults
from vmemu.limits import Limits
from vmemu.memory import view
from vmemu.memory.space import Space
from vmemu.pids import INIT, ZOMBIE
from vmemu.types import PAGE_SIZE, FaultCounts, MappingUsage

__all__ = ["TICK_NS", "Subject"]

TICK_NS = 10_000_000
"""Of the clock in which times are given (USER_HZ)."""


class Subject:
    """Process *pid* of *kernel*, or one task of it, for the time of one look; it holds the kernel's lock as little as
    any other."""

    def __init__(self, kernel: Kernel, pid: int, tid: int = 0, *, alone: bool = False, offset: int = 0) -> None:
        self.kernel = kernel
        self.pid = pid
        self.tid = tid or pid
        """Whose name, users, memory and state are shown; a process's are those of its first task."""
        self.alone = alone
        """Counts are the task's own and not the process's."""
        self._offset = offset

    def shown(self, pid: int) -> int:
        """A pid as it is printed: *offset* more than it is, 0 for nobody."""
        return pid + self._offset if pid else 0

    @property
    def zombie(self) -> bool:
        """It has exited: no memory is left to look at."""
        return self.kernel.processes.state[self.tid] == ZOMBIE

    @property
    def suspended(self) -> bool:
        """It waits for its vfork child."""
        return self.tid in self.kernel.processes.borrower

    @property
    def stopped(self) -> bool:
        """By a signal."""
        return self.pid in self.kernel.processes.stopped

    @property
    def name(self) -> bytes:
        """Of the task, at most 15 bytes."""
        return self.kernel.names.of(self.tid)

    @property
    def credentials(self) -> Credentials:
        """Its users, groups and capabilities."""
        return self.kernel.credentials.of(self.tid)

    @property
    def limits(self) -> Limits:
        """Its resource limits."""
        return self.kernel.limits.of(self.pid)

    @property
    def oom_score_adj(self) -> int:
        """From -1000 to 1000."""
        return self.kernel.processes.oom_adj[self.pid]

    @cached_property
    def space(self) -> Space | None:
        """Its memory, None if it is a zombie."""
        return None if self.zombie else look(self.kernel, self.tid, "proc")

    def living(self, file: str) -> Space:
        """Its memory. ESRCH if it is a zombie, as opening some files says."""
        if self.space is None:
            raise syscall_error("open", errno.ESRCH, f"{self.pid}/{file}: the process is a zombie")
        return self.space

    @cached_property
    def usages(self) -> list[MappingUsage]:
        """Its mappings with what of them is resident; none of a zombie."""
        return view.smaps(self.space) if self.space else []

    @cached_property
    def image(self) -> Image | None:
        """What it executes."""
        return self.kernel.images.of(self.tid)

    @cached_property
    def info(self) -> Any:
        """What its space holds, as the core says it. Requires one."""
        assert self.space is not None  # noqa: S101 - the caller asked
        return self.kernel.core.space_info(self.space.sid)

    @cached_property
    def words(self) -> list[int]:
        """The words of its space. Requires one."""
        assert self.space is not None  # noqa: S101 - the caller asked
        return self.kernel.core.words(self.space.sid)

    @cached_property
    def faults(self) -> tuple[int, int]:
        """Its own faults: (minor, major)."""
        if self.space is None:
            table = self.kernel.processes
            return table.minor[self.pid], table.major[self.pid]
        own = faults(self.kernel, self.tid) if self.alone else process_faults(self.kernel, self.pid)
        counts = FaultCounts(*own)
        return counts.minor, counts.major

    @property
    def rss(self) -> int:
        """Resident pages; 0 for a zombie."""
        return int(self.info.anon + self.info.file + self.info.shmem) if self.space else 0

    @property
    def page_tables(self) -> int:
        """Bytes of page tables (mm_pgtables_bytes()): VmPTE."""
        return view.page_tables(self.space) if self.space else 0

    @property
    def no_thp(self) -> bool:
        """PR_SET_THP_DISABLE. Requires a space."""
        assert self.space is not None  # noqa: S101 - the caller asked
        return bool(self.kernel.core.no_thp(self.space.sid, -1, "proc"))

    @property
    def swapped(self) -> int:
        """Pages in swap."""
        return int(self.info.swap) if self.space is not None else 0

    @property
    def badness(self) -> int | None:
        """oom_badness(): pages, None if the OOM killer may not choose it."""
        borrows = self.tid in self.kernel.processes.lender
        if self.space is None or self.pid == INIT or borrows or self.oom_score_adj == -1000:
            return None
        points = self.rss + self.swapped + self.page_tables // PAGE_SIZE
        return points + self.oom_score_adj * ((self.kernel.npages + self.kernel.swap_pages) // 1000)
