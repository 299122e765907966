"""Traces made to order: what programs do to memory, in the patterns that tell page tables and caches apart.

Each function returns a trace for `Machine.run`, an array of `TRACE_DTYPE`, shape (n,), complete with the records that
make and map what it works on, so that it runs on a fresh machine; `npages` are pages of 4 KiB, `size` the bytes of an
access. Same arguments, same trace, on any machine and with any version of NumPy: of NumPy's generators only the raw
numbers of PCG64 are used, which never change.

    m.run(workloads.zipf(npages=1024, naccesses=100_000, seed=1))
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vmemu.traces import TRACE_DTYPE
from vmemu.types import PAGE_SIZE, Operation

__all__ = ["BASE", "fork_join", "mixed", "sequential", "snapshot_under_write", "stride", "uniform", "zipf"]

BASE = 0x1000_0000
"""Where the memory of the processes is mapped, bytes."""
_MOST_PAGES = 1 << 32

_Trace: TypeAlias = NDArray[np.void]
_Numbers: TypeAlias = NDArray[np.uint64]


class _Random:
    """Numbers from a seed."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def words(self, n: int) -> _Numbers:
        """*n* numbers of 32 bits."""
        return self._bits.random_raw(n) >> np.uint64(32)

    def below(self, limit: int, n: int) -> _Numbers:
        """*n* numbers in [0, limit), limit at most 2^32."""
        return self.words(n) * np.uint64(limit) >> np.uint64(32)

    def chance(self, fraction: float, n: int) -> NDArray[np.bool_]:
        """*n* times True with this probability."""
        return self.words(n) < np.uint64(round(fraction * (1 << 32)))

    def order(self, n: int) -> NDArray[np.intp]:
        """A permutation of [0, n)."""
        return np.argsort(self.words(n), kind="stable")

    def zipf(self, s: float, limit: int, n: int) -> _Numbers:
        """*n* ranks in [0, limit), rank k with a probability in proportion to (k + 1) ** -s."""
        sums = np.cumsum(np.arange(1, limit + 1, dtype=np.float64) ** -s)
        # in whole numbers: so the last bit of a power, which differs between machines, decides nothing
        bounds = np.round(sums / sums[-1] * (1 << 32)).astype(np.uint64)
        return np.searchsorted(bounds, self.words(n), side="right").astype(np.uint64)


# ---- records ----


def _records(n: int, operation: Any, pid: Any, address: Any = 0, size: Any = 0) -> _Trace:
    out = np.zeros(n, TRACE_DTYPE)
    out["operation"], out["pid"], out["address"], out["size"] = operation, pid, address, size
    return out


def _process(label: int, npages: int) -> _Trace:
    """A process with memory that nobody has touched."""
    size = npages * PAGE_SIZE
    return _records(2, [Operation.SPAWN, Operation.MMAP], label, [0, BASE], [0, size])


def _filled(label: int, npages: int) -> _Trace:
    """A process that has written all of its memory."""
    return np.concatenate([_process(label, npages), _records(1, Operation.WRITE, label, BASE, npages * PAGE_SIZE)])


