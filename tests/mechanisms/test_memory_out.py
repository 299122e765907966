"""Out of frames: the operation that fails raises and changes nothing, everything else goes on, and all frames come
back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import (
    PAGE,
    RW,
    SHARED,
    A,
    anon,
    change,
    contents,
    counts,
    every_mode,
    filled,
    machine,
    program,
    prove,
    sharing_mode,
    snapshot,
)

from vmemu import (
    FaultKind,
    ForkMode,
    Machine,
    Map,
    OutOfMemory,
    Overcommit,
    Process,
    SyscallError,
    VmemuError,
)

SIZES = [*range(16, 40), 48, 57, 64, 100, 129, 256, 511, 512, 513, 600]
"""Frames of the smallest machines, and some around the 2 MiB that frames are handed out from."""


def fill_up(m: Machine, leave: int = 0) -> Process:
    """A process that takes all frames but *leave*."""
    p = m.spawn()
    a = p.mmap(None, m.meminfo().total, RW, Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE)
    with pytest.raises(OutOfMemory):
        p.touch(a, m.meminfo().total, write=True)
    assert m.meminfo().free == 0
    if leave:
        p.madvise(a, leave * PAGE, 4)
    assert m.meminfo().free == leave * PAGE
    return p


@pytest.mark.parametrize("nframes", SIZES)
def test_memory_out_at_an_access(nframes: int) -> None:
    """oom="raise": OutOfMemory at the access that found no frame, in read, write, touch; FaultKind.OOM in access().
    What was written before stays, the process lives, and memory given back is used again."""
    with machine(memory=nframes * PAGE, overcommit=Overcommit.ALWAYS) as m:
        boot = m.meminfo()
        p = m.spawn()
        a = anon(p, nframes)
        with pytest.raises(OutOfMemory) as caught:
            p.write(a, b"x" * (nframes * PAGE))
        assert caught.value.errno == errno.ENOMEM
        assert isinstance(caught.value, MemoryError | SyscallError)
        assert m.meminfo().free == 0
        done = p.rss // PAGE
        assert done >= nframes - 8
        assert p.read(a, done * PAGE) == b"x" * (done * PAGE)
        assert p.faults == counts(zero_fill=done, oom=1)
        with pytest.raises(OutOfMemory):
            p.touch(a + done * PAGE, PAGE, write=True)
        kinds = p.access([a, a + done * PAGE, a + PAGE], write=True)
        assert list(kinds) == [FaultKind.NONE, FaultKind.OOM, FaultKind.NONE]
        assert p.touch(a + done * PAGE, PAGE).zero_map == 1
        m.verify()
        p.madvise(a, PAGE, 4)
        p.write(a + done * PAGE, b"now")
        p.exit()
        assert m.meminfo() == boot


@every_mode
@pytest.mark.parametrize("npages", [1, 5, 12, 40, 400])
def test_fork_is_all_or_nothing(npages: int, mode: ForkMode) -> None:
    """In memories of every size, with every number of frames left: a fork that fails raises and changes nothing that
    can be seen; what was there goes on working, and afterwards every frame is free again."""
    for nframes in SIZES:
        if nframes < npages + 12:
            continue
        with Machine(memory=nframes * PAGE, fork_mode=mode, overcommit=Overcommit.ALWAYS) as m:
            boot = m.meminfo()
            p = m.spawn()
            a = filled(p, npages, A)
            if npages > 8:
                p.munmap(a + 3 * PAGE, PAGE)
            while m.meminfo().free > 30 * PAGE:  # a shared page each keeps the others out of the way
                m.spawn().mmap(A, (m.meminfo().free - 25 * PAGE), RW, SHARED | Map.POPULATE)
            failed = False
            most = 8 if mode == ForkMode.ON_DEMAND else 60
            while not failed and len(m.processes) < most:
                before, bytes_ = snapshot(m), contents(p)
                try:
                    p.fork()
                except OutOfMemory:
                    failed = True
                    assert snapshot(m) == before
                assert contents(p) == bytes_
            assert failed == (mode != ForkMode.ON_DEMAND)  # a fork that takes no frame does not fail
            prove(m)
            for i, who in enumerate([p, *p.children]):
                try:
                    who.write(a, b"%3d" % i)
                    assert who.read(a, 3) == b"%3d" % i
                except OutOfMemory:
                    assert who.read(a, 1) == b"\1"
            prove(m)
            for who in list(m.processes.values()):
                if who.pid > 1:
                    who.exit()
            assert m.meminfo() == boot
            m.verify()


@every_mode
def test_fork_many_is_all_or_nothing(mode: ForkMode) -> None:
    """fork_many(n) that fails at the last child leaves none."""
    with machine(memory=128 * PAGE, fork_mode=mode, overcommit=Overcommit.ALWAYS) as m:
        p = m.spawn()
        filled(p, 10, A)
        if mode == ForkMode.ON_DEMAND:
            fill_up(m).exit()
            return
        before, bytes_ = snapshot(m), contents(p)
        with pytest.raises(OutOfMemory):
            p.fork_many(100)
        assert snapshot(m) == before
        assert contents(p) == bytes_
        kids = p.fork_many(3)
        assert kids[0].pid == p.pid + 1


@pytest.mark.parametrize("nframes", [24, 25, 31, 64, 513])
@pytest.mark.parametrize("call", ["execve", "spawn", "vfork+execve"])
def test_execve_is_all_or_nothing(nframes: int, call: str, tmp_path: Path) -> None:
    """execve with too few frames, whatever number is left: it raises and the process is as before; with one more it
    works."""
    path = str(program(tmp_path))
    for leave in range(16):
        with Machine(memory=nframes * PAGE, overcommit=Overcommit.ALWAYS) as m:
            p = m.spawn()
            a = filled(p, 3, A)
            try:
                fill_up(m, leave)
            except (OutOfMemory, AssertionError, SyscallError):
                continue
            who = p.vfork() if call == "vfork+execve" else p
            before, bytes_ = snapshot(m), contents(who)
            try:
                m.spawn(path) if call == "spawn" else who.execve(path)
            except OutOfMemory:
                assert snapshot(m) == before
                assert contents(who) == bytes_
                assert who.read(a, 1) == b"\1"
            else:
                assert leave >= 7
            m.verify()
            for other in m.processes.values():
                if other.pid not in (1, p.pid, who.pid):
                    other.exit()
            if who.exe == "":
                who.execve(path)
            prove(m)


@pytest.mark.parametrize("leave", range(9))
@every_mode
def test_mmap_is_all_or_nothing(leave: int, mode: ForkMode) -> None:
    """mmap in a full machine: it raises and changes nothing, or it works; over other mappings and shared tables too."""
    calls: list[Callable[[Process], Any]] = [
        lambda p: p.mmap(None, 4 * PAGE, RW, 0x22),
        lambda p: p.mmap(None, 4 * PAGE, RW, SHARED),
        lambda p: p.mmap(A + PAGE, 2 * PAGE, RW, 0x32),
        lambda p: p.mmap(A, 4 << 20, RW, 0x31),
        lambda p: p.mmap(None, 4 * PAGE, RW, 0x22 | Map.POPULATE),
        lambda p: p.mmap(None, 4 * PAGE, RW, SHARED | Map.POPULATE),
        lambda p: p.mmap(None, 4 * PAGE, RW, 0x22 | Map.LOCKED),
    ]
    for call in calls:
        with machine(memory=100 * PAGE, fork_mode=mode, overcommit=Overcommit.ALWAYS) as m:
            p = m.spawn()
            filled(p, 5, A)
            c = p.fork()
            fill_up(m, leave)
            before, others = snapshot(m), contents(p)
            try:
                where = call(c)
            except OutOfMemory:
                after = snapshot(m)
                history = {"meminfo": 0, "faults": 0, f"{c.pid}": 0}  # populate has faulted before it failed
                assert {**after, **history} == {**before, **history}
                assert after[f"{c.pid}"][0] == before[f"{c.pid}"][0]
                moved = change(before["meminfo"], after["meminfo"])  # tables may be the child's own by now
                assert set(moved) <= {"free", "page_tables"}
            else:
                assert where in [v.start for v in c.maps()] or any(v.start <= where < v.end for v in c.maps())
            assert contents(p) == others


OPERATIONS: dict[str, Callable[[Process, int], Any]] = {
    "munmap": lambda p, a: p.munmap(a + PAGE, PAGE),
    "mprotect": lambda p, a: p.mprotect(a + PAGE, PAGE, 1),
    "dontneed": lambda p, a: p.madvise(a + PAGE, PAGE, 4),
    "mremap": lambda p, a: p.mremap(a, 2 * PAGE, 2 * PAGE, 3, A + (1 << 32)),
    "grow": lambda p, a: p.mremap(a, 5 * PAGE, 50 * PAGE, 1),
    "brk": lambda p, a: p.brk(p.brk() + PAGE),
    "write": lambda p, a: p.write(a, b"x"),
    "read": lambda p, a: p.read(a + 4 * PAGE, 1),
    "fork": lambda p, a: p.fork(),
    "exit": lambda p, a: p.exit(),
}


@pytest.mark.parametrize("name", list(OPERATIONS))
@every_mode
def test_every_allocation_may_fail(mode: ForkMode, name: str) -> None:
    """The nth allocation fails, of frames or of host memory, for every n that a call makes: it raises OutOfMemory,
    mappings and contents of all processes are as before, the machine is consistent, and the same call then works."""
    for nth in range(1, 100):
        with machine(memory="4MiB", fork_mode=mode) as m:
            p = m.spawn()
            a = filled(p, 4, A)
            anon(p, 1, A + 4 * PAGE)
            filled(p, 1, A + (5 << 20))
            c = p.fork()
            before = [(m.procfs.read(f"{q.pid}/maps"), contents(q)) for q in (p, c)]
            m._kernel.core.fail(nth)
            try:
                OPERATIONS[name](c, a)
            except OutOfMemory:
                m._kernel.core.fail(0)
                assert [(m.procfs.read(f"{q.pid}/maps"), contents(q)) for q in (p, c)] == before
                prove(m)
                OPERATIONS[name](c, a)
            else:
                m._kernel.core.fail(0)
                return
    raise AssertionError("never worked")


@pytest.mark.parametrize("link", [False, True])
def test_every_allocation_of_execve_may_fail(link: bool) -> None:
    """The same for execve and spawn of a real program."""
    for nth in range(1, 200):
        with machine(memory="32MiB") as m:
            p = m.spawn()
            filled(p, 4, A)
            before, bytes_ = snapshot(m), contents(p)
            m._kernel.core.fail(nth)
            try:
                p.execve("/bin/sh", ["sh"], {"A": "b"}, link=link)
            except OutOfMemory:
                m._kernel.core.fail(0)
                assert snapshot(m) == before
                assert contents(p) == bytes_
                m.verify()
            else:
                return
    raise AssertionError("never worked")


@sharing_mode
def test_a_write_that_finds_no_frame_leaves_sharing_as_it_was(mode: ForkMode) -> None:
    """A copy that cannot be made: OutOfMemory, both still share, and when the other is gone the write needs no
    frame."""
    with machine(memory=64 * PAGE, fork_mode=mode, overcommit=Overcommit.ALWAYS) as m:
        p = m.spawn()
        a = filled(p, 3, A)
        c = p.fork()
        full = fill_up(m, 4 if mode == ForkMode.ON_DEMAND else 0)
        if mode == ForkMode.ON_DEMAND:
            c.read(a, 1)
        with pytest.raises(OutOfMemory):
            c.write(a, b"xyz")
        assert c.read(a, PAGE) == p.read(a, PAGE) == b"\1" * PAGE
        assert p.pss == c.pss == 3 * PAGE // 2
        p.exit()
        c.write(a, b"xyz")
        assert c.faults.cow_copy == 0
        full.exit()


def test_a_fork_bomb_ends_and_leaves_nothing() -> None:
    """Processes that fork and write until memory is gone; then all go, and the machine is as it was at boot."""
    for mode in ForkMode:
        with Machine(memory=300 * PAGE, fork_mode=mode, overcommit=Overcommit.ALWAYS) as m:
            boot = m.meminfo()
            family = [m.spawn()]
            filled(family[0], 10, A)
            try:
                while True:
                    for p in list(family):
                        c = p.fork()
                        family.append(c)
                        c.write(A + (c.pid % 10) * PAGE, b"bomb")
            except OutOfMemory:
                pass
            assert len(family) > 8
            prove(m)
            for p in family:
                p.exit()
            assert m.meminfo() == boot
            assert list(m.processes) == [1]
            m.verify()


def test_zombies_hold_no_frames() -> None:
    """A process that has exited holds no frame, waited for or not."""
    with machine() as m:
        boot = m.meminfo()
        p = m.spawn()
        a = filled(p, 10)
        before = m.meminfo()
        for c in p.fork_many(5):
            c.write(a, b"x" * (10 * PAGE))
            c.exit()
        assert [c.state for c in p.children] == ["zombie"] * 5
        assert m.meminfo() == before
        p.exit()
        assert m.meminfo() == boot


def test_files_in_a_full_machine() -> None:
    """create_file and pwrite without frames raise and leave nothing behind; reading a host file needs frames as
    well."""
    with machine(memory=64 * PAGE, overcommit=Overcommit.ALWAYS) as m:
        boot = m.meminfo()
        for notify in (False, True):
            with pytest.raises(OutOfMemory):
                m.create_file("big", bytes(100 * PAGE), writenotify=notify)
            assert m.meminfo() == boot
        file = m.create_file("f", b"f" * PAGE)
        full = fill_up(m, 1)
        with pytest.raises(OutOfMemory):
            file.pwrite(b"g" * (3 * PAGE), PAGE)
        assert file.size == 2 * PAGE
        assert file.pread(9 * PAGE, 0) == b"f" * PAGE + b"g" * PAGE
        host = m.open_file("/bin/sh")
        with pytest.raises(OutOfMemory):
            host.pread(10, 0)
        full.exit()
        assert host.pread(4, 0) == b"\x7fELF"
        host.close()
        file.close()
        assert m.meminfo() == boot


def test_strict_overcommit_refuses_before_frames_are_gone() -> None:
    """Overcommit.NEVER: mmap, fork, mprotect and brk fail with ENOMEM when more would be promised than may be."""
    with machine(memory=1000 * PAGE, overcommit=Overcommit.NEVER) as m:
        info = m.meminfo()
        assert info.commit_limit == 500 * PAGE
        p = m.spawn()
        a = anon(p, 300)
        before = snapshot(m)
        calls: list[Callable[[], object]] = [
            p.fork,
            lambda: p.fork_many(3),
            lambda: anon(p, 300),
            lambda: p.mmap(None, 300 * PAGE, RW, SHARED),
            lambda: p.mremap(a, 300 * PAGE, 600 * PAGE, 1),
        ]
        for call in calls:
            with pytest.raises(VmemuError) as caught:
                call()
            assert getattr(caught.value, "errno", None) == errno.ENOMEM
            assert snapshot(m) == before
        top = p.brk()
        assert p.brk(top + 300 * PAGE) == top
        readonly = anon(p, 300, prot=1)
        with pytest.raises(SyscallError):
            p.mprotect(readonly, 300 * PAGE, RW)
        p.munmap(a, 200 * PAGE)
        assert m.meminfo().committed == 100 * PAGE
        c = p.fork()
        assert m.meminfo().committed == 200 * PAGE
        c.exit()
        p.exit()
        assert m.meminfo() == info
