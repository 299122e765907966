"""Same-page merging against ksmd of the kernel that runs: random programs, counters and frames compared at each step.

The settings of /sys/kernel/mm/ksm are changed for the test and put back; it is skipped where somebody else merges.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import PAGE, RW

from vmemu import Advice, Machine, Map, Process

pytestmark = pytest.mark.linux

KSM = Path("/sys/kernel/mm/ksm")
ARENA, NPAGES = 0x100_0000_0000, 24
SETTINGS = ("pages_to_scan", "sleep_millisecs", "smart_scan", "use_zero_pages")
COUNTERS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "ksm_zero_pages")
_PFN, _PRESENT, _KSM = (1 << 55) - 1, 1 << 63, 1 << 21
_FIXED = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED


class Ksmd:
    """The kernel's: one pass at a time."""

    def __init__(self) -> None:
        self.before = {name: self.get(name) for name in SETTINGS}
        self.long = 20_000
        self.running = False

    def get(self, name: str) -> int:
        return int((KSM / name).read_text())

    def set(self, name: str, value: int) -> None:
        (KSM / name).write_text(str(value))

    def scan(self) -> None:
        """Whoever changes how long it sleeps wakes it; then it does one pass and sleeps again."""
        wanted = self.get("full_scans") + 1
        self.long ^= 1
        self.set("sleep_millisecs", self.long)
        if not self.running:
            self.running = True
            self.set("run", 1)
        for _ in range(5000):
            if self.get("full_scans") >= wanted:
                assert self.get("full_scans") == wanted
                return
            time.sleep(0.001)
        pytest.skip("ksmd does not run")

    def close(self) -> None:
        self.set("run", 2)
        self.set("run", 0)
        for name, value in self.before.items():
            self.set(name, value)


