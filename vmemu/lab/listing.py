"""Prints processes for people: `vmemu ps` and `vmemu top`, with the columns and the units of their namesakes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any

from rich.text import Text

from vmemu.lab.console import Console
from vmemu.lab.processes import ProcessRow, Snapshot

__all__ = [
    "COLUMNS",
    "PS_COLUMNS",
    "TOP_COLUMNS",
    "Unknown",
    "columns",
    "forest",
    "ordered",
    "print_ps",
    "print_top",
    "top_rows",
]

_PIPED = 1 << 20
"""Width where nobody cuts lines: a file or a pipe."""


_TOP_LINES = 9
"""Of top without its processes: the summary, a blank line, the heads, and the prompt that comes after."""


class Unknown(ValueError):
    """There is no such column."""


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column: how ps heads it, how top does, and how a process fills it."""

    ps: str
    top: str
    value: Callable[[ProcessRow, Snapshot], Any]
    """What it is ordered by."""
    show: Callable[[Any], str] = str
    right: bool = True


def _kilobytes(nbytes: int | None) -> str:
    return "-" if nbytes is None else str(nbytes >> 10)


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _known(value: object) -> str:
    return "-" if value is None else str(value)


def _share(row: ProcessRow, snapshot: Snapshot) -> float:
    return 100 * row.rss / snapshot.memory.total if snapshot.memory.total else 0.0


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


COLUMNS = {
    "pid": Column("PID", "PID", lambda p, _: p.pid),
    "ppid": Column("PPID", "PPID", lambda p, _: p.ppid),
    "user": Column("USER", "USER", lambda p, _: p.user, right=False),
    "uid": Column("UID", "UID", lambda p, _: p.uid),
    "%mem": Column("%MEM", "%MEM", _share, _percent),
    "vsz": Column("VSZ", "VIRT", lambda p, _: p.vsz, _kilobytes),
    "rss": Column("RSS", "RES", lambda p, _: p.rss, _kilobytes),
    "shr": Column("SHR", "SHR", lambda p, _: p.shr, _kilobytes),
    "pss": Column("PSS", "PSS", lambda p, _: p.pss, _kilobytes),
    "uss": Column("USS", "USS", lambda p, _: p.uss, _kilobytes),
    "swap": Column("SWAP", "SWAP", lambda p, _: p.swap, _kilobytes),
    "stat": Column("STAT", "S", lambda p, _: p.state, right=False),
    "minflt": Column("MINFLT", "nMin", lambda p, _: p.minflt),
    "majflt": Column("MAJFLT", "nMaj", lambda p, _: p.majflt),
    "oom": Column("OOM", "OOMs", lambda p, _: p.oom_score, _known),
    "oomadj": Column("OOMADJ", "OOMa", lambda p, _: p.oom_score_adj, _known),
    "etime": Column("ELAPSED", "ELAPSED", lambda p, s: max(0.0, s.uptime_seconds - p.start_seconds), _span),
    "comm": Column("COMMAND", "COMMAND", lambda p, _: p.name, right=False),
    "args": Column("COMMAND", "COMMAND", lambda p, _: p.args, right=False),
}
_ALSO = {"virt": "vsz", "res": "rss", "rsz": "rss", "s": "stat", "state": "stat", "euid": "uid", "euser": "user"}
_ALSO |= {"cmd": "args", "command": "args", "ucmd": "comm", "pmem": "%mem", "mem": "%mem", "min_flt": "minflt"}
_ALSO |= {"maj_flt": "majflt", "nmin": "minflt", "nmaj": "majflt", "oom_score": "oom", "oom_score_adj": "oomadj"}
PS_COLUMNS = ("user", "pid", "ppid", "%mem", "vsz", "rss", "pss", "stat", "args")
TOP_COLUMNS = ("pid", "user", "vsz", "rss", "shr", "pss", "stat", "%mem", "minflt", "majflt", "comm")


def columns(names: str) -> list[str]:
    """Columns from a list with commas or blanks, by any of the names that ps and top have for them. Raises Unknown."""
    found = []
    for name in names.replace(",", " ").lower().split():
        column = _ALSO.get(name, name)
        if column not in COLUMNS:
            raise Unknown(f"{name!r} is no column; there are {', '.join(COLUMNS)}")
        found.append(column)
    if not found:
        raise Unknown("no column is named")
    return found


def ordered(snapshot: Snapshot, keys: str, *, falling: bool = False) -> list[ProcessRow]:
    """Processes by one or more columns, ``-rss,pid``: - begins with the largest, + with the smallest; without a sign
    *falling* decides. Raises Unknown."""
    rows = list(snapshot.processes)
    for key in reversed(keys.replace(",", " ").split()):
        down = key[0] == "-" or (falling and key[0] != "+")
        value = COLUMNS[columns(key.lstrip("+-"))[0]].value
        rows.sort(key=lambda row, value=value: _sortable(value(row, snapshot)), reverse=down)  # type: ignore[misc]
    return rows


