"""`vmemu bomb` with shapes and defences, run as a command."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import commands
import pytest

from vmemu import Machine, bombs
from vmemu.bombs import SHAPES
from vmemu.cli_common import interrupt
from vmemu.lab.page import result_page
from vmemu.lab.verdicts import print_result

COMMAND = [*commands.COMMAND, "bomb"]


def bomb(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A matrix starts others and so wants a process that others can import."""
    return commands.vmemu("bomb", *arguments, status=status, apart="--matrix" in arguments)


def as_json(*arguments: str) -> dict[str, Any]:
    done = bomb("--json", *arguments)
    assert done.stderr == ""
    out: dict[str, Any] = json.loads(done.stdout)
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_every_bomb_ends_by_itself(shape: str) -> None:
    out = as_json("--bomb", shape, "--memory", "16MiB", "--built-in", "--ticks", "100")
    assert out["ended"] in ("memory", "ticks")
    assert out["settings"]["bomb"] == shape
    assert len(out["series"]["processes"]) == out["ticks"]


def test_same_command_same_result() -> None:
    arguments = ("--bomb", "classic", "--memory", "16MiB", "--seed", "4", "--dirty", "3")
    one = as_json(*arguments)
    assert one == as_json(*arguments)
    assert one["settings"]["program"] == "/bin/sh"
    assert one["digest"] != as_json(*arguments[:-4])["digest"]


def test_defences_and_limits() -> None:
    out = as_json("--bomb", "exponential", "--built-in", "--defence", "pids.max=64", "--defence", "protect")
    assert out["ended"] == "contained"
    assert out["peak_processes"] == 64
    assert out["refused"]["pids.max"] > 0
    assert out["settings"]["defences"] == ["pids.max=64", "protect"]
    assert as_json("--bomb", "linear", "--built-in", "--max-processes", "9")["ended"] == "max-processes"
    assert as_json("--bomb", "chain", "--built-in", "--generations", "5")["ended"] == "generations"
    assert as_json("--bomb", "chain", "--built-in", "--ticks", "7")["ticks"] == 7


def test_the_program_gets_what_follows() -> None:
    out = as_json("--bomb", "exec", "--ticks", "3", "--", "/bin/sh", "-c", ":")
    assert out["settings"]["argv"] == ["/bin/sh", "-c", ":"]


def test_table() -> None:
    out = bomb("--bomb", "classic", "--memory", "16MiB", "--defence", "nproc=20").stdout
    for word in (
        "classic bomb against nproc=20",
        "contained",
        "unharmed",
        "by nproc",
        "Again: vmemu bomb --bomb classic",
    ):
        assert word in out


def test_labels_are_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    result = bombs.classic(Machine(memory="16MiB", oom="kill"), defences=["nproc=20"], ticks=200).result
    narrow = Narrow()
    print_result(result, narrow)
    text = narrow.getvalue()
    for label in ("ended", "contained", "bystander", "peak processes", "forks", "killed", "least free memory"):
        assert re.search(rf"^{label}\b", text, re.MULTILINE), text


class Narrow(io.StringIO):
    """A terminal of 30 columns."""

    def isatty(self) -> bool:
        return True


def test_one_is_singular() -> None:
    result = bombs.classic(Machine(memory="16MiB", oom="kill"), ticks=3).result
    fate = dataclasses.replace(result.bystander, first_stall=2, stalls=1, major_faults=1)
    result = dataclasses.replace(result, bystander=fate)
    out = io.StringIO()
    print_result(result, out)
    assert "1 tick with stalls; 1 major fault\n" in re.sub(" +\n", "\n", out.getvalue())
    assert "stalled in 1 tick; 1 major fault<" in result_page(result)


def test_again_is_the_same_again() -> None:
    line = re.search(r"Again: vmemu bomb (.*)", bomb("--bomb", "touch", "--memory", "16MiB", "--built-in").stdout)
    assert line
    first = as_json("--bomb", "touch", "--memory", "16MiB", "--built-in")
    assert as_json(*line[1].split())["digest"] == first["digest"]


