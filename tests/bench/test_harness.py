"""The harness of `python -m bench`: what it concludes from figures. Nothing here measures a time."""

from __future__ import annotations

import copy
import functools
import getpass
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import check, core, counters, measure, native, report, subject
from bench.__main__ import main
from bench.measure import Experiment, Line, Result, Sides, Skip, at_most, faster, within
from bench.rows import faults, load, traces
from bench.rows.common import PAGE
from vmemu import Machine


def line(*targets: measure.Target, key: str = "row", unit: str = "page") -> Line:
    return Line(key, "what is done", unit, targets)


def result(*targets: measure.Target, **values: float) -> Result:
    return Result(line(*targets), {side: [value] for side, value in values.items()})


# ---- targets ----


@pytest.mark.parametrize(
    ("target", "values", "figure", "met"),
    [
        (faster("kernel", 3), {"kernel": 300.0, "vmemu": 100.0}, 3.0, True),
        (faster("kernel", 3), {"kernel": 299.0, "vmemu": 100.0}, 2.99, False),
        (within("bound", 1.15), {"bound": 100.0, "vmemu": 115.0}, 1.15, True),
        (within("bound", 1.15), {"bound": 100.0, "vmemu": 116.0}, 1.16, False),
        (at_most(512), {"vmemu": 512.0}, 512.0, True),
        (at_most(512), {"vmemu": 513.0}, 513.0, False),
        (faster("kernel", 3), {"vmemu": 100.0}, None, None),
        (within("bound", 1), {"bound": 1.0}, None, None),
    ],
)
def test_target(target: measure.Target, values: dict[str, float], figure: float | None, met: bool | None) -> None:
    assert target.figure(values) == figure
    assert target.met(values) is met


def test_a_result_is_met_by_all_its_targets() -> None:
    both = (faster("kernel", 3), within("bound", 1.15))
    assert result(*both, kernel=300, bound=100, vmemu=100).met is True
    assert result(*both, kernel=300, bound=80, vmemu=100).met is False
    assert result(*both, kernel=300, vmemu=100).met is None  # a side is missing
    assert result(*both, kernel=200, vmemu=100).met is False  # which can't help
    assert result(vmemu=100).met is None  # nothing to reach
    failed = result(*both, kernel=300, bound=100, vmemu=100)
    failed.failed = "AssertionError: contents"
    assert failed.met is False


def test_ratios_are_of_medians() -> None:
    one = Result(line(faster("kernel", 3)), {"kernel": [300.0, 900.0, 310.0], "vmemu": [100.0, 90.0, 1000.0]})
    assert one.values == {"kernel": 310.0, "vmemu": 100.0}


# ---- rounds ----


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            order.append(name)
            return {"row": float(len(order))}

        return once

    sides: Sides = {name: side(name) for name in ("kernel", "bound", "vmemu")}
    (found,) = measure.measure(experiment(given(**sides)), 3)
    assert order == ["kernel", "bound", "vmemu"] * 3
    assert found.samples == {"kernel": [1, 4, 7], "bound": [2, 5, 8], "vmemu": [3, 6, 9]}


def given(**sides: measure.Side) -> Callable[[], Iterator[Sides]]:
    def setup() -> Iterator[Sides]:
        yield sides

    return setup


def experiment(setup: Callable[[], Iterator[Sides]], *lines: Line, rounds: int = 99) -> Experiment:
    return Experiment("name", lines or (line(),), contextmanager(setup), rounds)


def test_the_experiment_limits_its_rounds() -> None:
    (found,) = measure.measure(experiment(given(vmemu=lambda: {"row": 1.0}), rounds=2), 7)
    assert found.samples["vmemu"] == [1.0, 1.0]


def test_a_failed_check_is_told_and_hides_nothing() -> None:
    def wrong() -> dict[str, float]:
        raise AssertionError("faults {}, expected {'cow_copy': 1}")

    (found,) = measure.measure(experiment(given(kernel=lambda: {"row": 5.0}, vmemu=wrong)), 3)
    assert found.failed == "AssertionError: faults {}, expected {'cow_copy': 1}" and found.met is False
    assert found.samples == {"kernel": [5.0]}


def test_a_side_that_cannot_be_had_is_left_out() -> None:
    def peer() -> dict[str, float]:
        raise Skip("Unicorn is not installed")

    (found,) = measure.measure(experiment(given(bound=peer, vmemu=lambda: {"row": 1.0})), 2)
    assert found.samples == {"vmemu": [1.0, 1.0]} and found.skipped == "bound: Unicorn is not installed"


