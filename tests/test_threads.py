"""Threads: two on one machine, two on two machines, close while others are inside. No corruption, no error but the
right ones."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, contents, every_mode, filled, machine, program, prove

from vmemu import ForkMode, Machine, Map, MemoryFault, OutOfMemory, Process, SyscallError, VmemuError

SECONDS = 0.3
"""How long each test lets its threads race."""


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def race(*loops: Callable[[], object], seconds: float = SECONDS) -> list[int]:
    """Runs each again and again in a thread of its own; what one raises is raised here. Returns the rounds of each."""
    until = time.monotonic() + seconds
    wrong: list[BaseException] = []
    rounds = [0] * len(loops)

    def run(number: int, once: Callable[[], object]) -> None:
        try:
            while time.monotonic() < until and not wrong:
                once()
                rounds[number] += 1
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(loops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    if wrong:
        raise wrong[0]
    assert sum(rounds)
    return rounds


@every_mode
def test_two_threads_on_one_machine_and_processes_of_their_own(mode: ForkMode) -> None:
    """Each thread forks, writes, maps and ends processes of its own family: no one sees another's bytes, nothing is
    lost."""
    with machine(memory="64MiB", fork_mode=mode) as m:
        boot = m.meminfo()

        def family(value: int) -> Callable[[], None]:
            p = m.spawn()
            a = anon(p, 64, A)
            p.write(a, bytes([value]) * (64 * PAGE))

            def once() -> None:
                c = p.fork()
                c.write(a + 5 * PAGE, bytes([value + 1]) * PAGE)
                b = anon(c, 10)
                c.write(b, bytes([value + 2]) * (10 * PAGE))
                assert (
                    c.read(a, 64 * PAGE)
                    == bytes([value]) * 5 * PAGE + bytes([value + 1]) * PAGE + bytes([value]) * 58 * PAGE
                )
                assert c.read(b, 10 * PAGE) == bytes([value + 2]) * (10 * PAGE)
                c.munmap(b, 10 * PAGE)
                c.exit(value)
                assert p.wait(c.pid) == (c.pid, value << 8)
                p.write(a + 7 * PAGE, bytes([value]) * PAGE)

            return once

        race(family(10), family(20), family(30))
        for p in list(m.processes.values()):
            if p.pid > 1:
                assert len(set(p.read(A, 64 * PAGE))) == 1
                p.exit()
        assert m.meminfo() == boot


@every_mode
def test_two_threads_in_one_process(mode: ForkMode) -> None:
    """One address space, two threads: each writes its own half of every page while both fork; children are
    consistent."""
    with machine(memory="64MiB", fork_mode=mode) as m:
        p = m.spawn()
        a = anon(p, 16)
        half = PAGE // 2

        def writer(which: int) -> Callable[[], None]:
            turn = [0]

            def once() -> None:
                turn[0] = turn[0] % 250 + 1
                for i in range(16):
                    p.write(a + i * PAGE + which * half, bytes([turn[0]]) * half)
                    assert p.read(a + i * PAGE + which * half, half) == bytes([turn[0]]) * half

            return once

        def forker() -> None:
            c = p.fork()
            before = c.read(a, 16 * PAGE)
            c.write(a, b"\xff" * (16 * PAGE))
            assert c.read(a, 16 * PAGE) == b"\xff" * (16 * PAGE)
            for i in range(0, 16 * PAGE, half):
                assert len(set(before[i : i + half])) == 1
            c.exit()
            p.wait(c.pid)

        race(writer(0), writer(1), forker)


def test_two_machines_at_once() -> None:
    """Separate machines in separate threads share nothing."""

    def worker(value: int) -> Callable[[], None]:
        def once() -> None:
            with Machine("16MiB", fork_mode=ForkMode(value % 3)) as m:
                p = m.spawn()
                a = anon(p, 200)
                p.write(a, bytes([value]) * (200 * PAGE))
                c = p.fork()
                c.write(a, bytes([value + 1]) * (100 * PAGE))
                assert c.read(a, 200 * PAGE) == bytes([value + 1]) * (100 * PAGE) + bytes([value]) * (100 * PAGE)
                assert p.read(a, 200 * PAGE) == bytes([value]) * (200 * PAGE)
                m.verify()

        return once

    race(worker(1), worker(2), worker(3))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")
def test_the_interpreter_goes_on_while_one_thread_is_in_the_core() -> None:
    """The GIL is released in C: while a thread touches a gigabyte, another one counts, on a machine of its own too."""
    with Machine("2GiB", contents=False) as m, Machine("16MiB") as other:
        p, q = m.spawn(), other.spawn()
        a, b = p.mmap(None, 1 << 30, RW, ANON), anon(q, 4)
        inside, ticks = threading.Event(), [0, 0]

        def touch() -> None:
            inside.set()
            p.touch(a, 1 << 30, write=True)
            inside.clear()

        thread = threading.Thread(target=touch)
        thread.start()
        inside.wait(5)
        while inside.is_set():
            ticks[0] += 1
            q.touch(b, 4 * PAGE, write=True)
            ticks[1] += 1
        thread.join()
        assert min(ticks) > 20


def test_long_calls_listen_to_signals() -> None:
    """Long calls return to Python at least every 50 ms, so that Ctrl-C works."""

    class Interrupted(Exception):
        pass

    def stop(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with Machine("8GiB", contents=False) as m:
            p = m.spawn()
            a = p.mmap(None, 6 << 30, RW, ANON)
            p.touch(a, 1 << 30, write=True)
            where = np.tile(np.arange(a, a + (1 << 30), PAGE, np.uint64), 40)
            for call in (lambda: p.touch(a, 6 << 30, write=True), lambda: p.access(where, write=True)):
                signal.setitimer(signal.ITIMER_REAL, 0.03)
                with pytest.raises(Interrupted):
                    call()
            m.verify()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_close_while_other_threads_are_inside() -> None:
    """Whoever is inside comes out with VmemuError at its next call; nothing crashes, nothing hangs."""
    for round_ in range(15):
        m = Machine("64MiB")
        p = m.spawn()
        a = p.mmap(None, 32 << 20, RW, ANON)
        file = m.create_file("f", bytes(1 << 20))
        wrong: list[BaseException] = []

        def until_closed(once: Callable[[], object], wrong: list[BaseException] = wrong) -> None:
            try:
                while True:
                    with contextlib.suppress(OutOfMemory):
                        once()
            except VmemuError as error:
                if "closed" not in str(error):
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

        def churn(p: Process = p, a: int = a) -> None:
            p.touch(a, 32 << 20, write=True)
            p.madvise(a, 32 << 20, 4)

        loops: list[Callable[[], Any]] = [
            churn,
            lambda p=p: p.fork().exit(),
            lambda file=file: file.pwrite(b"x" * 100_000, 5),
            lambda m=m: (m.spawn("/bin/sh").exit(), m.meminfo()),
            lambda m=m: m.procfs.read("kpagecount"),
        ]
        threads = [threading.Thread(target=until_closed, args=(loop,)) for loop in loops]
        for thread in threads:
            thread.start()
        time.sleep(0.002 * (round_ % 5))
        m.close()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a thread hangs"
        assert not wrong, repr(wrong[0])


def test_exit_while_another_thread_writes() -> None:
    """The process ends under a writer, another takes its place: the writer hears of it (ESRCH, or nothing mapped
    yet), and nobody else's memory is written."""
    with machine(memory="64MiB") as m:
        current = [m.spawn()]

        def write() -> None:
            with contextlib.suppress(ProcessLookupError, MemoryFault):
                current[0].write(A, b"x" * (16 * PAGE))

        def replace() -> None:
            fresh = m.spawn()
            anon(fresh, 16, A)
            old, current[0] = current[0], fresh
            old.exit()
            bystander = m.spawn()
            anon(bystander, 16, A)
            assert bystander.read(A, 16 * PAGE) == bytes(16 * PAGE)
            bystander.exit()

        race(write, write, replace)


