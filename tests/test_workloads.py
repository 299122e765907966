"""The generators of traces: the same on every machine, and each with the pattern that it is named for."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from machines import PAGE, machine

from vmemu import TRACE_DTYPE, FaultKind, Operation, workloads

GENERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(workloads, name) for name in workloads.__all__ if name.islower()
}


def pages(trace: Any, *operations: Operation) -> Any:
    """Index of the page of each access."""
    chosen = trace[np.isin(trace["operation"], operations or (Operation.READ, Operation.WRITE))]
    return (chosen["address"] - workloads.BASE) // PAGE


@pytest.mark.parametrize("name", GENERATORS)
def test_each_runs_on_a_fresh_machine(name: str) -> None:
    """Without a bad access; same seed, same trace; another seed, another one."""
    small = {"naccesses": 1000} if name == "mixed" else {}
    made = GENERATORS[name](**small)
    assert made.dtype == TRACE_DTYPE and made.ndim == 1
    assert np.array_equal(made, GENERATORS[name](**small, seed=0))
    assert not np.array_equal(made, GENERATORS[name](**small, seed=1))
    with machine(memory="256MiB") as m:
        result = m.run(made)
        assert result.outcomes is not None
        assert not any(FaultKind(kind).fatal for kind in np.unique(result.outcomes))
    accesses = made[made["operation"] <= Operation.FETCH]
    small_ones = accesses[accesses["size"] <= PAGE]
    assert np.all(small_ones["address"] % PAGE + small_ones["size"] <= PAGE)


@pytest.mark.parametrize(
    ("name", "options", "digest"),
    [
        ("sequential", {}, "575c0076b406b679"),
        ("uniform", {}, "e2b941b6c67ea85f"),
        ("zipf", {}, "cdb942bad27d48d6"),
        ("zipf", {"s": 0.7, "npages": 100_000, "seed": 9, "size": 64}, "32397432b60dc73d"),
        ("stride", {"write_fraction": 0.5}, "698f8a4368d755cd"),
        ("mixed", {"naccesses": 10_000}, "2d9536212d70a945"),
        ("fork_join", {}, "de9a8751f4316d8c"),
        ("snapshot_under_write", {}, "7b020fd68a41fb93"),
    ],
)
def test_traces_never_change(name: str, options: dict[str, Any], digest: str) -> None:
    """What was measured with a seed can be measured again, on any machine and with any version of NumPy."""
    made = GENERATORS[name](**options)
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == digest


def test_sequential() -> None:
    made = workloads.sequential(npages=10, naccesses=25)
    assert pages(made).tolist() == [*range(10), *range(10), *range(5)]
    assert not np.any(made["operation"] == Operation.WRITE)


def test_stride() -> None:
    """Each round begins one page further; after `step` rounds every page was there as often as any other."""
    made = workloads.stride(step=4, npages=12, naccesses=12)
    assert pages(made).tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    made = workloads.stride(step=5, npages=12, naccesses=6)
    assert pages(made).tolist() == [0, 5, 10, 1, 6, 11]


def test_uniform() -> None:
    made = workloads.uniform(npages=10, naccesses=10_000, write_fraction=0.3)
    seen = np.bincount(pages(made).astype(int), minlength=10)
    assert seen.min() > 850 and seen.max() < 1150
    assert 2800 < len(pages(made, Operation.WRITE)) < 3200


def test_zipf() -> None:
    """The k-th most frequent page comes k ** -s as often as the first."""
    made = workloads.zipf(npages=1000, naccesses=100_000, s=1.1)
    seen = [n for _, n in Counter(pages(made).tolist()).most_common(16)]
    for rank, n in enumerate(seen, 1):
        assert n == pytest.approx(seen[0] * rank**-1.1, rel=0.1)
    assert pages(workloads.zipf(npages=1, naccesses=5)).tolist() == [0] * 5


def test_mixed() -> None:
    """Everybody has a turn, in no order; the children copy what they write."""
    made = workloads.mixed(nprocesses=8, npages=16, naccesses=4000)
    body = made[3 + 8 :]
    assert len(body) == 4000
    seen = np.bincount(body["pid"])
    assert seen[0] == 0 and len(seen) == 9 and seen[1:].min() > 400
    with machine() as m:
        result = m.run(made)
        written = body[body["operation"] == Operation.WRITE]
        assert result.counts.cow_copy == len({(int(r["pid"]), int(r["address"]) // PAGE) for r in written}) > 100
        assert sorted(result.processes) == list(range(9))


def test_fork_join() -> None:
    made = workloads.fork_join(rounds=3, nprocesses=4, npages=16, naccesses=5)
    assert Counter(made["operation"].tolist())[Operation.FORK] == 12
    with machine() as m:
        result = m.run(made)
        assert list(result.processes) == [0]
        assert result.processes[0].children == []


def test_snapshot_under_write() -> None:
    """Reads and writes come evenly mixed; the child sees every page once."""
    made = workloads.snapshot_under_write(snapshots=2, npages=10, naccesses=5)
    first = made[4:19]
    assert "".join("rw"[int(op)] for op in first["operation"]) == "rwrrwrrwrrwrrwr"
    assert first["address"][first["operation"] == Operation.READ].tolist() == [
        workloads.BASE + i * PAGE for i in range(10)
    ]
    with machine() as m:
        assert m.run(made).counts.cow_copy > 2
    assert len(workloads.snapshot_under_write(snapshots=1, npages=3, naccesses=0)) == 9


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("uniform", {"npages": 0}, "npages: 0 is not positive"),
        ("uniform", {"npages": 1 << 33}, "npages: 8589934592 is more than"),
        ("uniform", {"naccesses": -1}, "naccesses: -1 is negative"),
        ("uniform", {"size": 4097}, "size: an access of 4097 bytes is larger than a page"),
        ("uniform", {"size": 0}, "size: 0 is not positive"),
        ("uniform", {"write_fraction": 1.5}, "write_fraction: 1.5 is not between 0 and 1"),
        ("zipf", {"s": 0}, "s: 0 is not positive"),
        ("stride", {"step": 0}, "step: 0 is not positive"),
        ("mixed", {"nprocesses": 0}, "nprocesses: 0 is not positive"),
        ("fork_join", {"rounds": 0}, "rounds: 0 is not positive"),
        ("snapshot_under_write", {"snapshots": -1}, "snapshots: -1 is not positive"),
    ],
)
def test_bad_arguments_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GENERATORS[name](**options)


@pytest.mark.parametrize("name", GENERATORS)
def test_numbers_of_the_wrong_type_are_named(name: str) -> None:
    """The same for every workload: nothing is rounded, nothing is left to chance."""
    takes = inspect.signature(GENERATORS[name]).parameters
    for option in takes:
        wrong = ["1", None] if option in ("s", "write_fraction") else [1.5, "1", None]
        for value in wrong:
            with pytest.raises(TypeError, match=f"^{option} must be an? "):
                GENERATORS[name](**{option: value})
    with pytest.raises(ValueError, match="seed: -1 is negative"):
        GENERATORS[name](seed=-1)
    for option in takes.keys() & {"s", "write_fraction"}:
        with pytest.raises(ValueError, match=f"{option}: nan is not finite"):
            GENERATORS[name](**{option: math.nan})
    small: dict[str, Any] = {"npages": np.int64(3), "naccesses": np.uint8(2), "seed": np.int32(1)}
    plain = {option: int(value) for option, value in small.items()}
    assert np.array_equal(GENERATORS[name](**small), GENERATORS[name](**plain))
