"""PID/status, stat and statm: lines and fields as the kernel prints them, figures as the machine has them."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, every_mode, filled, machine, program
from procfs.shape import host, shape, status

from vmemu import Advice, ForkMode, Machine, Map, Prot


def differing(mine: bytes, real: bytes) -> list[tuple[bytes, bytes]]:
    """Lines of other shape, those aside whose words or digits depend on the process or the host."""
    apart = re.compile(rb"(Name|Groups|SigQ|Sig\w+|Cap\w+|Cpus_\w+|Mems_\w+|Speculation\w+|Umask|State):")
    assert [line.split(b":")[0] for line in mine.splitlines()] == [line.split(b":")[0] for line in real.splitlines()]
    return [(a, b) for a, b in zip(shape(mine), shape(real), strict=True) if a != b and not apart.match(a)]


@pytest.mark.linux
def test_status_has_the_lines_of_the_real_one() -> None:
    """The same keys in the same order, each value in the same columns."""
    with Machine(memory="64MiB") as m:
        p = m.spawn("/bin/sh", ["sh"], {})
        real = subprocess.run(["cat", "/proc/self/status"], stdout=subprocess.PIPE, check=True, timeout=60).stdout
        assert differing(m.procfs.read(f"{p.pid}/status"), real) == []


@pytest.mark.linux
def test_a_zombie_has_the_lines_of_a_real_one() -> None:
    """Without Umask, without lines on memory."""
    code = "import os, time\npid = os.fork()\nif not pid: os._exit(3)\nprint(pid, flush=True)\ntime.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as real, machine() as m:
        assert real.stdout is not None
        pid = int(real.stdout.readline())
        try:
            while b"Z (zombie)" not in host(f"{pid}/status"):
                pass
            c = m.spawn().fork()
            c.exit(3)
            assert differing(m.procfs.read(f"{c.pid}/status"), host(f"{pid}/status")) == []
            mine, theirs = m.procfs.read(f"{c.pid}/stat").split(), host(f"{pid}/stat").split()
            assert len(mine) == len(theirs)
            assert (mine[2], mine[-1]) == (theirs[2], theirs[-1]) == (b"Z", b"768")
            memory = slice(22, 28)  # vsize to startstack
            assert mine[memory] == theirs[memory]
        finally:
            real.kill()


@pytest.mark.linux
def test_sums_of_mappings_are_the_kernels() -> None:
    """VmPeak, VmSize, VmLck, VmData and VmStk move as those of a real process that makes the same calls."""
    code = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
for name in ("munmap", "mlock", "mprotect"):
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * (name == "mprotect")
keys = [b"VmPeak", b"VmSize", b"VmLck", b"VmData", b"VmStk"]
buffer = bytearray(8192)
file = open("/proc/self/status", "rb", buffering=0)
def look():
    file.seek(0)
    n = file.readinto(buffer)
    return [int(bytes(buffer[:n]).split(key + b":")[1].split()[0]) for key in keys]
A, P = 0x10000000, 4096
libc.mmap(A, 256 * P, 3, 0x32, -1, 0); libc.munmap(A, 256 * P)
before = look()
seen = []
libc.mmap(A, 64 * P, 3, 0x32, -1, 0); seen.append(look())
libc.mmap(A + 64 * P, 8 * P, 3, 0x31, -1, 0); seen.append(look())
libc.mlock(A, 3 * P); seen.append(look())
libc.mprotect(A + 8 * P, 8 * P, 1); seen.append(look())
libc.mmap(A + 128 * P, 512 * P, 0, 0x4022 | 0x10, -1, 0); seen.append(look())
libc.munmap(A + 128 * P, 512 * P); seen.append(look())
libc.munmap(A, 8 * P); seen.append(look())
for one in seen: print(*(a - b for a, b in zip(one, before)))
"""
    real = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, timeout=60).stdout
    theirs = [[int(n) for n in line.split()] for line in real.splitlines()]
    with machine(memory="16MiB") as m:
        p = m.spawn()
        keys = ["VmPeak", "VmSize", "VmLck", "VmData", "VmStk"]

        def look() -> list[int]:
            return [status(m, p)[key] >> 10 for key in keys]

        seen = []
        p.mmap(A, 64 * PAGE, RW, ANON | Map.FIXED)
        seen.append(look())
        p.mmap(A + 64 * PAGE, 8 * PAGE, RW, SHARED | Map.FIXED)
        seen.append(look())
        p.mlock(A, 3 * PAGE)
        seen.append(look())
        p.mprotect(A + 8 * PAGE, 8 * PAGE, R)
        seen.append(look())
        p.mmap(A + 128 * PAGE, 512 * PAGE, Prot.NONE, ANON | Map.FIXED | Map.NORESERVE)
        seen.append(look())
        p.munmap(A + 128 * PAGE, 512 * PAGE)
        seen.append(look())
        p.munmap(A, 8 * PAGE)
        seen.append(look())
    assert [mine[1:] for mine in seen] == [line[1:] for line in theirs]
    # the real process had a peak before; what the calls add to it is less
    assert [mine[0] for mine in seen] == [mine[1] for mine in seen[:5]] + [seen[4][1]] * 2
    assert theirs[4][0] == theirs[5][0] == theirs[6][0] > theirs[3][0]