def test_exit_in_a_pause_of_a_long_call() -> None:
    """A signal handler runs between two slices of a long touch, ends the process and starts another with the same
    layout: the rest of the touch does not go to the other."""
    made: list[Process] = []
    with Machine("2GiB", contents=False) as m:
        p = m.spawn()
        p.mmap(A, 1 << 30, RW, ANON | Map.FIXED)

        def handler(*_: object) -> None:
            p.exit()
            made.append(m.spawn())
            made[0].mmap(A, 1 << 30, RW, ANON | Map.FIXED)

        before = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            with pytest.raises(ProcessLookupError):
                while not made:
                    p.touch(A, 1 << 30, write=True)
                    p.madvise(A, 1 << 30, 4)
                p.touch(A, PAGE)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert made[0].rss == 0
        m.verify()


def test_munmap_while_another_thread_reads_a_file(tmp_path: Path) -> None:
    """The mapping, the file and its cache go while a fault on it waits for the page: SIGSEGV or the bytes, nothing
    else."""
    path = tmp_path / "file"
    data = os.urandom(1 << 20)
    path.write_bytes(data)
    with machine(memory="64MiB") as m:
        p = m.spawn()

        def read() -> None:
            with contextlib.suppress(MemoryFault):
                assert p.read(A, 1 << 20) == data

        def churn() -> None:
            file = m.open_file(path)
            p.mmap(A, 1 << 20, R, Map.PRIVATE | Map.FIXED, file)
            file.close()
            others = [m.create_file("x", b"x") for _ in range(20)]
            p.munmap(A, 1 << 20)
            del others

        race(read, read, churn)


