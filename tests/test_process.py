"""Processes: families, wait, exit status, orphans, zombies, pids."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from machines import PAGE, anon, every_mode, filled, machine, program

from vmemu import ForkMode, Process, SyscallError


@pytest.mark.parametrize("code", [0, 1, 7, 127, 255, 256, 511, -1, 1 << 70])
def test_exit_status_is_as_in_os_wait(code: int) -> None:
    """wait() gives (pid, status); os.waitstatus_to_exitcode takes it; the code counts modulo 256."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        c.exit(code)
        pid, status = p.wait()
        assert pid == c.pid
        assert os.WIFEXITED(status)
        assert os.waitstatus_to_exitcode(status) == code & 0xFF


def test_wait_reaps_the_oldest_zombie_or_the_one_named() -> None:
    """In order of birth, not of death; by pid in any order."""
    with machine() as m:
        p = m.spawn()
        kids = p.fork_many(6)
        for i in (4, 1, 3, 0):
            kids[i].exit(i)
        assert p.wait() == (kids[0].pid, 0)
        assert p.wait(kids[4].pid) == (kids[4].pid, 4 << 8)
        assert p.wait() == (kids[1].pid, 1 << 8)
        assert p.wait() == (kids[3].pid, 3 << 8)
        with pytest.raises(ChildProcessError):
            p.wait(kids[3].pid)
        assert [c.pid for c in p.children] == [kids[2].pid, kids[5].pid]


def test_wait_where_a_real_process_would_block_or_has_nobody() -> None:
    """No child: ECHILD. All alive: (0, 0) with WNOHANG, else EAGAIN instead of blocking for ever. Unknown options:
    EINVAL."""
    with machine() as m:
        p = m.spawn()
        for options in (0, os.WNOHANG):
            with pytest.raises(ChildProcessError) as caught:
                p.wait(options=options)
            assert caught.value.errno == errno.ECHILD
        c = p.fork()
        assert p.wait(-1, os.WNOHANG) == (0, 0)
        with pytest.raises(BlockingIOError):
            p.wait()
        with pytest.raises(SyscallError) as invalid:
            p.wait(-1, 1 << 20)
        assert invalid.value.errno == errno.EINVAL
        with pytest.raises(ChildProcessError):
            c.wait()
        with pytest.raises(ChildProcessError):
            p.wait(1)  # init is not its child
        grandchild = c.fork()
        with pytest.raises(ChildProcessError):
            p.wait(grandchild.pid)


@every_mode
def test_orphans_go_to_init_which_reaps_at_once(mode: ForkMode) -> None:
    """Reparenting: living children go to init behind its own; dead ones are reaped with their parent; who dies
    under init is gone at once."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        filled(p, 3)
        c = p.fork()
        alive, dead, later = c.fork(), c.fork(), c.fork()
        dead.exit(1)
        c.exit(2)
        assert [q.ppid for q in (alive, later)] == [1, 1]
        assert dead.state == "gone"
        assert c.state == "zombie"
        assert [q.pid for q in m.init.children] == [p.pid, alive.pid, later.pid]
        assert p.wait() == (c.pid, 2 << 8)
        alive.exit(3)
        assert alive.state == "gone"
        with pytest.raises(SyscallError):
            m.init.wait(alive.pid)
        p.exit()
        assert p.state == "gone"
        assert list(m.processes) == [1, later.pid]


def test_a_zombie_parent_keeps_no_children() -> None:
    """A zombie's children are init's; its own record stays until waited for."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        g = c.fork()
        c.exit(9)
        assert c.children == []
        assert g.ppid == 1
        assert c.ppid == p.pid
        assert p.wait() == (c.pid, 9 << 8)


