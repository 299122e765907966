"""The files of the control groups, as /sys/fs/cgroup has them under cgroup v2 (admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from vmemu.cgroups import CONTROLLERS, FILES, ROOT_FILES, Cgroup
from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.lifecycle import identity
from vmemu.pids import INIT, PID_MAX
from vmemu.procfs.numbers import invalid, parse_int

__all__ = ["CgroupFS"]

_NO_LIMIT = (1 << 63) - 4096
"""Bytes from which on a limit is none: PAGE_COUNTER_MAX pages."""
_UNITS = {b"": 0, b"k": 10, b"m": 20, b"g": 30, b"t": 40, b"p": 50, b"e": 60}
_SIZE = re.compile(rb"(?:0x([0-9a-f]+)|(0[0-7]*)|([1-9][0-9]*))([kmgtpe]?)", re.IGNORECASE)


def _size(name: str, data: bytes) -> int | None:
    """Bytes, with a unit or without; None for "max" (page_counter_memparse())."""
    text = data.strip()
    if text == b"max":
        return None
    match = _SIZE.fullmatch(text)
    if not match:
        raise invalid(name, data)
    number = int(match[1], 16) if match[1] else int(match[2], 8) if match[2] else int(match[3])
    size = number << _UNITS[match[4].lower()]
    return None if size >= _NO_LIMIT else size


def _limit(value: int | None) -> str:
    return "max\n" if value is None else f"{value}\n"


def _lines(values: dict[str, int]) -> str:
    return "".join(f"{name} {value}\n" for name, value in values.items())


def _words(names: Iterable[str]) -> str:
    return " ".join(sorted(names)) + "\n"


def _procs(group: Cgroup) -> str:
    return "".join(f"{pid}\n" for pid in group.procs)


def _threads(kernel: Kernel, group: Cgroup) -> str:
    return "".join(f"{tid}\n" for pid in group.procs for tid in kernel.processes.tasks(pid))


def _write_procs(kernel: Kernel, group: Cgroup, data: bytes) -> None:
    """Moves the process that a number is of (__cgroup_procs_write()); 0 would be the writer, who is none here."""
    pid = parse_int("cgroup.procs", data, 0)
    if pid < 0:
        raise invalid("cgroup.procs", data)
    identity.set_cgroup(kernel, kernel.processes.process(pid), group)


def _write_kill(kernel: Kernel, group: Cgroup, data: bytes) -> None:
    """Kills whoever is in it and below, but init (cgroup_kill_write())."""
    if parse_int("cgroup.kill", data, 0) != 1:
        raise syscall_error("write", errno.ERANGE, f"{data!r} to cgroup.kill")
    kernel.cgroups.kill([pid for below in group.below() for pid in below.procs if pid != INIT])


def _write_subtree_control(_: Kernel, group: Cgroup, data: bytes) -> None:
    """Words such as +memory and -pids; nothing happens unless all can be done (cgroup_subtree_control_write())."""
    controllers = set(group.subtree_control)
    for word in data.decode("ascii", "replace").split():
        if word[0] not in "+-" or word[1:] not in CONTROLLERS:
            raise invalid("cgroup.subtree_control", data)
        (controllers.add if word[0] == "+" else controllers.discard)(word[1:])
    group.subtree_control = controllers


def _write_type(_: Kernel, group: Cgroup, data: bytes) -> None:
    """All are domains here; the only thing that Linux takes is a change to threaded."""
    if data.strip() == b"threaded":
        raise syscall_error("write", errno.EOPNOTSUPP, f"{group.path}: there are no threaded cgroups")
    raise invalid("cgroup.type", data)


def _write_pids_max(_: Kernel, group: Cgroup, data: bytes) -> None:
    most = None if data.strip() == b"max" else parse_int("pids.max", data, 0)
    if most is not None and not 0 <= most <= PID_MAX:
        raise invalid("pids.max", data)
    group.pids_max = most


def _write_memory_max(_: Kernel, group: Cgroup, data: bytes) -> None:
    group.memory_max = _size("memory.max", data)


def _write_memory_high(_: Kernel, group: Cgroup, data: bytes) -> None:
    group.memory_high = _size("memory.high", data)


def _write_swap_max(_: Kernel, group: Cgroup, data: bytes) -> None:
    group.memory_swap_max = _size("memory.swap.max", data)


def _write_oom_group(_: Kernel, group: Cgroup, data: bytes) -> None:
    value = parse_int("memory.oom.group", data, 0)
    if value not in (0, 1):
        raise invalid("memory.oom.group", data)
    group.oom_group = bool(value)


class _File(NamedTuple):
    read: Callable[[Kernel, Cgroup], str] | None
    write: Callable[[Kernel, Cgroup, bytes], None] | None = None


_FILES = {
    "cgroup.controllers": _File(lambda _, group: "memory pids\n"),
    "cgroup.events": _File(lambda _, group: f"populated {int(group.populated)}\nfrozen 0\n"),
    "cgroup.kill": _File(None, _write_kill),
    "cgroup.subtree_control": _File(lambda _, group: _words(group.subtree_control), _write_subtree_control),
    "cgroup.type": _File(lambda _, group: "domain\n", _write_type),
    "cgroup.procs": _File(lambda _, group: _procs(group), _write_procs),
    "cgroup.threads": _File(_threads),
    "memory.current": _File(lambda _, group: f"{group.memory_current}\n"),
    "memory.events": _File(lambda _, group: _lines(group.memory_events)),
    "memory.events.local": _File(lambda _, group: _lines(group.memory_events_local)),
    "memory.high": _File(lambda _, group: _limit(group.memory_high), _write_memory_high),
    "memory.max": _File(lambda _, group: _limit(group.memory_max), _write_memory_max),
    "memory.oom.group": _File(lambda _, group: f"{int(group.oom_group)}\n", _write_oom_group),
    "memory.peak": _File(lambda _, group: f"{group.memory_peak}\n"),
    "memory.stat": _File(lambda _, group: _lines(group.memory_stat)),
    "memory.swap.current": _File(lambda _, group: f"{group.memory_swap_current}\n"),
    "memory.swap.events": _File(lambda _, group: _lines(group.memory_swap_events)),
    "memory.swap.max": _File(lambda _, group: _limit(group.memory_swap_max), _write_swap_max),
    "memory.swap.peak": _File(lambda _, group: f"{group.memory_swap_peak}\n"),
    "pids.current": _File(lambda _, group: f"{group.pids_current}\n"),
    "pids.events": _File(lambda _, group: f"max {group.pids_events}\n"),
    "pids.events.local": _File(lambda _, group: f"max {group.pids_events_local}\n"),
    "pids.max": _File(lambda _, group: _limit(group.pids_max), _write_pids_max),
    "pids.peak": _File(lambda _, group: f"{group.pids_peak}\n"),
}
assert set(_FILES) == set(FILES)  # noqa: S101


class CgroupFS:
    """/sys/fs/cgroup of a machine, read and written as root would. Directories are made by `Cgroups.create`.

    Paths are relative to it, ``"jail/pids.max"`` or ``"/sys/fs/cgroup/jail/pids.max"``. Failures raise SyscallError
    with Linux's errno.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def _find(self, path: str | os.PathLike[str]) -> tuple[Cgroup, str, str]:
        """The group of a path, its file or "", and the path as it is said. ENOENT, ENOTDIR."""
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError(f"cgroupfs: path must be a str, not {type(path).__name__}")
        words = [word for word in text.removeprefix("/sys/fs/cgroup").split("/") if word not in ("", ".")]
        group = self._kernel.cgroups.root
        said = "/".join(("/sys/fs/cgroup", *words))
        for i, word in enumerate(words):
            child = group.child(word)
            if child is None and word in (FILES if group.parent is not None else ROOT_FILES):
                if i + 1 < len(words):
                    raise syscall_error("open", errno.ENOTDIR, said)
                return group, word, said
            if child is None:
                raise syscall_error("open", errno.ENOENT, said)
            group = child
        return group, "", said

    def _file(self, path: str | os.PathLike[str]) -> tuple[Cgroup, _File, str]:
        group, name, said = self._find(path)
        if not name:
            raise syscall_error("open", errno.EISDIR, said)
        return group, _FILES[name], said

    def read(self, path: str | os.PathLike[str]) -> bytes:
        """A file: ``"jail/memory.events"``. ENOENT, EISDIR, ENOTDIR; EINVAL for what can only be written."""
        with self._kernel.lock:
            group, file, said = self._file(path)
            if file.read is None:
                raise syscall_error("read", errno.EINVAL, f"{said} can only be written")
            return file.read(self._kernel, group).encode()

    def write(self, path: str | os.PathLike[str], data: bytes | str) -> int:
        """Writes *data* to a file, in one write(2), and returns its length: a number, a size with or without a unit, or
        ``max``; a pid to cgroup.procs, 1 to cgroup.kill. EINVAL, ERANGE, ESRCH for data that make no sense."""
        if isinstance(data, str):
            data = data.encode()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"cgroupfs: data must be bytes, not {type(data).__name__}")
        with self._kernel.lock:
            group, file, said = self._file(path)
            if file.write is None:
                raise syscall_error("write", errno.EINVAL, f"{said} can only be read")
            file.write(self._kernel, group, bytes(data))
        return len(data)

    def listdir(self, path: str | os.PathLike[str] = "") -> list[str]:
        """The names in a directory, sorted. ENOENT, ENOTDIR."""
        with self._kernel.lock:
            group, name, said = self._find(path)
            if name:
                raise syscall_error("listdir", errno.ENOTDIR, said)
            files = FILES if group.parent is not None else ROOT_FILES
            return sorted([*files, *(child.name for child in group.children)])
