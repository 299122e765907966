"""PID/oom_score, oom_score_adj and the older oom_adj (fs/proc/base.c): whom the OOM killer would choose."""

from __future__ import annotations

import errno

from vmemu.credentials import Capability, Credentials
from vmemu.errors import syscall_error
from vmemu.lifecycle import identity
from vmemu.procfs.numbers import invalid, parse_int
from vmemu.procfs.subject import Subject

__all__ = ["oom_adj", "oom_score", "oom_score_adj", "write_oom_adj", "write_oom_score_adj"]

_MIN, _MAX = -1000, 1000
_OLD_DISABLE, _OLD_MIN, _OLD_MAX = -17, -16, 15


def oom_score(subject: Subject) -> bytes:
    """Two thirds of 1000 plus its thousandths of RAM and swap; 0 for whom the killer may not choose
    (proc_oom_score())."""
    badness = subject.badness
    if badness is None:
        return b"0\n"
    return b"%d\n" % _divide((1000 + _divide(badness * 1000, subject.kernel.npages + subject.kernel.swap_pages)) * 2, 3)


def _divide(a: int, b: int) -> int:
    """As C does: towards 0."""
    return -(-a // b) if a < 0 else a // b


def oom_score_adj(subject: Subject) -> bytes:
    """From -1000, never, to 1000."""
    return b"%d\n" % subject.oom_score_adj


def oom_adj(subject: Subject) -> bytes:
    """The same on the scale from -17, never, to 15 (oom_adj_read())."""
    new = subject.oom_score_adj
    return b"%d\n" % (_OLD_MAX if new == _MAX else min(_OLD_MAX, _divide(new * -_OLD_DISABLE, _MAX)))


def write_oom_score_adj(subject: Subject, data: bytes, by: int | None) -> None:
    """EINVAL or ERANGE for what is no such number; EACCES below what was set with CAP_SYS_RESOURCE, without it
    (oom_score_adj_write(), __set_oom_adj())."""
    value = parse_int("oom_score_adj", data, base=0)
    if not _MIN <= value <= _MAX:
        raise invalid("oom_score_adj", data)
    writer = _writer(subject, by)
    identity.set_oom_score_adj(subject.kernel, subject.pid, value, writer)


def write_oom_adj(subject: Subject, data: bytes, by: int | None) -> None:
    """The same on the older scale; here any lowering needs CAP_SYS_RESOURCE (oom_adj_write())."""
    value = parse_int("oom_adj", data, base=0)
    if not _OLD_MIN <= value <= _OLD_MAX and value != _OLD_DISABLE:
        raise invalid("oom_adj", data)
    value = _MAX if value == _OLD_MAX else _divide(value * _MAX, -_OLD_DISABLE)
    if value < subject.oom_score_adj and not _writer(subject, by).capable(Capability.SYS_RESOURCE):
        raise syscall_error("write", errno.EACCES, f"oom_adj: CAP_SYS_RESOURCE is missing to lower it to {value}")
    for pid in identity.who_shares(subject.kernel, subject.pid):
        subject.kernel.processes.oom_adj[pid] = value


def _writer(subject: Subject, by: int | None) -> Credentials:
    return Credentials() if by is None else subject.kernel.credentials.of(by)
