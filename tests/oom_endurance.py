"""Fork bombs for minutes under random defences: `python tests/oom_endurance.py [--seconds N] [--seed N]`.

Every few steps something changes: limits, groups, who is protected, overcommit, how forks copy. After each kill the
machine is verified; contents of who lives are what it wrote; in the end all memory is free. Not a test of its own: a
short run of it is in test_oom_endurance.py.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from typing import NamedTuple

import numpy as np

from vmemu import (
    Advice,
    Clone,
    ForkMode,
    KernelPanic,
    Machine,
    Map,
    OutOfMemory,
    Process,
    ProcessKilled,
    Prot,
    SyscallError,
)

__all__ = ["Endurance", "Figures"]

PAGE = 4096
RW = Prot.READ | Prot.WRITE
LAZY = Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE
HEAP, HEAP_PAGES = 0x1000_0000, 48
_PROCESSES = 400
_ADVICE = [Advice.DONTNEED, Advice.FREE, Advice.COLD, Advice.PAGEOUT, Advice.GUARD_INSTALL, Advice.GUARD_REMOVE]
_ADVICE += [Advice.POPULATE_WRITE, Advice.POPULATE_READ, Advice.HUGEPAGE, Advice.COLLAPSE]


class Figures(NamedTuple):
    """What a run came to."""

    steps: int
    kills: int
    group_kills: int
    panics: int
    refused: int
    missing: int
    """Frames that could not be had with nobody to kill, in a group."""
    verified: int
    machines: int


class Endurance:
    """One machine under bombs."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.machine = Machine(
            rng.choice(("3MiB", "6MiB", "12MiB")),
            swap=rng.choice((0, 0, "1MiB", "4MiB")),
            oom="kill",
            thp=rng.choice(("never", "madvise", "always")),
            fork_mode=rng.choice(list(ForkMode)),
            overcommit=rng.choice((0, 1, 1, 2)),
            overcommit_ratio=rng.choice((50, 95, 300)),
        )
        self.counts: Counter[str] = Counter()
        self.stamps: dict[int, dict[int, int]] = {}
        """By pid: page of the heap -> what was written there."""
        self.seen = 0
        self.file = self.machine.create_file("shared", bytes(8 * PAGE))
        self.deeds = [self.fork, self.fork, self.fork, self.fork_many, self.vfork, self.clone, self.thread, self.write]
        self.deeds += [self.write, self.write, self.look, self.map, self.map, self.unmap, self.advise, self.protect]
        self.deeds += [self.move, self.shared, self.leave, self.reap, self.defend, self.defend, self.group, self.enter]

    # ---- who ----

    def someone(self) -> Process | None:
        """A process that can run."""
        living = [pid for pid in self.stamps if pid in self.machine.processes]
        for pid in self.rng.sample(living, min(len(living), 8)):
            if self.machine.processes[pid].state == "running":
                return self.machine.processes[pid]
        return None

    def light(self) -> None:
        """A new bomb."""
        p = self.machine.spawn()
        p.mmap(HEAP, HEAP_PAGES * PAGE, RW, LAZY | Map.FIXED)
        self.stamps[p.pid] = {}

    # ---- a step ----

    def step(self) -> None:
        """Somebody does something."""
        self.counts["steps"] += 1
        try:
            who = self.someone()
            if who is None:
                self.light()
            else:
                self.rng.choice(self.deeds)(who)
        except ProcessKilled:
            self.counts["callers killed"] += 1
        except KernelPanic:
            self.counts["panics"] += 1
            self.relent()
        except OutOfMemory:
            self.counts["missing"] += 1
            self.relent()
        except SyscallError:
            self.counts["refused"] += 1
        self.after()

    def relent(self) -> None:
        """Nobody could be killed, or a panic was asked for: protection goes."""
        self.machine.procfs.write("sys/vm/panic_on_oom", "0")
        for p in list(self.machine.processes.values()):
            if p.pid != 1 and p.state != "zombie":
                self.machine.procfs.write(f"{p.pid}/oom_score_adj", str(self.rng.randrange(100)))
        for group in self.machine.cgroups.values():
            if self.rng.random() < 0.5:
                group.memory_max = None

    def after(self) -> None:
        """Looks at what was killed."""
        reports = self.machine.oom_reports
        kills = self.machine.vmstat()["oom_kill"]
        if kills != self.seen:
            self.counts["kills"] += kills - self.seen
            self.seen = kills
            self.counts["group kills"] += reports[-1].group is not None
            assert str(reports[-1])
            for pid in reports[-1].killed:
                state = self.machine.processes[pid].state if pid in self.machine.processes else "gone"
                assert state in ("zombie", "gone"), (pid, state)
            self.machine.verify()
            self.counts["verified"] += 1
            self.check()
        for pid in [pid for pid in self.stamps if pid not in self.machine.processes]:
            del self.stamps[pid]

    def check(self) -> None:
        """What a few processes wrote is there; looked at in RAM itself, which needs no memory, unless swapped out."""
        for pid in self.rng.sample(sorted(self.stamps), min(len(self.stamps), 3)):
            p = self.machine.processes.get(pid)
            if p is None or p.state == "zombie":
                continue
            ram = self.machine.ram
            for page, stamp in self.stamps[pid].items():
                where = p.translate(HEAP + page * PAGE)
                if where is None:
                    assert p.pagemap(HEAP + page * PAGE, 1)[0] >> np.uint64(62) == 1, (pid, page)  # swapped out
                else:
                    assert ram[where.pfn * PAGE] == stamp, (pid, page)

    # ---- deeds ----

    def fork(self, p: Process) -> None:
        if len(self.machine.processes) < _PROCESSES:
            child = p.fork(self.rng.choice(list(ForkMode)))
            self.stamps[child.pid] = dict(self.stamps[p.pid])
            self.write(child)

    def fork_many(self, p: Process) -> None:
        if len(self.machine.processes) < _PROCESSES:
            for child in p.fork_many(self.rng.randrange(2, 6)):
                self.stamps[child.pid] = dict(self.stamps[p.pid])

    def vfork(self, p: Process) -> None:
        child = p.vfork()
        if self.rng.random() < 0.5:
            child.touch(HEAP, 8 * PAGE, write=True)
            p = self.machine.processes[p.pid]
        if child.pid in self.machine.processes and child.state == "running":
            child.exit()

    def clone(self, p: Process) -> None:
        """A process in the same memory, which writes to it and ends, so that what was written is known."""
        if len(self.machine.processes) < _PROCESSES:
            child = p.clone(Clone.VM | 17)
            page = self.rng.randrange(HEAP_PAGES)
            child.write(HEAP + page * PAGE, b"\x7e")
            self.stamps[p.pid][page] = 0x7E
            child.exit()

    def thread(self, p: Process) -> None:
        if len(p.threads) < 4:
            t = p.clone(Clone.VM | Clone.THREAD | Clone.SIGHAND)
            t.touch(HEAP, self.rng.randrange(1, HEAP_PAGES) * PAGE)

    def write(self, p: Process) -> None:
        for page in self.rng.sample(range(HEAP_PAGES), self.rng.randrange(1, 16)):
            stamp = self.rng.randrange(1, 126)
            p.write(HEAP + page * PAGE, bytes([stamp]))
            self.stamps[p.pid][page] = stamp

    def look(self, p: Process) -> None:
        for page, stamp in list(self.stamps[p.pid].items()):
            assert p.read(HEAP + page * PAGE, 1)[0] == stamp

    def _elsewhere(self, p: Process) -> tuple[int, int] | None:
        """A mapping other than the heap: address, size."""
        some = [v for v in p.maps() if v.start >= HEAP + HEAP_PAGES * PAGE]
        return None if not some else ((v := self.rng.choice(some)).start, v.size)

    def map(self, p: Process) -> None:
        how = self.rng.choice((0, Map.POPULATE, Map.LOCKED))
        size = self.rng.choice((1, 20, 100, 512)) * PAGE
        a = p.mmap(None, size, RW, LAZY | how)
        p.touch(a, self.rng.randrange(1, size), write=True)

    def unmap(self, p: Process) -> None:
        if where := self._elsewhere(p):
            p.munmap(where[0], self.rng.choice((PAGE, where[1])))

    def advise(self, p: Process) -> None:
        if where := self._elsewhere(p):
            what = self.rng.choice(_ADVICE)
            p.madvise(where[0], self.rng.choice((PAGE, where[1])), what)

    def protect(self, p: Process) -> None:
        if where := self._elsewhere(p):
            p.mprotect(where[0] + where[1] // 2 // PAGE * PAGE, PAGE, self.rng.choice((Prot.READ, RW)))

    def move(self, p: Process) -> None:
        if where := self._elsewhere(p):
            p.mremap(where[0], where[1], where[1] + self.rng.choice((0, PAGE, 9 * PAGE)), 1)

    def shared(self, p: Process) -> None:
        a = p.mmap(None, 8 * PAGE, RW, Map.SHARED, self.file)
        p.touch(a, 8 * PAGE, write=self.rng.random() < 0.5)
        if self.rng.random() < 0.2:
            self.file.truncate(self.rng.randrange(1, 8) * PAGE)
            self.file.pwrite(b"x" * (8 * PAGE), 0)

    def leave(self, p: Process) -> None:
        if self.rng.random() < 0.3:
            p.exit()

    def reap(self, p: Process) -> None:
        while p.wait(-1, 1)[0]:
            pass

    # ---- defences ----

    def defend(self, p: Process) -> None:
        """Whom the killer may choose, and how."""
        write = self.machine.procfs.write
        match self.rng.randrange(6):
            case 0 | 1 | 2:
                p.set_oom_score_adj(self.rng.choice((0, 0, 500, 1000, -500, -1000)))
            case 3:
                write("sys/vm/oom_kill_allocating_task", self.rng.choice(("0", "0", "1")))
            case 4:
                write("sys/vm/panic_on_oom", self.rng.choice(("0", "0", "0", "1", "2")))
            case 5:
                write("sys/vm/overcommit_memory", self.rng.choice("0112"))

    def group(self, _: Process) -> None:
        """Groups come, go and change."""
        groups, rng = self.machine.cgroups, self.rng
        path = rng.choice(("a", "b", "a/c", "a/c/d", "b/e"))
        limits = (None, None, "512KiB", "1MiB", "2MiB")
        if path not in groups:
            groups.create(path, memory_max=rng.choice(limits), oom_group=rng.random() < 0.3)
        elif rng.random() < 0.2:
            groups.remove(path)
        elif rng.random() < 0.3:
            groups[path].memory_max = rng.choice(limits)
        elif rng.random() < 0.5:
            groups[path].pids_max = rng.choice((None, None, 10, 40))
        elif rng.random() < 0.2:
            self.machine.cgroupfs.write(f"{path}/cgroup.kill", "1")
        else:
            groups[path].memory_high = rng.choice(limits)

    def enter(self, p: Process) -> None:
        p.cgroup = self.rng.choice([*self.machine.cgroups.values(), self.machine.cgroups.root])

    # ---- the end ----

    def finish(self) -> None:
        """Everybody goes; nothing is left but what the file and init have."""
        m = self.machine
        for p in list(m.processes.values()):
            if p.pid != 1 and p.pid in m.processes and p.state != "zombie":
                m.init.kill(p.pid, 9)
        m.verify()
        left = [p.pid for p in m.processes.values() if p.pid != 1]
        assert not left, left
        self.file.truncate(0)
        info = m.meminfo()
        assert (info.anon, info.swap_free) == (0, info.swap_total)
        for path in sorted(m.cgroups, key=len, reverse=True):
            assert m.cgroups[path].pids_current == 0
            assert m.cgroups[path].memory_stat["anon"] == 0
            m.cgroups.remove(path)
        m.verify()
        m.close()


def run(seconds: float, seed: int, steps: int = 1500, most: int = 1 << 30) -> Figures:
    """Machine after machine, *steps* on each, at most *most* machines."""
    total: Counter[str] = Counter()
    end, machines = time.monotonic() + seconds, 0
    while time.monotonic() < end and machines < most:
        one = Endurance(seed + machines)
        try:
            for _ in range(steps):
                one.step()
            one.finish()
        except BaseException:
            print(f"seed {seed + machines}, step {one.counts['steps']}", file=sys.stderr)
            raise
        total += one.counts
        machines += 1
    names = ("steps", "kills", "group kills", "panics", "refused", "missing", "verified")
    return Figures(*(total[name] for name in names), machines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(run(options.seconds, options.seed))
