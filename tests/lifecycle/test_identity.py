"""Users, capabilities, process groups, sessions, names; what fork hands on and execve changes; RLIMIT_NPROC."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from machines import machine, program

from vmemu import ForkMode, Process, SyscallError
from vmemu.credentials import ALL_CAPABILITIES, Capability
from vmemu.limits import RLIM_INFINITY, Limits, Resource


@contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(SyscallError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def uids(p: Process) -> tuple[int, ...]:
    who = p.credentials
    return (who.uid, who.euid, who.suid, who.fsuid)


def limit(p: Process, resource: Resource, soft: int) -> None:
    pool = p._kernel.limits
    pool.give(p.pid, pool.of(p.pid).replace(resource, soft, RLIM_INFINITY))


def test_root_has_everything_and_a_user_nothing() -> None:
    with machine() as m:
        p = m.spawn()
        assert (uids(p), p.credentials.effective) == ((0, 0, 0, 0), ALL_CAPABILITIES)
        p.setgid(7)
        p.setgroups([9, 3, 9])
        p.setuid(1000)
        assert (p.uid, p.euid, p.gid, p.egid, p.groups) == (1000, 1000, 7, 7, (3, 9, 9))
        assert (p.credentials.effective, p.credentials.permitted) == (0, 0)
        with fails(errno.EPERM):
            p.setuid(0)
        with fails(errno.EPERM):
            p.setgroups([])
        assert (m.init.uid, m.spawn().uid) == (0, 0)


def test_effective_capabilities_go_and_come_with_the_effective_user() -> None:
    with machine() as m:
        p = m.spawn()
        p.seteuid(1000)
        assert uids(p) == (0, 1000, 0, 1000)
        assert (p.credentials.effective, p.credentials.permitted) == (0, ALL_CAPABILITIES)
        p.seteuid(0)
        assert p.credentials.capable(Capability.SYS_ADMIN)
        p.setfsuid(1000)
        assert p.credentials.effective == ALL_CAPABILITIES & ~0x10000021F & ~(1 << Capability.MKNOD)
        assert p.setfsuid(0) == 1000
        assert p.credentials.effective == ALL_CAPABILITIES


@pytest.mark.parametrize("bad", [-2, 1 << 32])
def test_ids_that_are_none(bad: int) -> None:
    with machine() as m:
        p = m.spawn()
        for call in (p.setuid, p.setgid, p.seteuid, p.setegid, lambda i: p.setreuid(i, -1), lambda i: p.setgroups([i])):
            with fails(errno.EINVAL):
                call(bad)
        before = p.credentials
        p.setfsuid(bad)
        p.setresuid(-1, -1, -1)
        assert p.credentials == before


def test_capset_gives_nothing_that_was_not_there() -> None:
    with machine() as m:
        p = m.spawn()
        lock = 1 << Capability.IPC_LOCK
        p.capset(lock, lock | 1)
        assert (p.credentials.effective, p.credentials.permitted) == (lock, lock | 1)
        p.capset(1, 1)
        for effective, permitted, inheritable in ((1, 0, 0), (0, 2, 0), (0, 0, 2)):
            with fails(errno.EPERM):
                p.capset(effective, permitted, inheritable)


def test_fork_hands_on_and_execve_changes(tmp_path: Path) -> None:
    """Inherited: credentials, limits, group, session, name, oom_score_adj, dumpable. execve: name, capabilities,
    dumpable; not the rest."""
    path = program(tmp_path, "a_very_long_program_name")
    with machine() as m:
        p = m.spawn()
        p.setsid()
        p.set_name("parent" * 4)
        p.set_oom_score_adj(300)
        limit(p, Resource.DATA, 1 << 20)
        p.seteuid(1000)
        assert (p.comm, p.dumpable) == ("parentparentpar", 0)
        for c in (p.fork(), *p.fork_many(3), p.vfork()):
            for name in ("credentials", "comm", "oom_score_adj", "dumpable"):
                assert getattr(c, name) == getattr(p, name), name
            assert (c.getpgid(), c.getsid()) == (p.pid, p.pid)
            assert m._kernel.limits.of(c.pid).soft(Resource.DATA) == 1 << 20
        c.execve(str(path))
        assert (c.comm, c.getpgid(), c.getsid(), c.oom_score_adj) == ("a_very_long_pro", p.pid, p.pid, 300)
        assert m._kernel.limits.of(c.pid) == m._kernel.limits.of(p.pid)
        assert uids(c) == (0, 1000, 1000, 1000)
        assert (c.credentials.permitted, c.credentials.effective) == (ALL_CAPABILITIES, 0)
        assert c.dumpable == 0
        c.setuid(0)
        c.execve(str(path))
        assert (c.credentials.effective, c.dumpable) == (ALL_CAPABILITIES, 1)


def test_set_id_bits_of_a_program(tmp_path: Path) -> None:
    """A set-user-ID program of root runs with all capabilities, whoever executes it."""
    path = program(tmp_path)
    nosuid = os.statvfs(path).f_flag & os.ST_NOSUID
    if os.getuid() or nosuid:
        pytest.skip("needs root and a file system that honours set-user-ID")
    path.chmod(0o4755)
    with machine() as m:
        tmp_path.chmod(0o755)
        p = m.spawn()
        p.setuid(1000)
        p.execve(str(path))
        assert uids(p) == (1000, 0, 0, 0)
        assert (p.credentials.effective, p.dumpable) == (ALL_CAPABILITIES, 0)
        p.setuid(1000)
        assert p.credentials.permitted == 0


def test_groups_and_sessions() -> None:
    """setpgid(2) and setsid(2) and their errors."""
    with machine() as m:
        p = m.spawn()
        assert (p.getpgid(), p.getsid()) == (1, 1)
        assert p.setsid() == p.pid == p.getpgid() == p.getsid()
        with fails(errno.EPERM):
            p.setsid()
        with fails(errno.EPERM):
            p.setpgid()  # leads a session
        a, b = p.fork(), p.fork()
        p.setpgid(a.pid)
        b.setpgid(0, a.pid)
        assert (a.getpgid(), b.getpgid(), p.getpgid(b.pid)) == (a.pid, a.pid, a.pid)
        with fails(errno.EPERM):
            a.setsid()  # leads a group
        with fails(errno.EPERM):
            b.setpgid(0, 99)
        with fails(errno.EINVAL):
            b.setpgid(0, -5)
        with fails(errno.EINVAL):
            b.setpgid(-1, 0)
        for stranger in (p.pid, a.pid, 99):
            with fails(errno.ESRCH):
                b.setpgid(stranger, 0)
        for call in (b.getpgid, b.getsid):
            with fails(errno.ESRCH):
                call(99)
        c = b.fork()
        c.setsid()
        with fails(errno.EPERM):
            b.setpgid(c.pid, a.pid)
        with fails(errno.EPERM):
            c.setpgid(0, a.pid)


def test_a_child_that_has_executed_is_left_alone(tmp_path: Path) -> None:
    """setpgid of a child: EACCES after its execve; its own still works."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        c.execve(str(program(tmp_path)))
        with fails(errno.EACCES):
            p.setpgid(c.pid)
        c.setpgid()
        assert c.getpgid() == c.pid


