"""Run a program on the host's kernel, stopped at its first instruction, and compare it with `vmemu.loader.plan`.

    python tests/linux/execstop.py --all            # every ELF program in /usr/bin: prints N of M equal
    python tests/linux/execstop.py /bin/ls          # this one; prints what differs

Needs x86-64 Linux, and ptrace to be allowed.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import functools
import os
import resource
import signal
import stat
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vmemu import loader
from vmemu.errors import SyscallError
from vmemu.loader import initstack
from vmemu.types import Prot

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_PTRACE_TRACEME, _PTRACE_CONT, _PTRACE_GETREGS = 0, 7, 12
_BREAKPOINT = b"\xcc"
_START_SECONDS = 10
_ADDR_NO_RANDOMIZE = 0x0040000
_PR_SET_NO_NEW_PRIVS = 38
_RIP, _RSP = 16, 19
"""Indices into struct user_regs_struct."""
_IDS = (initstack.AT_UID, initstack.AT_EUID, initstack.AT_GID, initstack.AT_EGID, initstack.AT_SECURE)
KERNELS_OWN = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")
HUGE_ALIGNED = ("ext2", "ext3", "ext4", "xfs", "btrfs")
STAT_FIELDS = {
    "start_code": 26,
    "end_code": 27,
    "start_stack": 28,
    "start_data": 45,
    "end_data": 46,
    "start_brk": 47,
    "arg_start": 48,
    "arg_end": 49,
    "env_start": 50,
    "env_end": 51,
}
"""Of /proc/PID/stat, proc_pid_stat(5), counted from 1."""

Map = tuple[int, int, str, int, str]
"""start, end, permissions, offset, name"""


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A process that has just been exec'ed, as the kernel shows it."""

    maps: tuple[Map, ...]
    rip: int
    rsp: int
    auxv: tuple[tuple[int, int], ...]
    stack: bytes
    """From rsp to the end of the stack."""
    mm: dict[str, int]
    comm: bytes
    zeroed: tuple[int, ...]
    """Pages of private file mappings that are copies already."""


class ExecFailed(Exception):
    """execve returned: `.errno`; or killed the process past the point of no return: `.errno` is None."""

    def __init__(self, number: int | None) -> None:
        super().__init__(errno.errorcode.get(number, str(number)) if number is not None else "killed")
        self.errno = number


