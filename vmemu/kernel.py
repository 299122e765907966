"""What all calls of one machine share: the core, the lock, the process table, the files, the settings.

No policy is here. Machine, Process and the calls on memory are handles over one Kernel.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vmemu._native import Closed, Core
from vmemu.cgroups import Cgroups
from vmemu.columns import Watched
from vmemu.credentials import Credentials
from vmemu.dispositions import Dispositions
from vmemu.errors import own
from vmemu.files import FileTable
from vmemu.interned import Interned
from vmemu.limits import Limits
from vmemu.pids import ProcessTable
from vmemu.swap import Paging
from vmemu.types import ForkMode, Overcommit

__all__ = ["Image", "Kernel", "SharedSpace", "Stops"]


def _nothing() -> None:
    """There is nothing yet to mend."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a process executes, as execve left it; shared by all that forked from it."""

    path: str
    exec_fn: bytes
    argv: tuple[bytes, ...]
    envp: tuple[bytes, ...]
    auxv: tuple[tuple[int, int], ...]
    stack_pointer: int
    entry_point: int


@dataclass(slots=True)
class SharedSpace:
    """Who uses a space that several tasks use, and which faults are whose: what the space counts is of the task that
    used it last, like a CPU's registers; the others' counts lie here."""

    current: int
    saved: dict[int, list[int]]
    """By task, `current` too, whose entry is stale."""


class Stops(Protocol):
    """What goes on until it is stopped."""

    def stop(self) -> None:
        """Ends it."""


class Kernel:
    """The state of one machine. `lock` is held by every call that takes more than one step."""

    def __init__(
        self,
        core: Core,
        *,
        npages: int,
        fork_mode: ForkMode,
        overcommit: Overcommit,
        overcommit_ratio: int,
        overcommit_kbytes: int,
        rng: random.Random | None,
        max_map_count: int,
        thp: str,
    ) -> None:
        self.core = core
        self.lock = threading.RLock()
        """Short calls that are made often use acquire() and release(): `with` costs twice as much."""
        self.files = FileTable(core, self.lock)
        self.processes = table = ProcessTable()
        self.images = Interned[Image | None](None, table.image, table.state)
        self.names = Interned(b"", table.name, table.state)
        """Names of tasks (comm), at most 15 bytes."""
        self.credentials = Interned(Credentials(), table.credentials, table.state)
        self.signals = Interned(Dispositions(), table.signals, table.state)
        self.limits = Interned(Limits.at_boot(npages), table.limits, table.state)
        self.signalled: list[int] = []
        """Processes that may have signals to receive."""
        self.cgroups = Cgroups(core, table, self.lock)
        self.out_of_memory: Callable[[Kernel, int, int], bool] | None = None
        """Kills somebody when no frame is left (of a control group, by number) for a process -> whether it did; None:
        the access or the call fails."""
        self.panic_on_oom = 0
        self.oom_kill_allocating_task = 0
        self.oom_kills = 0
        """Processes that it has chosen."""
        self.oom_listed = (0, 0)
        """Since when on its clock, and how many of the last reports had a long table."""
        self.oom_reports: deque[Any] = deque(maxlen=1000)
        self.users: dict[int, int] = {}
        """By real uid: how many tasks it has, zombies included (UCOUNT_RLIMIT_NPROC)."""
        self.clock_ns = 0
        """Time since boot. It passes when processes are made, and when the user says so."""
        self.npages = npages
        self.fork_mode = fork_mode
        self.overcommit = overcommit
        self.overcommit_ratio = overcommit_ratio
        self.overcommit_kbytes = overcommit_kbytes
        self.admin_reserve_kbytes = min(npages * 4 // 32, 8 << 10)
        self.user_reserve_kbytes = min(npages * 4 // 32, 128 << 10)
        """What Overcommit.NEVER keeps for who has CAP_SYS_ADMIN, and from a process that has much."""
        self.rng = rng
        """Source of address randomisation, None without."""
        self.max_map_count = max_map_count
        self.pool_pages = 0
        """Pages of 4 KiB in the pools of huge pages."""
        self.thp = thp
        """Transparent huge pages: "never", "madvise" or "always"."""
        self.soft_dirty: bool | None = None
        """What is soft-dirty shows; None: not yet, but from the first clear_refs on."""
        self.contents = True
        """Frames hold bytes."""
        self.zero_pfn: int | None = None
        """Frame of the zero page."""
        self.shared: Watched[SharedSpace] = table.watch(suspending=True)
        """By id: the spaces that several tasks use."""
        self.cgroups.owners = lambda sid: self.shared[sid].saved if sid in self.shared else ()
        self.cgroups.interrupted = self.interrupted
        self.log_owners: Any = None
        """While faults are recorded: process by id of its space, uint32 array that is lent to the core."""
        self.paging: Paging | None = None
        """How memory is reclaimed; None: not at all."""
        self.log: Stops | None = None
        """What ends that."""
        self.plans: dict[Any, Any] = {}
        """What execve keeps, by request."""
        self.mend: Callable[[], None] = _nothing
        """Makes everything agree again, see `lifecycle.mending`."""
        self.threads_faults: Watched[Sequence[int]] = table.watch()
        """By pid: faults by kind of those of its tasks that have ended."""

    @property
    def swap_pages(self) -> int:
        """Pages of the swap device."""
        return self.paging.device.npages if self.paging is not None and self.paging.device is not None else 0

    def own(self, sid: int, pid: int) -> None:
        """From now on the faults of a space are recorded as those of process *pid*."""
        owners = self.log_owners  # once: a log that is collected in between takes it away
        if owners is not None:
            owners[sid] = pid

    def interrupted(self, error: BaseException) -> None:
        """A call that makes or ends processes raises *error*, and has set `ProcessTable.torn`. Unless it is an error of
        the call's own, which has cleaned up, it came from a signal handler or the like, at whatever point: then what
        was half done is completed or taken back. The lock is held, but for who was interrupted waiting for it."""
        lock: Any = self.lock
        if not lock._is_owned():
            lock.acquire()  # who called gives it back
        if self.closed:
            return
        if own(error) and not self.processes.mending:  # else that was interrupted
            self.processes.calm()
        else:
            self.mend()

    @property
    def closed(self) -> bool:
        """The machine was closed."""
        return isinstance(self.core, Closed)

    def close(self) -> None:
        """Lets go of the core and of the host's files; whatever is asked of the machine from now on raises."""
        with self.lock:
            if self.log is not None:
                self.log.stop()
            device = self.paging.device if self.paging is not None else None
            if device is not None:
                self.core.swap_lend(None, -1)
            closed: Any = Closed()
            if not self.closed:
                self.cgroups.close(closed)
            self.core = self.processes = self.cgroups = closed
            self.files.close(closed)
            if device is not None:
                device.close()
            self.paging = None
