"""clone: memory for two, threads, who is whose parent, contradicting flags; execve and exit among threads."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
from lifecycle.test_identity import fails, limit
from machines import PAGE, anon, change, counts, filled, machine, pfns, program

from vmemu import Clone, Process
from vmemu.limits import Resource

THREAD = Clone.VM | Clone.SIGHAND | Clone.THREAD | Clone.FS | Clone.FILES
CHLD = int(signal.SIGCHLD)


def test_two_processes_with_one_memory() -> None:
    """Both run; what one maps, writes and unmaps the other sees; each counts its own faults; the memory goes with the
    last of them."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 4)
        before, mine = m.meminfo(), p.faults
        c = p.clone(Clone.VM | CHLD)
        assert change(before, m.meminfo()) == {}
        assert (p.state, c.state, c.ppid) == ("running", "running", p.pid)
        c.write(a, b"child")
        p.write(a + 5, b" parent")
        assert c.read(a, 12) == p.read(a, 12) == b"child parent"
        b = anon(c, 3)
        p.touch(b, 2 * PAGE, write=True)
        c.touch(b, 3 * PAGE, write=True)
        assert (p.faults - mine, c.faults) == (counts(zero_fill=2), counts(zero_fill=1))
        p.munmap(a, PAGE)
        assert c.translate(a) is None
        assert (p.rss, p.maps(), pfns(p, b, 3)) == (c.rss, c.maps(), pfns(c, b, 3))
        p.exit()
        assert (c.read(b, 1), c.faults) == (b"\0", counts(zero_fill=1))
        assert m._kernel.shared == {}
        c.exit()
        assert m.meminfo().anon == 0


def test_fork_of_a_sharer_copies_for_both() -> None:
    with machine() as m:
        p = m.spawn()
        a = filled(p)
        c = p.clone(Clone.VM | CHLD)
        k = c.fork()
        p.write(a, b"p")
        assert (c.read(a, 1), k.read(a, 1)) == (b"p", b"\1")
        assert (p.faults.cow_copy, c.faults, k.faults) == (1, counts(), counts())


def test_execve_of_a_sharer_leaves_the_memory_to_the_others(tmp_path: Path) -> None:
    path = str(program(tmp_path))
    with machine() as m:
        p = m.spawn()
        a = filled(p)
        c, d = (p.clone(Clone.VM | CHLD) for _ in range(2))
        p.execve(path)
        c.write(a, b"c")
        assert d.read(a, 1) == b"c"
        assert p.exe == path
        d.exit()
        c.execve(path)
        assert m._kernel.shared == {}


def test_dispositions_may_be_shared() -> None:
    """CLONE_SIGHAND without CLONE_THREAD: until execve."""
    with machine() as m:
        p = m.spawn()
        c = p.clone(Clone.VM | Clone.SIGHAND | CHLD)
        c.signal(signal.SIGUSR1, signal.SIG_IGN)
        p.kill(p.pid, signal.SIGUSR1)
        assert p.signal(signal.SIGUSR1, "h") == signal.SIG_IGN
        assert c.signal(signal.SIGUSR1, signal.SIG_DFL) == "h"
        c.exit()
        assert p.wait() == (c.pid, 0)


def test_clone_vfork_without_vm() -> None:
    """The parent sleeps, with a memory of its own."""
    with machine() as m:
        p = m.spawn()
        a = filled(p)
        c = p.clone(Clone.VFORK | CHLD)
        c.write(a, b"c")
        assert p.state == "suspended"
        with fails(errno.EBUSY):
            p.read(a, 1)
        c.exit()
        assert p.read(a, 1) == b"\1"


def test_clone_parent() -> None:
    """A sibling, with the exit signal that its maker has."""
    with machine() as m:
        p = m.spawn()
        c = p.clone(signal.SIGUSR2)
        s = c.clone(Clone.PARENT | CHLD)
        assert [q.pid for q in p.children] == [c.pid, s.pid]
        with fails(errno.ECHILD):
            p.wait(s.pid)
        s.exit()
        assert p.state == "gone"  # SIGUSR2


