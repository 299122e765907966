"""The small files of a process: comm, io, wchan, cgroup, personality."""

from __future__ import annotations

import errno

from vmemu.errors import syscall_error
from vmemu.lifecycle import identity
from vmemu.procfs.subject import Subject
from vmemu.procfs.system import FIXED

__all__ = ["cgroup", "comm", "io", "mounts", "personality", "wchan", "write_comm"]


def comm(subject: Subject) -> bytes:
    """PID/comm: the name of the task."""
    return subject.name + b"\n"


def write_comm(subject: Subject, data: bytes, by: int | None) -> None:
    """Renames the task: up to 15 bytes, up to a 0. EINVAL for another process than itself (comm_write())."""
    if by not in (None, subject.pid):
        raise syscall_error("write", errno.EINVAL, f"process {by} may not rename process {subject.pid}")
    identity.set_name(subject.kernel, subject.pid, data)


def io(subject: Subject) -> bytes:
    """PID/io: no process here reads or writes files but through its mappings (do_io_accounting())."""
    keys = ("rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes")
    return "".join(f"{key}: 0\n" for key in keys).encode()


def wchan(subject: Subject) -> bytes:
    """PID/wchan: where in the kernel it sleeps; no process does, and a suspended one's place has no name."""
    return b"0"


def cgroup(subject: Subject) -> bytes:
    """PID/cgroup."""
    return f"0::{subject.kernel.cgroups.of(subject.tid).path}\n".encode()


def mounts(subject: Subject) -> bytes:
    """PID/mounts."""
    return FIXED["mounts"].encode()


def personality(subject: Subject) -> bytes:
    """PID/personality: ADDR_NO_RANDOMIZE on a machine without randomisation."""
    return b"00000000\n" if subject.kernel.rng is not None else b"00040000\n"
