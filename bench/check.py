"""`python -m bench --check` and `--update`: this tree against bench/baseline.json.

Three things are compared, from the surest to the least sure: counters, which are the same or not; instructions of the
core, counted by callgrind for this tree and for the baseline's revision; times, as ratios taken in one run. A time
fails only if it is worse in each of three tries.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from bench.core import Blind, Core, count_instructions, has_callgrind, revision, times
from bench.counters import count_all, differences
from bench.native import BENCH
from bench.ratios import measure_ratios
from bench.report import machine_facts

__all__ = ["BASELINE", "INSTRUCTIONS", "TIMES", "TRIES", "Finding", "Report", "check", "update", "worse_in_each_try"]

BASELINE = BENCH / "baseline.json"
INSTRUCTIONS = 1.01
"""More instructions than this many times the baseline's are a failure."""
TIMES = 1.20
"""And more time than this, in each of TRIES."""
TRIES = 3
_PAUSE_S = 1.0
"""Between tries, for whoever else uses the machine to come to an end."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as in the baseline."""

    kind: str
    name: str
    baseline: str
    now: str
    change: str


@dataclass
class Report:
    """What was compared, what could not be, what was found."""

    compared: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def print(self, file: IO[str] | None = None) -> None:
        """For people: a table if there is something in it."""
        out = file or sys.stdout
        console = Console(file=out, highlight=False, markup=False, width=None if out.isatty() else 120)
        for line in self.compared:
            console.print(f"compared: {line}", soft_wrap=True)
        for line in self.notes:
            console.print(f"note: {line}", soft_wrap=True)
        if not self.findings:
            console.print("nothing is worse than in the baseline")
            return
        table = Table(title="not as in the baseline", title_justify="left")
        for heading in ("what", "where"):
            table.add_column(heading)
        for heading in ("baseline", "now", "change"):
            table.add_column(heading, justify="right")
        for one in self.findings:
            table.add_row(one.kind, one.name, one.baseline, one.now, one.change)
        console.print(table)


def worse_in_each_try(
    baseline: dict[str, float],
    take: Callable[[list[str], int], dict[str, float]],
    limit: float = TIMES,
    tries: int = TRIES,
) -> dict[str, list[float]]:
    """What *take* finds to be more than *limit* times the baseline in each try -> the tries' figures by the baseline's.

    *take* measures the named ones, given the number of the try; only what was too slow so far is measured again.
    """
    found: dict[str, list[float]] = {name: [] for name in baseline}
    for number in range(tries):
        if number:
            time.sleep(_PAUSE_S)
        now = take(sorted(found), number)
        for name in sorted(found):
            if name not in now or now[name] <= limit * baseline[name]:
                del found[name]
            else:
                found[name].append(now[name] / baseline[name])
        if not found:
            break
    return found


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"


def _check_counters(baseline: dict[str, Any], report: Report) -> None:
    now = count_all()
    for workload, counter, then, here in differences(baseline["counters"], now):
        change = f"{here - then:+,}" if then is not None and here is not None else "not in both"
        shown = ["-" if n is None else f"{n:,}" for n in (then, here)]
        report.findings.append(Finding("counter", f"{workload}: {counter}", shown[0], shown[1], change))
    report.compared.append(f"{sum(map(len, now.values()))} counters of {len(now)} workloads")


def _check_core(baseline: dict[str, Any], report: Report, callgrind: bool) -> None:
    """The core against that of the baseline's revision, both built now."""
    try:
        old, new = Core(baseline["revision"]), Core()
    except Blind as reason:
        report.notes.append(f"{reason}: changes of less than 20 % in the cost of the core can't be seen")
        return
    words = f"the core with that of {baseline['revision'][:12]}"
    try:
        if not callgrind:
            raise Blind("callgrind is not used")
        if not has_callgrind():
            raise Blind("callgrind is not installed")
        then, now = count_instructions(old), count_instructions(new)
        for name in sorted(then.keys() & now.keys()):
            if now[name] > INSTRUCTIONS * then[name]:
                report.findings.append(
                    Finding("instructions", name, f"{then[name]:,}", f"{now[name]:,}", _percent(now[name] / then[name]))
                )
        report.compared.append(f"instructions of {len(then.keys() & now.keys())} scenarios, {words}")
    except Blind as reason:
        report.notes.append(f"{reason}: changes of less than 20 % in the cost of the core can't be seen")
    slow = worse_in_each_try(
        dict.fromkeys(new.least(1), 1.0), lambda names, number: times(old, new, names, turns=12 << number), limit=TIMES
    )
    for name, tries in slow.items():
        report.findings.append(Finding("time, core", name, "1", f"{min(tries):.2f}", _percent(min(tries))))
    report.compared.append(f"times of {words}")


def _ratios_again(names: list[str], number: int) -> dict[str, float]:
    """Each try looks longer than the last, and on another CPU: what disturbs is seldom everywhere and for long."""
    return measure_ratios(names, seconds=0.8 * 4**number, turn=number)


def _check_ratios(baseline: dict[str, Any], report: Report) -> None:
    """vmemu by bound in this process, against the ratios of the baseline."""
    then = baseline["ratios"]
    here, there = machine_facts()["cpu"], baseline["machine"]["cpu"]
    if here != there:
        report.notes.append(
            f"the baseline's ratios are of another CPU ({there}, this is {here}) and are not judged: see --update"
        )
        return
    for name, tries in worse_in_each_try(then, _ratios_again).items():
        least = min(tries)
        report.findings.append(
            Finding("time by bound", name, f"{then[name]:.3f}", f"{least * then[name]:.3f}", _percent(least))
        )
    report.compared.append(f"{len(then)} ratios of vmemu to a bound in this process")


def check(path: Path = BASELINE, callgrind: bool = True, file: IO[str] | None = None) -> int:
    """Compares and prints; 1 if something is worse, 2 if there is no baseline to compare with."""
    try:
        baseline = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"bench: {path.name} can't be read ({error}); --update writes one", file=sys.stderr)
        return 2
    report = Report()
    _check_counters(baseline, report)
    _check_core(baseline, report, callgrind)
    _check_ratios(baseline, report)
    report.print(file)
    return 1 if report.findings else 0


def update(path: Path = BASELINE) -> int:
    """Writes the baseline anew: counters, the revision of the core, ratios (the median of three)."""
    try:
        of = revision()
    except Blind as reason:
        print(f"bench: no baseline can be made: {reason}", file=sys.stderr)
        return 2
    taken = [measure_ratios() for _ in range(TRIES)]
    ratios = {name: round(sorted(one[name] for one in taken)[TRIES // 2], 4) for name in taken[0]}
    try:
        instructions = count_instructions(Core()) if has_callgrind() else {}
    except Blind:
        instructions = {}
    baseline = {
        "revision": of,
        "machine": machine_facts(),
        "counters": count_all(),
        "instructions": instructions,
        "ratios": ratios,
    }
    path.write_text(json.dumps(baseline, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"bench: {path.name} is of {of[:12]}")
    return 0