class Host:
    """The arena in this process."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.mmap(0, NPAGES)

    def check(self, result: int | None) -> None:
        if result in (-1, None, (1 << 64) - 1):
            raise OSError(ctypes.get_errno(), "system call")

    def mmap(self, page: int, n: int) -> None:
        where = ctypes.c_void_p(ARENA + page * PAGE)
        self.check(self.libc.mmap(where, ctypes.c_size_t(n * PAGE), int(RW), int(_FIXED), -1, ctypes.c_long(0)))

    def madvise(self, page: int, n: int, advice: int) -> None:
        self.check(self.libc.madvise(ctypes.c_void_p(ARENA + page * PAGE), ctypes.c_size_t(n * PAGE), int(advice)))

    def fill(self, page: int, byte: int) -> None:
        ctypes.memset(ARENA + page * PAGE, byte, PAGE)

    def poke(self, page: int, byte: int) -> None:
        ctypes.memset(ARENA + page * PAGE + 7, byte, 1)

    def pages(self) -> list[tuple[int, bool]]:
        """Frame and whether it is merged; -1 where nothing is."""
        with open("/proc/self/pagemap", "rb") as pagemap, open("/proc/kpageflags", "rb") as flags:
            pagemap.seek(ARENA // PAGE * 8)
            out = []
            for entry in struct.unpack(f"<{NPAGES}Q", pagemap.read(NPAGES * 8)):
                if not entry & _PRESENT:
                    out.append((-1, False))
                    continue
                flags.seek((entry & _PFN) * 8)
                out.append((entry & _PFN, bool(struct.unpack("<Q", flags.read(8))[0] & _KSM)))
        return out

    def close(self) -> None:
        self.libc.munmap(ctypes.c_void_p(ARENA), ctypes.c_size_t(NPAGES * PAGE))


class Child:
    """A fork of this process that does nothing until it ends."""

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)

    def end(self) -> None:
        os.close(self.writing)
        os.waitpid(self.pid, 0)


@pytest.fixture
def ksmd() -> Iterator[Ksmd]:
    if os.geteuid() or not KSM.is_dir():
        pytest.skip("needs root and CONFIG_KSM")
    with open(KSM / "run") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon = Ksmd()
        if daemon.get("run") or any(daemon.get(name) for name in COUNTERS):
            pytest.skip("somebody merges pages on this host")
        if any(name not in os.listdir(KSM) for name in ("smart_scan", "ksm_zero_pages")):
            pytest.skip("this kernel's ksmd is an older one")
        try:
            daemon.set("smart_scan", 0)
            daemon.set("pages_to_scan", 1_000_000)
            yield daemon
        finally:
            daemon.close()


def shape(pages: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """Frames numbered in order of appearance."""
    names = {-1: -1}
    return [(names.setdefault(frame, len(names)), merged) for frame, merged in pages]


def emulated_pages(m: Machine, p: Process) -> list[tuple[int, bool]]:
    flags = memoryview(m.procfs.read("kpageflags")).cast("Q")
    entries = p.pagemap(ARENA, NPAGES).tolist()
    return [(e & _PFN, bool(flags[e & _PFN] & _KSM)) if e & _PRESENT else (-1, False) for e in entries]


def program(rng: random.Random) -> list[tuple[Any, ...]]:
    """Operations, many of them passes.

    The last page stays mergeable, so that ksmd does not go to bed: when it is woken it looks around at once.
    """
    first = rng.choice((0, NPAGES // 2, NPAGES - 1))
    ops: list[tuple[Any, ...]] = [("madvise", first, NPAGES - first, Advice.MERGEABLE)]
    for _ in range(40):
        page, n = rng.randrange(NPAGES - 1), rng.randint(1, 6)
        n = min(n, NPAGES - 1 - page)
        what = rng.choice(("fill", "fill", "fill", "poke", "madvise", "mmap", "scan", "scan", "scan", "fork", "end"))
        if what in ("fill", "poke"):
            ops += [(what, at, rng.choice((0, 1, 1, 2, 3))) for at in range(page, page + n)]
        elif what == "madvise":
            ops.append(
                (what, page, n, rng.choice((Advice.MERGEABLE, Advice.MERGEABLE, Advice.UNMERGEABLE, Advice.DONTNEED)))
            )
        elif what == "mmap":
            ops.append((what, page, n))
        else:
            ops.append((what,))
    return [*ops, ("scan",), ("scan",)]


@pytest.mark.parametrize("number", range(int(os.environ.get("VMEMU_KSM_PROGRAMS", "6"))))
def test_as_ksmd_does(ksmd: Ksmd, number: int) -> None:
    rng = random.Random(f"ksm {number}")
    zero = number % 3 == 2
    ksmd.set("use_zero_pages", int(zero))
    host, child = Host(), None
    libc_thp = host.libc.prctl(41, 1, 0, 0, 0)
    assert libc_thp == 0
    done: list[tuple[Any, ...]] = []
    with Machine("4MiB") as m:
        p, c = m.spawn(), None
        m.ksm.use_zero_pages = zero
        p.mmap(ARENA, NPAGES * PAGE, RW, _FIXED)
        try:
            for op in program(rng):
                done.append(op)
                match op:
                    case ("scan",):
                        ksmd.scan()
                        m.ksm.scan(1)
                    case ("fork",):
                        if child is None:
                            child, c = Child(), p.fork()
                    case ("end",):
                        if child is not None and c is not None:
                            child.end()
                            c.exit()
                            child = c = None
                    case ("fill", page, byte):
                        host.fill(page, byte)
                        p.write(ARENA + page * PAGE, bytes([byte]) * PAGE)
                    case ("poke", page, byte):
                        host.poke(page, byte)
                        p.write(ARENA + page * PAGE + 7, bytes([byte]))
                    case ("madvise", page, n, advice):
                        host.madvise(page, n, advice)
                        p.madvise(ARENA + page * PAGE, n * PAGE, advice)
                    case ("mmap", page, n):
                        host.mmap(page, n)
                        p.mmap(ARENA + page * PAGE, n * PAGE, RW, _FIXED)
                m.verify()
                expected = {name: ksmd.get(name) for name in COUNTERS}
                found = m.ksm.counts._asdict()
                assert {name: found[name] for name in COUNTERS} == expected, done
                assert shape(emulated_pages(m, p)) == shape(host.pages()), done
        finally:
            if child is not None:
                child.end()
            host.close()
            host.libc.prctl(41, 0, 0, 0, 0)
