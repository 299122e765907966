"""The machine: RAM, the zero page, settings, files, processes, and what they add up to."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Dictionary
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vmemu import traces
from vmemu._native import Core
from vmemu._native import constants as c
from vmemu.cgroupfs import CgroupFS
from vmemu.crowd import exit_many, usage
from vmemu.errors import VmemuError
from vmemu.faultlog import FaultLog
from vmemu.handles import ProcessMap
from vmemu.kernel import Kernel
from vmemu.ksm import Ksm
from vmemu.lifecycle import birth
from vmemu.lifecycle.check import check
from vmemu.lifecycle.death import kill_all
from vmemu.memory import hugetlb
from vmemu.memory.args import integer
from vmemu.memory.commit import commit_limit
from vmemu.memory.reclaim import start_paging, trim
from vmemu.memory.shortage import make_room, squeeze
from vmemu.oom import OomReport, out_of_memory
from vmemu.openfile import File
from vmemu.pids import INIT
from vmemu.process import Process
from vmemu.procfs import ProcFS
from vmemu.procfs.vmstat import vmstat
from vmemu.swap import POLICIES, HostFile, HostMemory, SwapDevice
from vmemu.types import (
    PAGE_SIZE,
    FaultCounts,
    ForkMode,
    FrameStats,
    HugePool,
    MemInfo,
    Overcommit,
    parse_size,
    size_word,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from vmemu.traces import RunResult

__all__ = ["Machine"]

_LEAST_MEMORY = 16 * PAGE_SIZE
_MOST_MEMORY = 16 << 40


def _pools(hugepages: Dictionary[int | str, int]) -> dict[int, int]:
    """Page size in bytes -> number of pages, the largest first."""
    if not isinstance(hugepages, Dictionary):
        raise TypeError(f"hugepages: page sizes with their numbers are needed, not {type(hugepages).__name__}")
    pools: dict[int, int] = {}
    for size, count in hugepages.items():
        page = parse_size(size, "hugepages")
        if page not in (hugetlb.HUGE_PAGE, hugetlb.GIANT_PAGE):
            raise ValueError(f"hugepages: pages are of 2MiB or 1GiB, not {size!r}")
        if integer(count, "Machine", "hugepages") < 0:
            raise ValueError(f"hugepages: {count} pages of {size!r}")
        pools[page] = pools.get(page, 0) + count
    return dict(sorted(pools.items(), reverse=True))


def _overcommit(mode: Overcommit | int) -> Overcommit:
    try:
        return Overcommit(mode)
    except ValueError:
        raise ValueError(f"overcommit: {mode!r} is not one of 0, 1, 2") from None


class Machine:
    """A machine with *memory* bytes of RAM (int, or text such as ``"1GiB"``). A context manager: leaving it closes it.

    *fork_mode* is what fork() does unless told otherwise. *zero_page* lets reads of untouched memory share one
    frame of zeros;
    *reuse* lets the last owner of a frame write it in place; *fault_around* is how many pages a read fault on
    a file may
    map (1, as 0: just the one). These can be switched off to see what they are good for. *contents* off: frames hold no
    bytes, everything else is exact. *overcommit* decides what may be promised;
    with Overcommit.NEVER that is *overcommit_ratio* percent of RAM, or *overcommit_kbytes* KiB if that is not 0.
    *aslr* randomises addresses of executed programs, from *seed*. *max_map_count* bounds the mappings of a process.

    *thp*: transparent huge pages ``"never"``, where a mapping asks for them (``"madvise"``, MADV_HUGEPAGE), or
    ``"always"``.
    *soft_dirty*: whether pagemap's bit 55 and smaps' ``sd`` show, as on a kernel with CONFIG_MEM_SOFT_DIRTY; None: from
    the moment somebody uses it, by writing 4 to clear_refs or by `Process.dirty_pages`.
    *hugepages* sets huge pages aside for MAP_HUGETLB, such as ``{"2MiB": 64, "1GiB": 1}``.
    *swap* bytes are a swap device in the host's memory, or in *swap_file*, an existing file of the host (all of it
    unless *swap* says less). When few frames are free, some are reclaimed, *swappiness* (0 to 200) of 200 from
    anonymous rather than file memory, by *policy*: ``"clock"`` (the default with swap), ``"fifo"``, ``"random"``,
    ``"lru"`` or ``"aging"``. Without swap and policy nothing is reclaimed. SyscallError as swapon(2) for a file that is
    too small or can't be written; SwapError from any access or call when the device fails later.
    *oom*: ``"raise"`` raises OutOfMemory where a frame was missing; ``"kill"`` runs Linux's OOM killer and goes on,
    ProcessKilled if the caller was chosen, KernelPanic if nobody can be (of a control group at its limit: OutOfMemory).
    """

    def __init__(
        self,
        memory: int | str = "1GiB",
        swap: int | str = 0,
        fork_mode: ForkMode | int = ForkMode.COW,
        zero_page: bool = True,
        fault_around: int = 16,
        contents: bool = True,
        overcommit: Overcommit | int = Overcommit.HEURISTIC,
        oom: str = "raise",
        thp: str = "never",
        aslr: bool = False,
        seed: int = 0,
        *,
        reuse: bool = True,
        overcommit_ratio: int = 50,
        overcommit_kbytes: int = 0,
        max_map_count: int = 65530,
        soft_dirty: bool | None = None,
        hugepages: Dictionary[int | str, int] | None = None,
        swap_file: str | os.PathLike[str] | None = None,
        swappiness: int = 60,
        policy: str | None = None,
    ) -> None:
        size = parse_size(memory, "memory")
        if not _LEAST_MEMORY <= size <= _MOST_MEMORY:
            raise ValueError(f"memory: {memory!r} is not between 64KiB and 16TiB")
        if not 0 <= integer(fault_around, "Machine", "fault_around") <= 512:
            raise ValueError(f"fault_around: {fault_around} is not between 0 and 512 pages")
        for name, number in (
            ("overcommit_ratio", overcommit_ratio),
            ("overcommit_kbytes", overcommit_kbytes),
            ("max_map_count", max_map_count),
        ):
            if integer(number, "Machine", name) < 0:
                raise ValueError(f"{name}: {number} is negative")
        for name, value, known in (("oom", oom, ("raise", "kill")), ("thp", thp, ("never", "madvise", "always"))):
            if value not in known:
                raise ValueError(f"{name}: {value!r} is not one of {', '.join(map(repr, known))}")
        for name, flag in (("zero_page", zero_page), ("contents", contents), ("aslr", aslr), ("reuse", reuse)):
            if not isinstance(flag, bool | int):
                raise TypeError(f"{name}: {flag!r} is not a bool")
        seed = integer(seed, "Machine", "seed")
        swap_bytes = parse_size(swap, "swap")
        if 0 < swap_bytes < PAGE_SIZE or swap_bytes > _MOST_MEMORY:
            raise ValueError(f"swap: {swap!r} is not between 4KiB and 16TiB")
        if not 0 <= integer(swappiness, "Machine", "swappiness") <= 200:
            raise ValueError(f"swappiness: {swappiness} is not between 0 and 200")
        if policy is not None and policy not in POLICIES:
            raise ValueError(f"policy: {policy!r} is not one of {', '.join(map(repr, POLICIES))}")
        device: SwapDevice | None = None
        if swap_file is not None:
            device = HostFile(swap_file, swap_bytes)
        elif swap_bytes:
            device = HostMemory(swap_bytes)
        options = (c.OPT_ZERO_PAGE if zero_page else 0) | (c.OPT_REUSE if reuse else 0)
        options |= c.OPT_CONTENTS if contents else 0
        options |= {"never": 0, "madvise": c.OPT_THP_MADVISE, "always": c.OPT_THP_ALWAYS}[thp]
        options |= c.OPT_RELIEVE if oom == "kill" or device is not None or policy is not None else 0
        npages = size // PAGE_SIZE
        pools = _pools({} if hugepages is None else hugepages)
        self._kernel = Kernel(
            Core(npages, options, max(1, fault_around)),
            npages=npages,
            fork_mode=ForkMode(fork_mode),
            overcommit=_overcommit(overcommit),
            overcommit_ratio=overcommit_ratio,
            overcommit_kbytes=overcommit_kbytes,
            rng=random.Random(seed) if aslr else None,
            max_map_count=max_map_count,
            thp=thp,
        )
        for page, count in pools.items():
            for _ in range(count):
                if not self._kernel.core.pool_grow(page == hugetlb.GIANT_PAGE):
                    raise ValueError(f"hugepages: {count} of {page >> 20} MiB do not fit in {memory!r} of memory")
            self._kernel.pool_pages += page // PAGE_SIZE * count
        self._kernel.contents = bool(contents)
        self._kernel.out_of_memory = out_of_memory if oom == "kill" else None
        self._kernel.files.make_room = partial(make_room, self._kernel, INIT)
        if device is not None or policy is not None:
            start_paging(self._kernel, device, swappiness, policy or POLICIES[0], seed)
        self._kernel.soft_dirty = None if soft_dirty is None else bool(soft_dirty)
        self._kernel.core.show_soft_dirty(bool(soft_dirty))
        self._kernel.zero_pfn = self._kernel.core.zero_page() if zero_page else None
        self._settings: dict[str, Any] = {
            "memory": size,
            "swap": swap_bytes,
            "swap_file": None if swap_file is None else os.fsdecode(swap_file),
            "zero_page": bool(zero_page),
            "fault_around": int(fault_around),
            "reuse": bool(reuse),
            "contents": bool(contents),
            "oom": oom,
            "aslr": bool(aslr),
            "seed": seed,
            "soft_dirty": soft_dirty,
            "hugepages": {size_word(page): int(count) for page, count in pools.items()},
        }
        self.init = Process(self._kernel, birth.boot(self._kernel))
        """Process 1: adopts orphans and reaps its children at once."""
        self.processes = ProcessMap(self._kernel, Process)
        """pid -> Process, zombies included; a live view."""
        self.ksm = Ksm(self._kernel)
        """Same-page merging: `m.ksm.scan()`, `m.ksm.counts`."""
        self.cgroups = self._kernel.cgroups
        self.cgroups.kill = partial(kill_all, self._kernel)
        self.cgroups.squeeze = partial(squeeze, self._kernel)
        self.cgroups.trim = partial(trim, self._kernel)
        """The control groups: path -> `Cgroup`; `m.cgroups.create("jail", pids_max=512)`."""
        self.cgroupfs = CgroupFS(self._kernel)
        """/sys/fs/cgroup of this machine: `m.cgroupfs.read("jail/pids.events")`."""
        self.procfs = ProcFS(self._kernel)
        """/proc of this machine."""

    def __enter__(self) -> Self:
        if self._kernel.closed:
            raise VmemuError("the machine is closed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._kernel.closed:
            return "<vmemu.Machine closed>"
        return f"<vmemu.Machine {self._kernel.npages * PAGE_SIZE >> 20} MiB, {len(self.processes)} processes>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Machine cannot be pickled")

    def close(self) -> None:
        """Gives all memory back; whatever is asked of the machine or its processes afterwards raises VmemuError."""
        self._kernel.close()

    def spawn(
        self,
        program: str | os.PathLike[str] | None = None,
        argv: Sequence[str | bytes] | None = None,
        environment: Dictionary[str, str] | Sequence[str | bytes] | None = None,
        *,
        link: bool = False,
    ) -> Process:
        """A new child of init: without a program it has no mappings at all, else it execs *program* (see
        Process.execve)."""
        path = None if program is None else os.fspath(program)
        return Process(self._kernel, birth.spawn(self._kernel, path, argv, environment, link))

    def exit_many(self, processes: Iterable[Process], code: int = 0) -> None:
        """_exit(2) of each, in order: as `Process.exit` of one after the other, but cheap for many with pids in a row,
        such as those of `fork_many`. The first that cannot exit raises; those before it have ended then. ValueError
        for a process of another machine.
        """
        exit_many(self._kernel, processes, code)

    def usage(self, processes: Iterable[Process]) -> NDArray[np.uint64]:
        """What each of *processes* has, in bytes: uint64 array (n, 4) of its resident anonymous memory, pages of files,
        shared memory, and its page tables, as `Process.rss_by_kind` and `page_tables` say for one; zeros for the dead.

        One call for many. ValueError for a process of another machine.
        """
        return usage(self._kernel, processes)

    def open_file(self, path: str | os.PathLike[str]) -> File:
        """Opens a regular file of the host, read-only, for mapping; its pages are in RAM once however often it
        is opened.

        Raises SyscallError as open(2), ENODEV for what mmap(2) could not map: directories, devices, pipes, sockets.
        """
        return self._kernel.files.open(path)

    def create_file(self, name: str, data: bytes | bytearray | memoryview = b"", writenotify: bool = False) -> File:
        """A new file in memory, writable, that holds *data*; *name* is a label and need not be unique.

        It behaves as on tmpfs, or with *writenotify* as on ext4, where the first write through a shared mapping faults
        though the page was mapped by a read. Raises OutOfMemory without frames for *data*.
        """
        return self._kernel.files.create(name, data, writenotify)

    def run(
        self,
        trace: ArrayLike,
        processes: Dictionary[int, Process] | Sequence[Process] | None = None,
        *,
        outcomes: bool = True,
    ) -> RunResult:
        """Runs *trace*, records of `TRACE_DTYPE`, shape (n,): reads, writes and fetches, fork, exit, wait, mmap and
        munmap of many processes, one after the other, in one call (see `Operation`).

        *processes* are those that it starts with, by label, or in a sequence: 0, 1, ...; a trace that begins with SPAWN
        needs none. A bad access does not raise, its kind is in `RunResult.outcomes`, which *outcomes* off leaves out.
        A write leaves the bytes as they are. The whole trace is checked before anything is done: TraceError for an
        unknown operation or label, a size of 0, a mapping that is not page aligned or goes beyond the address space. A
        system call that fails raises what it raises, with a note
        that names the record: those before it are done. Other threads can't make or end processes meanwhile.

        TypeError for what is no structured array with these fields.
        """
        return traces.run(self._kernel, trace, processes, outcomes)

    def trace_faults(self, capacity: int = 65536) -> FaultLog:
        """Records every fault from now on, the last *capacity* of them, until the log or the machine is closed or
        nothing refers to the log any more; a context manager.

        ValueError while another log of this machine is open.
        """
        return FaultLog(self._kernel, capacity)

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that make a machine like this one: `Machine(**m.settings)`; what /proc/sys/vm has changed
        since is as it is now. Values are JSON's. Snapshot."""
        kernel, paging = self._kernel, self._kernel.paging
        return {
            **self._settings,
            "fork_mode": int(kernel.fork_mode),
            "overcommit": int(kernel.overcommit),
            "overcommit_ratio": int(kernel.overcommit_ratio),
            "overcommit_kbytes": int(kernel.overcommit_kbytes),
            "max_map_count": int(kernel.max_map_count),
            "thp": kernel.thp,
            "policy": None if paging is None else paging.policy,
            "swappiness": 60 if paging is None else paging.swappiness,
        }

    @property
    def zero_pfn(self) -> int | None:
        """Frame of the zero page, None without one."""
        return self._kernel.zero_pfn

    @property
    def hugepages(self) -> dict[int, HugePool]:
        """The pools of huge pages for MAP_HUGETLB by page size in bytes. Snapshot."""
        with self._kernel.lock:
            return {pool.page_size: pool for pool in hugetlb.pools(self._kernel)}

    @property
    def faults(self) -> FaultCounts:
        """Faults of all processes since boot, by kind. Snapshot."""
        return self._kernel.core.machine_faults()

    @property
    def ram(self) -> NDArray[np.uint8]:
        """The emulated RAM: uint8 array (memory in bytes,), read-only, live and not copied. Frame *pfn* is
        ``ram[pfn * 4096 : (pfn + 1) * 4096]``, page tables included.

        It shows what another thread is writing half done, and costs host memory only where RAM was used. With
        ``contents=False`` data frames are zeros. The array stays valid, and holds the host's memory, after `close`.
        """
        import numpy as np

        return np.frombuffer(self._kernel.core.ram(self._kernel.npages), np.uint8)

    @property
    def oom_reports(self) -> list[OomReport]:
        """What the OOM killer did, the last 1,000 times; the newest is the last."""
        return list(self._kernel.oom_reports)

    @property
    def clock_ns(self) -> int:
        """Nanoseconds since boot on the machine's clock. Each call that makes processes takes a millisecond of it,
        nothing else takes time; so the same commands give the same times on any host."""
        return self._kernel.clock_ns

    def sleep(self, ns: int) -> None:
        """Lets *ns* nanoseconds pass on the machine's clock."""
        passed = integer(ns, "sleep", "ns")
        if passed < 0:
            raise ValueError(f"ns: {passed} is negative")
        with self._kernel.lock:
            self._kernel.clock_ns += passed

    def meminfo(self) -> MemInfo:
        """Memory of the machine in bytes. Snapshot."""
        info, swap = self._kernel.core.info(), self._kernel.core.swap_info()
        return MemInfo(
            total=info.nframes * PAGE_SIZE,
            free=info.free * PAGE_SIZE,
            available=(info.free + info.file) * PAGE_SIZE,
            anon=info.anon * PAGE_SIZE,
            file=info.file * PAGE_SIZE,
            shmem=info.shmem * PAGE_SIZE,
            page_tables=info.tables * PAGE_SIZE,
            swap_total=swap.total * PAGE_SIZE,
            swap_free=swap.free * PAGE_SIZE,
            committed=info.account * PAGE_SIZE,
            commit_limit=commit_limit(self._kernel) * PAGE_SIZE,
        )

    @property
    def swap_file(self) -> str | None:
        """The file of the host that is the swap device; None if it is in memory, or there is none."""
        paging = self._kernel.paging
        return paging.device.name if paging is not None and isinstance(paging.device, HostFile) else None

    def vmstat(self) -> dict[str, int]:
        """/proc/vmstat: every name of Linux 6.18 in its order; pages, or events since boot. Snapshot."""
        return vmstat(self._kernel)

    def frame_stats(self) -> FrameStats:
        """How many frames are mapped, shared, and were copied. Snapshot; one pass over RAM's bookkeeping."""
        mapped, shared = self._kernel.core.sharing()
        return FrameStats(mapped, shared, self._kernel.core.info().copied)

    def verify(self) -> None:
        """Proves the machine consistent, or raises InvariantError with the first thing found wrong.

        Every reference is recounted, every entry compared with its mapping, every counter with what it counts.
        """
        with self._kernel.lock:
            if self._kernel.processes.torn:  # by an exception while the last one was dealt with
                self._kernel.mend()
            if self._kernel.files.torn or self._kernel.files.dropped:
                self._kernel.files.mend()
            self._kernel.core.check()
            check(self._kernel)