def usable() -> str | None:
    """Why this cannot run here; None if it can."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "needs x86-64 Linux"
    if os.geteuid() != 0:
        return "needs root"
    try:
        record("/proc/self/exe", [b"x"], [])
    except (OSError, RuntimeError) as error:
        return f"ptrace refused: {error}"
    except ExecFailed:
        pass
    return None


def record(
    program: str | bytes,
    argv: Sequence[bytes],
    envp: Sequence[bytes],
    *,
    stack_limit: int = 8 << 20,
    randomize: bool = False,
    nosuid: bool = False,
    started: bool = False,
    cwd: str | None = None,
) -> Stopped:
    """execve in a child that stops at its first instruction; *stack_limit* in bytes, -1 for infinity.

    Linux switches randomisation on again for set-ID programs; with *nosuid* it takes them for ordinary ones.
    With *started* ld.so runs, and the child is stopped at the program's own entry point.
    Raises ExecFailed if the kernel refuses, OSError or RuntimeError if the child cannot be traced.
    """
    path = ctypes.c_char_p(os.fsencode(program))
    args = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    env = (ctypes.c_char_p * (len(envp) + 1))(*envp, None)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            fcntl.fcntl(writer, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
            if cwd is not None:
                os.chdir(cwd)
            resource.setrlimit(resource.RLIMIT_STACK, (stack_limit, resource.getrlimit(resource.RLIMIT_STACK)[1]))
            _libc.personality(ctypes.c_ulong(0 if randomize else _ADDR_NO_RANDOMIZE))
            if nosuid:
                _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if _libc.ptrace(_PTRACE_TRACEME, 0, None, None) != 0:
                os.write(writer, struct.pack("<ci", b"p", ctypes.get_errno()))
                os._exit(1)
            _libc.execve(path, args, env)
            os.write(writer, struct.pack("<ci", b"e", ctypes.get_errno()))
        finally:
            os._exit(1)
    os.close(writer)
    alive = True
    try:
        with os.fdopen(reader, "rb") as pipe:
            _, status = os.waitpid(pid, 0)
            alive = os.WIFSTOPPED(status)
            if alive and os.WSTOPSIG(status) == signal.SIGTRAP:
                if started:
                    _continue_to_entry(pid)
                return _inspect(pid)
            if alive or os.WIFSIGNALED(status):
                raise ExecFailed(None)
            message = pipe.read()
        if len(message) != 5:
            raise RuntimeError("the child failed before execve")
        kind, number = struct.unpack("<ci", message)
        if kind == b"p":
            raise OSError(number, os.strerror(number))
        raise ExecFailed(number)
    finally:
        if alive:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _continue_to_entry(pid: int) -> None:
    vector = dict(struct.iter_unpack("<QQ", Path(f"/proc/{pid}/auxv").read_bytes()))
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(vector[initstack.AT_ENTRY])
        memory.write(_BREAKPOINT)
    deadline = time.monotonic() + _START_SECONDS
    _libc.ptrace(_PTRACE_CONT, pid, None, None)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done and os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP:
            return
        if done or time.monotonic() > deadline:
            if done and not os.WIFSTOPPED(status):
                raise ChildProcessError(f"ended with status {status} before its entry point")
            raise TimeoutError("has not come to its entry point")
        time.sleep(0.0005)


def _inspect(pid: int) -> Stopped:
    registers = (ctypes.c_ulonglong * 27)()
    if _libc.ptrace(_PTRACE_GETREGS, pid, None, ctypes.byref(registers)) != 0:
        raise OSError(ctypes.get_errno(), "PTRACE_GETREGS")
    proc = Path(f"/proc/{pid}")
    maps = parse_maps((proc / "maps").read_bytes())
    words = struct.iter_unpack("<QQ", (proc / "auxv").read_bytes())
    auxv = []
    for key, value in words:
        if key == 0:
            break
        auxv.append((key, value))
    rsp = registers[_RSP]
    top = next(end for start, end, *_ in maps if start <= rsp < end)
    with open(proc / "mem", "rb", buffering=0) as memory:
        memory.seek(rsp)
        stack = memory.read(top - rsp)
    fields = (proc / "stat").read_text().rsplit(") ", 1)[1].split()
    zeroed = []
    with open(proc / "pagemap", "rb", buffering=0) as pagemap:
        for start, end, _perms, _offset, name in maps:
            if name.startswith("/") and end - start < 256 << 20:
                pagemap.seek(start // 4096 * 8)
                entries = struct.iter_unpack("<Q", pagemap.read((end - start) // 4096 * 8))
                for index, (entry,) in enumerate(entries):
                    if entry >> 63 and not entry >> 61 & 1:
                        zeroed.append(start + index * 4096)
    return Stopped(
        maps=maps,
        rip=registers[_RIP],
        rsp=rsp,
        auxv=tuple(auxv),
        stack=stack,
        mm={name: int(fields[number - 3]) for name, number in STAT_FIELDS.items()},
        comm=(proc / "comm").read_bytes().rstrip(b"\n"),
        zeroed=tuple(zeroed),
    )


def parse_maps(text: bytes) -> tuple[Map, ...]:
    """/proc/PID/maps as tuples, without what the kernel maps for itself."""
    found = []
    for line in os.fsdecode(text).splitlines():
        parts = line.split(maxsplit=5)
        name = parts[5] if len(parts) > 5 else ""
        if name in KERNELS_OWN:
            continue
        start, end = (int(part, 16) for part in parts[0].split("-"))
        found.append((start, end, parts[1], int(parts[2], 16), name))
    return tuple(found)


def perms(prot: Prot) -> str:
    """As /proc/PID/maps shows a private mapping."""
    return "".join(c if prot & bit else "-" for c, bit in (("r", Prot.READ), ("w", Prot.WRITE), ("x", Prot.EXEC))) + "p"


def _pieces(plan: loader.ExecPlan) -> list[tuple[int, int, loader.Segment]]:
    """(order of mapping, order of mprotect, segment), in address order, with what is mprotected split off."""
    found = []
    for when, segment in enumerate(plan.segments):
        rest = segment
        for call, (start, end, prot) in enumerate(plan.protect):
            if rest.start <= start and end <= rest.end:
                if rest.start < start:
                    found.append((when, -1, rest.part(rest.start, start)))
                found.append((when, call, dataclasses.replace(rest.part(start, end), prot=prot)))
                rest = rest.part(end, rest.end)
        if rest.size:
            found.append((when, -1, rest))
    return sorted(found, key=lambda piece: piece[2].start)


def planned_maps(plan: loader.ExecPlan) -> tuple[Map, ...]:
    """The segments of *plan* as /proc/PID/maps would show them: sorted, neighbours merged, named."""
    merged: list[Map] = []
    last = (-1, -1)
    for when, call, segment in _pieces(plan):
        name = segment.path or ""
        if segment.start <= plan.start_stack < segment.end:
            name = "[stack]"
        elif not name and segment.start < plan.brk and segment.end > plan.start_brk:
            name = "[heap]"
        line = (segment.start, segment.end, perms(segment.prot), segment.offset, name)
        if merged and name != "[stack]" and last[1] == call == -1:
            start, end, old, offset, old_name = merged[-1]
            # Anonymous memory comes by vm_brk_flags, which joins what lies below and never what lies above.
            joined = offset + end - start == segment.offset if name else last[0] < when
            if end == segment.start and (old, old_name) == line[2:5:2] and joined:
                line = (start, segment.end, old, offset, name)
                merged.pop()
        merged.append(line)
        last = (when, call)
    return tuple(merged)


@functools.cache
def _mounts() -> dict[str, str]:
    """major:minor -> type of file system, of those that have a device."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[2]: line.partition(" - ")[2].split()[0] for line in lines}