def test_an_experiment_that_cannot_be_had_is_told() -> None:
    def setup() -> Iterator[Sides]:
        raise Skip("needs two CPUs")
        yield {}

    (found,) = measure.measure(experiment(setup), 2)
    assert found.skipped == "needs two CPUs" and not found.samples and found.met is None


def test_the_cpus_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []

    def once() -> dict[str, float]:
        seen.append(os.sched_getaffinity(0))
        return {"row": 1.0}

    measure.measure(experiment(given(vmemu=once)), 1)
    assert [len(cpus) for cpus in seen] == [1] and os.sched_getaffinity(0) == before


def test_rows_are_named_once_and_each_has_a_vmemu_target_or_says_nothing() -> None:
    load()
    keys = [line.key for one in measure.EXPERIMENTS for line in one.lines]
    assert len(keys) == len(set(keys)) > 30
    for one in measure.EXPERIMENTS:
        for each in one.lines:
            if any(target.of == "bound" for target in each.targets):
                assert each.bound, f"{each.key} does not say what its bound is"


def test_rows_are_chosen_by_parts_of_their_names() -> None:
    load()
    assert [one.name for one in measure.chosen(measure.EXPERIMENTS, "exit.cow")] == ["fork"]
    assert {one.name for one in measure.chosen(measure.EXPERIMENTS, "zero.,million")} >= {"zero", "million"}
    assert measure.chosen(measure.EXPERIMENTS, "") == measure.EXPERIMENTS
    assert not measure.chosen(measure.EXPERIMENTS, "no such row")


# ---- the table and the record ----


def test_table() -> None:
    results = [
        result(faster("kernel", 3), within("bound", 1.15), kernel=3000, bound=500, vmemu=600),
        result(at_most(512), vmemu=100),
        result(vmemu=12.34),
    ]
    results[2].failed = "InvariantError: a frame has 2 references"
    out = io.StringIO()
    report.print_results(results, out)
    text = out.getvalue()
    assert "3,000" in text and "5x" in text and "1.2x" in text and "short" in text and "pass" in text
    assert "FAILED" in text and "a frame has 2 references" in text
    assert "1 pass, 2 short, 0 without a verdict" in text


def test_record_is_json_with_times_ratios_targets_and_no_names() -> None:
    found = report.record([result(faster("kernel", 3, aim=7), kernel=300, vmemu=60)])
    text = json.dumps(found)
    row = found["lines"]["row"]
    assert row["medians"] == {"kernel": 300, "vmemu": 60} and row["met"] is True
    assert row["targets"] == [{"of": "kernel", "at_least": 3, "aim": 7, "figure": 5, "met": True}]
    assert found["machine"]["cpus"] >= 1
    for name in (platform.node(), getpass.getuser()):
        assert len(name) < 4 or name not in text


# ---- arguments ----


def test_unknown_rows(capsys: pytest.CaptureFixture[str], built: None) -> None:
    assert main(["--rows", "no such row"]) == 2
    assert "no row contains 'no such row'" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str], built: None) -> None:
    assert main(["--list", "--rows", "cow"]) == 0
    assert "cow.recycled" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--rounds", "x"], ["--check", "--update"], ["--no-such-option"]])
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


