"""Whole machines: two at once in two threads, and one without contents that is larger than the host."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from bench import subject
from bench.measure import Line, Sides, Skip, at_most, experiment, faster
from bench.native import Buffer, bound
from bench.rows.common import GIB, MIB, PAGE, PRIVATE, RW, clock, cpu_clock, expect, reap, resident
from vmemu import Machine

FAULTS = 100_000
BATCH = FAULTS * PAGE
SIZE = 256 * MIB
NPAGES = SIZE // PAGE


def _together(work: list[Callable[[], None]]) -> float:
    """Nanoseconds from the start of all to the end of the last, each in a thread of its own."""
    gate = threading.Barrier(len(work) + 1)
    failed: list[BaseException] = []

    def body(one: Callable[[], None]) -> None:
        gate.wait()
        try:
            one()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=body, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    gate.wait()
    start = clock()
    for thread in threads:
        thread.join()
    spent = float(clock() - start)
    if failed:
        raise failed[0]
    return spent


def _gain(work: Callable[[int], float]) -> float:
    """Work in two threads a second by that in one; from medians of runs that take turns."""
    runs = [(work(1), work(2)) for _ in range(5)]
    one, two = (statistics.median(times) for times in zip(*runs, strict=True))
    return float(2 * one / two)


@experiment(
    "threads",
    Line(
        "threads",
        "gain of two machines in two threads over one, batches of 100,000 copy-on-write faults",
        "",
        (faster("bound", 0.9),),
        "gain of two threads of memcpy over one",
        measure="gain",
        note="1 is none, 2 twice the work in the time; the ratio is vmemu's gain by memcpy's",
    ),
    every_cpu=True,
)
def threads() -> Iterator[Sides]:
    if len(os.sched_getaffinity(0)) < 2:
        raise Skip("needs two CPUs")
    with ExitStack() as stack:
        pairs = []
        for _ in range(2):
            m = stack.enter_context(Machine(memory="1GiB"))
            parent = m.spawn()
            pairs.append((m, parent, resident(parent, BATCH)))
        buffers = [(stack.enter_context(Buffer(400 * MIB)), stack.enter_context(Buffer(400 * MIB))) for _ in range(2)]

        def faults(n: int) -> float:
            children = [(parent, parent.fork(), address) for _, parent, address in pairs[:n]]
            before = [m.faults for m, _, _ in pairs]
            spent = _together(
                [lambda c=child, a=address: c.touch(a, BATCH, write=True) for _, child, address in children]  # type: ignore[misc]
            )
            for (m, _, _), earlier in zip(pairs[:n], before, strict=False):
                expect(m.faults - earlier, cow_copy=FAULTS)
            for parent, child, _ in children:
                reap(parent, child)
            return spent

        def copies(n: int) -> float:
            return _together(
                [lambda t=to, s=source: bound().copy_buffer(t, s, FAULTS) for to, source in buffers[:n]]  # type: ignore[misc]
            )

        def vmemu() -> dict[str, float]:
            gain = _gain(faults)
            for m, _, _ in pairs:
                m.verify()
            return {"threads": gain}

        faults(2)
        yield {"bound": lambda: {"threads": _gain(copies)}, "vmemu": vmemu}


@experiment(
    "terabyte",
    Line("terabyte.boot", 'Machine(memory="1TiB", contents=False): boot', "machine", (at_most(100e6),)),
    Line("terabyte.fill", "64 GiB of demand-zero faults in it", "page", ()),
    Line("terabyte.memory", "host memory with those 64 GiB resident", "", (at_most(2 * GIB),), measure="bytes"),
    Line(
        "terabyte.frame",
        "of it, tables aside, for bookkeeping",
        "frame",
        (),
        measure="bytes",
        note="8 bytes a frame; the rest is blocks, the interpreter's growth",
    ),
    rounds=3,
)
def terabyte() -> Iterator[Sides]:
    def vmemu() -> dict[str, float]:
        found = subject.run("terabyte")
        return {
            "terabyte.boot": found["boot_ns"],
            "terabyte.fill": found["fill_ns"],
            "terabyte.memory": found["host_bytes"],
            "terabyte.frame": found["bookkeeping_bytes"],
        }

    yield {"vmemu": vmemu}


@experiment(
    "contents",
    Line(
        "contents.copy",
        "copy-on-write faults over 256 MiB without contents",
        "page",
        (faster("bound", 5),),
        "the same with contents",
    ),
    Line(
        "contents.zero",
        "demand-zero faults over 256 MiB without contents",
        "page",
        (faster("bound", 5),),
        "the same with contents",
    ),
)
def contents() -> Iterator[Sides]:
    with Machine(memory="1GiB") as full, Machine(memory="1TiB", contents=False) as empty:

        def side(m: Machine) -> Callable[[], dict[str, float]]:
            parent = m.spawn()
            address = resident(parent, SIZE)

            def timed() -> dict[str, float]:
                child = parent.fork()
                start = cpu_clock()
                copied = child.touch(address, SIZE, write=True)
                copy = cpu_clock() - start
                expect(copied, cow_copy=NPAGES)
                reap(parent, child)
                other = parent.mmap(None, SIZE, RW, PRIVATE)
                start = cpu_clock()
                filled = parent.touch(other, SIZE, write=True)
                zero = cpu_clock() - start
                expect(filled, zero_fill=NPAGES)
                parent.munmap(other, SIZE)
                m.verify()
                return {"contents.copy": copy / NPAGES, "contents.zero": zero / NPAGES}

            for _ in range(3):  # until frames are recycled
                timed()
            return timed

        yield {"bound": side(full), "vmemu": side(empty)}


HELD = "resident bytes without those the host may take when it likes (LazyFree)"


@experiment(
    "returned",
    Line(
        "returned",
        "host memory held for 4 GiB that were written and unmapped again",
        "",
        (at_most(288 * MIB),),
        "while they were mapped",
        HELD,
        measure="bytes",
    ),
    Line(
        "returned.again",
        "the same after a second time",
        "",
        (at_most(288 * MIB),),
        "while they were mapped",
        HELD,
        measure="bytes",
    ),
    Line(
        "returned.lazy",
        "on top of that, kept until the host wants it (LazyFree)",
        "",
        (at_most(272 * MIB),),
        note="free blocks that were wanted again, 272 MiB at most",
        measure="bytes",
    ),
    rounds=2,
)
def returned() -> Iterator[Sides]:
    full: dict[str, float] = {}

    def vmemu() -> dict[str, float]:
        found = subject.run("returned")
        full.update({"returned": found["first_full_bytes"], "returned.again": found["again_full_bytes"]})
        return {
            "returned": found["first_left_bytes"],
            "returned.again": found["again_left_bytes"],
            "returned.lazy": found["again_lazy_bytes"],
        }

    yield {"vmemu": vmemu, "bound": lambda: dict(full)}