def test_the_number_of_a_group_is_not_given_again() -> None:
    """While a group or session has it."""
    with machine() as m:
        p = m.spawn()
        leader = p.fork()
        leader.setpgid()
        member = p.fork()
        member.setpgid(0, leader.pid)
        leader.exit()
        p.wait()
        assert leader.pid not in m.processes
        m._kernel.processes._last = 4_194_303
        m._kernel.processes._wrapped = True
        seen = {q.pid for q in p.fork_many(400, mode=ForkMode.ON_DEMAND)}
        assert leader.pid not in seen
        assert member.getpgid() == leader.pid
        table = m._kernel.processes
        assert table.state[leader.pid]
        member.exit()
        p.wait(member.pid)
        assert not table.state[leader.pid]


def test_oom_score_adj() -> None:
    """-1000 to 1000; without CAP_SYS_RESOURCE not below what was last set with it."""
    with machine() as m:
        p = m.spawn()
        for value in (-1001, 1001):
            with fails(errno.EINVAL):
                p.set_oom_score_adj(value)
        p.set_oom_score_adj(-500)
        p.setuid(1000)
        p.set_oom_score_adj(800)
        p.set_oom_score_adj(-500)
        with fails(errno.EACCES):
            p.set_oom_score_adj(-501)
        assert p.oom_score_adj == -500


