"""Fuzzers: random calls with hostile arguments, to be run on a core built with sanitizers (tests/test_sanitizers.py).

    python tests/fuzz.py TARGET [--seconds N] [--seed N]

Targets: `api` goes through the public interface, `border` calls the C functions themselves with everything that
csrc/vmemu_cdef.h promises to check, `elf` execs mutated programs. Whatever it is asked, vmemu must never crash, hang or
raise anything but its own errors, and the machine must be consistent at any time. The last line printed counts the
operations. A failure prints the seed of its round and the last operations of it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from vmemu._core import ffi, lib

from vmemu import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    TRACE_DTYPE,
    Advice,
    Clone,
    FaultLog,
    File,
    ForkMode,
    Machine,
    Map,
    Operation,
    Overcommit,
    Process,
    VmemuError,
)
from vmemu.memory.reclaim import shrink
from vmemu.swap import POLICIES

PAGE = 4096
THREAD = Clone.VM | Clone.SIGHAND | Clone.THREAD
TASK_SIZE = 0x7FFF_FFFF_F000
TOP = 1 << 64
EDGES = (0, PAGE, 65536, 1 << 21, 1 << 30, 1 << 39, TASK_SIZE - PAGE, TASK_SIZE, 1 << 47, 1 << 52, 1 << 63, TOP - PAGE)
ARENA = 0x4000_0000
HUGE = 2 << 20
SWAP_ERRORS = (errno.EINVAL, errno.ENOMEM)
ARENA_PAGES = 1200
"""Where most mappings go, so that they meet: two leaf tables and a half."""


class Round:
    """One machine's worth of random operations; counts them and remembers the last ones."""

    log: BinaryIO | None = None
    """Unbuffered: says what led to a crash."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.operations = 0
        self.last: collections.deque[str] = collections.deque(maxlen=40)

    def note(self, text: str) -> None:
        self.operations += 1
        self.last.append(text)
        if self.log is not None:
            self.log.write(f"\n{text}".encode())

    def say(self, text: str) -> None:
        self.last[-1] += f" {text}"
        if self.log is not None:
            self.log.write(f" {text}".encode())

    def run(self) -> None:
        raise NotImplementedError

    # ---- arguments ----

    def address(self) -> int:
        r = self.rng
        kind = r.random()
        if kind < 0.1:
            at = ARENA + r.randrange(3) * HUGE
        elif kind < 0.8:
            at = ARENA + r.randrange(ARENA_PAGES) * PAGE
        elif kind < 0.95:
            at = r.choice(EDGES) + r.randrange(-3, 4) * PAGE
        else:
            at = r.getrandbits(r.choice((16, 32, 47, 48, 64)))
        if r.random() < 0.1:
            at += r.choice((1, 7, 4095, -1))
        return at % TOP

    def length(self) -> int:
        r = self.rng
        kind = r.random()
        if kind < 0.8:
            return r.randrange(1, 40) * PAGE
        if kind < 0.85:
            return HUGE
        if kind < 0.9:
            return r.randrange(0, 700) * PAGE + r.choice((0, 0, 1, 4095))
        return r.choice(
            (0, 1, TASK_SIZE, TASK_SIZE - ARENA, 1 << 46, 1 << 47, 1 << 52, 1 << 63, TOP - 1, TOP - PAGE, TOP)
        )

    def page(self) -> int:
        return ARENA + self.rng.randrange(ARENA_PAGES) * PAGE


# ---- the public interface ----


class Api(Round):
    """Random calls on processes and files of one machine."""

    def run(self) -> None:
        r = self.rng
        memory = r.choice((64, 100, 300, 1000, 20000)) * PAGE
        with Machine(
            memory,
            fork_mode=r.choice(list(ForkMode)),
            zero_page=r.random() < 0.8,
            reuse=r.random() < 0.9,
            contents=r.random() < 0.8,
            fault_around=r.choice((0, 1, 3, 16, 16, 512)),
            overcommit=r.choice(list(Overcommit)),
            max_map_count=r.choice((20, 200, 65530)),
            thp=r.choice(("never", "never", "madvise", "always")),
            hugepages={"2MiB": r.choice((0, 0, 3))} if memory >= 20000 * PAGE else None,
            oom=r.choice(("raise", "kill")),
            swap=r.choice((0, 0, 40, 1000)) * PAGE,
            policy=r.choice((None, *POLICIES)),
            swappiness=r.choice((0, 60, 200)),
            seed=r.randrange(100),
        ) as m:
            self.machine = m
            self.files: list[File] = []
            self.log_: FaultLog | None = None
            calls = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
            weights = [8 if f.__name__ in ("do_write", "do_mmap", "do_fork", "do_touch") else 3 for f in calls]
            with contextlib.suppress(VmemuError):
                m.spawn()
            for _ in range(r.choice((50, 200, 400))):
                call = r.choices(calls, weights)[0]
                self.note(call.__name__)
                if r.random() < 0.03:
                    m._kernel.core.fail(r.randrange(1, 12))
                with contextlib.suppress(VmemuError, NotImplementedError):
                    call()
                if r.random() < 0.1:
                    m._kernel.core.fail(0)
                    m.verify()
            m._kernel.core.fail(0)
            for p in list(m.processes.values()):
                if p.state == "running" and p.pid != 1:
                    p.exit()
            self.files.clear()
            m.verify()

    def process(self) -> Process:
        alive = [p for p in self.machine.processes.values() if p.threads]
        return self.rng.choice(alive[1:] or alive or [self.machine.init])

    def task(self) -> Process:
        return self.rng.choice(self.process().threads)

    def file(self) -> File | None:
        return self.rng.choice(self.files) if self.files else None

    def do_spawn(self) -> None:
        if len(self.machine.processes) < 12:
            self.machine.spawn()

    def do_cgroup(self) -> None:
        """Groups come and go, processes move, limits change; files of them are read and written."""
        r, groups = self.rng, self.machine.cgroups
        which, path = r.randrange(6), r.choice(("a", "b", "a/b", "a/c", "", "x/y", "a/pids.max"))
        limit = r.choice((None, 0, 1, 3, 8 * PAGE, 40 * PAGE, "1MiB", -1))
        self.say(f"{which} {path} {limit}")
        with contextlib.suppress(ValueError, TypeError):
            if which == 0:
                groups.create(path, memory_max=limit, oom_group=r.random() < 0.2)
            elif which == 1:
                groups.remove(path)
            elif which == 2 and path in groups:
                setattr(groups[path], r.choice(("pids_max", "memory_max", "memory_high")), limit)
            elif which == 3:
                name = r.choice(self.machine.cgroupfs.listdir(path))
                self.machine.cgroupfs.read(f"{path}/{name}")
                data = r.choice(
                    ("max", "0", "1", "4096", "64k", "-1", "x", "99999999999999999999", "+memory", "-memory +pids")
                )
                self.machine.cgroupfs.write(f"{path}/{name}", data)
            else:
                self.process().cgroup = path

    def do_oom_settings(self) -> None:
        """Whom the killer chooses, and what is in its reports."""
        r, m = self.rng, self.machine
        self.process().set_oom_score_adj(r.choice((0, 0, 100, -100, -1000, 1000)))
        if r.random() < 0.1:
            m.procfs.write("sys/vm/oom_kill_allocating_task", r.choice(("0", "1")))
            m.procfs.write("sys/vm/panic_on_oom", r.choice(("0", "0", "0", "1", "2")))
        for report in m.oom_reports[-2:]:
            assert str(report)

    def do_create(self) -> None:
        r = self.rng
        if len(self.files) < 4:
            size = r.choice((0, 1, 4095, PAGE, 3 * PAGE + 5, 20 * PAGE))
            self.files.append(self.machine.create_file("f", bytes(size), writenotify=r.random() < 0.5))
        elif r.random() < 0.3:
            self.files.pop(r.randrange(len(self.files))).close()

    def do_open(self) -> None:
        if len(self.files) < 4:
            self.files.append(self.machine.open_file(sys.executable))

    def do_mmap(self) -> None:
        r, p = self.rng, self.process()
        flags = r.choice((1, 2, 2, 2, 3)) | r.choice((0, 0x10, 0x10, 0x10, 0x100000))
        if r.random() < 0.6:
            flags |= Map.ANONYMOUS
        for bit in (Map.POPULATE, Map.NORESERVE, Map.GROWSDOWN, Map.LOCKED):
            if r.random() < 0.08:
                flags |= bit
        if r.random() < 0.03:
            flags = r.getrandbits(32)
        where, size = r.choice((None, self.address(), self.page())), self.length()
        if r.random() < 0.15:
            where, size = self.page() & -HUGE, r.choice((HUGE, HUGE, 2 * HUGE))
            flags |= r.choice((0, Map.HUGETLB))
        prot, offset = r.choice((0, 1, 2, 3, 3, 3, 4, 5, 7)), r.choice((0, 0, 1, 3, 1 << 39)) * PAGE
        self.say(f"{p.pid} {where and hex(where)} {size:#x} {prot} {flags:#x} {offset:#x}")
        p.mmap(where, size, prot, flags, self.file(), offset)

    def do_munmap(self) -> None:
        p, a, n = self.process(), self.address(), self.length()
        self.say(f"{p.pid} {a:#x} {n:#x}")
        p.munmap(a, n)

    def do_mprotect(self) -> None:
        p, a, n, prot = self.process(), self.address(), self.length(), self.rng.choice((0, 1, 2, 3, 3, 5, 7, 8, 99))
        self.say(f"{p.pid} {a:#x} {n:#x} {prot}")
        p.mprotect(a, n, prot)

    def do_mremap(self) -> None:
        r, p = self.rng, self.process()
        flags = r.choice(
            (0, MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, r.getrandbits(4))
        )
        a, old = self.address(), self.length()
        new, to = r.choice((old, self.length())), r.choice((None, self.address()))
        self.say(f"{p.pid} {a:#x} {old:#x} {new:#x} {flags} {to and hex(to)}")
        p.mremap(a, old, new, flags, to)

    def do_madvise(self) -> None:
        p, a, n = self.process(), self.address(), self.length()
        advice = self.rng.choice((*Advice, Advice.DONTNEED, Advice.REMOVE, Advice.WIPEONFORK, Advice.DONTFORK, -1, 999))
        self.say(f"{p.pid} {a:#x} {n:#x} {advice}")
        p.madvise(a, n, advice)

    def do_run(self) -> None:
        """A trace, good or bad, of a few processes."""
        r, n = self.rng, self.rng.choice((0, 1, 50))
        rows = np.zeros(n, TRACE_DTYPE)
        for row in rows:
            row["operation"] = r.choice((0, 1, 1, 2)) if r.random() < 0.9 else r.randrange(12 if n < 50 else 10)
            row["pid"], row["address"], row["size"] = r.randrange(2), self.address(), r.choice((1, 8, PAGE, 9 * PAGE))
            if row["operation"] >= Operation.MMAP:
                row["address"] = self.page()
        given = [self.process(), self.process()]
        self.say(f"{n} {given}")
        if any(p.pid == 1 for p in given):
            rows["operation"] %= 3
        with contextlib.suppress(ValueError):
            self.machine.run(rows, given, outcomes=r.random() < 0.5)

    def do_log(self) -> None:
        r = self.rng
        if self.log_ is None:
            self.log_ = self.machine.trace_faults(r.choice((1, 7, 1000)))
        elif r.random() < 0.3:
            self.log_.close()
            self.log_ = None
        else:
            lost = self.log_.lost
            steps = np.diff(self.log_.records["sequence"].astype(np.int64))
            assert np.all(steps == 1)
            assert not lost or len(self.log_) == self.log_.capacity
            if r.random() < 0.3:
                self.log_.clear()

    def do_shrink(self) -> None:
        shrink(self.machine._kernel, self.rng.choice((1, 3, 40, 5000)))

    def do_merge(self) -> None:
        ksm = self.machine.ksm
        ksm.use_zero_pages, ksm.smart_scan = self.rng.random() < 0.5, self.rng.random() < 0.5
        ksm.max_page_sharing = self.rng.choice((1, 2, 256))
        ksm.scan(self.rng.randrange(3))

    def do_clear_refs(self) -> None:
        p, what = self.process(), self.rng.choice((1, 2, 3, 4, 5))
        self.say(f"{p.pid} {what}")
        self.machine.procfs.write(f"{p.pid}/clear_refs", str(what))

    def do_lock(self) -> None:
        r, p, a, n = self.rng, self.process(), self.address(), self.length()
        self.say(f"{p.pid} {a:#x} {n:#x}")
        how = r.randrange(6)
        if how < 3:
            r.choice((p.mlock, p.munlock, lambda a, n: p.mlock(a, n, r.choice((0, 1, 2)))))(a, n)
        elif how == 3:
            p.mlockall(r.randrange(9))
        else:
            p.munlockall()

    def do_limit(self) -> None:
        r, p = self.rng, self.process()
        resource, soft = r.randrange(17), r.choice((0, 4096, 1 << 16, 1 << 20, -1, -1, -1))
        self.say(f"{p.pid} {resource} {soft}")
        p.setrlimit(resource, (soft, -1))

    def do_remap(self) -> None:
        r, p, a, n = self.rng, self.process(), self.address(), self.length()
        self.say(f"{p.pid} {a:#x} {n:#x}")
        p.remap_file_pages(a, n, r.choice((0, 0, 0, 1)), r.randrange(9), r.choice((0, 0x10000)))

    def do_others(self) -> None:
        r, p, a, n = self.rng, self.process(), self.address(), self.length()
        which = r.randrange(5)
        self.say(f"{which} {p.pid} {a:#x} {n:#x}")
        if which == 0:
            p.mincore(a, min(n, 1 << 32))
        elif which == 1:
            p.msync(a, n, r.getrandbits(3))
        elif which == 2:
            p.brk(r.choice((0, p.brk(0) + r.randrange(-8, 30) * PAGE, a)))
        elif which == 3 and r.random() < 0.1:
            p.mseal(a, n)
        elif which == 4:
            p.translate(a)

    def do_read(self) -> None:
        r, p, a = self.rng, self.process(), self.address()
        n = r.choice((0, 1, 5000, r.randrange(1 << 17)))
        if r.random() < 0.1 and self.machine.meminfo().total <= 300 * PAGE:  # what is not memory here is in the host
            n = 1 << 62
        self.say(f"{p.pid} {a:#x} {n:#x}")
        with contextlib.suppress(*((MemoryError,) if n == 1 << 62 else ())):  # the host has no such buffer
            p.read(a, n, fetch=r.random() < 0.1)

    def do_write(self) -> None:
        r, p, a = self.rng, self.process(), self.address()
        n = r.choice((0, 1, 5000, r.randrange(1 << 16)))
        self.say(f"{p.pid} {a:#x} {n:#x}")
        p.write(a, r.choice((bytes, bytearray, lambda n: memoryview(bytes(n))))(n))

    def do_touch(self) -> None:
        p, a, n = self.process(), self.address(), self.length()
        self.say(f"{p.pid} {a:#x} {n:#x}")
        p.touch(a, n, write=self.rng.random() < 0.5)

    def do_access(self) -> None:
        p, n = self.process(), self.rng.choice((0, 1, 50))
        where = [self.address() for _ in range(n)]
        self.say(f"{p.pid} {list(map(hex, where))}")
        import numpy as np

        writes = np.array([self.rng.random() < 0.5 for _ in where], bool)
        kinds = p.access(np.array(where, np.uint64), self.rng.choice((True, False, writes)))
        assert kinds.shape == (n,)

    def do_fork(self) -> None:
        r, p = self.rng, self.process()
        if len(self.machine.processes) > 14:
            return
        mode = r.choice((None, *ForkMode))
        self.say(f"{p.pid} {mode}")
        if r.random() < 0.1:
            p.fork_many(r.choice((0, 1, 3)), mode)
        elif r.random() < 0.1:
            p.vfork()
        else:
            p.fork(mode)

    def do_clone(self) -> None:
        r, p = self.rng, self.task()
        if len(self.machine.processes) > 14 or len(p.threads) > 4:
            return
        flags = r.choice((0, Clone.VM, Clone.VM, Clone.VM | Clone.SIGHAND, THREAD, THREAD, Clone.VM | Clone.VFORK))
        flags |= r.choice((0, 0, Clone.PARENT, 1 << r.randrange(32))) | r.choice((0, 17, 17, 10, 255))
        self.say(f"{p.tid} {flags:#x}")
        p.clone(flags)

    def do_kill(self) -> None:
        r, p = self.rng, self.task()
        pid = r.choice((*self.machine.processes, 0, -1, -p.pid, 1 << 40))
        sig = r.choice((0, 9, 19, 18, 18, 15, 17, 11, 65, -1))
        self.say(f"{p.tid} {pid} {sig}")
        if r.random() < 0.7 or pid > 1:
            p.kill(pid, sig)
        else:
            p.tgkill(p.pid, self.task().tid, sig)

    def do_signals(self) -> None:
        r, p = self.rng, self.task()
        handler = r.choice((signal.SIG_DFL, signal.SIG_IGN, "h"))
        p.signal(r.choice((17, 15, 10, 9, 99, -1)), handler, r.choice((0, 1, 2)))
        p.sigmask(r.choice((0, 1, 2, 9)), {r.choice((15, 17, 18, 19))})
        p.set_death_signal(r.choice((0, 15, 99)))
        p.set_child_subreaper(r.random() < 0.5)

    def do_identity(self) -> None:
        r, p = self.rng, self.task()
        calls = (
            lambda: p.setpgid(r.choice((0, *self.machine.processes)), r.choice((0, 0, p.pid, -1))),
            p.setsid,
            lambda: p.setresuid(r.choice((-1, 0, 7)), r.choice((-1, 0, 7)), 0),
            lambda: p.set_name(bytes(r.randrange(20))),
            lambda: p.set_oom_score_adj(r.choice((-1000, 5, 2000))),
        )
        r.choice(calls)()

    def do_exit_thread(self) -> None:
        p = self.task()
        if p.tid != p.pid or self.rng.random() < 0.2:
            p.exit_thread(3)

    def do_exit(self) -> None:
        p = self.task()
        self.say(f"{p.tid}")
        if self.rng.random() < 0.5:
            p.exit(self.rng.randrange(300))
        elif self.rng.random() < 0.1:
            kids = p.children
            self.say(f"{[kid.pid for kid in kids]}")
            self.machine.exit_many(kids, 3)

    def do_wait(self) -> None:
        self.process().wait(self.rng.choice((-1, 0, 3, 1 << 40)), self.rng.choice((0, os.WNOHANG, 99)))

    def do_exec(self) -> None:
        p = self.task()
        self.say(f"{p.tid}")
        if self.rng.random() < 0.2:
            p.execve("/bin/sh", ["sh"], {"A": "B"})

    def do_file(self) -> None:
        r, f = self.rng, self.file()
        if f is None:
            return
        which, at = r.randrange(4), r.choice((0, 1, PAGE, r.randrange(1 << 17), -1, (1 << 63) - 1, 1 << 63))
        self.say(f"{which} {f.inode} {at:#x}")
        if which == 0:
            f.pwrite(bytes(r.choice((0, 1, 9000))), at)
        elif which == 1:
            f.truncate(at if at < 0 else at % (1 << 20))
        elif which == 2:
            f.pread(r.choice((0, 9000, -1)), at)
        else:
            assert f.size >= 0

    def do_look(self) -> None:
        r, p = self.rng, self.process()
        which = r.randrange(8)
        self.say(f"{which} {p.pid}")
        if which == 0:
            p.smaps()
        elif which == 1:
            p.pagemap(self.page(), r.choice((0, 1, 600)))
        elif which == 2:
            assert p.uss <= p.rss >= p.pss
        elif which == 3:
            self.machine.meminfo()
        elif which == 4:
            self.machine.procfs.read(f"{p.pid}/maps")
        elif which == 5:
            self.machine.frame_stats()
        elif which == 6:
            assert p.page_tables >= 0
        else:
            assert p.faults.total >= 0

    def do_proc(self) -> None:
        """Any file of /proc, read from anywhere or written."""
        r, proc = self.rng, self.machine.procfs
        pid = r.choice((*self.machine.processes, 0, 77, -1))
        names = r.choice(
            (proc.listdir(), proc.listdir("1"), ["pagemap", "clear_refs", "oom_adj", "x", "task/1/stat", ".."])
        )
        path = r.choice((f"{pid}/{r.choice(names)}", r.choice(names)))
        if r.random() < 0.3:
            data = r.choice((b"", b"0", b"1", b"4", b"5\n", b"-1000", b"17", b"0x10", b"\xff", b"9" * 30, b"a\0b"))
            self.say(f"{path} <- {data!r}")
            if not path.startswith("sys/"):
                proc.write(path, data, by=r.choice((None, *self.machine.processes)))
            return
        offset, length = r.choice((0, 0, 8, 3, self.address() >> 9, -1)), r.choice((None, 8, 4096, 7, 0, -8))
        self.say(f"{path} {offset} {length}")
        text = proc.read(path, offset, length)
        assert length is None or len(text) <= length


# ---- the border ----


class Border(Round):
    """Random calls of the C functions. Buffers are as long as they have to be; everything else is hostile."""

    def run(self) -> None:
        r = self.rng
        self.note("new")
        options = r.choice((7, 7, 7, r.getrandbits(3))) | r.choice((0, 0, 8, 16))  # without or with huge pages
        options |= r.choice((0, lib.VMEMU_OPT_RELIEVE))
        around = r.choice((0, 1, 3, 16, 512, 2**32 - 1))
        m = lib.vmemu_machine_new(r.choice((16, 64, 300, 5000, 12345)), options, around)
        assert m != ffi.NULL
        for _ in range(r.choice((0, 0, 3))):
            self.ok(lib.vmemu_pool_grow(m, r.random() < 0.1), errno.ENOMEM)
        self.m = m
        self.spaces = [0]
        self.objects = [0]
        self.groups: dict[int, int] = {}
        self.pooled: set[int] = set()
        self.holds: collections.Counter[int] = collections.Counter()
        self.message = ffi.new("char[512]")
        self.trap = ffi.new("struct vmemu_trap *")
        self.lent: list[object] = []
        self.ring, self.capacity = ffi.NULL, 0
        self.device: dict[int, bytes] = {}
        if r.random() < 0.6:
            nslots = r.choice((1, 20, 500))
            if self.ok(lib.vmemu_swap_on(m, nslots), errno.ENOMEM) == 0 and r.random() < 0.7:
                self.lend(nslots)
        try:
            calls = [getattr(self, name) for name in dir(self) if name.startswith("do_")]
            weights = [8 if f.__name__ in ("do_map", "do_write", "do_touch", "do_fork") else 3 for f in calls]
            for _ in range(r.choice((100, 400, 1000))):
                call = r.choices(calls, weights)[0]
                self.note(call.__name__)
                if r.random() < 0.03:
                    lib.vmemu_machine_fail(m, r.randrange(1, 12))
                call()
                if r.random() < 0.04:
                    self.check()
            self.check()
            for space in self.spaces[1:]:
                assert lib.vmemu_space_free(m, space) == 0
            for object_, n in self.holds.items():
                for _ in range(n):
                    assert lib.vmemu_object_release(m, object_) == 0
            self.check()
            info = ffi.new("struct vmemu_machine_info *")
            lib.vmemu_machine_info(m, info)
            assert info.free + info.zero + info.pooled == info.nframes, (info.free, info.nframes)
            assert (info.nspaces, info.nobjects, info.account) == (0, 0, 0)
        finally:
            lib.vmemu_machine_free(m)

    def check(self) -> None:
        lib.vmemu_machine_fail(self.m, 0)
        rc = lib.vmemu_machine_check(self.m, self.message, 512)
        assert rc == 0, (rc, ffi.string(self.message))

    def ok(self, rc: int, *allowed: int, say: str = "") -> int:
        """The result is not negative or one of the errnos that the call may give."""
        self.say(f"{say} -> {rc}")
        if rc <= -lib.VMEMU_NO_FRAME:  # of the machine, or of a cgroup
            assert -rc - lib.VMEMU_NO_FRAME in (0, *self.groups), f"rc {rc}"
            rc = -errno.ENOMEM
        assert rc >= 0 or -rc in allowed, f"rc {rc}"
        return rc

    def space(self) -> int:
        r = self.rng
        if r.random() < 0.03:
            return r.choice((0, 63, 64, 1 << 31, 2**32 - 1))
        return r.choice(self.spaces[1:] or self.spaces)

    def object(self) -> int:
        r = self.rng
        if r.random() < 0.03:
            return r.choice((0, 63, 64, 1 << 31, 2**32 - 1))
        return r.choice(self.objects)

    def range(self) -> tuple[int, int]:
        r = self.rng
        if r.random() < 0.9:
            a = self.page()
            if r.random() < 0.1:
                return a & -HUGE, (a & -HUGE) + r.choice((1, 2)) * HUGE
            return a, a + r.choice((1, 2, 5, 30, 600)) * PAGE
        return self.address(), self.address()

    def do_space(self) -> None:
        if len(self.spaces) < 10:
            out = ffi.new("uint32_t *")
            if self.ok(lib.vmemu_space_new(self.m, out), errno.ENOMEM) == 0:
                self.spaces.append(out[0])

    def do_free(self) -> None:
        s = self.space()
        rc = self.ok(lib.vmemu_space_free(self.m, s), errno.EBADF, say=f"{s}")
        assert (rc == 0) == (s in self.spaces[1:])
        if rc == 0:
            self.spaces.remove(s)

    def do_fork(self) -> None:
        if len(self.spaces) > 14:
            return
        n = self.rng.choice((0, 1, 1, 1, 3))
        out = ffi.new("uint32_t[]", n + 1)
        s, mode = self.space(), self.rng.choice((0, 1, 2, 2, 1, 2, -1, 3, 2**31 - 1))
        rc = self.ok(
            lib.vmemu_space_fork(self.m, s, mode, n, out), errno.ENOMEM, errno.EBADF, errno.EINVAL, say=f"{s} {mode}"
        )
        if rc == 0:
            self.spaces += list(out)[:n]

    def do_fork_on(self) -> None:
        """Nothing here is large enough to be unfinished."""
        s, other, mode = self.space(), self.space(), self.rng.choice((0, 1, 2, -1))
        self.ok(lib.vmemu_space_fork_on(self.m, s, other, mode), errno.EINVAL, errno.EBADF, say=f"{s} {other} {mode}")

    def group(self) -> int:
        """A cgroup, none, or one that is not there."""
        r = self.rng
        return r.choice((0, 0, 9, 65534, 65535, 2**32 - 1)) if r.random() < 0.3 else r.choice((0, *self.groups))

    def do_cgroup(self) -> None:
        """Groups come, go, get limits, and spaces move between them."""
        r, m = self.rng, self.m
        which, one, other = r.randrange(5), r.choice((1, 2, 3, 4, 30)), self.group()
        bad = (errno.ENOENT, errno.EINVAL, errno.EEXIST, errno.ENOMEM)
        self.say(f"{which} {one} {other}")
        if which == 0:
            if self.ok(lib.vmemu_cgroup_new(m, one, other), *bad) == 0:
                self.groups[one] = other
        elif which == 1:
            rc = self.ok(lib.vmemu_cgroup_free(m, one), errno.ENOENT, errno.EBUSY)
            assert (rc == 0) == (one in self.groups and one not in self.groups.values())
            if rc == 0:
                del self.groups[one]
        elif which == 2:
            limits = [r.choice((0, 1, 10, 100, 2**64 - 1)) for _ in range(3)]
            self.ok(lib.vmemu_cgroup_limit(m, one, *limits), errno.ENOENT, say=f"{limits}")
        elif which == 3:
            info = ffi.new("struct vmemu_cgroup_info *")
            if self.ok(lib.vmemu_cgroup_info(m, one, info), errno.ENOENT) == 0:
                assert sum(info.kinds) <= info.usage <= info.peak
        else:
            self.ok(lib.vmemu_space_cgroup(m, self.space(), other), errno.ENOENT, errno.EBADF)

    def do_worst(self) -> None:
        """Who holds most, of any rows; and what spaces hold."""
        r, n = self.rng, self.rng.choice((0, 1, 30))
        ids = ffi.new("uint32_t[]", [self.space() for _ in range(n)] + [0])
        state = ffi.new("uint8_t[]", [r.getrandbits(1) for _ in range(n + 1)])
        adjust = ffi.new("int16_t[]", [r.choice((0, 0, 5, -5, -1000, 1000, -32768)) for _ in range(n + 1)])
        started = ffi.new("uint64_t[]", [r.getrandbits(2) for _ in range(n + 1)])
        group = ffi.new("uint16_t[]", [r.choice((0, 1, 65535)) for _ in range(n + 1)])
        rank = r.choice((ffi.NULL, ffi.new("uint16_t[]", [0, 1])))
        tasks = (state, ids, adjust, started, group, rank, n, r.choice((0, 1, 1 << 40)), 2, -1000, 1)
        found = lib.vmemu_machine_worst(self.m, ffi.new("struct vmemu_tasks *", tasks))
        assert found == -errno.ESRCH or (found < n and state[found] and ids[found] in self.spaces)
        sizes = ffi.new("struct vmemu_space_size[]", n + 1)
        self.ok(lib.vmemu_machine_space_sizes(self.m, ids, n, sizes))

    def do_build(self) -> None:
        """A space in one piece: after one that is there, or of mappings out of order, objects that are gone."""
        r = self.rng
        if len(self.spaces) > 14:
            return
        vmas = ffi.new("struct vmemu_vma[90]")
        n = max(0, lib.vmemu_space_vmas(self.m, self.space(), 0, vmas, r.choice((0, 3, 90))))
        if n > 1 and r.random() < 0.2:
            vmas[r.randrange(n)] = vmas[r.randrange(n)]
        if n and r.random() < 0.1:
            vmas[r.randrange(n)].object = self.object()
        if n and r.random() < 0.1:
            vmas[r.randrange(n)].end = self.address()
        data = ffi.new("uint8_t[]", 9000)
        writes = [(self.where(vmas, n), r.choice((0, 1, 5000, 9000)), data) for _ in range(r.choice((0, 1, 3)))]
        changes = []
        for _ in range(r.choice((0, 0, 1, 2))):
            start = self.where(vmas, n)
            changes.append((start & -PAGE, (start & -PAGE) + PAGE, r.choice((0, 1, 3, 5, 7)) | 0x70))
        parts = ffi.new("struct vmemu_write[]", writes), ffi.new("struct vmemu_change[]", changes)
        pattern = ffi.new("struct vmemu_pattern *", (vmas, *parts, n, len(writes), len(changes)))
        out = ffi.new("struct vmemu_built *")
        rc = self.ok(
            lib.vmemu_space_build(self.m, pattern, self.group(), out),
            *(errno.ENOMEM, errno.EINVAL, errno.ESTALE),
            say=f"{n} {writes} {changes}",
        )
        if rc >= 0:
            assert rc == 0 or out.written < len(writes)
            self.spaces.append(out.space)

    def where(self, vmas: Any, n: int) -> int:
        """An address, mostly inside a mapping."""
        r = self.rng
        return r.randrange(vmas[i].start, max(vmas[i].end, vmas[i].start + 1)) if (i := r.randrange(n + 1)) < n else 0

    def do_succeed(self) -> None:
        s, old = self.space(), self.space()
        rc = self.ok(lib.vmemu_space_succeed(self.m, s, old), errno.EBADF, errno.EINVAL, say=f"{s} {old}")
        assert (rc == 0) == (s in self.spaces[1:] and old in self.spaces[1:] and s != old)
        if rc == 0:
            self.spaces.remove(old)

    def do_info(self) -> None:
        m, s, r = self.m, self.space(), self.rng
        bad = (errno.EBADF,)
        self.ok(lib.vmemu_space_info(m, s, ffi.new("struct vmemu_space_info *")), *bad)
        self.ok(lib.vmemu_space_sums(m, s, ffi.new("struct vmemu_sums *")), *bad)
        counts = ffi.new("uint64_t[]", lib.VMEMU_NKINDS)
        if self.ok(lib.vmemu_space_faults(m, s, counts), *bad) == 0:
            self.ok(lib.vmemu_space_set_faults(m, s, counts))
        words = ffi.new("uint64_t[]", lib.VMEMU_NWORDS)
        if self.ok(lib.vmemu_space_words(m, s, words), *bad) == 0:
            self.ok(lib.vmemu_space_set_words(m, s, words))
        self.ok(lib.vmemu_machine_faults(m, counts))
        self.ok(lib.vmemu_machine_info(m, ffi.new("struct vmemu_machine_info *")))
        one, two = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        self.ok(lib.vmemu_machine_sharing(m, one, two), errno.ENOMEM)
        self.ok(lib.vmemu_machine_zero_page(m, one), errno.EINVAL, errno.ENOMEM)
        first, n = r.choice((0, 3, 5000, 2**64 - 1)), r.choice((0, 1, 10))
        out = ffi.new("uint64_t[]", n + 1)
        self.ok(lib.vmemu_machine_mapcounts(m, first, n, out), errno.EINVAL, errno.ENOMEM)
        self.ok(lib.vmemu_machine_frame_flags(m, first, n, out), errno.EINVAL, errno.ENOMEM)
        self.ok(lib.vmemu_machine_mapcounts(m, first, 2**64 - 3 if first else 99_999, out), errno.EINVAL, errno.ENOMEM)

    def do_mark(self) -> None:
        m, s, (a, b) = self.m, self.space(), self.range()
        bad = (errno.EINVAL, errno.EBADF, errno.ENOMEM)
        call = self.rng.choice(("guard", "unguard", "lazyfree", "cold", "pageout", "ksm_break"))
        self.ok(getattr(lib, f"vmemu_space_{call}")(m, s, a, b), *bad, say=f"{call} {s} {a:#x} {b:#x}")
        self.ok(lib.vmemu_space_clear_refs(m, s, self.rng.choice((0, 1, 2, 3, 4, 5, -1))), *bad)
        self.ok(lib.vmemu_machine_show_soft_dirty(m, self.rng.getrandbits(1)))
        self.ok(lib.vmemu_machine_drain(m))

    def do_merge(self) -> None:
        m, s, (a, b) = self.m, self.space(), self.range()
        bad = (errno.EINVAL, errno.EBADF, errno.ENOMEM, errno.EOPNOTSUPP)
        cap = self.rng.choice((0, 1, 40))
        out = ffi.new("struct vmemu_ksm_page[]", cap + 1)
        n = self.ok(lib.vmemu_space_ksm_pages(m, s, a, b, out, cap), *bad)
        assert n <= cap
        if n > 0:
            one, two = out[self.rng.randrange(n)], out[self.rng.randrange(n)]
            rc = lib.vmemu_space_ksm_make(m, s, one.address)
            self.ok(rc, errno.ENOMEM, errno.EBUSY, errno.ENOENT, say=f"make {s} {one.address:#x}")
            pfn = one.pfn if self.rng.random() < 0.8 else self.rng.choice((0, 1, 2**32 - 1, 2**64 - 1))
            rc = lib.vmemu_space_ksm_merge(m, self.space(), two.address, pfn)
            self.ok(
                rc, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENOENT, *bad, say=f"merge {two.address:#x} {pfn}"
            )
        self.ok(lib.vmemu_space_ksm_make(m, s, self.address()), errno.EBUSY, errno.ENOENT, *bad)
        self.ok(lib.vmemu_space_ksm_zero_pages(m, s), errno.EBADF)
        self.ok(lib.vmemu_machine_ksm_spaces(m, ffi.new("struct vmemu_ksm_space[3]"), 3))

    def do_find(self) -> None:
        s, a, r = self.space(), self.address(), self.rng
        out = ffi.new("struct vmemu_vma[5]")
        missing = (errno.ENOENT, errno.EBADF)
        if self.ok(lib.vmemu_space_find(self.m, s, a, out), *missing) == 0:
            assert out[0].end > a
        if self.ok(lib.vmemu_space_find_before(self.m, s, a, out), *missing) == 0:
            assert out[0].end <= a
        assert self.ok(lib.vmemu_space_vmas(self.m, s, a, out, 5), errno.EBADF) <= 5
        hole = ffi.new("uint64_t *")
        low, high = self.address(), r.choice((TASK_SIZE, self.address()))
        length, align = self.length() % TOP, r.choice((PAGE, 2 << 20, 3 * PAGE, 1 << 63, TOP - PAGE, 0, 1))
        rc = self.ok(
            lib.vmemu_space_hole(self.m, s, low, high, length, align, r.getrandbits(1), hole),
            *(errno.ENOMEM, errno.EBADF, errno.EINVAL),
            say=f"{s} {low:#x} {high:#x} {length:#x} {align:#x}",
        )
        if rc == 0:
            assert low <= hole[0] <= hole[0] + length <= high
            assert hole[0] % align == 0
            rc = lib.vmemu_space_find(self.m, s, hole[0], out)
            assert rc or out[0].start >= hole[0] + length

    def do_map(self) -> None:
        r = self.rng
        start, end = self.range()
        object_ = self.object() if r.random() < 0.5 else 0
        flags = r.choice((0, 1, 3, 3, 3, 5, 7)) | 0x70
        if object_ and r.random() < 0.5:
            flags |= lib.VMEMU_VM_SHARED | lib.VMEMU_VM_MAYSHARE
        for bit in ("GROWSDOWN", "LOCKED", "DONTCOPY", "ACCOUNT", "WIPEONFORK", "SEALED"):
            if r.random() < 0.1 and not (object_ and bit == "WIPEONFORK"):
                flags |= getattr(lib, f"VMEMU_VM_{bit}")
        if object_ and object_ in self.pooled:
            flags |= lib.VMEMU_VM_HUGETLB | lib.VMEMU_VM_DONTEXPAND | r.choice((0, lib.VMEMU_VM_POOL_OWNER))
            start, end = start & -HUGE, ((start & -HUGE) + r.choice((1, 1, 2)) * HUGE) % TOP
        if r.random() < 0.01:
            flags |= r.choice((lib.VMEMU_VM_GIANT, lib.VMEMU_VM_HUGETLB, lib.VMEMU_VM_POOL_OWNER))
        pgoff = (
            r.choice((0, 0, 1, 7, 1 << 40, (1 << 52) - 1, 1 << 52, 2**64 - 1)) if object_ else start // PAGE % (1 << 52)
        )
        vma = ffi.new("struct vmemu_vma *", (start, end, pgoff, flags, r.getrandbits(64), object_, r.choice((0, 0, 1))))
        self.say(f"{start:#x}-{end:#x} {flags:#x} {object_} {pgoff:#x}")
        self.ok(
            lib.vmemu_space_map(self.m, self.space(), vma, r.random() < 0.05), errno.EBADF, errno.EINVAL, errno.ENOMEM
        )

    def do_unmap(self) -> None:
        s, (start, end) = self.space(), self.range()
        which = self.rng.choice((lib.vmemu_space_unmap, lib.vmemu_space_zap))
        self.ok(which(self.m, s, start, end), errno.EBADF, errno.EINVAL, errno.ENOMEM, say=f"{s} {start:#x} {end:#x}")

    def do_reflag(self) -> None:
        """Flags that a system call may change; which memory is shared is for ever."""
        s, (start, end), r = self.space(), self.range(), self.rng
        v = ffi.new("struct vmemu_vma *")
        flags = r.getrandbits(3)
        if lib.vmemu_space_find(self.m, s, start, v) == 0:
            flags |= v.flags & ~7
            if r.random() < 0.8:
                start, end = max(start, v.start), min(end, v.end)
        for bit in ("LOCKED", "DONTCOPY", "ACCOUNT", "SEALED"):
            if r.random() < 0.1:
                flags ^= getattr(lib, f"VMEMU_VM_{bit}")
        self.ok(
            lib.vmemu_space_reflag(self.m, s, start, end, flags),
            *(errno.EBADF, errno.EINVAL, errno.ENOMEM),
            say=f"{s} {start:#x}-{end:#x} {flags:#x}",
        )

    def do_move(self) -> None:
        s, (start, end), r = self.space(), self.range(), self.rng
        to, length = r.choice((self.page(), self.address())), r.choice((end - start, end - start + 8 * PAGE, 0)) % TOP
        v = ffi.new("struct vmemu_vma *")
        if r.random() < 0.9 and lib.vmemu_space_find(self.m, s, start, v) == 0:
            start, end = max(start, v.start), min(max(end, v.start + PAGE), v.end)
            length = end - start + r.choice((0, 0, 3)) * PAGE
        if r.random() < 0.7:
            hole = ffi.new("uint64_t *")
            if lib.vmemu_space_hole(self.m, s, ARENA, TASK_SIZE, max(length, PAGE) % (1 << 46), PAGE, 0, hole) == 0:
                to = hole[0]
        self.ok(
            lib.vmemu_space_move(self.m, s, start, end, to, length % TOP, r.getrandbits(1)),
            *(errno.EBADF, errno.EINVAL, errno.ENOMEM, errno.EEXIST),
            say=f"{s} {start:#x}-{end:#x} {to:#x} {length:#x}",
        )

    def do_huge(self) -> None:
        s, r = self.space(), self.rng
        at = r.choice((self.address(), self.page() & -HUGE, self.page() & -HUGE))
        self.ok(lib.vmemu_space_collapse(self.m, s, at), errno.EBADF, errno.EINVAL, errno.ENOMEM, say=f"{s} {at:#x}")
        self.ok(lib.vmemu_space_no_thp(self.m, s, r.choice((0, 0, 1, -1, 5))), errno.EBADF)
        self.ok(lib.vmemu_pool_info(self.m, r.getrandbits(2), ffi.new("struct vmemu_pool *")))

    def do_extend(self) -> None:
        s, r = self.space(), self.rng
        v = ffi.new("struct vmemu_vma *")
        edge, to, down = self.address(), self.address(), r.getrandbits(1)
        if lib.vmemu_space_find(self.m, s, edge, v) == 0 and r.random() < 0.9:
            edge = v.start if down else v.end
            to = (edge + (-1 if down else 1) * r.choice((0, 1, 3, 300)) * PAGE) % TOP
        self.ok(
            lib.vmemu_space_extend(self.m, s, edge, to, down),
            *(errno.EBADF, errno.EINVAL, errno.ENOMEM, errno.EEXIST),
            say=f"{s} {edge:#x} {to:#x} {down}",
        )

    def access(self, rc: int) -> None:
        self.ok(rc, errno.EBADF, errno.EINVAL)
        assert rc <= lib.VMEMU_TRAP_CHARGE and rc != lib.VMEMU_TRAP_CALL
        if rc == lib.VMEMU_TRAP_CHARGE:
            assert self.trap.object in self.groups
        if rc == lib.VMEMU_TRAP_SWAP:
            self.bring_back()
        if rc == lib.VMEMU_TRAP_RECLAIM and self.trap.object:
            self.ok(lib.vmemu_cgroup_settled(self.m, self.trap.object, self.rng.choice((0, 1, 32))))
        if rc == lib.VMEMU_TRAP_PAGE:  # as the caller would
            size = self.rng.choice((0, 1, 5000, 32 * PAGE))
            data = ffi.from_buffer(bytes(size))
            index, object_ = self.trap.index, self.trap.object
            self.ok(lib.vmemu_object_fill(self.m, object_, index, 32, data, size, index, self.group()), errno.ENOMEM)

    def bring_back(self) -> None:
        """What an access asked for, from the swap device."""
        m, trap, page = self.m, self.trap, bytes(PAGE)
        if trap.object:
            self.ok(lib.vmemu_object_swap_fill(m, trap.object, trap.index, page, 1), errno.ENOMEM)
        else:
            assert trap.index in self.device
            self.ok(lib.vmemu_swap_fill(m, trap.index, page), errno.ENOMEM)

    def do_read(self) -> None:
        s, a, n = self.space(), self.address(), self.rng.choice((0, 1, 5000, 70000))
        kind = self.rng.choice((0, 2, 0, 1, 3, -1, 77))
        self.say(f"{s} {a:#x} {n}")
        self.access(lib.vmemu_space_read(self.m, s, a, ffi.new("uint8_t[]", n + 1), n, kind, self.trap))

    def do_write(self) -> None:
        s, a, n = self.space(), self.address(), self.rng.choice((0, 1, 5000, 70000))
        self.say(f"{s} {a:#x} {n}")
        self.access(lib.vmemu_space_write(self.m, s, a, ffi.new("uint8_t[]", n + 1), n, self.trap))

    def do_touch(self) -> None:
        s, a, n = self.space(), self.address(), self.length() % TOP
        counts = ffi.new("uint64_t[]", lib.VMEMU_NKINDS)
        kind = self.rng.choice((0, 1, 2, 3, 1, 1, -1, 77))
        self.say(f"{s} {a:#x} {n:#x} {kind}")
        self.access(lib.vmemu_space_touch(self.m, s, a, n, kind, counts, self.trap))

    def do_access(self) -> None:
        n = self.rng.choice((0, 1, 40))
        where = ffi.new("uint64_t[]", [self.address() for _ in range(n)] + [0])
        writes = self.rng.choice((ffi.NULL, ffi.new("uint8_t[]", [self.rng.getrandbits(1) for _ in range(n + 1)])))
        kinds = ffi.new("uint8_t[]", n + 1)
        self.access(lib.vmemu_space_access(self.m, self.space(), where, writes, 1, n, kinds, self.trap))

    def do_run(self) -> None:
        """A trace with any operations and labels, checked and then run though it is bad."""
        r, m, n, nlabels = self.rng, self.m, self.rng.choice((0, 1, 40, 300)), self.rng.choice((0, 1, 4, 4))
        records, labels = ffi.new("struct vmemu_record[]", n + 1), [self.space() for _ in range(nlabels)]
        for i in range(n):
            records[i].address = self.address()
            records[i].size = r.choice((0, 1, 8, 8, 8, PAGE, 3 * PAGE, self.length() % TOP))
            records[i].pid = r.randrange(4) if r.random() < 0.98 else r.choice((4, 2**32 - 1))
            records[i].operation = r.choice((0, 1, 1, 2)) if r.random() < 0.97 else r.choice((3, 4, 9, 10, 2**32 - 1))
        self.say(f"{n} {labels}")
        alive = ffi.new("uint8_t[]", [r.getrandbits(1) for _ in range(nlabels + 1)])
        bad = ffi.new("uint64_t *")
        if self.ok(lib.vmemu_trace_check(records, n, alive, nlabels, bad)):
            assert bad[0] < n
        spaces, kinds = ffi.new("uint32_t[]", [*labels, 0]), r.choice((ffi.NULL, ffi.new("uint8_t[]", n + 1)))
        counts, at = ffi.new("uint64_t[]", lib.VMEMU_NKINDS), ffi.new("struct vmemu_run *")
        for _ in range(n + 20):
            rc = lib.vmemu_machine_run(m, records, n, spaces, nlabels, kinds, counts, at, self.trap)
            rc = self.ok(rc, errno.ESRCH, errno.ENOMEM)
            assert at.at <= n
            if rc in (0, -errno.ENOMEM):
                break
            if rc == lib.VMEMU_TRAP_CALL or rc == -errno.ESRCH or r.random() < 0.5:
                at.at, at.bytes, at.worst = at.at + 1, 0, 0
            elif rc == lib.VMEMU_TRAP_SWAP:
                self.bring_back()
            elif rc == lib.VMEMU_TRAP_PAGE:
                data = ffi.from_buffer(bytes(PAGE))
                self.ok(
                    lib.vmemu_object_fill(m, self.trap.object, self.trap.index, 1, data, PAGE, 0, self.group()),
                    errno.ENOMEM,
                )

    def do_log(self) -> None:
        """The fault log on and off, and read; one buffer for each, kept as long as the machine."""
        r, m = self.rng, self.m
        capacity, nowners = r.choice((0, 1, 2, 7, 64)), r.choice((0, 1, 64))
        lent = (ffi.new("struct vmemu_fault[]", capacity + 1), ffi.new("uint32_t[]", nowners + 1))
        self.lent.append(lent)
        if self.ok(lib.vmemu_machine_log(m, lent[0], capacity, lent[1], nowners), errno.EBUSY, errno.EINVAL) == 0:
            self.ring, self.capacity = lent[0], capacity
        out = ffi.new("struct vmemu_log_info *")
        self.ok(lib.vmemu_machine_log_sort(m, r.random() < 0.3, out))
        assert out.n <= self.capacity and out.n <= out.next
        for i in range(out.n):
            assert self.ring[i].sequence == out.next - out.n + i
            assert 0 < self.ring[i].kind < lib.VMEMU_NKINDS
        self.ok(
            lib.vmemu_space_log(m, self.space(), self.address(), r.choice((0, 1, 2, 3, -1)), r.choice((1, 10, 14, -1))),
            *(errno.EBADF, errno.EINVAL),
        )
        if r.random() < 0.3:
            self.ok(lib.vmemu_machine_log(m, ffi.NULL, 0, ffi.NULL, 0))
            self.capacity = 0

    def do_look(self) -> None:
        s, a, n = self.space(), self.address(), self.rng.choice((0, 1, 700))
        out = ffi.new("uint64_t[]", n + 1)
        allowed = (errno.EBADF, errno.EINVAL, errno.ENOMEM)
        self.ok(lib.vmemu_space_pagemap(self.m, s, a, n, out), *allowed)
        self.ok(lib.vmemu_space_pagemap(self.m, s, TASK_SIZE, 1, out), errno.EBADF, errno.EINVAL)
        t = ffi.new("struct vmemu_translation *")
        self.ok(lib.vmemu_space_translate(self.m, s, a, t), errno.ENOENT, errno.EBADF)
        start, end = self.range()
        self.ok(lib.vmemu_space_usage(self.m, s, start, end, ffi.new("struct vmemu_usage *")), *allowed)
        if 0 <= end - start < 1 << 24:
            vector = ffi.new("uint8_t[]", (end - start) // PAGE + 2)
            self.ok(lib.vmemu_space_mincore(self.m, s, start, end, vector), *allowed)
        length = self.rng.choice((0, 1, 5000))
        got = self.ok(lib.vmemu_space_peek(self.m, s, a, ffi.new("uint8_t[]", length + 1), length), errno.EBADF)
        assert got <= length
        if self.rng.random() < 0.2:
            self.ok(lib.vmemu_space_reset_peak(self.m, s), errno.EBADF)
        number = ffi.new("uint64_t *")
        self.ok(lib.vmemu_machine_whole(self.m, number))
        self.ok(
            lib.vmemu_machine_count_frames(self.m, self.rng.getrandbits(27), self.rng.getrandbits(27), number),
            errno.ENOMEM,
        )
        self.ok(lib.vmemu_machine_events(self.m, ffi.new("uint64_t[]", lib.VMEMU_NEVENTS)))

    def do_object(self) -> None:
        r, m, o = self.rng, self.m, self.object()
        which = r.randrange(3)
        if which == 0 and len(self.objects) < 8:
            out = ffi.new("uint32_t *")
            kind = r.choice((1, 2, 6, 9, 1, 2, 0, 3, 7, 2**32 - 1, 17, 81, 81, 113))
            size = (
                r.choice((HUGE, 2 * HUGE))
                if kind & 16 and r.random() < 0.9
                else r.choice((0, 1, PAGE, 20 * PAGE + 3, 300 * PAGE, (1 << 63) - 1, 1 << 63, TOP - 1))
            )
            if (
                self.ok(lib.vmemu_object_new(m, kind, size, out), errno.EINVAL, errno.ENOMEM, say=f"{kind} {size:#x}")
                == 0
            ):
                self.objects.append(out[0])
                self.holds[out[0]] += 1
                self.pooled |= {out[0]} if kind & 16 else set()
        elif which == 1 and self.ok(lib.vmemu_object_hold(m, o), errno.EBADF, say=f"hold {o}") == 0:
            self.holds[o] += 1
        elif which == 2:
            rc = self.ok(lib.vmemu_object_release(m, o), errno.EBADF, errno.EINVAL, say=f"release {o}")
            assert (rc == 0) == (self.holds[o] > 0)
            if rc == 0:
                self.holds[o] -= 1
            if rc != -errno.EINVAL and not self.holds[o] and o in self.objects[1:]:
                self.objects.remove(o)

    def lend(self, nslots: int) -> None:
        """The device's bytes: memory, a file, perhaps one that is too short, or none any more."""
        which = self.rng.randrange(3)
        if which == 0:
            self.lent.append(memory := ffi.new("uint8_t[]", nslots * PAGE))
            self.ok(lib.vmemu_swap_lend(self.m, memory, -1), errno.EINVAL)
        elif which == 1:
            self.lent.append(file := tempfile.TemporaryFile())  # noqa: SIM115 - as long as the machine
            file.truncate(self.rng.randrange(nslots + 1) * PAGE)
            self.ok(lib.vmemu_swap_lend(self.m, ffi.NULL, file.fileno()), errno.EINVAL)
        else:
            self.ok(lib.vmemu_swap_lend(self.m, ffi.NULL, -1), errno.EINVAL)

    def do_swap(self) -> None:
        r, m = self.rng, self.m
        self.ok(lib.vmemu_swap_on(m, r.choice((0, 7, 2**32 - 1))), errno.EBUSY, errno.EINVAL, errno.ENOMEM)
        self.ok(lib.vmemu_machine_policy(m, r.choice((0, 1, 2, 3, 4, 5, 2**32 - 1)), r.getrandbits(64)), *SWAP_ERRORS)
        self.ok(lib.vmemu_machine_watermark(m, r.choice((0, 0, 0, 1, 8, 2**64 - 1))))
        info = ffi.new("struct vmemu_swap *")
        lib.vmemu_swap_info(m, info)
        if r.random() < 0.1:
            self.lend(info.total)
        self.ok(lib.vmemu_swap_fill(m, r.choice((0, 1, 2, 3, info.total, 2**32 - 1)), bytes(PAGE)), *SWAP_ERRORS)
        object_, index = self.object(), r.choice((0, 1, 2, 5, 2**63))
        slot = self.ok(lib.vmemu_object_slot(m, object_, index), errno.EBADF)
        if slot > 0 or r.random() < 0.1:
            rc = lib.vmemu_object_swap_fill(m, object_, index, self.device.get(slot, bytes(PAGE)), r.getrandbits(1))
            self.ok(rc, errno.EBADF, errno.ENOMEM)

    def do_reclaim(self) -> None:
        r, m = self.rng, self.m
        cap = r.choice((0, 1, 5, 60, 600))
        out, done = ffi.new("struct vmemu_victim[]", cap), ffi.new("uint64_t *")
        if r.random() < 0.2:
            start, end = self.range()
            n = lib.vmemu_space_swap_out(m, self.space(), start, end, out, cap)
        else:
            what = ffi.new("struct vmemu_reclaim *", {"npages": r.choice((0, 1, 5, 60, 600, 2**64 - 1))})
            what.swappiness, what.sealed = r.choice((0, 60, 60, 200, 201)), r.random() < 0.1
            groups = ffi.new("uint8_t[]", 4)
            groups[0] = r.getrandbits(1)
            if r.random() < 0.2:
                what.cgroups, what.ncgroups = groups, r.choice((0, 1, 4))
            n = lib.vmemu_machine_reclaim(m, what, out, cap, done)
        n = self.ok(n, errno.EINVAL, errno.ENOMEM, errno.EBADF)
        for victim in out[0 : max(0, n)]:
            self.device[victim.slot] = bytes(PAGE)
            victim.written = r.random() < 0.9
        if n > 0 and r.random() < 0.5:
            self.ok(lib.vmemu_swap_write(m, out, n), errno.ENOMEM, errno.ENXIO)
        assert n <= cap
        if n > 0:
            self.ok(lib.vmemu_machine_reclaimed(m, out, n))
        if r.random() < 0.1:
            self.ok(lib.vmemu_machine_stalled(m))

    def do_page_cache(self) -> None:
        r, m, o = self.rng, self.m, self.object()
        which, allowed = r.randrange(5), (errno.EBADF, errno.EINVAL, errno.ENOMEM)
        index = r.choice((0, 1, 5, 19, 1 << 40, (1 << 52) - 1, 1 << 52, 2**64 - 1))
        n = r.choice((0, 1, 5, 32, 1 << 51, 1 << 52, 2**64 - 1))
        buffer, size = ffi.new("uint8_t[]", 9001), r.choice((0, 1, 9000))
        offset = r.choice((0, 1, 4095, 81920, (1 << 63) - 1, TOP - 1, TOP - 5000))
        self.say(f"{which} {o} {index:#x} {n:#x} {offset:#x} {size}")
        if which == 0:
            major = r.choice((index, TOP - 1, 3))
            self.ok(lib.vmemu_object_fill(m, o, index, min(n, 64), buffer, size, major, self.group()), *allowed)
        elif which == 1:
            assert self.ok(lib.vmemu_object_read(m, o, offset, buffer, size), *allowed) <= size
        elif which == 2:
            assert self.ok(lib.vmemu_object_write(m, o, offset, buffer, size), *allowed) <= size
        elif which == 3:
            new = r.choice((0, 1, PAGE, 3 * PAGE + 7, 90 * PAGE, (1 << 63) - 1, 1 << 63))
            self.ok(lib.vmemu_object_resize(m, o, new), *allowed, say=f"{new:#x}")
        else:
            self.ok(lib.vmemu_object_punch(m, o, index, n), *allowed)
        self.ok(lib.vmemu_object_info(m, o, ffi.new("struct vmemu_object_info *")), errno.EBADF)