def _sortable(value: Any) -> tuple[bool, Any]:
    return value is not None, 0 if value is None else value


def forest(rows: Sequence[ProcessRow]) -> list[ProcessRow]:
    """Children below their parents, their command lines indented as ps --forest does."""
    below: dict[int, list[ProcessRow]] = {}
    known = {row.pid for row in rows}
    for row in rows:
        below.setdefault(row.ppid if row.ppid in known and row.ppid != row.pid else 0, []).append(row)
    out: list[ProcessRow] = []
    waiting = [(row, "", "") for row in reversed(below.get(0, []))]
    while waiting:
        row, here, indent = waiting.pop()
        out.append(dataclasses.replace(row, args=here + row.args, name=here + row.name))
        kids = below.get(row.pid, [])
        last = kids[-1] if kids else None
        waiting += [(kid, f"{indent} \\_ ", indent + ("    " if kid is last else " |  ")) for kid in reversed(kids)]
    return out


def print_ps(
    snapshot: Snapshot,
    rows: Sequence[ProcessRow],
    names: Sequence[str],
    heads: bool = True,
    file: IO[str] | None = None,
) -> None:
    """The table of `vmemu ps`; lines are cut at the width of a terminal."""
    console, width = _console(file)
    _table(console, width, snapshot, rows, names, [COLUMNS[name].ps for name in names] if heads else None)


def top_rows() -> int:
    """Processes for which the terminal has lines below the summary."""
    return max(1, Console().height - _TOP_LINES)


def print_top(
    snapshot: Snapshot,
    rows: Sequence[ProcessRow],
    names: Sequence[str] = TOP_COLUMNS,
    whole: bool = False,
    file: IO[str] | None = None,
) -> None:
    """The summary and the table of `vmemu top`; lines are cut at the width of a terminal, unless *whole*."""
    console, width = _console(file)
    width = _PIPED if whole else width
    memory, number = snapshot.memory, len(snapshot.processes)
    _line(console, width, f"top - up {_span(snapshot.uptime_seconds)}, {snapshot.source}")
    states = (("running", "R"), ("sleeping", "SDI"), ("stopped", "Tt"), ("zombie", "Z"))
    counts = ", ".join(f"{snapshot.states(letters):3} {name}" for name, letters in states)
    _line(console, width, f"Tasks: {number:3} total, {counts}")

    def line(head: str, *parts: tuple[int, str]) -> None:
        values = ", ".join(f"{nbytes / (1 << 20):8.1f} {what}" for nbytes, what in parts)
        _line(console, width, f"{head}:{values}")

    line("MiB Mem ", *((memory.total, "total"), (memory.free, "free"), (memory.used, "used"), (memory.cached, "cache")))
    swapped = memory.swap_total - memory.swap_free
    line("MiB Swap", *((memory.swap_total, "total"), (memory.swap_free, "free"), (swapped, "used")))
    line("MiB used", *((memory.anon, "anon"), (memory.shmem, "shmem"), (memory.page_tables, "tables")))
    line("MiB commit", (memory.committed, "committed"), (memory.commit_limit, "limit"))
    console.print()
    _table(console, width, snapshot, rows, names, [COLUMNS[name].top for name in names])


def _console(file: IO[str] | None) -> tuple[Console, int]:
    out = file or sys.stdout
    console = Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
    return console, console.width if out.isatty() else _PIPED


def _line(console: Console, width: int, text: str, style: str = "") -> None:
    console.print(Text(text[:width].rstrip(), style=style), soft_wrap=True)


def _table(
    console: Console,
    width: int,
    snapshot: Snapshot,
    rows: Sequence[ProcessRow],
    names: Sequence[str],
    heads: Sequence[str] | None,
) -> None:
    picked = [COLUMNS[name] for name in names]
    lines = [[column.show(column.value(row, snapshot)) for column in picked] for row in rows]
    lines = [[_printable(cell) for cell in line] for line in lines]
    widths = [
        max((len(cell) for cell in cells), default=0) for cells in zip(*lines, *([heads] if heads else []), strict=True)
    ]
    for line, style in [*([(heads, "bold")] if heads else []), *((line, "") for line in lines)]:
        cells = [
            cell.rjust(wide) if column.right else cell.ljust(wide)
            for cell, wide, column in zip(line, widths, picked, strict=True)
        ]
        _line(console, width, " ".join(cells), style)


def _printable(text: str) -> str:
    """Control characters would move the cursor."""
    return "".join(char if char.isprintable() or char == " " or "\udc80" <= char <= "\udcff" else "?" for char in text)
