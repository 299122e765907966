"""Bad input: each has a clear error, changes nothing, and crashes nothing."""

from __future__ import annotations

import errno
import gc
import math
import os
import platform
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linux import tinyelf
from linux.tinyelf import Part
from machines import ANON, PAGE, RW, A, R, anon, contents, filled, machine, program, snapshot

from vmemu import (
    Advice,
    FaultKind,
    ForkMode,
    Machine,
    Map,
    MemoryFault,
    OutOfMemory,
    Overcommit,
    Process,
    ProcessKilled,
    Prot,
    SegmentationFault,
    SyscallError,
    VmemuError,
)

HUGE = (1 << 64) - 1
KERNEL = 0xFFFF_8000_0000_0000
TOP = 0x7FFF_FFFF_F000


def clear(error: BaseException) -> None:
    """The message says something, in words that a user can know."""
    text = str(error)
    assert len(text) > 8, text
    assert not any(word in text for word in ("NoneType' object has no", "cdata", "ctype", "ffi", "unsupported operand"))


# ---- types and numbers ----

NO_INTEGER: list[Any] = [None, 1.5, "1", b"1", [], math.nan, 1j]

CALLS: dict[str, Callable[[Machine, Process, Any], Any]] = {
    "mmap address": lambda m, p, x: p.mmap(x if x is not None else "", PAGE, RW, ANON),
    "mmap length": lambda m, p, x: p.mmap(None, x, RW, ANON),
    "mmap prot": lambda m, p, x: p.mmap(None, PAGE, x, ANON),
    "mmap flags": lambda m, p, x: p.mmap(None, PAGE, RW, x),
    "mmap file": lambda m, p, x: p.mmap(None, PAGE, R, Map.PRIVATE, x if x is not None else 5),
    "mmap offset": lambda m, p, x: p.mmap(None, PAGE, RW, ANON, None, x),
    "munmap address": lambda m, p, x: p.munmap(x, PAGE),
    "munmap length": lambda m, p, x: p.munmap(A, x),
    "mprotect address": lambda m, p, x: p.mprotect(x, PAGE, R),
    "mprotect length": lambda m, p, x: p.mprotect(A, x, R),
    "mprotect prot": lambda m, p, x: p.mprotect(A, PAGE, x),
    "madvise address": lambda m, p, x: p.madvise(x, PAGE, 4),
    "madvise length": lambda m, p, x: p.madvise(A, x, 4),
    "madvise advice": lambda m, p, x: p.madvise(A, PAGE, x),
    "mremap address": lambda m, p, x: p.mremap(x, PAGE, PAGE),
    "mremap old": lambda m, p, x: p.mremap(A, x, PAGE),
    "mremap new": lambda m, p, x: p.mremap(A, PAGE, x),
    "mremap flags": lambda m, p, x: p.mremap(A, PAGE, PAGE, x),
    "mremap to": lambda m, p, x: p.mremap(A, PAGE, PAGE, 3, x if x is not None else ""),
    "brk": lambda m, p, x: p.brk(x),
    "mincore address": lambda m, p, x: p.mincore(x, PAGE),
    "mincore length": lambda m, p, x: p.mincore(A, x),
    "msync address": lambda m, p, x: p.msync(x, PAGE, 4),
    "msync length": lambda m, p, x: p.msync(A, x, 4),
    "msync flags": lambda m, p, x: p.msync(A, PAGE, x),
    "mlock address": lambda m, p, x: p.mlock(x, PAGE),
    "mlock length": lambda m, p, x: p.mlock(A, x),
    "mlock flags": lambda m, p, x: p.mlock(A, PAGE, x),
    "munlock length": lambda m, p, x: p.munlock(A, x),
    "mseal length": lambda m, p, x: p.mseal(A, x),
    "mseal flags": lambda m, p, x: p.mseal(A, PAGE, x),
    "read address": lambda m, p, x: p.read(x, 1),
    "read length": lambda m, p, x: p.read(A, x),
    "write address": lambda m, p, x: p.write(x, b"x"),
    "touch address": lambda m, p, x: p.touch(x, 1),
    "touch length": lambda m, p, x: p.touch(A, x),
    "pagemap address": lambda m, p, x: p.pagemap(x, 1),
    "pagemap pages": lambda m, p, x: p.pagemap(A, x),
    "translate": lambda m, p, x: p.translate(x),
    "fork_many": lambda m, p, x: p.fork_many(x),
    "exit": lambda m, p, x: p.exit(x),
    "wait pid": lambda m, p, x: p.wait(x),
    "wait options": lambda m, p, x: p.wait(-1, x),
    "pread n": lambda m, p, x: m.create_file("f", b"abc").pread(x, 0),
    "pread offset": lambda m, p, x: m.create_file("f", b"abc").pread(1, x),
    "pwrite offset": lambda m, p, x: m.create_file("f", b"abc").pwrite(b"x", x),
    "truncate": lambda m, p, x: m.create_file("f", b"abc").truncate(x),
    "Machine fault_around": lambda m, p, x: Machine("1MiB", fault_around=x),
    "Machine overcommit_ratio": lambda m, p, x: Machine("1MiB", overcommit_ratio=x),
    "Machine max_map_count": lambda m, p, x: Machine("1MiB", max_map_count=x),
}


