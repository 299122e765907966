"""Random families of processes on the host's kernel and in vmemu: forks, deaths, signals, waits, groups, sessions.

On the host the family lives in a PID namespace of its own, so that pids are the same as in a new machine. Each process
is an agent that takes commands from its socket; after each command the test waits until nobody moves, and reads from
/proc what has become of everyone. `python tests/linux/treediff.py --seed S --programs N` for long runs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmemu import Machine, Process, SyscallError

SLOTS = 7
CLONE_NEWPID, CLONE_PARENT = 0x2000_0000, 0x8000
WCLONE, WALL = 0x8000_0000, 0x4000_0000
SYS_CLONE = 56
ACTIONS = ("default", "ignore", "handler")
SIGNALS = [
    signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTSTP, signal.SIGUSR1, signal.SIGCHLD,
    signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH, 34,
]  # fmt: skip
Op = list[Any]


def why_not() -> str:
    """Why families can't be run here, "" if they can."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "needs Linux on x86-64"
    if os.getuid():
        return "needs root"
    pid = os.fork()
    if not pid:
        os._exit(ctypes.CDLL(None).unshare(CLONE_NEWPID) != 0)
    return "needs PID namespaces" if os.waitpid(pid, 0)[1] else ""


# ---- the host: agents ----


class _Sigaction(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


class Agent:
    """One process of the family on the host: does what its socket says."""

    def __init__(self, sockets: list[socket.socket], slot: int) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.sockets = sockets
        self.slot = slot

    def check(self, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), "")
        return result

    def serve(self) -> None:
        while True:
            name, *args = json.loads(self.sockets[self.slot].recv(4096))
            try:
                reply = getattr(self, name)(*args)
            except OSError as error:
                reply = errno.errorcode[error.errno or 0]
            self.sockets[self.slot].send(json.dumps(reply).encode())

    def fork(self, slot: int, flags: int) -> int:
        pid = self.check(self.libc.syscall(SYS_CLONE, flags, 0, 0, 0, 0))
        if not pid:
            self.slot = slot
            self.serve()
        return pid

    def exit(self, code: int) -> None:
        os._exit(code)

    def kill(self, pid: int, sig: int) -> int:
        return self.check(self.libc.kill(pid, sig))

    def wait4(self, pid: int, options: int) -> tuple[int, int]:
        status = ctypes.c_int(0)
        found = self.check(self.libc.wait4(pid, ctypes.byref(status), ctypes.c_int(options), None))
        return found, status.value

    def waitid(self, idtype: int, number: int, options: int) -> list[int] | None:
        info = (ctypes.c_int * 32)()
        self.check(self.libc.waitid(idtype, number, info, ctypes.c_int(options)))
        return [info[4], info[5], info[6], info[2]] if info[4] else None

    def setpgid(self, pid: int, group: int) -> int:
        return self.check(self.libc.setpgid(pid, group))

    def setsid(self) -> int:
        return self.check(self.libc.setsid())

    def getpgid(self, pid: int) -> int:
        return self.check(self.libc.getpgid(pid))

    def signal(self, sig: int, action: str, flags: int) -> int:
        new = _Sigaction(flags=flags | 0x1000_0000)  # SA_RESTART
        handler = ctypes.cast(self.libc.abs, ctypes.c_void_p).value
        new.handler = {"default": 0, "ignore": 1, "handler": handler}[action]
        return self.check(self.libc.sigaction(sig, ctypes.byref(new), None))

    def sigmask(self, how: int, signals: list[int]) -> None:
        signal.pthread_sigmask(how, signals)

    def prctl(self, option: int, value: int) -> int:
        return self.check(self.libc.prctl(option, value, 0, 0, 0))

    def setresuid(self, *ids: int) -> int:
        return self.check(self.libc.setresuid(*ids))


