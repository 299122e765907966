"""The OOM killer: who is killed when memory has run out, and the report of it (mm/oom_kill.c)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from vmemu.cgroups import Cgroup
from vmemu.errors import KernelPanic
from vmemu.kernel import Kernel
from vmemu.lifecycle.death import Tally, kill_all
from vmemu.pids import INIT, RUNNING, ZOMBIE
from vmemu.types import PAGE_SIZE

__all__ = ["OomCandidate", "OomReport", "out_of_memory"]

NEVER = -1000
"""oom_score_adj of who is not to be chosen (OOM_SCORE_ADJ_MIN)."""
_SHORT, _BURST, _INTERVAL_NS = 64, 10, 5_000_000_000
"""Processes up to which every report has a table; how many longer tables in which time (DEFAULT_RATELIMIT_BURST,
_INTERVAL)."""
_FIELDS = 6
"""Numbers that the core gives of a space."""
_KIB = PAGE_SIZE // 1024
_COUNTER_MAX_KIB = ((1 << 63) - 1) // PAGE_SIZE * _KIB
"""What stands for no limit (PAGE_COUNTER_MAX)."""
_DEADLOCKED, _PANIC = "System is deadlocked on memory", "Kernel panic - not syncing: "


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
    uid: int
    oom_score_adj: int
    """Its."""
    cgroup: str | None
    """The control group at its limit, None if the machine had no frame left."""
    clock_ns: int
    total_pages: int
    """What the thousandths of oom_score_adj are of."""
    memory: tuple[str, ...]
    """Lines on what the memory was used for."""
    candidates: tuple[OomCandidate, ...] | None
    """Who was there in the order of the scan, init left out. None: of more than 64 processes there is a table only ten
    times in five seconds of `Machine.clock_ns`, as the kernel's log has it."""
    victim: OomCandidate | None
    """Who was chosen, None if nobody could be."""
    killed: tuple[int, ...]
    """Pids of all that were killed: the victim, who shares its memory, with memory.oom.group who is in the group."""
    group: str | None = None
    """The control group that was killed as a whole (memory.oom.group)."""
    by_allocating: bool = False
    """The victim is who asked, by oom_kill_allocating_task."""
    members: tuple[OomCandidate, ...] = ()
    """Who of the group was killed, the victim too, in the order of the scan."""
    panic: str | None = None
    """Why Linux would have stopped here."""

    def __str__(self) -> str:
        lines = [] if self.candidates is None else self._header(self.candidates)
        v = self.victim
        if v is None:
            if self.panic is None or self.panic == _DEADLOCKED:
                lines.append("Out of memory and no killable processes...")
            return "\n".join([*lines, *([] if self.panic is None else [_PANIC + self.panic])])
        limited = self.cgroup is not None
        where = f"oom_memcg={self.cgroup}" if limited else "global_oom"
        how = "Memory cgroup out of memory" if limited else "Out of memory"
        how += " (oom_kill_allocating_task)" if self.by_allocating else ""
        lines.append(
            f"oom-kill:constraint=CONSTRAINT_{'MEMCG' if limited else 'NONE'},nodemask=(null),cpuset=/,mems_allowed=0,"
            f"{where},task_memcg={v.cgroup},task={v.name},pid={v.pid},uid={v.uid}"
        )
        lines.append(f"{how}: {_killed(v)}")
        if self.group is not None:
            lines.append(f"Tasks in {self.group} are going to be killed due to memory.oom.group set")
            lines += [f"{how}: {_killed(member)}" for member in self.members]
        return "\n".join(lines)

    def _header(self, candidates: Iterable[OomCandidate]) -> list[str]:
        """Who asked, and the table."""
        what = "gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0"
        columns = "uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name"
        return [
            f"{self.name} invoked oom-killer: {what}, oom_score_adj={self.oom_score_adj}",
            f"CPU: 0 UID: {self.uid} PID: {self.pid} Comm: {self.name}",
            *self.memory,
            "Tasks state (memory values in pages):",
            f"[  pid  ]   {columns}",
            *map(_row, candidates),
        ]


def _killed(c: OomCandidate) -> str:
    return (
        f"Killed process {c.pid} ({c.name}) total-vm:{c.total_vm * _KIB}kB, anon-rss:{c.anon * _KIB}kB, "
        f"file-rss:{c.file * _KIB}kB, shmem-rss:{c.shmem * _KIB}kB, UID:{c.uid} "
        f"pgtables:{c.pgtables_bytes // 1024}kB oom_score_adj:{c.oom_score_adj}"
    )


def _row(c: OomCandidate) -> str:
    return (
        f"[{c.pid:7}] {c.uid:5} {c.pid:5} {c.total_vm:8} {c.rss:8} {c.anon:8} {c.file:8} {c.shmem:9} "
        f"{c.pgtables_bytes:8} {c.swapents:8}         {c.oom_score_adj:5} {c.name}"
    )


