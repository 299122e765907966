"""The process table proved consistent for `Machine.verify()`: links, counters, and what only few tasks have."""

from __future__ import annotations

from collections import Counter

from vmemu.errors import InvariantError
from vmemu.kernel import Kernel
from vmemu.pids import FREE, HELD, INIT, RUNNING, THREAD, ZOMBIE, Flag

__all__ = ["check"]


def check(kernel: Kernel) -> None:
    """Raises InvariantError with the first thing found wrong."""
    table = kernel.processes
    states = {pid: state for pid, state in enumerate(table.state) if state not in (FREE, HELD)}
    processes = [pid for pid, state in states.items() if state != THREAD]
    _equal("processes", len(table), len(processes))
    _family(kernel, processes)
    _threads(kernel, states)
    _counters(kernel, states, processes)
    _cgroups(kernel, states)
    _spaces(kernel, states)
    _sparse(kernel, states)


def _equal(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise InvariantError(f"{what}: {found}, not {expected}")


def _family(kernel: Kernel, processes: list[int]) -> None:
    """The lists of children hold each process but the first once, under its parent, forwards as backwards."""
    table = kernel.processes
    parents, prev, following = table.parent, table.prev, table.next
    seen = bytearray(len(table.state))
    for parent in (0, *processes):
        before, child = 0, table.first_child[parent]
        while child:
            if parents[child] != parent:
                _equal(f"parent of {child}", parents[child], parent)
            if prev[child] != before:
                _equal(f"elder sibling of {child}", prev[child], before)
            if seen[child]:
                raise InvariantError(f"{child} is a child twice")
            seen[child] = 1
            before, child = child, following[child]
        if table.youngest(parent) != before:
            _equal(f"youngest child of {parent}", table.youngest(parent), before)
    if seen.count(1) != len(processes) or not all(seen[pid] for pid in processes):
        _equal("children of all", [pid for pid, once in enumerate(seen) if once], processes)
    state, threads = table.state, table.threads
    for pid in processes:
        parent = parents[pid]
        if parent and state[parent] != RUNNING and parent not in threads:
            raise InvariantError(f"parent {parent} of {pid} is dead")


def _threads(kernel: Kernel, states: dict[int, int]) -> None:
    table = kernel.processes
    tids = sorted(tid for some in table.threads.values() for tid in some)
    _equal("threads", tids, sorted(tid for tid, state in states.items() if state == THREAD))
    _equal("leaders", table.leader, {tid: pid for pid, some in table.threads.items() for tid in some})
    for pid in table.threads:
        if states.get(pid) not in (RUNNING, ZOMBIE):
            raise InvariantError(f"process {pid} has threads and is none")


def _counters(kernel: Kernel, states: dict[int, int], processes: list[int]) -> None:
    table = kernel.processes
    users: Counter[int] = Counter()
    someone = dict(zip(map(table.credentials.__getitem__, states), states, strict=True))
    for index, n in Counter(map(table.credentials.__getitem__, states)).items():
        users[kernel.credentials.of(someone[index]).uid] += n
    _equal("tasks by user", Counter(kernel.users), users)
    pairs = set(zip(map(table.group.__getitem__, processes), map(table.session.__getitem__, processes), strict=True))
    groups = dict(pairs)
    for group, session in sorted(pairs):
        _equal(f"session of group {group}", groups[group], session)
    members, sessions = table.named()
    _equal("members of groups", members, Counter(map(table.group.__getitem__, processes)))
    _equal("groups of sessions", sessions, Counter(groups.values()))
    uses = {*members, *sessions}
    doubtful = uses if table.state.count(HELD) == 0 else range(len(table.state))
    for number in doubtful:
        state = table.state[number]
        if (state == HELD) != (state in (FREE, HELD, THREAD) and number in uses):
            raise InvariantError(f"number {number} of a group is {'held for nobody' if state == HELD else 'free'}")


def _cgroups(kernel: Kernel, states: dict[int, int]) -> None:
    """Groups count the tasks in them and below."""
    groups, column = kernel.cgroups, kernel.processes.cgroup
    tasks: Counter[str] = Counter()
    for number, n in Counter(map(column.__getitem__, states)).items():
        if number not in groups.by_id:
            raise InvariantError(f"{n} tasks are in a cgroup that is gone")
        for group in groups.by_id[number].above():
            tasks[group.path] += n
    for group in groups.values():
        _equal(f"tasks in cgroup {group.path}", group.pids_current, tasks[group.path])
    for pid in kernel.processes.threads:
        for tid in kernel.processes.threads[pid]:
            _equal(f"cgroup of thread {tid}", column[tid], column[pid])


def _spaces(kernel: Kernel, states: dict[int, int]) -> None:
    """A space is used by one task, or by those that its record of sharing names."""
    table = kernel.processes
    users = [tid for tid, state in states.items() if state != ZOMBIE]
    counts = Counter(map(table.space.__getitem__, users))
    _equal("spaces that live", list(kernel.core.spaces()), sorted(counts))
    several = {sid for sid, n in counts.items() if n > 1}
    shared: dict[int, set[int]] = {sid: set() for sid in several}
    if several:
        for tid in users:
            if table.space[tid] in several:
                shared[table.space[tid]].add(tid)
    _equal("shared spaces", {sid: set(record.saved) for sid, record in kernel.shared.items()}, shared)
    for sid, record in kernel.shared.items():
        if record.current not in record.saved:
            raise InvariantError(f"space {sid} counts for {record.current}, who does not use it")


def _sparse(kernel: Kernel, states: dict[int, int]) -> None:
    """What few have belongs to somebody."""
    table = kernel.processes
    _equal("vfork children", table.lender, {child: parent for parent, child in table.borrower.items()})
    for tid in (*table.borrower, *table.lender, *table.pending_task, *table.death_signal):
        if states.get(tid) not in (RUNNING, THREAD):
            raise InvariantError(f"task {tid} is dead and has signals or a loan")
    for pid in (*table.stopped, *table.report, *table.pending, *table.same_handlers):
        if pid in table.leader or not table.alive(pid):
            raise InvariantError(f"process {pid} is dead and has signals")
    suspending = table.borrower or table.stopped or kernel.shared
    _equal("all plain", table.plain, not suspending)
    threads = table.threads or table.leader or kernel.threads_faults
    signals = table.report or table.pending or table.pending_task or table.death_signal or table.same_handlers
    _equal("all quiet", table.quiet, not (suspending or table.lender or threads or signals))
    rare = [column for column in table.rare if any(column)]
    exceeding = any(map(int(Flag.NPROC_EXCEEDED).__and__, set(table.flags)))
    for tid in states if rare or exceeding else ():
        if table.odd[tid]:
            continue
        if any(column[tid] for column in rare):
            raise InvariantError(f"task {tid} has something rare and is not marked")
        if table.flags[tid] & Flag.NPROC_EXCEEDED:
            raise InvariantError(f"task {tid} of root is over RLIMIT_NPROC")
    if INIT in table.stopped:
        raise InvariantError("init is stopped")
    for pid, same in table.same_handlers.items():
        if pid not in same or len({table.signals[other] for other in same}) != 1:
            raise InvariantError(f"process {pid} shares handlers that differ")
    if kernel.signalled:
        raise InvariantError(f"signals to {kernel.signalled} were not delivered")
