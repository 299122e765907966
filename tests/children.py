"""What tests of commands need that are still running."""

from __future__ import annotations

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """What a process and those that it started have computed."""
    spent, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
        spent[int(stat.parent.name)] = int(fields[11]) + int(fields[12])
    family = {pid}
    while more := {one for one, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(spent.get(one, 0) for one in family) / TICKS


def wait_until_it_has_worked(pid: int, seconds: float) -> None:
    """Until it has computed so long, however slow the machine is: then all its modules are there."""
    end = time.monotonic() + 60
    while cpu_seconds(pid) < seconds:
        assert time.monotonic() < end, "it does nothing"
        time.sleep(0.05)
