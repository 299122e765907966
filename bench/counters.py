"""Workloads that always do the same, and what they count: faults by kind, frames copied, tables, bytes; and fork bombs.

They run through the public API. A count that differs from the baseline's is a change of what vmemu does, not of how
fast it is; it is either a mistake or a reason for `--update`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.rows.common import MIB, PAGE, PRIVATE, RW, map_small, reap, resident
from vmemu import Advice, ForkMode, Machine, Map, Process, Prot, bombs
from vmemu.swap import POLICIES

__all__ = ["BOMB_DEFENCES", "Counters", "count", "count_all", "differences", "run_bomb"]

Counters = dict[str, int]

_EVENTS = (
    "pswpin",
    "pswpout",
    "pgscan_anon",
    "pgscan_file",
    "pgsteal_anon",
    "pgsteal_file",
    "pgalloc_normal",
    "pgfree",
    "pgreuse",
    "thp_fault_alloc",
    "thp_split_page",
    "thp_split_pmd",
    "cow_ksm",
)


def count(machine: Machine) -> Counters:
    """What a machine has counted since it was made, and what it holds now."""
    info, frames, events = machine.meminfo(), machine.frame_stats(), machine.vmstat()
    counts = {f"faults.{kind}": n for kind, n in machine.faults.as_dict().items()}
    counts |= {"frames.copied": frames.copied, "frames.mapped": frames.mapped, "frames.shared": frames.shared}
    counts |= {"bytes.copied": frames.copied * PAGE, "bytes.free": info.free, "bytes.anon": info.anon}
    counts |= {"bytes.file": info.file, "bytes.shmem": info.shmem, "bytes.committed": info.committed}
    counts["tables"] = info.page_tables // PAGE
    return counts | {f"events.{name}": events[name] for name in _EVENTS if name in events}


def _forked(mode: ForkMode) -> Callable[[Machine], None]:
    def work(m: Machine) -> None:
        parent = m.spawn()
        address = resident(parent, 4 * MIB)
        child = parent.fork(mode=mode)
        child.touch(address, 2 * MIB, write=True)
        child.touch(address, 4 * MIB)
        parent.touch(address + MIB, 2 * MIB, write=True)
        grandchild = child.fork(mode=mode)
        grandchild.write(address + 4 * MIB - 8, b"12345678")
        reap(parent, parent.fork(mode=mode))

    return work


def _reuse(m: Machine) -> None:
    parent = m.spawn()
    address = resident(parent, 2 * MIB)
    reap(parent, parent.fork())
    parent.touch(address, 2 * MIB, write=True)


def _zero(m: Machine) -> None:
    process = m.spawn()
    address = process.mmap(None, 4 * MIB, RW, PRIVATE)
    process.touch(address, 4 * MIB)
    process.touch(address, 2 * MIB, write=True)
    process.madvise(address, MIB, Advice.DONTNEED)
    process.touch(address, 4 * MIB, write=True)


def _random(m: Machine) -> None:
    parent = m.spawn()
    address = parent.mmap(None, 16 * MIB, RW, PRIVATE)
    rng = np.random.default_rng(0)
    where = np.uint64(address) + rng.integers(0, 16 * MIB, 20_000, np.uint64)
    writes = rng.random(20_000) < 0.3
    parent.access(where[:10_000], writes[:10_000])
    for child in [*parent.fork_many(3), *parent.fork_many(3, mode=ForkMode.ON_DEMAND)]:
        child.access(where[10_000:], writes[10_000:])


def _many(mode: ForkMode) -> Callable[[Machine], None]:
    def work(m: Machine) -> None:
        parent = m.spawn()
        (address, *_) = map_small(parent)
        children = parent.fork_many(500, mode=mode)
        for child in children[::5]:
            child.write(address, b"child")
        for child in children[:250]:
            reap(parent, child)

    return work


def _mappings(m: Machine) -> None:
    process = m.spawn()
    address = resident(process, 2 * MIB)
    process.mprotect(address + MIB, 64 * PAGE, Prot.READ)
    process.munmap(address + 64 * PAGE, 64 * PAGE)
    moved = process.mremap(address, 32 * PAGE, 128 * PAGE, 1)
    process.touch(moved, 128 * PAGE, write=True)
    process.brk(process.brk() + 16 * PAGE)


def _files(m: Machine) -> None:
    first, second = m.spawn(), m.spawn()
    file = m.create_file("data", bytes(range(256)) * 4096)
    shared: list[tuple[Process, int]] = []
    for process in (first, second):
        private = process.mmap(None, MIB, RW, Map.PRIVATE, file)
        process.touch(private, MIB)
        process.touch(private, MIB // 4, write=True)
        shared.append((process, process.mmap(None, MIB, RW, Map.SHARED, file)))
    for process, where in shared:
        process.touch(where, MIB, write=True)
    common = first.mmap(None, MIB, RW, Map.SHARED | Map.ANONYMOUS)
    child = first.fork()
    child.touch(common, MIB, write=True)
    first.touch(common, MIB, write=True)


def _huge(m: Machine) -> None:
    parent = m.spawn()
    length = 8 * MIB
    address = parent.mmap(None, length, RW, PRIVATE)
    parent.madvise(address, length, Advice.HUGEPAGE)
    parent.touch(address, length, write=True)
    child = parent.fork()
    child.write(address + 3 * MIB, b"split")
    parent.munmap(address + 5 * MIB, MIB // 2)


def _swap(m: Machine) -> None:
    """Twice what there is of memory, shared with a child, and a file that is larger than what is left."""
    parent = m.spawn()
    address = parent.mmap(None, 8 * MIB, RW, PRIVATE)
    parent.touch(address, 8 * MIB, write=True)
    child = parent.fork()
    child.touch(address + MIB, 2 * MIB, write=True)
    file = m.create_file("data", bytes(range(256)) * 4096)
    child.touch(child.mmap(None, MIB, Prot.READ, PRIVATE, file), MIB)
    rng = np.random.default_rng(0)
    where = np.uint64(address) + rng.zipf(1.2, 5_000).astype(np.uint64) * np.uint64(PAGE) % np.uint64(8 * MIB)
    child.access(where, rng.random(5_000) < 0.3)
    parent.touch(address, 8 * MIB)


def _ksm(m: Machine) -> None:
    process = m.spawn()
    address = process.mmap(None, 64 * PAGE, RW, PRIVATE)
    process.madvise(address, 64 * PAGE, Advice.MERGEABLE)
    for i in range(64):
        process.write(address + i * PAGE, bytes([i % 4]) * PAGE)
    for _ in range(3):
        m.ksm.scan()
    process.touch(address, 16 * PAGE, write=True)


WORKLOADS: dict[str, tuple[Callable[[Machine], None], dict[str, Any]]] = {
    **{f"fork {mode.name.lower()}": (_forked(mode), {}) for mode in ForkMode},
    "fork cow, no contents": (_forked(ForkMode.COW), {"contents": False}),
    "fork cow, no reuse": (_forked(ForkMode.COW), {"reuse": False}),
    "reuse": (_reuse, {}),
    "zero": (_zero, {}),
    "zero, no zero page": (_zero, {"zero_page": False}),
    "random": (_random, {}),
    "many cow": (_many(ForkMode.COW), {}),
    "many on_demand": (_many(ForkMode.ON_DEMAND), {}),
    "mappings": (_mappings, {}),
    "files": (_files, {}),
    "huge": (_huge, {"thp": "madvise"}),
    "ksm": (_ksm, {}),
    **{f"swap {policy}": (_swap, {"memory": "4MiB", "swap": "16MiB", "policy": policy}) for policy in POLICIES},
}


BOMB_DEFENCES: dict[str, list[str]] = {
    "none": [],
    "nproc": ["nproc=60"],
    "pids.max": ["pids.max=60"],
    "memory.max": ["memory.max=8MiB"],
    "overcommit": ["overcommit=2"],
    "protect": ["protect"],
    "watcher": ["watcher=50"],
}
"""What the bombs meet on 32 MiB, by name."""


def run_bomb(m: Machine, shape: str, defence: str, **options: Any) -> bombs.Result:
    """A bomb of the built-in program, from beginning to end."""
    scenario = bombs.scenario(m, shape, defences=BOMB_DEFENCES[defence], seed=1, ticks=300, **options)
    for _ in scenario:
        pass
    return scenario.result


def _count_bombs() -> dict[str, Counters]:
    """Every shape without a defence, one under each, and two with swap on half the memory."""
    runs: list[tuple[str, str, int | str]] = [(shape, "none", 0) for shape in bombs.SHAPES]
    runs += [("classic", defence, 0) for defence in BOMB_DEFENCES if defence != "none"]
    runs += [(shape, "none", "4MiB") for shape in ("classic", "touch")]
    found = {}
    for shape, defence, swap in runs:
        with Machine(memory="16MiB" if swap else "32MiB", swap=swap, oom="kill") as m:
            result = run_bomb(m, shape, defence)
            m.verify()
            found[f"bomb {shape}, {f'{swap} of swap' if swap else defence}"] = {**count(m), **result.counters()}
    return found


def count_all() -> dict[str, Counters]:
    """Workload -> its counters; each machine proves itself consistent too."""
    found = _count_bombs()
    for name, (work, options) in WORKLOADS.items():
        with Machine(**{"memory": "256MiB", **options}) as m:
            work(m)
            m.verify()
            found[name] = count(m)
    return found


def differences(
    baseline: dict[str, Counters], now: dict[str, Counters]
) -> list[tuple[str, str, int | None, int | None]]:
    """(workload, counter, in the baseline, now) of all that is not the same; None: not there."""
    found = []
    for name in sorted(baseline.keys() | now.keys()):
        then, here = baseline.get(name, {}), now.get(name, {})
        for key in sorted(then.keys() | here.keys()):
            if then.get(key) != here.get(key):
                found.append((name, key, then.get(key), here.get(key)))
    return found
