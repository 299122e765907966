"""An exception may come between any two steps of a call, as from a signal handler: the call has then happened as a
whole or not at all.

Each call is made again and again in a small world that is always the same, and is interrupted at the first, second, ...
of its steps, until it comes through. Steps are those at which CPython looks for signals (a function begins, one in C
returns), and signals are real, or every instruction.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from dis import get_instructions
from functools import cache
from itertools import count
from linecache import getline
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from machines import ANON, PAGE, SHARED, anon, every_mode, filled, program

import vmemu
from vmemu import Advice, Clone, ForkMode, Machine, Process, Prot, SyscallError, workloads

HERE = str(Path(vmemu.__file__).parent)
RW = Prot.READ | Prot.WRITE
VM_THREAD = Clone.VM | Clone.SIGHAND | Clone.THREAD
ATOMIC = {"PRECALL", "CALL", "CALL_KW", "PUSH_EXC_INFO", "COPY", "POP_EXCEPT", "RERAISE"}
"""Before these CPython runs no handler, and could not stay whole if it did: the names of arguments would be left to the
next call, an exception would stay the current one for good or be taken from where there is none."""
how_ever = pytest.mark.parametrize("how", ["signals", "instructions"])


class Cut(BaseException):
    """What comes in the middle."""


@cache
def ours(code: CodeType) -> bool:
    """It is vmemu's."""
    return code.co_filename.startswith(HERE)


@cache
def stops(code: CodeType) -> set[int]:
    """Offsets of a function's instructions before which it may be interrupted: neither such, nor between the beginning
    of a call and its lock, where methods are got and no handler runs either."""
    taken = {n for _, _, n in code.co_lines() if n and "lock.acquire()" in getline(code.co_filename, n)}
    at = {offset: line for start, end, line in code.co_lines() for offset in range(start, end, 2)}
    return {i.offset for i in get_instructions(code) if i.opname not in ATOMIC and at.get(i.offset) not in taken}


class Tripped(int):
    """A signal that comes when `now` is looked at. No Python runs for that, so its handler has to wait until CPython
    looks for signals the next time, which is in the code that is being watched."""

    now = property(_thread.interrupt_main)


