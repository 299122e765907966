"""Random programs against a model of what memory means: which bytes a process must read where, and what raises.

The model knows nothing of frames, tables, faults or VMAs: an address space is a dictionary of pages, a private page
that was written has bytes of its own, fork copies the dictionary. Each call is made on two machines, on one with the
fork modes that were drawn and on one that always forks copy-on-write; all three must agree. After each step every page
that is resident in either machine is compared with the model, without an access that would change what is resident, and
both are verified.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from linux import tinyelf
from vmemu._core import ffi, lib

from vmemu import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    Advice,
    Clone,
    FaultKind,
    File,
    ForkMode,
    Machine,
    Map,
    MemoryFault,
    Process,
    Prot,
    SyscallError,
)

PAGE = 4096
GROUPS = ("", "a", "a/b")
ARENA = 0x4000_0000 // PAGE
"""First page of the area that the rules use; 512 is where the next leaf table begins."""
BASE = ARENA + 490
STACK_GAP = 256
ZERO = bytes(PAGE)
TOP = 0x7FFF_FFFF_F000


class Failed(Exception):
    """A call fails: what it raises in short."""


@dataclasses.dataclass
class Object:
    """Bytes that several mappings see."""

    size: int
    pages: dict[int, bytes] = dataclasses.field(default_factory=dict)
    notify: bool = False

    @property
    def npages(self) -> int:
        return -(-self.size // PAGE)

    def resize(self, size: int) -> None:
        if size < self.size:
            self.pages = {i: b for i, b in self.pages.items() if i * PAGE < size}
            last = size // PAGE
            if size % PAGE and last in self.pages:
                self.pages[last] = self.pages[last][: size % PAGE].ljust(PAGE, b"\0")
        self.size = size


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of an address space."""

    prot: int
    object: Object | None = None
    index: int = 0
    shared: bool = False
    flags: frozenset[str] = frozenset()

    def with_flag(self, name: str, on: bool) -> Page:
        return dataclasses.replace(self, flags=self.flags | {name} if on else self.flags - {name})


class Memory:
    """One address space."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}
        self.own: dict[int, bytes] = {}
        """Contents of private pages that were written; all else is zeros or the object's."""
        self.guards: set[int] = set()
        self.written: set[int] = set()
        """Pages stored to since clear_refs."""
        self.brk = 0

    def unmap(self, first: int, last: int) -> None:
        for page in range(first, last):
            self.pages.pop(page, None)
            self.own.pop(page, None)
            self.guards.discard(page)
            self.written.discard(page)

    def fork(self) -> Memory:
        child = Memory()
        child.brk = self.brk
        child.pages = {n: p.with_flag("locked", False) for n, p in self.pages.items() if "dontfork" not in p.flags}
        kept = {n for n, p in child.pages.items() if "wipe" not in p.flags}
        child.own = {n: b for n, b in self.own.items() if n in kept}
        child.guards = self.guards & kept
        return child

    # ---- accesses ----

    def grow(self, n: int) -> bool:
        """The stack above page n grows down to it."""
        above = next((at for at in range(n, n + 2048) if at in self.pages), None)
        if above is None or "grows" not in self.pages[above].flags:
            return False
        below = next((at for at in range(n, n - 2048, -1) if at in self.pages), None)
        if below is not None:
            page = self.pages[below]
            if page.prot & 7 and "grows" not in page.flags and n - below - 1 < STACK_GAP:
                return False
        for at in range(n, above):
            self.pages[at] = self.pages[above]
        return True

    def access(self, n: int, write: bool, fetch: bool = False) -> bytes:
        """Makes page n accessible and returns its bytes. Raises Failed with the kind of fault."""
        if n not in self.pages and not self.grow(n):
            raise Failed(FaultKind.SEGV_MAPERR)
        page = self.pages[n]
        if not page.prot & (Prot.WRITE if write else Prot.EXEC if fetch else 7):
            raise Failed(FaultKind.SEGV_ACCERR)
        return self.fault_in(n, write)

    def fault_in(self, n: int, write: bool) -> bytes:
        page = self.pages[n]
        if n in self.guards:
            raise Failed(FaultKind.SEGV_MAPERR)
        if n in self.own:
            return self.own[n]
        if page.object is not None and page.index >= page.object.npages:
            raise Failed(FaultKind.BUS_ADRERR)
        now = page.object.pages.get(page.index, ZERO) if page.object is not None else ZERO
        if write and not page.shared:
            self.own[n] = now
        return now

    def store(self, n: int, offset: int, data: bytes) -> None:
        now = self.access(n, True)
        new = now[:offset] + data + now[offset + len(data) :]
        self.written.add(n)
        page = self.pages[n]
        if page.shared:
            assert page.object is not None
            page.object.pages[page.index] = new
        else:
            self.own[n] = new

    def populate(self, first: int, last: int) -> bool:
        """As mmap and mlock do; False at the first page that can't be had."""
        for n in range(first, last):
            page = self.pages[n]
            if not page.prot & 7:
                return False
            try:
                self.fault_in(n, bool(page.prot & Prot.WRITE) and not page.shared)
            except Failed:
                return False
        return True

    def view(self, n: int) -> bytes:
        """What a resident page must hold."""
        page = self.pages[n]
        if n in self.own:
            return self.own[n]
        return page.object.pages.get(page.index, ZERO) if page.object is not None else ZERO


