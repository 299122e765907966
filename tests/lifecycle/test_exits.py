"""Machine.exit_many: the same as exit() of one after the other, however many and whoever they are."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Sequence

import pytest
from machines import PAGE, A, anon, every_mode, filled, machine

from vmemu import Clone, ForkMode, Machine, Process, SyscallError

Family = Callable[[Machine, Process], Sequence[Process]]


def plain(m: Machine, p: Process) -> Sequence[Process]:
    """Some have faults, of which some are major."""
    f = m.open_file(__file__)
    b = p.mmap(None, PAGE, 1, 2, f)
    kids = p.fork_many(5)
    for n, kid in enumerate(kids):
        kid.touch(A, n * PAGE, write=True)
    kids[3].read(b, 8)
    return kids


def every_other(m: Machine, p: Process) -> Sequence[Process]:
    """A sequence with gaps, backwards."""
    return p.fork_many(9)[::-2]


def listed(m: Machine, p: Process) -> Sequence[Process]:
    """Handles in a list, of two parents."""
    q = m.spawn()
    return [*p.fork_many(3), *q.fork_many(2), p.fork()]


def parents(m: Machine, p: Process) -> Sequence[Process]:
    """Some have children, which init adopts and which are zombies or not."""
    kids = p.fork_many(3)
    kids[0].fork()
    kids[2].fork().exit(3)
    return kids


def suspended(m: Machine, p: Process) -> Sequence[Process]:
    """The last one's parent waits in vfork for it."""
    kids = list(p.fork_many(2))
    return [*kids, kids[0].vfork()][1:]


def threads(m: Machine, p: Process) -> Sequence[Process]:
    """A process with a thread, a thread of another, a child in its parent's memory."""
    a, b = p.fork(), p.fork()
    how = Clone.VM | Clone.SIGHAND | Clone.THREAD
    a.clone(how)
    return [a, b.clone(how), p.clone(Clone.VM | signal.SIGCHLD)]


def heard(m: Machine, p: Process) -> Sequence[Process]:
    """The parent wants to hear nothing of its children, who are gone at once."""
    p.signal(signal.SIGCHLD, signal.SIG_IGN)
    return p.fork_many(3)


def told(m: Machine, p: Process) -> Sequence[Process]:
    """Children get a signal when their parent dies."""
    kids = p.fork_many(2)
    kids[0].fork().set_death_signal(signal.SIGTERM)
    return kids


def of_init(m: Machine, p: Process) -> Sequence[Process]:
    """Init reaps at once."""
    return [m.spawn() for _ in range(3)]


FAMILIES = (plain, every_other, listed, parents, suspended, threads, heard, told, of_init)


def outcome(m: Machine, p: Process) -> list[object]:
    """All that is to be seen afterwards."""
    seen: list[object] = [{pid: (q.state, q.ppid) for pid, q in m.processes.items()}, m.meminfo(), m.faults]
    m.verify()
    while any(q.state == "zombie" for q in p.children):
        seen.append((p.wait(), p.getrusage(-1)))
    m.verify()
    return seen


@every_mode
@pytest.mark.parametrize("family", FAMILIES)
def test_as_one_after_the_other(family: Family, mode: ForkMode) -> None:
    """Who is left, what they are told, what is counted and what memory is free."""
    seen = []
    for many in (True, False):
        with machine(fork_mode=mode) as m:
            p = m.spawn()
            filled(p, 8, A)
            processes = family(m, p)
            if many:
                m.exit_many(processes, 7)
            else:
                for process in processes:
                    process.exit(7)
            seen.append(outcome(m, p))
    assert seen[0] == seen[1]


def test_more_than_go_at_once() -> None:
    """A few thousand, the odd one out in the middle."""
    with machine() as m:
        p = m.spawn()
        kids = p.fork_many(5000, mode=ForkMode.ON_DEMAND)
        kids[2500].fork()
        m.exit_many(kids, 256 + 3)
        assert len(m.processes) == 5003 and all(kid.state == "zombie" for kid in kids)
        m.verify()
        assert [p.wait() for _ in kids] == [(kid.pid, 3 << 8) for kid in kids]


def test_what_cannot_exit_stops_it() -> None:
    """Those before it have ended; the rest live. Handles of another machine, and what is no handle, end nobody."""
    with machine() as m, machine() as other:
        p = m.spawn()
        kids = list(p.fork_many(4))
        for wrong, error in ((other.spawn(), ValueError), (7, TypeError), (None, TypeError)):
            with pytest.raises(error, match="exit_many"):
                m.exit_many([*kids, wrong])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="code"):
            m.exit_many(kids, "1")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            m.exit_many(p)  # type: ignore[arg-type]
        assert all(kid.state == "running" for kid in kids)
        with pytest.raises(SyscallError) as gone:
            m.exit_many([kids[0], kids[1], kids[1], kids[2]])
        assert gone.value.errno == errno.ESRCH
        with pytest.raises(SyscallError) as init:
            m.exit_many([kids[2], m.init, kids[3]])
        assert init.value.errno == errno.EPERM
        assert [kid.state for kid in kids] == ["zombie", "zombie", "zombie", "running"]
        a = anon(kids[3])
        v = kids[3].vfork()
        with pytest.raises(SyscallError) as busy:
            m.exit_many([kids[3]])
        assert busy.value.errno == errno.EBUSY
        m.exit_many([v, kids[3]])
        m.exit_many([])
        m.exit_many(p.fork_many(0))
        assert a and all(kid.state == "zombie" for kid in kids)
        m.verify()
