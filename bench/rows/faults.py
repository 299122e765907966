"""Faults in batch over 256 MiB: copies, reuse, zero pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.measure import Line, Sides, experiment, faster, within
from bench.native import Buffer, bound, kernel
from bench.rows.common import MIB, PAGE, PRIVATE, RW, arena, cpu_clock, expect, frames, reap, resident
from vmemu import Machine

SIZE = 256 * MIB
NPAGES = SIZE // PAGE
WARM_UP = 3
"""Rounds until the frames are recycled: blocks that empty for the first time go back to the host."""
MARK = b"what the parent wrote"


def in_turns(work: dict[str, Callable[[], None]], before: dict[str, float]) -> dict[str, float]:
    """Nanoseconds a page of each; the one that came first *before* comes last, for each finds the other's caches."""
    order = reversed(before) if before else iter(work)
    spent = {}
    for key in list(order):
        start = cpu_clock()
        work[key]()
        spent[key] = (cpu_clock() - start) / NPAGES
    before.clear()
    return spent


@experiment(
    "cow",
    Line(
        "cow.recycled",
        "copy-on-write faults over 256 MiB, frames recycled",
        "page",
        (faster("kernel", 3), within("bound", 1.15)),
        "memcpy of the same frames in the same order",
        "memcpy writes through the caches, vmemu past them in large batches",
    ),
    Line(
        "cow.recycled.stream",
        "the same",
        "page",
        (),
        "a copy of the same frames in the same order, past the caches",
    ),
)
def cow_recycled() -> Iterator[Sides]:
    with Machine(memory="1GiB") as m:
        parent = m.spawn()
        address = resident(parent, SIZE)
        for at in range(0, SIZE, 7 * MIB):
            parent.write(address + at, MARK)
        ram, source = arena(m), frames(parent, address, NPAGES)
        for _ in range(WARM_UP):
            warm = parent.fork()
            warm.touch(address, SIZE, write=True)
            reap(parent, warm)
        spent: dict[str, float] = {}

        def vmemu() -> dict[str, float]:
            child = parent.fork()
            start = cpu_clock()
            faults = child.touch(address, SIZE, write=True)
            end = cpu_clock()
            expect(faults, cow_copy=NPAGES)
            to = frames(child, address, NPAGES)
            # copies what is there already: the contents stay as they were
            work = {
                "cow.recycled": lambda: bound().copy(ram, source, to),
                "cow.recycled.stream": lambda: bound().stream(ram, source, to),
            }
            spent.update(in_turns(work, spent))
            assert (frames(parent, address, NPAGES) == source).all() and not (to == source).any()
            assert all(child.read(address + at, len(MARK)) == MARK for at in range(0, SIZE, 7 * MIB))
            m.verify()
            reap(parent, child)
            return dict.fromkeys(work, (end - start) / NPAGES)

        yield {
            "kernel": lambda: {"cow.recycled": kernel("cow", SIZE)["cow"]},
            "vmemu": vmemu,
            "bound": lambda: dict(spent),
        }


@experiment(
    "cow-fresh",
    Line(
        "cow.fresh",
        "copy-on-write faults over 256 MiB, frames never used before",
        "page",
        (faster("kernel", 2),),
        "memcpy into host memory that is used for the first time (huge pages advised)",
    ),
)
def cow_fresh() -> Iterator[Sides]:
    def vmemu() -> dict[str, float]:
        with Machine(memory="1GiB") as m:
            parent = m.spawn()
            address = resident(parent, SIZE)
            parent.write(address, MARK)
            m.ram[:SIZE:PAGE].sum()
            child = parent.fork()
            start = cpu_clock()
            faults = child.touch(address, SIZE, write=True)
            end = cpu_clock()
            expect(faults, cow_copy=NPAGES)
            assert child.read(address, len(MARK)) == MARK
            m.verify()
        return {"cow.fresh": (end - start) / NPAGES}

    with Buffer(SIZE) as source:

        def copy() -> dict[str, float]:
            with Buffer(SIZE, fresh=True) as to:
                start = cpu_clock()
                bound().copy_buffer(to, source, NPAGES)
                return {"cow.fresh": (cpu_clock() - start) / NPAGES}

        yield {"kernel": lambda: {"cow.fresh": kernel("cow", SIZE)["cow"]}, "bound": copy, "vmemu": vmemu}


@experiment("reuse", Line("reuse", "sole-owner reuse faults over 256 MiB", "page", (faster("kernel", 15, aim=25),)))
def reuse() -> Iterator[Sides]:
    with Machine(memory="1GiB") as m:
        parent = m.spawn()
        address = resident(parent, SIZE)
        parent.write(address, MARK)

        def vmemu() -> dict[str, float]:
            reap(parent, parent.fork())
            start = cpu_clock()
            faults = parent.touch(address, SIZE, write=True)
            end = cpu_clock()
            expect(faults, cow_reuse=NPAGES)
            assert parent.read(address, len(MARK)) == MARK
            m.verify()
            return {"reuse": (end - start) / NPAGES}

        vmemu()
        yield {"kernel": lambda: {"reuse": kernel("reuse", SIZE)["reuse"]}, "vmemu": vmemu}


@experiment(
    "zero",
    Line(
        "zero.recycled",
        "demand-zero faults over 256 MiB, frames recycled",
        "page",
        (faster("kernel", 2.5), within("bound", 1.15)),
        "memset of the same frames in the same order",
        "memset writes through the caches, vmemu past them in large batches",
    ),
    Line(
        "zero.recycled.stream",
        "the same",
        "page",
        (),
        "zeros to the same frames in the same order, past the caches",
    ),
)
def zero() -> Iterator[Sides]:
    with Machine(memory="512MiB") as m:
        process = m.spawn()
        ram = arena(m)
        spent: dict[str, float] = {}

        def vmemu() -> dict[str, float]:
            address = process.mmap(None, SIZE, RW, PRIVATE)
            start = cpu_clock()
            faults = process.touch(address, SIZE, write=True)
            end = cpu_clock()
            expect(faults, zero_fill=NPAGES)
            to = frames(process, address, NPAGES)
            # they are zero already
            work = {
                "zero.recycled": lambda: bound().zero(ram, to),
                "zero.recycled.stream": lambda: bound().stream_zero(ram, to),
            }
            spent.update(in_turns(work, spent))
            for at in range(0, SIZE, 7 * MIB):
                assert process.read(address + at, PAGE) == bytes(PAGE)
            for at in range(0, SIZE, PAGE):
                process.write(address + at, MARK)  # the next round must not find zeros
            m.verify()
            process.munmap(address, SIZE)
            return dict.fromkeys(work, (end - start) / NPAGES)

        for _ in range(WARM_UP):
            vmemu()
        yield {
            "kernel": lambda: {"zero.recycled": kernel("zero", SIZE)["zero"]},
            "vmemu": vmemu,
            "bound": lambda: dict(spent),
        }
