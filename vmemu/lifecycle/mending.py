"""What an exception left half done that came between two steps of a call, from a signal handler for one.

Few things are primary: a task is there if its row says so (`state`), a space if the core has it, a task uses the space
in its row. The rest follows: lists of children, counters, who shares a space, what few tasks have. The calls keep an
order in which each has one step from which on it counts as done, and note beside the table what needs more than that
(`unborn`, `dying`, `leaving`, `executing`, `stopping`, `sending`, `killing`). So `mend` takes back births that were not
complete, completes ends and whatever else had begun, and makes all that follows anew. It takes as long as the table is,
and may be interrupted itself: then `torn` stays set, and the next call begins with it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from vmemu.columns import Watched
from vmemu.kernel import Kernel, SharedSpace
from vmemu.lifecycle.death import die, end_process, end_task, find_reaper, go_on_killing, orphan, reap, settle, stop
from vmemu.lifecycle.program import go_on
from vmemu.lifecycle.signals import post
from vmemu.pids import FREE, HELD, INIT, RUNNING, THREAD, ZOMBIE, ProcessTable
from vmemu.types import FaultKind

__all__ = ["mend", "watch"]

_KINDS = len(FaultKind)


def watch(kernel: Kernel) -> None:
    """From now on calls that are interrupted are mended."""
    kernel.mend = partial(mend, kernel)


def mend(kernel: Kernel) -> None:
    """Makes the machine consistent, whatever was interrupted. The lock is held."""
    table = kernel.processes
    table.torn, table.plain, table.quiet, table.mending = True, False, False, True
    living = set(kernel.core.spaces())
    _even_out(table)
    _take_back(table)
    _prepare_exec(kernel, living)
    _find_dead(table, living)
    _relink(table)
    _recount(kernel)
    _agree(kernel)
    _share(kernel)
    _free_spaces(kernel, living)
    _complete(kernel)
    kernel.files.mend()
    table.calm()


# ---- rows ----


def _even_out(table: ProcessTable) -> None:
    """Columns of one length: the table may have been growing."""
    columns = (table.state, table.exit_signal, table.flags, table.odd)
    wide = (table.parent, table.started_ns, *table._fresh, *table._inherited)
    end = max(map(len, (*columns, *wide)))
    for column in columns:
        column.extend(bytes(end - len(column)))
    for values in wide:
        values.extend(array(values.typecode, bytes((end - len(values)) * values.itemsize)))


def _take_back(table: ProcessTable) -> None:
    """Births that were not complete."""
    for pid in table.unborn:
        if pid < len(table.state) and table.state[pid] in (RUNNING, THREAD):
            table.state[pid] = FREE
        if table.executing is not None and table.executing.pid == pid:
            table.executing = None
    table.unborn = ()


def _prepare_exec(kernel: Kernel, living: set[int]) -> None:
    """The process of an execve that goes on has one space, the old or the new one, and a row that runs."""
    table = kernel.processes
    if table.executing is None:
        return
    tid, pid, made = table.executing.tid, table.executing.pid, table.executing.made
    if made.space not in living:
        table.executing = None
        return
    if tid != pid and table.state[pid] == ZOMBIE and table.space[pid] in living:  # it has the place of the first task
        table.state[tid], table.state[pid] = FREE, RUNNING
    if table.state[pid] == RUNNING and table.space[pid] not in living:
        table.space[pid] = made.space


def _find_dead(table: ProcessTable, living: set[int]) -> None:
    """Whose space has gone is dead. Who is no task has none, and threads have a process."""
    state, space = table.state, table.space
    for tid in [tid for tid in table.leader if state[tid] != THREAD]:
        del table.leader[tid]
    threads: dict[int, list[int]] = {pid: [] for pid in table.threads}
    known = [tid for some in table.threads.values() for tid in some]
    for tid in (*known, *sorted(set(table.leader).difference(known))):
        pid = table.leader.get(tid, 0)
        if not pid or state[pid] not in (RUNNING, ZOMBIE) or space[tid] not in living:
            table.leader.pop(tid, None)
            state[tid] = FREE
        elif tid not in threads.setdefault(pid, []):
            threads[pid].append(tid)
    _set(table.threads, {pid: some for pid, some in threads.items() if some})
    for pid, now in enumerate(state):
        if now == THREAD and pid not in table.leader:
            state[pid] = FREE
        elif now == RUNNING and space[pid] not in living:
            if pid not in table.threads:
                table.ended.append(pid)
            state[pid] = ZOMBIE
        if state[pid] == ZOMBIE:
            space[pid] = 0


def _set(some: Watched[Any], to: Mapping[int, Any]) -> None:
    """What few tasks have is that."""
    some.clear()
    some.update(to)


# ---- links and counters ----


def _relink(table: ProcessTable) -> None:
    """Each process once among the children of its parent: in the order in which lists, as far as they hold, have them,
    those of other parents and of nobody behind."""
    processes = {pid: table.parent[pid] for pid, state in enumerate(table.state) if state in (RUNNING, ZOMBIE)}
    children: dict[int, list[int]] = {parent: [] for parent in (0, *processes)}
    heads = [pid for pid, first in enumerate(table.first_child) if first]
    seen: set[int] = set()
    for own in (True, False):
        for head in heads:
            for child in _chain(table, head):
                if child in processes and child not in seen and (processes[child] == head) == own:
                    seen.add(child)
                    children.setdefault(processes[child], []).append(child)
    for child in sorted(processes.keys() - seen, key=lambda pid: (table.started_ns[pid], pid)):
        children.setdefault(processes[child], []).append(child)
    table.first_child[:] = table._last_child[:] = array("I", [0]) * len(table.state)
    for parent, some in children.items():
        for before, child, after in zip([0, *some], some, [*some[1:], 0], strict=False):
            table.prev[child], table.next[child] = before, after
        if some:
            table.first_child[parent], table._last_child[parent] = some[0], some[-1]


def _chain(table: ProcessTable, head: int) -> Iterable[int]:
    """The rows that a list of children leads through, also those that are free by now."""
    child, been = table.first_child[head], set[int]()
    while child and child not in been:
        been.add(child)
        yield child
        child = table.next[child]


def _recount(kernel: Kernel) -> None:
    """Counters, and the numbers that are held for groups and sessions."""
    table = kernel.processes
    tasks = [tid for tid, state in enumerate(table.state) if state not in (FREE, HELD)]
    processes = [tid for tid in tasks if table.state[tid] != THREAD]
    table._count = len(processes)
    if not table._wrapped:
        table._last = max(table._last, *tasks)
    table._members = dict(Counter(table.group[pid] for pid in processes))
    table._groups = dict(Counter({table.group[pid]: table.session[pid] for pid in processes}.values()))
    uses = {*table._members, *table._groups}
    for number, state in enumerate(table.state):
        if state in (FREE, HELD):
            table.state[number] = HELD if number in uses else FREE
    users = Counter(kernel.credentials.of(tid).uid for tid in tasks)
    kernel.users.clear()
    kernel.users.update(users)
    for tid, pid in table.leader.items():
        table.cgroup[tid] = table.cgroup[pid]
    kernel.cgroups.recount(tasks)


# ---- what few tasks have ----


def _agree(kernel: Kernel) -> None:
    """Loans are of both sides, signals and reports of who is alive."""
    table = kernel.processes
    pairs = {**{child: lender for lender, child in table.borrower.items()}, **table.lender}
    loans = {
        lender: child
        for child, lender in pairs.items()
        if _runs(table, lender) and _runs(table, child) and table.space[lender] == table.space[child]
    }
    _set(table.borrower, loans)
    _set(table.lender, {child: lender for lender, child in loans.items()})
    for of_task in (table.pending_task, table.death_signal):
        _set(of_task, {tid: value for tid, value in of_task.items() if _runs(table, tid)})
    for of_process in (table.stopped, table.report, table.pending, kernel.threads_faults):
        _set(of_process, {pid: value for pid, value in of_process.items() if _alive(table, pid)})
    same = {pid: some for pid, some in table.same_handlers.items() if _alive(table, pid)}
    for pid, some in same.items():
        some.intersection_update({other for other in some if same.get(other) is some})
        some.add(pid)
        for other in some:
            table.signals[other] = table.signals[min(some)]
    _set(table.same_handlers, same)


def _runs(table: ProcessTable, tid: int) -> bool:
    return table.state[tid] in (RUNNING, THREAD)


def _alive(table: ProcessTable, pid: int) -> bool:
    return pid not in table.leader and table.alive(pid)


def _share(kernel: Kernel) -> None:
    """Who uses which space, whose its faults are, and who pays for it."""
    table = kernel.processes
    users: dict[int, list[int]] = {}
    for tid, state in enumerate(table.state):
        if state in (RUNNING, THREAD):
            users.setdefault(table.space[tid], []).append(tid)
            if kernel.log_owners is not None:
                kernel.own(table.space[tid], table.process(tid))
    shared = {}
    for sid, some in users.items():
        if len(some) == 1:
            continue
        old = kernel.shared.get(sid) or SharedSpace(some[0], {})
        known = [tid for tid in old.saved if tid in some]
        order = [*known, *(tid for tid in some if tid not in known)]
        saved = {tid: old.saved.get(tid) or [0] * _KINDS for tid in order}
        current = old.current
        if current not in saved:
            current = order[0]
            kernel.core.set_faults(sid, saved[current])
        kernel.own(sid, table.process(current))
        shared[sid] = SharedSpace(current, saved)
    _set(kernel.shared, shared)
    if kernel.cgroups:
        for sid, some in users.items():
            owner = next(iter(shared[sid].saved)) if sid in shared else some[0]
            kernel.core.space_cgroup(sid, table.cgroup[owner])


def _free_spaces(kernel: Kernel, living: set[int]) -> None:
    """Those that nobody has."""
    table = kernel.processes
    used = {table.space[tid] for tid, state in enumerate(table.state) if state in (RUNNING, THREAD)}
    if table.executing is not None:
        used.add(table.executing.made.space)
    for sid in living - used:
        kernel.core.space_abandon(sid)


# ---- what had begun ----


def _complete(kernel: Kernel) -> None:
    """Ends, an execve and signals that had begun, and what follows from them."""
    table = kernel.processes
    if table.executing is not None:
        go_on(kernel)
    if table.leaving and _runs(table, table.leaving):
        end_task(kernel, table.leaving, table.status[table.process(table.leaving)])
    if table.dying and table.alive(table.dying):
        die(kernel, table.dying, table.status[table.dying])
    for pid in {table.dying, *table.ended}:
        if table.state[pid] == ZOMBIE and pid not in table.threads:
            end_process(kernel, pid)
    dead = [pid for pid, state in enumerate(table.state) if state == ZOMBIE and pid not in table.threads]
    for pid in dead:
        if table.state[pid] == ZOMBIE and table.first_child[pid]:
            orphan(kernel, pid, find_reaper(kernel, pid))
    for pid in dead:
        if table.state[pid] == ZOMBIE and table.parent[pid] == INIT:
            reap(kernel, pid)
    table.dying = table.leaving = 0
    table.ended.clear()
    if table.killing is not None:
        go_on_killing(kernel)
    if table.stopping is not None:
        pid, tid, sig = table.stopping
        if _alive(table, pid):
            stop(kernel, pid, tid, sig)
        table.stopping = None
    if table.sending is not None:
        sig, to = table.sending
        for pid, tid in to:
            if table.state[pid] in (RUNNING, ZOMBIE) and (not tid or tid in table.tasks(pid)):
                post(kernel, pid, sig, tid)
        table.sending = None
    waiting = {*table.pending, *map(table.process, table.pending_task)}
    kernel.signalled[:] = sorted(waiting)
    settle(kernel)