def complaint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a command says in one line before it measures anything."""

    def never(*_: object) -> list[Result]:
        raise AssertionError("something was measured")

    monkeypatch.setattr(measure, "measure", never)
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("bench: ") and said.err.count("\n") == 1 and not said.out
    return said.err


@pytest.mark.parametrize("number", ["0", "-1"])
def test_no_rounds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    assert f"--rounds: {number} is not 1 or more" in complaint(capsys, monkeypatch, "--rounds", number)


@pytest.mark.parametrize("kind", [(), ("--update",), ("--scaling",)])
def test_output_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: tuple[str, ...],
) -> None:
    nowhere = tmp_path / "none" / "x.json"
    assert f"no directory {nowhere.parent}" in complaint(capsys, monkeypatch, *kind, "--output", str(nowhere))
    assert f"{tmp_path} is a directory" in complaint(capsys, monkeypatch, *kind, "--output", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    path = tmp_path / "x.json"
    assert f"{path} can't be written" in complaint(capsys, monkeypatch, *kind, "--output", str(path))
    assert not path.exists()


@pytest.mark.parametrize("kind", [(), ("--check",), ("--update",), ("--scaling",)])
def test_a_compiler_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: tuple[str, ...], built: None
) -> None:
    monkeypatch.setenv("CC", "false")
    native.bound.cache_clear()
    native.kernel_program.cache_clear()
    assert re.search("false .* failed: exit status 1", complaint(capsys, monkeypatch, *kind))


def test_a_failed_compilation_is_one_line(tmp_path: Path, has_compiler: None) -> None:
    (tmp_path / "wrong.c").write_text("int main(void)\n{\n\treturn nothing;\n}\n")
    with pytest.raises(native.NoCompiler, match=r"wrong\.c:3.*error.*nothing") as caught:
        native.compiled(tmp_path / "wrong", tmp_path / "wrong.c")
    assert "\n" not in str(caught.value)


# ---- what the sides do ----


def test_streaming_bounds_do_what_the_plain_ones_do(has_compiler: None) -> None:
    ram = np.zeros(9 * PAGE, np.uint8)
    ram = ram[-ram.ctypes.data % PAGE :][: 8 * PAGE]
    ram[: 4 * PAGE] = np.random.default_rng(0).integers(0, 256, 4 * PAGE, np.uint8)
    source, to = np.array([0, 3, 1], np.uint64), np.array([5, 4, 7], np.uint64)
    plain, streamed = ram.copy(), ram
    expected = plain.reshape(8, PAGE).copy()
    expected[[5, 4, 7]] = expected[[0, 3, 1]]
    native.bound().stream(streamed.ctypes.data, source, to)
    assert (streamed.reshape(8, PAGE) == expected).all()
    native.bound().stream_zero(streamed.ctypes.data, source)
    expected[[0, 3, 1]] = 0
    assert (streamed.reshape(8, PAGE) == expected).all()


def test_bounds_take_turns_in_being_first() -> None:
    order: list[str] = []
    work = {name: (lambda name=name: order.append(name)) for name in ("plain", "stream")}  # type: ignore[misc]
    spent: dict[str, float] = {}
    for _ in range(3):
        spent.update(faults.in_turns(work, spent))
        assert spent.keys() == work.keys()
    assert order == ["plain", "stream", "stream", "plain", "plain", "stream"]


@pytest.mark.parametrize("name", ["alive.single", "alive.many"])
def test_alive(name: str) -> None:
    found = subject.SUBJECTS[name](50)
    assert found["fork_ns"] > 0 and found.keys() == {"fork_ns", "host_bytes"}


def test_returned_twice() -> None:
    found = subject.SUBJECTS["returned"](128 << 20)
    assert found["first_full_bytes"] > 100 << 20 and found["again_full_bytes"] > 100 << 20
    assert found["first_left_bytes"] < found["first_full_bytes"]
    assert found["again_lazy_bytes"] >= 0


def test_million() -> None:
    found = subject.SUBJECTS["million"](300)
    assert all(found[f"{what}_ns"] > 0 for what in ("fork", "write", "exit", "wait"))


def test_the_trace_rows_do_the_same_but_for_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many runs before each, checked against the peer."""
    load()
    monkeypatch.setattr(traces, "ACCESSES", 50_000)
    monkeypatch.setattr(traces, "TRACE", traces.TRACE | {"naccesses": 50_000, "npages": 64, "nprocesses": 4})
    monkeypatch.setattr(traces, "FILLED", 64)
    calls: list[bool] = []
    run = Machine.run

    def counted(self: Machine, *arguments: Any, outcomes: bool) -> Any:
        calls.append(outcomes)
        return run(self, *arguments, outcomes=outcomes)

    monkeypatch.setattr(Machine, "run", counted)
    (one,) = measure.chosen(measure.EXPERIMENTS, "trace")
    found = measure.measure(one, 2)
    assert [row.failed for row in found] == ["", ""]
    assert all(len(row.samples["vmemu"]) == len(row.samples["bound"]) == 2 for row in found)
    warm = traces.WARM_UP
    assert calls[warm:] == [False, False, True, True] * 2


