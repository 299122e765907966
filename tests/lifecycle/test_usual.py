"""The short ways of fork, exit and wait, taken while nobody has anything rare: the same as the general ones."""

from __future__ import annotations

import os
import random
import signal
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from machines import PAGE, filled, program

from vmemu import Clone, ForkMode, InvariantError, Machine, Process, VmemuError
from vmemu.pids import FREE, ProcessTable

CHLD = int(signal.SIGCHLD)
COLUMNS = (
    *("state", "parent", "space", "status", "first_child", "next", "prev", "started_ns", "minor", "major"),
    *("children_minor", "children_major", "exit_signal", "image", "name", "credentials", "limits", "signals"),
    *("blocked", "group", "session", "oom_adj", "oom_adj_min", "flags"),
)
SPARSE = (
    *("threads", "leader", "borrower", "lender", "stopped", "report", "pending", "pending_task", "same_handlers"),
    "death_signal",
)

QUIET = 200
"""Steps in which nothing happens that would end the short ways."""


def nothing(table: ProcessTable) -> None:
    """The short ways are taken where they apply."""


def suspended(table: ProcessTable) -> None:
    """As if a task were suspended all the time."""
    table.watch(suspending=True)[0] = 1


def signalled(table: ProcessTable) -> None:
    """As if a signal were on its way all the time."""
    table.watch()[0] = 1


def marked(table: ProcessTable) -> None:
    """As if all rows held something rare."""
    table.odd = Ones(table.odd)
    for column in table.rare:
        column._odd = table.odd


class Ones(bytearray):
    """Marks that are always set."""

    def __getitem__(self, key: object) -> int:  # type: ignore[override]
        return 1


def test_the_table_is_compared_whole() -> None:
    """Columns and dictionaries that are added have to be compared here too."""
    table = ProcessTable()
    columns = {name for name in table.__slots__ if isinstance(getattr(table, name), (array, bytearray))}
    assert columns == {*COLUMNS, "_last_child", "odd"}
    assert {name for name in table.__slots__ if isinstance(getattr(table, name), dict)} == {
        *SPARSE,
        "_members",
        "_groups",
    }


def seen(m: Machine) -> dict[str, object]:
    """All that the table says of tasks, and what is counted."""
    kernel, table = m._kernel, m._kernel.processes
    rows = [pid for pid, state in enumerate(table.state) if state != FREE]
    found: dict[str, object] = {name: [getattr(table, name)[pid] for pid in rows] for name in COLUMNS}
    found |= {name: dict(getattr(table, name)) for name in SPARSE}
    found |= {"named": table.named(), "rows": rows, "users": {u: n for u, n in kernel.users.items() if n}}
    found |= {"born": (len(table), table.last, table.born), "clock": kernel.clock_ns, "memory": m.meminfo()}
    return found | {"faults": m.faults, "of threads": dict(kernel.threads_faults)}


