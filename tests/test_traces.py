"""Traces: a run does what the same operations do one by one, through p.access, p.fork and the rest; which arrays are
traces."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from machines import ANON, PAGE, RW, SHARED, A, anon, contents, counts, every_mode, machine, program, prove, snapshot

import vmemu
from vmemu import (
    TRACE_DTYPE,
    FaultCounts,
    FaultKind,
    ForkMode,
    Machine,
    Map,
    MemoryFault,
    Operation,
    OutOfMemory,
    Process,
    Prot,
    RunResult,
    SyscallError,
    TraceError,
    VmemuError,
    load_trace,
    save_trace,
    workloads,
)

Row = tuple[int, int, int, int]
"""address, size, pid, operation."""
START = A + (512 - 12) * PAGE
"""24 pages from here on lie on both sides of a border between leaf tables."""


def trace(*rows: Row) -> Any:
    return np.array(list(rows), TRACE_DTYPE)


# ---- the same, one by one ----


def one_access(m: Machine, p: Process, address: int, operation: int) -> FaultKind:
    if operation != Operation.FETCH:
        return FaultKind(p.access([address % (1 << 64)], operation == Operation.WRITE)[0])
    before = m.faults
    try:
        p.read(address % (1 << 64), 1, fetch=True)
    except MemoryFault as fault:
        return fault.kind
    except OutOfMemory:
        return FaultKind.OOM
    done = [kind for kind, n in zip(FaultKind, vars_of(m.faults - before), strict=True) if n]
    return done[0] if done else FaultKind.NONE


def vars_of(faults: FaultCounts) -> list[int]:
    return list(faults.as_dict().values())


def one_by_one(m: Machine, rows: list[Row], processes: dict[int, Process]) -> tuple[list[int], FaultCounts]:
    """Makes the records' operations by hand. What one raises has `.at`, its index."""
    outcomes, kinds = [], [0] * len(FaultKind)
    for index, (address, size, label, operation) in enumerate(rows):
        worst = FaultKind.NONE
        try:
            if operation <= Operation.FETCH:
                done = 0
                while done < size and not worst.fatal:
                    kind = one_access(m, processes[label], address + done, operation)
                    kinds[kind] += 1
                    worst = max(worst, kind)
                    done += PAGE - (address + done) % PAGE
            elif operation == Operation.SPAWN:
                processes[label] = m.spawn()
            elif operation == Operation.FORK:
                processes[address] = processes[label].fork()
            elif operation == Operation.EXIT:
                processes.pop(label).exit(address & 0xFF)
            elif operation == Operation.WAIT:
                with contextlib.suppress(SyscallError):
                    while True:
                        processes[label].wait()
            elif operation == Operation.MMAP:
                processes[label].mmap(address, size, RW, ANON | Map.FIXED)
            elif operation == Operation.MMAP_SHARED:
                processes[label].mmap(address, size, RW, SHARED | Map.FIXED)
            else:
                processes[label].munmap(address, size)
        except VmemuError as error:
            error.at = index  # type: ignore[attr-defined]
            raise
        outcomes.append(int(worst))
    return outcomes, FaultCounts(*kinds)


def furnished(m: Machine) -> Process:
    """A process with every kind of mapping that needs a decision or refuses something."""
    p = m.spawn()
    f = m.create_file("f", bytes(range(256)) * 40)
    g = m.open_file(sys.executable)
    p.mmap(START, 3 * PAGE, RW, Map.PRIVATE | Map.FIXED, f)
    p.mmap(START + 3 * PAGE, 2 * PAGE, RW, Map.SHARED | Map.FIXED, f)
    p.mmap(START + 5 * PAGE, 6 * PAGE, Prot.READ | Prot.EXEC, Map.PRIVATE | Map.FIXED, g)
    p.mmap(START + 11 * PAGE, PAGE, Prot.READ, ANON | Map.FIXED)
    p.mmap(START + 12 * PAGE, 4 * PAGE, RW, ANON | Map.FIXED)
    p.mmap(START + 16 * PAGE, PAGE, Prot.NONE, ANON | Map.FIXED)
    p.mmap(START + 20 * PAGE + 300 * PAGE, PAGE, RW, ANON | Map.FIXED | Map.GROWSDOWN)
    p.write(START + 13 * PAGE, b"thirteen")
    return p


