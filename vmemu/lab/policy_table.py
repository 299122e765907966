"""Renders what policy.py found as text for people."""

from __future__ import annotations

from rich.table import Table

from vmemu.lab.console import Console
from vmemu.lab.policy import PolicyReport
from vmemu.lab.tables import size

__all__ = ["print_policy"]


def print_policy(report: PolicyReport) -> None:
    """A row for each size of memory, a column for each policy: pages read back from swap."""
    policies = list(dict.fromkeys(run.policy for run in report.runs))
    table = Table(box=None, padding=(0, 2, 0, 0), title="pages read back from swap", title_justify="left")
    table.add_column("memory", justify="right", no_wrap=True)
    for name in policies:
        table.add_column(name, justify="right", no_wrap=True)
    for memory in dict.fromkeys(run.memory for run in report.runs):
        found = {run.policy: run.swap_ins for run in report.runs if run.memory == memory}
        cells = ["too little" if found.get(name) is None else f"{found[name]:,}" for name in policies]
        table.add_row(size(memory), *cells)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{report.trace}: {report.records:,} records, {size(report.footprint)} of pages", markup=False)
    console.print(table)
