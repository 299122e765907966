"""The fault log: a record for each fault that is counted, from every path, with whose it was and which frames."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, every_mode, machine, program, sharing_mode

import vmemu
from vmemu import (
    FAULT_DTYPE,
    NO_FRAME,
    Advice,
    Clone,
    FaultCounts,
    FaultKind,
    FaultsLost,
    ForkMode,
    Machine,
    Map,
    MemoryFault,
    Process,
    Resource,
    SyscallError,
    VmemuError,
    workloads,
)

NAMES = [kind.name.lower() for kind in FaultKind]


def by_kind(records: Any) -> FaultCounts:
    return FaultCounts(**Counter(NAMES[kind] for kind in records["kind"].tolist()))


def rows(records: Any) -> list[tuple[int, str, int, int, int]]:
    """pid, kind, access, old and new frame."""
    return [
        (int(r["pid"]), FaultKind(r["kind"]).name, int(r["access"]), int(r["old_frame"]), int(r["new_frame"]))
        for r in records
    ]


def frame(p: Process, address: int) -> int:
    found = p.translate(address)
    return NO_FRAME if found is None else found.pfn


@every_mode
def test_what_a_record_says(mode: ForkMode) -> None:
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = anon(p, 4)
        with m.trace_faults(100) as log:
            p.read(a + 5, 1)
            p.write(a + 7, b"x")
            first = frame(p, a)
            p.write(a + 8, b"no fault")
            c = p.fork()
            c.write(a + PAGE - 1, b"y")
            with contextlib.suppress(MemoryFault):
                c.read(a, 1, fetch=True)
            with contextlib.suppress(MemoryFault):
                c.write(A - 1, b"?")
            c.access([(1 << 47) - 1, 1 << 63], write=True)
            eager = mode == ForkMode.EAGER
            copied = frame(c, a)
            assert log.records.dtype == FAULT_DTYPE == vmemu.FAULT_DTYPE
            assert rows(log.records) == [
                (2, "ZERO_MAP", 0, NO_FRAME, m.zero_pfn),
                (2, "ZERO_FILL", 1, m.zero_pfn, first),
                *([] if eager else [(3, "COW_COPY", 1, first, copied)]),
                (3, "SEGV_ACCERR", 2, copied, copied),
                (3, "SEGV_MAPERR", 1, NO_FRAME, NO_FRAME),
                (3, "SEGV_MAPERR", 1, NO_FRAME, NO_FRAME),
                (3, "SEGV_MAPERR", 1, NO_FRAME, NO_FRAME),
            ]
            assert log.records["sequence"].tolist() == list(range(len(log)))
            where = [a + 5, a + 7, *([] if eager else [a + PAGE - 1]), a, A - 1, (1 << 47) - 1, 1 << 63]
            assert log.records["address"].tolist() == where
            assert by_kind(log.records) == m.faults
        p.write(a + PAGE, b"not recorded")
        assert len(log) == len(where)


@every_mode
@pytest.mark.parametrize("seed", range(6))
def test_every_fault_that_is_counted_is_recorded(mode: ForkMode, seed: int) -> None:
    """Whatever happens: as many records of each kind, and for each process, as the machine counts; each record's frames
    are those that the page table showed before and after."""
    r = random.Random(seed)
    options = {"thp": r.choice(("never", "always")), "memory": "64MiB"}
    with machine(fork_mode=mode, **options) as m, m.trace_faults(100_000) as log:
        f = m.create_file("f", bytes(20 * PAGE))
        alive = [m.spawn()]
        faults = FaultCounts()
        for _ in range(250):
            p, a = r.choice(alive), A + r.randrange(530) * PAGE
            n = r.choice((1, 1, 3, 20)) * PAGE
            before, seen = len(log), frame(p, a)
            kind = r.randrange(14)
            with contextlib.suppress(SyscallError, MemoryFault):
                if kind < 3:
                    p.mmap(r.choice((a, A)), r.choice((n, 600 * PAGE)), RW, r.choice((ANON, ANON, SHARED)) | Map.FIXED)
                elif kind == 3:
                    p.mmap(a, n, r.choice((R, RW)), r.choice((Map.PRIVATE, Map.SHARED)) | Map.FIXED | Map.POPULATE, f)
                elif kind < 7:
                    p.touch(a, n, write=r.random() < 0.6)
                elif kind == 7:
                    p.access([A + r.randrange(530) * PAGE for _ in range(30)], [r.random() < 0.5 for _ in range(30)])
                elif kind == 8:
                    p.mlock(a, n)
                elif kind == 9:
                    p.madvise(a, n, r.choice((Advice.DONTNEED, Advice.POPULATE_WRITE, Advice.FREE)))
                elif kind == 10 and len(alive) < 8:
                    alive.append(p.fork())
                elif kind == 11 and len(alive) > 3:
                    alive.remove(p)
                    faults += p.faults
                    p.exit()
                    continue
                elif kind == 12:
                    m.run(workloads.uniform(npages=20, naccesses=30, seed=r.randrange(99))[2:], [p])
                else:
                    p.write(a, b"x")
                    new = log.records[before:]
                    if len(new) == 1:
                        assert rows(new) == [(p.pid, FaultKind(new["kind"][0]).name, 1, seen, frame(p, a))]
        assert log.lost == 0
        assert by_kind(log.records) == m.faults
        for p in alive:
            assert by_kind(log.records[log.records["pid"] == p.pid]) == p.faults
        assert len(log) > 100


def test_merged_pages_that_are_made_single_again() -> None:
    with machine() as m:
        p = m.spawn()
        a = anon(p, 6)
        for i in range(6):
            p.write(a + i * PAGE, b"the same")
        p.madvise(a, 6 * PAGE, Advice.MERGEABLE)
        for _ in range(4):
            m.ksm.scan()
        assert frame(p, a) == frame(p, a + PAGE)
        old, counted = frame(p, a), m.faults
        with m.trace_faults() as log:
            p.madvise(a, 6 * PAGE, Advice.UNMERGEABLE)
            assert rows(log.records) == [(p.pid, "COW_COPY", 0, old, frame(p, a + i * PAGE)) for i in range(6)]
            assert log.records["address"].tolist() == [a + i * PAGE for i in range(6)]
            assert by_kind(log.records) == m.faults - counted


def test_exec_is_recorded_as_the_process(tmp_path: Path) -> None:
    with machine(memory="64MiB") as m, m.trace_faults() as log:
        p = m.spawn(program(tmp_path))
        assert by_kind(log.records) == m.faults == p.faults
        assert set(log.records["pid"].tolist()) == {p.pid}
        c = p.fork()
        c.execve(str(tmp_path / "program"))
        c.read(c.entry_point, 1, fetch=True)
        assert by_kind(log.records[log.records["pid"] == c.pid]) == c.faults
        v = p.vfork()
        log.clear()
        v.execve(str(tmp_path / "program"))
        assert set(log.records["pid"].tolist()) == {v.pid}


def test_who_shares_memory_is_told_apart() -> None:
    """vfork and CLONE_VM: the record says who made the access; threads are their process."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 10)
        with m.trace_faults() as log:
            v = p.vfork()
            v.write(a, b"v")
            v.exit()
            p.write(a + PAGE, b"p")
            s = p.clone(Clone.VM | signal.SIGCHLD)
            s.write(a + 2 * PAGE, b"s")
            p.write(a + 3 * PAGE, b"p")
            t = s.clone(Clone.VM | Clone.SIGHAND | Clone.THREAD)
            t.write(a + 4 * PAGE, b"t")
            pids = [p.pid if letter == "p" else s.pid if letter in "st" else v.pid for letter in "vpspt"]
            assert log.records["pid"].tolist() == pids
            s.kill(s.pid, signal.SIGKILL)
            p.write(a + 5 * PAGE, b"p")
            assert log.records["pid"].tolist() == [*pids, p.pid]
        with m.trace_faults() as log:  # opened while they share
            s = p.clone(Clone.VM | signal.SIGCHLD)
            s.write(a + 6 * PAGE, b"s")
        with m.trace_faults() as log:
            s.write(a + 7 * PAGE, b"s")
            p.write(a + 8 * PAGE, b"p")
            assert log.records["pid"].tolist() == [s.pid, p.pid]


