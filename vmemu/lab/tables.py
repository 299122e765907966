"""Renders the records of report.py as text for people. rich is imported here only, and this only when it is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import IO

from rich.live import Live
from rich.table import Table
from rich.text import Text

from vmemu.lab.console import Console
from vmemu.lab.report import BombReport, CompareReport, ExecReport, ForkCost, Generation, Stopped
from vmemu.types import PAGE_SIZE, FaultCounts, fork_word

__all__ = ["BombProgress", "print_bomb", "print_compare", "print_exec", "size", "span"]

_WHY = {
    Stopped.MEMORY: "no frame was left",
    Stopped.GENERATIONS: "the limit was reached",
    Stopped.MAX_PROCESSES: "the limit was reached",
    Stopped.PIDS: "no pid was free",
    Stopped.INTERRUPTED: "Ctrl-C",
    Stopped.DONE: "",
}


def size(nbytes: int) -> str:
    """Bytes for reading: ``"12.3 MiB"``."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"


def span(seconds: float) -> str:
    """A time for reading, from nanoseconds to seconds: ``"12.3 ms"``."""
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _pairs() -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    return table


def _count(value: int) -> str:
    return f"{value:,}"


def _fault_rows(faults: FaultCounts) -> list[tuple[str, int]]:
    return [(kind, count) for kind, count in faults.as_dict().items() if count and kind != "none"]


_MEANING = {
    "spurious": "only a shared page table was in the way",
    "zero_map": "first read of anonymous memory: the zero page",
    "zero_fill": "first write to anonymous memory",
    "file_minor": "page of a file, in the page cache",
    "file_major": "page of a file, read from the host",
    "shm_fill": "first touch of shared memory",
    "cow_copy": "write to a shared frame: copied",
    "cow_reuse": "write by the last owner: nothing copied",
    "swap_in": "page read from swap",
    "oom": "refused: no frame was left",
}


def _console(file: IO[str] | None) -> Console:
    out = file or sys.stdout
    return Console(file=out, highlight=False, markup=False, emoji=False, width=None if out.isatty() else 120)


def print_bomb(report: BombReport, file: IO[str] | None = None) -> None:
    """The table at the end of `vmemu bomb`."""
    console = _console(file)
    command = " ".join(report.argv)
    console.print(f"Fork bomb of {command}: {fork_word(report.fork)} fork, {size(report.memory)} of RAM", style="bold")
    table = _pairs()
    table.add_row("stopped by", report.stopped.value, _WHY[report.stopped])
    complete = f"after {report.generations} complete generations" if report.processes else "the program did not fit"
    table.add_row("processes", _count(report.processes), complete)
    prediction = report.predicted()
    if prediction is not None and prediction[1]:
        fit, each, generation = prediction
        table.add_row("  predicted", _count(fit), f"at {size(round(each))} a process, as after generation {generation}")
    table.add_row(
        "forks per second", f"{report.forks_per_s:,.0f}", f"{_count(report.forks)} forks in {span(report.seconds)}"
    )
    table.add_row("faults", _count(report.faults.total), "")
    for kind, count in _fault_rows(report.faults):
        table.add_row(f"  {kind}", _count(count), _MEANING.get(kind, ""))
    table.add_row("frames shared", _count(report.frames_shared), f"mapped more than once, {size(PAGE_SIZE)} each")
    table.add_row("frames copied", _count(report.frames_copied), size(report.frames_copied * PAGE_SIZE))
    table.add_row("page tables", size(report.page_table_bytes), _each(report.page_table_bytes, report.processes))
    table.add_row("private memory", size(report.anon_bytes), _each(report.anon_bytes, report.processes))
    table.add_row("page cache", size(report.file_bytes), "in RAM once for all processes")
    table.add_row("RAM in use", size(report.used_bytes), f"of {size(report.memory)}")
    ratio = f"{report.eager_bytes / report.used_bytes:.1f} times as much" if report.used_bytes else ""
    table.add_row("without copy-on-write", size(report.eager_bytes), ratio)
    console.print(table)


def _each(nbytes: int, processes: int) -> str:
    return f"{size(nbytes // processes)} a process" if processes else ""


