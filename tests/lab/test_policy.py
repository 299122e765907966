"""`vmemu policy`: the policies side by side, and the optimum against all there are."""

from __future__ import annotations

import functools
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from vmemu import TRACE_DTYPE, Operation, TraceError, save_trace, workloads
from vmemu.cli import main
from vmemu.lab import optimum, policy

PAGE = 4096
RECORD = np.dtype(TRACE_DTYPE)


def best(sequence: list[int], nframes: int) -> int:
    """The fewest pages read back, by trying everything."""

    @functools.cache
    def after(i: int, resident: frozenset[int], seen: frozenset[int]) -> int:
        if i == len(sequence):
            return 0
        page = sequence[i]
        if page in resident:
            return after(i + 1, resident, seen)
        cost = int(page in seen)
        if len(resident) < nframes:
            return cost + after(i + 1, resident | {page}, seen | {page})
        return cost + min(after(i + 1, resident - {victim} | {page}, seen | {page}) for victim in resident)

    return after(0, frozenset(), frozenset())


@pytest.mark.parametrize("seed", range(40))
def test_optimum_is_optimal(seed: int) -> None:
    rng = random.Random(seed)
    sequence = [rng.randrange(1, 7) for _ in range(rng.randrange(1, 18))]
    nframes = rng.randrange(1, 5)
    assert optimum.misses(sequence, nframes) == best(sequence, nframes)


def trace(*rows: tuple[int, int, int, Operation]) -> np.ndarray:
    return np.array([(address, size, label, int(operation)) for address, size, label, operation in rows], RECORD)


def test_pages_of_a_trace() -> None:
    """Private pages are one until somebody writes; what was never written is none; shared ones stay one."""
    a, b = 0x1000_0000, 0x2000_0000
    op = Operation
    sequence, most = optimum.pages(
        trace(
            (0, 1, 0, op.SPAWN),
            (a, 4 * PAGE, 0, op.MMAP),
            (b, PAGE, 0, op.MMAP_SHARED),
            (a, 8, 0, op.READ),  # the zero page
            (a + PAGE - 4, 8, 0, op.WRITE),  # two pages
            (b, 8, 0, op.READ),
            (1, 1, 0, op.FORK),
            (a, 8, 1, op.READ),  # the same
            (a, 8, 1, op.WRITE),  # a copy
            (a, 8, 0, op.WRITE),  # the last one that has it
            (b, 8, 1, op.WRITE),
            (a, 2 * PAGE, 0, op.MUNMAP),
            (a, 8, 0, op.READ),  # not mapped
            (0, 1, 1, op.EXIT),
        )
    )
    assert sequence == [1, 2, 3, 1, 4, 1, 3]
    assert most == 4


def test_no_policy_beats_the_optimum(tmp_path: Path) -> None:
    path = tmp_path / "trace.npy"
    save_trace(path, workloads.zipf(npages=512, naccesses=8000, seed=3))
    report = policy.run(path)
    memories = {run.memory for run in report.runs}
    assert len(memories) == 3
    for memory in memories:
        found = {run.policy: run.swap_ins for run in report.runs if run.memory == memory}
        bound = found.pop("opt")
        assert bound is not None
        assert all(count is not None and count >= bound for count in found.values())
        assert found["lru"] < found["random"]  # type: ignore[operator]
    assert policy.run(path).runs == report.runs


def test_a_loop_is_bad_for_lru(tmp_path: Path) -> None:
    path = tmp_path / "trace.npy"
    rows = [(0, 1, 0, Operation.SPAWN), (0x1000_0000, 300 * PAGE, 0, Operation.MMAP)]
    rows += [(0x1000_0000, 300 * PAGE, 0, Operation.WRITE)] * 6
    save_trace(path, trace(*rows))
    runs = {run.policy: run.swap_ins for run in policy.run(path, [1 << 20]).runs}
    assert runs["lru"] == 5 * 300
    assert runs["opt"] < runs["random"] < runs["lru"]  # type: ignore[operator]


def test_too_little_memory(tmp_path: Path) -> None:
    """More processes than their page tables leave room for."""
    path = tmp_path / "trace.npy"
    rows = [(0, 1, 0, Operation.SPAWN), (0x1000_0000, PAGE, 0, Operation.MMAP), (0x1000_0000, 1, 0, Operation.WRITE)]
    rows += [(label, 1, 0, Operation.FORK) for label in range(1, 30)]
    save_trace(path, trace(*rows))
    assert policy.run(path, [64 << 10], ["clock"]).runs[0].swap_ins is None


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.npy"
    save_trace(path, workloads.uniform(npages=256, naccesses=2000, seed=1))
    assert main(["policy", "--memory", "512KiB", "--memory", "640KiB", str(path)]) == 0
    out = capsys.readouterr().out
    assert "512.0 KiB" in out and "aging" in out and "opt" in out
    assert main(["policy", "--json", "--policy", "fifo", "--memory", "512KiB", str(path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(run["policy"], run["memory"]) for run in report["runs"]] == [("fifo", 512 << 10)]
    assert report["runs"][0]["swap_ins"] > 0


def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "trace.npy"
    save_trace(path, workloads.uniform(npages=256, naccesses=2000, seed=1))
    assert main(["policy", "--plot", str(tmp_path / "out.png"), str(path)]) == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.nothing", "'nothing' is no format; there are "),
        ("none/out.png", "No such directory"),
        (".", "Is a directory"),
    ],
)
def test_a_bad_plot_is_found_before_anything_runs(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before even the trace is looked for."""
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit) as stopped:
        main(["policy", "--plot", str(tmp_path / name), str(tmp_path / "no-trace.npy")])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "--plot: " in err and message in err


def test_a_plot_needs_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.backend_bases"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stopped:
        main(["policy", "--plot", str(tmp_path / "out.png"), str(tmp_path / "no-trace.npy")])
    assert stopped.value.code == 2
    assert "needs Matplotlib" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_plot_that_cannot_be_written_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path, plot = tmp_path / "trace.npy", tmp_path / "out.svg"
    save_trace(path, workloads.uniform(npages=256, naccesses=2000, seed=1))
    plot.symlink_to("/dev/full")
    assert main(["policy", "--policy", "fifo", "--memory", "512KiB", "--plot", str(plot), str(path)]) == 1
    out, err = capsys.readouterr()
    assert "fifo" in out
    assert err.endswith(f"error: --plot: {plot}: No space left on device\n") and len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["/no/such/trace.npy"], ["--policy", "best", "x"], ["--memory", "1", "x"], []])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["policy", *arguments])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.npy"
    np.save(path, np.arange(3))
    with pytest.raises(TraceError, match="no trace"):
        policy.run(path)
    with pytest.raises(SystemExit) as stopped:
        main(["policy", str(path)])
    assert stopped.value.code == 2
