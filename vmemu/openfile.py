"""An open file, and what the machine knows of the file behind it.

An inode is one memory object in the core: however often a file is opened, mapped or executed, its pages are in RAM
once. The table of them, and what fills their page cache, is in `files`.
"""

from __future__ import annotations

import errno
import operator
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from vmemu._native import Core, byte_view
from vmemu.errors import KernelPanic, OutOfMemory, syscall_error
from vmemu.types import PAGE_SIZE

__all__ = ["File", "Hold", "Inode", "Table"]

_SIZE_MAX = (1 << 63) - 1
_R = TypeVar("_R")


class Inode:
    """What the machine knows of a file; `object` is its id in the core, 0 once that is gone."""

    __slots__ = (
        "__weakref__",
        "blocks",
        "device",
        "disk",
        "exec_tag",
        "fd",
        "holds",
        "key",
        "number",
        "object",
        "on_disk",
        "path",
        "tags",
    )

    def __init__(
        self,
        number: int,
        device: tuple[int, int],
        path: str,
        *,
        fd: int = -1,
        key: tuple[int, ...] | None = None,
    ) -> None:
        self.number = number
        self.device = device
        self.path = path
        self.fd = fd
        self.key = key
        self.object = 0
        self.disk: dict[int, bytes] = {}
        """Of a file in memory: what pages held when they may have left the page cache, by index."""
        self.on_disk = False
        """A file that behaves as on ext4, of the host or in memory with writenotify."""
        self.blocks = 0
        """Of a file in memory, on disk: so many of its first pages have blocks from the start, others once written."""
        self.tags: list[int] = []
        """Of the open files on it: mappings made through different ones do not merge."""
        self.holds: list[Hold] = []
        """Of the open files on it, and of some that were closed."""
        self.exec_tag = 0
        """Of mappings made by execve."""

    def cut(self, size: int) -> None:
        """The file has *size* bytes now."""
        last, rest = divmod(size, PAGE_SIZE)
        self.disk = {index: data for index, data in self.disk.items() if index < last or (index == last and rest)}
        if last in self.disk:
            self.disk[last] = self.disk[last][:rest]
        self.blocks = min(self.blocks, last + (rest > 0))

    def close(self) -> None:
        """Lets go of the host's file."""
        fd = getattr(self, "fd", -1)  # it may have been interrupted while it was made
        if fd >= 0:
            self.fd = -1
            os.close(fd)

    __del__ = close


def _nobody() -> None:
    """There is no file yet."""


class Hold:
    """What an open file has of its object until it is closed or dropped."""

    __slots__ = ("alive", "drop", "inode", "kept")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.drop: weakref.ref[File] | None = None
        """Tells the table that the file was dropped."""
        self.kept = True
        """It has not been given back. Changed under the lock."""
        self.alive: Callable[[], Any] = _nobody
        """None: the file is closed or gone."""


class Table(Protocol):
    """What an open file needs of the machine's table of files; see `files.FileTable`."""

    core: Core
    lock: AbstractContextManager[object]
    torn: bool
    dropped: list[weakref.ref[File]]

    def release(self, hold: Hold) -> None:
        """One open file less."""

    def reopen(self, file: File, inode: Inode, writable: bool, readable: bool) -> File:
        """One more."""

    def insist(self, function: Callable[..., _R], *args: object) -> _R:
        """Makes a call, again as long as frames that it lacks can be had."""

    def read_in(self, inode: Inode, index: int, major: int | None, call: str, hint: int = 0) -> bool:
        """Brings a page into the cache; False if it can't be read."""

    def fill(self, inode: Inode, first: int, n: int, major: int | None, call: str, needed: int | None = None) -> bool:
        """The same for some pages."""


