"""Ends: of a task, of a process, and what signals do to one. The memory goes at once, a zombie stays for the parent,
children get another parent.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vmemu.dispositions import ALWAYS, CORES, NOTHING, STOPS, bit, in_order
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle.memory import hand_on_space, leave_space, use
from vmemu.lifecycle.signals import allowed, fatal, post, tell_parent
from vmemu.limits import Resource
from vmemu.pids import INIT, RUNNING, SIGCHLD, ZOMBIE, Flag, ProcessTable
from vmemu.types import PAGE_SIZE, FaultKind
from vmemu.whole import whole

__all__ = [
    "Tally",
    "die",
    "end_process",
    "end_task",
    "exit_group",
    "go_on_killing",
    "kill_all",
    "orphan",
    "reap",
    "settle",
    "stay_alone",
    "stop",
    "uncount",
]

_FATAL, _FILE_MAJOR, _SWAP_IN = int(FaultKind.SEGV_MAPERR), int(FaultKind.FILE_MAJOR), int(FaultKind.SWAP_IN)
_CORE = 0x80
"""Bit of the status: a core was dumped."""
_JOB_STOPS = STOPS & ~ALWAYS


# ---- tasks and processes ----


@whole
def end_task(kernel: Kernel, tid: int, status: int) -> None:
    """One task ends (do_exit()); its process goes on if there are others, and has the status of the last of them
    (synchronize_group_exit())."""
    table = kernel.processes
    pid = table.process(tid)
    table.status[pid] = status
    table.leaving = tid
    _leave(kernel, tid)
    if not table.alive(pid):
        table.dying = pid
        table.leaving = 0
        end_process(kernel, pid)
    table.dying = table.leaving = 0
    settle(kernel)


def exit_group(kernel: Kernel, tid: int, status: int) -> None:
    """exit_group(2) by a task. ESRCH, EBUSY; EPERM for init."""
    try:
        kernel.lock.acquire()
        table = kernel.processes
        pid = tid  # there are no threads, if this is so
        if not (table.quiet and table.space[tid]):
            pid = table.process(tid) if table.plain and table.space[tid] else use(kernel, tid, "exit").pid
        if pid == INIT:
            raise syscall_error("exit", errno.EPERM, "init cannot exit")
        die(kernel, pid, status)
        if kernel.signalled:
            settle(kernel)
    except BaseException as error:
        table = kernel.processes
        table.torn, table.plain, table.quiet = True, False, False
        kernel.interrupted(error)
        raise
    finally:
        kernel.lock.release()


def die(kernel: Kernel, pid: int, status: int) -> None:
    """All tasks of a process end (do_group_exit()). *status* is as wait(2) gives it."""
    table = kernel.processes
    table.status[pid] = status
    table.dying = pid  # from here on it ends, whatever comes
    if not table.quiet:
        if table.threads:
            end_threads(kernel, pid, 0)
        if table.state[pid] == RUNNING:
            _leave(kernel, pid)
        end_process(kernel, pid)
        table.dying = 0
        return
    # the same with nothing that few have
    counted, nobjects = kernel.core.space_end(table.space[pid])
    kernel.files.tidy(nobjects)
    table.state[pid] = ZOMBIE
    table.space[pid] = 0
    if counted:
        _keep_faults(table, pid, counted)
    if table.first_child[pid]:
        orphan(kernel, pid, find_reaper(kernel, pid))
    parent = table.parent[pid]
    told = parent == INIT or table.odd[parent] or table.exit_signal[pid] != SIGCHLD
    if told and _bury_at_once(kernel, pid):
        reap(kernel, pid)
    table.dying = 0


class Tally(NamedTuple):
    """What is counted and noted when the OOM killer kills."""

    events: Sequence[tuple[dict[str, int], str]]
    """Counters and names in them, of control groups; one more for each time that it is here."""
    kills: int
    """What `Kernel.oom_kills` is then."""
    report: object


@whole
def kill_all(kernel: Kernel, pids: Iterable[int], tally: Tally | None = None) -> None:
    """SIGKILL, which ends them at once: all or none."""
    sums: dict[tuple[int, str], tuple[dict[str, int], int]] = {}
    for events, name in () if tally is None else tally.events:
        _, n = sums.get((id(events), name), (events, events[name]))
        sums[id(events), name] = events, n + 1
    counts = [(events, name, n) for (_, name), (events, n) in sums.items()]
    kernel.processes.killing = list(pids), counts, tally
    go_on_killing(kernel)
    settle(kernel)


def go_on_killing(kernel: Kernel) -> None:
    """What `kill_all` has begun, from wherever it was interrupted: each step does no harm if it is made twice."""
    pids, counts, tally = kernel.processes.killing
    for events, name, n in counts:
        events[name] = n
    if tally is not None:
        kernel.oom_kills = tally.kills
        if not kernel.oom_reports or kernel.oom_reports[-1] is not tally.report:
            kernel.oom_reports.append(tally.report)
    for pid in pids:
        if kernel.processes.alive(pid):
            die(kernel, pid, signal.SIGKILL)
    kernel.processes.killing = None


def end_threads(kernel: Kernel, pid: int, survivor: int) -> None:
    """All tasks of a process but the first and the survivor end."""
    for tid in list(kernel.processes.threads.get(pid, ())):
        if tid != survivor:
            _leave(kernel, tid)


def stay_alone(kernel: Kernel, tid: int) -> None:
    """All other tasks of a process end, and the one that stays has the number of the process (de_thread())."""
    table = kernel.processes
    pid = table.process(tid)
    end_threads(kernel, pid, tid)
    if tid == pid:
        return
    if table.state[pid] == RUNNING:
        _leave(kernel, pid)
    uncount(kernel, pid)
    for column in (table.image, table.name, table.credentials, table.blocked, table.flags):
        column[pid] = column[tid]
    for sparse in (table.pending_task, table.death_signal):
        if tid in sparse:
            sparse[pid] = sparse.pop(tid)
    hand_on_space(kernel, tid, pid)
    table.remove_thread(tid)
    table.state[pid] = RUNNING


def _leave(kernel: Kernel, tid: int) -> None:
    """Takes from a task all but its number, and that too unless it is the first of its process."""
    table = kernel.processes
    pid = table.process(tid)
    counted = leave_space(kernel, tid)
    if table.borrower:
        borrower = table.borrower.pop(tid, 0)
        if borrower:
            del table.lender[borrower]
    if table.pending_task:
        table.pending_task.pop(tid, None)
    if table.death_signal:
        table.death_signal.pop(tid, None)
    if tid != pid or table.threads or pid in kernel.threads_faults:
        ended = kernel.threads_faults.get(pid)
        if ended is not None:
            counted = [a + b for a, b in zip(ended, counted, strict=True)]
        kernel.threads_faults[pid] = counted
    if tid == pid:
        table.state[pid] = ZOMBIE
    else:
        table.remove_thread(tid)
        uncount(kernel, tid)
    _keep_faults(table, pid, counted)


def _keep_faults(table: ProcessTable, pid: int, counted: Sequence[int]) -> None:
    """What a dead process has in its columns."""
    resolved = sum(counted[1:_FATAL])
    if resolved:
        table.major[pid] = major = counted[_FILE_MAJOR] + counted[_SWAP_IN]
        table.minor[pid] = resolved - major


def end_process(kernel: Kernel, pid: int) -> None:
    """The last task has ended (exit_notify())."""
    table = kernel.processes
    if kernel.threads_faults:
        kernel.threads_faults.pop(pid, None)
    if table.pending:
        table.pending.pop(pid, None)
    if table.report or table.stopped:
        table.report.pop(pid, None)
        table.stopped.pop(pid, None)
    if table.same_handlers and pid in table.same_handlers:
        table.same_handlers.pop(pid).discard(pid)
    if table.first_child[pid]:
        orphan(kernel, pid, find_reaper(kernel, pid))
    if table.stopped:
        _orphaned_group(kernel, pid, table.parent[pid], pid)
    if _bury_at_once(kernel, pid):
        reap(kernel, pid)


def find_reaper(kernel: Kernel, pid: int) -> int:
    """Who adopts the children: the nearest ancestor that asked for it, else init (find_new_reaper())."""
    table = kernel.processes
    ancestor = table.parent[pid]
    while ancestor > INIT and not (table.flags[ancestor] & Flag.SUBREAPER and table.alive(ancestor)):
        ancestor = table.parent[ancestor]
    return ancestor or INIT


def orphan(kernel: Kernel, pid: int, reaper: int) -> None:
    """What the end of a process means to its children (forget_original_parent())."""
    table = kernel.processes
    children = list(table.children(pid))
    table.adopt(pid, reaper)
    for child in children:
        if child in table.death_signal and allowed(kernel, pid, child, table.death_signal[child]):
            post(kernel, child, table.death_signal[child])
        table.exit_signal[child] = SIGCHLD
        if table.stopped:
            _orphaned_group(kernel, child, pid, 0)
        if not table.alive(child) and _bury_at_once(kernel, child):
            reap(kernel, child)


def _bury_at_once(kernel: Kernel, pid: int) -> bool:
    """Tells the parent of a death -> whether it does not care and the zombie is reaped (do_notify_parent())."""
    table = kernel.processes
    parent, sig = table.parent[pid], table.exit_signal[pid]
    if parent == INIT:
        return True
    alone = False
    if sig == SIGCHLD:
        if not table.signals[parent] and not table.blocked[parent]:
            return False
        dispositions = kernel.signals.of(parent)
        ignored = bool(dispositions.ignored & bit(sig))
        alone = ignored or dispositions.nocldwait
        sig = 0 if ignored else sig
    if 0 < sig <= 64:
        post(kernel, parent, sig)
    return alone


def reap(kernel: Kernel, pid: int, counted: bool = False) -> None:
    """Frees the row of a process that is dead and has no children (release_task()). *counted*: its parent waited, as
    init always does."""
    table = kernel.processes
    table.remove(pid, counted or table.parent[pid] == INIT)
    uncount(kernel, pid)


def uncount(kernel: Kernel, tid: int) -> None:
    """One task less for its user and its control group."""
    users, uid = kernel.users, kernel.credentials.of(tid).uid
    users[uid] -= 1
    if not users[uid]:
        del users[uid]
    if kernel.processes.cgroup[tid]:
        kernel.cgroups.of(tid).charge(-1)


# ---- signals arrive ----


def settle(kernel: Kernel) -> None:
    """Lets signals that were sent do what they do, to whoever they concern, until nothing is left to do."""
    queue = kernel.signalled
    while queue:
        pid = queue.pop(0)
        if kernel.processes.alive(pid):
            _receive(kernel, pid)


def _receive(kernel: Kernel, pid: int) -> None:
    """The signals that a process has and does not block, one after the other (get_signal())."""
    table = kernel.processes
    for tid in table.tasks(pid):
        while True:
            sig = _next(kernel, pid, tid)
            if not sig:
                break
            default = kernel.signals.of(pid).default(sig)
            if not default or bit(sig) & NOTHING or pid == INIT:
                pass  # a handler runs, or nothing happens
            elif not bit(sig) & STOPS:
                die(kernel, pid, sig | (_CORE if _dumps_core(kernel, pid, sig) else 0))
                return
            elif not bit(sig) & _JOB_STOPS or not _orphaned(kernel, table.group[pid], 0):
                table.stopping = (pid, tid, sig)
                stop(kernel, pid, tid, sig)
                table.stopping = None
                continue
            _take(kernel, pid, tid, sig)


def stop(kernel: Kernel, pid: int, tid: int, sig: int) -> None:
    """A signal stops a process (do_signal_stop())."""
    table = kernel.processes
    table.stopped[pid] = sig
    table.report[pid] = sig << 8 | 0x7F
    tell_parent(kernel, pid)
    _take(kernel, pid, tid, sig)


def _next(kernel: Kernel, pid: int, tid: int) -> int:
    """The next signal for a task -> 0 if there is none, or none that gets through to it where it is. It waits until it
    has done what it does."""
    table = kernel.processes
    own, shared = table.pending_task.get(tid, 0), table.pending.get(pid, 0)
    mask = (own | shared) & ~table.blocked[tid]
    if pid in table.stopped:
        mask &= bit(signal.SIGKILL)
    elif tid in table.borrower:
        dispositions = kernel.signals.of(pid)
        mask = sum(bit(sig) for sig in range(1, 65) if mask & bit(sig) and fatal(dispositions, sig))
    if not mask:
        return 0
    first = bit(signal.SIGKILL) if mask & bit(signal.SIGKILL) else 0
    return in_order(first or mask & own or mask)


def _take(kernel: Kernel, pid: int, tid: int, sig: int) -> None:
    """A signal does not wait any more."""
    table = kernel.processes
    for waiting, who in ((table.pending_task, tid), (table.pending, pid)):
        if waiting.get(who, 0) & bit(sig):
            waiting[who] &= ~bit(sig)
            if not waiting[who]:
                del waiting[who]
            break


def _dumps_core(kernel: Kernel, pid: int, sig: int) -> bool:
    """do_coredump(), as far as the status tells: RLIMIT_CORE is 0 by default."""
    room = kernel.limits.of(pid).soft(Resource.CORE) >= PAGE_SIZE
    return bool(bit(sig) & CORES) and room and not kernel.processes.flags[pid] & Flag.UNDUMPABLE


def _orphaned(kernel: Kernel, group: int, leaving: int) -> bool:
    """No member has a parent in another group of the same session (will_become_orphaned_pgrp())."""
    table = kernel.processes
    for pid in table.members(group):
        parent = table.parent[pid]
        if pid == leaving or not table.alive(pid) or parent == INIT:
            continue
        if table.group[parent] != group and table.session[parent] == table.session[pid]:
            return False
    return True


def _orphaned_group(kernel: Kernel, pid: int, parent: int, leaving: int) -> None:
    """SIGHUP and SIGCONT to a group with stopped members that nobody in its session looks after any more, because
    *leaving* goes or *pid* loses *parent* (kill_orphaned_pgrp())."""
    table = kernel.processes
    group = table.group[pid]
    if table.group[parent] == group or table.session[parent] != table.session[pid]:
        return
    members = table.members(group)
    if _orphaned(kernel, group, leaving) and any(member in table.stopped for member in members):
        for sig in (signal.SIGHUP, signal.SIGCONT):
            for member in members:
                post(kernel, member, sig)
