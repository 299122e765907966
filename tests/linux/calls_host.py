"""Carries out cases (`calls_cases`) on the kernel of this host: compiles calls_probe.c, feeds it, reads what it prints.

Needs x86-64 Linux and a C compiler, no library; root for the cases about privileges and locked memory.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

NUMBERS = {
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "pwrite": 18, "mremap": 25, "msync": 26, "mincore": 27,
    "madvise": 28, "ftruncate": 77, "setuid": 105, "mlock": 149, "munlock": 150, "mlockall": 151, "munlockall": 152,
    "remap_file_pages": 216, "mlock2": 325, "mseal": 462,
    "read": 1000, "write": 1001, "bytes": 1002, "setrlimit": 1003, "fork": 1004,
}  # fmt: skip
"""Calls by name; from 1000 on the probe's own."""
SCRATCH = 0x5C5C_5C5C_5C5C_000
"""As an argument: the address of the probe's own buffer."""
MASK = (1 << 64) - 1
_ADDR_NO_RANDOMIZE = 0x0040000
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)")

Step = tuple[str | int, ...]
"""A call's name and its arguments."""
Line = tuple[int, int, str, str]
"""A mapping: start, end, permissions as maps has them, VmFlags."""


@dataclasses.dataclass
class Seen:
    """What came of a case."""

    results: list[str]
    """For each step a number, an errno's name or a signal; fewer if the process died."""
    mappings: list[Line]
    sizes: dict[str, int]
    """VmSize, VmLck, VmData, VmStk in kB."""

    @property
    def died(self) -> bool:
        """The process was killed before the end of the case."""
        return bool(self.results) and self.results[-1].startswith("killed")


def why_not() -> str:
    """Why this host cannot be compared with; empty if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if os.geteuid() != 0:
        return "needs root, for what is privileged"
    if not shutil.which(os.environ.get("CC", "cc")):
        return "needs a C compiler"
    return ""


def build(directory: Path) -> Path:
    """Compiles the probe into *directory*. Raises RuntimeError with the compiler's words."""
    probe = directory / "calls_probe"
    command = [os.environ.get("CC", "cc"), "-std=gnu11", "-O1", "-static", "-no-pie", "-nostdlib", "-ffreestanding"]
    command += ["-fno-stack-protector", "-fcf-protection=none", "-o", str(probe)]
    command.append(str(Path(__file__).with_name("calls_probe.c")))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cannot build the probe: {done.stderr.strip()}")
    return probe


def _without_aslr() -> None:
    import ctypes

    ctypes.CDLL(None).personality(_ADDR_NO_RANDOMIZE)


def run(probe: Path, cases: Sequence[Sequence[Step]]) -> list[Seen]:
    """What this kernel makes of each case."""
    words = []
    for case in cases:
        words.append(len(case))
        for name, *arguments in case:
            numbers = [int(argument) & MASK for argument in arguments]
            words += [NUMBERS[str(name)], *numbers, *[0] * (6 - len(numbers))]
    done = subprocess.run(
        [probe, probe.parent],
        input=struct.pack(f"<{len(words)}Q", *words),
        capture_output=True,
        check=True,
        timeout=120,
        preexec_fn=_without_aslr,
    )
    seen = list(_parse(done.stdout.decode().splitlines()))
    assert len(seen) == len(cases)
    return seen


def _parse(lines: Sequence[str]) -> Iterator[Seen]:
    now = Seen([], [], {})
    inside = False
    started = False
    for line in lines:
        kind, _, rest = line.partition(" ")
        if inside:
            if line == "e":
                inside = False
            else:
                _look(now, line)
        elif line == "c":
            if started:
                yield now
            now, started = Seen([], [], {}), True
        elif line == "m":
            inside = True
        elif kind == "k":
            now.results.append(f"killed by {signal.Signals(int(rest)).name}")
        elif kind == "s":
            number, code = map(int, rest.split())
            now.results.append(f"{signal.Signals(number).name} {code}")
        elif kind == "r" and -4096 < int(rest) < 0:
            now.results.append(errno.errorcode[-int(rest)])
        else:
            now.results.append(str(int(rest) & MASK) if kind == "r" else rest)
    if started:
        yield now


def _look(now: Seen, line: str) -> None:
    if head := _HEAD.fullmatch(line):
        now.mappings.append((int(head[1], 16), int(head[2], 16), head[3], ""))
    elif line.startswith("VmFlags: "):
        start, end, perms, _ = now.mappings[-1]
        now.mappings[-1] = (start, end, perms, line[9:].strip())
    elif line.startswith(("VmSize:", "VmLck:", "VmData:", "VmStk:")):
        name, size, _ = line.split()
        now.sizes[name[:-1]] = int(size)
