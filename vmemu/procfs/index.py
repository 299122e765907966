"""Which name in /proc is which file: the functions of the other rooms, by path."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmemu.kernel import Kernel
from vmemu.procfs import clearing, limits, maps, meminfo, names, oom, pages, status, strings, sysctl, system, vmstat
from vmemu.procfs.subject import Subject

__all__ = ["BINARY", "EMPTY", "LINKS", "MACHINE", "PAGEMAP", "PROCESS", "ROOT", "ProcessFile", "link"]


class ProcessFile(NamedTuple):
    """A file of a process: None where there is nothing to read or to write."""

    read: Callable[[Subject], bytes] | None = None
    write: Callable[[Subject, bytes, int | None], None] | None = None


PROCESS = {
    "auxv": ProcessFile(strings.auxv),
    "cgroup": ProcessFile(names.cgroup),
    "clear_refs": ProcessFile(write=clearing.write_clear_refs),
    "cmdline": ProcessFile(strings.cmdline),
    "comm": ProcessFile(names.comm, names.write_comm),
    "environ": ProcessFile(strings.environ),
    "io": ProcessFile(names.io),
    "limits": ProcessFile(limits.limits),
    "maps": ProcessFile(maps.maps),
    "mounts": ProcessFile(names.mounts),
    "oom_adj": ProcessFile(oom.oom_adj, oom.write_oom_adj),
    "oom_score": ProcessFile(oom.oom_score),
    "oom_score_adj": ProcessFile(oom.oom_score_adj, oom.write_oom_score_adj),
    "personality": ProcessFile(names.personality),
    "smaps": ProcessFile(maps.smaps),
    "smaps_rollup": ProcessFile(maps.smaps_rollup),
    "stat": ProcessFile(status.stat),
    "statm": ProcessFile(status.statm),
    "status": ProcessFile(status.status),
    "wchan": ProcessFile(names.wchan),
}
"""Of a process and of its one thread."""
PAGEMAP = "pagemap"
"""The file of a process that is binary."""
LINKS = ("cwd", "exe", "root")
EMPTY = ("fd", "fdinfo")
"""Directories: a process has no open files here, only what it maps."""

BINARY = {"kpagecount": pages.kpagecount, "kpageflags": pages.kpageflags}


def _fixed(text: str) -> Callable[[Kernel], bytes]:
    return lambda _: text.encode()


MACHINE: dict[str, Callable[[Kernel], bytes]] = {
    "buddyinfo": system.buddyinfo,
    "swaps": system.swaps,
    "loadavg": system.loadavg,
    "meminfo": meminfo.meminfo,
    "stat": system.stat,
    "uptime": system.uptime,
    "vmstat": vmstat.vmstat_text,
    "zoneinfo": system.zoneinfo,
    **{path: setting.read for path, setting in sysctl.SETTINGS.items()},
    **{path: _fixed(text) for path, text in system.FIXED.items()},
}
ROOT = sorted({*MACHINE, *BINARY})
"""Paths of all files that are not about one process."""


def link(subject: Subject, name: str) -> str | None:
    """Where one of LINKS leads; None if nowhere: of a zombie, or exe without a program."""
    if subject.space is None:
        return None
    if name == "exe":
        return subject.image.path if subject.image else None
    return "/"
