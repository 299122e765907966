"""kill and what signals do: default actions, stops, masks, groups, SIGCHLD, subreapers, orphaned groups, init."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from lifecycle.test_identity import fails, limit
from machines import anon, filled, machine, program

from vmemu import PAGE_SIZE, FaultCounts, Process, SegmentationFault
from vmemu.limits import Resource

STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
NOTHING = (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT)
DL, IGN = signal.SIG_DFL, signal.SIG_IGN


def session(m: object) -> Process:
    """A process in a session of its own, so that its groups are not orphans."""
    p: Process = m.spawn()  # type: ignore[attr-defined]
    p.setsid()
    return p


@pytest.mark.parametrize("sig", [s for s in range(1, 65) if s not in (32, 33)])
def test_default_actions(sig: int) -> None:
    """Stop, nothing, or death; the status says by what and, as RLIMIT_CORE is 0, never that a core was dumped."""
    with machine() as m:
        p = session(m)
        c = p.fork()
        c.setpgid()
        p.kill(c.pid, sig)
        if sig in STOPS:
            assert c.state == "stopped"
            with fails(errno.EBUSY):
                c.brk()
            assert p.wait(-1, os.WUNTRACED) == (c.pid, sig << 8 | 0x7F)
        elif sig in NOTHING:
            assert c.state == "running"
        else:
            assert c.state == "zombie"
            assert p.wait() == (c.pid, sig)


def test_a_core_is_dumped_if_the_limit_lets_it() -> None:
    with machine() as m:
        p = m.spawn()
        for dumpable, expected in ((1, signal.SIGSEGV | 0x80), (0, signal.SIGSEGV)):
            c = p.fork()
            limit(c, Resource.CORE, PAGE_SIZE)
            c.set_dumpable(dumpable)
            c.kill(c.pid, signal.SIGSEGV)
            assert p.wait() == (c.pid, expected)
        c = p.fork()
        limit(c, Resource.CORE, PAGE_SIZE)
        c.kill(c.pid, signal.SIGTERM)
        assert p.wait() == (c.pid, signal.SIGTERM)


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("handler", [DL, IGN, "handler"])
def test_dying_of_a_bad_access(handler: object, blocked: bool) -> None:
    """Only a handler that is not blocked helps."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        c.signal(signal.SIGSEGV, handler)
        if blocked:
            c.sigmask(signal.SIG_BLOCK, {signal.SIGSEGV})
        with pytest.raises(SegmentationFault) as caught:
            c.read(0x1000, 1)
        c.force_signal(caught.value.signal)
        if handler == "handler" and not blocked:
            assert c.state == "running"
        else:
            assert p.wait() == (c.pid, signal.SIGSEGV)
        with fails(errno.EPERM):
            m.init.force_signal(signal.SIGSEGV)
        with fails(errno.EINVAL):
            p.force_signal(signal.SIGKILL)


def test_killing_frees_the_memory() -> None:
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        before = m.meminfo()
        filled(c, 20)
        c.fork_many(3)
        p.kill(c.pid, signal.SIGKILL)
        for q in m.init.children[1:]:
            p.kill(q.pid, signal.SIGKILL)
        assert m.meminfo().anon == before.anon
        assert list(m.processes) == [1, p.pid, c.pid]
        assert p.wait() == (c.pid, signal.SIGKILL)


def test_errors_of_kill() -> None:
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        for pid, sig, number in (
            (99, 0, errno.ESRCH),
            (99, 65, errno.ESRCH),
            (c.pid, 65, errno.EINVAL),
            (c.pid, -1, errno.EINVAL),
            (-99, 9, errno.ESRCH),
            (-(1 << 31), 9, errno.ESRCH),
        ):
            with fails(number):
                p.kill(pid, sig)
        p.kill(c.pid, 0)
        c.setuid(1000)
        with fails(errno.EPERM):
            c.kill(p.pid, 0)
        c.kill(p.pid, signal.SIGCONT)  # same session
        c.exit()
        p.kill(c.pid, signal.SIGKILL)  # a zombie can be sent anything
        for pid, tid in ((0, 1), (1, 0)):
            with fails(errno.EINVAL):
                p.tgkill(pid, tid, 0)
        with fails(errno.ESRCH):
            p.tgkill(p.pid, c.pid, 0)


def test_init_is_immune() -> None:
    """Of all signals with their default action; even SIGKILL and SIGSTOP."""
    with machine() as m:
        p = m.spawn()
        for sig in range(1, 65):
            p.kill(1, sig)
            m.init.kill(1, sig)
        assert m.init.state == "running"
        assert m.init.pending == set()