def outcome(m: Machine, rows: list[Row], p: Process | None, run: bool) -> Any:
    """What the rows come to on a machine, and all that can be seen of it afterwards."""
    given = {0: p} if p is not None else {}
    raised: Any = None
    got: Any = None
    try:
        if run:
            result = m.run(trace(*rows), given)
            assert result.outcomes is not None and result.outcomes.dtype == np.uint8
            got = result.outcomes.tolist(), result.counts, {k: v.pid for k, v in result.processes.items()}
        else:
            kinds, total = one_by_one(m, rows, given)
            got = kinds, total, {k: v.pid for k, v in given.items()}
    except VmemuError as error:
        at = error.at if not run else int(error.__notes__[0].split()[2])  # type: ignore[attr-defined]
        raised = type(error), str(error), at
    m.verify()
    alive = [q for q in m.processes.values() if q.state == "running"]
    return got, raised, snapshot(m), [contents(q) for q in alive]


def same(rows: list[Row], with_process: bool, **options: Any) -> None:
    """A run and the same operations one by one have the same outcomes, counters and memory."""
    seen = []
    for run in (True, False):
        with Machine(**options) as m:
            seen.append(outcome(m, rows, furnished(m) if with_process else None, run))
    for one, other in zip(*seen, strict=True):
        assert one == other


@st.composite
def traces(draw: st.DrawFn, first: bool) -> list[Row]:
    """Random traces that are valid; *first*: label 0 is there from the start."""
    rows: list[Row] = []
    alive = [0] if first else []
    page = st.integers(-1, 25).map(lambda i: START + i * PAGE)
    for _ in range(draw(st.integers(1, 40))):
        if not alive or (len(alive) < 6 and draw(st.integers(0, 19)) == 0):
            born = next(i for i in range(9) if i not in alive)
            rows.append((0, 0, born, Operation.SPAWN))
            alive.append(born)
            continue
        label = draw(st.sampled_from(alive))
        kind = draw(st.sampled_from("rrrrwwwwwwffmmmsuuFFFEWo"))
        if kind in "rwf":
            offset = draw(st.sampled_from((0, 0, 8, 4090, 4095)))
            size = draw(st.sampled_from((1, 8, 8, 8, 4096, 3 * PAGE, 2**64 - 1)))
            rows.append((draw(page) + offset, size, label, "rwf".index(kind)))
        elif kind == "o":
            odd = draw(st.sampled_from((0, (1 << 47) - PAGE, 1 << 47, (1 << 64) - 8, (1 << 64) - PAGE - 8, 1 << 52)))
            rows.append((odd, draw(st.sampled_from((1, 8, 2 * PAGE))), label, draw(st.integers(0, 2))))
        elif kind in "msu":
            operation = {"m": Operation.MMAP, "s": Operation.MMAP_SHARED, "u": Operation.MUNMAP}[kind]
            size = draw(st.sampled_from((1, PAGE, 5 * PAGE, 5 * PAGE + 1, 12 * PAGE)))
            rows.append((draw(page), size, label, operation))
        elif kind == "F" and len(alive) < 8:
            born = next(i for i in range(9) if i not in alive)
            rows.append((born, 0, label, Operation.FORK))
            alive.append(born)
        elif kind == "E":
            rows.append((draw(st.sampled_from((0, 3, 256 + 7))), 0, label, Operation.EXIT))
            alive.remove(label)
        else:
            rows.append((0, 0, label, Operation.WAIT))
    return rows


COW_TWICE = [
    (0, 0, 1, Operation.SPAWN),
    (START, 12 * PAGE, 1, Operation.MMAP),
    (START, 12 * PAGE, 1, Operation.WRITE),
    (2, 0, 1, Operation.FORK),
    (START, 8, 2, Operation.READ),
    (START, 8, 2, Operation.WRITE),
    (START, 8, 1, Operation.WRITE),
    (START + PAGE, 8, 1, Operation.WRITE),
    (START + PAGE, 8, 2, Operation.WRITE),
]