def _choose(kernel: Kernel, cgroup: int, step: int) -> int:
    """The process with most points, of equal ones the last in the scan; 0 if nobody can be chosen
    (select_bad_process())."""
    table = kernel.processes
    state, adjust = bytearray(table.state), cast("array[int]", table.oom_adj)
    order = kernel.cgroups.arrivals() if cgroup else table.started_ns
    state[INIT] = ZOMBIE
    for child in table.lender:  # in_vfork()
        state[child] = ZOMBIE
    for pid, tids in table.threads.items():
        if table.state[pid] != RUNNING:  # the others have its memory
            if adjust is table.oom_adj:
                adjust, order = array("h", adjust), array("Q", order)
            state[tids[0]], adjust[tids[0]], order[tids[0]] = RUNNING, adjust[pid], order[pid]
    row = kernel.core.worst(
        state, RUNNING, table.space, adjust, NEVER, order, table.cgroup, _ranks(kernel, cgroup), step
    )
    return table.process(row) if row > 0 else 0


def _ranks(kernel: Kernel, cgroup: int) -> array[int] | None:
    """By group: its place in the scan of a group and those below, 0 for others; None for the machine's."""
    if not cgroup:
        return None
    ranks = array("H", bytes(2 * (max(kernel.cgroups.by_id) + 1)))
    for place, group in enumerate(kernel.cgroups.by_id[cgroup].below(), 1):
        ranks[group.number] = place
    return ranks


def _scanned(kernel: Kernel, cgroup: int) -> list[int]:
    """Living processes but init in order of birth; of a group and those below in order of arrival, those of one group
    before those of the next one."""
    table = kernel.processes
    order = kernel.cgroups.arrivals() if cgroup else table.started_ns
    groups = [kernel.cgroups.root] if not cgroup else kernel.cgroups.by_id[cgroup].below()
    found: list[int] = []
    for group in groups:
        pids = kernel.cgroups.members(group) if cgroup else [pid for pid in table if table.alive(pid)]
        found += sorted(pids, key=order.__getitem__)
    return [pid for pid in found if pid != INIT]


def _task(kernel: Kernel, pid: int) -> int:
    """A task of a living process (find_lock_task_mm())."""
    table = kernel.processes
    return pid if table.state[pid] == RUNNING else table.threads[pid][0]


def _rows(kernel: Kernel, pids: Sequence[int], step: int) -> list[OomCandidate]:
    """Rows of the table of a report."""
    table, groups = kernel.processes, kernel.cgroups
    tids = [_task(kernel, pid) for pid in pids]
    flat = kernel.core.space_sizes(array("I", [table.space[tid] for tid in tids]))
    paths: dict[int, str] = {}
    rows = []
    for i, (pid, tid) in enumerate(zip(pids, tids, strict=True)):
        total, anon, file, shmem, tables, swap = flat[i * _FIELDS : (i + 1) * _FIELDS]
        adj, number = table.oom_adj[pid], table.cgroup[pid]
        never = adj == NEVER or tid in table.lender or pid == INIT
        rows.append(
            OomCandidate(
                pid=pid,
                uid=kernel.credentials.of(tid).uid,
                total_vm=total,
                anon=anon,
                file=file,
                shmem=shmem,
                pgtables_bytes=tables * PAGE_SIZE,
                swapents=swap,
                oom_score_adj=adj,
                name=_name(kernel, tid),
                points=None if never else anon + file + shmem + tables + swap + adj * step,
                cgroup=paths.get(number) or paths.setdefault(number, groups.of(pid).path),
            )
        )
    return rows


def _listed(kernel: Kernel) -> bool:
    """Whether a report has a table: of few processes always, else ten times in five seconds (oom_kill_process())."""
    if kernel.processes.state.count(RUNNING) <= _SHORT:
        return True
    since, times = kernel.oom_listed
    if not times or kernel.clock_ns - since >= _INTERVAL_NS:
        since, times = kernel.clock_ns, 0
    kernel.oom_listed = since, times + 1
    return times < _BURST


