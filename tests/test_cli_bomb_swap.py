"""`vmemu bomb` with swap: every shape ends, what it shows, and a device that fails under it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from test_cli_bomb import as_json, bomb

from vmemu import SwapError
from vmemu.bombs import SHAPES, Ended
from vmemu.lab import explode
from vmemu.lab.page import result_page
from vmemu.swap import POLICIES

GROWING = ("classic", "waiting", "exponential", "touch", "exec")


def swap_file(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_ends(shape: str, tmp_path: Path) -> None:
    """Verified at the end, by run(); the same to the last event with the device in memory and in a file."""
    policy = POLICIES[list(SHAPES).index(shape) % len(POLICIES)]
    file = swap_file(tmp_path / "swap", 4 << 20)
    results = []
    for device in ({"swap": "4MiB"}, {"swap_file": str(file)}):
        machine = explode.boot("8MiB", policy=policy, **device)  # type: ignore[arg-type]
        results.append(explode.run(machine, shape, ticks=300, policy=policy))
    first, second = results
    assert first.digest == second.digest
    assert first.settings["swap"] == second.settings["swap"] == 4 << 20
    assert (first.settings["swap_file"], second.settings["swap_file"]) == (None, str(file))
    if shape in GROWING:
        assert first.samples["swap_used"].max() > 0
        assert first.bystander.major_faults > 0
        assert "swap used" in result_page(first)


def test_again_names_the_file(tmp_path: Path) -> None:
    file = swap_file(tmp_path / "a swap file", 2 << 20)
    arguments = ["--bomb", "touch", "--memory", "8MiB", "--swap-file", str(file), "--policy", "fifo", "--built-in"]
    text = bomb(*arguments).stdout
    assert "most swap used" in text
    line = re.search(r"Again: vmemu bomb (.*)", text)
    assert line and "--swap-file" in line[1]
    assert as_json(*shlex.split(line[1]))["digest"] == as_json(*arguments)["digest"]


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_device_fails_under_it(how: str, tmp_path: Path) -> None:
    """The run ends there, with what it has found so far."""
    file = swap_file(tmp_path / "swap", 8 << 20)
    gone = []

    def fail(machine: object, sample: object) -> None:
        if not gone and sample.swap_used > 1 << 20:  # type: ignore[attr-defined]
            gone.append(sample.tick)  # type: ignore[attr-defined]
            file.unlink() if how == "removed" else os.truncate(file, 0)

    machine = explode.boot("8MiB", swap_file=str(file))
    result = explode.run(machine, "touch", progress=fail)
    assert result.ended is Ended.SWAP
    assert result.ticks == len(result.samples) >= gone[0]
    assert str(file) in str(result.failure) and result.to_json()["failure"] == result.failure
    assert "the swap device failed" in result_page(result)


def test_device_fails_for_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    """What was found is printed, why it ended is one line, status 2."""
    from vmemu import cli

    file = swap_file(tmp_path / "swap", 8 << 20)
    run = explode.run

    def failing(machine: object, shape: str, **settings: object) -> object:
        def fail(machine: object, sample: object) -> None:
            if sample.swap_used > 1 << 20:  # type: ignore[attr-defined]
                os.truncate(file, 0)

        return run(machine, shape, **{**settings, "progress": fail})  # type: ignore[arg-type]

    monkeypatch.setattr(explode, "run", failing)
    status = cli.main(["bomb", "--bomb", "touch", "--memory", "8MiB", "--swap-file", str(file), "--built-in"])
    out, err = capsys.readouterr()  # type: ignore[attr-defined]
    assert status == 2
    assert "ended" in out and "the swap device failed" in out
    assert len(err.splitlines()) == 1 and "error: --swap-file: " in err and str(file) in err


def test_swap_error_is_a_value() -> None:
    import pickle

    error = SwapError(5, "swap: Input/output error (why)")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.errno, str(again)) == (SwapError, 5, str(error))
    assert isinstance(error, OSError)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--swap", "10"], "swap"),
        (["--swap", "-1"], "--swap"),
        (["--swap", "17TiB"], "16TiB"),
        (["--policy", "best"], "'best'"),
        (["--swap", "1MiB", "--policy", "opt"], "'opt'"),
        (["--swap-file", "FILE"], "error: --swap-file: "),
        (["--swap-file", "DIR"], "directory"),
        (["--swap-file", "DIR/none"], "No such file"),
        (["--swap", "1GiB", "--swap-file", "BIG"], "too small"),
    ],
)
def test_bad_arguments(arguments: list[str], word: str, tmp_path: Path) -> None:
    swap_file(tmp_path / "small", 30000)
    swap_file(tmp_path / "big", 1 << 20)
    names = {"FILE": str(tmp_path / "small"), "BIG": str(tmp_path / "big"), "DIR": str(tmp_path)}
    names["DIR/none"] = str(tmp_path / "none")
    found = bomb("--bomb", "classic", "--built-in", *[names.get(a, a) for a in arguments], status=2)
    assert word in found.stderr and len(found.stderr.splitlines()) == 1 and not found.stdout
