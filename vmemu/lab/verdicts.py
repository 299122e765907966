"""Results of `vmemu.bombs` as text for people: one bomb, or the table of all."""

from __future__ import annotations

import shlex
import sys
from typing import IO

from rich.table import Table
from rich.text import Text

from vmemu.bombs import KINDS, Ended, Result
from vmemu.lab.console import Console
from vmemu.lab.film import GENERATIONS
from vmemu.lab.matrix import Matrix
from vmemu.lab.tables import size
from vmemu.types import size_word

__all__ = ["ENDED", "ENDED_GENERATIONS", "STYLES", "command", "counted", "print_matrix", "print_result", "short"]

ENDED = {
    Ended.CONTAINED: "a limit holds it, or it is dead, and nobody else is hurt any more",
    Ended.MEMORY: "no memory was left, again and again",
    Ended.TICKS: "the time was over",
    Ended.MAX_PROCESSES: "the limit of the experiment was reached",
    Ended.GENERATIONS: "the limit of the experiment was reached",
    Ended.PIDS: "no pid was free",
    Ended.INTERRUPTED: "Ctrl-C",
    Ended.SWAP: "the swap device failed",
}
ENDED_GENERATIONS = {**ENDED, Ended.MEMORY: "no frame was left"}
"""Of a bomb without an OOM killer."""
_WIDE = 130
"""Columns of a terminal that has room for the table."""
_LABEL = len("least free memory")
"""Columns of the widest label: values wrap on a narrow terminal, labels do not."""
_NARROW = 60
"""Below so many, what there is to say of a value shares its column."""
STYLES = {"unharmed": "green", "stalled": "yellow", "killed": "red"}


def _console(file: IO[str] | None) -> Console:
    out = file or sys.stdout
    return Console(file=out, highlight=False, markup=False, emoji=False, width=None if out.isatty() else 160)


def command(result: Result) -> str:
    """The command line that gives the same result."""
    settings = result.settings
    words = ["vmemu bomb"]
    if result.shape != GENERATIONS:
        words += [f"--bomb {result.shape}", *(f"--defence {word}" for word in settings["defences"])]
    words += [f"--memory {size_word(settings['memory'])}"]
    if settings["swap"]:
        words.append(f"--swap {size_word(settings['swap'])}")
    if settings.get("swap_file"):
        words.append(f"--swap-file {shlex.quote(settings['swap_file'])}")
    if settings.get("policy"):
        words.append(f"--policy {settings['policy']}")
    if settings["fork"] not in (None, "cow"):
        words.append(f"--fork {settings['fork']}")
    words += [f"--{name} {settings[name]}" for name in ("ticks", "dirty", "seed") if name in settings]
    words.append(f"--max-processes {settings['max_processes']}")
    if settings["generations"] is not None:
        words.append(f"--generations {settings['generations']}")
    words.append("--built-in" if settings["program"] is None else " ".join(settings["argv"] or [settings["program"]]))
    return " ".join(words)


def print_result(result: Result, file: IO[str] | None = None) -> None:
    """What `vmemu bomb --bomb SHAPE` prints in the end."""
    console = _console(file)
    defences = ", ".join(result.settings["defences"]) or "no defence"
    console.print(f"{result.shape} bomb against {defences}, {size(result.settings['memory'])} of RAM", style="bold")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=_LABEL)
    narrow = console.width < _NARROW
    table.add_column(justify="left" if narrow else "right", overflow="fold")
    if not narrow:
        table.add_column(style="dim", overflow="fold")

    def row(label: str, value: str | Text, note: str) -> None:
        if narrow:
            table.add_row(label, Text.assemble(value, (f" {note}", "dim")) if note else value)
        else:
            table.add_row(label, value, note)

    row("ended", result.ended.value, f"tick {result.ticks:,}: {ENDED[result.ended]}")
    contained = "never" if result.contained_at is None else f"tick {result.contained_at:,}"
    row("contained", contained, "a tick is a turn of each process, 10 ms")
    fate = result.bystander
    row("bystander", Text(fate.verdict, STYLES[fate.verdict]), _suffered(result))
    row("peak processes", f"{result.peak_processes:,}", f"tick {result.peak_tick:,}")
    row("forks", f"{result.forks:,}", "")
    for why, count in result.refused.items():
        if count:
            row("  refused", f"{count:,}", f"by {why}")
    row("killed", f"{result.kills:,}", f"of the bomb; by the OOM killer of all {result.oom_kills:,}")
    if len(result.samples):
        last = result.samples[-1]
        row("faults", f"{sum(int(last[kind]) for kind in KINDS):,}", "")
        for kind in KINDS:
            if last[kind]:
                row(f"  {kind}", f"{int(last[kind]):,}", "")
        free = int(result.samples["free"].min())
        row("least free memory", size(free), f"of {size(result.settings['memory'])}")
        if result.settings["swap"]:
            used = int(result.samples["swap_used"].max())
            row("most swap used", size(used), f"of {size(result.settings['swap'])}")
    console.print(table)
    console.print(f"\nAgain: {command(result)}", style="dim", soft_wrap=True)