def test_report(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    bomb("--memory", "16MiB", "--report", str(file))
    assert "generation" in file.read_text()
    bomb("--bomb", "classic", "--memory", "16MiB", "--built-in", "--report", str(file))
    assert file.read_text().startswith("<!DOCTYPE html>")


def test_matrix(tmp_path: Path) -> None:
    file = tmp_path / "matrix.html"
    out = as_json("--matrix", "--memory", "8MiB", "--ticks", "20", "--report", str(file))
    assert len(out["results"]) == len(SHAPES) * len(out["defences"])
    assert "who survives" in file.read_text()


def test_procfs(tmp_path: Path) -> None:
    tree = tmp_path / "proc"
    bomb("--bomb", "linear", "--built-in", "--ticks", "5", "--procfs", str(tree))
    assert (tree / "meminfo").is_file()
    assert len([entry for entry in tree.iterdir() if entry.name.isdigit()]) == 8  # init, the service, six of the bomb


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bomb", "petard"], "--bomb: 'petard' is no bomb; there are classic, "),
        (["--bomb", "classic", "--defence", "prayer"], "--defence: 'prayer' is no defence; there are nproc, "),
        (["--bomb", "classic", "--defence", "nproc=-3"], "--defence: nproc: -3 is less than 1"),
        (["--bomb", "classic", "--defence", "nproc"], "--defence: nproc needs a value: nproc=N"),
        (["--bomb", "classic", "--defence", "nproc=3", "--defence", "nproc=4"], "nproc: 4 contradicts 3"),
        (["--bomb", "classic", "--defence", "memory.max=-1MiB"], "memory.max: -1MiB is negative"),
        (["--bomb", "classic", "--defence", "memory.max=1GiB"], "memory.max: 1073741824 bytes are more than"),
        (["--bomb", "classic", "--defence", "overcommit=7"], "overcommit: 7 is not one of 0, 1, 2"),
        (["--bomb", "classic", "--ticks", "0"], "--ticks: 0 is less than 1"),
        (["--bomb", "classic", "--swap", "-1"], "--swap"),
        (["--bomb", "classic", "--built-in", "/bin/sh"], "--built-in contradicts the program /bin/sh"),
        (["--bomb", "classic", "/no/such/program"], "/no/such/program: "),
        (["--bomb", "classic", "--memory", "64KiB"], "/bin/sh: does not fit"),
        (["--bomb", "classic", "--dirty", "99999999"], "dirty: 99999999 pages are more than"),
        (["--defence", "nproc=3"], "--defence needs --bomb or --matrix"),
        (["--ticks", "3"], "--ticks needs --bomb or --matrix"),
        (["--report", "/no/such/directory/x.html"], "--report: /no/such/directory/x.html: No such"),
        (["--matrix", "--bomb", "classic"], "no --bomb with it"),
        (["--matrix", "--defence", "protect"], "no --defence with it"),
        (["--matrix", "/bin/sh"], "no PROGRAM with it"),
        (
            ["--bomb", "classic", "--report", "/no/such/directory/x.html"],
            "--report: /no/such/directory/x.html: No such",
        ),
        (["--bomb", "classic", "--report", "-"], "--report: -: the page needs a file"),
        (["--report", ""], "--report: : No such file or directory"),
        (["--bomb", "classic", "--report", "/"], "--report: /: Is a directory"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str) -> None:
    done = bomb(*arguments, status=2)
    assert done.stdout == ""
    assert message in done.stderr
    assert re.fullmatch(r"vmemu bomb: error: .*\n", done.stderr)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_report_that_cannot_be_written_loses_nothing() -> None:
    done = bomb("--bomb", "linear", "--built-in", "--ticks", "3", "--report", "/dev/full", status=1)
    assert "linear bomb" in done.stdout
    assert done.stderr == "vmemu bomb: error: --report: /dev/full: No space left on device\n"


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    "arguments", [["--bomb", "waiting", "--memory", "4GiB", "--built-in"], ["--matrix", "--memory", "512MiB"]]
)
def test_interrupt_ends_with_the_report(arguments: list[str], times: int, tmp_path: Path) -> None:
    """However often it is asked to in quick succession."""
    file = tmp_path / "report.html"
    command = [*COMMAND, "--json", "--ticks", "100000", "--max-processes", "1000000", "--report", str(file), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        commands.wait_until_busy(process.pid, 2.5 if "--matrix" in arguments else 1.0)
        for i in range(times):
            time.sleep(0.02 * bool(i))
            os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
        out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert err == ""
    report = json.loads(out)
    assert report["interrupted"] if "results" in report else report["ended"] == "interrupted"
    assert file.read_text().endswith("</html>\n")


def test_another_interrupt_a_second_later_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt() as asked:
        assert not asked()
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            assert asked()
        now[0] += 1.5
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bomb", "waiting", "--memory", "16MiB", "--built-in"], (b"faults/s", b"bystander", b"free of")),
        (["--matrix", "--memory", "8MiB", "--ticks", "5"], (b" of 64",)),
    ],
)
def test_live_view_only_on_a_terminal(arguments: list[str], words: tuple[bytes, ...], tmp_path: Path) -> None:
    master, slave = pty.openpty()
    out = tmp_path / "out.json"  # larger than a pipe
    with (
        open(out, "wb") as file,
        subprocess.Popen([*COMMAND, "--json", *arguments], stdout=file, stderr=slave) as process,
    ):
        os.close(slave)
        seen = b""
        while select.select([master], [], [], 60)[0]:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # the terminal's last user is gone
                break
            if not chunk:
                break
            seen += chunk
        assert process.wait(60) == 0
    os.close(master)
    for word in words:
        assert word in seen
    json.loads(out.read_text())
    assert bomb(*arguments).stderr == ""
