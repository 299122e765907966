"""The command line, run as a command."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from children import wait_until_it_has_worked

COMMAND = [sys.executable, "-P", "-m", "vmemu"]


def vmemu(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    return done


def as_json(*arguments: str) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(vmemu(*arguments).stdout)
    return out


def test_help() -> None:
    assert "bomb" in vmemu().stdout
    for command in ("bomb", "exec", "compare"):
        assert command in vmemu("--help").stdout
        assert "PROGRAM" in vmemu(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explode"], "invalid choice: 'explode'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["bomb", "--nonsense"], "--nonsense"),
        (["bomb", "--memory", "lots"], "--memory: 'lots' is not a size"),
        (["bomb", "--memory", "0"], "--memory: 0 is less than 65536 bytes"),
        (["bomb", "--memory", "-1"], "--memory"),
        (["bomb", "--fork", "spoon"], "--fork: invalid choice: 'spoon'"),
        (["bomb", "--generations", "-1"], "--generations: -1 is less than 0"),
        (["bomb", "--generations", "2.5"], "--generations: '2.5' is not a whole number"),
        (["bomb", "--max-processes", "0"], "--max-processes: 0 is less than 1"),
        (["bomb", "--dirty", "-3"], "--dirty: -3 is less than 0"),
        (["bomb", "--seed"], "--seed: expected one argument"),
        (["bomb", "/no/such/program"], "/no/such/program: "),
        (["bomb", "no-such-program"], "no-such-program: "),
        (["bomb", ""], "No such file or directory"),
        (["bomb", "/etc"], "/etc: "),
        (["bomb", "/etc/passwd"], "/etc/passwd: "),
        (["exec"], "PROGRAM is missing"),
        (["exec", "--"], "PROGRAM is missing"),
        (["exec", "/no/such/program"], "/no/such/program: "),
        (["exec", "--memory", "64KiB", "/bin/sh"], "/bin/sh: does not fit"),
        (["compare", "--processes", "0"], "--processes: 0 is less than 1"),
        (["compare", "/no/such/program"], "/no/such/program: "),
        (["compare", "--memory", "64KiB"], "/bin/sh: does not fit"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], message: str) -> None:
    done = vmemu(*arguments, status=2)
    assert done.stdout == ""
    assert message in done.stderr
    assert re.fullmatch(r"vmemu( \w+)?: error: .*\n", done.stderr)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc, where nobody may make a directory")
def test_a_tree_that_cannot_be_written_is_no_fault_of_the_program() -> None:
    done = vmemu("bomb", "--memory", "8MiB", "--max-processes", "2", "--procfs", "/proc/tree", status=2)
    assert re.fullmatch(r"vmemu bomb: error: --procfs: export: .*\n", done.stderr)


@pytest.mark.parametrize("kind", ["empty", "text", "truncated"])
def test_not_a_program(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes({"empty": b"", "text": b"hello\n", "truncated": Path("/bin/sh").read_bytes()[:100]}[kind])
    file.chmod(0o755)
    assert str(file) in vmemu("bomb", str(file), status=2).stderr


def test_bomb_table() -> None:
    out = vmemu("bomb", "--memory", "32MiB").stdout
    for word in ("processes", "forks per second", "cow_copy", "frames shared", "page tables", "without copy-on-write"):
        assert word in out
    assert "stopped by" in out
    assert "no frame was left" in out


def test_bomb_default() -> None:
    """All of the default memory is used up by /bin/sh."""
    report = as_json("bomb", "--json")
    assert report["stopped"] == "memory"
    assert report["memory"] == 256 << 20
    assert report["program"] == "/bin/sh"
    assert report["processes"] > 1000


def test_program_gets_all_that_follows() -> None:
    report = as_json("bomb", "--generations", "1", "--json", "/bin/sh", "-c", ":", "--json", "--", "x")
    assert report["argv"] == ["/bin/sh", "-c", ":", "--json", "--", "x"]
    report = as_json("bomb", "--json", "--generations", "1", "--", "sh", "--", "-x")
    assert report["argv"] == ["sh", "--", "-x"]
    assert report["program"].endswith("/sh")


def test_json_is_alone_on_stdout() -> None:
    done = vmemu("bomb", "--json", "--generations", "3", "--fork", "on-demand", "--seed", "5")
    report = json.loads(done.stdout)
    assert done.stderr == ""
    assert (report["fork"], report["seed"], report["processes"]) == ("on-demand", 5, 8)


def test_exec_prints_the_mappings() -> None:
    out = vmemu("exec", "/bin/sh").stdout
    lines = out.splitlines()
    maps = lines[: lines.index("")]
    assert all(re.match(r"[0-9a-f]+-[0-9a-f]+ [r-][w-][x-][ps] [0-9a-f]{8} \w+:\w+ \d+", line) for line in maps)
    assert os.path.realpath("/bin/sh") in maps[0]
    assert maps[-1].endswith("[stack]")
    for word in ("anon", "file", "AT_PHDR", "AT_ENTRY", "AT_EXECFN", "stack pointer"):
        assert word in out


def test_exec_json() -> None:
    report = as_json("exec", "--json", "/bin/sh", "-c", ":")
    auxv = {entry["name"]: entry for entry in report["auxv"]}
    assert auxv["AT_EXECFN"]["text"] == "/bin/sh"
    assert auxv["AT_PAGESZ"]["value"] == 4096
    assert report["argv"] == ["/bin/sh", "-c", ":"]
    assert report["stack_pointer"] % 16 == 0
    assert report["maps"][0]["name"] == os.path.realpath("/bin/sh")
    assert report["rss"]["total"] == sum(report["rss"][kind] for kind in ("anon", "file", "shmem"))


def test_exec_link_maps_the_libraries() -> None:
    plain, linked = (as_json("exec", "--json", *option, "/bin/sh")["maps"] for option in ([], ["--link"]))
    libraries = {mapping["name"] for mapping in linked} - {mapping["name"] for mapping in plain}
    assert any("libc" in name for name in libraries)


def test_exec_aslr_follows_the_seed() -> None:
    def start(*options: str) -> int:
        return int(as_json("exec", "--json", *options, "/bin/sh")["maps"][0]["start"])

    assert start() == start("--seed", "1")
    assert start("--aslr", "--seed", "1") == start("--aslr", "--seed", "1") != start("--aslr", "--seed", "2")


def test_compare_table() -> None:
    out = vmemu("compare", "--processes", "10", "--repeat", "1").stdout
    for word in ("eager", "cow", "on-demand", "vfork", "time of a fork", "frames copied", "page tables", "cow_copy"):
        assert word in out


def test_compare_json() -> None:
    report = as_json("compare", "--json", "--processes", "10", "--repeat", "1")
    assert [cost["how"] for cost in report["costs"]] == ["eager", "cow", "on-demand", "vfork"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["exec", "/bin/sh"],
        ["exec", "--json", "/bin/sh"],
        ["bomb", "--generations", "2"],
        ["compare", "--memory", "16MiB", "/bin/true"],
        ["--help"],
        [],
    ],
)
def test_broken_pipe_is_quiet(arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "exec", "/bin/sh"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "vmemu: error: cannot write the output: No space left on device\n"


def test_names_that_are_not_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff[b]"
    shutil.copy("/bin/sh", name)
    done = subprocess.run([*COMMAND, "exec", name, b"\xfe"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(name) > 3
    assert (
        subprocess.run([*COMMAND, "bomb", "--generations", "1", name], capture_output=True, check=False).returncode == 0
    )


def test_interrupt_ends_with_the_report() -> None:
    command = [*COMMAND, "bomb", "--json", "--memory", "64GiB", "--max-processes", "100000000", "--fork", "on-demand"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until_it_has_worked(process.pid, 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == ""
    assert json.loads(out)["stopped"] == "interrupted"


def test_progress_only_on_a_terminal() -> None:
    """On a terminal the progress goes to stderr and leaves the JSON on stdout alone."""
    master, slave = pty.openpty()
    command = [*COMMAND, "bomb", "--json", "--memory", "64MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave) as process:
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
        out = process.communicate(timeout=60)[0]
    os.close(master)
    assert b"forks/s" in seen
    assert json.loads(out)["stopped"] == "memory"
    assert vmemu("bomb", "--memory", "32MiB").stderr == ""