class BombProgress:
    """The line on a terminal that tells how far a fork bomb is; a context manager that gives the function to call."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.live = Live(console=Console(stderr=True), transient=True, refresh_per_second=10)

    def __enter__(self) -> Callable[[Generation], None]:
        self.live.start()
        return self.update

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def update(self, state: Generation) -> None:
        """Show *state*."""
        width = 10
        filled = min(width, round(width * state.used_bytes / self.memory))
        rate = state.forks / state.seconds if state.seconds > 0 else 0
        line = Text.assemble(
            ("gen ", "dim"), f"{state.number:2d}", f"{state.processes:8,d}", (" processes", "dim"),
            f"{rate:8,.0f}", (" forks/s  ", "dim"), ("#" * filled, "green"), ("." * (width - filled), "dim"),
            f"  {size(state.used_bytes)} of {size(self.memory)}",
        )  # fmt: skip
        self.live.update(line)


def print_exec(report: ExecReport, file: IO[str] | None = None) -> None:
    """The output of `vmemu exec`: mappings as the kernel prints them, resident memory by kind, the auxiliary vector."""
    out = file or sys.stdout
    out.write(report.maps_text)
    console = _console(out)
    console.print(f"\nResident memory of pid {report.pid}", style="bold")
    table = Table(box=None)
    for name in ("kind", "RSS", "PSS"):
        table.add_column(name, justify="left" if name == "kind" else "right", no_wrap=True)
    for kind in ("anon", "file", "shmem"):
        table.add_row(kind, size(getattr(report.rss, kind)), size(getattr(report.pss, kind)))
    table.add_row("total", size(report.rss.total), size(report.pss.total), style="bold")
    table.add_row("page tables", size(report.page_table_bytes), "", style="dim")
    console.print(table)
    console.print("\nAuxiliary vector", style="bold")
    aux = Table(box=None)
    aux.add_column("type", justify="right", no_wrap=True)
    aux.add_column("name", no_wrap=True)
    aux.add_column("value", justify="right", no_wrap=True)
    aux.add_column("")
    for number, name, value, text in report.auxv:
        aux.add_row(str(number), name, f"{value:#x}" if value > 9 else str(value), text)
    console.print(aux)
    console.print(f"\nstack pointer {report.stack_pointer:#x}, entry point {report.entry_point:#x}")


def print_compare(report: CompareReport, file: IO[str] | None = None) -> None:
    """The table of `vmemu compare`: a row for each quantity, a column for each way, with its ratio to cow beside it."""
    console = _console(file)
    command = " ".join(report.argv)
    console.print(
        f"{report.processes} children of {command} ({size(report.resident_bytes)} resident), "
        f"each writes {report.dirty} pages; {size(report.memory)} of RAM\n",
        style="bold",
    )
    table = Table(box=None, padding=(0, 1, 0, 0), collapse_padding=True)
    table.add_column("", no_wrap=True)
    for cost in report.costs:
        table.add_column(cost.how, justify="right", no_wrap=True)
        if cost.how != "cow":
            table.add_column("/cow", justify="right", no_wrap=True, style="dim")
    cow = next(cost for cost in report.costs if cost.how == "cow")

    def row(name: str, value: Callable[[ForkCost], float], show: Callable[[float], str]) -> None:
        cells = []
        for cost in report.costs:
            cells.append(show(value(cost)))
            if cost is not cow:
                cells.append(_ratio(value(cost), value(cow)) if name != "children" else "")
        table.add_row(name, *cells)

    def whole(value: float) -> str:
        return f"{value:,.0f}"

    def each(total: float, cost: ForkCost) -> float:
        return total / cost.processes if cost.processes else 0.0

    row("children", lambda cost: cost.processes, whole)
    row("time of a fork", lambda cost: each(cost.fork_seconds, cost), span)
    row("time of its writes", lambda cost: each(cost.write_seconds, cost), span)
    row("time of its exit", lambda cost: each(cost.exit_seconds, cost), span)
    row("frames taken", lambda cost: cost.frames_used, whole)
    row("frames shared", lambda cost: cost.frames_shared, whole)
    row("frames copied", lambda cost: cost.frames_copied, whole)
    row("page tables", lambda cost: cost.page_table_bytes, lambda value: size(int(value)))
    row("faults", lambda cost: cost.faults.total, whole)
    kinds = dict.fromkeys(kind for cost in report.costs for kind, _ in _fault_rows(cost.faults))
    for kind in kinds:
        row(f"  {kind}", lambda cost, kind=kind: getattr(cost.faults, kind), whole)  # type: ignore[misc]
    console.print(table)
    console.print(
        "\nvfork: the child borrows the parent's memory and only exits; it can't write pages of its own.", style="dim"
    )
    for cost in report.costs:
        if cost.stopped is Stopped.MEMORY:
            console.print(f"{cost.how}: memory was gone after {cost.processes} children.", style="yellow")


def _ratio(value: float, base: float) -> str:
    if not base:
        return "" if not value else "-"
    ratio = value / base
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"
