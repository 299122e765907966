"""The OOM killer: who is killed when memory has run out, and the report of it (mm/oom_kill.c)."""

from __future__ import annotations

import signal
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from vmemu.errors import KernelPanic
from vmemu.kernel import Kernel
from vmemu.lifecycle.death import die, settle
from vmemu.pids import INIT
from vmemu.types import PAGE_SIZE

__all__ = ["OomCandidate", "OomReport", "kill_all", "out_of_memory"]

NEVER = -1000
"""oom_score_adj of who is not to be chosen (OOM_SCORE_ADJ_MIN)."""
_TABLE_MOST = 1024
"""Candidates that a report lists; of more those that were worth most."""
_FIELDS = 5
"""Of struct vmemu_space_size."""
_KIB = PAGE_SIZE // 1024


class OomCandidate(NamedTuple):
    """A process as the table of a report has it; pages, except where said."""

    pid: int
    uid: int
    total_vm: int
    anon: int
    file: int
    shmem: int
    pgtables_bytes: int
    swapents: int
    oom_score_adj: int
    name: str
    points: int | None
    """Badness; None if it could not be chosen."""
    cgroup: str

    @property
    def rss(self) -> int:
        """Resident pages."""
        return self.anon + self.file + self.shmem


@dataclass(frozen=True, slots=True)
class OomReport:
    """One run of the OOM killer. Its str() is what the kernel would have logged."""

    pid: int
    """Who needed the memory."""
    name: str
    oom_score_adj: int
    """Its."""
    cgroup: str | None
    """The control group at its limit, None if the machine had no frame left."""
    clock_ns: int
    total_pages: int
    """What the thousandths of oom_score_adj are of."""
    memory: tuple[str, ...]
    """Lines on what the memory was used for."""
    candidates: tuple[OomCandidate, ...]
    """Who was there in the order of the scan, init left out; of more than 1,024 those with most points."""
    ncandidates: int
    victim: OomCandidate | None
    """Who was chosen, None if nobody could be."""
    killed: tuple[int, ...]
    """Pids of all that were killed: the victim, who shares its memory, with memory.oom.group who is in the group."""
    group: str | None = None
    """The control group that was killed as a whole (memory.oom.group)."""
    by_allocating: bool = False
    """The victim is who asked, by oom_kill_allocating_task."""

    def __str__(self) -> str:
        lines = [
            f"{self.name} invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, "
            f"oom_score_adj={self.oom_score_adj}",
            *self.memory,
            "Tasks state (memory values in pages):",
            "[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents "
            "oom_score_adj name",
            *map(_row, self.candidates),
        ]
        if len(self.candidates) < self.ncandidates:
            lines.append(f"({self.ncandidates - len(self.candidates)} smaller ones left out)")
        if self.victim is None:
            return "\n".join([*lines, "Out of memory and no killable processes..."])
        v = self.victim
        where = f"oom_memcg={self.cgroup}" if self.cgroup is not None else "global_oom"
        kind = "MEMCG" if self.cgroup is not None else "NONE"
        how = "Memory cgroup out of memory" if self.cgroup is not None else "Out of memory"
        if self.by_allocating:
            how += " (oom_kill_allocating_task)"
        lines += [
            f"oom-kill:constraint=CONSTRAINT_{kind},nodemask=(null),cpuset=/,mems_allowed=0,{where},"
            f"task_memcg={v.cgroup},task={v.name},pid={v.pid},uid={v.uid}",
            f"{how}: Killed process {v.pid} ({v.name}) total-vm:{v.total_vm * _KIB}kB, anon-rss:{v.anon * _KIB}kB, "
            f"file-rss:{v.file * _KIB}kB, shmem-rss:{v.shmem * _KIB}kB, UID:{v.uid} "
            f"pgtables:{v.pgtables_bytes // 1024}kB oom_score_adj:{v.oom_score_adj}",
        ]
        if self.group is not None:
            lines.append(f"Tasks in {self.group} are going to be killed due to memory.oom.group set")
        return "\n".join(lines)


def _row(c: OomCandidate) -> str:
    return (
        f"[{c.pid:7}] {c.uid:5} {c.pid:5} {c.total_vm:8} {c.rss:8} {c.anon:8} {c.file:8} {c.shmem:9} "
        f"{c.pgtables_bytes:8} {c.swapents:8}         {c.oom_score_adj:5} {c.name}"
    )


