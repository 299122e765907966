"""Records what the kernel of this host does with a program: a controller of agents (agent.c), observing through /proc.

The result has the form of the recordings in tests/recorded, so that the same code replays it in vmemu.
Needs root on x86-64 Linux (`why_not`), and a C compiler with a static C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import platform
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from linux.livediff_author import GROWING
from recorded import script
from recorded.observer import PFN, Observer, Vma, offset
from recorded.script import ARENA, ARENA_PAGES, PAGE, SUMS, Op, State

SLOTS = 8
FIRST_STACK = SLOTS
"""Of the first agent and those forked from it; sharers have one of SLOTS others."""
CALL, LOAD, STORE, SWEEP, CHECKSUM, MINCORE, FORK, SHARE, EXIT = range(9)  # agent.c
SYSCALLS = {
    "mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25, "msync": 26, "madvise": 28, "ftruncate": 77,
    "mlock": 149, "munlock": 150, "mlock2": 325, "mlockall": 151, "munlockall": 152, "mseal": 462,
}  # fmt: skip
_CODES: dict[tuple[int, int], str] = {
    (signal.SIGSEGV, 1): "MAPERR",
    (signal.SIGSEGV, 2): "ACCERR",
    (signal.SIGBUS, 2): "ADRERR",
}
_REPLY = struct.Struct("=4qQ3q")  # struct reply
_ZERO_CRC = 0xC71C0011  # of a page of zeros
_SMAPS_ENTRY = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ (\d+)"
    + b"".join(rb".*?^%s: +(\d+) kB" % key.encode() for key in SUMS)
    + rb".*?^VmFlags: ([^\n]*)$",
    re.MULTILINE | re.DOTALL,
)
_ARENA_STARTS = re.compile(rb"^%x[0-9a-f]{6}-" % (ARENA >> 24), re.MULTILINE)
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S(.)\S+ \S+ \S+ \d+ *(.*)$", re.MULTILINE)
_ARENA_END = ARENA + ARENA_PAGES * PAGE
_WRITENOTIFY = {"ext4", "xfs"}
"""Filesystems whose first write through a shared mapping takes a fault of its own."""


def why_not() -> str:
    """Why this host cannot be compared with; empty if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if os.geteuid() != 0:
        return "needs root, to see frame numbers"
    try:
        with (
            open("/proc/self/pagemap", "rb") as pagemap,
            open("/proc/kpagecount", "rb"),
            open("/proc/kpageflags", "rb"),
        ):
            pagemap.seek(ctypes.addressof(ctypes.create_string_buffer(1)) // PAGE * 8)
            if not int.from_bytes(pagemap.read(8), "little") & PFN:
                return "pagemap hides frame numbers (needs CAP_SYS_ADMIN)"
    except OSError as error:
        return f"needs {error.filename}: {error.strerror}"
    if not shutil.which(os.environ.get("CC", "cc")):
        return "needs a C compiler"
    return ""


def build_agent(directory: Path) -> Path:
    """Compile agent.c into *directory*. Raises RuntimeError with the compiler's words."""
    agent = directory / "agent"
    command = [os.environ.get("CC", "cc"), "-std=c11", "-O1", "-static", "-no-pie", "-fno-stack-protector"]
    command += ["-Wl,-z,norelro", "-o", str(agent), str(Path(__file__).with_name("agent.c"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cannot build the agent: {done.stderr.strip()}")
    return agent


def filesystem(directory: Path) -> str:
    """Type of the filesystem that *directory* is on, e.g. ``"ext4"``."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0]
    return "unknown"


def readahead(directory: Path) -> int:
    """Pages that are read ahead from the device that *directory* is on, 0 if it does not say."""
    device = directory.stat().st_dev
    where = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(where.read_text()) * 1024 // PAGE if where.exists() else 0


class Host:
    """Runs programs on this kernel, one at a time."""

    def __init__(self, agent: Path, scratch: Path) -> None:
        """*agent*: see `build_agent`. *scratch*: where file E is made, if that is on a filesystem with write faults."""
        self.agent = agent
        self.scratch = scratch
        self.files: tuple[str, ...] = ("F",)
        if filesystem(scratch) in _WRITENOTIFY:
            self.files = ("F", "E", GROWING) if readahead(scratch) >= 4 * script.FILE_PAGES else ("F", "E")
        self.cpu = max(os.sched_getaffinity(0))
        self._kpagecount = os.open("/proc/kpagecount", os.O_RDONLY)
        self._kpageflags = os.open("/proc/kpageflags", os.O_RDONLY)

    def close(self) -> None:
        os.close(self._kpagecount)
        os.close(self._kpageflags)

    def record(self, program: dict[str, Any]) -> dict[str, Any]:
        """*program* (``name``, ``ops``, ...) with the ``steps`` that this kernel made of it."""
        with contextlib.ExitStack() as stack:
            run = _Run(self, stack, thp=program.get("thp", False))
            return {"kernel": platform.release(), **script.record(program, run)}

    def frame(self, pfn: int) -> tuple[int, int]:
        """(kpagecount, kpageflags) of a frame."""
        count = int.from_bytes(os.pread(self._kpagecount, 8, pfn * 8), "little")
        return count, int.from_bytes(os.pread(self._kpageflags, 8, pfn * 8), "little")


class _Run:
    """One run of one program: fresh files, an agent in slot 0, and what was last observed of all agents."""

    def __init__(self, host: Host, stack: contextlib.ExitStack, *, thp: bool) -> None:
        """Everything opened is closed, and every agent ended, when *stack* unwinds."""
        self._stack = stack
        self._files = {tag: _fresh_file(None if tag == "F" else host.scratch) for tag in host.files if tag in "FE"}
        for descriptor in self._files.values():
            stack.callback(os.close, descriptor)
        ends = []
        self._sockets = []
        for _ in range(SLOTS):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(60)
            ends.append(theirs)
            self._sockets.append(ours)
        numbers = [end.fileno() for end in ends]
        root = subprocess.Popen(
            [host.agent, str(host.cpu), str(int(thp)), *map(str, numbers)], pass_fds=[*numbers, *self._files.values()]
        )
        stack.callback(root.wait)
        for ours, theirs in zip(self._sockets, ends, strict=True):
            stack.callback(ours.close)  # before root.wait(): without its socket an agent ends
            theirs.close()
        self._root = root
        self.agents: dict[int, _Agent] = {}
        self._hello(0, object(), FIRST_STACK)
        inodes = {os.fstat(descriptor).st_ino: tag for tag, descriptor in self._files.items()}
        self._observer = Observer(host.frame, inodes)

    @property
    def alive(self) -> Collection[int]:
        return self.agents.keys()

    # ---- requests

    def _ask(self, slot: int, what: int, *args: int) -> tuple[_Reply, Sequence[int]]:
        words = [what, *(arg & (1 << 64) - 1 for arg in args)]
        if what != CHECKSUM:
            words += [0] * (8 - len(words))
        self._sockets[slot].send(struct.pack(f"={len(words)}Q", *words))
        return self._answer(slot)

    def _answer(self, slot: int) -> tuple[_Reply, Sequence[int]]:
        message = self._sockets[slot].recv(1 << 16)
        if not message:
            raise RuntimeError(f"the agent in slot {slot} died")
        reply = _Reply(*_REPLY.unpack_from(message))
        return reply, struct.unpack_from(f"={reply.count}I", message, _REPLY.size)

    def _hello(self, slot: int, memory: object, stack: int) -> None:
        self.agents[slot] = _Agent(self, slot, self._answer(slot)[0].result, memory, stack, self._stack)

    def checksums(self, slot: int, pages: Sequence[int]) -> list[str]:
        if not pages:
            return []
        addresses = [ARENA + page * PAGE for page in pages]
        _, values = self._ask(slot, CHECKSUM, len(pages), 0, 0, 0, 0, 0, 0, *addresses)
        return ["z" if value == _ZERO_CRC else f"{value:08x}" for value in values]

    # ---- operations

    def do(self, op: Op) -> dict[str, Any]:
        """Perform one operation and give its result as a recording has it."""
        self._observer.before(op)
        result = self._perform(op)
        self._observer.after(op, result)
        return result

    def _perform(self, op: Op) -> dict[str, Any]:
        slot = op["p"]
        match op["op"]:
            case "read" | "write" as access:
                what, value = (LOAD, 0) if access == "read" else (STORE, op["val"] & 255)
                reply, _ = self._ask(slot, what, script.byte_address(op), value)
                if not reply.signal:
                    return {"val": reply.result, "minflt": reply.minor} | (
                        {"majflt": reply.major} if reply.major else {}
                    )
                result = {"sig": signal.Signals(reply.signal).name, "code": _code(reply.signal, reply.code)}
                if reply.address != script.byte_address(op):
                    result["si_addr"] = hex(reply.address)
                return {**result, "minflt": reply.minor}
            case "sweep":
                _, values = self._ask(slot, SWEEP, script.address(op), op["n"])
                return {"vals": [value if value < 256 else _signal(value) for value in values]}
            case "mincore":
                reply, values = self._ask(slot, MINCORE, script.address(op), script.length(op))
                return {"err": errno.errorcode[reply.error]} if reply.error else {"vec": "".join(map(str, values))}
            case "fork" | "share" as birth:
                parent = self.agents[slot]
                memory, stack = object(), parent.stack
                if birth == "share":
                    memory = parent.memory
                    used = {agent.stack for agent in self.agents.values() if agent.memory is memory}
                    stack = min(set(range(SLOTS)) - used)
                reply, _ = self._ask(slot, FORK if birth == "fork" else SHARE, op["child"], stack)
                if reply.error:
                    return {"err": errno.errorcode[reply.error]}
                if birth == "share":
                    self._sockets[op["child"]].send(bytes(8))
                self._hello(op["child"], memory, stack)
                return {}
            case "exit" | "kill" as end:
                self._end(slot, by_signal=end == "kill")
                return {}
            case "fwrite":
                os.pwrite(self._files[op.get("file", "F")], bytes([op["val"]]), op["fpage"] * PAGE + op.get("off", 0))
                return {}
            case "fread":
                data = os.pread(self._files[op.get("file", "F")], 1, op["fpage"] * PAGE + op.get("off", 0))
                return {"val": data[0] if data else "end of file"}
        return self._call(slot, op)

    def _call(self, slot: int, op: Op) -> dict[str, Any]:
        if op["op"] == "mlockall":
            self._populate_image(slot)
        reply, _ = self._ask(slot, CALL, SYSCALLS[op["op"]], *self._arguments(op))
        faults = {"minflt": reply.minor} | ({"majflt": reply.major} if reply.major else {})
        if reply.error:
            return {"err": errno.errorcode[reply.error], **faults}
        if op["op"] not in ("mmap", "mremap"):
            return faults
        answer = script.returned(reply.result)
        if "ret" in answer and op["op"] == "mmap":  # leave no strays
            self._ask(slot, CALL, SYSCALLS["munmap"], reply.result, script.length(op))
        return {**answer, **faults}

    def _arguments(self, op: Op) -> tuple[int, ...]:
        address, length = script.address(op), script.length(op)
        match op["op"]:
            case "mlockall":
                return (op["mlflags"],)
            case "munlockall":
                return ()
            case "mmap":
                tag = script.mmap_file(op)
                descriptor = self._files[tag] if tag else -1
                return address, length, script.prot(op), script.mmap_flags(op), descriptor, script.mmap_offset(op)
            case "mprotect":
                return address, length, script.prot(op)
            case "madvise":
                return address, length, script.advice(op)
            case "mremap":
                return address, length, op["n2"] * PAGE, script.mremap_flags(op), script.address(op, "to")
            case "msync":
                return address, length, op.get("msflags", 4)
            case "mlock2":
                return address, length, op.get("mlflags", 0)
            case "ftruncate":
                return self._files[op.get("file", "F")], op["size"]
        return address, length, 0

    def _populate_image(self, slot: int) -> None:
        """Make present what an agent itself consists of, as mlockall would, so that its faults are the program's."""
        for mapping in _MAPPING.finditer(Path(f"/proc/{self.agents[slot].pid}/maps").read_text()):
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            if start < ARENA or mapping[4] in ("[stack]", "[vdso]"):
                advice = script.ADVICE["POPULATE_WRITE" if mapping[3] == "w" else "POPULATE_READ"]
                self._ask(slot, CALL, SYSCALLS["madvise"], start, end - start, advice)

    def _end(self, slot: int, *, by_signal: bool) -> None:
        agent = self.agents.pop(slot)
        if by_signal:
            signal.pidfd_send_signal(agent.pidfd, signal.SIGKILL)
        else:
            self._sockets[slot].send(struct.pack("=8Q", EXIT, *[0] * 7))
        select.select([agent.pidfd], [], [], 20)  # readable once its memory is gone
        if agent.pid == self._root.pid:
            self._root.wait()

    # ---- observation

    def observe(self) -> dict[int, State]:
        return self._observer.observe(self.agents)


class _Agent:
    """A live agent, and what /proc shows of it (as `observer.View`)."""

    def __init__(self, run: _Run, slot: int, pid: int, memory: object, stack: int, exits: contextlib.ExitStack) -> None:
        """*memory*: the same for those that share it. *stack*: which of the stacks there it runs on."""
        self._run, self._slot = run, slot
        self.pid, self.memory, self.stack = pid, memory, stack
        self.pidfd = os.pidfd_open(pid)
        exits.callback(os.close, self.pidfd)
        self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        exits.callback(os.close, self._pagemap)

    def mappings(self) -> list[Vma]:
        smaps = Path(f"/proc/{self.pid}/smaps").read_bytes()
        vmas: list[Vma] = []
        if arena := _ARENA_STARTS.search(smaps):
            for entry in _SMAPS_ENTRY.finditer(smaps, arena.start()):
                start, end = int(entry[1], 16), int(entry[2], 16)
                if start < ARENA or end > _ARENA_END:
                    break
                sums = {key: int(entry[6 + i]) for i, key in enumerate(SUMS)}
                at = int(entry[4], 16) // PAGE
                flags = entry[6 + len(SUMS)].decode().split()
                vmas.append(Vma(offset(start), offset(end), entry[3].decode(), int(entry[5]), at, flags, sums))
        return vmas

    def pagemap(self, npages: int) -> Sequence[int]:
        return struct.unpack(f"={npages}Q", os.pread(self._pagemap, npages * 8, ARENA // PAGE * 8))

    def checksums(self, pages: Sequence[int]) -> list[str]:
        return self._run.checksums(self._slot, pages)


@dataclasses.dataclass(frozen=True, slots=True)
class _Reply:
    """The head of agent.c's reply."""

    result: int
    error: int
    signal: int
    code: int
    address: int
    minor: int
    major: int
    count: int


def _fresh_file(directory: Path | None) -> int:
    """A file with the contents that scripts expect, in memory or in *directory*; the caller closes it.

    It is written page by page, so that its frames are of one page on filesystems that would use larger ones.
    """
    if directory is None:
        descriptor = os.memfd_create("F")
    else:
        descriptor, name = tempfile.mkstemp(dir=directory)
        os.unlink(name)
    image = script.file_image()
    for start in range(0, len(image), PAGE):
        os.pwrite(descriptor, image[start : start + PAGE], start)
    os.fsync(descriptor)
    return descriptor


def _code(number: int, code: int) -> str:
    return _CODES.get((number, code), str(code))


def _signal(value: int) -> str:
    """A signal in a sweep: number << 16 | code << 8."""
    return f"{signal.Signals(value >> 16).name}:{_code(value >> 16, value >> 8 & 255)}"