def _huge_align(path: str) -> bool:
    """Whether the file system aligns mappings of files for huge pages."""
    device = os.stat(path).st_dev
    return _mounts().get(f"{os.major(device)}:{os.minor(device)}") in HUGE_ALIGNED


def layout_of(real: Stopped, **more: object) -> loader.Layout:
    """A Layout with what only the host knows, taken from a real process: hardware, kernel features, vdso."""
    auxv = dict(real.auxv)
    highest = next((name for *_, name in reversed(real.maps) if name.startswith("/")), None)
    values: dict[str, object] = {
        "vdso": auxv.get(initstack.AT_SYSINFO_EHDR),
        "minsigstksz": auxv[initstack.AT_MINSIGSTKSZ],
        "hwcap": auxv[initstack.AT_HWCAP],
        "hwcap2": auxv[initstack.AT_HWCAP2],
        "rseq_feature_size": auxv[initstack.AT_RSEQ_FEATURE_SIZE],
        "rseq_align": auxv[initstack.AT_RSEQ_ALIGN],
        "uid": os.getuid(),
        "euid": os.geteuid(),
        "gid": os.getgid(),
        "egid": os.getegid(),
        "huge_align": highest is None or _huge_align(highest),
    }
    return loader.Layout(**{**values, **more})  # type: ignore[arg-type]


def differences(real: Stopped, plan: loader.ExecPlan, skip: Sequence[int] = ()) -> list[str]:
    """What *plan* says otherwise than the kernel did; empty if they are equal.

    AT_RANDOM's bytes are left out, and the values of the auxiliary vector's entries *skip*.
    """
    found: list[str] = []

    def compare(what: str, kernel: object, planned: object) -> None:
        if kernel != planned:
            show = [hex(v) if isinstance(v, int) else repr(v) for v in (kernel, planned)]
            found.append(f"{what}: kernel {show[0]}, plan {show[1]}")

    ours = planned_maps(plan)
    for line in sorted(set(real.maps) ^ set(ours)):
        side = "kernel" if line in real.maps else "plan  "
        found.append(f"maps, only {side}: {line[0]:x}-{line[1]:x} {line[2]} {line[3]:08x} {line[4]}")
    compare("rip", real.rip, plan.entry_point)
    compare("rsp", real.rsp, plan.stack_pointer)
    compare("auxv keys", [key for key, _ in real.auxv], [key for key, _ in plan.auxv])
    planned = dict(plan.auxv)
    for key, value in real.auxv:
        if key not in skip:
            compare(f"auxv[{key}]", value, planned.get(key))
    for name, value in real.mm.items():
        compare(name, value, getattr(plan, name))
    compare("comm", real.comm, plan.comm)
    pages = sorted({start & -4096 for start, _ in plan.zero})
    compare("pages zeroed", [hex(page) for page in real.zeroed], [hex(page) for page in pages])
    rows = [_words(real.rsp, real.stack, real.auxv, skip), _words(plan.stack_pointer, plan.stack_data, plan.auxv, skip)]
    if rows[0] != rows[1]:
        place = next((i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b), min(map(len, rows)))
        found.append(f"stack bytes: lengths {len(rows[0])} and {len(rows[1])}, first difference at rsp+{place:#x}")
    return found