@dataclasses.dataclass
class Task:
    """A process in the two machines and in the model."""

    real: tuple[Process, Process]
    memory: Memory
    parent: Task | None
    state: str = "running"
    borrower: Task | None = None
    group: str = ""
    """Path of its control group."""


class Comparison(RuleBasedStateMachine):
    """The rules."""

    program = ""

    # ---- both machines ----

    def __init__(self) -> None:
        super().__init__()
        self.machines = (Machine("32MiB"), Machine("32MiB"))
        self.ram = [lib.vmemu_machine_ram(m._kernel.core._m) for m in self.machines]
        self.tasks: list[Task] = []
        self.files: list[tuple[tuple[File, File], Object]] = []
        self.freed = False

    def teardown(self) -> None:
        for task in self.tasks:
            if task.state == "running" and task.borrower is None:
                self.read_all(task)
        for m in self.machines:
            m.close()

    def both(self, call: Callable[[int], Any]) -> Any:
        """What the call came to, which is the same in both machines."""
        outcomes = []
        for which in (0, 1):
            try:
                outcomes.append(call(which))
            except MemoryFault as fault:
                outcomes.append((fault.kind, fault.address))
            except SyscallError as error:
                outcomes.append(errno.errorcode[error.errno or 0])
        if not isinstance(outcomes[0], Process):
            assert outcomes[0] == outcomes[1]
            return outcomes[0]
        return outcomes

    def call(self, task: Task, name: str, *arguments: Any, expect: str | None = None) -> Any:
        got = self.both(lambda which: getattr(task.real[which], name)(*arguments))
        if expect is None:
            assert not isinstance(got, str), f"{name}: {got}"
        else:
            assert got == expect
        return got

    def add(self, pair: Any, memory: Memory, parent: Task | None) -> Task:
        assert pair[0].pid == pair[1].pid
        task = Task((pair[0], pair[1]), memory, parent)
        task.group = parent.group if parent is not None else ""
        self.tasks.append(task)
        return task

    def pick(self, data: Any) -> Task:
        able = [t for t in self.tasks if t.state == "running" and t.borrower is None]
        return able[data.draw(st.integers(0, len(able) - 1), label="process")]

    def span(self, data: Any, most: int = 24) -> tuple[int, int]:
        first = BASE + data.draw(st.integers(0, 44), label="page")
        return first, first + data.draw(st.integers(1, most), label="pages")

    def on_range(self, task: Task, name: str, first: int, last: int, *arguments: Any, expect: str | None) -> None:
        self.call(task, name, first * PAGE, (last - first) * PAGE, *arguments, expect=expect)

    # ---- the start ----

    @initialize()
    def start(self) -> None:
        for notify, size in ((False, 12 * PAGE), (True, 9 * PAGE + 1000)):
            data = bytes((i // 64 + i // PAGE) % 251 for i in range(size))
            files = tuple(m.create_file("f", data, writenotify=notify) for m in self.machines)
            pages = {i: data[i * PAGE : (i + 1) * PAGE].ljust(PAGE, b"\0") for i in range(-(-size // PAGE))}
            self.files.append(((files[0], files[1]), Object(size, pages, notify)))
        for path in GROUPS[1:]:
            for m in self.machines:
                m.cgroups.create(path, memory_high="100KiB")
        self.spawn()

    def spawn(self) -> None:
        task = self.add([m.spawn() for m in self.machines], Memory(), None)
        task.memory.brk = self.call(task, "brk", 0)

    # ---- mappings ----

    @rule(data=st.data())
    def mmap(self, data: Any) -> None:
        task = self.pick(data)
        first, last = self.span(data)
        kind = data.draw(st.sampled_from(("anon", "anon", "anon", "shm", "file", "file", "file-shared")), label="kind")
        prot = data.draw(st.sampled_from((0, 1, 3, 3, 3, 3, 5, 2)), label="prot")
        flags = Map.FIXED
        if data.draw(st.integers(0, 9)) == 0:
            flags |= Map.POPULATE
        if data.draw(st.integers(0, 9)) == 0:
            flags |= Map.NORESERVE
        self.map(task, first, last, kind, prot, flags, data.draw(st.integers(0, 1)), data.draw(st.integers(0, 11)))

    def map(self, task: Task, first: int, last: int, kind: str, prot: int, flags: int, which: int, index: int) -> None:
        n, shared, object_ = last - first, kind in ("shm", "file-shared"), None
        flags |= Map.SHARED if shared else Map.PRIVATE
        files: tuple[File | None, File | None] = (None, None)
        if kind.startswith("file"):
            files, object_ = self.files[which]
        else:
            flags |= Map.ANONYMOUS
            index = 0
            object_ = Object(n * PAGE) if shared else None
        where = first * PAGE if flags & Map.FIXED else None
        got = self.both(
            lambda i: task.real[i].mmap(where, n * PAGE, prot, flags, files[i], 0 if files[i] is None else index * PAGE)
        )
        assert isinstance(got, int), got
        first, last = got // PAGE, got // PAGE + n
        memory = task.memory
        if where is None:
            assert not any(page in memory.pages for page in range(first, last))
        memory.unmap(first, last)
        marks = frozenset(["grows"] if flags & Map.GROWSDOWN else [])
        for i in range(n):
            memory.pages[first + i] = Page(prot, object_, index + i if object_ else 0, shared, marks)
        if flags & Map.POPULATE:
            memory.populate(first, last)

    @rule(data=st.data(), kind=st.sampled_from(("anon", "shm", "file", "file-shared")), n=st.integers(1, 8))
    def mmap_anywhere(self, data: Any, kind: str, n: int) -> None:
        self.map(self.pick(data), 0, n, kind, 3, 0, 0, 2)

    @precondition(lambda self: self.room() > 0)
    @rule(data=st.data(), n=st.integers(1, 3), mode=st.sampled_from((None, *ForkMode)), beside=st.booleans())
    def mmap_above_all(self, data: Any, n: int, mode: ForkMode | None, beside: bool) -> None:
        """A mapping far from the others, and one that might merge with the last of them; in a newborn child, too."""
        task = self.pick(data)
        last = max((v.end // PAGE for v in task.real[1].maps()), default=BASE)
        if last + 5 * n + 8 > TOP // PAGE:
            return
        if mode is not None:
            task = self.forked(task, mode)
        self.map(task, last + 4 * n, last + 5 * n, "anon", 3, Map.FIXED, 0, 0)
        if beside:
            self.map(task, last, last + n, "anon", 3, Map.FIXED, 0, 0)
        self.access_page(task, last + 4 * n, 0, b"far")

    @rule(data=st.data(), where=st.sampled_from((200, 300, 330, 700)), n=st.integers(1, 4))
    def mmap_stack(self, data: Any, where: int, n: int) -> None:
        where += ARENA
        self.map(self.pick(data), where, where + n, "anon", 3, Map.FIXED | Map.GROWSDOWN, 0, 0)

    @rule(data=st.data(), where=st.integers(30, 705))
    def push(self, data: Any, where: int) -> None:
        self.access_page(self.pick(data), ARENA + where, 0, b"push" if where % 2 else None)

    @rule(data=st.data())
    def munmap(self, data: Any) -> None:
        task = self.pick(data)
        first, last = self.span(data)
        self.on_range(task, "munmap", first, last, expect=None)
        task.memory.unmap(first, last)

    @rule(data=st.data(), prot=st.sampled_from((0, 1, 1, 3, 3, 3, 5, 7)))
    def mprotect(self, data: Any, prot: int) -> None:
        task = self.pick(data)
        first, last = self.span(data)
        pages, expect = task.memory.pages, None
        for n in range(first, last):
            if n not in pages:
                expect = "ENOMEM"
                break
            pages[n] = dataclasses.replace(pages[n], prot=prot)
        self.on_range(task, "mprotect", first, last, prot, expect=expect)

    @rule(data=st.data(), back=st.booleans())
    def brk(self, data: Any, back: bool) -> None:
        task = self.pick(data)
        memory = task.memory
        start = self.starts(task)
        new = start if back else start + data.draw(st.integers(0, 6 * PAGE), label="bytes")
        old_end, new_end = -(-memory.brk // PAGE), -(-new // PAGE)
        if any(n in memory.pages for n in range(old_end, new_end + 1)):
            return
        assert self.call(task, "brk", new) == new
        memory.unmap(new_end, old_end)
        for n in range(old_end, new_end):
            memory.pages[n] = Page(3)
        memory.brk = new

    def starts(self, task: Task) -> int:
        return self.__dict__.setdefault("_starts", {}).setdefault(id(task.memory), task.memory.brk)

    @rule(data=st.data())
    def mremap(self, data: Any) -> None:
        task = self.pick(data)
        first, old_last = self.span(data, 12)
        old = data.draw(st.sampled_from((old_last - first,) * 6 + (0,)), label="old")
        new = data.draw(st.sampled_from((old, old, 1, 5, 14)), label="new") or 3
        flags = data.draw(st.sampled_from((0, 1, 1, 3, 3, 3, 7, 7)), label="flags")
        to = BASE + data.draw(st.integers(0, 60), label="to")
        memory = task.memory
        if flags & MREMAP_DONTUNMAP and (to == first + old or to + new == first):
            return  # the two might merge and be unlocked together
        vmas = [(v.start // PAGE, v.end // PAGE) for v in task.real[1].maps()]
        try:
            plan = self.plan_mremap(memory, vmas, first, old, new, flags, to)
        except Failed as failed:
            self.call(
                task, "mremap", first * PAGE, old * PAGE, new * PAGE, flags, to * PAGE, expect=str(failed.args[0])
            )
            return
        got = self.call(task, "mremap", first * PAGE, old * PAGE, new * PAGE, flags, to * PAGE)
        assert isinstance(got, int)
        plan(got // PAGE)

    @staticmethod
    def plan_mremap(
        memory: Memory, vmas: list[tuple[int, int]], first: int, old: int, new: int, flags: int, to: int
    ) -> Callable[[int], None]:
        """What mremap does once it is known where to; raises Failed with what it fails with."""
        pages, end = memory.pages, first + old
        keep, fixed = bool(flags & MREMAP_DONTUNMAP), bool(flags & MREMAP_FIXED)
        vma = next((v for v in vmas if v[0] <= first < v[1]), None)
        if keep and old != new:
            raise Failed("EINVAL")
        if fixed and first < to + new and to < end:
            raise Failed("EINVAL")
        if vma is None:
            raise Failed("EFAULT")

        def move(got: int, start: int, stop: int, length: int) -> None:
            taken = {n: (pages[n], memory.own.get(n)) for n in range(start, stop)}
            guards = {n - start + got for n in memory.guards.intersection(taken)}
            if keep:
                low, high = next(v for v in vmas if v[0] <= start < v[1])
                for n in range(low, high):  # all of the mapping, not just what went away
                    pages[n] = pages[n].with_flag("locked", False)
                for n in range(start, stop):
                    memory.own.pop(n, None)
                    memory.guards.discard(n)
            else:
                memory.unmap(start, stop)
            last = taken[stop - 1][0]
            memory.unmap(got, got + length)
            for i in range(length):
                page, own = taken.get(start + i, (last, None))
                if i >= stop - start and last.object is not None:
                    page = dataclasses.replace(last, index=last.index + start + i - stop + 1)
                pages[got + i] = page
                if own is not None:
                    memory.own[got + i] = own
            memory.guards |= guards
            if "locked" in last.flags:
                memory.populate(got + stop - start, got + length)

        if not fixed:
            if new <= old:
                return lambda got: memory.unmap(first + new, end)
            if not old and not pages[first].shared:
                raise Failed("EINVAL")
            if end > vma[1]:
                raise Failed("EFAULT")
            grows = old and end == vma[1] and not any(n in pages for n in range(end, first + new))
            if not grows and not flags & MREMAP_MAYMOVE:
                raise Failed("ENOMEM")

            def grow(got: int) -> None:
                assert got == first or not grows
                if not old:
                    duplicate(got)
                    return
                if got != first:
                    assert not any(n in pages for n in range(got, got + new))
                    move(got, first, end, new)
                    return
                last = pages[end - 1]
                for i in range(new - old):
                    index = last.index + 1 + i if last.object is not None else 0
                    pages[end + i] = dataclasses.replace(last, index=index)
                if "locked" in last.flags:
                    memory.populate(end, first + new)

            def duplicate(got: int) -> None:
                for i in range(new):
                    pages[got + i] = dataclasses.replace(pages[first], index=pages[first].index + i)
                if "locked" in pages[first].flags:
                    memory.populate(got, got + new)

            return grow
        if not old:
            if not pages[first].shared:
                raise Failed("EINVAL")
            source = pages[first]

            def duplicate_there(got: int) -> None:
                assert got == to
                memory.unmap(to, to + new)
                for i in range(new):
                    pages[to + i] = dataclasses.replace(source, index=source.index + i)
                if "locked" in source.flags:
                    memory.populate(to, to + new)

            return duplicate_there
        if old != new and (min(old, new) > vma[1] - first or (new > old and end > vma[1])):
            raise Failed("EFAULT")

        def there(got: int) -> None:
            assert got == to
            if old == new:
                for low, high in vmas:
                    start, stop = max(low, first), min(high, end)
                    if start < stop:
                        move(to + start - first, start, stop, stop - start)
                return
            memory.unmap(to, to + new)
            if new < old:
                memory.unmap(first + new, end)
            move(to, first, min(end, first + new), new)

        return there

    # ---- advice and locks ----

    @rule(
        data=st.data(),
        advice=st.sampled_from(
            (Advice.DONTNEED,) * 4
            + (Advice.DONTFORK, Advice.DOFORK, Advice.WIPEONFORK, Advice.KEEPONFORK, Advice.REMOVE)
            + (Advice.POPULATE_READ, Advice.POPULATE_WRITE, Advice.RANDOM, Advice.NORMAL, Advice.DONTDUMP)
            + (Advice.WILLNEED, Advice.DONTNEED_LOCKED, Advice.GUARD_INSTALL, Advice.GUARD_REMOVE)
            + (Advice.FREE, Advice.COLD, Advice.PAGEOUT, Advice.MERGEABLE, Advice.UNMERGEABLE)
        ),
    )
    def madvise(self, data: Any, advice: Advice) -> None:
        task = self.pick(data)
        first, last = self.span(data)
        if advice == Advice.FREE:
            self.freed = True
        elif advice == Advice.PAGEOUT and self.freed:
            return  # what goes depends on who shares it, which eager fork changes
        try:
            self.advise(task.memory, first, last, advice)
            expect = None
        except Failed as failed:
            expect = str(failed.args[0])
        self.on_range(task, "madvise", first, last, advice, expect=expect)

    def advise(self, memory: Memory, first: int, last: int, advice: Advice) -> None:
        pages, hole = memory.pages, False
        for n in range(first, last):
            if n not in pages:
                hole = True
                if advice in (Advice.POPULATE_READ, Advice.POPULATE_WRITE):
                    break
                continue
            page = pages[n]
            if advice in (Advice.DONTNEED, Advice.DONTNEED_LOCKED):
                if "locked" in page.flags and advice == Advice.DONTNEED:
                    raise Failed("EINVAL")
                memory.own.pop(n, None)
            elif advice in (Advice.DONTFORK, Advice.DOFORK):
                pages[n] = page.with_flag("dontfork", advice == Advice.DONTFORK)
            elif advice in (Advice.WIPEONFORK, Advice.KEEPONFORK):
                if advice == Advice.WIPEONFORK and page.object is not None:
                    raise Failed("EINVAL")
                pages[n] = page.with_flag("wipe", advice == Advice.WIPEONFORK)
            elif advice in (Advice.FREE, Advice.COLD, Advice.PAGEOUT):
                if "locked" in page.flags or (advice == Advice.FREE and page.object is not None):
                    raise Failed("EINVAL")
            elif advice == Advice.GUARD_INSTALL:
                if "locked" in page.flags:
                    raise Failed("EINVAL")
                memory.own.pop(n, None)
                memory.guards.add(n)
            elif advice == Advice.GUARD_REMOVE:
                memory.guards.discard(n)
            elif advice == Advice.REMOVE:
                if "locked" in page.flags or page.object is None:
                    raise Failed("EINVAL")
                if not page.shared:  # VM_MAYWRITE is what counts, and the files are open for writing
                    raise Failed("EACCES")
                page.object.pages.pop(page.index, None)
            elif advice in (Advice.POPULATE_READ, Advice.POPULATE_WRITE):
                write = advice == Advice.POPULATE_WRITE
                if not page.prot & (Prot.WRITE if write else Prot.READ):
                    raise Failed("EINVAL")
                try:
                    memory.fault_in(n, write)
                except Failed:
                    raise Failed("EFAULT") from None
        if hole:
            raise Failed("ENOMEM")

    @rule(data=st.data(), on=st.booleans(), later=st.booleans())
    def mlock(self, data: Any, on: bool, later: bool) -> None:
        task = self.pick(data)
        first, last = self.span(data, 8)
        pages, expect = task.memory.pages, None
        for n in range(first, last):
            if n not in pages:
                expect = "ENOMEM"
                break
            pages[n] = pages[n].with_flag("locked", on).with_flag("onfault", on and later)
        if on and not later and expect is None and not task.memory.populate(first, last):
            expect = "ENOMEM"
        if on:
            self.on_range(task, "mlock", first, last, int(later), expect=expect)
        else:
            self.on_range(task, "munlock", first, last, expect=expect)

    # ---- accesses ----

    @rule(data=st.data(), value=st.binary(min_size=1, max_size=3), offset=st.sampled_from((0, 100, 4090)))
    def write(self, data: Any, value: bytes, offset: int) -> None:
        self.access_page(self.pick(data), self.mapped(data), offset, value)

    @rule(data=st.data(), fetch=st.booleans())
    def read(self, data: Any, fetch: bool) -> None:
        self.access_page(self.pick(data), self.mapped(data), 0, None, fetch)

    def mapped(self, data: Any) -> int:
        return self.span(data)[0] if data.draw(st.booleans()) else BASE + data.draw(st.integers(0, 70), label="page")

    def access_page(self, task: Task, n: int, offset: int, value: bytes | None, fetch: bool = False) -> None:
        memory = task.memory
        page = memory.pages.get(n)
        if value is not None and page is not None and page.shared and page.object is not None:
            room = page.object.size - page.index * PAGE  # what is stored behind the end of a file is nobody's promise
            if 0 < room < offset + len(value):
                offset = 0
        address = n * PAGE + offset
        try:
            if value is None:
                expected: Any = memory.access(n, False, fetch)
            else:
                expected = memory.store(n, offset, value)
        except Failed as failed:
            expected = (failed.args[0], address)
        if value is None:
            got = self.both(lambda which: task.real[which].read(address, PAGE, fetch))
        else:
            got = self.both(lambda which: task.real[which].write(address, value))
        assert got == expected

    @rule(data=st.data(), write=st.booleans())
    def touch(self, data: Any, write: bool) -> None:
        task = self.pick(data)
        first, last = self.span(data)
        expected = None
        for n in range(first, last):
            try:
                task.memory.access(n, write)
            except Failed as failed:
                expected = (failed.args[0], n * PAGE)
                break

        def call(which: int) -> Any:
            task.real[which].touch(first * PAGE, (last - first) * PAGE, write)

        assert self.both(call) == expected

    @rule(data=st.data())
    def access_batch(self, data: Any) -> None:
        import numpy as np

        task = self.pick(data)
        wanted = data.draw(st.lists(st.tuples(st.integers(0, 70), st.booleans()), max_size=12), label="accesses")
        where = np.array([(BASE + n) * PAGE + 5 for n, _ in wanted], np.uint64)
        writes = np.array([write for _, write in wanted], bool)
        for which in (0, 1):
            kinds = task.real[which].access(where, writes)
            for (n, write), kind in zip(wanted, kinds, strict=True):
                try:
                    task.memory.access(BASE + n, write)
                    assert kind < FaultKind.SEGV_MAPERR
                except Failed as failed:
                    assert kind == failed.args[0]

    @rule(data=st.data())
    def read_everything(self, data: Any) -> None:
        self.read_all(self.pick(data))

    def read_all(self, task: Task) -> None:
        for n in sorted(task.memory.pages):
            self.access_page(task, n, 0, None)

    @rule(data=st.data(), what=st.sampled_from((1, 2, 3, 4, 4)))
    def clear_refs(self, data: Any, what: int) -> None:
        task = self.pick(data)
        for which, m in enumerate(self.machines):
            m.procfs.write(f"{task.real[which].pid}/clear_refs", str(what))
        if what == 4:
            task.memory.written.clear()
            assert self.both(lambda which: task.real[which].dirty_pages().tolist()) == []

    @rule(passes=st.integers(1, 2), zero=st.booleans())
    def merge(self, passes: int, zero: bool) -> None:
        for m in self.machines:
            m.ksm.use_zero_pages = zero
            m.ksm.scan(passes)

    # ---- files ----

    @rule(which=st.integers(0, 1), offset=st.integers(0, 13 * PAGE), n=st.sampled_from((1, 100, 5000)))
    def pwrite(self, which: int, offset: int, n: int) -> None:
        files, object_ = self.files[which]
        data = bytes((offset + n + i) % 253 for i in range(n))
        assert self.both(lambda i: files[i].pwrite(data, offset)) == n
        object_.size = max(object_.size, offset + n)
        for i, byte in enumerate(data):
            page, at = divmod(offset + i, PAGE)
            if not i or not at:
                block = bytearray(object_.pages.get(page, ZERO))
            block[at] = byte
            if i == n - 1 or at == PAGE - 1:
                object_.pages[page] = bytes(block)

    @rule(which=st.integers(0, 1), npages=st.integers(0, 13), rest=st.sampled_from((0, 0, 1000)))
    def truncate(self, which: int, npages: int, rest: int) -> None:
        files, object_ = self.files[which]
        size = npages * PAGE + rest
        self.both(lambda i: files[i].truncate(size))
        object_.resize(size)
        for memory in {id(t.memory): t.memory for t in self.tasks if t.state == "running"}.values():
            for n, page in memory.pages.items():
                if page.object is object_ and page.index >= object_.npages:
                    memory.own.pop(n, None)

    @rule(which=st.integers(0, 1))
    def pread(self, which: int) -> None:
        files, object_ = self.files[which]
        expected = b"".join(object_.pages.get(i, ZERO) for i in range(object_.npages))[: object_.size]
        assert self.both(lambda i: files[i].pread(1 << 20, 0)) == expected
        assert files[0].size == files[1].size == object_.size

    # ---- /proc ----

    @rule(data=st.data(), adj=st.integers(-1000, 1000))
    def proc(self, data: Any, adj: int) -> None:
        """Every file can be read, and says what the handles say; a value written is the one that is read."""
        task = self.pick(data)
        for m, p in zip(self.machines, task.real, strict=True):
            for name in m.procfs.listdir(str(p.pid)):
                if name not in ("pagemap", "clear_refs", "task", "fd", "fdinfo", "cwd", "exe", "root"):
                    m.procfs.read(f"{p.pid}/{name}")
            rows = m.procfs.read(f"{p.pid}/status").decode().splitlines()
            status = {key: value.split() for key, value in (row.split(":", 1) for row in rows)}
            kilobytes = {key: int(value[0]) for key, value in status.items() if value[-1:] == ["kB"]}
            assert kilobytes["VmRSS"] == p.rss >> 10 <= kilobytes["VmHWM"]
            assert kilobytes["VmSize"] == sum(v.size for v in p.maps()) >> 10 <= kilobytes["VmPeak"]
            assert kilobytes["VmPTE"] == p.page_tables >> 10
            meminfo = {row.split(":")[0]: int(row.split()[1]) for row in m.procfs.read("meminfo").decode().splitlines()}
            assert meminfo["MemFree"] == m.meminfo().free >> 10
            assert m.vmstat()["nr_page_table_pages"] == meminfo["PageTables"] >> 2
            m.procfs.write(f"{p.pid}/oom_score_adj", b"%d" % adj)
            assert m.procfs.read(f"{p.pid}/oom_score_adj") == b"%d\n" % adj

    # ---- processes ----

    def room(self) -> int:
        return 8 - sum(t.state == "running" for t in self.tasks)

    @precondition(lambda self: self.room() > 0)
    @rule(data=st.data(), mode=st.sampled_from((ForkMode.ON_DEMAND, *ForkMode)))
    def fork(self, data: Any, mode: ForkMode) -> None:
        self.forked(self.pick(data), mode)

    def forked(self, task: Task, mode: ForkMode) -> Task:
        modes = (mode, ForkMode.COW)
        child = self.add([task.real[i].fork(modes[i]) for i in (0, 1)], task.memory.fork(), task)
        self.born(task, child)
        return child

    def born(self, parent: Task, child: Task) -> None:
        self.__dict__.setdefault("_starts", {})[id(child.memory)] = self.starts(parent)
        self.__dict__.setdefault("_keep", []).append(child.memory)  # so that no id comes back

    @precondition(lambda self: self.room() > 1)
    @rule(data=st.data(), mode=st.sampled_from(list(ForkMode)))
    def fork_many(self, data: Any, mode: ForkMode) -> None:
        task = self.pick(data)
        kids = [task.real[i].fork_many(2, (mode, ForkMode.COW)[i]) for i in (0, 1)]
        for pair in zip(*kids, strict=True):
            self.born(task, self.add(pair, task.memory.fork(), task))

    @precondition(lambda self: self.room() > 0)
    @rule(data=st.data())
    def vfork(self, data: Any) -> None:
        task = self.pick(data)
        task.borrower = self.add([task.real[i].vfork() for i in (0, 1)], task.memory, task)
        self.call(task, "brk", 0, expect="EBUSY")

    @precondition(lambda self: self.room() > 0)
    @rule(data=st.data())
    def clone(self, data: Any) -> None:
        """A process that shares the memory; both go on."""
        task = self.pick(data)
        self.add([task.real[i].clone(Clone.VM | signal.SIGCHLD) for i in (0, 1)], task.memory, task)

    @rule(data=st.data(), where=st.sampled_from(GROUPS))
    def move(self, data: Any, where: str) -> None:
        """Into another control group; who shares the memory stays where it is."""
        task = self.pick(data)
        task.group = where
        for real in task.real:
            real.cgroup = where

    @rule(data=st.data())
    def thread(self, data: Any) -> None:
        """One that ends again, after it has used the memory."""
        task = self.pick(data)
        threads = [task.real[i].clone(Clone.VM | Clone.SIGHAND | Clone.THREAD) for i in (0, 1)]
        brk = [thread.brk() for thread in threads]
        assert brk == [task.memory.brk] * 2
        for thread in threads:
            thread.exit()

    def leave(self, task: Task) -> None:
        if task.parent is not None and task.parent.borrower is task:
            task.parent.borrower = None

    @rule(data=st.data())
    def execve(self, data: Any) -> None:
        task = self.pick(data)
        for real in task.real:
            real.execve(self.program, ["x"])
            assert real.read(real.entry_point, 1)
            assert real.rss > 0
        self.leave(task)
        task.memory = Memory()
        self.__dict__.setdefault("_keep", []).append(task.memory)
        self.call(task, "munmap", 0, TOP)
        task.memory.brk = self.call(task, "brk", 0)

    @rule(data=st.data(), code=st.integers(0, 255))
    def exit(self, data: Any, code: int) -> None:
        task = self.pick(data)
        self.end(task, lambda which: task.real[which].exit(code), code)

    @rule(data=st.data(), sig=st.sampled_from((signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)), code=st.integers(0, 1))
    def kill(self, data: Any, sig: int, code: int) -> None:
        """By itself or another; one that sleeps in vfork does not notice SIGSEGV before it wakes up."""
        killer = self.pick(data)
        able = [t for t in self.tasks if t.state == "running" and (t.borrower is None or sig != signal.SIGSEGV)]
        victim = able[data.draw(st.integers(0, len(able) - 1), label="victim")]
        self.end(victim, lambda which: killer.real[which].kill(victim.real[which].pid, sig), code)

    def end(self, task: Task, how: Callable[[int], object], code: int) -> None:
        self.both(how)
        self.leave(task)
        task.state = "zombie" if task.parent is not None else "gone"
        for child in self.tasks:
            if child.parent is task:
                child.parent = None
                if child.state == "zombie":
                    child.state = "gone"
        self.call(task, "brk", 0, expect="ESRCH")
        if task.state == "zombie" and task.parent is not None and task.parent.borrower is None and code % 2:
            assert self.call(task.parent, "wait") == (self.oldest(task.parent).real[0].pid, self.reaped)
        if not any(t.state == "running" for t in self.tasks):
            self.spawn()

    def oldest(self, parent: Task) -> Task:
        dead = next(t for t in self.tasks if t.parent is parent and t.state == "zombie")
        dead.state = "gone"
        return dead

    @property
    def reaped(self) -> Any:
        return Anything()

    # ---- after each step ----

    @invariant()
    def consistent(self) -> None:
        for m in self.machines:
            m.verify()

    @invariant()
    def groups_count(self) -> None:
        """Tasks that are there, zombies included."""
        for path in GROUPS[1:]:
            there = [t for t in self.tasks if t.state != "gone" and f"{t.group}/".startswith(f"{path}/")]
            for m in self.machines:
                assert m.cgroups[path].pids_current == len(there) <= m.cgroups[path].pids_peak

    @invariant()
    def same_mappings(self) -> None:
        for task in self.tasks:
            assert task.real[0].state == task.real[1].state
            if task.state != "running":
                assert task.real[0].state == task.state
                continue
            maps = [real.maps() for real in task.real]
            assert maps[0] == maps[1]
            pages = {}
            for v in maps[0]:
                for i in range(v.size // PAGE):
                    pages[v.start // PAGE + i] = (
                        int(v.prot),
                        v.shared,
                        v.offset // PAGE + i if v.inode else 0,
                        v.flags,
                    )
            model = task.memory.pages
            assert pages.keys() == model.keys()
            for n, (prot, shared, index, flags) in pages.items():
                page = model[n]
                assert (prot, shared, index) == (page.prot, page.shared, page.index if page.object else 0), hex(n)
                for code, mark in (("lo", "locked"), ("dc", "dontfork"), ("wf", "wipe"), ("gd", "grows")):
                    assert (code in flags) == (mark in page.flags), (hex(n), code)

    @invariant()
    def stores_are_soft_dirty(self) -> None:
        """What was stored to and is still mapped is among the dirty pages."""
        for task in self.tasks:
            if task.state == "running" and task.memory.written:
                for real in task.real:
                    found = set((real.dirty_pages() // PAGE).tolist())
                    for n in task.memory.written - found:
                        assert real.translate(n * PAGE) is None, (real.pid, hex(n))

    @invariant()
    def same_contents(self) -> None:
        """Whatever is resident holds what the model says; nothing is accessed for it."""
        for task in self.tasks:
            if task.state != "running":
                continue
            expected = {n: task.memory.view(n) for n in task.memory.pages}
            for real, ram in zip(task.real, self.ram, strict=True):
                for n, content in expected.items():
                    found = real.translate(n * PAGE)
                    if found is not None:
                        assert bytes(ffi.buffer(ram + found.physical, PAGE)) == content, (real.pid, hex(n))
                    else:
                        assert n not in task.memory.own, (real.pid, hex(n))


class Anything:
    """Equal to whatever it is compared with."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture(scope="module", autouse=True)
def _program(tmp_path_factory: pytest.TempPathFactory) -> None:
    Comparison.program = tinyelf.save(tmp_path_factory.mktemp("bin") / "tiny", tinyelf.tiny())


def length(examples: int) -> settings:
    """How long a comparison goes on, unless the environment says otherwise."""
    return settings(
        max_examples=int(os.environ.get("VMEMU_STATE_EXAMPLES", examples)),
        stateful_step_count=int(os.environ.get("VMEMU_STATE_STEPS", "40")),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


TestComparison = Comparison.TestCase
TestComparison.settings = length(60)
