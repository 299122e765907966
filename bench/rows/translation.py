"""Accesses to pages that are mapped, in batch, beside reads of a host buffer in the same pattern."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from bench.measure import Line, Sides, experiment, within
from bench.native import Buffer, bound
from bench.report import machine_facts
from bench.rows.common import GIB, MIB, PAGE, clock, resident
from vmemu import Machine, Overcommit

LARGE = 1.2 if machine_facts()["avx512"] else 1.5
NOTE = "vmemu walks its page tables and marks the entries; it reads no data byte, the bound reads nothing else"
SPREAD = "the same with any byte of each page, which the host's caches like better"


def _pattern(size: int, order: str, spread: bool) -> NDArray[np.uint64]:
    """Offsets, one in each page: its first byte, or any where *spread*."""
    pages = np.arange(size // PAGE, dtype=np.uint64)
    rng = np.random.default_rng(0)
    if order == "random":
        rng.shuffle(pages)
    offsets: NDArray[np.uint64] = pages * np.uint64(PAGE)
    return offsets + rng.integers(0, PAGE, len(pages), np.uint64) if spread else offsets


CASES = {
    "sequential.64m": (64 * MIB, "sequential", 50, 1.0, "in order over 64 MiB"),
    "random.64m": (64 * MIB, "random", 50, 1.0, "random over 64 MiB"),
    "random.4g": (4 * GIB, "random", 3, LARGE, "random over 4 GiB"),
}
"""Size, order, repetitions in a round, limit, words."""

LINES = [
    line
    for key, (_, _, _, limit, words) in CASES.items()
    for line in (
        Line(
            f"translate.{key}",
            f"accesses to mapped pages, {words}",
            "access",
            (within("bound", limit),),
            f"reads of one byte a page (its first) of a host buffer on huge pages, {words}",
            NOTE,
        ),
        Line(f"translate.{key}.spread", f"accesses to mapped pages, {words}", "access", (), SPREAD, NOTE),
    )
]


@experiment("translate", *LINES)
def translate() -> Iterator[Sides]:
    cases = {
        f"translate.{key}{suffix}": (size, order, times, bool(suffix))
        for key, (size, order, times, _, _) in CASES.items()
        for suffix in ("", ".spread")
    }
    with ExitStack() as stack:
        m = stack.enter_context(Machine(memory="5GiB", overcommit=Overcommit.ALWAYS))
        process = m.spawn()
        buffers = {size: stack.enter_context(Buffer(size)) for size in (64 * MIB, 4 * GIB)}
        addresses = {size: resident(process, size) for size in buffers}
        patterns = {key: _pattern(size, order, spread) for key, (size, order, _, spread) in cases.items()}
        where = {key: patterns[key] + np.uint64(addresses[size]) for key, (size, _, _, _) in cases.items()}

        def vmemu() -> dict[str, float]:
            found = {}
            for key, (_, _, times, _) in cases.items():
                spent = []
                for _ in range(times):
                    start = clock()
                    kinds = process.access(where[key])
                    spent.append(clock() - start)
                    assert not kinds.any() and len(kinds) == len(where[key])
                found[key] = statistics.median(spent) / len(where[key])
            m.verify()
            return found

        def read() -> dict[str, float]:
            found = {}
            for key, (size, _, times, _) in cases.items():
                spent = []
                for _ in range(times):
                    start = clock()
                    total = bound().read(buffers[size], patterns[key])
                    spent.append(clock() - start)
                    assert total == len(patterns[key])
                found[key] = statistics.median(spent) / len(patterns[key])
            return found

        vmemu()
        yield {"bound": read, "vmemu": vmemu}