@every_mode
@settings(max_examples=60, deadline=None)
@example(rows=COW_TWICE, memory=256)
@given(rows=traces(first=False), memory=st.sampled_from((40, 60, 4096)))
def test_a_run_is_the_same_as_its_operations_one_by_one(mode: ForkMode, rows: list[Row], memory: int) -> None:
    same(rows, False, memory=memory * PAGE, fork_mode=mode)


@every_mode
@settings(max_examples=60, deadline=None)
@given(
    rows=traces(first=True), options=st.sampled_from(({}, {"contents": False}, {"reuse": False}, {"zero_page": False}))
)
def test_the_same_with_files_and_a_stack(mode: ForkMode, rows: list[Row], options: dict[str, Any]) -> None:
    """Where the core needs decisions: pages of files to read, stacks to grow; and what mappings refuse."""
    same(rows, True, memory="16MiB", fork_mode=mode, **options)


@every_mode
@settings(max_examples=20, deadline=None)
@given(rows=traces(first=False))
def test_the_same_with_huge_pages(mode: ForkMode, rows: list[Row]) -> None:
    huge = [(START & -(2 << 20), 4 << 20, row[2], Operation.MMAP) if row[3] == Operation.MMAP else row for row in rows]
    same(huge, False, memory="64MiB", fork_mode=mode, thp="always")


@every_mode
def test_workloads_one_by_one(mode: ForkMode) -> None:
    """The generators' own traces too, small ones."""
    for made in (
        workloads.fork_join(rounds=3, nprocesses=3, npages=20, naccesses=10, seed=2),
        workloads.snapshot_under_write(snapshots=2, npages=20, naccesses=30, seed=2),
        workloads.mixed(nprocesses=5, npages=20, naccesses=300, seed=2),
    ):
        rows = [tuple(int(x) for x in row) for row in made.tolist()]
        same(rows, False, memory="4MiB", fork_mode=mode)  # type: ignore[arg-type]


# ---- what a run returns ----


def test_outcomes_and_counts() -> None:
    with machine() as m:
        result = m.run(
            trace(
                (0, 0, 7, Operation.SPAWN),
                (A, 4 * PAGE, 7, Operation.MMAP),
                (A, 8, 7, Operation.READ),
                (A, 2 * PAGE, 7, Operation.WRITE),
                (A, 1, 7, Operation.FETCH),
                (A + 3 * PAGE, 2 * PAGE, 7, Operation.WRITE),
                (A + 4 * PAGE, 8, 7, Operation.READ),
                (9, 0, 7, Operation.FORK),
                (A + PAGE - 4, 8, 9, Operation.WRITE),
                (A + PAGE - 4, 8, 9, Operation.WRITE),
                (5, 0, 9, Operation.EXIT),
                (0, 0, 7, Operation.WAIT),
                (A, 8, 7, Operation.WRITE),
            )
        )
        assert isinstance(result, RunResult)
        assert result.outcomes is not None
        assert [FaultKind(k).name for k in result.outcomes] == [
            *("NONE", "NONE", "ZERO_MAP", "ZERO_FILL", "SEGV_ACCERR", "SEGV_MAPERR", "SEGV_MAPERR"),
            *("NONE", "COW_COPY", "NONE", "NONE", "NONE", "COW_REUSE"),
        ]
        assert result.counts == counts(
            none=2, zero_map=1, zero_fill=3, segv_accerr=1, segv_maperr=2, cow_copy=2, cow_reuse=1
        )
        assert list(result.processes) == [7]
        assert result.processes[7].faults == counts(zero_map=1, zero_fill=3, segv_accerr=1, segv_maperr=2, cow_reuse=1)
        assert result.processes[7].children == []
        assert len(m.processes) == 2


def test_only_counts() -> None:
    with machine() as m, machine() as other:
        made = workloads.fork_join(npages=64)
        one, two = m.run(made), other.run(made, outcomes=False)
        assert two.outcomes is None
        assert one.counts == two.counts
        assert one.outcomes is not None and one.outcomes.shape == made.shape