def test_figures_are_the_machines() -> None:
    """Each line on memory against what the Process says."""
    with Machine(memory="64MiB") as m:
        p = m.spawn("/bin/sh", ["sh"], {}, link=True)
        p.brk(p.brk() + 8 * PAGE)
        p.touch(p.brk() - 8 * PAGE, 8 * PAGE, write=True)
        shared = p.mmap(None, 4 * PAGE, RW, SHARED)
        p.touch(shared, 3 * PAGE, write=True)
        p.mlock(shared, PAGE)
        for mapping in p.maps():
            if mapping.prot & Prot.READ:
                p.touch(mapping.start, mapping.size)
        got, kinds, maps = status(m, p), p.rss_by_kind, p.maps()
        code = sum(v.size for v in maps if v.prot & Prot.EXEC)
        assert (got["VmSize"], got["VmPeak"]) == (sum(v.size for v in maps),) * 2
        assert (got["VmRSS"], got["VmHWM"]) == (p.rss, p.rss)
        assert (got["RssAnon"], got["RssFile"], got["RssShmem"]) == kinds
        assert got["VmLck"] == PAGE
        assert got["VmPTE"] == p.page_tables
        assert got["VmStk"] == sum(v.size for v in maps if v.name == "[stack]")
        assert got["VmExe"] + got["VmLib"] == code
        assert got["VmExe"] == sum(v.size for v in maps if v.prot & Prot.EXEC and v.name == p.exe)
        private = [v for v in maps if v.prot & Prot.WRITE and not v.shared and v.name != "[stack]"]
        assert got["VmData"] == sum(v.size for v in private)
        statm = [int(n) for n in m.procfs.read(f"{p.pid}/statm").split()]
        text = got["VmExe"] // PAGE
        pages = [got["VmSize"], got["VmRSS"], kinds.file + kinds.shmem]
        assert statm == [*(n // PAGE for n in pages), text, 0, (got["VmData"] + got["VmStk"]) // PAGE, 0]


def test_stat_has_its_fields(tmp_path: Path) -> None:
    """52 of them; addresses from the program, faults and memory as the Process has them."""
    path = program(tmp_path, "a) b (c")
    with machine() as m:
        p = m.spawn(str(path), ["name", "arg"], {"KEY": "value"})
        text = m.procfs.read(f"{p.pid}/stat").decode()
        head, _, tail = text.partition("(a) b (c) ")
        assert head == f"{p.pid} "
        assert text.endswith("\n")
        fields = tail.split()
        assert len(fields) == 50
        state, ppid = fields[0], int(fields[1])
        named = dict(zip(range(3, 53), fields, strict=True))
        assert (state, ppid) == ("R", 1)
        assert (int(named[10]), int(named[12])) == (p.faults.minor, p.faults.major)
        assert (int(named[23]), int(named[24])) == (sum(v.size for v in p.maps()), p.rss // PAGE)
        start_code, end_code, start_stack = (int(named[i]) for i in (26, 27, 28))
        assert start_code <= p.entry_point < end_code
        assert start_stack == p.stack_pointer
        args, env = (p.read(int(named[i]), int(named[i + 1]) - int(named[i])) for i in (48, 50))
        assert (args, env) == (b"name\0arg\0", b"KEY=value\0")
        assert named[49] == named[50]


def test_states() -> None:
    """Running, waiting for a vfork child, dead."""
    with machine() as m:
        p = m.spawn()
        c = p.vfork()

        def state(pid: int) -> tuple[str, str]:
            line = re.search(r"^State:\t(.*)$", m.procfs.read(f"{pid}/status").decode(), re.MULTILINE)
            assert line
            return m.procfs.read(f"{pid}/stat").decode().split()[2], line[1]

        assert (state(p.pid), state(c.pid)) == (("D", "D (disk sleep)"), ("R", "R (running)"))
        c.exit()
        assert (state(p.pid), state(c.pid)) == (("R", "R (running)"), ("Z", "Z (zombie)"))


@pytest.mark.parametrize("name", ["back\\slash", "line\nbreak", "sixteen bytes and more", "(x) S 1 2"])
def test_names(tmp_path: Path, name: str) -> None:
    """15 bytes; status alone escapes backslash and newline (proc_task_name())."""
    with machine() as m:
        p = m.spawn(str(program(tmp_path, name)))
        raw = name.encode()[:15]
        escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
        assert m.procfs.read(f"{p.pid}/comm") == raw + b"\n"
        assert m.procfs.read(f"{p.pid}/status").startswith(b"Name:\t" + escaped + b"\nUmask:")
        assert m.procfs.read(f"{p.pid}/stat").startswith(b"%d (%s) R " % (p.pid, raw))


@every_mode
def test_high_water_marks(mode: ForkMode) -> None:
    """VmHWM and VmPeak are the most there was after any call, whatever was done; a child begins with what it got."""
    rng = random.Random(mode)
    with machine(memory="8MiB", fork_mode=mode) as m:
        p = m.spawn()
        rss = total = 0
        for step in range(300):
            a, n = A + rng.randrange(64) * PAGE, rng.randrange(1, 32)
            what = rng.randrange(8)
            if what < 3:
                anon(p, n, a)
            elif what == 3:
                p.munmap(a, n * PAGE)
            elif what == 4:
                p.access([a + i * PAGE for i in range(n)], write=bool(rng.randrange(2)))
            elif what == 5 and p.maps():
                mapping = rng.choice(p.maps())
                p.madvise(mapping.start, mapping.size, Advice.DONTNEED)
            elif what == 6:
                file = m.create_file("f", bytes(8 * PAGE))
                p.mmap(a, 8 * PAGE, RW, Map.SHARED | Map.FIXED | Map.POPULATE, file)
                rss, total = max(rss, p.rss), max(total, sum(v.size for v in p.maps()))
                assert status(m, p)["VmHWM"] >= rss
                file.truncate(rng.randrange(8) * PAGE)
            elif step % 3 == 0:
                p = p.fork()
                rss = total = 0
            rss, total = max(rss, p.rss), max(total, sum(v.size for v in p.maps()))
            got = status(m, p)
            assert (got["VmHWM"], got["VmPeak"]) == (rss, total), step


def test_high_water_mark_within_one_call() -> None:
    """mmap over what is there: what goes is counted before it goes, together with what came until then."""
    with machine() as m:
        p = m.spawn()
        filled(p, 8, A)
        p.mmap(A, 8 * PAGE, RW, ANON | Map.FIXED)
        assert p.rss == 0
        assert status(m, p)["VmHWM"] == 8 * PAGE
        c = p.fork()
        assert status(m, c)["VmHWM"] == 0


def test_tables_of_a_fault_beyond_the_file() -> None:
    """SIGBUS comes after the upper tables were made (__handle_mm_fault()); fork copies them where it copies entries."""
    with machine() as m:
        p = m.spawn()
        file = m.create_file("f", bytes(PAGE), writenotify=True)
        a = p.mmap(A, 4 * PAGE, RW, Map.PRIVATE | Map.FIXED, file)
        p.access([a + 2 * PAGE])
        assert p.page_tables == 2 * PAGE
        c = p.fork()  # nothing to copy: no anonymous page was about to be
        assert c.page_tables == 0
        p.access([a + 2 * PAGE], write=True)
        c = p.fork(ForkMode.COW)
        assert (c.page_tables, status(m, c)["VmPTE"]) == (2 * PAGE, 2 * PAGE)
        p.munmap(a, 4 * PAGE)
        assert p.page_tables == 0
        p.access([A], write=True)  # no mapping: no table
        assert p.page_tables == 0
