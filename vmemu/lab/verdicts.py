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

__all__ = ["ENDED", "ENDED_GENERATIONS", "STYLES", "command", "print_matrix", "print_result", "short"]

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
    if settings["fork"]:
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
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    table.add_row("ended", result.ended.value, f"tick {result.ticks:,}: {ENDED[result.ended]}")
    contained = "never" if result.contained_at is None else f"tick {result.contained_at:,}"
    table.add_row("contained", contained, "a tick is a turn of each process, 10 ms")
    fate = result.bystander
    table.add_row("bystander", Text(fate.verdict, STYLES[fate.verdict]), _suffered(result))
    table.add_row("peak processes", f"{result.peak_processes:,}", f"tick {result.peak_tick:,}")
    table.add_row("forks", f"{result.forks:,}", "")
    for why, count in result.refused.items():
        if count:
            table.add_row("  refused", f"{count:,}", f"by {why}")
    table.add_row("killed", f"{result.kills:,}", f"of the bomb; by the OOM killer of all {result.oom_kills:,}")
    if len(result.samples):
        last = result.samples[-1]
        table.add_row("faults", f"{sum(int(last[kind]) for kind in KINDS):,}", "")
        for kind in KINDS:
            if last[kind]:
                table.add_row(f"  {kind}", f"{int(last[kind]):,}", "")
        free = int(result.samples["free"].min())
        table.add_row("least free memory", size(free), f"of {size(result.settings['memory'])}")
        if result.settings["swap"]:
            used = int(result.samples["swap_used"].max())
            table.add_row("most swap used", size(used), f"of {size(result.settings['swap'])}")
    console.print(table)
    console.print(f"\nAgain: {command(result)}", style="dim", soft_wrap=True)


def _suffered(result: Result) -> str:
    fate = result.bystander
    parts = []
    if fate.first_stall is not None:
        parts.append(f"first stall in tick {fate.first_stall:,}, {fate.stalls:,} ticks with stalls")
    if fate.major_faults:
        parts.append(f"{fate.major_faults:,} major faults")
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