def test_a_write_leaves_the_bytes_as_they_are() -> None:
    with machine() as m:
        p = m.spawn()
        a = anon(p, 2)
        p.write(a, b"bytes")
        c = p.fork()
        m.run(trace((a, PAGE + 1, 0, Operation.WRITE)), [c])
        assert c.read(a, 5) == b"bytes"
        found = c.translate(a)
        assert found is not None and found.dirty and found.pfn != p.translate(a).pfn  # type: ignore[union-attr]


def test_processes_by_label_or_in_a_sequence() -> None:
    with machine() as m:
        p, q = m.spawn(), m.spawn()
        anon(p, 1, A)
        anon(q, 1, A)
        m.run(trace((A, 8, 1, Operation.WRITE)), [p, q])
        assert (p.faults.zero_fill, q.faults.zero_fill) == (0, 1)
        result = m.run(trace((A, 8, 4_000_000, Operation.WRITE), (5, 0, 4_000_000, Operation.FORK)), {4_000_000: p})
        assert (p.faults.zero_fill, q.faults.zero_fill) == (1, 1)
        many = m.run(
            trace(*((label, 0, 0, Operation.FORK) for label in (1, 5000, 1023, 1024, 100_000, 4_194_303))), [p]
        )
        assert list(many.processes) == [0, 1, 5000, 1023, 1024, 100_000, 4_194_303]
        assert result.processes[4_000_000] == p and result.processes[5].ppid == p.pid


def test_a_label_may_be_used_again() -> None:
    with machine() as m:
        rows = []
        for _ in range(50):
            rows += [(0, 0, 3, Operation.SPAWN), (A, PAGE, 3, Operation.MMAP), (A, 8, 3, Operation.WRITE)]
            rows += [(0, 0, 3, Operation.EXIT)]
        result = m.run(trace(*rows))
        assert result.counts == counts(zero_fill=50)
        assert result.processes == {}


def test_tasks_that_share_memory_count_their_own_faults() -> None:
    """A thread's faults are its own; two labels for one memory are refused."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        t = p.clone(vmemu.Clone.VM | vmemu.Clone.SIGHAND | vmemu.Clone.THREAD)
        p.write(a, b"x")
        m.run(trace((a + PAGE, 8, 0, Operation.WRITE), (a + 2 * PAGE, 8, 0, Operation.WRITE)), [t])
        assert (t.faults.zero_fill, p.faults.zero_fill) == (2, 3)
        with pytest.raises(ValueError, match="labels 0 and 1 have the same memory"):
            m.run(trace((a, 8, 0, Operation.READ)), [p, t])
        v = p.vfork()
        with pytest.raises(SyscallError, match="suspended in vfork"):
            m.run(trace((a, 8, 0, Operation.READ)), [p])
        m.run(trace((a + 3 * PAGE, 8, 0, Operation.WRITE), (0, 0, 0, Operation.EXIT)), [v])
        assert v.state == "zombie"
        assert p.read(a, 1) == b"x"


def test_who_dies_of_an_exit_is_noticed() -> None:
    """PR_SET_PDEATHSIG: an exit may end another process of the trace, whose label then is nobody's."""
    with machine() as m:
        p = m.spawn()
        anon(p, 2, A)
        c = p.fork()
        c.set_death_signal(signal.SIGKILL)
        rows = trace(
            (A, 8, 1, Operation.WRITE),
            (0, 0, 0, Operation.EXIT),
            (0, 0, 2, Operation.SPAWN),
            (A, PAGE, 2, Operation.MMAP),
            (A, 8, 1, Operation.WRITE),
        )
        with pytest.raises(SyscallError) as raised:
            m.run(rows, [p, c])
        assert raised.value.name == "ESRCH"
        assert raised.value.__notes__ == ["at record 4 of the trace: WRITE, label 1"]


