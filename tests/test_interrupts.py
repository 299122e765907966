"""An exception may come between any two steps of a call, as from a signal handler: the call has then happened as a
whole or not at all.

Each call is made again and again in a small world that is always the same, and is interrupted at the first, second, ...
of its steps, until it comes through. Steps are those at which CPython looks for signals (a function begins, one in C
returns), or every instruction.
"""

from __future__ import annotations

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
from machines import PAGE, SHARED, anon, every_mode, filled, program

import vmemu
from vmemu import Clone, ForkMode, Machine, Process, Prot, SyscallError, workloads

HERE = str(Path(vmemu.__file__).parent)
RW = Prot.READ | Prot.WRITE
VM_THREAD = Clone.VM | Clone.SIGHAND | Clone.THREAD
CALLS = {"PRECALL", "CALL", "CALL_KW"}
how_ever = pytest.mark.parametrize("how", ["signals", "instructions"])


class Cut(BaseException):
    """What comes in the middle."""


@cache
def stops(code: CodeType) -> set[int]:
    """Offsets of a function's instructions before which it may be interrupted. Not where CPython runs no handler and
    something depends on it: between a call's beginning and its lock, where methods are got, and between the names of
    arguments and the call, which would be left to the next call (3.11, 3.12)."""
    taken = {n for _, _, n in code.co_lines() if n and "lock.acquire()" in getline(code.co_filename, n)}
    at = {offset: line for start, end, line in code.co_lines() for offset in range(start, end, 2)}
    return {i.offset for i in get_instructions(code) if i.opname not in CALLS and at.get(i.offset) not in taken}


class Cutter:
    """Raises at some steps, counted over all frames of vmemu."""

    def __init__(self, how: str, *steps: int) -> None:
        self.how, self.steps, self.n, self.cuts = how, steps, 0, 0

    def step(self) -> None:
        self.n += 1
        if self.n - 1 in self.steps:
            self.cuts += 1
            raise Cut

    def profile(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(HERE):
            try:
                self.step()
            except Cut:
                sys.setprofile(self.profile)  # who raises is not asked again
                raise

    def trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_lasti in stops(frame.f_code):
            try:
                self.step()
            except Cut:
                sys.settrace(self.trace)
                raise
        return self.trace

    def __call__(self, call: Callable[[], object]) -> None:
        """Makes a call. `cuts` says how often it was interrupted."""
        before, hook = sys.gettrace(), sys.unraisablehook
        # Out of a finalizer, or a generator that is closed, nobody gets the exception: the call goes on.
        sys.unraisablehook = lambda lost: hook(lost) if lost.exc_type is not Cut else None
        try:
            if self.how == "signals":
                sys.setprofile(self.profile)
            else:
                sys.settrace(self.trace)
            call()
        except Cut:
            pass
        finally:
            sys.setprofile(None)
            sys.settrace(before)
            sys.unraisablehook = hook


World = Callable[[Machine], Callable[[], object]]
"""Makes processes; what it returns is the call."""


def shape(m: Machine, pid: int = 1) -> tuple[Any, ...]:
    """A process and its descendants, without the numbers that change from one time to the next."""
    p, table = m.processes[pid], m._kernel.processes
    memory = [(t.state, t.comm, t.rss, *((v.size, v.prot) for v in t.maps())) for t in p.threads]
    own = (p.state, memory, table.exit_signal[pid], len(table.members(pid)), sorted(p.pending), p.credentials)
    return (*own, *(shape(m, child.pid) for child in p.children))


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


def storm(world: World, how: str, *, stride: int = 1, again: int = 0, whole: bool = True, memory: str = "2MiB") -> None:
    """Interrupts a call at every *stride*-th step, and once more *again* steps later, if not 0. *whole*: a part of it
    must not have happened."""
    with Machine(memory) as m:
        world(m)()  # what is kept from the first time is there
        clear(m)
        start = totals(m)
        call = world(m)
        outcomes = [shape(m)]
        call()
        outcomes.append(shape(m))
        clear(m)
        assert totals(m) == start
        for n in count(0, stride):
            cutter = Cutter(how, n, n + again) if again else Cutter(how, n)
            cutter(world(m))
            lock: Any = m._kernel.lock
            while how == "instructions" and lock._is_owned():
                lock.release()  # no signal comes between the end of a block and the call of __exit__
            assert not lock._is_owned(), n
            m.verify()
            if whole:
                assert shape(m) in outcomes, n
            clear(m)
            m.verify()
            assert totals(m) == start, n
            if not cutter.cuts:
                assert n > 3 * stride
                return


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


# ---- programs ----


@how_ever
@pytest.mark.parametrize("who", ["alone", "vfork", "thread"])
def test_execve(how: str, who: str, tmp_path: Path) -> None:
    path = str(program(tmp_path))

    def world(m: Machine) -> Callable[[], object]:
        p = one(m)
        caller = {"alone": lambda: p, "vfork": p.vfork, "thread": lambda: p.clone(VM_THREAD)}[who]()
        return lambda: caller.execve(path)

    storm(world, how, stride=stride(how, 1, 11))


@how_ever
def test_spawn_a_program(how: str, tmp_path: Path) -> None:
    path = str(program(tmp_path))
    storm(lambda m: lambda: m.spawn(path), how, stride=stride(how, 1, 17))


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


# ---- mending ----


@pytest.mark.parametrize("again", [1, 2, 7, 40, 150, 300])
def test_mending_is_interrupted_too(again: int) -> None:
    """Then the next call begins with the rest of it."""

    def exiting(m: Machine) -> Callable[[], object]:
        _, (child, *_) = family(m)
        child.fork()
        return child.exit

    storm(exiting, "signals", again=again)
    storm(by(lambda p: p.fork_many(5)), "signals", again=again)
    storm(by(lambda p: p.vfork()), "signals", again=again)


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
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 2e-6 * (i % 40 + 1))
                        call()
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    except SyscallError:
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