def test_no_compiler(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, built: None) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert main(["--list"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_installed_otherwise(root: Path, tmp_path: Path) -> None:
    """A checkout whose vmemu was not built in place says so in one line."""
    shutil.copytree(root / "bench", tmp_path / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vmemu").mkdir()
    done = subprocess.run([sys.executable, "-m", "bench"], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install -e ." in done.stderr


# ---- the check ----


def test_counters_are_the_same_each_time() -> None:
    once = counted()
    assert once == counters.count_all()
    assert all(isinstance(n, int) for one in once.values() for n in one.values())
    assert once["reuse"]["faults.cow_reuse"] == 512 and once["reuse"]["frames.copied"] == 0
    total = {kind: sum(one[f"faults.{kind}"] for one in once.values()) for kind in ("cow_copy", "zero_map", "shm_fill")}
    assert all(total.values())


def test_differences() -> None:
    then = {"a": {"copied": 1, "tables": 4}, "gone": {"x": 1}}
    now = {"a": {"copied": 2, "tables": 4, "new": 0}}
    assert counters.differences(then, now) == [
        ("a", "copied", 1, 2),
        ("a", "new", None, 0),
        ("gone", "x", 1, None),
    ]
    assert not counters.differences(then, then)


def test_a_time_must_be_worse_in_each_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.time, "sleep", lambda _: None)
    asked: list[list[str]] = []
    tries = iter([{"a": 1.3, "b": 1.3, "c": 1.1}, {"a": 1.3, "b": 1.19}, {"a": 1.25}])

    def take(names: list[str], number: int) -> dict[str, float]:
        asked.append(names)
        assert number == len(asked) - 1
        return next(tries)

    found = check.worse_in_each_try({"a": 1.0, "b": 1.0, "c": 1.0}, take)
    assert found == {"a": [1.3, 1.3, 1.25]}
    assert asked == [["a", "b", "c"], ["a", "b"], ["a"]]


def test_a_time_is_judged_by_its_own_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.time, "sleep", lambda _: None)
    found = check.worse_in_each_try({"a": 2.0, "b": 0.5}, lambda _names, _number: {"a": 2.39, "b": 0.61})
    assert list(found) == ["b"]


PROFILE = """\
events: Ir
fn=(1) measure_cow
10 5
cfn=(2) touch
calls=1 20
11 700
+1 3
fn=(2)
20 650
cfn=(3) memcpy
calls=4 1
21 50
fn=(4) measure_zero
* 7
cfn=(2)
calls=1 20
* 93

totals: 808
"""


def test_callgrind_profile() -> None:
    assert core.parse_callgrind(PROFILE) == {"cow": 708, "zero": 100}


def test_a_check_without_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.check(tmp_path / "baseline.json") == 2
    (tmp_path / "baseline.json").write_text("{")
    assert check.check(tmp_path / "baseline.json") == 2
    assert capsys.readouterr().err.count("--update") == 2


@pytest.fixture
def no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check without a core to build and with ratios that are as they were."""

    def blind(of: str = "") -> core.Core:
        raise core.Blind("the baseline's revision is not in a git history here")

    monkeypatch.setattr(check, "Core", blind)
    monkeypatch.setattr(check, "measure_ratios", lambda names, **_: dict.fromkeys(names, 1.0))
    monkeypatch.setattr(check.time, "sleep", lambda _: None)
    monkeypatch.setattr(check, "count_all", lambda: copy.deepcopy(counted()))


counted = functools.cache(counters.count_all)
"""What is counted, once for those tests that look at something else."""


def write_baseline(path: Path, ratio: float = 1.0, cpu: str = "", **change: int) -> Path:
    counts = copy.deepcopy(counted())
    for key, by in change.items():
        counts["reuse"][key.replace("__", ".")] += by
    facts = report.machine_facts() | ({"cpu": cpu} if cpu else {})
    baseline = {"revision": "0" * 40, "machine": facts, "counters": counts, "ratios": {"cow.copy": ratio}}
    path.write_text(json.dumps(baseline))
    return path


@pytest.mark.usefixtures("no_times")
def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "baseline.json", io.StringIO()
    monkeypatch.setattr(check, "count_all", counters.count_all)
    assert check.check(write_baseline(path), file=out) == 0
    assert "nothing is worse" in out.getvalue()
    assert "changes of less than 20 % in the cost of the core can't be seen" in out.getvalue()


@pytest.mark.usefixtures("no_times")
def test_check_tells_a_counter_that_differs(tmp_path: Path) -> None:
    path, out = tmp_path / "baseline.json", io.StringIO()
    assert check.check(write_baseline(path, frames__copied=1), file=out) == 1
    assert "reuse: frames.copied" in out.getvalue() and "-1" in out.getvalue()


@pytest.mark.usefixtures("no_times")
def test_check_tells_a_ratio_that_is_worse(tmp_path: Path) -> None:
    path, out = tmp_path / "baseline.json", io.StringIO()
    assert check.check(write_baseline(path, ratio=0.8), file=out) == 1
    assert "cow.copy" in out.getvalue() and "+25.0 %" in out.getvalue()


@pytest.mark.usefixtures("no_times")
def test_ratios_of_another_cpu_are_not_judged(tmp_path: Path) -> None:
    path, out = tmp_path / "baseline.json", io.StringIO()
    assert check.check(write_baseline(path, ratio=0.8, cpu="another one"), file=out) == 0
    assert "are of another CPU" in out.getvalue()


def test_the_committed_baseline(root: Path) -> None:
    """It has what the check reads, counters as integers, and is of workloads that exist."""
    path = root / "bench" / "baseline.json"
    baseline = json.loads(path.read_text())
    assert {"revision", "machine", "counters", "ratios"} <= baseline.keys()
    assert baseline["counters"].keys() == counted().keys()
    assert all(type(n) is int for one in baseline["counters"].values() for n in one.values())
