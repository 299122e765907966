"""The public contract: every name, every property, and the fine print of what they mean."""

from __future__ import annotations

import ast
import copy
import dataclasses
import errno
import inspect
import mmap as host_mmap
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, counts, every_mode, filled, machine, pfn

import vmemu
from vmemu import (
    Advice,
    BusError,
    FaultCounts,
    FaultKind,
    ForkMode,
    InvariantError,
    Machine,
    Map,
    MemoryFault,
    OutOfMemory,
    Overcommit,
    ProcessKilled,
    Prot,
    SegmentationFault,
    SyscallError,
    Translation,
    VmemuError,
)

# ---- names ----

NAMES = """
    Machine Process File ForkMode FaultKind FaultCounts Overcommit Prot Map Advice Mapping Translation MemInfo
    VmemuError SyscallError MemoryFault SegmentationFault BusError OutOfMemory ProcessKilled InvariantError
""".split()


def test_every_public_name_is_importable_from_vmemu() -> None:
    """Every public name, the exceptions included; `__all__` has no others and each exists."""
    for name in [*NAMES, *vmemu.__all__]:
        assert hasattr(vmemu, name)
    assert set(NAMES) <= set(vmemu.__all__)
    assert len(vmemu.__all__) == len(set(vmemu.__all__))
    assert vmemu.__all__ == sorted(vmemu.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_public_names_are_where_the_door_says() -> None:
    """They are imported when they are asked for; what type checkers read and what is done agree."""
    tree = ast.parse(Path(vmemu.__file__).read_text())
    read: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vmemu."):
            read[str(node.module).removeprefix("vmemu.")] = sorted(alias.name for alias in node.names)
    assert read == {home: sorted(names.split()) for home, names in vmemu._HOMES.items()}
    assert sorted(vmemu.__all__) == sorted(name for names in read.values() for name in names)
    assert set(vmemu.__all__) <= set(dir(vmemu))
    with pytest.raises(AttributeError, match="has no attribute 'Maschine'"):
        vmemu.Maschine  # type: ignore[attr-defined]  # noqa: B018
    code = (
        "import sys, vmemu\n"
        "assert {m for m in sys.modules if m.startswith('vmemu')} == {'vmemu'}\n"
        "assert vmemu.types.PAGE_SIZE == vmemu.PAGE_SIZE\n"
        "from vmemu import *\n"
        "assert Machine is vmemu.Machine"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_vmemu_does_not_import_numpy() -> None:
    """NumPy is imported when an array is first needed."""
    code = (
        "import sys, vmemu\n"
        "m = vmemu.Machine('1MiB'); p = m.spawn(); a = p.mmap(None, 4096, 3, 34); p.write(a, b'x'); p.fork()\n"
        "assert 'numpy' not in sys.modules, 'numpy'\n"
        "p.access([a]); assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_signatures_of_the_contract() -> None:
    """Parameter names and defaults that outside code may rely on."""
    expected: dict[Any, dict[str, Any]] = {
        Machine: {
            "memory": "1GiB",
            "swap": 0,
            "fork_mode": ForkMode.COW,
            "zero_page": True,
            "fault_around": 16,
            "contents": True,
            "overcommit": Overcommit.HEURISTIC,
            "oom": "raise",
            "thp": "never",
            "aslr": False,
            "seed": 0,
        },
        vmemu.Process.mmap: {"file": None, "offset": 0},
        vmemu.Process.read: {"fetch": False},
        vmemu.Process.touch: {"write": False},
        vmemu.Process.access: {"write": False},
        vmemu.Process.fork: {"mode": None},
        vmemu.Process.fork_many: {"mode": None},
        vmemu.Process.mremap: {"new_address": None},
        vmemu.Process.mlock: {"flags": 0},
        vmemu.Process.exit: {"code": 0},
        Machine.create_file: {"data": b"", "writenotify": False},
    }
    for function, parameters in expected.items():
        signature = inspect.signature(function)
        for name, default in parameters.items():
            assert signature.parameters[name].default == default, (function, name)


def test_values_are_those_of_linux() -> None:
    """Constants of the standard mmap and os modules, and plain integers, mean the same."""
    assert (Prot.READ, Prot.WRITE, Prot.EXEC) == (host_mmap.PROT_READ, host_mmap.PROT_WRITE, host_mmap.PROT_EXEC)
    for name in ("SHARED", "PRIVATE", "ANONYMOUS", "DENYWRITE", "EXECUTABLE", "POPULATE", "STACK", "NORESERVE"):
        if hasattr(host_mmap, f"MAP_{name}"):
            assert Map[name] == getattr(host_mmap, f"MAP_{name}")
    for name in Advice.__members__:
        if hasattr(host_mmap, f"MADV_{name}"):
            assert Advice[name] == getattr(host_mmap, f"MADV_{name}")
    assert [kind.value for kind in FaultKind] == list(range(14))
    assert all(isinstance(kind, int) and kind < 256 for kind in FaultKind)


# ---- exceptions ----


def test_exceptions_are_what_they_are_called() -> None:
    """Failed calls are OSError with errno, of the builtin class where there is one; all are VmemuError."""
    for kind in (SyscallError, MemoryFault, ProcessKilled, InvariantError):
        assert issubclass(kind, VmemuError)
    assert issubclass(SyscallError, OSError)
    assert issubclass(OutOfMemory, MemoryError)
    assert issubclass(SegmentationFault, MemoryFault)
    assert issubclass(BusError, MemoryFault)
    with machine() as m:
        p = m.spawn()
        with pytest.raises(FileNotFoundError) as missing:
            p.execve("/no/such/file")
        assert isinstance(missing.value, SyscallError)
        assert missing.value.errno == errno.ENOENT
        with pytest.raises(PermissionError):
            p.execve("/tmp")
        with pytest.raises(ChildProcessError):
            p.wait()
        with pytest.raises(SyscallError) as refused:
            m.open_file("/tmp")
        assert refused.value.errno == errno.ENODEV
        p.exit()
        with pytest.raises(ProcessLookupError):
            p.maps()


def test_faults_say_where_and_what() -> None:
    """.pid .address .access .kind, in words too; the process lives on."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, prot=R)
        with pytest.raises(SegmentationFault) as caught:
            p.write(a + 5, b"x")
        fault = caught.value
        assert (fault.pid, fault.address, fault.access, fault.kind) == (p.pid, a + 5, "write", FaultKind.SEGV_ACCERR)
        assert f"{a + 5:#x}" in str(fault)
        assert "SIGSEGV" in str(fault)
        file = m.create_file("f", b"x")
        b = p.mmap(None, 2 * PAGE, R, Map.SHARED, file)
        with pytest.raises(BusError) as bus:
            p.read(b + PAGE, 1)
        assert (bus.value.kind, bus.value.address) == (FaultKind.BUS_ADRERR, b + PAGE)
        assert "SIGBUS" in str(bus.value)
        assert p.read(a, 1) == b"\0"


def test_exceptions_survive_pickling() -> None:
    """As a pool of workers needs it."""
    with machine() as m:
        p = m.spawn()
        caught: list[Exception] = []
        for call in (lambda: p.read(0, 1), lambda: p.munmap(1, 1), lambda: p.execve("/no"), lambda: p.wait()):
            with pytest.raises(VmemuError) as info:
                call()
            caught.append(info.value)
        caught += [ProcessKilled(7, 9), OutOfMemory(12, "text")]
        for error in caught:
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is type(error)
            assert str(again) == str(error)
            assert vars(again) == vars(error)


# ---- reading and writing ----


def test_partial_reads_and_writes_stop_where_a_cpu_would() -> None:
    """A range that faults part-way stops there; `.address` is the first byte that could not be accessed; what was
    written before stays."""
    with machine() as m:
        p = m.spawn()
        anon(p, 2, A)
        with pytest.raises(SegmentationFault) as caught:
            p.write(A + PAGE - 3, b"x" * (2 * PAGE))
        assert caught.value.address == A + 2 * PAGE
        assert p.read(A + PAGE - 4, PAGE + 4) == b"\0" + b"x" * (PAGE + 3)
        with pytest.raises(SegmentationFault) as caught:
            p.read(A - 1, 10)
        assert caught.value.address == A - 1
        with pytest.raises(SegmentationFault) as caught:
            p.touch(A, 3 * PAGE, write=True)
        assert caught.value.address == A + 2 * PAGE
        assert p.faults == counts(zero_fill=2, segv_maperr=3)


class Index:
    """An integer that is no int."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


def test_short_accesses_are_as_others() -> None:
    """int and bytes go a shorter way through Python: nothing that can be seen depends on it."""
    ways: list[tuple[Any, Any]] = [(int, bytes), (Index, bytearray)]
    results = []
    for number, data in ways:
        with machine(fault_around=1) as m:
            p = m.spawn()
            a = p.mmap(None, 3 * PAGE, RW, ANON)
            f = m.create_file("f", bytes(range(256)) * 16, writenotify=True)
            p.mmap(a + PAGE, PAGE, RW, Map.PRIVATE | Map.FIXED, f)
            end = a + 2 * PAGE
            p.munmap(end, PAGE)
            seen: list[object] = []
            for n in (0, 1, 2, 8, PAGE - 1, PAGE):  # over the border to the file's page
                p.write(number(a + PAGE - n // 2), data(b"x" * n))
                seen.append(p.read(number(a + PAGE - n // 2 - 1), n + 2))
            bad: tuple[tuple[int, int, bytes], ...] = (
                (end - 8, 16, b""),
                (-1, 1, b""),
                (end - 8, 0, b"y" * 16),
                (1 << 64, 0, b"y"),
                ((1 << 64) - 1, 0, b"yy"),
            )
            for where, length, stored in bad:
                with pytest.raises(SegmentationFault) as fault:
                    p.write(number(where), data(stored)) if stored else p.read(number(where), length)
                seen += [fault.value.address, fault.value.access, str(fault.value)]
            with pytest.raises(ValueError, match="negative"):
                p.read(number(a), -1)
            seen += [p.read(number(end - 10), 10), p.faults]
            results.append(seen)
            m.verify()
    assert results[0] == results[1]


def test_short_touches_are_as_others() -> None:
    """So do touches with plain numbers: faults, counts and where one stops are the same."""
    results = []
    for number in (int, Index):
        with machine(fault_around=1) as m:
            p = m.spawn()
            a = p.mmap(None, 8 * PAGE, RW, ANON)
            f = m.create_file("f", bytes(range(256)) * 64, writenotify=True)
            p.mmap(a + 2 * PAGE, 3 * PAGE, RW, Map.PRIVATE | Map.FIXED, f)  # its pages trap
            stack = p.mmap(None, PAGE, RW, ANON | Map.GROWSDOWN)
            seen: list[object] = []
            for where, length, write in (
                (a, 0, True),
                (a, 1, False),
                (a, 1, True),
                (a + PAGE - 1, 2, True),
                (a + 100, 6 * PAGE, False),
                (a + 100, 6 * PAGE, True),
                (stack - 5 * PAGE, 5 * PAGE, True),
            ):
                seen += [p.touch(number(where), number(length), write), p.faults]
            bad = (
                (a + 6 * PAGE, 1 << 62),
                (-1, 1),
                (1 << 64, 1),
                ((1 << 64) - 1, 7),
                (a + 7 * PAGE + 9, (1 << 64) - 1),
            )
            for where, length in bad:
                with pytest.raises(SegmentationFault) as fault:
                    p.touch(number(where), number(length), True)
                seen += [fault.value.address, fault.value.access, str(fault.value), p.faults]
            with pytest.raises(ValueError, match="negative"):
                p.touch(number(a), number(-1))
            results.append(seen)
            m.verify()
    assert results[0] == results[1]


def test_a_touch_without_memory_counts_what_it_did() -> None:
    raised = []
    for number in (int, Index):
        with machine(memory="256KiB") as m:
            p = m.spawn()
            a = p.mmap(None, 64 * PAGE, RW, ANON)
            with pytest.raises(OutOfMemory) as error:
                p.touch(number(a), number(64 * PAGE), True)
            raised.append((str(error.value), p.faults, p.rss))
            m.verify()
    assert raised[0] == raised[1]


def test_reads_never_fill_a_shared_object() -> None:
    """bytes of no or one byte may be one object for all of Python."""
    with machine() as m:
        p = m.spawn()
        p.write(anon(p, 1, A), b"abc")
        assert [p.read(A + i % 3, i) for i in (0, 1, 1)] == [b"", b"b", b"b"]
        assert bytes(1) == b"\0" and bytes([98]) == b"b" and not bytes(0)


def test_zero_bytes_are_no_access() -> None:
    """Nothing is accessed, wherever it would have been."""
    with machine() as m:
        p = m.spawn()
        assert p.read(0, 0) == b""
        p.write(0, b"")
        assert p.touch(0, 0) == counts()
        assert list(p.access([])) == []
        assert p.faults == counts()


def test_touch_and_access_leave_the_bytes_and_set_the_bits() -> None:
    """A write by touch or access sets the PTE as a store would and leaves the bytes as they were."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2)
        b = anon(p, 2)
        assert p.touch(a, 2 * PAGE, write=True) == counts(none=2)
        p.access([a, a + PAGE], write=True)
        assert p.read(a, 2 * PAGE) == b"\1" * PAGE + b"\2" * PAGE
        p.access([b, b + PAGE], write=[False, True])
        first, second = p.translate(b), p.translate(b + PAGE)
        assert first is not None
        assert second is not None
        assert (first.accessed, first.dirty, first.prot) == (True, False, R)
        assert (second.accessed, second.dirty, second.prot) == (True, True, RW)


def test_touch_makes_one_access_a_page_and_counts_the_call() -> None:
    """One access for each page that the range touches; the result is this call's."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        assert p.touch(a + PAGE - 1, 2) == counts(zero_map=2)
        assert p.touch(a, 4 * PAGE) == counts(zero_map=2, none=2)
        assert p.touch(a + 5, 1, write=True) == counts(zero_fill=1)
        assert p.faults == counts(zero_map=4, zero_fill=1)


def test_access_gives_a_kind_for_each() -> None:
    """uint8 array of FaultKind; bad accesses are at their index and do not stop the batch."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 3)
        ro = anon(p, 1, prot=R)
        s = p.mmap(None, 3 * PAGE, RW, Map.SHARED, m.create_file("f", b"x" * PAGE))
        edges = [0, (1 << 47) - PAGE, 1 << 47, 1 << 63, (1 << 64) - 1, 0x7FFF_FFFF_F000]
        addresses = np.array([a, a, a, ro, ro, s, s + PAGE, a + 1, *edges], np.uint64)
        writes = np.array([0, 0, 1, 0, 1, 0, 0, 1] + [0, 1] * 3, bool)
        kinds = p.access(addresses, writes)
        assert (kinds.dtype, kinds.shape) == (np.uint8, addresses.shape)
        names = "ZERO_MAP NONE ZERO_FILL ZERO_MAP SEGV_ACCERR FILE_MINOR BUS_ADRERR NONE"
        assert [FaultKind(int(kind)).name for kind in kinds] == names.split() + ["SEGV_MAPERR"] * 6
        assert addresses.tolist()[0] == a


@pytest.mark.parametrize("dtype", ["u8", "i8", "u4", "i4", ">u8", "object_list", "range", "tuple", "strided"])
def test_access_takes_addresses_in_many_forms(dtype: str) -> None:
    """Any one-dimensional sequence of integers."""
    with machine() as m:
        p = m.spawn()
        anon(p, 8, A)
        where = [A + i * PAGE for i in range(8)]
        given: Any = {
            "object_list": where,
            "range": range(A, A + 8 * PAGE, PAGE),
            "tuple": tuple(where),
            "strided": np.repeat(np.array(where, np.uint64), 2)[::2],
        }.get(dtype)
        if given is None:
            given = np.array(where, dtype)
        assert p.access(given, write=True).tolist() == [FaultKind.ZERO_FILL] * 8
        assert p.access(np.array(where, np.uint64), write=False).tolist() == [FaultKind.NONE] * 8


def test_access_takes_the_whole_range_of_addresses_in_a_list() -> None:
    """Small and kernel-half addresses together, which NumPy alone would make floats of."""
    with machine() as m:
        p = m.spawn()
        a = anon(p)
        kinds = p.access([a, 0xFFFF_8000_0000_0000, (1 << 64) - 1, 0])
        assert list(kinds) == [FaultKind.ZERO_MAP] + [FaultKind.SEGV_MAPERR] * 3


def test_access_agrees_with_touch_and_read() -> None:
    """The batch gives what single accesses give."""
    rng = np.random.default_rng(0)
    with machine() as one, machine() as other:
        ps = [m.spawn() for m in (one, other)]
        for p in ps:
            p.mmap(A, 50 * PAGE, RW, ANON | Map.FIXED)
            p.munmap(A + 7 * PAGE, 5 * PAGE)
            p.mprotect(A + 20 * PAGE, 5 * PAGE, R)
        where = A + rng.integers(0, 52 * PAGE, 500).astype(np.uint64)
        writes = rng.random(500) < 0.5
        kinds = ps[0].access(where, writes)
        for address, write, kind in zip(where.tolist(), writes.tolist(), kinds.tolist(), strict=True):
            try:
                (single,) = (k for k, n in ps[1].touch(address, 1, write=write).as_dict().items() if n)
                assert single == FaultKind(kind).name.lower()
            except MemoryFault as fault:
                assert fault.kind == kind
        assert ps[0].faults == ps[1].faults


def test_buffers_of_every_kind_can_be_written() -> None:
    """Any contiguous bytes-like object."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        for data in (
            b"bytes",
            bytearray(b"bytearray"),
            memoryview(b"memoryview"),
            memoryview(b"xxslicexx")[2:-2],
            np.arange(5, dtype=np.uint64),
            np.arange(12, dtype=">u4").reshape(3, 4),
            host_mmap.mmap(-1, 100),
        ):
            p.write(a + 7, data)
            raw = bytes(memoryview(data).cast("B")) if not isinstance(data, np.ndarray) else data.tobytes()
            assert p.read(a + 7, len(raw)) == raw


# ---- counts ----


def test_counts_are_immutable_snapshots_that_subtract() -> None:
    """FaultCounts: one field per kind, .minor .major .total, sums and differences."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        before = p.faults
        p.touch(a, 4 * PAGE, write=True)
        after = p.faults
        assert before == counts()
        assert after - before == counts(zero_fill=4)
        assert (after - before) + before == after
        with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
            after.zero_fill = 7  # type: ignore[misc]
        assert {field.name for field in dataclasses.fields(FaultCounts)} == {kind.name.lower() for kind in FaultKind}
        assert hash(after) == hash(p.faults)


def test_minor_major_and_total() -> None:
    """Minor or major follows from the kind; NONE and the fatal ones are not in the total."""
    for kind in FaultKind:
        one = FaultCounts(**{kind.name.lower(): 1})
        assert (one.minor, one.major) == (int(kind.minor), int(kind.major))
        assert one.total == int(not kind.fatal and kind != FaultKind.NONE)
        assert one.total == one.minor + one.major
    assert {kind for kind in FaultKind if kind.major} == {FaultKind.FILE_MAJOR, FaultKind.SWAP_IN}


def test_host_files_fault_major_once() -> None:
    """A page that has to be read is major for whoever needs it first, minor afterwards."""
    with machine(fault_around=1) as m:
        p = m.spawn()
        file = m.open_file(sys.executable)
        a = p.mmap(None, 64 * PAGE, R, Map.PRIVATE, file)
        assert p.touch(a, PAGE) == counts(file_major=1)
        assert p.touch(a + PAGE, PAGE) == counts(file_minor=1)  # read ahead
        q = m.spawn()
        b = q.mmap(None, PAGE, R, Map.PRIVATE, file)
        assert q.touch(b, PAGE) == counts(file_minor=1)


@pytest.mark.parametrize("around", [0, 1, 2, 8, 16, 64, 512])
def test_fault_around_maps_its_window(around: int) -> None:
    """A read fault maps up to fault_around cached pages around it; with 1 just its own. The fault counts once."""
    npages = 600
    with machine(fault_around=around) as m:
        p = m.spawn()
        file = m.create_file("f", bytes(npages * PAGE))
        p.mmap(A, npages * PAGE, R, Map.PRIVATE | Map.FIXED, file)
        at = 100
        assert p.touch(A + at * PAGE, 1).total == 1
        window = max(1, around)
        first = at // window * window
        present = np.flatnonzero(p.pagemap(A, npages)).tolist()
        assert present == list(range(first, min(first + window, 512)))
        assert p.faults.total == 1


def test_the_machine_counts_what_its_processes_count() -> None:
    """m.faults is the sum over all processes since boot, those that are gone included."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 4)
        c = p.fork()
        c.write(a, b"x")
        gone = c.faults
        c.exit()
        p.wait()
        p.write(a, b"x")
        assert m.faults == p.faults + gone


# ---- looking ----


def test_translate() -> None:
    """Frame, permissions now, level, physical address; None where nothing is mapped."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 2)
        assert p.translate(a) is None
        p.write(a, b"x")
        found = p.translate(a + 123)
        assert isinstance(found, Translation)
        assert found.physical == found.pfn * PAGE + 123
        assert (found.level, found.prot, found.exclusive) == (1, RW, True)
        p.fork()
        shared = p.translate(a)
        assert shared is not None
        assert (shared.pfn, shared.prot, shared.exclusive) == (found.pfn, R, False)
        for outside in (0, a + 4 * PAGE, 1 << 47, (1 << 64) - 1):
            assert p.translate(outside) is None
        p.mprotect(a, PAGE, Prot.EXEC)
        assert p.translate(a).prot == Prot.READ | Prot.EXEC  # type: ignore[union-attr]


def test_pagemap_format() -> None:
    """Bits as in Linux's pagemap: 63 present, 61 file or shared, 56 mapped once, 0-54 the frame."""
    with machine(fault_around=1) as m:
        p = m.spawn()
        a = anon(p, 4)
        p.write(a, b"x")
        p.read(a + PAGE, 1)
        s = p.mmap(None, PAGE, RW, SHARED)
        p.write(s, b"x")
        f = p.mmap(None, PAGE, RW, Map.PRIVATE, m.create_file("f", b"f"))
        p.read(f, 1)
        entries = p.pagemap(a, 4)
        assert entries.dtype == np.uint64
        bits = [(e >> 63, e >> 61 & 1, e >> 56 & 1, e & (1 << 55) - 1) for e in entries.tolist()]
        assert bits == [(1, 0, 1, pfn(p, a)), (1, 0, 0, m.zero_pfn), (0, 0, 0, 0), (0, 0, 0, 0)]
        for where in (s, f):
            assert int(p.pagemap(where, 1)[0]) == 1 << 63 | 1 << 61 | 1 << 56 | pfn(p, where)
        p.fork().write(s, b"x")
        assert not int(p.pagemap(s, 1)[0]) >> 56 & 1


def test_maps_are_records() -> None:
    """Mapping: start, end, size, prot, shared, offset, inode, name, perms; a snapshot."""
    with machine() as m:
        p = m.spawn()
        file = m.create_file("label", bytes(4 * PAGE))
        p.mmap(A, 2 * PAGE, R, Map.SHARED | Map.FIXED, file, PAGE)
        anon(p, 1, A + 4 * PAGE)
        first, second = p.maps()
        assert (first.start, first.end, first.size, first.prot) == (A, A + 2 * PAGE, 2 * PAGE, R)
        assert (first.shared, first.offset, first.inode, first.name) == (True, PAGE, file.inode, "label")
        assert (first.perms, second.perms, second.name, second.inode, second.offset) == ("r--s", "rw-p", "", 0, 0)
        p.munmap(A, 2 * PAGE)
        assert first.size == 2 * PAGE


def test_spawn_without_a_program_has_no_mappings_at_all() -> None:
    """An empty process, child of init, with a break and room for mappings."""
    with machine() as m:
        p = m.spawn()
        assert p.maps() == []
        assert (p.rss, p.pss, p.uss, p.page_tables) == (0, 0, 0, 0)
        assert (p.ppid, p.exe, p.argv, p.auxv, p.stack_pointer, p.entry_point) == (1, "", (), (), 0, 0)
        assert m.init.pid == 1
        assert m.init.ppid == 0


def test_meminfo_adds_up() -> None:
    """Bytes; total = free + all that is used; a snapshot."""
    with machine() as m:
        boot = m.meminfo()
        assert boot.total == 16 << 20
        assert boot.free == boot.total - PAGE
        p = m.spawn()
        filled(p, 10)
        p.write(p.mmap(None, 3 * PAGE, RW, SHARED), b"x" * 3 * PAGE)
        file = m.create_file("f", bytes(5 * PAGE), writenotify=True)
        now = m.meminfo()
        assert (now.anon, now.shmem, now.file) == (10 * PAGE, 3 * PAGE, 5 * PAGE)
        assert now.free == boot.free - 18 * PAGE - now.page_tables
        assert (now.swap_total, now.swap_free) == (0, 0)
        assert now.committed == 13 * PAGE
        assert now.commit_limit == now.total // 2
        assert file.size == 5 * PAGE
        assert boot.free != now.free


# ---- options ----


def test_sizes_are_bytes_or_text() -> None:
    """memory= takes an int or a text with a unit."""
    for memory, total in (
        ("1MiB", 1 << 20),
        (1 << 20, 1 << 20),
        ("1M", 1 << 20),
        ("1.5 MiB", 3 << 19),
        ("512k", 1 << 19),
    ):
        with Machine(memory) as m:  # type: ignore[arg-type]
            assert m.meminfo().total == total
    with Machine("64KiB") as m:
        assert m.meminfo().total == 16 * PAGE


@every_mode
def test_without_contents_everything_but_the_bytes_is_exact(mode: ForkMode) -> None:
    """contents=False: pages read as zeros, writes check, fault and count but drop the bytes."""
    seen = []
    for keep in (True, False):
        with machine(contents=keep, fork_mode=mode) as m:
            p = m.spawn()
            a = filled(p, 8)
            c = p.fork()
            c.write(a, b"x" * 2 * PAGE)
            p.touch(a, 8 * PAGE, write=True)
            with pytest.raises(SegmentationFault):
                p.write(a + 8 * PAGE, b"x")
            q = m.spawn("/bin/sh", ["sh"], {"A": "b"})
            assert (q.argv, q.environ, q.comm) == ((b"sh",), (b"A=b",), "sh")
            seen.append((p.faults, c.faults, m.faults, m.meminfo(), p.pss, c.uss, q.auxv, q.rss))
            assert p.read(a, 1) == (b"\1" if keep else b"\0")
            assert c.read(a, 1) == (b"x" if keep else b"\0")
    assert seen[0] == seen[1]


def test_aslr_follows_the_seed() -> None:
    """aslr=True randomises what execve maps; the same seed gives the same addresses, another one others."""
    places = {}
    for seed in (1, 1, 2):
        with Machine("64MiB", aslr=True, seed=seed) as m:
            p = m.spawn("/bin/sh", ["sh"], {})
            q = m.spawn("/bin/sh", ["sh"], {})
            here = (p.stack_pointer, p.entry_point, q.stack_pointer, p.brk())
            assert p.stack_pointer != q.stack_pointer
            assert places.setdefault(seed, here) == here
    assert places[1] != places[2]


def test_not_there_yet_is_said() -> None:
    """What is not there yet raises NotImplementedError that names it."""
    for options in ({"swap": "1MiB"}, {"oom": "kill"}):
        try:
            Machine("1MiB", **options).close()  # type: ignore[arg-type]
        except NotImplementedError as error:
            assert next(iter(options)) in str(error)


# ---- handles ----


def test_handles_compare_by_what_they_stand_for() -> None:
    """Two handles of one process are equal and hash alike; those of different machines are not."""
    with machine() as m, machine() as other:
        p = m.spawn()
        assert m.processes[p.pid] == p
        assert hash(m.processes[p.pid]) == hash(p)
        assert p != other.spawn()
        assert m.init != other.init
        assert p != p.pid
        assert len({p, m.processes[p.pid], *p.fork_many(2)}) == 3


def test_handles_cannot_be_copied_out_of_their_machine() -> None:
    """Pickling says why not."""
    with machine() as m:
        for handle in (m, m.init, m.create_file("f")):
            with pytest.raises(TypeError):
                pickle.dumps(handle)
            with pytest.raises(TypeError):
                copy.deepcopy(handle)


def test_processes_is_a_live_mapping() -> None:
    """pid -> Process, zombies included, in order of pid."""
    with machine() as m:
        assert isinstance(m.processes, Mapping)
        p = m.spawn()
        kids = p.fork_many(3)
        assert isinstance(kids, Sequence)
        assert isinstance(m.processes, Iterable)
        assert list(m.processes) == [1, p.pid, *(k.pid for k in kids)]
        kids[1].exit()
        assert m.processes[kids[1].pid].state == "zombie"
        assert len(m.processes) == 5
        p.wait()
        assert kids[1].pid not in m.processes
        assert kids[1].pid == kids[0].pid + 1  # readable after it is gone
        assert kids[1].state == "gone"
        with pytest.raises(KeyError):
            m.processes[kids[1].pid]
        assert m.processes.get(10**9) is None
        assert 0 not in m.processes


def test_reprs_say_what_it_is() -> None:
    """repr() never fails, also of what is gone."""
    m = Machine("16MiB")
    p = m.spawn()
    file = m.create_file("label")
    things = [m, p, file, p.fork_many(2), m.processes, p.faults, m.meminfo()]
    assert str(p.pid) in repr(p)
    assert "label" in repr(file)
    p.exit()
    file.close()
    m.close()
    for thing in things:
        assert repr(thing)
    assert "closed" in repr(m)


def test_machines_and_processes_have_no_stray_attributes() -> None:
    """A misspelt property is an error."""
    with machine() as m, pytest.raises(AttributeError):
        m.init.rsss = 1  # type: ignore[attr-defined]


def test_docstrings() -> None:
    """Every public class, method and property is documented."""
    for name in vmemu.__all__:
        thing = getattr(vmemu, name)
        if not inspect.isclass(thing):
            continue
        assert thing.__doc__, name
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert value.__doc__, f"{name}.{attribute}"


def test_close_gives_the_host_its_memory_back() -> None:
    """Making and closing machines does not pile up memory or descriptors."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    def cycle() -> None:
        with Machine("64MiB") as m:
            p = m.spawn("/bin/sh")
            a = anon(p, 4000)
            p.touch(a, 4000 * PAGE, write=True)

    cycle()
    before, descriptors = resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        cycle()
    assert resident() - before < 20 << 20
    assert len(os.listdir("/proc/self/fd")) == descriptors