class File:
    """An open file of one machine, made by `Machine.open_file` or `Machine.create_file`.

    It can be mapped (``p.mmap(..., file=f)``). Files of the host are read-only; those in memory can be written
    and mapped shared and writable. Closing it, or dropping the last reference, leaves mappings as they are.
    """

    def __init__(self, table: Table, inode: Inode, name: str, tag: int, writable: bool, readable: bool = True) -> None:
        self._table = table
        self._inode = inode
        hold, holds = Hold(inode), inode.holds
        if len(holds) & len(holds) - 1 == 0:  # now and then
            holds[:] = [one for one in holds if one.kept]
        holds.append(hold)
        self._release = release = weakref.finalize(self, table.release, hold)
        release.atexit = False
        hold.alive = release.peek
        hold.drop = weakref.ref(self, table.dropped.append)  # made last, so called first
        self.name = name
        """Path, or the label it was created with."""
        self.tag = tag
        self.writable = writable
        self.readable = readable

    def __repr__(self) -> str:
        return f"<vmemu.File {self.name!r} inode {self.inode}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a File belongs to its Machine and cannot be pickled")

    @property
    def inode(self) -> int:
        """Inode number, as /proc/PID/maps shows it; unique in the machine."""
        return self._inode.number

    @property
    def size(self) -> int:
        """Bytes."""
        self._check("fstat")
        info = self._table.core.object_info(self._inode.object)
        assert info is not None  # noqa: S101 - the handle holds it
        return int(info.size)

    def close(self) -> None:
        """Lets go of the file, close(2)."""
        try:
            self._release()
        except BaseException:
            self._table.torn = True
            raise

    def reopen(self, mode: str = "r") -> File:
        """The same file opened once more, for reading (``"r"``), writing (``"w"``, nothing is truncated) or both
        (``"r+"``), as open(2) of /proc/self/fd/N does it. EACCES for writing to a file of the host.
        """
        self._check("open")
        if mode not in ("r", "w", "r+"):
            raise ValueError(f"mode: {mode!r} is not 'r', 'w' or 'r+'")
        return self._table.reopen(self, self._inode, mode != "r", mode != "w")

    def pread(self, n: int, offset: int) -> bytes:
        """Up to *n* bytes from *offset*, fewer at the end of the file, pread(2). EINVAL for negative numbers."""
        self._check("pread")
        if not self.readable:
            raise syscall_error("pread", errno.EBADF, f"{self.name} is open for writing only")
        n, offset = operator.index(n), operator.index(offset)
        if n < 0 or offset < 0:
            raise syscall_error("pread", errno.EINVAL, f"{n} bytes at offset {offset}")
        length = max(0, min(n, self.size - offset))
        buffer, done = bytearray(length), 0
        with self._table.lock:
            while done < length:
                done += self._table.core.object_read(self._inode.object, offset + done, buffer, done)
                if done < length:
                    self._read_in((offset + done) // PAGE_SIZE, "pread")
        return bytes(buffer)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> int:
        """Writes *data* at *offset*, extending the file, pwrite(2). Returns its length. EBADF if read-only,
        EINVAL, EFBIG.

        Everything that maps the page sees it, except private copies. Without a free frame OutOfMemory is raised; the
        bytes written until then stay.
        """
        self._check("pwrite", writing=True)
        offset = operator.index(offset)
        view = byte_view(data)
        if offset < 0:
            raise syscall_error("pwrite", errno.EINVAL, f"offset {offset}")
        if offset + len(view) > _SIZE_MAX:
            raise syscall_error("pwrite", errno.EFBIG, f"offset {offset}")
        with self._table.lock:
            before, done = self.size, 0
            if view and offset + len(view) > before:
                self._clear_tail("pwrite")
                self._table.insist(self._table.core.object_resize, self._inode.object, offset + len(view))
            try:
                while done < len(view):
                    write = self._table.core.object_write
                    n = self._table.insist(write, self._inode.object, offset + done, view, done)
                    done += n
                    if not n:
                        self._read_in((offset + done) // PAGE_SIZE, "pwrite")
            except (OutOfMemory, KernelPanic):  # the size moves with what was written
                self._table.core.object_resize(self._inode.object, max(before, offset + done if done else 0))
                raise
        return len(view)

    def truncate(self, size: int) -> None:
        """Sets the size, ftruncate(2): pages beyond it leave every mapping, private copies included. EINVAL, EFBIG."""
        self._check("ftruncate", writing=True)
        size = operator.index(size)
        if size < 0:
            raise syscall_error("ftruncate", errno.EINVAL, f"size {size}")
        if size > _SIZE_MAX:
            raise syscall_error("ftruncate", errno.EFBIG, f"size {size}")
        with self._table.lock:
            before = self.size
            if size > before:
                self._clear_tail("ftruncate")
            elif size % PAGE_SIZE and not self._inode.on_disk:  # its tail is to be zeroed (shmem_get_partial_folio())
                self._table.insist(self._table.read_in, self._inode, size // PAGE_SIZE, None, "ftruncate")
            self._table.insist(self._table.core.object_resize, self._inode.object, size)
            if size < before:
                self._clear_tail("ftruncate")
            self._inode.cut(size)

    def _clear_tail(self, call: str) -> None:
        """What a file on a disk does before it grows and after it shrank: the rest of its last block is zeroed, which
        is a write unless that is a hole (ext4_block_truncate_page())."""
        inode, last = self._inode, self.size // PAGE_SIZE
        if not inode.on_disk or not self.size % PAGE_SIZE:
            return
        if last in inode.disk:
            self._table.insist(self._table.fill, inode, last, 1, None, call)
        self._table.core.object_clear_tail(inode.object, last < inode.blocks or last in inode.disk)

    def _read_in(self, index: int, call: str) -> None:
        if not self._table.insist(self._table.read_in, self._inode, index, None, call):
            raise syscall_error(call, errno.EIO, f"page {index} of {self.name} can't be read: the file was changed")

    def _check(self, call: str, writing: bool = False) -> None:
        if not self._release.alive:
            raise syscall_error(call, errno.EBADF, f"{self.name} is closed")
        if writing and not self.writable:
            raise syscall_error(call, errno.EBADF if call == "pwrite" else errno.EINVAL, f"{self.name} is read-only")

    def hold(self, table: Table, call: str) -> Inode:
        """The inode, for mapping it in the machine of *table*. EBADF if closed or another machine's."""
        if table is not self._table:
            raise syscall_error(call, errno.EBADF, f"{self.name} belongs to another machine")
        self._check(call)
        return self._inode