def test_looking_while_others_change() -> None:
    """maps, smaps, pagemap, procfs, counters while mappings and processes come and go."""
    with machine(memory="32MiB") as m:
        p = m.spawn()
        anon(p, 4, A)

        def change() -> None:
            made = [p.mmap(None, PAGE, RW, SHARED) for _ in range(30)]
            file = m.create_file("f", b"x" * PAGE)
            made.append(p.mmap(None, PAGE, RW, Map.PRIVATE, file))
            file.close()
            for where in made:
                p.write(where, b"x")
                p.munmap(where, PAGE)

        def fork() -> None:
            c = p.fork()
            c.write(A, b"x")
            c.exit()
            p.wait(c.pid)

        def look() -> None:
            assert any(v.start == A for v in p.maps())
            assert any(usage.mapping.start == A for usage in p.smaps())
            m.procfs.read(f"{p.pid}/maps")
            assert p.pss <= 1 << 20
            assert p.rss >= 0
            p.pagemap(A, 4)
            m.meminfo()
            m.frame_stats()
            for pid in list(m.processes):
                q = m.processes.get(pid)
                if q is not None:
                    assert q.state in ("running", "zombie", "gone")
            m.verify()

        race(change, fork, look)


def test_vfork_by_two_threads() -> None:
    """While one has the memory on loan the other hears EBUSY; faults and bytes are right afterwards."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 4)
        done = [0]

        def loan() -> None:
            try:
                v = p.vfork()
            except SyscallError as error:
                assert error.name == "EBUSY"
                return
            v.write(a, b"v")
            v.exit()
            done[0] += 1

        def write() -> None:
            try:
                p.write(a + PAGE, b"w")
            except SyscallError as error:
                assert error.name == "EBUSY"

        race(loan, loan, write)
        assert done[0]
        assert p.state == "running"
        assert p.read(a, 1) == b"v"
        assert p.faults.total == 4
        for _ in range(done[0]):
            p.wait()


def test_files_dropped_in_any_thread() -> None:
    """Handles that die in a collection, in whatever thread that runs: nothing is freed twice, nothing stays."""
    with machine(memory="1GiB", contents=False) as m:
        boot = m.meminfo()

        def make() -> None:
            file = m.create_file("f", b"x" * PAGE)
            file.me = file  # type: ignore[attr-defined]
            assert file.pread(9, 0) == bytes(9)

        race(make, make, gc.collect, m.meminfo)
        gc.collect()
        assert m.meminfo() == boot


def test_programs_in_many_threads(tmp_path: Path) -> None:
    """exec, fork, exec from several threads: images, page cache and counters stay right."""
    paths = [str(program(tmp_path, f"program{i}")) for i in range(3)]
    with machine() as m:
        boot = m.meminfo()

        def run(path: str) -> Callable[[], None]:
            def once() -> None:
                p = m.spawn(path, ["x"])
                c = p.fork()
                c.execve(random.choice(paths))
                assert (p.exe, p.argv) == (path, (b"x",))
                c.exit()
                p.exit()

            return once

        race(*(run(path) for path in paths))
        assert m.meminfo() == boot
        assert list(m.processes) == [1]
        assert contents(m.init) == []
        prove(m)