# ---- what a trace may be ----


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((A, 8, 0, 10), r"record 1 \(\?\): there is no operation 10"),
        ((A, 8, 0, 2**32 - 1), r"record 1 \(\?\): there is no operation 4294967295"),
        ((A, 8, 1, Operation.READ), r"record 1 \(READ\): no process alive has label 1"),
        ((A, 8, 1 << 22, Operation.READ), r"record 1 \(READ\): a label is not below 4194304"),
        ((1 << 22, 0, 0, Operation.FORK), r"record 1 \(FORK\): a label is not below 4194304"),
        ((1 << 40, 0, 0, Operation.FORK), r"record 1 \(FORK\): a label is not below 4194304"),
        ((0, 0, 0, Operation.FORK), r"record 1 \(FORK\): label 0 is that of a process alive"),
        ((0, 0, 0, Operation.SPAWN), r"record 1 \(SPAWN\): label 0 is that of a process alive"),
        ((0, 0, 9, Operation.EXIT), r"record 1 \(EXIT\): no process alive has label 9"),
        ((0, 0, 9, Operation.WAIT), r"record 1 \(WAIT\): no process alive has label 9"),
        ((A, 0, 0, Operation.WRITE), r"record 1 \(WRITE\): size 0"),
        ((A, 0, 0, Operation.MMAP), r"record 1 \(MMAP\): size 0"),
        ((A + 1, PAGE, 0, Operation.MMAP), r"record 1 \(MMAP\): 0x10000001 \+ 0x1000 is not page aligned, or beyond"),
        ((A, 1 << 47, 0, Operation.MMAP_SHARED), r"record 1 \(MMAP_SHARED\): .* beyond the address space"),
        ((1 << 63, 1 << 63, 0, Operation.MUNMAP), r"record 1 \(MUNMAP\): .* beyond the address space"),
    ],
)
def test_a_bad_record_is_named_and_nothing_is_done(row: Row, message: str) -> None:
    with machine() as m:
        p = m.spawn()
        anon(p, 1, A)
        before = snapshot(m)
        for last in ((A, 8, 0, Operation.WRITE), (0, 0, 0, Operation.EXIT)):
            with pytest.raises(TraceError, match=message) as raised:
                m.run(trace((A, 8, 0, Operation.WRITE), row, last), [p])
            assert raised.value.index == 1
        assert snapshot(m) == before


def test_an_exited_label_is_nobodys() -> None:
    with machine() as m, pytest.raises(TraceError, match=r"record 2 \(READ\): no process alive has label 0"):
        m.run(trace((0, 0, 0, Operation.SPAWN), (0, 0, 0, Operation.EXIT), (A, 8, 0, Operation.READ)))


def test_a_failing_call_names_its_record() -> None:
    """What the records before it did stays."""
    with machine(max_map_count=2) as m:
        p = m.spawn()
        rows = [(A + i * 4 * PAGE, PAGE, 0, Operation.MMAP) for i in range(5)]
        with pytest.raises(SyscallError) as raised:
            m.run(trace(*rows), [p])
        assert raised.value.name == "ENOMEM"
        failed = len(p.maps())
        assert raised.value.__notes__ == [f"at record {failed} of the trace: MMAP, label 0"]
        with pytest.raises(SyscallError) as raised:
            m.run(trace((0, 0, 0, Operation.EXIT)), [m.init])
        assert raised.value.name == "EPERM"


def test_what_the_caller_gives_is_checked() -> None:
    with machine() as m, machine() as other:
        p, rows = m.spawn(), trace((A, 8, 0, Operation.READ))
        dead = m.spawn()
        dead.exit()
        before = snapshot(m)
        with pytest.raises(ValueError, match="of another machine"):
            m.run(rows, [other.spawn()])
        with pytest.raises(TypeError, match="label 0 must be a Process, not int"):
            m.run(rows, [2])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="a label must be an int, not str"):
            m.run(rows, {"0": p})  # type: ignore[dict-item]
        for label in (-1, 1 << 22):
            with pytest.raises(ValueError, match="is not between 0 and 4194303"):
                m.run(rows, {label: p})
        with pytest.raises(SyscallError, match="has exited"):
            m.run(rows, [dead])
        assert snapshot(m) == before


def test_a_closed_machine_runs_nothing() -> None:
    m = Machine()
    m.close()
    with pytest.raises(VmemuError, match="closed"):
        m.run(trace((A, 8, 0, Operation.READ)))