# ---- programs ----


def _programs(directory: Path) -> Iterator[bytes]:
    """Real programs to mutate: small ones of this host and, where there is a compiler, static ones."""
    for name in ("/bin/true", "/bin/sh", "/bin/ls"):
        if os.path.exists(name):
            yield Path(name).read_bytes()
    compiler = shutil.which("gcc") or shutil.which("cc")
    source = directory / "tiny.c"
    source.write_text("int x[5000] = {1}; int y[5000];\nvoid _start(void) { for (;;) ; }\n")
    for flags in ("-static", "-static-pie", "-pie"):
        out = directory / f"tiny{flags}"
        command = [compiler, "-nostdlib", flags, "-o", str(out), str(source)]
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        if compiler and not subprocess.run(command, env=environment, capture_output=True, check=False).returncode:
            yield out.read_bytes()


class Elf(Round):
    """Programs with a few bytes changed, most of them in headers, executed."""

    programs: tuple[bytes, ...] = ()
    directory = Path()

    def mutated(self) -> bytes:
        r = self.rng
        content = bytearray(r.choice(self.programs))
        for _ in range(r.choice((0, 1, 1, 2, 3, 8))):
            kind = r.random()
            size = r.choice((1, 2, 4, 8))
            if kind < 0.3:
                at = r.randrange(64)
            elif kind < 0.9:  # a field of a program header
                at = 64 + 56 * r.randrange(12) + r.choice((0, 4, 8, 16, 24, 32, 40, 48))
                size = 4 if at % 56 in (8, 12) else 8
            else:
                at = r.randrange(len(content))
            value = r.choice((0, 1, 7, 0xFFF, 0x1000, 1 << 20, 1 << 30, 1 << 31, TASK_SIZE, 1 << 63, TOP - PAGE))
            if r.random() < 0.4:
                value = r.getrandbits(size * 8)
            at = min(at, len(content) - 8)
            content[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        if r.random() < 0.1:
            del content[r.randrange(len(content)) :]
        return bytes(content)

    def run(self) -> None:
        r = self.rng
        path = self.directory / "program"
        memory = r.choice((64, 400, 3000, 20000)) * PAGE
        with Machine(memory, overcommit=r.choice(list(Overcommit)), aslr=r.random() < 0.5) as m:
            for _ in range(20):
                path.write_bytes(self.mutated())
                path.chmod(0o755)
                self.note("spawn")
                (self.directory / "last").write_bytes(path.read_bytes())
                before = len(m.processes)
                if r.random() < 0.05:
                    m._kernel.core.fail(r.randrange(1, 60))
                try:
                    p = m.spawn(os.fspath(path), ["a", "b"] * r.choice((0, 1, 30)), {"X": "y" * r.choice((0, 1, 9000))})
                except VmemuError:
                    assert len(m.processes) == before
                except NotImplementedError:
                    pass
                else:
                    p.maps()
                    with contextlib.suppress(VmemuError):
                        p.read(p.entry_point, 16, fetch=True)
                        p.write(p.stack_pointer - 64, b"x" * 64)
                    with contextlib.suppress(VmemuError):
                        p.fork(r.choice(list(ForkMode))).exit()
                    if r.random() < 0.7:
                        p.exit()
                m._kernel.core.fail(0)
                m.verify()


TARGETS: dict[str, type[Round]] = {"api": Api, "border": Border, "elf": Elf}


def fuzz(target: str, seconds: float, seed: int, log: BinaryIO | None = None) -> int:
    """Runs rounds until the time is over; returns how many operations ran. Raises what a round raised."""
    end, operations, rounds = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory() as name:
        Elf.directory = Path(name)
        if target == "elf":
            Elf.programs = tuple(_programs(Elf.directory))
        while time.monotonic() < end or not rounds:
            one = TARGETS[target](seed + rounds)
            if log is not None:
                log.truncate(0)
                log.seek(0)
                log.write(f"{target} --seed {seed + rounds}".encode())
                one.log = log
            try:
                one.run()
            except BaseException:
                print(f"{target}: failed with --seed {seed + rounds}; the last operations:")
                for line in one.last:
                    print(f"    {line}")
                raise
            operations += one.operations
            rounds += 1
    print(f"{target}: {operations} operations in {rounds} machines, seeds {seed} to {seed + rounds - 1}")
    return operations


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="fuzz vmemu")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="file that has the operations of the round under way, after a crash")
    options = parser.parse_args()
    try:
        with options.log.open("wb", buffering=0) if options.log else contextlib.nullcontext() as log:
            fuzz(options.target, options.seconds, options.seed, log)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