class Life:
    """Steps that a seed chooses, as many as one likes; what is chosen depends on what is seen only."""

    def __init__(self, m: Machine, seed: int, path: str) -> None:
        self.m, self.rng, self.path = m, random.Random(seed), path
        self.steps = 0
        self.at = filled(m.spawn(), 3)

    def step(self) -> object:
        """One more -> what came of it."""
        processes = [p for pid, p in self.m.processes.items() if pid > 1]
        if len(processes) < 2:
            return self.m.spawn().pid
        task = self.rng.choice([t for p in processes for t in p.threads] or processes)
        try:
            return self.call(task if self.rng.random() < 0.9 else self.rng.choice(processes))
        except VmemuError as error:
            return str(error)

    def call(self, p: Process) -> object:
        rng = self.rng
        usual = ("fork", "fork", "fork", "fork", "exit", "exit", "wait", "wait", "wait", "wait", "touch")
        quiet = (
            "ignore",
            "ignore",
            "group",
            "session",
            "user",
            "adj",
            "subreaper",
            "exec",
            "limit",
            "wait_other",
            "many",
        )
        rare = ("clone", "vfork", "thread", "kill", "block", "die_with", "exit_thread")
        self.steps += 1
        what = rng.choice(usual if rng.random() < 0.75 else quiet if self.steps < QUIET else quiet + rare)
        if what == "fork":
            return p.fork(mode=rng.choice(list(ForkMode))).pid
        if what == "exit":
            return p.exit(rng.randrange(300))
        if what == "wait":
            return p.wait()
        if what == "touch":
            return p.touch(self.at, rng.randrange(1, 4) * PAGE, write=rng.random() < 0.7)
        if what == "clone":
            flags = rng.choice((Clone.VM, Clone.PARENT, Clone.VM | Clone.SIGHAND, 0))
            return p.clone(flags | rng.choice((0, CHLD, CHLD, int(signal.SIGUSR2)))).pid
        if what == "vfork":
            return p.vfork().pid
        if what == "thread":
            return p.clone(Clone.VM | Clone.SIGHAND | Clone.THREAD).tid
        if what == "kill":
            some = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGCONT, signal.SIGUSR1)
            return p.kill(rng.choice([*self.m.processes]), rng.choice(some))
        if what == "ignore":
            return p.signal(signal.SIGCHLD, rng.choice((signal.SIG_IGN, signal.SIG_IGN, signal.SIG_DFL)))
        if what == "block":
            how = rng.choice((signal.SIG_BLOCK, signal.SIG_UNBLOCK))
            return p.sigmask(how, rng.sample((signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1), 2))
        if what == "group":
            return p.setpgid(0, rng.choice((0, *self.m.processes)))
        if what == "session":
            return p.setsid()
        if what == "user":
            return p.setuid(rng.choice((0, 7, 7)))
        if what == "adj":
            return p.set_oom_score_adj(rng.randrange(-20, 20))
        if what == "die_with":
            return p.set_death_signal(rng.choice((0, int(signal.SIGTERM))))
        if what == "subreaper":
            return p.set_child_subreaper(rng.random() < 0.7)
        if what == "exec":
            return p.execve(self.path, [])
        if what == "limit":
            return p.setrlimit(6, (rng.randrange(30, 40), 50))
        if what == "wait_other":
            return p.wait(rng.choice((0, -1, p.pid + 1)), rng.choice((0, os.WNOHANG, os.WUNTRACED)))
        if what == "exit_thread":
            return p.exit_thread(3)
        assert what == "many"
        return len(p.fork_many(2))


@contextmanager
def living(way: object, seed: int, path: str) -> Iterator[Life]:
    with Machine(memory="16MiB") as m:
        way(m._kernel.processes)  # type: ignore[operator]
        yield Life(m, seed, path)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("way", [suspended, signalled, marked])
def test_the_short_way_is_the_general_one(way: object, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Step by step, all columns, results and errors; soon rows begin to be used a second time."""
    path = str(program(tmp_path_factory.mktemp("usual")))
    with living(nothing, seed, path) as one, living(way, seed, path) as other:
        for n in range(300):
            if n == QUIET // 2:
                for m in (one.m, other.m):
                    m._kernel.processes._last, m._kernel.processes._wrapped = 2, True
            assert n >= QUIET or one.m._kernel.processes.quiet
            assert one.step() == other.step()
            assert seen(one.m) == seen(other.m)
            one.m.verify()


def test_verify_finds_what_would_lead_the_short_way_astray() -> None:
    """A flag that is wrong, a row with something rare that is not marked, counters of groups."""
    with Machine(memory="16MiB") as m:
        p = m.spawn()
        p.fork().setpgid(0, 0)
        table = m._kernel.processes

        def found(what: str) -> None:
            with pytest.raises(InvariantError, match=what):
                m.verify()

        dict.__setitem__(table.pending, p.pid, 1)
        found("all quiet")
        dict.clear(table.pending)
        array.__setitem__(table.blocked, p.pid, 1)
        found("not marked")
        array.__setitem__(table.blocked, p.pid, 0)
        members, groups = table.named()
        members[1] += 1
        found("members of groups")
        members[1] -= 1
        groups[1] += 1
        found("groups of sessions")
        groups[1] -= 1
        table.session[p.pid + 1] = 2
        found("session of group|groups of sessions")
        table.session[p.pid + 1] = 1
        m.verify()