def total_pages(kernel: Kernel, cgroup: int = 0) -> int:
    """Pages that there are: of RAM and swap, or up to the limits of a control group (mem_cgroup_get_max())."""
    swap = kernel.swap_pages
    group = kernel.cgroups.by_id[cgroup] if cgroup else None
    if group is None or group.memory_max is None:
        return kernel.npages + swap
    most, limit = group.memory_max // PAGE_SIZE, group.memory_swap_max
    if kernel.paging is not None and kernel.paging.swappiness:
        most += swap if limit is None else min(swap, limit // PAGE_SIZE)
    return max(1, most)


def _name(kernel: Kernel, tid: int) -> str:
    return kernel.names.of(tid).decode("ascii", "replace")


def _memory(kernel: Kernel, cgroup: int) -> tuple[str, ...]:
    """What the memory is used for, of the machine (show_mem()) or a group (mem_cgroup_print_oom_meminfo())."""
    if cgroup:
        group = kernel.cgroups.by_id[cgroup]
        unlimited = f"{_COUNTER_MAX_KIB}kB"
        limit = unlimited if group.memory_max is None else f"{group.memory_max // 1024}kB"
        swap_limit = unlimited if group.memory_swap_max is None else f"{group.memory_swap_max // 1024}kB"
        return (
            f"memory: usage {group.memory_current // 1024}kB, limit {limit}, failcnt {group.memory_events['max']}",
            (
                f"swap: usage {group.memory_swap_current // 1024}kB, limit {swap_limit}, "
                f"failcnt {group.memory_swap_events['max']}"
            ),
            f"Memory cgroup stats for {group.path}:",
            *(f"{name} {value}" for name, value in group.memory_stat.items()),
        )
    info, swap = kernel.core.info(), kernel.core.swap_info()
    return (
        "Mem-Info:",
        f"anon:{info.anon} file:{info.file} shmem:{info.shmem} pagetables:{info.tables} free:{info.free}",
        f"{info.file + info.shmem} total pagecache pages",
        f"{swap.cached} pages in swap cache",
        f"Free swap  = {swap.free * _KIB}kB",
        f"Total swap = {swap.total * _KIB}kB",
        f"{info.nframes} pages RAM",
    )


def out_of_memory(kernel: Kernel, pid: int, cgroup: int = 0) -> bool:
    """No frame is left, or none below the limit of a control group (its number), and process *pid* needs one: kills
    somebody. False if nobody in the group can be killed: then the charge fails. KernelPanic if nobody in the machine
    can be, or with panic_on_oom; a group's limit concerns only the value 2."""
    table = kernel.processes
    pages = total_pages(kernel, cgroup)
    step = pages // 1000
    if kernel.panic_on_oom == 2 or (kernel.panic_on_oom and not cgroup):
        what = "compulsory" if kernel.panic_on_oom == 2 else "system-wide"
        raise _panic(kernel, pid, cgroup, pages, f"Out of memory: {what} panic_on_oom is enabled")
    allocating = bool(kernel.oom_kill_allocating_task) and not cgroup and pid != INIT and table.oom_adj[pid] != NEVER
    victim = pid if allocating else _choose(kernel, cgroup, step)
    if not victim and not cgroup:
        raise _panic(kernel, pid, cgroup, pages, _DEADLOCKED)
    if not victim:
        _report(kernel, pid, cgroup, pages, 0, ())
        return False
    group = _group(kernel, victim, cgroup)
    chosen = [victim]
    members: list[int] = []
    if group is not None:
        members = [other for other in _scanned(kernel, group.number) if table.oom_adj[other] > NEVER]
        chosen += [other for other in members if other != victim]
    killed = list(dict.fromkeys(sharer for one in chosen for sharer in _with_sharers(kernel, one)))
    path = None if group is None else group.path
    report = _report(kernel, pid, cgroup, pages, victim, tuple(killed), allocating, path, members)
    events = [(events, "oom_kill") for one in chosen for events in kernel.cgroups.of(one).counters()]
    if group is not None:
        events += [(events, "oom_group_kill") for events in group.counters()]
    kill_all(kernel, killed, Tally(events, kernel.oom_kills + len(chosen), report))
    return True


def _panic(kernel: Kernel, pid: int, cgroup: int, pages: int, why: str) -> KernelPanic:
    return KernelPanic(why, _report(kernel, pid, cgroup, pages, 0, (), panic=why))


def _group(kernel: Kernel, victim: int, cgroup: int) -> Cgroup | None:
    """The group that goes with the victim: the highest with oom_group from its own up to the one at its limit
    (mem_cgroup_get_oom_group())."""
    found = None
    for group in kernel.cgroups.of(victim).above():
        if group.oom_group:
            found = group
        if group.number == cgroup:
            break
    return found


def _with_sharers(kernel: Kernel, pid: int) -> list[int]:
    """A process and the others that use its memory, init left out (__oom_kill_process())."""
    table = kernel.processes
    shared = kernel.shared.get(table.space[_task(kernel, pid)])
    others = {table.process(other) for other in shared.saved} - {pid, INIT} if shared else ()
    return [pid, *sorted(others)]


def _report(
    kernel: Kernel,
    pid: int,
    cgroup: int,
    pages: int,
    victim: int,
    killed: tuple[int, ...],
    allocating: bool = False,
    group: str | None = None,
    members: Sequence[int] = (),
    panic: str | None = None,
) -> OomReport:
    listed = _listed(kernel)
    pids = _scanned(kernel, cgroup) if listed else []
    report = OomReport(
        pid=pid,
        name=_name(kernel, _task(kernel, pid)),
        uid=kernel.credentials.of(_task(kernel, pid)).uid,
        oom_score_adj=kernel.processes.oom_adj[pid],
        cgroup=kernel.cgroups.by_id[cgroup].path if cgroup else None,
        clock_ns=kernel.clock_ns,
        total_pages=pages,
        memory=_memory(kernel, cgroup),
        candidates=tuple(_rows(kernel, pids, pages // 1000)) if listed else None,
        victim=_rows(kernel, [victim], pages // 1000)[0] if victim else None,
        killed=killed,
        group=group,
        by_allocating=allocating,
        members=tuple(_rows(kernel, members, pages // 1000)),
        panic=panic,
    )
    if not victim:
        kernel.oom_reports.append(report)
    return report