def test_a_thread_that_execs_takes_the_place_of_its_process(tmp_path: Path) -> None:
    with machine() as m, m.trace_faults() as log:
        p = m.spawn()
        t = p.clone(Clone.VM | Clone.SIGHAND | Clone.THREAD)
        t.execve(str(program(tmp_path)))
        p.write(p.stack_pointer - PAGE, b"x")
        assert set(log.records["pid"].tolist()) == {p.pid}


def test_ids_of_spaces_are_used_again_and_pids_are_not_mixed_up() -> None:
    with machine() as m, m.trace_faults() as log:
        expected = []
        for _ in range(200):
            p = m.spawn()
            anon(p, 1, A)
            p.write(A, b"x")
            expected.append(p.pid)
            p.exit()
        assert log.records["pid"].tolist() == expected
        kids = m.spawn().fork_many(5)
        for kid in kids:
            anon(kid, 1, A)
            kid.write(A, b"x")
        assert log.records["pid"][-5:].tolist() == [kid.pid for kid in kids]


@sharing_mode
def test_no_frame_left(mode: ForkMode) -> None:
    """The fault is recorded, with the frame that stays."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = anon(p, 2)
        p.write(a, b"x")
        c = p.fork()
        with m.trace_faults() as log:
            m._kernel.core.fail(1)
            assert c.access([a], write=True).tolist() == [FaultKind.OOM]
            m._kernel.core.fail(0)
            assert rows(log.records) == [(c.pid, "OOM", 1, frame(p, a), frame(p, a))]


def test_what_the_machine_refuses_after_it_asked() -> None:
    """Stacks that may not grow, files that can't be read: decided in Python, recorded all the same."""
    with machine() as m:
        p = m.spawn()
        stack = p.mmap(A, PAGE, RW, ANON | Map.FIXED | Map.GROWSDOWN)
        p.setrlimit(Resource.STACK, (4 * PAGE, 4 * PAGE))
        with m.trace_faults() as log:
            p.write(stack - PAGE, b"grows")
            assert p.access([stack - 20 * PAGE, stack - 21 * PAGE], write=[True, False]).tolist() == [10, 10]
            assert rows(log.records)[1:] == [
                (p.pid, "SEGV_MAPERR", 1, NO_FRAME, NO_FRAME),
                (p.pid, "SEGV_MAPERR", 0, NO_FRAME, NO_FRAME),
            ]