@pytest.fixture(scope="module", autouse=True)
def only_new_garbage() -> None:
    """What other files left behind need not be looked at in each of the many collections here."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("what", list(CALLS))
def test_what_is_no_integer_is_a_type_error(what: str) -> None:
    """None, floats, texts and lists where an integer belongs: TypeError, the state is unchanged."""
    with machine() as m:
        p = m.spawn()
        filled(p, 2, A)
        before = snapshot(m)
        for wrong in NO_INTEGER:
            with pytest.raises(TypeError) as caught:
                CALLS[what](m, p, wrong)
            clear(caught.value)
            del caught
            gc.collect()
            assert snapshot(m) == before


HUGES = [HUGE, HUGE + 1, -1, -(1 << 63), -(1 << 63) - 1, 1 << 63, 1 << 64, 1 << 200, -(1 << 200)]


@pytest.mark.parametrize("what", [what for what in CALLS if "pid" not in what and what not in ("exit", "mmap file")])
def test_huge_and_negative_integers_do_no_harm(what: str) -> None:
    """Whatever integer is given: an error of vmemu's or ValueError, or a result; never a crash, never an overflow."""
    with machine() as m:
        for number in [*HUGES, True, np.uint64(HUGE), np.int64(-1)]:
            p = m.spawn()
            filled(p, 2, A)
            try:
                got = CALLS[what](m, p, number)
                if isinstance(got, Machine):
                    got.close()
            except (VmemuError, ValueError, MemoryError) as error:
                clear(error)
            m.verify()
            if p.state == "running":
                p.exit()
        for p in list(m.processes.values()):
            if p.pid > 1 and p.state == "running":
                p.exit()


@pytest.mark.parametrize("length", [0, 1, PAGE, 5 * PAGE, TOP, 1 << 63, HUGE])
@pytest.mark.parametrize("address", [0, 1, A, A + 1, A + PAGE, TOP - PAGE, TOP, 1 << 47, 1 << 63, KERNEL, HUGE])
def test_every_call_at_odd_places(address: int, length: int) -> None:
    """Misaligned, overlapping, wrapping and kernel-half addresses, zero and huge lengths, through every call: an
    error or a result, the machine is consistent, and another process keeps its memory."""
    calls: list[Callable[[Process], object]] = [
        lambda p: p.mmap(address, length, RW, ANON),
        lambda p: p.mmap(address, length, RW, ANON | Map.FIXED),
        lambda p: p.mmap(address, length, R, ANON | Map.NORESERVE | Map.FIXED_NOREPLACE),
        lambda p: p.munmap(address, length),
        lambda p: p.mprotect(address, length, R),
        lambda p: p.madvise(address, length, Advice.DONTNEED),
        lambda p: p.madvise(address, length, Advice.WIPEONFORK),
        lambda p: p.mremap(address, length, PAGE, 1),
        lambda p: p.mremap(A, PAGE, length, 1),
        lambda p: p.mremap(A, PAGE, length, 3, address),
        lambda p: p.mremap(address, length, length, 3, A + 8 * PAGE),
        lambda p: p.mincore(address, length),
        lambda p: p.msync(address, length, 4),
        lambda p: p.mlock(address, length),
        lambda p: p.munlock(address, length),
        lambda p: p.mseal(address, length),
        lambda p: p.brk(address),
        lambda p: p.read(address, length),
        lambda p: p.touch(address, length),
        lambda p: p.touch(address, length, write=True),
        lambda p: p.write(address, b"x" * min(length, 3 * PAGE)),
        lambda p: p.pagemap(address, min(length, 1 << 20)),
        lambda p: p.translate(address),
        lambda p: p.access(np.array([address], np.uint64), write=True),
    ]
    with machine() as m:
        bystander = m.spawn()
        filled(bystander, 3, A)
        for call in calls:
            p = m.spawn()
            filled(p, 4, A)
            try:
                call(p)
            except OutOfMemory:
                pass
            except MemoryFault as fault:
                assert fault.kind in (FaultKind.SEGV_MAPERR, FaultKind.SEGV_ACCERR)
            except SyscallError as error:
                assert error.errno in (errno.EINVAL, errno.ENOMEM, errno.EFAULT, errno.EEXIST, errno.EPERM)
                clear(error)
            m.verify()
            p.exit()
        assert contents(bystander) == [bytes([i + 1]) * PAGE for i in range(3)]


