"""vfork(2): one memory for two until exec or exit, and whose faults are whose."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import PAGE, anon, change, contents, counts, every_mode, filled, machine, pfns, program

from vmemu import ForkMode, Machine, Process, SyscallError


@every_mode
def test_vfork_shares_the_space_until_exit(mode: ForkMode) -> None:
    """vfork shares the space until exit: the child's writes are the parent's, nothing is copied, no frame is taken."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 4)
        before = m.meminfo()
        v = p.vfork()
        assert m.meminfo() == before
        assert pfns(v, a, 4) == pfns(p, a, 4)
        v.write(a, b"child")
        new = anon(v, 1)
        v.write(new, b"new")
        v.munmap(a + 3 * PAGE, PAGE)
        v.exit(7)
        assert p.wait() == (v.pid, 7 << 8)
        assert p.read(a, 5) == b"child"
        assert p.read(new, 3) == b"new"
        assert p.translate(a + 3 * PAGE) is None
        assert m.frame_stats().copied == 0


@every_mode
def test_vfork_shares_the_space_until_exec(mode: ForkMode, tmp_path: Path) -> None:
    """vfork shares the space until exec: then the child has a memory of its own and the parent goes on with what was
    there."""
    path = program(tmp_path)
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 4)
        v = p.vfork()
        v.write(a, b"child")
        maps = p.maps()
        v.execve(str(path))
        assert (p.state, v.state) == ("running", "running")
        assert p.maps() == maps != v.maps()
        assert p.read(a, 5) == b"child"
        assert v.exe == str(path)
        assert (p.exe, v.ppid) == ("", p.pid)
        v.exit()
        assert p.read(a, 5) == b"child"


CALLS: list[Callable[[Process, int], object]] = [
    lambda p, a: p.read(a, 1),
    lambda p, a: p.write(a, b"x"),
    lambda p, a: p.touch(a, 1),
    lambda p, a: p.access([a]),
    lambda p, a: p.mmap(None, PAGE, 3, 0x22),
    lambda p, a: p.munmap(a, PAGE),
    lambda p, a: p.mprotect(a, PAGE, 1),
    lambda p, a: p.madvise(a, PAGE, 4),
    lambda p, a: p.mremap(a, PAGE, 2 * PAGE, 1),
    lambda p, a: p.brk(0),
    lambda p, a: p.mincore(a, PAGE),
    lambda p, a: p.msync(a, PAGE, 4),
    lambda p, a: p.mlock(a, PAGE),
    lambda p, a: p.munlock(a, PAGE),
    lambda p, a: p.mseal(a, PAGE),
    lambda p, a: p.fork(),
    lambda p, a: p.fork_many(2),
    lambda p, a: p.vfork(),
    lambda p, a: p.execve("/bin/sh"),
    lambda p, a: p.exit(),
    lambda p, a: p.wait(),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_suspended_parent_can_do_nothing(number: int) -> None:
    """While the child borrows its memory, whatever the parent calls is EBUSY and changes nothing."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2)
        v = p.vfork()
        before = (p.maps(), p.faults, m.meminfo(), sorted(m.processes))
        with pytest.raises(SyscallError) as caught:
            CALLS[number](p, a)
        assert caught.value.errno == errno.EBUSY
        assert (p.maps(), p.faults, m.meminfo(), sorted(m.processes)) == before
        assert p.state == "suspended"
        v.exit()
        assert p.state == "running"
        CALLS[number](p, a)


def test_a_suspended_parent_can_be_looked_at() -> None:
    """The memory of a vfork parent may be inspected while its child borrows it, and shows what the child does."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2)
        v = p.vfork()
        b = anon(v)
        v.write(b, b"x")
        assert pfns(p, a, 2) == pfns(v, a, 2)
        assert p.maps() == v.maps()
        assert p.translate(b) == v.translate(b)
        assert (p.rss, p.pss, p.uss, p.page_tables) == (v.rss, v.pss, v.uss, v.page_tables)
        assert p.smaps() == v.smaps()
        assert m.procfs.read(f"{p.pid}/maps") == m.procfs.read(f"{v.pid}/maps")
        assert p.children == [v]
        v.exit()


@every_mode
def test_faults_are_accounted_to_who_took_them(mode: ForkMode, tmp_path: Path) -> None:
    """Faults in the borrowed memory are the child's; the parent's counter stands still and goes on after the child
    left."""
    path = program(tmp_path)
    for leave in ("exit", "exec"):
        with machine(fork_mode=mode) as m:
            p = m.spawn()
            a = filled(p, 2)
            b = anon(p, 4)
            mine = p.faults
            v = p.vfork()
            assert v.faults == counts()
            assert v.touch(b, 3 * PAGE, write=True) == counts(zero_fill=3)
            v.touch(a, PAGE)
            assert (p.faults, v.faults) == (mine, counts(zero_fill=3))
            if leave == "exit":
                v.exit()
            else:
                v.execve(str(path))
                assert v.faults.zero_fill >= 3
            assert p.faults == mine
            p.touch(b, 4 * PAGE, write=True)
            assert p.faults - mine == counts(zero_fill=1)


@every_mode
def test_a_vfork_child_may_fork_and_vfork_again(mode: ForkMode) -> None:
    """Forks of a borrowed memory are forks of that memory; loans may be nested and end from the inside out."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 2)
        v = p.vfork()
        v.write(a, b"v")
        c = v.fork()
        w = v.vfork()
        assert (p.state, v.state, w.state, c.state) == ("suspended", "suspended", "running", "running")
        w.write(a + 1, b"w")
        c.write(a + 2, b"c")
        with pytest.raises(SyscallError):
            v.write(a, b"x")
        w.exit()
        assert v.read(a, 3) == b"vw\1"
        assert v.wait() == (w.pid, 0)
        v.exit()
        assert p.read(a, 3) == b"vw\1"
        assert c.read(a, 3) == b"v\1c"
        assert c.ppid == 1
        c.exit()
        assert p.faults == counts(zero_fill=2)


def test_failed_exec_of_a_vfork_child_leaves_the_loan_as_it_was() -> None:
    """execve fails: child and parent are as before, the child still has the memory."""
    with machine() as m:
        p = m.spawn()
        a = filled(p)
        v = p.vfork()
        before = (m.meminfo(), contents(v), v.faults, p.faults)
        for program_ in ("/no/such/file", "/etc/passwd", "/tmp"):
            with pytest.raises(SyscallError):
                v.execve(program_)
        assert (m.meminfo(), contents(v), v.faults, p.faults) == before
        assert p.state == "suspended"
        v.write(a, b"still")
        v.exit()
        assert p.read(a, 5) == b"still"


def test_vfork_costs_no_commit_charge(tmp_path: Path) -> None:
    """vfork charges nothing; exec's own memory is charged on top and given back at exit."""
    path = program(tmp_path)
    with machine() as m:
        p = m.spawn()
        anon(p, 100)
        before = m.meminfo()
        v = p.vfork()
        assert change(before, m.meminfo()) == {}
        v.execve(str(path))
        assert change(before, m.meminfo())["committed"] > 0
        v.exit()
        assert change(before, m.meminfo()) == {}
        assert isinstance(m, Machine)