class Host:
    """A family on the host. Process 1 of its namespace only makes others and reaps."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(SLOTS + 1)]
        self.sockets = [mine for mine, _ in pairs]
        reader, writer = os.pipe()
        self.outer = os.fork()
        if not self.outer:
            ctypes.CDLL(None).unshare(CLONE_NEWPID)
            pid = os.fork()
            if pid:
                os.write(writer, str(pid).encode())
                os._exit(os.waitpid(pid, 0)[1] and 1)
            agent = Agent([theirs for _, theirs in pairs], 0)
            for sig in range(1, 65):
                if sig not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                    agent.signal(sig, "ignore" if sig == signal.SIGCHLD else "default", 0)
            agent.setsid()
            agent.serve()
        self.init = int(os.read(reader, 100))
        os.close(reader)
        os.close(writer)
        for mine, theirs in pairs:
            mine.settimeout(5)
            theirs.close()

    def close(self) -> None:
        os.kill(self.init, signal.SIGKILL)
        os.waitpid(self.outer, 0)
        for one in self.sockets:
            one.close()

    def do(self, slot: int, op: Op) -> Any:
        """The reply, or None if the agent ended or stopped instead."""
        self.sockets[slot].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sockets[slot].recv(4096)  # what it answered after it had been stopped
        self.sockets[slot].send(json.dumps(op).encode())
        end = time.monotonic() + 5
        self.sockets[slot].settimeout(0.002)
        try:
            while time.monotonic() < end:
                try:
                    return json.loads(self.sockets[slot].recv(4096))
                except TimeoutError:
                    if op[0] in ("exit", "kill", "sigmask") and self._still():
                        return self._late_reply(slot)
        finally:
            self.sockets[slot].settimeout(5)
        raise AssertionError(f"the agent does not answer: {op}")

    def _late_reply(self, slot: int) -> Any:
        try:
            return json.loads(self.sockets[slot].recv(4096))
        except TimeoutError:
            return None

    def family(self) -> dict[int, dict[str, Any]]:
        """Everybody, when nobody moves."""
        while not (seen := self._still()):
            time.sleep(0.0005)
        return seen

    def _still(self) -> dict[int, dict[str, Any]]:
        """Everybody, empty if somebody moves."""
        try:
            first, second = self._look(), self._look()
        except (FileNotFoundError, ProcessLookupError):
            return {}
        moving = any(
            p["state"] not in "STZ" or (p["state"] == "S" and p["pending"] & ~p["blocked"]) for p in first.values()
        )
        return {} if moving or first != second else first

    def _look(self) -> dict[int, dict[str, Any]]:
        seen: dict[int, dict[str, Any]] = {}
        outside = [(self.init, 0)]
        while outside:
            pid, parent = outside.pop(0)
            fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            own = int(fields["NSpid"].split()[-1])
            dead = fields["State"][0] == "Z"
            # where several stop at once, one may be told of another by SIGCHLD before or after it stops itself
            hidden = int(fields["SigCgt"], 16) if fields["State"][0] == "T" else 0
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            seen[own] = {
                "state": fields["State"][0],
                "parent": parent,
                "group": int(fields["NSpgid"].split()[-1]),
                "session": int(fields["NSsid"].split()[-1]),
                "pending": 0 if dead else (int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)) & ~hidden,
                "blocked": 0 if dead else int(fields["SigBlk"], 16) & ~hidden,
                "ignored": 0 if dead or parent == 0 else int(fields["SigIgn"], 16),
                "caught": 0 if dead else int(fields["SigCgt"], 16) & ~(3 << 31),
                "uids": fields["Uid"].split(),
            }
            outside += [(int(child), own) for child in children]
        return seen


# ---- vmemu ----


class Emulated:
    """The same family in vmemu."""

    def __init__(self) -> None:
        self.machine = Machine(memory="4MiB")
        self.slots: dict[int, Process] = {0: self.machine.init}

    def close(self) -> None:
        self.machine.verify()
        self.machine.close()

    def do(self, slot: int, op: Op) -> Any:
        try:
            return self._do(self.slots[slot], *op)
        except SyscallError as error:
            return error.name

    def _do(self, p: Process, name: str, *args: Any) -> Any:
        if name == "fork":
            self.slots[args[0]] = child = p.clone(args[1]) if p.pid > 1 else self.machine.spawn()
            return child.pid
        if name == "exit":
            return p.exit(args[0])
        if name == "kill":
            p.kill(*args)
            return 0
        if name == "wait4":
            return list(p.wait(*args))
        if name == "waitid":
            info = p.waitid(*args)
            return info and [info.si_pid, info.si_uid, info.si_status, info.si_code]
        if name == "signal":
            p.signal(args[0], {"default": signal.SIG_DFL, "ignore": signal.SIG_IGN}.get(args[1], args[1]), args[2])
            return 0
        if name == "sigmask":
            p.sigmask(*args)
            return None
        if name == "prctl":
            p.set_child_subreaper(args[1]) if args[0] == 36 else p.set_death_signal(args[1])
            return 0
        return getattr(p, name)(*args) or 0

    def family(self) -> dict[int, dict[str, Any]]:
        seen = {}
        kernel = self.machine._kernel
        table = kernel.processes
        waiting = [1]
        while waiting:
            pid = waiting.pop(0)
            p = self.machine.processes[pid]
            dead = p.state == "zombie"
            said = kernel.signals.of(pid)
            who = p.credentials
            hidden = said.caught if p.state == "stopped" else 0
            seen[pid] = {
                "state": {"running": "S", "stopped": "T", "zombie": "Z"}[p.state],
                "parent": p.ppid,
                "group": p.getpgid(),
                "session": p.getsid(),
                "pending": 0 if dead else sum(1 << sig - 1 for sig in p.pending) & ~hidden,
                "blocked": 0 if dead else table.blocked[pid] & ~hidden,
                "ignored": 0 if dead or pid == 1 else said.ignored,
                "caught": 0 if dead else said.caught,
                "uids": [str(uid) for uid in (who.uid, who.euid, who.suid, who.fsuid)],
            }
            waiting += [child.pid for child in p.children]
        return seen


# ---- programs ----


def step(rng: random.Random, emulated: Emulated) -> tuple[int, Op]:
    """A next operation that somebody can make now."""
    able = [slot for slot, p in emulated.slots.items() if slot and p.state == "running"]
    free = [slot for slot in range(1, SLOTS + 1) if slot not in emulated.slots or emulated.slots[slot].state == "gone"]
    free = [slot for slot in free if slot not in emulated.slots]
    if not able or (free and rng.random() < 0.05):
        return (0, ["fork", free[0], signal.SIGCHLD]) if free else (-1, [])
    slot = rng.choice(able)
    pids = list(emulated.family())
    some: Callable[[], int] = lambda: rng.choice([*pids[1:], *pids[1:], 0, 99])  # noqa: E731
    sig: Callable[[], int] = lambda: int(rng.choice(SIGNALS))  # noqa: E731
    if free and rng.random() < 0.3:
        exit_signal = rng.choice([signal.SIGCHLD] * 6 + [0, signal.SIGUSR1, signal.SIGWINCH])
        return slot, ["fork", free[0], int(exit_signal) | (CLONE_PARENT if rng.random() < 0.15 else 0)]
    kinds: list[Callable[[], Op]] = [
        lambda: ["exit", rng.randrange(256)],
        lambda: ["kill", some(), sig()],
        lambda: ["kill", some(), sig()],
        lambda: ["kill", some(), int(rng.choice([signal.SIGSTOP, signal.SIGCONT, signal.SIGTSTP]))],
        lambda: ["kill", -max(some(), 2), sig()],
        lambda: ["kill", some(), rng.choice([0, -1, 65])],
        lambda: ["wait4", rng.choice([-1, -1, 0, some(), -max(some(), 2)]), os.WNOHANG | rng.choice(
            [0, 0, os.WUNTRACED, os.WCONTINUED, os.WUNTRACED | os.WCONTINUED, WCLONE - (1 << 32)]
        )],
        lambda: ["waitid", rng.choice([os.P_ALL, os.P_PID, os.P_PGID]), some(), os.WNOHANG | rng.choice(
            [0, os.WEXITED, os.WEXITED | os.WNOWAIT, os.WSTOPPED, os.WCONTINUED, os.WEXITED | os.WSTOPPED]
        )],
        lambda: ["setpgid", rng.choice([0, some()]), rng.choice([0, 0, some(), -1])],
        lambda: ["setsid"],
        lambda: ["getpgid", some()],
        lambda: ["signal", rng.choice([signal.SIGCHLD, sig()]), rng.choice(ACTIONS), rng.choice([0, 0, 1, 2])],
        lambda: ["sigmask", rng.choice([signal.SIG_BLOCK, signal.SIG_UNBLOCK]), [sig(), sig()]],
        lambda: ["prctl", 36, rng.choice([1, 1, 0])],
        lambda: ["prctl", 1, rng.choice([0, sig(), 65])],
        lambda: ["setresuid", -1, rng.choice([0, 1000, 1001]), -1],
        lambda: ["setresuid", rng.choice([1000, 1001]), rng.choice([1000, 1001]), 0],
    ]  # fmt: skip
    return slot, rng.choice(kinds)()


def examine(seed: int, length: int = 60) -> str:
    """Runs one program on both -> the difference with the program that led to it, "" if there is none."""
    rng = random.Random(seed)
    host, emulated, log = Host(), Emulated(), []
    try:
        for _ in range(length):
            slot, op = step(rng, emulated)
            if slot < 0:
                break
            log.append(f"{slot}: {op}")
            results = [side.do(slot, op) for side in (host, emulated)]
            if op[0] == "kill":  # who dies of it may answer first
                results[0] = results[0] or 0
            families = [side.family() for side in (host, emulated)]
            if slot == 0:
                for first in (["setsid"], ["signal", int(signal.SIGCHLD), "default", 0]):
                    log.append(f"{op[1]}: {first}")
                    results += [side.do(op[1], first) for side in (host, emulated)]
                families = [side.family() for side in (host, emulated)]
            if results[::2] != results[1::2] or families[0] != families[1]:
                both = [
                    f"  {pid}: host {families[0].get(pid)}\n     vmemu {families[1].get(pid)}"
                    for pid in sorted({*families[0], *families[1]})
                    if families[0].get(pid) != families[1].get(pid)
                ]
                order = f"order: {list(families[0])} {list(families[1])}"
                return "\n".join([f"seed {seed}", *log, f"results (host, vmemu): {results}", *both, order])
            if list(families[0]) != list(families[1]):
                if op[0] == "kill" and op[1] <= 0:
                    return ""  # which of several dies first is the scheduler's affair
                return "\n".join([f"seed {seed}", *log, f"children in order: {list(families[0])} {list(families[1])}"])
        return ""
    finally:
        emulated.close()
        host.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare random families of processes with this kernel.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--programs", type=int, default=100)
    args = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    different = 0
    for seed in range(args.seed, args.seed + args.programs):
        if difference := examine(seed):
            different += 1
            print(difference, flush=True)
    print(f"{args.programs} programs, {different} different")


if __name__ == "__main__":
    main()