def test_calls_on_zombies_and_the_dead_say_esrch() -> None:
    """Whatever an exited process is asked to do: ESRCH, no crash, nothing changes."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        a = anon(p)
        c.exit()
        for state in ("zombie", "gone"):
            assert c.state == state
            before = m.meminfo()
            for call in (
                lambda: c.read(a, 1),
                lambda: c.write(a, b"x"),
                lambda: c.touch(a, 1),
                lambda: c.access([a]),
                lambda: c.mmap(None, PAGE, 3, 0x22),
                lambda: c.munmap(a, PAGE),
                lambda: c.mprotect(a, PAGE, 1),
                lambda: c.mprotect(a, 0, 1),
                lambda: c.madvise(a, PAGE, 4),
                lambda: c.mremap(a, PAGE, PAGE),
                lambda: c.brk(0),
                lambda: c.mincore(a, PAGE),
                lambda: c.msync(a, PAGE, 4),
                lambda: c.mlock(a, PAGE),
                lambda: c.munlock(a, PAGE),
                lambda: c.mseal(a, PAGE),
                lambda: c.fork(),
                lambda: c.fork_many(0),
                lambda: c.fork_many(2),
                lambda: c.vfork(),
                lambda: c.execve("/bin/sh"),
                lambda: c.exit(),
                lambda: c.wait(),
                lambda: c.maps(),
                lambda: c.smaps(),
                lambda: c.pagemap(a, 1),
                lambda: c.translate(a),
                lambda: c.rss,
                lambda: c.pss,
                lambda: c.uss,
                lambda: c.faults,
                lambda: c.page_tables,
                lambda: c.rss_by_kind,
                lambda: c.exe,
            ):
                with pytest.raises(ProcessLookupError) as caught:
                    call()
                assert caught.value.errno == errno.ESRCH
            assert m.meminfo() == before
            assert repr(c)
            assert c.pid == p.pid + 1
            if state == "zombie":
                p.wait()


def test_init_cannot_exit() -> None:
    """Init is immune."""
    with machine() as m:
        with pytest.raises(PermissionError):
            m.init.exit()
        assert m.init.state == "running"
        a = anon(m.init)
        m.init.write(a, b"init has memory like any process")
        c = m.init.fork()
        assert c.read(a, 4) == b"init"
        assert c.ppid == 1
        c.exit()
        assert c.state == "gone"


def test_pids_go_up_and_are_not_given_twice() -> None:
    """A pid is not given again while others are free."""
    with machine() as m:
        p = m.spawn()
        seen = {1, p.pid}
        for _ in range(50):
            c = p.fork()
            assert c.pid not in seen
            seen.add(c.pid)
            c.exit()
            p.wait()


def test_exit_of_a_whole_family_in_any_order() -> None:
    """Random trees, random deaths, random waits: in the end only init is left, every record and frame is free."""
    for seed in range(5):
        rng = random.Random(seed)
        with machine(fork_mode=ForkMode(seed % 3)) as m:
            boot = m.meminfo()
            root = m.spawn()
            filled(root, 4)
            alive: list[Process] = [root]
            for _ in range(150):
                who = rng.choice(alive)
                match rng.randrange(4):
                    case 0 | 1:
                        alive.append(who.fork())
                    case 2:
                        if who is not root:
                            alive.remove(who)
                            who.exit(rng.randrange(256))
                    case 3:
                        zombies = [c.pid for c in who.children if c.state == "zombie"]
                        if zombies:
                            assert who.wait()[0] == zombies[0]
                parents = {q.pid: q.ppid for q in m.processes.values()}
                for q in alive:
                    assert parents[q.pid] == q.ppid in {1, *(w.pid for w in alive)}
            for who in rng.sample(alive, len(alive)):
                who.exit()
            assert list(m.processes) == [1]
            assert m.meminfo() == boot


def test_fork_of_a_program_inherits_its_image(tmp_path: Path) -> None:
    """exe, comm, argv, environ, auxv, entry and stack pointer are the parent's until the child execs."""
    path = program(tmp_path, "first")
    other = program(tmp_path, "second")
    with machine() as m:
        p = m.spawn(path, ["first", "x"], {"A": "1"})
        c = p.fork()
        for name in ("exe", "comm", "argv", "environ", "auxv", "entry_point", "stack_pointer"):
            assert getattr(c, name) == getattr(p, name), name
        c.execve(str(other), ["second"])
        assert (c.comm, p.comm, c.argv, c.environ) == ("second", "first", (b"second",), ())
        for _ in range(200):  # images of the dead are dropped
            c.execve(str(other), ["second"])
        assert p.argv == (b"first", b"x")


def test_many_processes() -> None:
    """Ten thousand processes of one family: made, counted, ended."""
    with machine(memory="64MiB") as m:
        p = m.spawn()
        a = filled(p)
        kids = p.fork_many(10_000, mode=ForkMode.ON_DEMAND)
        assert len(m.processes) == 10_002
        assert p.pss == (PAGE << 12) // 10_001 >> 12
        for k in kids[:10]:
            k.write(a, b"x")
        for k in kids:
            k.exit()
        assert [p.wait()[0] for _ in range(100)] == [k.pid for k in kids[:100]]
        p.exit()
        assert list(m.processes) == [1]