def test_groups_and_everybody() -> None:
    with machine() as m:
        p = session(m)
        a, b, other = p.fork(), p.fork(), m.spawn()
        a.setpgid()
        b.setpgid(0, a.pid)
        p.kill(-a.pid, signal.SIGUSR1)
        assert (a.state, b.state, p.state) == ("zombie", "zombie", "running")
        c = p.fork()
        p.signal(signal.SIGTERM, IGN)
        p.kill(0, signal.SIGTERM)
        assert (c.state, p.state, other.state) == ("zombie", "running", "running")
        p.kill(-1, signal.SIGKILL)
        assert (other.state, p.state) == ("gone", "running")
        p.kill(0, signal.SIGKILL)
        assert list(m.processes) == [1]


def test_dispositions_are_inherited_and_execve_drops_handlers(tmp_path: Path) -> None:
    with machine() as m:
        p = m.spawn()
        assert p.signal(signal.SIGUSR1, "mine") == DL
        p.signal(signal.SIGUSR2, IGN)
        p.sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGKILL})
        c = p.fork()
        p.kill(c.pid, signal.SIGUSR1)
        p.kill(c.pid, signal.SIGUSR2)
        p.kill(c.pid, signal.SIGTERM)
        assert c.pending == {signal.SIGTERM}
        assert c.fork().pending == set()
        c.execve(str(program(tmp_path)))
        assert c.signal(signal.SIGUSR1, DL) == DL
        assert c.signal(signal.SIGUSR2, IGN) == IGN
        assert c.pending == {signal.SIGTERM}
        assert c.sigmask(signal.SIG_SETMASK, ()) == {signal.SIGTERM}
        assert c.state == "zombie"
        assert p.signal(signal.SIGUSR1, DL) == "mine"
        for sig in (0, 65, signal.SIGKILL, signal.SIGSTOP):
            with fails(errno.EINVAL):
                p.signal(sig, IGN)
        with fails(errno.EINVAL):
            p.sigmask(7, ())


def test_what_is_ignored_does_not_wait() -> None:
    with machine() as m:
        p = m.spawn()
        p.sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGCHLD})
        p.kill(p.pid, signal.SIGUSR1)
        p.kill(p.pid, signal.SIGCHLD)
        assert p.pending == {signal.SIGUSR1, signal.SIGCHLD}
        p.signal(signal.SIGUSR1, IGN)
        p.signal(signal.SIGCHLD, DL)
        assert p.pending == set()


def test_stop_and_go_on() -> None:
    """A stopped process keeps what it is sent, but SIGKILL; SIGCONT makes it go on, whatever it thinks of it; the
    parent is told once of each."""
    with machine() as m:
        p = session(m)
        c = p.fork()
        c.signal(signal.SIGCONT, IGN)
        c.kill(c.pid, signal.SIGSTOP)
        with fails(errno.EAGAIN):
            p.wait()
        assert p.wait(c.pid, os.WNOHANG) == (0, 0)
        assert p.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOWAIT) == p.waitid(os.P_ALL, 0, os.WSTOPPED)
        assert p.wait(c.pid, os.WNOHANG | os.WUNTRACED) == (0, 0)
        p.kill(c.pid, signal.SIGTERM)
        assert (c.state, c.pending) == ("stopped", {signal.SIGTERM})
        p.kill(c.pid, signal.SIGCONT)
        assert c.state == "zombie"
        assert p.wait() == (c.pid, signal.SIGTERM)
        d = p.fork()
        d.setpgid()  # the group of a session's leader is an orphan
        p.kill(d.pid, signal.SIGTSTP)
        p.kill(d.pid, signal.SIGCONT)
        assert d.state == "running"
        pid, status = p.wait(-1, os.WCONTINUED | os.WNOHANG)
        assert (pid, os.WIFCONTINUED(status)) == (d.pid, True)
        p.kill(d.pid, signal.SIGSTOP)
        p.kill(d.pid, signal.SIGKILL)
        assert p.wait() == (d.pid, signal.SIGKILL)


def test_stopping_discards_sigcont_and_the_other_way_round() -> None:
    with machine() as m:
        p = session(m)
        c = p.fork()
        c.setpgid()
        c.sigmask(signal.SIG_BLOCK, {signal.SIGTSTP, signal.SIGCONT})
        p.kill(c.pid, signal.SIGTSTP)
        assert c.pending == {signal.SIGTSTP}
        p.kill(c.pid, signal.SIGCONT)
        assert c.pending == {signal.SIGCONT}
        p.kill(c.pid, signal.SIGTTIN)
        assert c.pending == set()
        assert c.state == "stopped"


def test_children_of_who_ignores_sigchld_leave_no_zombie() -> None:
    for handler, flags in ((IGN, 0), (DL, 2), ("handler", 2)):
        with machine() as m:
            p = m.spawn()
            p.signal(signal.SIGCHLD, handler, flags)
            c = p.fork()
            c.touch(anon(c), 1, write=True)
            c.exit()
            assert c.state == "gone"
            with fails(errno.ECHILD):
                p.wait()
            assert m._kernel.processes.children_minor[p.pid] == 0


