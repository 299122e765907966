"""What execve(2) does before anything is mapped: open the program, follow ``#!``, collect and limit the strings.

Linux calls this state `struct linux_binprm`. Errors come in the kernel's order and are all raised by
`vmemu.errors.syscall_error`; files are opened only to be read, and closed again.
"""

from __future__ import annotations

import errno
import math
import os
import random
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmemu.errors import SyscallError, syscall_error
from vmemu.loader import elf
from vmemu.loader.seen import Seen
from vmemu.types import PAGE_SIZE

__all__ = ["Credentials", "Layout", "Program", "collect", "find_interpreter", "strings_size", "with_strings"]

ARG_MAX = 131072
"""Bytes that argv and envp may always have together, whatever the stack limit."""
MAX_ARG_STRLEN = 32 * PAGE_SIZE
"""Bytes of one string, its NUL included."""
STRINGS_MAX = 6 << 20
"""Bytes of argv and envp together at most (three quarters of _STK_LIM)."""
SCRIPTS_MAX = 5
"""Interpreters that may follow each other."""
RLIM_INFINITY = 0xFFFF_FFFF_FFFF_FFFF
BUFFER_SIZE = 256
"""Bytes of a file that execve looks at; a ``#!`` line must end within them."""

_ENCODING = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())

Strings = Sequence[str | bytes]
Environment = Mapping[str, str] | Mapping[bytes, bytes] | Sequence[str | bytes]


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user and group ids of a process, credentials(7)."""

    uid: int = 0
    euid: int = 0
    gid: int = 0
    egid: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """What execve depends on besides the program: limits, randomisation, user, machine. Sizes in bytes."""

    stack_limit: float = 8 << 20
    """RLIMIT_STACK; `math.inf` for no limit, which is what -1 and 2^64 - 1 become."""
    rng: random.Random | None = None
    """Source of address randomisation (randomize_va_space=2), drawn from anew at each exec; None switches it off."""
    uid: int = 0
    euid: int = 0
    gid: int = 0
    egid: int = 0
    hwcap: int = 0x178BFBFF
    """AT_HWCAP: cpuid 1, edx."""
    hwcap2: int = 2
    """AT_HWCAP2: bit 1, rdfsbase and wrfsbase may be used."""
    minsigstksz: int = 1776
    rseq_feature_size: int = 28
    rseq_align: int = 32
    clktck: int = 100
    platform: bytes = b"x86_64"
    huge_align: bool = True
    """Files are mapped so that huge pages fit, as on ext4, XFS and Btrfs; on tmpfs they are not."""
    vdso: int | None = None
    """Address for AT_SYSINFO_EHDR, for comparisons with a real process. Without it the entry is left out, and its
    room stays free so that the stack pointer is the same."""
    vdso_size: int = 0
    """Bytes to leave free below the interpreter, where Linux maps vvar and vdso (32 KiB in 6.18)."""

    def __post_init__(self) -> None:
        if self.stack_limit < 0 or self.stack_limit >= RLIM_INFINITY:
            object.__setattr__(self, "stack_limit", math.inf)

    @property
    def credentials(self) -> Credentials:
        """The ids before execve."""
        return Credentials(self.uid, self.euid, self.gid, self.egid)


def strings_size(strings: Sequence[bytes]) -> int:
    """Bytes of strings with their NULs."""
    return sum(map(len, strings)) + len(strings)


@dataclass(slots=True)
class Program:
    """The program that is to run, and its strings."""

    filename: bytes
    """As given to execve; it goes to AT_EXECFN, and its last part to comm."""
    path: str
    """The ELF file that is mapped, resolved as /proc/PID/maps shows it."""
    image: elf.ElfImage
    argv: list[bytes]
    """After ``#!`` rewriting; never empty."""
    envp: list[bytes]
    credentials: Credentials
    """After set-user-ID and set-group-ID bits."""
    stale: bytes = b""
    """What a script's longer argv[0] left in memory right below the strings."""
    rewritten: list[list[bytes]] = field(default_factory=list)
    """What each script put in place of argv[0]."""

    @property
    def strings_size(self) -> int:
        """Bytes of all strings with their NULs, the file name included."""
        return strings_size(self.argv) + strings_size(self.envp) + len(self.filename) + 1


@dataclass(slots=True)
class _Open:
    """A file that execve opened."""

    fd: int
    path: str
    st: os.stat_result
    nosuid: bool
    head: bytes = field(default=b"")

    def close(self) -> None:
        os.close(self.fd)