class _Scan:
    """The processes that could be killed, in the order in which Linux looks at them, with their sizes."""

    def __init__(self, kernel: Kernel, cgroup: int) -> None:
        table = kernel.processes
        self.kernel = kernel
        self.pids = [pid for pid in _scanned(kernel, cgroup) if pid != INIT]
        self.tids = [pid if table.space[pid] else table.threads[pid][0] for pid in self.pids]
        self.total_pages = total_pages(kernel, cgroup)
        flat = kernel.core.space_sizes(array("I", [table.space[tid] for tid in self.tids]))
        self.columns = [flat[i::_FIELDS] for i in range(_FIELDS)]
        step = self.total_pages // 1000
        _, anon, file, shmem, tables = self.columns
        self.points = [
            sum(sizes) + (adj * step if adj else 0)
            for adj, *sizes in zip([table.oom_adj[pid] for pid in self.pids], anon, file, shmem, tables, strict=True)
        ]

    def eligible(self, i: int) -> bool:
        """oom_badness() gives it points: neither its oom_score_adj nor a vfork keeps it from being chosen."""
        table = self.kernel.processes
        return table.oom_adj[self.pids[i]] != NEVER and self.tids[i] not in table.lender

    def worst(self) -> int:
        """Index of the one with most points, of equal ones the last; -1 if nobody is eligible (select_bad_process())."""
        chosen, most = -1, 0
        for i, points in enumerate(self.points):
            if (chosen < 0 or points >= most) and self.eligible(i):
                chosen, most = i, points
        return chosen

    def candidate(self, i: int) -> OomCandidate:
        """A row of the table."""
        kernel, pid, tid = self.kernel, self.pids[i], self.tids[i]
        total, anon, file, shmem, tables = (column[i] for column in self.columns)
        return OomCandidate(
            pid=pid,
            uid=kernel.credentials.of(tid).uid,
            total_vm=total,
            anon=anon,
            file=file,
            shmem=shmem,
            pgtables_bytes=tables * PAGE_SIZE,
            swapents=0,
            oom_score_adj=kernel.processes.oom_adj[pid],
            name=_name(kernel, tid),
            points=self.points[i] if self.eligible(i) else None,
            cgroup=kernel.cgroups.of(pid).path,
        )

    def table(self) -> tuple[OomCandidate, ...]:
        """The rows of a report."""
        which: Iterable[int] = range(len(self.pids))
        if len(self.pids) > _TABLE_MOST:
            which = sorted(sorted(which, key=self.points.__getitem__)[-_TABLE_MOST:])
        return tuple(map(self.candidate, which))


def _scanned(kernel: Kernel, cgroup: int) -> list[int]:
    """Living processes in order of birth (for_each_process()), or those of a control group and the ones below it."""
    table = kernel.processes
    if cgroup:
        groups = kernel.cgroups
        return [pid for group in groups.by_id[cgroup].below() for pid in _born(kernel, groups.members(group))]
    return _born(kernel, [pid for pid in table if table.alive(pid)])


def _born(kernel: Kernel, pids: list[int]) -> list[int]:
    started = kernel.processes.started_ns
    return sorted(pids, key=started.__getitem__)  # of one call in order of their pids


def total_pages(kernel: Kernel, cgroup: int = 0) -> int:
    """Pages that there are: of RAM, or up to the limit of a control group."""
    return kernel.npages


def _name(kernel: Kernel, tid: int) -> str:
    return kernel.names.of(tid).decode("ascii", "replace")


def _memory(kernel: Kernel) -> tuple[str, ...]:
    """What the machine's memory is used for (show_mem())."""
    info = kernel.core.info()
    return (
        "Mem-Info:",
        f"anon:{info.anon} file:{info.file} shmem:{info.shmem} pagetables:{info.tables} free:{info.free}",
        f"{info.file + info.shmem} total pagecache pages",
        f"{info.nframes} pages RAM",
    )


def out_of_memory(kernel: Kernel, pid: int, cgroup: int = 0) -> bool:
    """No frame is left, or none below the limit of a control group (its number), and process *pid* needs one: kills
    somebody, if there is somebody. KernelPanic with panic_on_oom; a group's limit concerns only the value 2."""
    scan = _Scan(kernel, cgroup)
    allocating = bool(kernel.oom_kill_allocating_task) and not cgroup and pid in scan.pids
    if kernel.panic_on_oom == 2 or (kernel.panic_on_oom and not cgroup):
        report = _report(kernel, scan, pid, cgroup, -1, (), False)
        what = "compulsory" if kernel.panic_on_oom == 2 else "system-wide"
        raise KernelPanic(f"Out of memory: {what} panic_on_oom is enabled", report)
    i = scan.pids.index(pid) if allocating else -1
    allocating = allocating and kernel.processes.oom_adj[pid] != NEVER
    if not allocating:
        i = scan.worst()
    if i < 0:
        _report(kernel, scan, pid, cgroup, -1, (), False)
        return False
    killed = _with_sharers(kernel, scan.pids[i], scan.tids[i])
    _report(kernel, scan, pid, cgroup, i, tuple(killed), allocating)
    kernel.oom_kills += 1
    kill_all(kernel, killed)
    return True


def _with_sharers(kernel: Kernel, pid: int, tid: int) -> list[int]:
    """A process and the others that use its memory, init left out (__oom_kill_process())."""
    table = kernel.processes
    shared = kernel.shared.get(table.space[tid])
    others = {table.process(other) for other in shared.saved} - {pid, INIT} if shared else ()
    return [pid, *sorted(others)]


def kill_all(kernel: Kernel, pids: Iterable[int]) -> None:
    """SIGKILL, which ends them at once."""
    for pid in pids:
        if kernel.processes.alive(pid):
            die(kernel, pid, signal.SIGKILL)
    settle(kernel)


def _report(
    kernel: Kernel, scan: _Scan, pid: int, cgroup: int, i: int, killed: tuple[int, ...], allocating: bool
) -> OomReport:
    report = OomReport(
        pid=pid,
        name=_name(kernel, kernel.processes.tasks(pid)[0]),
        oom_score_adj=kernel.processes.oom_adj[pid],
        cgroup=kernel.cgroups.by_id[cgroup].path if cgroup else None,
        clock_ns=kernel.clock_ns,
        total_pages=scan.total_pages,
        memory=_memory(kernel),
        candidates=scan.table(),
        ncandidates=len(scan.pids),
        victim=scan.candidate(i) if i >= 0 else None,
        killed=killed,
        by_allocating=allocating,
    )
    kernel.oom_reports.append(report)
    return report
