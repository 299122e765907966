"""The binary files: PID/pagemap, kpagecount and kpageflags, 8 bytes a page in the host's byte order.

They can be read from any multiple of 8, a multiple of 8 bytes at a time, as the kernel demands.
"""

from __future__ import annotations

import errno
from array import array

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.memory.args import TASK_SIZE
from vmemu.memory.census import locked_frames
from vmemu.procfs.subject import Subject
from vmemu.types import PAGE_SIZE

__all__ = ["kpagecount", "kpageflags", "pagemap"]

_ENTRY = 8
_KPF_LOCKED = 1 << 18 | 1 << 33
"""KPF_UNEVICTABLE and KPF_MLOCKED."""
_MOST = 64 << 20
"""Bytes of pagemap that are read at most when no length is given."""


def pagemap(subject: Subject, offset: int, length: int | None) -> bytes:
    """PID/pagemap from byte *offset* (8 times the page number) on (pagemap_read()).

    All of it would be 256 GiB. Without *length* it ends behind the last mapping; EFBIG if that makes more than 64 MiB.
    EINVAL for what is no multiple of 8, ESRCH for a zombie.
    """
    space = subject.living("pagemap")
    first, npages = _pages("pagemap", offset, length, TASK_SIZE // PAGE_SIZE)
    if length is None:
        mapped = space.vmas()
        npages = max(0, (mapped[-1].end // PAGE_SIZE if mapped else 0) - first)
        if npages * _ENTRY > _MOST:
            raise syscall_error("read", errno.EFBIG, f"{npages * _ENTRY} bytes of pagemap: give an offset and a length")
    out = array("Q", bytes(npages * _ENTRY))
    if npages:
        subject.kernel.core.pagemap(space.sid, first * PAGE_SIZE, npages, out)
    return out.tobytes()


def kpagecount(kernel: Kernel, offset: int, length: int | None) -> bytes:
    """How often each frame is mapped (kpagecount_read())."""
    first, n = _pages("kpagecount", offset, length, kernel.npages)
    return kernel.core.mapcounts(first, n).tobytes() if n else b""


def kpageflags(kernel: Kernel, offset: int, length: int | None) -> bytes:
    """Flags of each frame (kpageflags_read())."""
    first, n = _pages("kpageflags", offset, length, kernel.npages)
    if not n:
        return b""
    with kernel.lock:
        flags = kernel.core.frame_flags(first, n)
        for pfn in set().union(*locked_frames(kernel)):
            if first <= pfn < first + n:
                flags[pfn - first] |= _KPF_LOCKED
    return flags.tobytes()


def _pages(file: str, offset: int, length: int | None, total: int) -> tuple[int, int]:
    """First entry and how many, cut at the end."""
    if offset % _ENTRY or (length or 0) % _ENTRY:
        raise syscall_error("read", errno.EINVAL, f"{file}: {length} bytes from {offset}: not multiples of {_ENTRY}")
    first = min(offset // _ENTRY, total)
    return first, total - first if length is None else min(length // _ENTRY, total - first)