def test_nothing_to_do() -> None:
    with machine() as m:
        result = m.run(np.zeros(0, TRACE_DTYPE))
        assert result.outcomes is not None and result.outcomes.shape == (0,)
        assert (result.counts, result.processes) == (counts(), {})


def test_arrays_with_the_same_fields_are_taken() -> None:
    """Other integer types, other fields too, any strides; numbers that do not fit are refused by index."""
    wide = np.dtype([("time", "f8"), ("pid", "i8"), ("operation", "u1"), ("size", "i4"), ("address", ">u8")])
    rows = np.zeros(6, wide)
    rows["operation"], rows["size"], rows["address"] = Operation.WRITE, 8, A + np.arange(6) * PAGE
    with machine() as m:
        p = m.spawn()
        anon(p, 6, A)
        assert m.run(rows[::2], [p]).counts == counts(zero_fill=3)
        assert m.run(rows[::-1], [p]).counts == counts(zero_fill=3, none=3)
        exact = np.zeros(6, TRACE_DTYPE)
        exact["operation"], exact["size"], exact["address"] = Operation.READ, 8, A
        assert m.run(exact[1::2], [p]).counts == counts(none=3)
        rows["pid"][4] = -1
        with pytest.raises(TraceError, match="record 4: pid -1 is not between 0 and 4294967295") as raised:
            m.run(rows, [p])
        assert raised.value.index == 4


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        ([1, 2, 3], TypeError, "must be a structured array with the fields of TRACE_DTYPE, not list"),
        (np.zeros(2, [("address", "u8"), ("size", "u8"), ("pid", "u4")]), TypeError, "operation is missing"),
        (
            np.zeros(2, [(n, "f8") for n in TRACE_DTYPE.names or ()]),
            TypeError,
            "address must hold integers, not float64",
        ),
        (np.zeros((2, 2), TRACE_DTYPE), TraceError, "one dimension, not 2"),
        (None, TypeError, "not NoneType"),
        ("trace.npy", TypeError, "not str"),
        (np.arange(3, dtype=np.uint64), TypeError, "not array of uint64"),
        ([[1], [2, 3]], TypeError, "not list"),
    ],
)
def test_what_is_no_trace_is_refused(records: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with machine() as m, pytest.raises(error, match=message):
        m.run(records)
    with pytest.raises(error, match=message):
        save_trace(tmp_path / "trace.npy", records)
    assert not list(tmp_path.iterdir())


def test_records_are_as_documented() -> None:
    """24 bytes without padding, so that C reads them as they are and .npy files are small."""
    assert vmemu.TRACE_DTYPE is TRACE_DTYPE
    assert TRACE_DTYPE.itemsize == 24
    assert TRACE_DTYPE.descr == [("address", "<u8"), ("size", "<u8"), ("pid", "<u4"), ("operation", "<u4")]
    assert {op.name: int(op) for op in Operation}["READ"] == 0
    with pytest.raises(AttributeError, match="TRACE_TYPE"):
        vmemu.TRACE_TYPE  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="TRACE_TYPE"):
        vmemu.traces.TRACE_TYPE  # type: ignore[attr-defined]  # noqa: B018


# ---- files ----


def test_saving_and_loading(tmp_path: Path) -> None:
    made = workloads.zipf(naccesses=100)
    path = tmp_path / "a trace"
    save_trace(path, made)
    found = load_trace(path)
    assert found.dtype == TRACE_DTYPE
    assert np.array_equal(found, made)
    assert np.array_equal(np.load(path), made)
    save_trace(path, made[::3])
    assert np.array_equal(load_trace(str(path)), made[::3])
    with machine() as m:
        m.run(load_trace(path)[:1])
    with pytest.raises(TypeError, match="not array of float64"):
        save_trace(path, np.zeros(3))
    assert np.array_equal(load_trace(path), made[::3])