# ---- the ring ----


def faulty(m: Machine) -> tuple[Process, int]:
    p = m.spawn()
    return p, anon(p, 4000, A)


def test_overflow_is_reported() -> None:
    with machine(memory="32MiB") as m:
        p, a = faulty(m)
        with m.trace_faults(8) as log:
            for n in range(30):
                p.write(a + n * PAGE, b"x")
                kept = min(n + 1, 8)
                assert len(log) == kept
                if n >= 8:
                    with pytest.warns(FaultsLost, match=f"{n - 7} faults were overwritten: there is room for 8"):
                        found = log.records
                    with warnings.catch_warnings():
                        warnings.simplefilter("error")
                        assert np.array_equal(log.records, found)  # it has been said
                    assert log.lost == n - 7
                else:
                    found = log.records
                    assert log.lost == 0
                assert found["sequence"].tolist() == list(range(n + 1 - kept, n + 1))
                assert found["address"].tolist() == [a + i * PAGE for i in range(n + 1 - kept, n + 1)]
            assert repr(log) == "<vmemu.FaultLog: 8 of 8 records, 22 lost>"
            log.clear()
            assert (len(log), log.lost) == (0, 0)
            p.write(a + 40 * PAGE, b"x")
            assert log.records["sequence"].tolist() == [30]
        assert repr(log) == "<vmemu.FaultLog: 1 of 8 records, 0 lost, closed>"


def test_asking_for_what_was_lost_is_enough() -> None:
    """Who keeps an eye on `lost` is not warned."""
    with machine(memory="32MiB") as m:
        p, a = faulty(m)
        with m.trace_faults(4) as log, warnings.catch_warnings():
            warnings.simplefilter("error")
            p.touch(a, 10 * PAGE, write=True)
            assert log.lost == 6
            assert len(log.records) == 4


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 8, 64])
def test_any_capacity_and_reads_at_any_time(capacity: int) -> None:
    """Sorting the ring in place loses nothing and repeats nothing."""
    r = random.Random(capacity)
    with machine(memory="32MiB") as m:
        p, a = faulty(m)
        with m.trace_faults(capacity) as log:
            done = cleared = 0
            for _ in range(60):
                n = r.choice((0, 1, 1, 2, capacity, capacity + 1))
                p.touch(a + done * PAGE, n * PAGE, write=True)
                done += n
                lost = max(0, done - cleared - capacity)
                assert log.lost == lost
                assert log.records["sequence"].tolist() == list(range(cleared + lost, done))
                if r.random() < 0.1:
                    log.clear()
                    cleared = done


def test_records_are_a_view() -> None:
    """Of the ring: not copied, not to be written, live."""
    with machine(memory="32MiB") as m:
        p, a = faulty(m)
        with m.trace_faults(4) as log:
            p.touch(a, 4 * PAGE, write=True)
            one, two = log.records, log.records
            assert one.base is not None and np.shares_memory(one, two)
            with pytest.raises(ValueError, match="read-only"):
                one["pid"] = 1
            for view in (one, one[1:], one.view(np.uint32)):
                with pytest.raises(ValueError, match="cannot set WRITEABLE"):
                    view.setflags(write=True)
            p.write(a + 9 * PAGE, b"x")
            assert one["address"].tolist() == [a + 9 * PAGE, a + PAGE, a + 2 * PAGE, a + 3 * PAGE]
            assert log.lost == 1