class Cutter:
    """Raises at some steps, counted over all frames of vmemu."""

    def __init__(self, how: str, *steps: int) -> None:
        self.how, self.steps, self.n, self.cuts = how, steps, 0, 0
        self.last = max(steps)
        self.hooks = self.profile, self.trace  # kept: CPython calls them without holding them (3.11)
        self.signal = Tripped(signal.SIGUSR1)

    def handler(self, _signum: int, _frame: FrameType | None) -> None:
        self.cuts += 1
        raise Cut

    def profile(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event in ("call", "c_return") and ours(frame.f_code):
            self.n += 1
            if self.n - 1 in self.steps:
                if self.n > self.last:
                    sys.setprofile(None)
                self.signal.now  # noqa: B018 - comes

    def trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not ours(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_lasti in stops(frame.f_code):
            self.n += 1
            if self.n - 1 in self.steps:
                self.cuts += 1
                raise Cut  # which ends tracing
        return self.hooks[1]

    def __call__(self, call: Callable[[], object]) -> None:
        """Makes a call. `cuts` says how often it was interrupted."""
        tracer, hook, handler = sys.gettrace(), sys.unraisablehook, signal.signal(signal.SIGUSR1, self.handler)
        # Out of a finalizer, or a generator that is closed, nobody gets the exception: the call goes on.
        sys.unraisablehook = lambda lost: hook(lost) if lost.exc_type is not Cut else None
        gc.disable()  # so that step n is the same each time
        try:
            if self.how == "signals":
                sys.setprofile(self.hooks[0])
            else:
                sys.settrace(self.hooks[1])
            call()
        except Cut:
            pass
        finally:
            sys.setprofile(None)
            sys.settrace(tracer)
            sys.unraisablehook = hook
            signal.signal(signal.SIGUSR1, handler)
            gc.enable()


World = Callable[[Machine], Callable[[], object]]
"""Makes processes; what it returns is the call."""


def shape(m: Machine, pid: int = 1) -> tuple[Any, ...]:
    """A process and its descendants, without the numbers that change from one time to the next."""
    p, table = m.processes[pid], m._kernel.processes
    memory = [(t.state, t.comm, t.rss, *((v.size, v.prot) for v in t.maps())) for t in p.threads]
    who = (p.credentials, p.cgroup.path)
    own = (p.state, memory, table.exit_signal[pid], len(table.members(pid)), sorted(p.pending), *who)
    return (*own, *(shape(m, child.pid) for child in p.children))


def groups(m: Machine) -> list[tuple[Any, ...]]:
    """The control groups, and how many are in them."""
    return [(path, g.pids_current, len(g.procs)) for path, g in m.cgroups.items()]


def totals(m: Machine) -> tuple[int, ...]:
    """What must be the same when all processes have ended."""
    info = m.meminfo()
    return info.free, info.committed, m._kernel.core.info().nobjects, len(m._kernel.core.spaces())


def clear(m: Machine) -> None:
    """Ends all processes."""
    for pid in list(m.processes):
        if pid > 1 and pid in m.processes and m._kernel.processes.alive(pid):
            m.init.kill(pid, signal.SIGKILL)
    assert list(m.processes) == [1]


def storm(
    world: World,
    how: str,
    *,
    stride: int = 1,
    again: int = 0,
    whole: bool = True,
    more: Callable[[Machine], object] | None = None,
    memory: str = "2MiB",
    oom: str = "raise",
) -> int:
    """Interrupts a call at every *stride*-th step, and once more *again* steps later, if not 0. *whole*: a part of it
    must not have happened; *more*: nor of what this shows. Returns how often it was interrupted twice."""

    def look() -> tuple[object, object]:
        return shape(m) if whole else None, more(m) if more else None

    with Machine(memory, oom=oom) as m:
        world(m)()  # what is kept from the first time is there
        clear(m)
        start = totals(m)
        call = world(m)
        outcomes = [look()]
        call()
        outcomes.append(look())
        clear(m)
        assert totals(m) == start
        twice = 0
        for n in count(0, stride):
            cutter = Cutter(how, n, n + again) if again else Cutter(how, n)
            cutter(world(m))
            lock: Any = m._kernel.lock
            while how == "instructions" and lock._is_owned():
                lock.release()  # no signal comes between the end of a block and the call of __exit__
            assert not lock._is_owned(), n
            m.verify()
            assert look() in outcomes, n
            clear(m)
            m.verify()
            assert totals(m) == start, n
            if not cutter.cuts:
                break
            twice += cutter.cuts > 1
        assert n > 3 * stride
        return twice


def one(m: Machine) -> Process:
    p = m.spawn()
    filled(p, 3)
    return p


def family(m: Machine, n: int = 3) -> tuple[Process, list[Process]]:
    p = one(m)
    return p, [p.fork() for _ in range(n)]


def stride(how: str, signals: int = 1, instructions: int = 3) -> int:
    """Of the many instructions some will do: they are others each time that the sources change."""
    return signals if how == "signals" else instructions


def by(call: Callable[[Process], object]) -> World:
    """The call by a process that is alone."""

    def world(m: Machine) -> Callable[[], object]:
        p = one(m)
        return lambda: call(p)

    return world


# ---- births ----


@how_ever
@every_mode
def test_fork(how: str, mode: ForkMode) -> None:
    storm(by(lambda p: p.fork(mode)), how, stride=stride(how))


@how_ever
def test_fork_by_a_user(how: str) -> None:
    """Somebody with something of its own."""

    def world(m: Machine) -> Callable[[], object]:
        p = one(m)
        p.setuid(7)
        return p.fork

    storm(world, how, stride=stride(how))


@how_ever
def test_fork_many(how: str) -> None:
    storm(by(lambda p: p.fork_many(5)), how, stride=stride(how, 1, 5))


@how_ever
def test_spawn(how: str) -> None:
    storm(lambda m: m.spawn, how, stride=stride(how))


@how_ever
@pytest.mark.parametrize(
    "flags",
    [Clone.VM | signal.SIGCHLD, Clone.VM | Clone.SIGHAND | signal.SIGUSR1, VM_THREAD, Clone.VM | Clone.VFORK],
    ids=["VM", "SIGHAND", "THREAD", "VFORK"],
)
def test_clone(how: str, flags: int) -> None:
    storm(by(lambda p: p.clone(flags)), how, stride=stride(how, 1, 7))


# ---- ends ----


@how_ever
def test_exit(how: str) -> None:
    """Of somebody with children, one of them dead, and faults of its own."""

    def world(m: Machine) -> Callable[[], object]:
        _, (child, *_) = family(m)
        child.fork()
        child.fork().exit(1)
        child.touch(child.maps()[0].start, PAGE, True)
        return lambda: child.exit(3)

    storm(world, how, stride=stride(how))


@how_ever
def test_exit_that_nobody_waits_for(how: str) -> None:
    """The parent does not want to know."""

    def world(m: Machine) -> Callable[[], object]:
        p, (child, *_) = family(m)
        p.signal(signal.SIGCHLD, signal.SIG_IGN)
        return child.exit

    storm(world, how, stride=stride(how))


@how_ever
@pytest.mark.parametrize("alone", [False, True])
def test_exit_of_threads(how: str, alone: bool) -> None:
    """Of all, or of the first of them alone."""

    def world(m: Machine) -> Callable[[], object]:
        _, (child,) = family(m, 1)
        child.clone(VM_THREAD)
        child.clone(VM_THREAD)
        return child.exit_thread if alone else child.exit

    storm(world, how, stride=stride(how, 1, 7))


@how_ever
def test_exit_after_vfork(how: str) -> None:
    storm(lambda m: one(m).vfork().exit, how, stride=stride(how, 1, 7))


@how_ever
def test_exit_many(how: str) -> None:
    def world(m: Machine) -> Callable[[], object]:
        children = one(m).fork_many(5)
        children[2].touch(children[2].maps()[0].start, PAGE, True)
        return lambda: m.exit_many(children)

    storm(world, how, stride=stride(how, 1, 5))


@how_ever
def test_wait(how: str) -> None:
    def world(m: Machine) -> Callable[[], object]:
        p, (child, *_) = family(m)
        child.exit(3)
        return p.wait

    storm(world, how, stride=stride(how, 1, 1))


def test_wait_counts_once() -> None:
    """What a child used is its parent's when it has been waited for."""
    with Machine("2MiB") as m:
        for n in count():
            p, (child, *_) = family(m)
            child.touch(child.maps()[0].start, PAGE, True)
            child.exit()
            cutter = Cutter("signals", n)
            cutter(p.wait)
            assert p.getrusage(-1).ru_minflt == (child.state == "gone")
            if child.state != "gone":
                p.wait()
            assert p.getrusage(-1).ru_minflt == 1
            clear(m)
            if not cutter.cuts:
                assert n > 2
                return


# ---- signals, and who one is ----


@how_ever
def test_kill_a_group(how: str) -> None:
    """All of it or nobody."""

    def world(m: Machine) -> Callable[[], object]:
        p, children = family(m)
        for child in children:
            child.setpgid(0, children[0].pid)
        return lambda: p.kill(-children[0].pid, signal.SIGTERM)

    storm(world, how, stride=stride(how, 1, 13))


@how_ever
@pytest.mark.parametrize("sig", [signal.SIGSTOP, signal.SIGUSR1])
def test_kill(how: str, sig: int) -> None:
    """It stops, or blocks what it gets."""

    def world(m: Machine) -> Callable[[], object]:
        p, (child, *_) = family(m)
        child.sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        return lambda: p.kill(child.pid, sig)

    storm(world, how, stride=stride(how, 1, 5))


@how_ever
@pytest.mark.parametrize("call", ["setuid", "setpgid", "setsid"])
def test_who_it_is(how: str, call: str) -> None:
    """Users, groups and sessions are counted."""

    def world(m: Machine) -> Callable[[], object]:
        _, (child, *_) = family(m)
        return {"setuid": lambda: child.setuid(7), "setpgid": child.setpgid, "setsid": child.setsid}[call]

    storm(world, how, stride=stride(how, 1, 5))


# ---- control groups, and memory that runs out ----


def jailed(m: Machine, limits: dict[str, Any]) -> tuple[Process, list[Process]]:
    """A family in a group of its own in one that is empty else, both new each time."""
    for path in list(m.cgroups)[::-1]:
        m.cgroups.remove(path)
    p, children = family(m)
    m.cgroups.create("outer")
    jail = m.cgroups.create("outer/jail", **limits)
    for q in (p, *children):
        q.cgroup = jail
    return p, children


def killed(m: Machine) -> tuple[Any, ...]:
    """What the OOM killer did, and that it said so everywhere."""
    alive = sum(m._kernel.processes.alive(pid) for pid in m.processes)
    kinds = ("oom_kill", "oom_group_kill")
    events = [[g.memory_events[kind], g.memory_events_local[kind]] for g in m.cgroups.values() for kind in kinds]
    return alive, events, [len(r.killed) for r in m._kernel.oom_reports], m._kernel.oom_kills


@how_ever
@pytest.mark.parametrize("threads", [0, 2])
def test_cgroup(how: str, threads: int) -> None:
    """All its threads move with a process."""

    def world(m: Machine) -> Callable[[], object]:
        _, (child, *_) = jailed(m, {})
        for _ in range(threads):
            child.clone(VM_THREAD)
        return lambda: setattr(child, "cgroup", "outer")

    storm(world, how, stride=stride(how), more=groups)


@how_ever
@pytest.mark.parametrize("call", ["create", "remove"])
def test_tree_of_cgroups(how: str, call: str) -> None:
    """A group is there or not; a zombie that was in it does not matter."""

    def world(m: Machine) -> Callable[[], object]:
        _, (child, *_) = jailed(m, {})
        child.exit()
        if call == "create":
            return lambda: m.cgroups.create("outer/other", pids_max=7) and None
        for pid in m.cgroups["outer/jail"].procs:
            m.processes[pid].cgroup = "outer"
        return lambda: m.cgroups.remove("outer/jail")

    storm(world, how, stride=stride(how), more=lambda m: list(m.cgroups))


@how_ever
def test_fork_refused_by_a_group(how: str) -> None:
    """Nobody is born; that it was refused counts or not."""

    def world(m: Machine) -> Callable[[], object]:
        p, _ = jailed(m, {"pids_max": 4})

        def fork() -> None:
            with pytest.raises(SyscallError):
                p.fork()

        return fork

    storm(world, how, stride=stride(how))


@how_ever
@pytest.mark.parametrize("group", [False, True])
def test_oom(how: str, group: bool) -> None:
    """Who is killed by an access is dead and counted, and with memory.oom.group all are or nobody is."""

    def world(m: Machine) -> Callable[[], object]:
        m._kernel.oom_reports.clear()
        m._kernel.oom_kills = 0
        p, (child, *_) = jailed(m, {"oom_group": group})
        p.set_oom_score_adj(-1000)
        filled(child, 9)
        start = anon(p)
        p.cgroup.memory_max = p.cgroup.memory_current
        return lambda: p.write(start, b"x")

    storm(world, how, stride=stride(how, 1, 31), whole=False, more=killed, oom="kill")


@how_ever
def test_cgroup_kill(how: str) -> None:
    def world(m: Machine) -> Callable[[], object]:
        jailed(m, {})
        return lambda: m.cgroupfs.write("outer/cgroup.kill", b"1")

    storm(world, how, stride=stride(how, 1, 31))


# ---- programs ----


@how_ever
@pytest.mark.parametrize("who", ["alone", "vfork", "thread"])
def test_execve(how: str, who: str, tmp_path: Path) -> None:
    path = str(program(tmp_path))

    def world(m: Machine) -> Callable[[], object]:
        p = one(m)
        caller = {"alone": lambda: p, "vfork": p.vfork, "thread": lambda: p.clone(VM_THREAD)}[who]()
        return lambda: caller.execve(path)

    storm(world, how, stride=stride(how, 1, 61))


@how_ever
def test_spawn_a_program(how: str, tmp_path: Path) -> None:
    path = str(program(tmp_path))
    storm(lambda m: lambda: m.spawn(path), how, stride=stride(how, 1, 61))


def test_execve_for_the_first_time(tmp_path: Path) -> None:
    """Nothing is kept of it yet: the loader reads, the page cache is filled."""
    path = program(tmp_path)

    def world(m: Machine) -> Callable[[], object]:
        path.write_bytes(path.read_bytes())  # another file, as far as is known
        return lambda: m.spawn(str(path))

    storm(world, "signals", stride=17)


def test_execve_linked() -> None:
    """A program of the host with its libraries."""
    with Machine("64MiB") as m:
        try:
            m.spawn("/bin/sh", ["sh"], {}, link=True)
        except SyscallError as error:
            pytest.skip(f"/bin/sh: {error}")
    storm(lambda m: lambda: m.spawn("/bin/sh", ["sh"], {}, link=True), "signals", stride=5, memory="64MiB")


# ---- traces and files ----


@how_ever
def test_run(how: str) -> None:
    """What the trace has done so far stays done."""
    trace = workloads.fork_join(rounds=1, nprocesses=2, npages=4, naccesses=2)
    storm(lambda m: lambda: m.run(trace), how, stride=stride(how, 3, 41), whole=False)


@how_ever
def test_shared_memory(how: str) -> None:
    storm(by(lambda p: p.mmap(None, 2 * PAGE, RW, SHARED)), how, stride=stride(how, 1, 11))


@how_ever
def test_files(how: str) -> None:
    """A file that nobody has goes."""
    storm(lambda m: lambda: m.create_file("x", b"x" * 100) and None, how, stride=stride(how, 1, 5), whole=False)


@pytest.mark.parametrize("call", ["PAGEOUT", "write", "file"])
def test_pages_on_their_way_out(call: str) -> None:
    """Reclaim has taken pages from everybody and not written them yet: they are somewhere all the same."""
    npages = 200
    with Machine("512KiB", swap="4MiB") as m:
        p = m.spawn()
        a = p.mmap(None, npages * PAGE, RW, ANON)
        pages = b"".join(b"%08d" % i + bytes(PAGE - 8) for i in range(npages))
        p.write(a, pages)
        file = m.create_file("f", pages[: 20 * PAGE], writenotify=True)
        calls: dict[str, Callable[[], object]] = {
            "PAGEOUT": lambda: p.madvise(a + 30 * PAGE, 40 * PAGE, Advice.PAGEOUT),
            "write": lambda: p.touch(a + 100 * PAGE, 60 * PAGE, write=True),
            "file": lambda: [file.pwrite(b"%08d" % i, i * PAGE) for i in range(20)],
        }
        for n in count(0, 1 if call == "PAGEOUT" else 13):
            p.touch(a, 70 * PAGE, write=True)  # dirty again, and in memory
            cutter = Cutter("signals", n)
            cutter(calls[call])
            m.verify()
            p.touch(a + 70 * PAGE, 130 * PAGE)  # what is thought to be clean goes
            assert p.read(a, len(pages)) == pages and file.pread(20 * PAGE, 0) == pages[: 20 * PAGE], n
            if not cutter.cuts:
                assert n > 10
                return


# ---- mending ----


@pytest.mark.parametrize("again", [1, 2, 7, 40, 150, 300])
def test_mending_is_interrupted_too(again: int) -> None:
    """Then the next call begins with the rest of it."""

    def exiting(m: Machine) -> Callable[[], object]:
        _, (child, *_) = family(m)
        child.fork()
        return child.exit

    assert storm(exiting, "signals", again=again) or again > 100
    assert storm(by(lambda p: p.fork_many(5)), "signals", again=again) or again > 100
    assert storm(by(lambda p: p.vfork()), "signals", again=again) or again > 100


def test_errors_of_a_call_mend_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that fails has cleaned up, which is cheap also where there are many processes."""
    with Machine("1MiB") as m:
        p = one(m)
        mended: list[int] = []
        monkeypatch.setattr(m._kernel, "mend", lambda: mended.append(1))
        for fails in (p.wait, m.init.exit, lambda: m.spawn("/no such file"), lambda: p.kill(999, 9)):
            with pytest.raises(SyscallError):
                fails()
        with pytest.raises(vmemu.OutOfMemory):
            p.fork_many(100_000)
        assert not mended
        assert m._kernel.processes.plain
        monkeypatch.undo()
        m.verify()


def test_real_signals() -> None:
    """Timers ring at whatever time, and their handler raises what the calls raise themselves."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("there are no timers here")

    def ring(_signum: int, _frame: FrameType | None) -> None:
        raise SyscallError(4, "a handler's")

    def calls(m: Machine) -> Iterator[Callable[[], object]]:
        p = one(m)
        yield p.fork
        yield lambda: p.fork_many(20)
        yield m.spawn
        yield lambda: p.kill(0, signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with Machine("16MiB") as m:
            start = totals(m)
            for i in range(100):
                for call in calls(m):
                    with contextlib.suppress(SyscallError):  # the timer may also ring where it is stopped
                        try:
                            signal.setitimer(signal.ITIMER_REAL, 2e-6 * (i % 40 + 1))
                            call()
                        finally:
                            signal.setitimer(signal.ITIMER_REAL, 0)
                    m.verify()
                clear(m)
                assert totals(m) == start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_verify_sees_lost_spaces() -> None:
    """A space of nobody's is found."""
    with Machine("1MiB") as m:
        anon(one(m))
        lost = m._kernel.core.space_new(0, "lost")
        with pytest.raises(vmemu.InvariantError, match="spaces that live"):
            m.verify()
        m._kernel.core.space_free(lost)
        m.verify()
