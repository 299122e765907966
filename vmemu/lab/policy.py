"""`vmemu policy`: one trace on machines of several sizes under each policy of reclaim, and the bound for all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from vmemu.errors import OutOfMemory
from vmemu.lab import optimum
from vmemu.machine import Machine
from vmemu.swap import POLICIES
from vmemu.traces import check_trace, load_trace
from vmemu.types import PAGE_SIZE, Overcommit

__all__ = ["OPT", "PolicyReport", "PolicyRun", "plot", "plot_formats", "run", "to_json"]

OPT = "opt"
_LEAST_MEMORY = 16 * PAGE_SIZE
_LEAST_SWAP = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyRun:
    """One run."""

    policy: str
    memory: int
    """RAM of the machine, bytes."""
    swap_ins: int | None
    """Major faults: pages that had to be read back. None: the trace needs more memory than that."""
    swap_outs: int | None
    """Pages written to the swap device; None also for opt, which does not write."""
    faults: int | None
    """All faults, the first touch of each page included."""


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyReport:
    """All runs of one trace."""

    trace: str
    records: int
    footprint: int
    """Most that the pages of the trace take at once, bytes."""
    seed: int
    runs: list[PolicyRun]


def run(
    path: str | os.PathLike[str],
    memories: Sequence[int] = (),
    policies: Sequence[str] = (*POLICIES, OPT),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> PolicyReport:
    """Runs the trace that a file holds. *memories* in bytes; none: a quarter, half and three quarters of what the trace
    needs. TraceError for a file that holds none."""
    trace = load_trace(path)
    check_trace(trace)
    sequence, most = optimum.pages(trace)
    needed = most * PAGE_SIZE
    sizes = [max(_LEAST_MEMORY, size) for size in memories or (needed // 4, needed // 2, needed * 3 // 4)]
    runs = []
    for memory in dict.fromkeys(sizes):
        for policy in policies:
            if progress is not None:
                progress(f"{policy} with {memory >> 10} KiB")
            if policy == OPT:
                runs.append(PolicyRun(OPT, memory, optimum.misses(sequence, memory // PAGE_SIZE), None, None))
            else:
                runs.append(_run(trace, memory, policy, max(_LEAST_SWAP, 4 * needed), seed))
    return PolicyReport(os.fspath(path), len(trace), needed, seed, runs)


def _run(trace: Any, memory: int, policy: str, swap: int, seed: int) -> PolicyRun:
    with Machine(memory, swap, contents=False, overcommit=Overcommit.ALWAYS, seed=seed, policy=policy) as m:
        try:
            counts = m.run(trace, outcomes=False).counts
        except OutOfMemory:
            return PolicyRun(policy, memory, None, None, None)
        if counts.oom:
            return PolicyRun(policy, memory, None, None, None)
        return PolicyRun(policy, memory, counts.swap_in, m.vmstat()["pswpout"], counts.total)


def to_json(report: PolicyReport) -> dict[str, Any]:
    """For `json.dumps`."""
    return dataclasses.asdict(report)


def plot_formats() -> list[str]:
    """The endings of names that `plot` can write. ImportError without Matplotlib."""
    from matplotlib.backend_bases import FigureCanvasBase

    return sorted(FigureCanvasBase.get_supported_filetypes())


def plot(report: PolicyReport, path: str) -> None:
    """A picture of it, in the format that the name of *path* ends with. ImportError without Matplotlib, ValueError for
    a format that it does not know."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for policy in dict.fromkeys(run.policy for run in report.runs):
        runs = [run for run in report.runs if run.policy == policy and run.swap_ins is not None]
        points = sorted((run.memory / (1 << 20), run.swap_ins or 0) for run in runs)
        style: dict[str, Any] = {"color": "black", "linestyle": "--"} if policy == OPT else {}
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=policy, **style)
    axes.set_xlabel("memory, MiB")
    axes.set_ylabel("pages read back from swap")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title="policy")
    axes.set_title(os.path.basename(report.trace))
    figure.savefig(path)