# ---- accesses ----


def test_writing_read_only_and_executing_non_executable_memory() -> None:
    """SEGV_ACCERR, by single accesses and in batches; nothing is written, the process goes on."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 1)
        p.mprotect(a, PAGE, R)
        for call, access in ((lambda: p.write(a, b"x"), "write"), (lambda: p.read(a, 1, fetch=True), "fetch")):
            with pytest.raises(SegmentationFault) as caught:
                call()
            assert (caught.value.access, caught.value.kind) == (access, FaultKind.SEGV_ACCERR)
        assert p.access([a], write=True).tolist() == [FaultKind.SEGV_ACCERR]
        assert p.read(a, PAGE) == b"\1" * PAGE


@pytest.mark.parametrize(
    "data",
    [
        "text",
        None,
        5,
        1.5,
        [1, 2],
        memoryview(b"abcdef")[::2],
        memoryview(bytearray(b"abcdef"))[::-1],
        np.ones(8, np.uint8)[::2],
        np.asfortranarray(np.ones((3, 4), np.uint8)),
        np.array([object()]),
        {"a": 1},
    ],
    ids=lambda data: type(data).__name__,
)
def test_buffers_of_the_wrong_type(data: Any) -> None:
    """Texts, objects, memory that is not contiguous: TypeError (or what Python raises for such a buffer), nothing
    is written."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 1)
        file = m.create_file("f", b"abc")
        before = snapshot(m, file)
        for call in (lambda: p.write(a, data), lambda: file.pwrite(data, 0), lambda: m.create_file("g", data)):
            with pytest.raises((TypeError, ValueError, BufferError)):
                call()
            gc.collect()
            assert snapshot(m, file) == before


@pytest.mark.parametrize("name", [None, 5, 1.5, b"bytes", ["list"]], ids=repr)
def test_names_of_the_wrong_type(name: Any) -> None:
    """Labels and paths are texts: what is not is refused, or taken as the text that it stands for; maps is never
    broken."""
    with machine() as m:
        p = m.spawn()
        with pytest.raises(TypeError):
            m.create_file(name)
        if name != b"bytes":
            for call in (m.open_file, m.procfs.read) if name is not None else (m.open_file,):
                with pytest.raises(TypeError):
                    call(name)
            return
        try:
            p.mmap(None, PAGE, R, Map.PRIVATE, m.open_file(os.fsencode("/bin/sh")))  # type: ignore[arg-type]
        except TypeError:
            return
        assert os.path.realpath("/bin/sh").encode() in m.procfs.read(f"{p.pid}/maps")


def test_buffers_that_are_read_only_are_fine() -> None:
    """Only reading is needed."""
    with machine() as m:
        p = m.spawn()
        a = anon(p)
        array = np.arange(4, dtype=np.uint16)
        array.flags.writeable = False
        p.write(a, array)
        p.write(a + 8, memoryview(array).toreadonly())
        assert p.read(a, 16) == array.tobytes() * 2


