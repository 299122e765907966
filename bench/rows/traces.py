"""A mixed trace of many processes in one call, beside a page table of Python dictionaries on the same trace."""

from __future__ import annotations

from collections.abc import Iterator

from bench.dictionary import DictionaryMachine
from bench.measure import Line, Sides, experiment, faster
from bench.rows.common import clock, expect
from vmemu import Machine, workloads

ACCESSES = 10_000_000
TRACE = {"nprocesses": 64, "npages": 1024, "naccesses": ACCESSES, "write_fraction": 0.3, "s": 1.1, "seed": 0}
WHAT = "10 million accesses of 64 forked processes, 1,024 pages each, 30 % writes, Zipf (s = 1.1), faults included"


@experiment(
    "trace",
    Line("trace.counts", WHAT, "access", (faster("bound", 40),), "page tables of Python dictionaries, the whole trace"),
    Line("trace.outcomes", "the same with the outcome of each record", "access", (faster("bound", 40),), "the same"),
    rounds=3,
)
def trace() -> Iterator[Sides]:
    records = workloads.mixed(**TRACE)  # type: ignore[arg-type]
    copies = rounds = 0

    def dictionaries() -> dict[str, float]:
        nonlocal copies
        peer = DictionaryMachine()
        spent = sum(peer.run(records)) / ACCESSES
        copies = peer.cow_copy
        return {"trace.counts": spent, "trace.outcomes": spent}

    def run(outcomes: bool) -> float:
        with Machine(memory="1GiB") as m:
            start = clock()
            result = m.run(records, outcomes=outcomes)
            spent = clock() - start
            expect(m.faults, zero_fill=1024, cow_copy=copies)  # the peer found as many
            assert result.counts.cow_copy == copies and result.counts.none > ACCESSES * 0.9
            assert result.outcomes is None or (len(result.outcomes) == len(records)) == outcomes
            m.verify()
        return spent / ACCESSES

    def vmemu() -> dict[str, float]:
        nonlocal rounds
        rounds += 1
        order = (False, True) if rounds % 2 else (True, False)  # the first run after the peer's finds a cold host
        return {"trace.outcomes" if outcomes else "trace.counts": run(outcomes) for outcomes in order}

    yield {"bound": dictionaries, "vmemu": vmemu}
