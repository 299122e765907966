"""The table on the terminal, and results.json."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.measure import Line, Result, Target

__all__ = ["machine_facts", "print_results", "record", "table", "write_results"]


def amount(value: float | None, measure: str) -> str:
    """A figure with its unit."""
    if value is None:
        return "-"
    if measure == "bytes":
        for unit in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or unit == "GiB":
                return f"{value:,.4g} B" if unit == "B" else f"{value:.1f} {unit}"
            value /= 1024
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def factor(value: float) -> str:
    """A ratio, to three digits."""
    return f"{value:,.0f}x" if value >= 100 else f"{value:.3g}x"


def _target(target: Target, line: Line) -> str:
    if not target.of:
        return f"at most {amount(target.limit, line.measure)}"
    aim = f", aim {target.aim:g}" if target.aim else ""
    sign = ">=" if target.faster else "<="
    return f"{'kernel' if target.of == 'kernel' else 'bound'} {sign}{target.limit:,g}x{aim}"


def _figures(result: Result) -> list[tuple[str, bool | None]]:
    out = []
    for target in result.line.targets:
        figure = target.figure(result.values)
        text = "-" if figure is None else factor(figure) if target.of else amount(figure, result.line.measure)
        out.append((text, target.met(result.values)))
    return out


_VERDICT = {True: ("pass", "green"), False: ("short", "red"), None: ("-", "dim")}


def table(results: list[Result]) -> Table:
    """The results for people."""
    out = Table(title="medians of rounds that took turns", title_justify="left", pad_edge=False)
    out.add_column("row", style="dim", overflow="fold")
    out.add_column("work")
    for heading in ("kernel", "bound", "vmemu"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("ratio", justify="right", no_wrap=True)
    out.add_column("target", no_wrap=True)
    out.add_column("", no_wrap=True)
    for result in results:
        line, values = result.line, result.values
        what = Text(f"{line.what} (ns a {line.unit})" if line.unit and line.measure == "ns" else line.what)
        notes = [f"bound: {line.bound}"] if line.bound else []
        notes += [text for text in (line.note, result.skipped) if text]
        for text in notes:
            what.append(f"\n  {text}", style="dim")
        if result.failed:
            what.append(f"\n  {result.failed}", style="red")
        figures = _figures(result)
        word, style = ("FAILED", "bold red") if result.failed else _VERDICT[result.met]
        out.add_row(
            line.key,
            what,
            *(amount(values.get(side), line.measure) for side in ("kernel", "bound", "vmemu")),
            Text("\n").join(Text(text, style=_VERDICT[met][1]) for text, met in figures),
            "\n".join(_target(target, line) for target in line.targets),
            Text(word, style=style),
        )
    return out


def print_results(results: list[Result], file: IO[str] | None = None) -> None:
    """The table and a line that counts."""
    out = file or sys.stdout
    console = Console(file=out, highlight=False, markup=False, width=None if out.isatty() else 170)
    console.print(table(results))
    judged = [result.met for result in results]
    console.print(f"{judged.count(True)} pass, {judged.count(False)} short, {judged.count(None)} without a verdict")


def machine_facts() -> dict[str, Any]:
    """What the figures depend on; no names of hosts or people."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)", info, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.*)", info, re.MULTILINE)
    words = set(flags[1].split()) if flags else set()
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "avx2": "avx2" in words,
        "avx512": "avx512f" in words,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": re.match(r"[\d.]*\d", platform.release())[0],  # type: ignore[index]
        "transparent_hugepage": thp.read_text(encoding="utf-8").strip() if thp.exists() else "none",
        "python": platform.python_version(),
    }


def record(results: list[Result]) -> dict[str, Any]:
    """The results as JSON has them."""
    lines = {}
    for result in results:
        line = result.line
        lines[line.key] = {
            "what": line.what,
            "unit": line.unit,
            "measure": line.measure,
            "bound": line.bound,
            "medians": result.values,
            "minima": {side: min(values) for side, values in result.samples.items()},
            "samples": result.samples,
            "targets": [
                {
                    "of": target.of or "value",
                    "at_least" if target.faster else "at_most": target.limit,
                    "aim": target.aim,
                    "figure": target.figure(result.values),
                    "met": target.met(result.values),
                }
                for target in line.targets
            ],
            "met": result.met,
            "skipped": result.skipped,
            "failed": result.failed,
        }
    return {"machine": machine_facts(), "lines": lines}


def write_results(results: list[Result], path: Path) -> None:
    """Writes results.json."""
    path.write_text(json.dumps(record(results), indent=1) + "\n", encoding="utf-8")
