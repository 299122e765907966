"""The core without Python, of this tree and of the baseline's revision: instructions under callgrind, and times.

Both are compiled in the same run by the same compiler from driver.c and csrc/*.c, each revision with its own driver.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.native import BENCH, NoCompiler, compiled, compiler, scratch

__all__ = ["Blind", "Core", "count_instructions", "has_callgrind", "parse_callgrind", "revision", "times"]

ROOT = BENCH.parent
_FLAGS = ("-std=c11", "-pthread", "-DVMEMU_PORTABLE", "-falign-functions=64", "-falign-loops=32")
"""Aligned, so that code that has only moved takes the same time."""
_SOURCES = ("csrc", "bench/driver.c")


class Blind(Exception):
    """Something is missing without which small changes can't be seen; the message says what."""


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)


def revision() -> str:
    """The revision of the sources of the core here. Blind without git, or if they were changed since."""
    if shutil.which("git") is None or _git("rev-parse", "--show-toplevel").stdout.decode().strip() != str(ROOT):
        raise Blind("there is no git history here")
    if _git("status", "--porcelain", "--", *_SOURCES).stdout.strip():
        raise Blind("csrc/ or bench/driver.c has changes that are not committed")
    return _git("rev-parse", "HEAD").stdout.decode().strip()


class Core:
    """The driver, built from the working tree (*of* empty) or from a revision."""

    def __init__(self, of: str = "") -> None:
        self.program = scratch() / f"driver-{of[:12] or 'now'}"
        tree = ROOT
        if of:
            tree = scratch() / f"tree-{of[:12]}"
            self._extract(of, tree)
        driver = tree / "bench" / "driver.c"
        self._build(tree / "csrc", driver if driver.exists() else BENCH / "driver.c")

    @staticmethod
    def _extract(of: str, tree: Path) -> None:
        if shutil.which("git") is None or _git("cat-file", "-e", f"{of}^{{commit}}").returncode:
            raise Blind(f"the baseline's revision {of[:12]} is not in a git history here")
        tree.mkdir(parents=True, exist_ok=True)
        for part in _SOURCES:
            archive = _git("archive", of, "--", part)
            if not archive.returncode:  # a revision may be older than the driver
                subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)

    def _build(self, csrc: Path, driver: Path) -> None:
        objects = self.program.with_suffix(".objects")
        objects.mkdir()
        sources = [driver, *sorted(csrc.glob("*.c"))]

        def one(source: Path) -> Path:
            return compiled(objects / f"{source.stem}.o", *_FLAGS, f"-I{csrc}", "-c", source)

        with ThreadPoolExecutor() as pool:
            parts = list(pool.map(one, sources))
        done = subprocess.run([*compiler(), "-pthread", "-o", self.program, *parts], capture_output=True, check=False)
        if done.returncode:
            raise NoCompiler(f"linking the driver failed:\n{done.stderr.decode()}")

    def least(self, runs: int, name: str = "") -> dict[str, float]:
        """Scenario -> the least nanoseconds of *runs*."""
        done = subprocess.run(
            [self.program, "time", str(runs), *([name] if name else [])], capture_output=True, text=True, check=True
        )
        return {key: float(value) for key, value in map(str.split, done.stdout.splitlines())}


def has_callgrind() -> bool:
    """Valgrind is installed."""
    return shutil.which("valgrind") is not None


def count_instructions(core: Core) -> dict[str, int]:
    """Scenario -> instructions, counted by callgrind. Blind if it can't be run."""
    out = core.program.with_suffix(".callgrind")
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            "--toggle-collect=measure_*",
            core.program,
            "count",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not out.exists():
        raise Blind(f"callgrind can't be run: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return parse_callgrind(out.read_text(encoding="utf-8"))


def parse_callgrind(text: str) -> dict[str, int]:
    """Instructions inside each measure_NAME, callees included, of a profile that has no others."""
    names: dict[str, str] = {}
    found: dict[str, int] = {}
    current = ""
    for line in text.splitlines():
        if match := re.match(r"(c?)fn=\((\d+)\)(?: (.*))?", line):
            called, number, name = match.groups()
            if name:
                names[number] = name.strip()
            if not called:
                current = names[number]
        elif current.startswith("measure_") and (match := re.fullmatch(r"[+\-*\d]\S* (\d+)", line)):
            key = current.removeprefix("measure_")
            found[key] = found.get(key, 0) + int(match[1])
    return found


def times(old: Core, new: Core, names: list[str] | None = None, turns: int = 12, runs: int = 60) -> dict[str, float]:
    """Scenario -> time of *new* by that of *old*: the least of many short runs of both, which take turns."""
    least: list[dict[str, float]] = [{}, {}]
    for _ in range(turns):
        for one, core in zip(least, (old, new), strict=True):
            for name in names or [""]:
                for key, value in core.least(runs, name).items():
                    one[key] = min(value, one.get(key, value))
    return {key: least[1][key] / least[0][key] for key in least[0] if key in least[1]}