@pytest.mark.parametrize("sig", [0, signal.SIGWINCH, 200])
def test_children_with_another_exit_signal(sig: int) -> None:
    """They are for __WCLONE and __WALL only, until init or a program has them; SIGCHLD ignored does not matter."""
    wclone, wall = 0x8000_0000, 0x4000_0000
    with machine() as m:
        p = m.spawn()
        p.signal(signal.SIGCHLD, signal.SIG_IGN)
        c, d = p.clone(sig), p.clone(sig)
        c.exit(1)
        d.exit(2)
        with fails(errno.ECHILD):
            p.wait()
        assert p.wait(-1, wclone) == (c.pid, 1 << 8)
        assert p.wait(-1, wall) == (d.pid, 2 << 8)
        e = p.fork()
        with fails(errno.ECHILD):
            p.wait(-1, wclone)
        assert p.wait(e.pid, wall | os.WNOHANG) == (0, 0)


def test_execve_makes_the_exit_signal_sigchld(tmp_path: Path) -> None:
    with machine() as m:
        p = m.spawn()
        c = p.clone(signal.SIGUSR1)
        c.execve(str(program(tmp_path)))
        c.exit()
        assert p.wait() == (c.pid, 0)


BAD = [
    Clone.NEWNS | Clone.FS,
    Clone.NEWUSER | Clone.FS,
    Clone.THREAD,
    Clone.THREAD | Clone.VM,
    Clone.SIGHAND,
    Clone.THREAD | Clone.SIGHAND,
    THREAD | Clone.NEWPID,
    THREAD | Clone.NEWUSER,
    Clone.PIDFD | Clone.DETACHED,
    Clone.NEWIPC | Clone.SYSVSEM,
]


@pytest.mark.parametrize("flags", BAD)
def test_flags_that_contradict_each_other(flags: Clone) -> None:
    with machine() as m:
        p = m.spawn()
        with fails(errno.EINVAL):
            p.clone(flags | CHLD)
        assert p.children == []


@pytest.mark.linux
@pytest.mark.parametrize("flags", BAD)
def test_flags_that_contradict_each_other_on_this_kernel(flags: Clone) -> None:
    import ctypes
    import sys

    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("needs Linux on x86-64")
    if flags & Clone.NEWIPC and os.getuid():
        pytest.skip("needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(56, int(flags) | CHLD, 0, 0, 0, 0) == -1
    assert ctypes.get_errno() == errno.EINVAL


def test_namespaces() -> None:
    """Named as missing; EPERM comes first."""
    with machine() as m:
        p = m.spawn()
        with pytest.raises(NotImplementedError, match="NEWPID"):
            p.clone(Clone.NEWPID | CHLD)
        with fails(errno.EINVAL):
            m.init.clone(Clone.PARENT | CHLD)
        p.setuid(1)
        with fails(errno.EPERM):
            p.clone(Clone.NEWPID | CHLD)


# ---- threads ----


def test_threads_share_all_but_faults_name_and_mask() -> None:
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        t = p.clone(THREAD)
        assert (t.pid, t.tid, t.ppid) == (p.pid, p.pid + 1, 1)
        assert [x.tid for x in p.threads] == [p.pid, t.tid]
        assert t.tid not in m.processes
        assert len(m.processes) == 2
        t.set_name("worker")
        t.sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        assert (p.comm, t.comm) == ("init", "worker")
        t.touch(a, 3 * PAGE, write=True)
        p.touch(a, 4 * PAGE, write=True)
        assert (t.faults, p.faults) == (counts(zero_fill=3), counts(zero_fill=4))
        c = t.fork()
        assert (c.ppid, c.comm, c.threads) == (p.pid, "worker", [c])
        assert c.sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR1}
        c.exit()
        assert t.wait() == (c.pid, 0)
        t.exit()
        assert (t.state, p.threads, p.faults) == ("gone", [p], counts(zero_fill=4))
        with fails(errno.ESRCH):
            t.read(a, 1)


