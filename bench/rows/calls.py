"""Single calls from Python: bytes in and out, mappings among many others, exec."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Iterator
from typing import Any

from bench.measure import Line, Sides, Skip, experiment, faster, within
from bench.native import kernel
from bench.rows.common import PAGE, PRIVATE, RW, clock, expect, reap, resident
from vmemu import Machine, Process, Prot

CALLS = 200
TURNS = 100
PAIRS = 500


@experiment(
    "bytes",
    Line("bytes.read", "p.read(a, 8)", "call", (faster("bound", 1.7, aim=2.5),), "Unicorn's mem_read(a, 8)"),
    Line(
        "bytes.write", "p.write(a, b) of 8 bytes", "call", (faster("bound", 1.7, aim=2.5),), "Unicorn's mem_write(a, b)"
    ),
)
def single_bytes() -> Iterator[Sides]:
    data = b"12345678"
    with Machine(memory="64MiB") as m:
        process = m.spawn()
        address = resident(process, PAGE)

        def timed(read: Any, write: Any, where: int) -> dict[str, float]:
            reads, writes = [], []
            for _ in range(TURNS):
                start = clock()
                for _ in range(CALLS):
                    write(where, data)
                middle = clock()
                for _ in range(CALLS):
                    read(where, 8)
                end = clock()
                writes.append((middle - start) / CALLS)
                reads.append((end - middle) / CALLS)
            assert bytes(read(where, 8)) == data
            return {"bytes.read": statistics.median(reads), "bytes.write": statistics.median(writes)}

        def unicorn() -> dict[str, float]:
            try:
                peer = importlib.import_module("unicorn")
            except ImportError:
                raise Skip("Unicorn is not installed (pip install unicorn)") from None
            engine = peer.Uc(peer.UC_ARCH_X86, peer.UC_MODE_64)
            engine.mem_map(0x10000, 16 * PAGE)
            return timed(engine.mem_read, engine.mem_write, 0x10000)

        def vmemu() -> dict[str, float]:
            before = m.faults
            found = timed(process.read, process.write, address)
            expect(m.faults - before)
            m.verify()
            return found

        yield {"bound": unicorn, "vmemu": vmemu}


def _crowd(process: Process, nvmas: int) -> None:
    """*nvmas* mappings of a page each that do not merge."""
    base = process.mmap(None, nvmas * PAGE, Prot.NONE, PRIVATE)
    for i in range(0, nvmas - 1, 2):
        process.mprotect(base + i * PAGE, PAGE, RW)
    assert abs(len(process.maps()) - nvmas) < 2


@experiment(
    "mappings",
    Line(
        "mappings.call",
        "mmap and munmap of a page beside 50,000 mappings",
        "pair",
        (within("bound", 3),),
        "the same beside 10",
    ),
    Line("mappings.fault", "first write to it there", "fault", (within("bound", 3),), "the same beside 10"),
)
def mappings() -> Iterator[Sides]:
    with Machine(memory="256MiB") as m:
        few, crowded = m.spawn(), m.spawn()
        _crowd(few, 10)
        _crowd(crowded, 50_000)

        def timed(process: Process) -> dict[str, float]:
            calls, faults = [], []
            for _ in range(PAIRS):
                a = clock()
                address = process.mmap(None, PAGE, RW, PRIVATE)
                b = clock()
                found = process.touch(address, PAGE, write=True)
                c = clock()
                process.munmap(address, PAGE)
                d = clock()
                expect(found, zero_fill=1)
                calls.append(b - a + d - c)
                faults.append(c - b)
            return {"mappings.call": statistics.median(calls), "mappings.fault": statistics.median(faults)}

        def vmemu() -> dict[str, float]:
            found = timed(crowded)
            m.verify()
            return found

        def kernel_side() -> dict[str, float]:
            found = kernel("mappings", 50_000, PAIRS)
            return {"mappings.call": found["mmap"], "mappings.fault": found["fault"]}

        yield {"kernel": kernel_side, "bound": lambda: timed(few), "vmemu": vmemu}


@experiment(
    "exec",
    Line(
        "exec",
        "fork, exec of /bin/sh with its libraries mapped, exit, wait; page cache warm",
        "cycle",
        (faster("kernel", 6, aim=20),),
        note="kernel: fork and exec of `sh -c :`, ld.so's run and the shell's included",
    ),
)
def execute() -> Iterator[Sides]:
    argv, environment = ["/bin/sh", "-c", ":"], {"PATH": "/bin"}
    with Machine(memory="256MiB") as m:
        shell = m.spawn("/bin/sh", argv, environment, link=True)
        maps = shell.maps()
        parent = m.spawn()
        resident(parent, 40 * PAGE)

        def vmemu() -> dict[str, float]:
            spent = []
            for i in range(200):
                start = clock()
                child = parent.fork()
                child.execve("/bin/sh", argv, environment, link=True)
                middle = clock()
                if not i:
                    assert child.maps() == maps
                again = clock()
                reap(parent, child)
                spent.append(clock() - again + middle - start)
            m.verify()
            return {"exec": statistics.median(spent)}

        vmemu()
        yield {"kernel": lambda: {"exec": kernel("exec", "/bin/sh", 200)["exec"]}, "vmemu": vmemu}
