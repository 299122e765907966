"""PID/limits (proc_pid_limits())."""

from __future__ import annotations

from vmemu.limits import RLIM_INFINITY
from vmemu.procfs.subject import Subject

__all__ = ["limits"]

_NAMES = (
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
)


def limits(subject: Subject) -> bytes:
    """The file; of a zombie too."""
    lines = [_line("Limit", "Soft Limit", "Hard Limit", "Units")]
    for (name, unit), pair in zip(_NAMES, subject.limits.pairs, strict=True):
        soft, hard = ("unlimited" if value == RLIM_INFINITY else str(value) for value in pair)
        lines.append(_line(name, soft, hard, unit))
    return "".join(lines).encode()


def _line(name: str, soft: str, hard: str, unit: str) -> str:
    return f"{name:25} {soft:20} {hard:20} {f'{unit:10}' if unit else ''}\n"