def test_a_log_may_be_read_when_all_is_over() -> None:
    m = Machine("32MiB")
    p, a = faulty(m)
    log = m.trace_faults(4)
    p.touch(a, 2 * PAGE, write=True)
    log.close()
    log.close()
    m.close()
    assert log.records["address"].tolist() == [a, a + PAGE]
    log.clear()
    assert (len(log), log.lost) == (0, 0)


def test_closing_the_machine_closes_its_log() -> None:
    m = Machine("32MiB")
    p, a = faulty(m)
    log = m.trace_faults(4)
    p.touch(a, 6 * PAGE, write=True)
    m.close()
    assert (len(log), log.lost) == (4, 2)
    assert log.records["address"].tolist() == [a + i * PAGE for i in range(2, 6)]
    assert repr(log) == "<vmemu.FaultLog: 4 of 4 records, 2 lost, closed>"
    log.close()
    log.clear()
    assert len(log.records) == 0
    with pytest.raises(VmemuError, match="closed"):
        m.trace_faults()


def test_a_log_ends_with_its_last_reference() -> None:
    """What was taken of it stays; another one may be opened, and nothing is written to the first any more."""
    with machine(memory="32MiB") as m:
        p, a = faulty(m)
        log = m.trace_faults(4)
        p.touch(a, 2 * PAGE, write=True)
        kept = log.records
        del log
        gc.collect()
        assert m._kernel.log_owners is None and m._kernel.log is None
        p.touch(a + 2 * PAGE, PAGE, write=True)
        with m.trace_faults(4) as other:
            p.touch(a + 3 * PAGE, 3 * PAGE, write=True)
            assert len(other) == 3
        assert kept["address"].tolist() == [a, a + PAGE]


def test_a_log_in_a_cycle_ends_when_it_is_collected() -> None:
    with machine(memory="32MiB") as m:
        p, a = faulty(m)
        cycle: list[object] = [m.trace_faults(4)]
        cycle.append(cycle)
        del cycle
        p.fork().exit()
        gc.collect()
        p.touch(a, PAGE, write=True)
        with m.trace_faults(4) as log:
            assert len(log) == 0


def test_one_log_at_a_time() -> None:
    with machine(memory="32MiB") as m, machine() as other:
        with m.trace_faults() as log, other.trace_faults():
            with pytest.raises(ValueError, match="a log of this machine is open"):
                m.trace_faults()
            assert log.capacity == 65536
        p, a = faulty(m)
        with m.trace_faults() as again:
            p.write(a, b"x")
            assert (len(log), len(again)) == (0, 1)


@pytest.mark.parametrize(
    ("capacity", "error"),
    [(0, ValueError), (-1, ValueError), (1 << 40, ValueError), ("8", TypeError), (1.5, TypeError)],
)
def test_bad_capacities(capacity: Any, error: type[Exception]) -> None:
    with machine() as m:
        with pytest.raises(error, match="capacity"):
            m.trace_faults(capacity)
        m.trace_faults(1).close()


def test_threads() -> None:
    """One thread faults, another reads, clears and reopens the log: no record is torn."""
    with machine(memory="64MiB") as m:
        p = m.spawn()
        a = anon(p, 2000, A)
        stop = threading.Event()
        wrong: list[str] = []

        def fault() -> None:
            while not stop.is_set():
                p.touch(a, 2000 * PAGE, write=True)
                p.madvise(a, 2000 * PAGE, Advice.DONTNEED)

        thread = threading.Thread(target=fault)
        thread.start()
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(40):
                with m.trace_faults(300) as log:
                    for _ in range(10):
                        _ = log.lost
                        log.clear()
                _ = log.lost
                closed = log.records
                steps = np.diff(closed["sequence"].astype(np.int64))
                if not np.all(steps == 1) or not np.all(closed["pid"] == p.pid):
                    wrong.append(str(closed))
        finally:
            sys.setswitchinterval(before)
            stop.set()
            thread.join()
        assert not wrong


def test_a_log_costs_the_machine_no_memory_of_its_own() -> None:
    with machine() as m:
        before = m._kernel.core.info().host_bytes
        with m.trace_faults(1000):
            assert m._kernel.core.info().host_bytes == before