def collect(
    program: str | bytes | os.PathLike[str],
    argv: Strings,
    envp: Environment,
    layout: Layout,
    cwd: str | None = None,
    seen: Seen | None = None,
) -> Program:
    """Find the ELF file that execve would load and the strings it would be given.

    A relative *program* starts at *cwd*, by default the caller's working directory. What the host says is noted in
    *seen*. Raises SyscallError with the errno of execve(2).
    """
    seen = Seen() if seen is None else seen
    filename, credentials = os.fsencode(program), layout.credentials
    if b"\0" in filename:
        raise syscall_error("execve", errno.ENOENT, "the path has a NUL byte in it", os.fsdecode(filename))
    file = _open(filename, cwd, credentials, seen)
    try:
        strings = _Strings(filename, _encode(argv, "argv"), _encode(_pairs(envp), "environment"), layout.stack_limit)
        interp, rewritten = filename, []
        for depth in range(SCRIPTS_MAX + 2):
            if depth > SCRIPTS_MAX:
                raise syscall_error(
                    "execve", errno.ELOOP, f"more than {SCRIPTS_MAX} #! interpreters in a row", os.fsdecode(filename)
                )
            script = _script(file)
            if script is None:
                break
            name, argument = script
            rewritten.append([name, *([] if argument is None else [argument]), interp])
            strings.replace_first(rewritten[-1])
            interp = name
            next_file = _open(name, cwd, credentials, seen, f"interpreter of {os.fsdecode(file.path)}")
            file.close()
            file = next_file
        image = elf.parse_fd(file.fd, os.fsdecode(interp))
        seen.show(file.path, file.st)
        return Program(
            filename=filename,
            path=file.path,
            image=image,
            argv=strings.argv,
            envp=strings.envp,
            credentials=_set_ids(file, credentials),
            stale=strings.stale,
            rewritten=rewritten,
        )
    finally:
        file.close()


def with_strings(program: Program, argv: Strings, envp: Environment, stack_limit: float) -> Program:
    """The same program with other strings. Raises SyscallError as `collect` does for them."""
    strings = _Strings(program.filename, _encode(argv, "argv"), _encode(_pairs(envp), "environment"), stack_limit)
    for new in program.rewritten:
        strings.replace_first(new)
    return Program(
        filename=program.filename,
        path=program.path,
        image=program.image,
        argv=strings.argv,
        envp=strings.envp,
        credentials=program.credentials,
        stale=strings.stale,
        rewritten=program.rewritten,
    )


def find_interpreter(
    program: Program, cwd: str | None = None, seen: Seen | None = None
) -> tuple[str, elf.ElfImage] | None:
    """(path, image) of what PT_INTERP names, None without one. Raises SyscallError as execve does."""
    seen = Seen() if seen is None else seen
    if program.image.interp_problem is not None:
        number, why = program.image.interp_problem
        raise syscall_error("execve", number, why, program.path)
    if program.image.interp is None:
        return None
    file = _open(program.image.interp, cwd, program.credentials, seen, f"ELF interpreter of {program.path}")
    try:
        return file.path, elf.parse_fd(file.fd, os.fsdecode(program.image.interp), interpreter=True)
    finally:
        file.close()


def _open(name: bytes, cwd: str | None, credentials: Credentials, seen: Seen, role: str = "") -> _Open:
    """do_open_execat: a regular file that may be executed."""
    shown = os.fsdecode(name)
    prefix = f"{role}: " if role else ""

    def fail(number: int, why: str) -> SyscallError:
        return syscall_error("execve", number, prefix + why, shown)

    if not name:
        if not role:
            raise fail(errno.ENOENT, "the path is empty")
        raise fail(errno.EACCES, "the path is empty, which opens the working directory")
    if len(name) >= elf.PATH_MAX:
        raise fail(errno.ENAMETOOLONG, f"a path of {len(name)} bytes")
    path = os.path.join(os.fsencode(cwd), name) if cwd is not None else name
    try:
        st = seen.stat(path)
        if not stat.S_ISREG(st.st_mode):
            kind = "a directory" if stat.S_ISDIR(st.st_mode) else "not a regular file"
            raise fail(errno.EACCES, kind)
        if not _may_execute(st, credentials):
            raise fail(errno.EACCES, f"mode {stat.filemode(st.st_mode)} does not let uid {credentials.euid} execute it")
        flags = seen.mount_flags(path, st)
        if flags & getattr(os, "ST_NOEXEC", 0):
            raise fail(errno.EACCES, "on a file system mounted noexec")
        real = seen.realpath(path)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except SyscallError:
        raise
    except OSError as error:
        raise fail(error.errno or errno.EIO, "cannot be opened") from None
    try:
        head = os.pread(fd, BUFFER_SIZE, 0).ljust(BUFFER_SIZE, b"\0")
    except OSError as error:
        os.close(fd)
        raise fail(error.errno or errno.EIO, "cannot be read") from None
    return _Open(fd, real, st, bool(flags & getattr(os, "ST_NOSUID", 0)), head)


def _may_execute(st: os.stat_result, credentials: Credentials) -> bool:
    """generic_permission for MAY_EXEC on a file; root needs any one of the x bits."""
    if credentials.euid == 0:
        return bool(st.st_mode & 0o111)
    if credentials.euid == st.st_uid:
        return bool(st.st_mode & 0o100)
    return bool(st.st_mode & (0o010 if credentials.egid == st.st_gid else 0o001))


def _set_ids(file: _Open, credentials: Credentials) -> Credentials:
    """bprm_fill_uid: set-ID bits count for the file that is loaded, so not for scripts."""
    mode = file.st.st_mode
    if file.nosuid:
        return credentials
    euid = file.st.st_uid if mode & stat.S_ISUID else credentials.euid
    egid = file.st.st_gid if mode & stat.S_ISGID and mode & stat.S_IXGRP else credentials.egid
    return Credentials(credentials.uid, euid, credentials.gid, egid)


