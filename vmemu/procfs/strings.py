"""PID/cmdline, environ and auxv (fs/proc/base.c): what the process itself has in its memory, as it is now."""

from __future__ import annotations

import struct

from vmemu.memory.reclaim import fetch
from vmemu.memory.words import ARG_END, ARG_START, ENV_END, ENV_START
from vmemu.procfs.subject import Subject
from vmemu.types import PAGE_SIZE

__all__ = ["auxv", "cmdline", "environ"]


def cmdline(subject: Subject) -> bytes:
    """The bytes between arg_start and arg_end; if the last of them is not 0, the process has written a title over its
    arguments, which ends at the first 0 of the page (get_mm_cmdline(), get_mm_proctitle())."""
    if subject.space is None:
        return b""
    start, end = subject.words[ARG_START], subject.words[ARG_END]
    if start >= end:
        return b""
    if not _has_bytes(subject):
        return b"".join(text + b"\0" for text in subject.image.argv) if subject.image else b""
    if _peek(subject, end - 1, 1) in (b"", b"\0"):
        return _peek(subject, start, end - start)
    title = _peek(subject, start, PAGE_SIZE)
    ends = title.find(b"\0")
    return title if ends < 0 else title[: ends + 1]


def environ(subject: Subject) -> bytes:
    """The bytes between env_start and env_end. ESRCH for a zombie."""
    subject.living("environ")
    start, end = subject.words[ENV_START], subject.words[ENV_END]
    if not _has_bytes(subject):
        return b"".join(text + b"\0" for text in subject.image.envp) if subject.image else b""
    return _peek(subject, start, end - start) if start < end else b""


def auxv(subject: Subject) -> bytes:
    """The auxiliary vector with its AT_NULL, 16 bytes an entry; empty if nothing was executed. ESRCH for a zombie."""
    subject.living("auxv")
    if subject.image is None:
        return b""
    return b"".join(struct.pack("<QQ", *entry) for entry in (*subject.image.auxv, (0, 0)))


def _has_bytes(subject: Subject) -> bool:
    return subject.kernel.contents


def _peek(subject: Subject, address: int, length: int) -> bytes:
    assert subject.space is not None  # noqa: S101 - the callers asked
    data = subject.kernel.core.peek(subject.space.sid, address, length)
    while len(data) < length and fetch(subject.kernel, subject.space.sid, address + len(data)):
        data += subject.kernel.core.peek(subject.space.sid, address + len(data), length - len(data))
    return data