def counted(count: int, what: str) -> str:
    """``"1 tick"``, ``"2 ticks"``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _suffered(result: Result) -> str:
    fate = result.bystander
    parts = []
    if fate.first_stall is not None:
        parts.append(f"first stall in tick {fate.first_stall:,}, {counted(fate.stalls, 'tick')} with stalls")
    if fate.major_faults:
        parts.append(counted(fate.major_faults, "major fault"))
    if fate.killed_at is not None:
        parts.append(f"killed in tick {fate.killed_at:,}")
    return "; ".join(parts) or "no stall, no major fault"


def short(result: Result) -> tuple[str, str, str]:
    """A cell of the matrix: what became of the bystander, what of the bomb, how large it was."""
    fate = result.bystander
    if fate.killed_at is not None:
        first = f"killed @{fate.killed_at}"
    else:
        first = "unharmed" if fate.first_stall is None else f"stalled @{fate.first_stall}"
    why = {Ended.MEMORY: "memory gone", Ended.TICKS: "goes on"}.get(result.ended, result.ended.value)
    bomb = why if result.contained_at is None else f"held @{result.contained_at}"
    return first, bomb, f"peak {result.peak_processes:,}"


def print_matrix(matrix: Matrix, file: IO[str] | None = None) -> None:
    """What `vmemu bomb --matrix` prints: rows are bombs, columns defences."""
    console = _console(file)
    memory, ticks = size(matrix.settings["memory"]), matrix.settings["ticks"]
    console.print(f"Who survives: {memory} of RAM, {ticks:,} ticks; the bystander, below it the bomb\n", style="bold")
    if console.width < _WIDE:
        _list(matrix, console)
    else:
        table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False)
        table.add_column("", no_wrap=True)
        for defence in matrix.defences:
            table.add_column(defence.name, no_wrap=True)
        for shape in matrix.shapes:
            cells = [_cell(matrix.results.get((shape, defence.name))) for defence in matrix.defences]
            table.add_row(Text(shape, "bold"), *cells)
        console.print(table)
    console.print(
        "@: in that tick. held: the bomb is dead, or as large as it gets and nobody else is hurt.", style="dim"
    )
    names = "; ".join(f"{one.name}: {', '.join(one.defences.words)}" for one in matrix.defences if one.name == "all")
    console.print(names, style="dim")


def _cell(result: Result | None) -> Text:
    if result is None:
        return Text("-", "dim")
    fate, bomb, peak = short(result)
    return Text.assemble((fate, STYLES[result.bystander.verdict]), (f"\n{bomb}\n{peak}", "dim"))


def _list(matrix: Matrix, console: Console) -> None:
    """The same for a narrow terminal: a line for each run."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("bomb", "defence", "bystander", "the bomb", ""):
        table.add_column(name, no_wrap=True)
    for (shape, defence), result in matrix.results.items():
        fate, bomb, peak = short(result)
        style = STYLES[result.bystander.verdict]
        table.add_row(Text(shape, "bold"), defence, Text(fate, style), Text(bomb, "dim"), Text(peak, "dim"))
    console.print(table)