_SPACES = b" \t"


def _script(file: _Open) -> tuple[bytes, bytes | None] | None:
    """(interpreter, argument) of a ``#!`` line (load_script); None if the file is no script.

    Without a newline in the first 256 bytes the interpreter's path must end there, the argument may be cut short.
    """
    buffer = file.head
    if buffer[:2] != b"#!":
        return None
    newline = buffer.find(b"\n")
    if newline >= 0:
        line = buffer[2:newline].rstrip(_SPACES)
    else:
        line = buffer[2:].lstrip(_SPACES)
        if not any(byte in line for byte in b" \t\0"):
            why = "a #! path that does not end within 256 bytes" if line else "nothing but blanks after #!"
            raise syscall_error("execve", errno.ENOEXEC, why, file.path)
        line = buffer[2 : BUFFER_SIZE - 1].rstrip(_SPACES)
    name_and_more = line.lstrip(_SPACES)
    if not name_and_more:
        raise syscall_error("execve", errno.ENOEXEC, "no interpreter after #!", file.path)
    end = next((i for i, byte in enumerate(name_and_more) if byte in b" \t\0"), None)
    if end is None:
        return name_and_more, None
    name = name_and_more[:end]
    if name_and_more[end] == 0:
        return name, None
    argument = name_and_more[end:].lstrip(_SPACES)
    return name, argument.split(b"\0", 1)[0]


class _Strings:
    """argv, envp and the file name as copied to the top of the new stack, with their limits (copy_strings)."""

    def __init__(self, filename: bytes, argv: list[bytes], envp: list[bytes], stack_limit: float) -> None:
        self.filename = filename
        self.argv: list[bytes] = []
        self.envp = envp
        self.stack_limit = stack_limit
        limit = max(STRINGS_MAX if math.isinf(stack_limit) else min(STRINGS_MAX, int(stack_limit) // 4), ARG_MAX)
        pointers = (max(len(argv), 1) + len(envp)) * 8
        self._used = 0
        self.stale = b""
        if limit <= pointers:
            raise self._fail(f"{len(argv)} arguments and {len(envp)} environment strings: the pointers alone fill it")
        self._limit = limit - pointers
        self._copy([filename])
        self._copy(envp)
        self._copy(argv or [b""])  # Linux puts in an empty argv[0]
        self.argv = argv or [b""]

    def replace_first(self, new: list[bytes]) -> None:
        """Put *new* in place of argv[0], growing downwards over it; what is not overwritten stays in memory."""
        below = self.stale + self.argv[0] + b"\0"
        self._used -= len(self.argv[0]) + 1
        self._copy(new)
        self.stale = below[: max(0, len(below) - sum(len(text) + 1 for text in new))]
        self.argv = new + self.argv[1:]

    def _copy(self, texts: list[bytes]) -> None:
        for text in reversed(texts):
            if len(text) >= MAX_ARG_STRLEN:
                raise self._fail(f"a string of {len(text)} bytes; {MAX_ARG_STRLEN - 1} are allowed")
            self._used += len(text) + 1
            if self._used > self._limit:
                raise self._fail(f"arguments and environment take more than {self._limit} bytes")
            # The stack's first page is there; below it, it grows under RLIMIT_STACK (8: the NULL at the top).
            pages = -(-(self._used + 8) // PAGE_SIZE)
            if pages > 1 and pages * PAGE_SIZE > self.stack_limit:
                raise self._fail(f"RLIMIT_STACK of {self.stack_limit} bytes leaves no room for the strings")

    def _fail(self, why: str) -> SyscallError:
        return syscall_error("execve", errno.E2BIG, why, os.fsdecode(self.filename))


def _pairs(envp: Environment) -> Sequence[str | bytes]:
    if not isinstance(envp, Mapping):
        return envp
    return [
        f"{name}={value}"
        if type(name) is type(value) is str
        else _bytes(name, "environment: a name") + b"=" + _bytes(value, f"environment: the value of {name!r}")
        for name, value in envp.items()
    ]


def _bytes(text: Any, what: str) -> bytes:
    """*text* as the kernel gets it; TypeError that names *what* if it is none."""
    try:
        return os.fsencode(text)
    except TypeError:
        raise TypeError(f"{what} must be str or bytes, not {type(text).__name__} ({text!r})") from None


def _encode(strings: Strings, what: str) -> list[bytes]:
    if isinstance(strings, (str, bytes)):
        raise TypeError(f"{what}: one string; execve takes a sequence of strings")
    if not isinstance(strings, Iterable):
        raise TypeError(f"{what}: a sequence of strings is needed, not {type(strings).__name__}")
    encoded = [text.encode(*_ENCODING) if type(text) is str else _bytes(text, f"{what}: each") for text in strings]
    if b"\0" in b"".join(encoded):
        text = next(text for text in encoded if b"\0" in text)
        raise syscall_error("execve", errno.EINVAL, f"{what}: {text[:40]!r} has a NUL byte in it")
    return encoded
