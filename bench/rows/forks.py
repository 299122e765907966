"""What fork and exit cost, by size."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.measure import Line, Sides, experiment, faster, within
from bench.native import kernel
from bench.rows.common import GIB, MIB, PAGE, PRIVATE, RW, clock, cpu_clock, expect, map_small, reap, resident
from vmemu import ForkMode, Machine, Overcommit, Process

TRIES = 5
"""Forks in one round; the kernel's program does as many."""


def _kernel_forks() -> dict[str, float]:
    found = kernel("forks", GIB)
    return {"fork.cow": found["fork"], "exit.cow": found["exit"]}


@experiment(
    "fork",
    Line("fork.cow", "fork of 1 GiB resident, ForkMode.COW", "fork", (faster("kernel", 12),)),
    Line(
        "exit.cow",
        "exit of that child",
        "exit",
        (faster("kernel", 20),),
        note="kernel: from the moment the child is told to exit until waitpid returns; vmemu: exit and wait",
    ),
    rounds=7,
)
def fork_cow() -> Iterator[Sides]:
    with Machine(memory="1280MiB") as m:
        parent = m.spawn()
        address = resident(parent, GIB)
        parent.write(address, b"parent")

        def vmemu() -> dict[str, float]:
            forked, ended = [], []
            for _ in range(TRIES):
                start = cpu_clock()
                child = parent.fork()
                forked.append(cpu_clock() - start)
                assert child.read(address, 6) == b"parent" and child.rss == GIB
                start = clock()
                child.exit(0)
                status = parent.wait()
                ended.append(clock() - start)
                assert status == (child.pid, 0)
            m.verify()
            return {"fork.cow": statistics.median(forked), "exit.cow": statistics.median(ended)}

        vmemu()
        yield {"kernel": _kernel_forks, "vmemu": vmemu}


@experiment(
    "fork-on-demand",
    Line("demand.fork.1g", "fork of 1 GiB resident, ForkMode.ON_DEMAND", "fork", (faster("kernel", 3000),)),
    Line(
        "demand.fork.64g",
        "fork of 64 GiB mapped, ForkMode.ON_DEMAND",
        "fork",
        (faster("kernel", 3000), within("bound", 1.25)),
        "the same fork of 1 GiB: no dependence on size",
        note="kernel: fork of 1 GiB",
    ),
    Line(
        "demand.first-write",
        "first write after it, 1 GiB",
        "write",
        (within("bound", 4, aim=2),),
        "the kernel's copy-on-write fault",
    ),
    Line(
        "demand.first-write.64g",
        "first write after it, 64 GiB mapped",
        "write",
        (within("bound", 4, aim=2),),
        "the kernel's copy-on-write fault",
    ),
    rounds=7,
)
def fork_on_demand() -> Iterator[Sides]:
    with Machine(memory="2GiB") as big, Machine(memory="4GiB", overcommit=Overcommit.ALWAYS) as huge:
        large, wide = big.spawn(), huge.spawn()
        at_large = resident(large, GIB)
        at_wide = wide.mmap(None, 64 * GIB, RW, PRIVATE)
        wide.touch(at_wide, GIB, write=True)  # the first of 64 GiB, and a page of each of the others
        for i in range(1, 64):
            wide.touch(at_wide + i * GIB, PAGE, write=True)

        def once(parent: Process, where: int) -> tuple[float, float]:
            start = clock()
            child = parent.fork(mode=ForkMode.ON_DEMAND)
            forked = clock() - start
            start = clock()
            faults = child.touch(where, PAGE, write=True)
            written = clock() - start
            expect(faults, cow_copy=1)
            reap(parent, child)
            return forked, written

        def copies(parent: Process, where: int) -> None:
            """Outside the timing: while tables are shared, looking at a frame's sharers reads every table there is."""
            child = parent.fork(mode=ForkMode.ON_DEMAND)
            child.write(where, b"child")
            assert (child.pagemap(where, 1) != parent.pagemap(where, 1)).all() and parent.read(where, 5) == bytes(5)
            reap(parent, child)

        fork_large = 0.0

        def vmemu() -> dict[str, float]:
            nonlocal fork_large
            times = [(*once(large, at_large + i * 37 * PAGE), *once(wide, at_wide + i * 37 * PAGE)) for i in range(100)]
            for parent, where in ((large, at_large), (wide, at_wide)):
                copies(parent, where)
            big.verify()
            huge.verify()
            fork_large, write, fork_wide, write_wide = map(statistics.median, zip(*times, strict=True))
            return {
                "demand.fork.1g": fork_large,
                "demand.fork.64g": fork_wide,
                "demand.first-write": write,
                "demand.first-write.64g": write_wide,
            }

        def bound() -> dict[str, float]:
            fault = kernel("cow", 256 * MIB)["cow"]
            return {"demand.fork.64g": fork_large, "demand.first-write": fault, "demand.first-write.64g": fault}

        def forks() -> dict[str, float]:
            fork = kernel("forks", GIB)["fork"]
            return {"demand.fork.1g": fork, "demand.fork.64g": fork}

        yield {"kernel": forks, "vmemu": vmemu, "bound": bound}


@experiment(
    "small",
    Line(
        "small.demand", "fork + exit + wait of a small process (40 pages), ON_DEMAND", "cycle", (faster("kernel", 20),)
    ),
    Line("small.cow", "fork + exit + wait of a small process (40 pages), COW", "cycle", (faster("kernel", 10),)),
)
def small() -> Iterator[Sides]:
    with Machine(memory="64MiB") as m:
        parent = m.spawn()
        (address, *_) = map_small(parent)
        parent.write(address, b"parent")

        def cycle(mode: ForkMode) -> float:
            before = m.faults
            times = []
            for _ in range(100):
                start = clock()
                for _ in range(10):
                    parent.fork(mode=mode).exit(0)
                    parent.wait()
                times.append((clock() - start) / 10)
            spent = statistics.median(times)
            assert not parent.children and parent.read(address, 6) == b"parent"
            expect(m.faults - before)
            m.verify()
            return spent

        def kernel_side() -> dict[str, float]:
            ns = kernel("small", 500)["small"]
            return {"small.demand": ns, "small.cow": ns}

        yield {
            "kernel": kernel_side,
            "vmemu": lambda: {"small.demand": cycle(ForkMode.ON_DEMAND), "small.cow": cycle(ForkMode.COW)},
        }
