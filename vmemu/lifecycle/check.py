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
    _spaces(kernel, states)
    _sparse(kernel, states)


def _equal(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise InvariantError(f"{what}: {found}, not {expected}")


def _family(kernel: Kernel, processes: list[int]) -> None:
    """The lists of children hold each process but the first once, under its parent, forwards as backwards."""
    table = kernel.processes
    seen: Counter[int] = Counter()
    for parent in (0, *processes):
        before = 0
        for child in table.children(parent):
            _equal(f"parent of {child}", table.parent[child], parent)
            _equal(f"elder sibling of {child}", table.prev[child], before)
            seen[child] += 1
            before = child
        _equal(f"youngest child of {parent}", table.youngest(parent), before)
    _equal("children of all", seen, Counter(processes))
    for pid in processes:
        parent = table.parent[pid]
        if parent and not table.alive(parent):
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
    _equal("tasks by user", Counter(kernel.users), Counter(kernel.credentials.of(tid).uid for tid in states))
    groups = {table.group[pid]: table.session[pid] for pid in processes}
    for pid in processes:
        _equal(f"session of group {table.group[pid]}", groups[table.group[pid]], table.session[pid])
    members, sessions = table.named()
    _equal("members of groups", members, Counter(table.group[pid] for pid in processes))
    _equal("groups of sessions", sessions, Counter(groups.values()))
    uses = {*members, *sessions}
    for number, state in enumerate(table.state):
        if (state == HELD) != (state in (FREE, HELD, THREAD) and number in uses):
            raise InvariantError(f"number {number} of a group is {'held for nobody' if state == HELD else 'free'}")


def _spaces(kernel: Kernel, states: dict[int, int]) -> None:
    """A space is used by one task, or by those that its record of sharing names."""
    table = kernel.processes
    users: dict[int, set[int]] = {}
    for tid, state in states.items():
        if state != ZOMBIE:
            users.setdefault(table.space[tid], set()).add(tid)
    _equal("spaces that live", list(kernel.core.spaces()), sorted(users))
    shared = {sid: some for sid, some in users.items() if len(some) > 1}
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
    for tid in states:
        if not table.odd[tid] and any(column[tid] for column in table.rare):
            raise InvariantError(f"task {tid} has something rare and is not marked")
        if not table.odd[tid] and table.flags[tid] & Flag.NPROC_EXCEEDED:
            raise InvariantError(f"task {tid} of root is over RLIMIT_NPROC")
    if INIT in table.stopped:
        raise InvariantError("init is stopped")
    for pid, same in table.same_handlers.items():
        if pid not in same or len({table.signals[other] for other in same}) != 1:
            raise InvariantError(f"process {pid} shares handlers that differ")
    if kernel.signalled:
        raise InvariantError(f"signals to {kernel.signalled} were not delivered")
