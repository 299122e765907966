"""A mixed trace of many processes in one call, beside a page table of Python dictionaries on the same trace."""

from __future__ import annotations

from collections.abc import Iterator

from bench.dictionary import DictionaryMachine
from bench.measure import Line, Sides, experiment, faster
from bench.rows.common import cpu_clock, expect
from vmemu import FaultCounts, Machine, workloads

ACCESSES = 10_000_000
FILLED = 1024
"""Pages that the parent writes."""
TRACE = {"nprocesses": 64, "npages": FILLED, "naccesses": ACCESSES, "write_fraction": 0.3, "s": 1.1, "seed": 0}
WHAT = "10 million accesses of 64 forked processes, 1,024 pages each, 30 % writes, Zipf (s = 1.1), faults included"
WARM = "vmemu: on a machine that ran it before, processes ended since, once just before; frames recycled, caches warm"
WARM_UP = 3
"""Runs until the frames are recycled."""


@experiment(
    "trace",
    Line(
        "trace.counts",
        WHAT,
        "access",
        (faster("bound", 40),),
        "page tables of Python dictionaries, the whole trace",
        WARM,
    ),
    Line(
        "trace.outcomes", "the same with the outcome of each record", "access", (faster("bound", 40),), "the same", WARM
    ),
    rounds=3,
)
def trace() -> Iterator[Sides]:
    records = workloads.mixed(**TRACE)  # type: ignore[arg-type]
    copies = 0

    def dictionaries() -> dict[str, float]:
        nonlocal copies
        peer = DictionaryMachine()
        spent = sum(peer.run(records)) / ACCESSES
        copies = peer.cow_copy
        return {"trace.counts": spent, "trace.outcomes": spent}

    with Machine(memory="1GiB") as m:

        def run(outcomes: bool) -> float:
            before = m.faults
            start = cpu_clock()
            result = m.run(records, outcomes=outcomes)
            spent = cpu_clock() - start
            if copies:
                expect(m.faults - before, zero_fill=FILLED, cow_copy=copies)  # the peer found as many
            assert result.counts == m.faults - before + FaultCounts(none=result.counts.none)
            assert result.counts.none > ACCESSES * 0.9
            assert (result.outcomes is not None and len(result.outcomes) == len(records)) == outcomes
            for label in sorted(result.processes, reverse=True):  # the parent last: init reaps then
                result.processes[label].exit(0)
            m.verify()
            assert len(m.processes) == 1
            return spent / ACCESSES

        def vmemu() -> dict[str, float]:
            found = {}
            for key, outcomes in (("trace.counts", False), ("trace.outcomes", True)):
                run(outcomes)  # what the host's caches held was the peer's
                found[key] = run(outcomes)
            return found

        for _ in range(WARM_UP):
            run(True)
        yield {"bound": dictionaries, "vmemu": vmemu}