@pytest.mark.parametrize(
    "addresses",
    [
        None,
        5,
        "text",
        [1.5],
        [None],
        ["1"],
        [True],
        [[1, 2]],
        [-1],
        [1 << 64],
        np.zeros((2, 2), np.uint64),
        np.array([1.0]),
        np.array([1 + 2j]),
        np.array(["a"]),
        np.array([-5]),
    ],
    ids=repr,
)
def test_addresses_of_the_wrong_type_or_shape(addresses: Any) -> None:
    """access() takes one-dimensional integers from 0 to 2^64 - 1."""
    with machine() as m:
        p = m.spawn()
        before = snapshot(m)
        with pytest.raises((TypeError, ValueError)) as caught:
            p.access(addresses)
        clear(caught.value)
        assert snapshot(m) == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, p: p.access(5), TypeError, "addresses must be an array of integers, not int"),
        (lambda m, p: p.access(None), TypeError, "addresses must be an array of integers, not NoneType"),
        (lambda m, p: p.access("abc"), TypeError, "addresses must be an array of integers, not str"),
        (lambda m, p: p.access([A], 2), ValueError, "write: 2 is not a bool"),
        (lambda m, p: p.access([A], np.array([255], np.uint8)), ValueError, "write: 255 is not a bool"),
        (lambda m, p: p.access([A], "yes"), TypeError, "write must be a bool or an array of bool, not str"),
        (lambda m, p: p.write(A, "text"), TypeError, "data must be a bytes-like object, not str"),
        (lambda m, p: p.write(-1, None), TypeError, "data must be a bytes-like object, not NoneType"),
        (lambda m, p: m.create_file("x", "text"), TypeError, "data must be a bytes-like object, not str"),
        (lambda m, p: m.create_file("x", 5), TypeError, "data must be a bytes-like object, not int"),
        (lambda m, p: m.exit_many(None), TypeError, "processes must be a sequence of Process, not NoneType"),
        (lambda m, p: m.exit_many(p), TypeError, "processes must be a sequence of Process, not Process"),
        (lambda m, p: Machine(hugepages=5), TypeError, "hugepages: page sizes with their numbers are needed, not int"),
        (lambda m, p: Machine(hugepages=0), TypeError, "hugepages: .*, not int"),
    ],
)
def test_what_was_wrong_is_named(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with machine() as m:
        p = m.spawn()
        anon(p, 1, A)
        before = snapshot(m)
        with pytest.raises(error, match=message):
            call(m, p)
        assert snapshot(m) == before


@pytest.mark.parametrize(
    ("argv", "environment", "message"),
    [
        (None, {"a": 5}, r"environment: the value of 'a' must be str or bytes, not int \(5\)"),
        (None, {5: "a"}, r"environment: a name must be str or bytes, not int \(5\)"),
        (None, ["a=1", None], "environment: each must be str or bytes, not NoneType"),
        (None, 5, "environment: a sequence of strings is needed, not int"),
        (["a", 5], None, "argv: each must be str or bytes, not int"),
        (5, None, "argv must be a sequence of strings, not int"),
    ],
)
def test_strings_of_exec_that_are_none_are_named(argv: Any, environment: Any, message: str, tmp_path: Path) -> None:
    path = program(tmp_path)
    with machine() as m:
        p = m.spawn()
        before = snapshot(m)
        with pytest.raises(TypeError, match=message):
            m.spawn(path, argv, environment)
        with pytest.raises(TypeError, match=message):
            p.execve(str(path), argv, environment)
        assert snapshot(m) == before


@pytest.mark.parametrize("address", [-1, 1 << 64, (1 << 64) + A, -(1 << 200), HUGE])
def test_an_address_beyond_64_bits_is_a_fault_like_any_other(address: int) -> None:
    """Raised, counted and recorded once, whatever the call; no bytes are no access."""
    calls: list[tuple[int, Callable[[Process], Any]]] = [
        (0, lambda p: p.touch(address, 5)),
        (1, lambda p: p.touch(address, 5, write=True)),
        (0, lambda p: p.read(address, 5)),
        (2, lambda p: p.read(address, 5, fetch=True)),
        (1, lambda p: p.write(address, b"12345")),
        (1, lambda p: p.write(address, bytearray(5))),
        (0, lambda p: p.read(address, 1 << 30)),
    ]
    with machine() as m, m.trace_faults() as log:
        p = m.spawn()
        anon(p, 1, A)
        for n, (access, call) in enumerate(calls):
            with pytest.raises(SegmentationFault) as caught:
                call(p)
            assert caught.value.address == address and caught.value.kind == FaultKind.SEGV_MAPERR
            assert p.faults.segv_maperr == m.faults.segv_maperr == n + 1
            assert log.records[["address", "kind", "access"]].tolist()[n:] == [(HUGE, FaultKind.SEGV_MAPERR, access)]
        assert p.read(address, 0) == b"" and not p.touch(address, 0).total
        p.write(address, b"")
        assert m.faults.as_dict()["segv_maperr"] == sum(m.faults.as_dict().values()) == len(calls)


@pytest.mark.parametrize(
    "write",
    [None, "yes", [True], [True] * 3, np.ones((2, 1), bool), 1.5, [None, None], {}, 2, [0, -1], [2, 1]],
    ids=repr,
)
def test_write_flags_of_the_wrong_type_or_shape(write: Any) -> None:
    """write= takes a bool or one for each address."""
    with machine() as m:
        p = m.spawn()
        a = anon(p)
        before = snapshot(m)
        with pytest.raises((TypeError, ValueError)) as caught:
            p.access([a, a], write)
        clear(caught.value)
        assert snapshot(m) == before


# ---- handles ----


def every_call(m: Machine, p: Process) -> list[Callable[[], object]]:
    """Something of everything that a machine and a process can be asked."""
    return [
        lambda: m.spawn(),
        lambda: m.spawn("/bin/sh"),
        lambda: m.open_file("/bin/sh"),
        lambda: m.create_file("f", b"x"),
        lambda: m.meminfo(),
        lambda: m.faults,
        lambda: m.frame_stats(),
        lambda: m.verify(),
        lambda: m.procfs.read("1/maps"),
        lambda: m.procfs.read("kpagecount"),
        lambda: list(m.processes),
        lambda: len(m.processes),
        lambda: p.mmap(None, PAGE, RW, ANON),
        lambda: p.munmap(A, PAGE),
        lambda: p.mprotect(A, PAGE, R),
        lambda: p.mprotect(A, 0, R),
        lambda: p.madvise(A, PAGE, 4),
        lambda: p.madvise(A, 0, 4),
        lambda: p.mremap(A, PAGE, PAGE),
        lambda: p.brk(),
        lambda: p.mincore(A, PAGE),
        lambda: p.mincore(A, 0),
        lambda: p.msync(A, PAGE, 4),
        lambda: p.mlock(A, PAGE),
        lambda: p.munlock(A, PAGE),
        lambda: p.mseal(A, PAGE),
        lambda: p.read(A, 1),
        lambda: p.read(A, 0),
        lambda: p.write(A, b"x"),
        lambda: p.touch(A, 1),
        lambda: p.access([A]),
        lambda: p.access([]),
        lambda: p.fork(),
        lambda: p.fork_many(2),
        lambda: p.fork_many(0),
        lambda: p.vfork(),
        lambda: p.execve("/bin/sh"),
        lambda: p.exit(),
        lambda: p.wait(),
        lambda: p.maps(),
        lambda: p.smaps(),
        lambda: p.pagemap(A, 1),
        lambda: p.translate(A),
        lambda: p.rss,
        lambda: p.pss,
        lambda: p.uss,
        lambda: p.page_tables,
        lambda: p.faults,
        lambda: p.children,
        lambda: p.exe,
        lambda: p.stack_pointer,
    ]


def test_a_closed_machine_says_so() -> None:
    """Everything raises VmemuError that says that the machine is closed; closing twice is fine; pids stay readable."""
    m = Machine("16MiB")
    p = m.spawn()
    filled(p, 1, A)
    file = m.create_file("f", b"x")
    m.close()
    for call in every_call(m, p):
        with pytest.raises(VmemuError, match="closed"):
            call()
    for on_file in (
        lambda: file.pread(1, 0),
        lambda: file.pwrite(b"x", 0),
        lambda: file.truncate(0),
        lambda: file.size,
    ):
        with pytest.raises(VmemuError):
            on_file()
    file.close()
    m.close()
    assert p.pid == 2
    assert repr(p)
    assert "closed" in repr(m)
    with pytest.raises(VmemuError), m:
        m.spawn()


def test_a_machine_closed_in_the_middle_of_things() -> None:
    """Leaving the with block closes; what a loop over a snapshot holds stays readable."""
    with Machine("16MiB") as m:
        p = m.spawn()
        filled(p, 3, A)
        records, faults, info = p.maps(), p.faults, m.meminfo()
        kids = p.fork_many(3)
    assert records[0].size == 3 * PAGE
    assert faults.zero_fill == 3
    assert info.total == 16 << 20
    assert [k.pid for k in kids] == [3, 4, 5]
    with pytest.raises(VmemuError):
        kids[0].read(A, 1)


def test_a_machine_dropped_without_close() -> None:
    """Processes and files keep what they need; all is freed when the last handle goes."""
    p = Machine("16MiB").spawn()
    gc.collect()
    a = anon(p)
    p.write(a, b"still there")
    file = Machine("16MiB").create_file("f", b"abc")
    gc.collect()
    assert p.read(a, 5) == b"still"
    assert file.pread(3, 0) == b"abc"
    del p, file
    gc.collect()


def test_handles_of_another_machine_are_refused() -> None:
    """A file of one machine cannot be mapped in another: EBADF, both unchanged."""
    with machine() as m, machine() as other:
        file, p = other.create_file("f", b"x" * PAGE), m.spawn()
        before = snapshot(m), snapshot(other, file)
        with pytest.raises(SyscallError) as caught:
            p.mmap(None, PAGE, R, Map.PRIVATE, file)
        assert caught.value.errno == errno.EBADF
        assert (snapshot(m), snapshot(other, file)) == before


# ---- machines ----


@pytest.mark.parametrize(
    "options",
    [
        {"memory": 0},
        {"memory": -1},
        {"memory": 16 * PAGE - 1},
        {"memory": 1 << 60},
        {"memory": "lots"},
        {"memory": "-1MiB"},
        {"memory": ""},
        {"memory": "1e9"},
        {"memory": None},
        {"memory": 1.5e9},
        {"memory": True},
        {"memory": b"1MiB"},
        {"swap": -1},
        {"swap": "x"},
        {"swap": None},
        {"fork_mode": 7},
        {"fork_mode": "cow"},
        {"fork_mode": None},
        {"fault_around": -1},
        {"fault_around": 513},
        {"fault_around": None},
        {"fault_around": 1.5},
        {"overcommit": 3},
        {"overcommit": "never"},
        {"oom": "panic"},
        {"oom": None},
        {"thp": "sometimes"},
        {"thp": None},
        {"overcommit_ratio": -1},
        {"max_map_count": -1},
        {"max_map_count": "many"},
        {"no_such_option": 1},
    ],
    ids=str,
)
def test_absurd_machines(options: dict[str, Any]) -> None:
    """ValueError or TypeError that names what is wrong; nothing is left behind."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises((ValueError, TypeError)) as caught:
        Machine(**{"memory": "1MiB", **options})
    clear(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("memory", [16 * PAGE, 16 * PAGE + 1, "1TiB", "8TiB"])
def test_the_smallest_and_the_largest_machine(memory: int | str) -> None:
    """Both work, or the host has no room and it is said."""
    try:
        m = Machine(memory)
    except OutOfMemory as error:
        clear(error)
        return
    with m:
        p = m.spawn()
        a = anon(p)
        p.write(a, b"x")
        assert p.fork().read(a, 1) == b"x"


def test_odd_forks() -> None:
    """Unknown modes and counts."""
    with machine() as m:
        p = m.spawn()
        for mode in (7, -1, "cow", 1.5):
            with pytest.raises(ValueError):
                p.fork(mode=mode)  # type: ignore[arg-type]
            with pytest.raises(ValueError):
                p.fork_many(2, mode=mode)  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            p.fork_many(-1)
        with pytest.raises(BlockingIOError):
            p.fork_many(1 << 40)
        assert list(m.processes) == [1, p.pid]


# ---- programs ----


def elf(**options: Any) -> bytes:
    return tinyelf.tiny(**options)


def shell() -> bytes:
    return Path("/bin/sh").read_bytes()


PROGRAMS: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "empty": (lambda: b"", {errno.ENOEXEC}),
    "text": (lambda: b"just text\n", {errno.ENOEXEC}),
    "magic only": (lambda: b"\x7fELF", {errno.ENOEXEC}),
    "truncated in the header": (lambda: shell()[:60], {errno.ENOEXEC}),
    "truncated in the program headers": (lambda: shell()[:200], {errno.ENOEXEC}),
    "truncated in the segments": (lambda: shell()[:5000], {errno.ENOEXEC, errno.EFAULT}),
    "32-bit": (lambda: b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HH", 2, 3) + bytes(32), {errno.ENOEXEC}),
    "arm64": (lambda: elf(machine=183), {errno.ENOEXEC}),
    "riscv": (lambda: elf(machine=243), {errno.ENOEXEC}),
    "object file": (lambda: elf(type=1), {errno.ENOEXEC}),
    "core file": (lambda: elf(type=4), {errno.ENOEXEC}),
    "no program headers": (lambda: elf(phnum=0), {errno.ENOEXEC}),
    "odd size of headers": (lambda: elf(phentsize=57), {errno.ENOEXEC}),
    "too many headers": (lambda: elf(phnum=65535), {errno.ENOEXEC}),
    "headers far away": (lambda: elf(phoff=1 << 62), {errno.ENOEXEC, errno.EINVAL, errno.EIO}),
    "kernel half": (lambda: elf(parts=[Part(vaddr=KERNEL)]), {errno.ENOMEM, errno.EINVAL}),
    "wraps": (lambda: elf(parts=[Part(flags=6, vaddr=0x40_0000, memsz=HUGE - 4095)]), {errno.EINVAL, errno.ENOEXEC}),
    "huge bss": (lambda: elf(parts=[Part(flags=6, vaddr=0x40_0000, memsz=1 << 45)]), {errno.ENOMEM}),
    "file larger than memory": (lambda: elf(parts=[Part(filesz=0x1000, memsz=0x10)]), {errno.EINVAL, errno.ENOEXEC}),
    "bss beyond the file": (
        lambda: elf(parts=[Part(flags=6, offset=0x5000, vaddr=0x40_0000, filesz=0x800, memsz=0x3000)]),
        {errno.EFAULT, errno.ENOEXEC},
    ),
    "interpreter missing": (lambda: elf(interp=b"/no/such/ld.so\0"), {errno.ENOENT}),
    "interpreter is a directory": (lambda: elf(interp=b"/tmp\0"), {errno.EACCES}),
    "interpreter without NUL": (lambda: elf(interp=b"/lib64/ld"), {errno.ENOEXEC}),
    "interpreter name empty": (lambda: elf(interp=b"\0"), {errno.ENOEXEC, errno.ENOENT, errno.EACCES}),
    "script without interpreter": (lambda: b"#!\n", {errno.ENOEXEC}),
    "script with a missing one": (lambda: b"#!/no/such/thing\n", {errno.ENOENT}),
    "script with a directory": (lambda: b"#!/tmp\n", {errno.EACCES}),
}


@pytest.mark.parametrize("what", list(PROGRAMS))
def test_bad_programs(what: str, tmp_path: Path) -> None:
    """Truncated, corrupt, 32-bit and wrong-machine ELF: the errno of execve(2), a message that says what, and
    nothing has changed, in execve, spawn and execve of a vfork child; or it is killed where Linux does that."""
    make, expected = PROGRAMS[what]
    path = tmp_path / "bad"
    path.write_bytes(make())
    path.chmod(0o755)
    if what in LETHAL:
        killed(path, expected)
    else:
        refused(path, expected)


LETHAL = (
    "truncated in the segments",
    "kernel half",
    "wraps",
    "huge bss",
    "file larger than memory",
    "bss beyond the file",
)
"""Programs that the kernel finds bad when the old memory is gone already."""


def killed(path: Path, expected: set[int]) -> None:
    """The program at *path* ends who executes it, as SIGSEGV; nobody else notices."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2, A)
        before, descriptors = snapshot(m), len(os.listdir("/proc/self/fd"))
        for make in (p.fork, p.vfork, lambda: None):
            child = make()
            with pytest.raises(ProcessKilled) as caught:
                child.execve(str(path), ["x"], {}) if child else m.spawn(path, ["x"], {})
            assert isinstance(caught.value, SyscallError)
            assert caught.value.errno in expected
            assert caught.value.signal == signal.SIGSEGV
            clear(caught.value)
            if child:
                assert p.wait() == (child.pid, signal.SIGSEGV)
            assert snapshot(m) == before
            assert p.read(a, 1) == b"\1"
        with pytest.raises(SyscallError) as caught_init:  # Linux would panic
            m.init.execve(str(path), ["x"], {})
        assert caught_init.value.errno in expected and not isinstance(caught_init.value, ProcessKilled)
        assert m.init.state == "running"
        clear(caught_init.value)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.linux
@pytest.mark.parametrize("what", PROGRAMS)
def test_bad_programs_on_this_kernel(what: str, tmp_path: Path) -> None:
    """Which programs are refused and which are lethal."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("needs Linux on x86-64")
    path = tmp_path / "bad"
    path.write_bytes(PROGRAMS[what][0]())
    path.chmod(0o755)
    child = f"import os, sys\ntry: os.execv({str(path)!r}, ['x'])\nexcept OSError as error: sys.exit(error.errno)"
    status = subprocess.run([sys.executable, "-c", child]).returncode
    assert status == -signal.SIGSEGV if what in LETHAL else status in PROGRAMS[what][1]


def refused(path: Path | str, expected: set[int]) -> None:
    """The program at *path* cannot be executed."""
    with machine() as m:
        p = m.spawn()
        filled(p, 2, A)
        v = p.vfork()
        other = m.spawn()
        filled(other, 2, A)
        before, descriptors = snapshot(m), len(os.listdir("/proc/self/fd"))
        for call in (
            lambda: m.spawn(path, ["x"], {}),
            lambda: v.execve(str(path), ["x"], {}),
            lambda: other.execve(str(path), ["x"], {}),
        ):
            with pytest.raises(SyscallError) as caught:
                call()
            assert caught.value.errno in expected
            clear(caught.value)
            assert snapshot(m) == before
            assert contents(other) == [b"\1" * PAGE, b"\2" * PAGE]
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        v.exit()


def test_programs_that_are_no_programs(tmp_path: Path) -> None:
    """A directory, missing, not executable, a device, a FIFO, a dangling link, a loop of links, a loop of scripts."""
    refused(tmp_path, {errno.EACCES})
    refused(tmp_path / "missing", {errno.ENOENT})
    refused("", {errno.ENOENT})
    refused("/dev/null", {errno.EACCES})
    plain = program(tmp_path, "plain")
    plain.chmod(0o644)
    assert not plain.stat().st_mode & stat.S_IXUSR
    refused(plain, {errno.EACCES})
    refused(plain / "below", {errno.ENOTDIR})
    os.mkfifo(tmp_path / "fifo", 0o755)
    refused(tmp_path / "fifo", {errno.EACCES})
    (tmp_path / "dangling").symlink_to("nowhere")
    refused(tmp_path / "dangling", {errno.ENOENT})
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", {errno.ELOOP})
    script = tmp_path / "script"
    script.write_text(f"#!{script}\n")
    script.chmod(0o755)
    refused(script, {errno.ELOOP})


def test_arguments_of_programs() -> None:
    """One string for a list, wrong types, NUL bytes, too long: TypeError or E2BIG or EINVAL, nothing has changed."""
    cases: list[tuple[Any, Any, type[BaseException]]] = [
        ("sh -c true", {}, TypeError),
        (b"sh", {}, TypeError),
        ([None], {}, TypeError),
        ([1], {}, TypeError),
        (5, {}, TypeError),
        (["sh"], "A=b", TypeError),
        (["sh"], 5, TypeError),
        (["sh"], {"A": None}, TypeError),
        (["sh"], {1: "x"}, TypeError),
        (["a\0b"], {}, SyscallError),
        (["sh"], {"A\0": "b"}, SyscallError),
        (["x" * 200_000], {}, SyscallError),
        (["x" * 1000] * 10_000, {}, SyscallError),
        (["x"] * 1_000_000, {}, SyscallError),
        (["sh"], {"A": "x" * 200_000}, SyscallError),
    ]
    with machine() as m:
        p = m.spawn()
        filled(p, 1, A)
        before = snapshot(m)
        for argv, environment, kind in cases:
            for call in (lambda *args: p.execve("/bin/sh", *args), lambda *args: m.spawn("/bin/sh", *args)):
                with pytest.raises(kind) as caught:
                    call(argv, environment)
                clear(caught.value)
            assert snapshot(m) == before
        for path in (None, 5, 1.5, ["sh"]):
            with pytest.raises(TypeError):
                p.execve(path)  # type: ignore[arg-type]
        for odd in ("\0", "a\0b"):
            with pytest.raises(SyscallError):
                p.execve(odd)


@pytest.mark.parametrize("seed", range(60))
def test_corrupt_programs(seed: int, tmp_path: Path) -> None:
    """Random bytes of a good program changed: it loads or it is refused; the machine is consistent and no frame is
    lost."""
    rng = np.random.default_rng(seed)
    good = bytearray(elf(parts=[Part(flags=5, vaddr=0x40_0000), Part(flags=6, vaddr=0x60_0000, memsz=0x3000)]))
    path = tmp_path / "corrupt"
    with machine(overcommit=Overcommit.ALWAYS if seed % 2 else Overcommit.HEURISTIC) as m:
        boot = m.meminfo()
        for _ in range(10):
            bad = bytearray(good)
            for _ in range(int(rng.integers(1, 6))):
                at = int(rng.integers(0, 64 + 2 * 56))
                bad[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
            path.write_bytes(bad)
            path.chmod(0o755)
            try:
                p = m.spawn(path, ["x"], {})
            except (SyscallError, MemoryFault) as error:
                clear(error)
                del error
            else:
                p.fork(mode=ForkMode(seed % 3)).exit()
                p.exit()
            m.verify()
        gc.collect()
        assert m.meminfo() == boot


def test_everything_goes_on_after_errors() -> None:
    """A long row of mistakes, and the process still works."""
    with machine() as m:
        p = m.spawn()
        filled(p, 2, A)
        for _ in range(200):
            for call in (
                lambda: p.read(0, 1),
                lambda: p.write(KERNEL, b"x"),
                lambda: p.mmap(None, 0, 0, 0),
                lambda: p.munmap(1, 1),
                lambda: p.execve("/no"),
                lambda: m.open_file("/no"),
                lambda: p.wait(),
                lambda: p.mprotect(A, PAGE, Prot(1 << 20)),
            ):
                with pytest.raises(VmemuError):
                    call()
        assert contents(p) == [b"\1" * PAGE, b"\2" * PAGE]