def test_files_that_hold_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "file.npy"

    def refused(message: str) -> None:
        with pytest.raises(TraceError, match=message) as raised:
            load_trace(path)
        assert str(path) in str(raised.value)

    path.write_bytes(b"")
    refused("not a .npy file of a trace")
    path.write_bytes(b"PK\x03\x04 something else altogether")
    refused("not a .npy file of a trace")
    np.save(path, np.zeros(4))
    refused(r"holds an array of float64, shape \(4,\), and no trace")
    np.save(path, np.zeros((2, 2), TRACE_DTYPE))
    refused(r"shape \(2, 2\)")
    np.save(path, np.array([{"pickled": 1}], dtype=object), allow_pickle=True)
    refused("not a .npy file of a trace")
    np.save(path, np.zeros(1000, TRACE_DTYPE))
    path.write_bytes(path.read_bytes()[:-7])
    refused("not a .npy file of a trace")
    with pytest.raises(FileNotFoundError):
        load_trace(tmp_path / "none")


# ---- long runs, other threads ----


@pytest.fixture
def alarm() -> Iterator[None]:
    class Interrupted(Exception):
        pass

    def stop(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("size", [8, 1 << 30])
def test_a_run_listens_to_signals(alarm: None, size: int) -> None:
    """Between records and inside a long one; the machine is consistent then."""
    with Machine("8GiB", contents=False) as m:
        p = m.spawn()
        p.mmap(A, 6 << 30, RW, ANON | Map.FIXED)
        rows = np.zeros(30_000_000 if size == 8 else 1000, TRACE_DTYPE)
        rows["operation"], rows["size"], rows["address"] = Operation.WRITE, size, A
        signal.setitimer(signal.ITIMER_REAL, 0.06)
        with pytest.raises(Exception, match=r"^$") as raised:
            m.run(rows, [p])
        assert raised.type.__name__ == "Interrupted"
        m.verify()


def test_other_threads_access_memory_meanwhile() -> None:
    """Between the slices of a run; who makes or ends processes waits for its end."""
    with machine(memory="64MiB") as m:
        p, q = m.spawn(), m.spawn()
        for who in (p, q):
            anon(who, 8, A)
        rows = np.zeros(3_000_000, TRACE_DTYPE)
        rows["operation"], rows["size"] = Operation.WRITE, 8
        rows["address"] = A + np.arange(len(rows)) % 8 * PAGE
        results: list[RunResult] = []
        threads = [threading.Thread(target=lambda: results.append(m.run(rows, [p]))) for _ in range(2)]
        for thread in threads:
            thread.start()
        turns = 0
        while any(thread.is_alive() for thread in threads):
            q.write(A + turns % 8 * PAGE, b"meanwhile")
            p.read(A, 8)
            turns += 1
        c = p.fork()
        for thread in threads:
            thread.join()
        assert turns > 10 and c.read(A, 8) == bytes(8)
        assert sum((result.counts for result in results), FaultCounts()) == counts(none=6_000_000 - 8, zero_fill=8)


def test_an_array_that_changes_while_it_runs_does_no_harm() -> None:
    """It is lent, not copied: whatever another thread puts there, the machine stays consistent."""
    r = random.Random(1)
    with machine(memory="64MiB") as m:
        p = m.spawn()
        anon(p, 8, A)
        for _ in range(10):
            rows = np.zeros(300_000, TRACE_DTYPE)
            rows["operation"], rows["size"], rows["address"] = Operation.WRITE, 8, A
            stop = threading.Event()

            def change(rows: Any = rows, stop: threading.Event = stop) -> None:
                while not stop.is_set():
                    field = r.choice(("pid", "operation", "size", "address"))
                    rows[field][r.randrange(len(rows))] = r.choice((0, 1, 4, 7, 10, 5000, 2**32 - 1))

            thread = threading.Thread(target=change)
            thread.start()
            with contextlib.suppress(VmemuError):
                m.run(rows, [p])
            stop.set()
            thread.join()
            m.verify()


def test_a_program_that_execs_is_traced_too(tmp_path: Path) -> None:
    """Fetches of its text."""
    with machine(memory="64MiB") as m:
        p = m.spawn(program(tmp_path))
        result = m.run(trace((p.entry_point, 2, 0, Operation.FETCH), (p.stack_pointer, 8, 0, Operation.WRITE)), [p])
        assert result.outcomes is not None
        assert not any(FaultKind(kind).fatal for kind in result.outcomes)
        prove(m)
