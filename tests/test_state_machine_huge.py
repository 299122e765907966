"""Random programs where huge pages matter, against a model that knows only which bytes each process wrote.

The area is four huge pages long; transparent huge pages come and go in it, pages of a pool lie beside them, and
everything that splits, moves, merges, locks or collapses them is tried on whole and on odd ranges, in every fork mode.
After each step the machine is verified, and what is resident is compared with the model without an access that would
change it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from vmemu._core import ffi, lib

from vmemu import MREMAP_FIXED, MREMAP_MAYMOVE, Advice, BusError, ForkMode, Machine, Map, Process, Prot, SyscallError

PAGE, HUGE = 4096, 2 << 20
H = 0x4000_0000
NPAGES = 4 * 512
RW = Prot.READ | Prot.WRITE
ANON, POOL, NOTHING = 1, 2, 0
MODES = st.sampled_from(list(ForkMode))


@dataclasses.dataclass
class Task:
    """A process, and what it should have: kind of memory and first four bytes by page."""

    real: Process
    kind: np.ndarray[Any, Any]
    data: np.ndarray[Any, Any]


@st.composite
def spans(draw: Any) -> tuple[int, int]:
    """(first page, pages): whole huge pages, or odd."""
    if draw(st.booleans()):
        first = draw(st.integers(0, 3))
        return first * 512, draw(st.integers(1, 4 - first)) * 512
    first = draw(st.integers(0, NPAGES - 1))
    return first, draw(st.integers(1, min(700, NPAGES - first)))


class Huge(RuleBasedStateMachine):
    """One machine, at most four processes."""

    @initialize(thp=st.sampled_from(("always", "madvise")), pool=st.integers(0, 3))
    def start(self, thp: str, pool: int) -> None:
        self.m = Machine("96MiB", thp=thp, hugepages={"2MiB": pool})
        ram = ffi.buffer(lib.vmemu_machine_ram(self.m._kernel.core._m), self.m.meminfo().total)
        self.ram = np.frombuffer(ram, np.uint8).reshape(-1, PAGE)
        empty = np.zeros(NPAGES, np.uint8), np.zeros((NPAGES, 4), np.uint8)
        self.tasks = [Task(self.m.spawn(), *empty)]
        self.map(self.tasks[0], 0, NPAGES, ANON)

    def teardown(self) -> None:
        if hasattr(self, "m"):
            for task in self.tasks:
                task.real.exit()
            self.m.verify()
            assert (self.m.meminfo().anon, self.m.meminfo().page_tables) == (0, 0)
            self.m.close()

    def pick(self, which: int) -> Task:
        return self.tasks[which % len(self.tasks)]

    def forget(self, task: Task, first: int, n: int, kind: int) -> None:
        task.kind[first : first + n] = kind
        task.data[first : first + n] = 0

    def touches_pool(self, task: Task, first: int, n: int) -> bool:
        return bool((task.kind[first : first + n] == POOL).any())

    # ---- mappings ----

    @rule(which=st.integers(0, 3), span=spans(), kind=st.sampled_from((ANON, ANON, POOL)))
    def mmap(self, which: int, span: tuple[int, int], kind: int) -> None:
        self.map(self.pick(which), *span, kind)

    def map(self, task: Task, first: int, n: int, kind: int) -> None:
        if kind == POOL:
            first, n = first // 512 * 512, -(-n // 512) * 512
            n = min(n, NPAGES - first)
        flags = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED | (Map.HUGETLB if kind == POOL else 0)
        try:
            task.real.mmap(H + first * PAGE, n * PAGE, RW, flags)
        except SyscallError as error:
            if error.errno == errno.EINVAL:  # part of a huge page of the pool is in the way
                assert self.touches_pool(task, first, n)
                return
            assert (error.errno, kind) == (errno.ENOMEM, POOL)
            kind = NOTHING  # by then Linux has unmapped what was there
        self.forget(task, first, n, kind)

    @rule(which=st.integers(0, 3), span=spans())
    def munmap(self, which: int, span: tuple[int, int]) -> None:
        task, (first, n) = self.pick(which), span
        try:
            task.real.munmap(H + first * PAGE, n * PAGE)
        except SyscallError as error:
            assert error.errno == errno.EINVAL and self.touches_pool(task, first, n)
        else:
            self.forget(task, first, n, NOTHING)

    @rule(which=st.integers(0, 3), span=spans())
    def mprotect(self, which: int, span: tuple[int, int]) -> None:
        """There and back, which must not make anything writable that others share."""
        task, (first, n) = self.pick(which), span
        for prot in (Prot.READ, RW):
            with contextlib.suppress(SyscallError):
                task.real.mprotect(H + first * PAGE, n * PAGE, prot)
        with contextlib.suppress(SyscallError):
            task.real.mprotect(H, NPAGES * PAGE, RW)
        for vma in task.real.maps():
            if vma.start >= H and vma.prot != RW:
                task.real.mprotect(vma.start, vma.size, RW)

    @rule(which=st.integers(0, 3), span=spans(), to=st.integers(0, 4))
    def mremap(self, which: int, span: tuple[int, int], to: int) -> None:
        task, (first, n) = self.pick(which), span
        n = min(n, 512)
        target = min(to * 512 + (first % 512 if to % 2 else 0), NPAGES - n)
        if (task.kind[first : first + n] != ANON).any() or self.touches_pool(task, target, n):
            return
        if first < target + n and target < first + n:
            return
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        task.real.mremap(H + first * PAGE, n * PAGE, n * PAGE, flags, H + target * PAGE)
        task.data[target : target + n] = task.data[first : first + n]
        task.kind[target : target + n] = ANON
        self.forget(task, first, n, NOTHING)

    # ---- advice ----

    @rule(
        which=st.integers(0, 3),
        span=spans(),
        advice=st.sampled_from(
            "HUGEPAGE NOHUGEPAGE COLLAPSE FREE COLD PAGEOUT MERGEABLE UNMERGEABLE POPULATE_READ POPULATE_WRITE".split()
        ),
    )
    def advise(self, which: int, span: tuple[int, int], advice: str) -> None:
        """What changes how memory lies and not what it holds; no memory is short, so MADV_FREE loses nothing."""
        task, (first, n) = self.pick(which), span
        with contextlib.suppress(SyscallError):
            task.real.madvise(H + first * PAGE, n * PAGE, Advice[advice])

    @rule(which=st.integers(0, 3), span=spans())
    def dontneed(self, which: int, span: tuple[int, int]) -> None:
        task, (first, n) = self.pick(which), span
        if self.touches_pool(task, first, n) and (first % 512 or n % 512):
            return
        with contextlib.suppress(SyscallError):  # holes are passed over
            task.real.madvise(H + first * PAGE, n * PAGE, Advice.DONTNEED_LOCKED)
        task.data[first : first + n] = 0

    @rule(which=st.integers(0, 3), span=spans())
    def guard(self, which: int, span: tuple[int, int]) -> None:
        """Guards come and go, and take what was there."""
        task, (first, n) = self.pick(which), span
        if (task.kind[first : first + n] != ANON).any():
            return
        try:
            task.real.madvise(H + first * PAGE, n * PAGE, Advice.GUARD_INSTALL)
        except SyscallError:  # locked
            return
        task.real.madvise(H + first * PAGE, n * PAGE, Advice.GUARD_REMOVE)
        task.data[first : first + n] = 0

    @rule()
    def merge(self) -> None:
        self.m.ksm.scan()

    @rule(which=st.integers(0, 3), lock=st.booleans())
    def mlockall(self, which: int, lock: bool) -> None:
        task = self.pick(which)
        with contextlib.suppress(SyscallError):
            if lock:
                task.real.mlockall(1)
            else:
                task.real.munlockall()

    # ---- accesses ----

    @rule(which=st.integers(0, 3), page=st.integers(0, NPAGES - 1), data=st.binary(min_size=4, max_size=4))
    def write(self, which: int, page: int, data: bytes) -> None:
        task = self.pick(which)
        if task.kind[page] == NOTHING:
            return
        try:
            task.real.write(H + page * PAGE, data)
        except BusError:
            assert task.kind[page] == POOL
        else:
            task.data[page] = np.frombuffer(data, np.uint8)

    @rule(which=st.integers(0, 3), span=spans(), write=st.booleans())
    def access(self, which: int, span: tuple[int, int], write: bool) -> None:
        task, (first, n) = self.pick(which), span
        task.real.access(np.arange(H + first * PAGE, H + (first + n) * PAGE, PAGE, dtype=np.uint64), write)

    # ---- processes ----

    @rule(which=st.integers(0, 3), mode=MODES)
    def fork(self, which: int, mode: ForkMode) -> None:
        task = self.pick(which)
        if len(self.tasks) < 4:
            self.tasks.append(Task(task.real.fork(mode), task.kind.copy(), task.data.copy()))

    @rule(which=st.integers(0, 3))
    def exit(self, which: int) -> None:
        task = self.pick(which)
        if len(self.tasks) > 1:
            self.tasks.remove(task)
            task.real.exit()

    # ---- after each step ----

    @invariant()
    def consistent(self) -> None:
        self.m.verify()

    @invariant()
    def contents(self) -> None:
        """Pages that are there hold what was written; those that are not were never written, or the owner took them."""
        for task in self.tasks:
            entries = task.real.pagemap(H, NPAGES)
            present = (entries >> np.uint64(63)).astype(bool)
            assert not present[task.kind == NOTHING].any()
            frames = entries[present] & np.uint64((1 << 55) - 1)
            assert (self.ram[frames, :4] == task.data[present]).all()
            absent = ~present & (task.kind == ANON)
            assert not task.data[absent].any()
            gone = np.flatnonzero(~present & (task.kind == POOL) & task.data.any(axis=1))
            task.data[gone] = 0  # a child's, taken by the owner of the reservation


TestHuge = Huge.TestCase
TestHuge.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
