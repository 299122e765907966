"""verify() finds what is wrong with the process table: each thing here is put wrong and put right again."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import pytest

from vmemu import InvariantError, Machine
from vmemu.pids import HELD, ZOMBIE, Flag, ProcessTable


@pytest.fixture
def family() -> Iterator[Machine]:
    """init (1), a parent (2), its children (3, 4, 5) and a grandchild (6)."""
    with Machine(memory="4MiB") as machine:
        parent = machine.spawn()
        parent.setsid()
        parent.fork_many(3)[0].fork()
        machine.verify()
        yield machine
        machine.verify()


def put(name: str, pid: int, value: int) -> Callable[[ProcessTable], Callable[[], None]]:
    """Sets a column, and says how to undo it."""

    def wrong(table: ProcessTable) -> Callable[[], None]:
        column = getattr(table, name)
        before = column[pid]
        column[pid] = value
        return lambda: column.__setitem__(pid, before)

    return wrong


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (put("parent", 4, 1), "parent of 4"),
        (put("prev", 5, 3), "elder sibling of 5"),
        (put("_last_child", 2, 4), "youngest child of 2"),
        (put("next", 5, 5), "elder sibling of 5|a child twice"),
        (put("first_child", 3, 0), "youngest child of 3"),
        (put("state", 2, ZOMBIE), "parent 2 of 3 is dead"),
        (put("credentials", 4, 99), "index"),
        (put("group", 4, 1), "members of groups|session of group"),
        (put("session", 4, 1), "session of group 2"),
        (put("state", 9, HELD), "number 9 of a group is held for nobody"),
        (put("space", 4, 1), "spaces that live"),
    ],
)
def test_found(family: Machine, wrong: Callable[[ProcessTable], Callable[[], None]], message: str) -> None:
    right = wrong(family._kernel.processes)
    try:
        with pytest.raises((InvariantError, IndexError), match=message):
            family.verify()
    finally:
        right()


def test_users_are_counted(family: Machine) -> None:
    users = family._kernel.users
    users[7] = 1
    with pytest.raises(InvariantError, match="tasks by user"):
        family.verify()
    del users[7]


def test_what_is_rare_is_marked(family: Machine) -> None:
    blocked = family._kernel.processes.blocked
    array.__setitem__(blocked, 4, 8)  # past what marks it
    with pytest.raises(InvariantError, match="task 4 has something rare and is not marked"):
        family.verify()
    array.__setitem__(blocked, 4, 0)


def test_root_is_not_over_its_limit(family: Machine) -> None:
    family._kernel.processes.flags[4] |= Flag.NPROC_EXCEEDED
    with pytest.raises(InvariantError, match="task 4 of root is over RLIMIT_NPROC"):
        family.verify()
    family._kernel.processes.flags[4] &= ~Flag.NPROC_EXCEEDED


def test_cgroups_count_their_tasks(family: Machine) -> None:
    group = family.cgroups.create("jail")
    family.processes[4].cgroup = group
    family.verify()
    group.charge(1)
    with pytest.raises(InvariantError, match="tasks in cgroup /jail: 2, not 1"):
        family.verify()
    group.charge(-1)