def _words(rsp: int, stack: bytes, auxv: Sequence[tuple[int, int]], skip: Sequence[int]) -> bytes:
    """The stack's bytes with zeros for what is not to be compared."""
    blank = bytearray(stack)
    at = dict(auxv)[initstack.AT_RANDOM] - rsp
    blank[at : at + 16] = bytes(16)
    vector = struct.pack("<QQ", *auxv[0]) + struct.pack("<QQ", *auxv[1])
    at = stack.index(vector)
    for index, (key, _) in enumerate(auxv):
        if key in skip:
            blank[at + index * 16 + 8 : at + index * 16 + 16] = bytes(8)
    return bytes(blank)


def check(
    program: str, argv: Sequence[bytes], envp: Sequence[bytes], *, stack_limit: int = 8 << 20, cwd: str | None = None
) -> list[str]:
    """Run *program* for real and on paper; what differs, error against error included."""
    try:
        real = record(program, argv, envp, stack_limit=stack_limit, cwd=cwd)
    except ExecFailed as failure:
        try:
            loader.plan(program, argv, envp, layout=loader.Layout(stack_limit=stack_limit), cwd=cwd)
        except SyscallError as error:
            killed = "SIGSEGV" in str(error)
            if killed if failure.errno is None else failure.errno == error.errno and not killed:
                return []
            return [f"kernel: {failure}, plan: {error}"]
        return [f"kernel: {failure}, plan: works"]
    try:
        plan = loader.plan(program, argv, envp, layout=layout_of(real, stack_limit=stack_limit), cwd=cwd)
    except SyscallError as error:
        return [f"kernel: works, plan: {error}"]
    if not os.stat(plan.path).st_mode & (stat.S_ISUID | stat.S_ISGID):
        return differences(real, plan)
    found, planned = [], dict(plan.auxv)
    for key, value in real.auxv:
        if key in _IDS and value != planned[key]:
            found.append(f"auxv[{key}]: kernel {value}, plan {planned[key]}")
    real = record(program, argv, envp, stack_limit=stack_limit, nosuid=True, cwd=cwd)
    plan = loader.plan(program, argv, envp, layout=layout_of(real, stack_limit=stack_limit), cwd=cwd)
    return found + differences(real, plan, skip=_IDS)


def elf_programs(directory: str = "/usr/bin") -> list[str]:
    """Executable x86-64 ELF files of *directory*, symbolic links included."""
    found = []
    for entry in sorted(Path(directory).iterdir()):
        try:
            if entry.is_file() and os.access(entry, os.X_OK):
                with entry.open("rb") as file:
                    if file.read(5) == b"\x7fELF\x02":
                        found.append(str(entry))
        except OSError:
            continue
    return found


def main(arguments: Sequence[str]) -> int:
    """Compare the programs named, or all of /usr/bin with --all; exit status 1 if one differs."""
    why = usable()
    if why is not None:
        print(why)
        return 2
    programs = elf_programs() if list(arguments) == ["--all"] else list(arguments)
    equal = 0
    for program in programs:
        wrong = check(program, [os.fsencode(program), b"argument"], [b"PATH=/usr/bin:/bin", b"HOME=/root"])
        equal += not wrong
        for line in wrong:
            print(f"{program}: {line}")
    print(f"{equal} of {len(programs)} equal")
    return int(equal != len(programs))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