def test_faults_of_children_count_when_they_are_waited_for() -> None:
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        g = c.fork()
        g.touch(anon(g, 3), 3 * PAGE_SIZE, write=True)
        g.exit()
        c.touch(anon(c, 2), 2 * PAGE_SIZE, write=True)
        c.wait()
        c.exit()
        assert p.getrusage(-1).ru_minflt == 0
        p.wait()
        assert p.getrusage(-1) == (5, 0)
        assert p.getrusage() == p.getrusage(1) == (0, 0)
        with fails(errno.EINVAL):
            p.getrusage(2)
        assert p.faults == FaultCounts()


def test_orphans_go_to_the_nearest_subreaper() -> None:
    """Alive or dead; a subreaper is sent SIGCHLD and has to wait."""
    with machine() as m:
        far = m.spawn()
        far.set_child_subreaper(True)
        near = far.fork()
        near.set_child_subreaper(True)
        p = near.fork()
        alive, dead = p.fork(), p.fork()
        dead.exit(3)
        p.exit()
        assert (alive.ppid, dead.ppid, dead.state) == (near.pid, near.pid, "zombie")
        assert near.wait(dead.pid) == (dead.pid, 3 << 8)
        near.exit()
        assert (alive.ppid, p.ppid) == (far.pid, far.pid)
        assert far.wait(p.pid) == (p.pid, 0)
        far.set_child_subreaper(False)
        q = alive.fork()
        alive.exit()
        assert q.ppid == 1


def test_a_subreaper_that_ignores_sigchld_gets_no_dead() -> None:
    with machine() as m:
        r = m.spawn()
        r.set_child_subreaper(True)
        r.signal(signal.SIGCHLD, IGN)
        p = r.fork()
        c = p.fork()
        c.exit()
        p.exit()
        assert (p.state, c.state) == ("gone", "gone")


def test_death_signal() -> None:
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        q = c.fork()
        q.set_death_signal(signal.SIGUSR1)
        kid = q.fork()
        c.exit()
        assert (q.state, kid.ppid) == ("gone", 1)
        with fails(errno.EINVAL):
            p.set_death_signal(65)


def test_an_orphaned_group_with_stopped_members_is_hung_up() -> None:
    with machine() as m:
        shell = session(m)
        job = shell.fork()
        job.setpgid()
        member = job.fork()
        member.kill(member.pid, signal.SIGTSTP)
        assert member.state == "stopped"
        shell.exit()  # job goes to init: nobody in the session looks after its group
        assert (job.state, member.state) == ("gone", "gone")
        shell = session(m)
        job = shell.fork()
        job.setpgid()
        job.signal(signal.SIGHUP, IGN)
        job.kill(job.pid, signal.SIGSTOP)
        shell.exit()
        assert job.state == "running"
        job.kill(job.pid, signal.SIGTSTP)  # does not stop an orphaned group
        assert job.state == "running"
        job.kill(job.pid, signal.SIGSTOP)
        assert job.state == "stopped"


def test_a_vfork_parent_dies_of_what_is_fatal_only() -> None:
    """It is asleep: SIGTERM kills it and the child keeps the memory; what would stop it waits."""
    with machine() as m:
        top = session(m)
        p = top.fork()
        a = filled(p)
        v = p.vfork()
        top.kill(p.pid, signal.SIGSTOP)
        top.kill(p.pid, signal.SIGQUIT)
        assert (p.state, p.pending) == ("suspended", {signal.SIGSTOP, signal.SIGQUIT})
        v.exit()
        assert p.state == "zombie"
        p = top.fork()
        a = filled(p)
        v = p.vfork()
        top.kill(p.pid, signal.SIGTERM)
        assert (p.state, v.ppid, v.read(a, 1)) == ("zombie", 1, b"\1")
        v.exit()


@pytest.mark.parametrize("idtype", [os.P_ALL, os.P_PID, os.P_PGID])
def test_waitid(idtype: int) -> None:
    with machine() as m:
        p = session(m)
        c = p.fork()
        c.setuid(1000)
        number = {os.P_ALL: 0, os.P_PID: c.pid, os.P_PGID: 0}[idtype]
        assert p.waitid(idtype, number, os.WEXITED | os.WNOHANG) is None
        c.exit(5)
        with fails(errno.ECHILD):
            p.waitid(idtype, number, os.WSTOPPED)
        info = p.waitid(idtype, number, os.WEXITED)
        assert info is not None
        assert (info.si_pid, info.si_uid, info.si_status, info.si_code) == (c.pid, 1000, 5, os.CLD_EXITED)
        for options in (0, os.WNOHANG, os.WEXITED | 1 << 20):
            with fails(errno.EINVAL):
                p.waitid(idtype, number, options)
        for bad in ((os.P_PID, 0), (os.P_PGID, -1), (9, 1)):
            with fails(errno.EINVAL):
                p.waitid(*bad, os.WEXITED)