def test_set_dumpable() -> None:
    with machine() as m:
        p = m.spawn()
        p.set_dumpable(0)
        assert p.fork().dumpable == 0
        with fails(errno.EINVAL):
            p.set_dumpable(2)


def test_names_are_cut_and_forgotten() -> None:
    """15 bytes, up to a NUL; names that nobody has any more are dropped."""
    with machine() as m:
        p = m.spawn()
        assert (p.comm, m.init.comm) == ("init", "init")
        p.set_name(b"a\0b")
        assert p.comm == "a"
        for i in range(1000):
            p.set_name(f"name {i}")
        assert p.comm == "name 999"
        assert len(m._kernel.names) < 200


def test_the_clock() -> None:
    """A millisecond for each call that makes processes; the rest only when told."""
    with machine() as m:
        p = m.spawn()
        a = p.fork()
        kids = p.fork_many(5)
        assert a.started_ns - p.started_ns == 1_000_000
        assert len({k.started_ns for k in kids}) == 1
        now = m.clock_ns
        m.sleep(5)
        assert m.clock_ns == now + 5
        with pytest.raises(ValueError, match="negative"):
            m.sleep(-1)


def test_limits_at_boot() -> None:
    """INIT_RLIMITS; the number of processes follows RAM."""
    limits = Limits.at_boot((1 << 30) // 4096)
    assert limits[Resource.STACK] == (8 << 20, RLIM_INFINITY)
    assert limits[Resource.NPROC] == limits[Resource.SIGPENDING] == (4096, 4096)
    assert limits[Resource.AS] == (RLIM_INFINITY, RLIM_INFINITY)
    assert limits[Resource.MEMLOCK] == (8 << 20, 8 << 20)


# ---- RLIMIT_NPROC ----

FORKS: list[Callable[[Process], object]] = [lambda p: p.fork(), lambda p: p.fork_many(1), lambda p: p.vfork()]


@pytest.mark.parametrize("which", range(len(FORKS)))
def test_nproc_bounds_the_tasks_of_a_user(which: int) -> None:
    """All tasks of the real uid count, zombies too; EAGAIN. Root and CAP_SYS_RESOURCE are exempt."""
    fork = FORKS[which]
    with machine() as m:
        p = m.spawn()
        limit(p, Resource.NPROC, 3)
        p.setuid(1000)
        q = m.spawn()
        q.setuid(1000)
        c = p.fork()
        with fails(errno.EAGAIN):
            fork(p)
        c.exit()
        with fails(errno.EAGAIN):
            fork(p)
        p.wait()
        fork(p)
        r = m.spawn()
        limit(r, Resource.NPROC, 0)
        fork(r)
        for keep in (Capability.SYS_RESOURCE, Capability.SYS_ADMIN):
            r = m.spawn()
            limit(r, Resource.NPROC, 0)
            r.setresuid(1000, 0, 0)
            r.capset(1 << keep, 1 << keep)
            fork(r)


def test_fork_many_is_all_or_none_under_nproc() -> None:
    with machine() as m:
        p = m.spawn()
        limit(p, Resource.NPROC, 5)
        p.setuid(1000)
        with fails(errno.EAGAIN):
            p.fork_many(5)
        assert p.children == []
        assert len(p.fork_many(4)) == 4


def test_execve_tells_of_a_change_of_user_over_nproc(tmp_path: Path) -> None:
    """setuid succeeds; execve says EAGAIN while the user has too many, and works when it has not."""
    path = str(program(tmp_path))
    with machine() as m:
        first = m.spawn()
        first.setuid(1000)
        p = m.spawn()
        limit(p, Resource.NPROC, 0)
        p.setuid(1000)
        with fails(errno.EAGAIN):
            p.execve(path)
        limit(p, Resource.NPROC, 2)
        p.execve(path)
        limit(p, Resource.NPROC, 0)
        p.execve(path)  # only right after the change
