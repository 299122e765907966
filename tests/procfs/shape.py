"""Shapes of files of /proc: the text with its numbers taken out, the room that they take kept where it is fixed."""

from __future__ import annotations

import re
from pathlib import Path

from machines import PAGE

from vmemu import Machine, Process

_PADDED = 8
"""Numbers in columns are at least this wide, blanks included."""


def shape(text: bytes) -> list[bytes]:
    """Lines with numbers as #, those in columns with their width."""

    def number(found: re.Match[bytes]) -> bytes:
        wide = len(found[0]) >= _PADDED and found[1]
        return b"#%d" % len(found[0]) if wide else found[1] + b"#"

    return [re.sub(rb"( *)(\d+)", number, line) for line in text.splitlines(keepends=True)]


def host(path: str) -> bytes:
    """A file of this host's /proc."""
    return Path("/proc", path).read_bytes()


def values(text: bytes) -> dict[str, int]:
    """The kB lines (in bytes) and the plain numbers of a file of `Key: value` lines."""
    out = {}
    for line in text.decode().splitlines():
        key, _, value = line.partition(":")
        number = value.strip().removesuffix(" kB")
        if number.isdigit():
            out[key] = int(number) * (1024 if value.endswith("kB") else 1)
    return out


def status(m: Machine, p: Process) -> dict[str, int]:
    """Numbers of PID/status."""
    return values(m.procfs.read(f"{p.pid}/status"))


def pages(nbytes: int) -> int:
    """Bytes as pages, exactly."""
    assert nbytes % PAGE == 0
    return nbytes // PAGE