def test_a_process_ends_with_its_last_thread() -> None:
    """The first thread is a zombie that nobody can wait for until then; the exit code of the last counts."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        t = c.clone(THREAD)
        c.exit_thread(3)
        assert (c.state, t.state) == ("zombie", "running")
        with fails(errno.EAGAIN):
            p.wait()
        a = filled(t)
        assert t.read(a, 1) == b"\1"
        t.exit(4)
        assert p.wait() == (c.pid, 4 << 8)


@pytest.mark.parametrize("who", [0, 1])
def test_exit_group_ends_all(who: int) -> None:
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        tasks = [c, c.clone(THREAD), c.clone(THREAD)]
        tasks[who].exit_group(6)
        assert [t.state for t in tasks] == ["zombie", "gone", "gone"]
        assert p.wait() == (c.pid, 6 << 8)


def test_signals_and_threads() -> None:
    """To the process: whoever does not block it; to a task; death and stops are everybody's."""
    with machine() as m:
        p = m.spawn()
        p.setsid()
        c = p.fork()
        c.setpgid()
        t = c.clone(THREAD)
        c.signal(signal.SIGUSR1, "handler")
        for task in (c, t):
            task.sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
        p.tgkill(c.pid, t.tid, signal.SIGUSR1)
        assert (t.pending, c.pending) == ({signal.SIGUSR1}, set())
        p.kill(t.tid, signal.SIGSTOP)
        assert (c.state, t.state) == ("stopped", "stopped")
        p.kill(c.pid, signal.SIGCONT)
        p.kill(c.pid, signal.SIGTERM)
        assert (t.pending, c.pending) == ({signal.SIGUSR1, signal.SIGTERM}, {signal.SIGTERM})
        t.sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        assert p.wait() == (c.pid, signal.SIGTERM)


@pytest.mark.parametrize("first", ["lives", "has ended"])
def test_execve_of_a_thread(first: str, tmp_path: Path) -> None:
    """All others end, and the thread is the process from then on."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        a = anon(c, 8)
        t, u = c.clone(THREAD), c.clone(THREAD)
        for i, task in enumerate((c, t, u)):
            task.touch(a + i * PAGE, PAGE, write=True)
        if first == "has ended":
            c.exit_thread(9)
        t.set_name("t")
        t.execve(str(program(tmp_path)))
        assert (c.state, t.state, u.state) == ("running", "gone", "gone")
        assert (c.threads, c.comm, c.exe) == ([c], "program", str(tmp_path / "program"))
        assert c.faults.zero_fill >= 3
        c.exit(1)
        assert p.wait() == (c.pid, 1 << 8)
        assert m._kernel.users == {0: 2}


def test_threads_count_for_nproc() -> None:
    with machine() as m:
        p = m.spawn()
        limit(p, Resource.NPROC, 2)
        p.setuid(1000)
        t = p.clone(THREAD)
        for task in (p, t):
            with fails(errno.EAGAIN):
                task.clone(THREAD)
            with fails(errno.EAGAIN):
                task.fork()
        t.exit()
        p.fork()


def test_init_may_have_threads() -> None:
    with machine() as m:
        t = m.init.clone(THREAD)
        with fails(errno.EPERM):
            t.exit_group()
        t.exit()
        with fails(errno.EPERM):
            m.init.exit_thread()


def test_a_thread_in_vfork() -> None:
    """It sleeps alone."""
    with machine() as m:
        p: Process = m.spawn()
        a = filled(p)
        t = p.clone(THREAD)
        v = t.vfork()
        assert (p.state, t.state, v.ppid) == ("running", "suspended", p.pid)
        p.write(a, b"x")
        assert v.read(a, 1) == b"x"
        v.exit()
        assert (t.state, p.wait()) == ("running", (v.pid, 0))