def _accesses(random: _Random, pid: Any, pages: Any, write_fraction: float, size: int) -> _Trace:
    """Accesses to these pages, at places in them that are multiples of *size*; so none crosses a page."""
    n = len(pages)
    places = random.below(PAGE_SIZE // size, n) * np.uint64(size)
    operation = np.where(random.chance(write_fraction, n), Operation.WRITE, Operation.READ)
    return _records(n, operation, pid, BASE + pages * np.uint64(PAGE_SIZE) + places, size)


def _check(
    npages: int, naccesses: int, write_fraction: float, size: int, seed: int, s: float = 1.0, **positive: int
) -> None:
    numbers = {"npages": npages, "naccesses": naccesses, "size": size, "seed": seed, **positive}
    for name, number in numbers.items():
        if not isinstance(number, SupportsIndex):
            raise TypeError(f"{name} must be an int, not {type(number).__name__}")
    for name, fraction in {"write_fraction": write_fraction, "s": s}.items():
        if not isinstance(fraction, SupportsFloat):
            raise TypeError(f"{name} must be a number, not {type(fraction).__name__}")
        if not math.isfinite(fraction):
            raise ValueError(f"{name}: {fraction} is not finite")
    if seed < 0:
        raise ValueError(f"seed: {seed} is negative")
    for name, value in {"npages": npages, "size": size, "s": s, **positive}.items():
        if value <= 0:
            raise ValueError(f"{name}: {value} is not positive")
    if npages > _MOST_PAGES:
        raise ValueError(f"npages: {npages} is more than {_MOST_PAGES}")
    if naccesses < 0:
        raise ValueError(f"naccesses: {naccesses} is negative")
    if size > PAGE_SIZE:
        raise ValueError(f"size: an access of {size} bytes is larger than a page")
    if not 0 <= write_fraction <= 1:
        raise ValueError(f"write_fraction: {write_fraction} is not between 0 and 1")


# ---- one process ----


def sequential(
    *, npages: int = 1024, naccesses: int = 4096, write_fraction: float = 0.0, size: int = 8, seed: int = 0
) -> _Trace:
    """One process goes through *npages* pages in order, again and again, one access a page."""
    return stride(step=1, npages=npages, naccesses=naccesses, write_fraction=write_fraction, size=size, seed=seed)


def stride(
    *,
    step: int = 8,
    npages: int = 1024,
    naccesses: int = 4096,
    write_fraction: float = 0.0,
    size: int = 8,
    seed: int = 0,
) -> _Trace:
    """One process accesses every *step*-th page, modulo *npages*; of *step* rounds each begins one page further."""
    _check(npages, naccesses, write_fraction, size, seed, step=step)
    at = np.arange(naccesses, dtype=np.uint64)
    a_round = np.uint64(-(-npages // step))
    pages = (at % a_round * np.uint64(step) + at // a_round % np.uint64(step)) % np.uint64(npages)
    return np.concatenate([_process(0, npages), _accesses(_Random(seed), 0, pages, write_fraction, size)])


def uniform(
    *, npages: int = 1024, naccesses: int = 4096, write_fraction: float = 0.3, size: int = 8, seed: int = 0
) -> _Trace:
    """One process accesses pages at random, each as likely as any other."""
    _check(npages, naccesses, write_fraction, size, seed)
    random = _Random(seed)
    pages = random.below(npages, naccesses)
    return np.concatenate([_process(0, npages), _accesses(random, 0, pages, write_fraction, size)])


def zipf(
    *,
    npages: int = 1024,
    naccesses: int = 4096,
    write_fraction: float = 0.3,
    s: float = 1.1,
    size: int = 8,
    seed: int = 0,
) -> _Trace:
    """One process accesses pages by Zipf's law with exponent *s*; which pages are hot is chosen at random."""
    _check(npages, naccesses, write_fraction, size, seed, s=s)
    random = _Random(seed)
    pages = random.order(npages).astype(np.uint64)[random.zipf(s, npages, naccesses)]
    return np.concatenate([_process(0, npages), _accesses(random, 0, pages, write_fraction, size)])


# ---- many processes ----


def mixed(
    *,
    nprocesses: int = 64,
    npages: int = 1024,
    naccesses: int = 10_000_000,
    write_fraction: float = 0.3,
    s: float = 1.1,
    size: int = 8,
    seed: int = 0,
) -> _Trace:
    """A process (label 0) fills *npages* pages and forks *nprocesses* children (labels from 1 on), whose accesses
    follow each other at random, each child as likely as any other, its pages by Zipf's law with exponent *s*."""
    _check(npages, naccesses, write_fraction, size, seed, s=s, nprocesses=nprocesses)
    random = _Random(seed)
    children = np.arange(1, nprocesses + 1)
    pages = random.order(npages).astype(np.uint64)[random.zipf(s, npages, naccesses)]
    pid = random.below(nprocesses, naccesses) + np.uint64(1)
    return np.concatenate(
        [
            _filled(0, npages),
            _records(nprocesses, Operation.FORK, 0, children),
            _accesses(random, pid, pages, write_fraction, size),
        ]
    )


def fork_join(
    *,
    rounds: int = 16,
    nprocesses: int = 8,
    npages: int = 1024,
    naccesses: int = 64,
    write_fraction: float = 0.5,
    size: int = 8,
    seed: int = 0,
) -> _Trace:
    """A process fills *npages* pages; in each of *rounds* rounds it forks *nprocesses* workers, each makes *naccesses*
    accesses at random, in turns, all exit and are waited for, and the parent writes a page for each result."""
    _check(npages, naccesses, write_fraction, size, seed, rounds=rounds, nprocesses=nprocesses)
    random = _Random(seed)
    workers = np.arange(1, nprocesses + 1)
    parts = [_filled(0, npages)]
    for _ in range(rounds):
        pages = random.below(npages, nprocesses * naccesses)
        results = BASE + np.arange(nprocesses) % npages * PAGE_SIZE
        parts += [
            _records(nprocesses, Operation.FORK, 0, workers),
            _accesses(random, np.tile(workers, naccesses), pages, write_fraction, size),
            _records(nprocesses, Operation.EXIT, workers),
            _records(1, Operation.WAIT, 0),
            _records(nprocesses, Operation.WRITE, 0, results, size),
        ]
    return np.concatenate(parts)


def snapshot_under_write(
    *,
    snapshots: int = 8,
    npages: int = 1024,
    naccesses: int = 1024,
    s: float = 1.1,
    size: int = 8,
    seed: int = 0,
) -> _Trace:
    """A database that saves itself: a process fills *npages* pages; for each of *snapshots* snapshots it forks a child
    that reads all pages in order while the parent makes *naccesses* writes by Zipf's law; then the child exits."""
    _check(npages, naccesses, 1.0, size, seed, s=s, snapshots=snapshots)
    random = _Random(seed)
    order = random.order(npages).astype(np.uint64)
    parts = [_filled(0, npages)]
    for _ in range(snapshots):
        writes = _accesses(random, 0, order[random.zipf(s, npages, naccesses)], 1.0, size)
        reads = _records(npages, Operation.READ, 1, BASE + np.arange(npages) * PAGE_SIZE, PAGE_SIZE)
        both = np.concatenate([writes, reads])
        # evenly: the k-th of n comes at (k + 1/2) / n
        when = np.concatenate([(2 * np.arange(n) + 1) * (naccesses + npages - n) for n in (naccesses, npages)])
        parts += [
            _records(1, Operation.FORK, 0, 1),
            both[np.argsort(when, kind="stable")],
            _records(1, Operation.EXIT, 1),
            _records(1, Operation.WAIT, 0),
        ]
    return np.concatenate(parts)
