"""Files and their page caches: host files read on demand, files in memory, and the inode behind shared
anonymous memory.

An inode is one memory object in the core: however often a file is opened, mapped or executed, its pages are in
RAM once. The cache lives as long as somebody has the file open or mapped; where memory is reclaimed, that of a host
file stays until its frames are wanted.
"""

from __future__ import annotations

import errno
import operator
import os
import stat
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from vmemu._native import Core, byte_view
from vmemu._native import constants as c
from vmemu.errors import KernelPanic, OutOfMemory, VmemuError, own, syscall_error
from vmemu.types import PAGE_SIZE

__all__ = ["File", "FileTable", "Inode", "Pager"]

READ_AROUND = 32
"""Pages read around a missing one: 128 KiB, Linux's default ra_pages (do_sync_mmap_readahead())."""
READ_AROUND_IN_MEMORY = 2048
"""The same for a file in memory that behaves as on a disk: of a disk that reads far ahead (read_ahead_kb 8192)."""
MEMORY_DEVICE = (0, 26)
"""Device number shown for files in memory, as a tmpfs has one."""
HUGE_DEVICE = (0, 17)
"""Of huge pages that were mapped without a file (hugetlbfs)."""
ANON_DEVICE = (0, 1)
"""Of shared anonymous memory (shm_mnt)."""
_SIZE_MAX = (1 << 63) - 1
_KEPT = 256
"""Host files whose page cache stays when nobody has them open or mapped: each is an open file of the host."""


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _whole(call: Callable[Concatenate[FileTable, _P], _R]) -> Callable[Concatenate[FileTable, _P], _R]:
    """Of FileTable: what is interrupted leaves no file half open."""

    @wraps(call)
    def made(table: FileTable, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with table.lock:
            try:
                return call(table, *args, **kwargs)
            except BaseException as error:
                table.torn = True
                if own(error):
                    table.torn = False
                else:
                    table.mend()
                raise

    return made


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


class File:
    """An open file of one machine, made by `Machine.open_file` or `Machine.create_file`.

    It can be mapped (``p.mmap(..., file=f)``). Files of the host are read-only; those in memory can be written
    and mapped shared and writable. Closing it, or dropping the last reference, leaves mappings as they are.
    """

    def __init__(
        self, table: FileTable, inode: Inode, name: str, tag: int, writable: bool, readable: bool = True
    ) -> None:
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

    def hold(self, table: FileTable, call: str) -> Inode:
        """The inode, for mapping it in the machine of *table*. EBADF if closed or another machine's."""
        if table is not self._table:
            raise syscall_error(call, errno.EBADF, f"{self.name} belongs to another machine")
        self._check(call)
        return self._inode


class Pager(Protocol):
    """What a file asks of those who reclaim memory."""

    def read_in(self, object_: int, index: int) -> bool:
        """Brings a page of shared memory back from the swap device; False if it is not there."""


class FileTable:
    """The machine's inodes by object and by host file, and the names of open files by tag."""

    def __init__(self, core: Core, lock: AbstractContextManager[object]) -> None:
        self.core = core
        self.lock = lock
        self._by_object: dict[int, Inode] = {}
        self._by_key: dict[tuple[int, ...], Inode] = {}
        self._names: dict[int, str] = {}
        self._host_numbers: dict[tuple[int, int], int] = {}
        self._taken: set[int] = set()
        self._next_number = 1
        self._next_tag = 1
        self._sweep_at = 64
        self.make_room: Callable[[OutOfMemory], bool] = lambda _: False
        """Finds frames for a call that failed so -> whether to make it again; the machine sets it."""
        self._payer = 0
        """Number of the cgroup on whose behalf pages are read."""
        self.torn = False
        """A call was interrupted, and so was `mend`."""
        self.dropped: list[weakref.ref[File]] = []
        """Files that `release` has not heard of yet, or never will: it may be interrupted before its first step, which
        what tells of it here, as no Python runs for that, can't be."""
        self.bytes_read = 0
        """From the host's files, since boot."""
        self.pager: Pager | None = None
        """Where memory is reclaimed."""
        self._kept: dict[int, Inode] = {}
        """By object: host files that are held here, so that their page cache stays."""

    def close(self, closed: Core) -> None:
        """The machine is closed; *closed* stands in for its core."""
        self.core = closed
        for inode in self._by_object.values():
            inode.close()
        self._by_object.clear()
        self._by_key.clear()
        self._kept.clear()
        self.pager = None
        self.make_room = lambda _: False

    # ---- names ----

    def inode_of(self, object_: int) -> Inode:
        """The inode behind an object of the core."""
        return self._by_object[object_]

    def on_disk(self, object_: int) -> bool:
        """An object of the core is a file on a file system like ext4."""
        return self._by_object[object_].on_disk

    def name(self, object_: int, tag: int) -> str:
        """What /proc/PID/maps shows for a mapping."""
        return self._names.get(tag) or self._by_object[object_].path

    def _new_tag(self, inode: Inode, name: str) -> int:
        tag = self._next_tag
        self._next_tag += 1
        self._names[tag] = name
        inode.tags.append(tag)
        return tag

    def _new_number(self) -> int:
        """An inode number never used before."""
        while self._next_number in self._taken:
            self._next_number += 1
        self._next_number += 1
        return self._next_number - 1

    def _host_number(self, st: os.stat_result) -> int:
        """The host's own inode number where it is still free; the same each time for the same file."""
        key = (st.st_dev, st.st_ino)
        number = self._host_numbers.get(key)
        if number is None:
            free = st.st_ino >= self._next_number and st.st_ino not in self._taken
            number = self._host_numbers[key] = st.st_ino if free else self._new_number()
            self._taken.add(number)
        return number

    # ---- inodes ----

    def _add(self, inode: Inode, kind: int, size: int) -> None:
        if self.torn or self.dropped or len(self._by_object) >= self._sweep_at:
            self.mend()
        inode.object = self.core.object_new(kind, size)
        inode.on_disk = bool(kind & c.OBJ_FILE)
        stale = self._by_object.get(inode.object)
        if stale is not None:
            self._forget(stale)
        self._by_object[inode.object] = inode

    def _forget(self, inode: Inode) -> None:
        inode.close()
        inode.object = 0
        for tag in inode.tags:
            self._names.pop(tag, None)
        if inode.key is not None and self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]

    def sweep(self) -> None:
        """Forgets the inodes whose object is gone: with its last mapping, while nobody had it open."""
        for inode in self._by_object.copy().values():
            self._forget_if_gone(inode)
        self._sweep_at = max(64, 2 * len(self._by_object))

    def _forget_if_gone(self, inode: Inode) -> None:
        """A handle may be dropped, and come here, in the middle of whatever else is done with the table."""
        object_ = inode.object
        if object_ and self.core.object_info(object_) is None and self._by_object.get(object_) is inode:
            del self._by_object[object_]
            self._forget(inode)

    def tidy(self, nobjects: int = -1) -> None:
        """Sweeps if an object has gone since the last time. *nobjects*: how many the core has, if that is known."""
        if self._by_object:
            if self.torn or self.dropped:
                with self.lock:
                    self.mend()
            if nobjects < 0:
                nobjects = self.core.info().nobjects
            if nobjects < len(self._by_object):
                with self.lock:
                    self.sweep()

    def release(self, hold: Hold) -> None:
        """One handle less; called when a File is closed or dropped, at any time and in any thread."""
        try:
            with self.lock:
                if hold.kept and hold.inode.object:
                    hold.kept = False
                    self.core.object_release(hold.inode.object)
                    self._forget_if_gone(hold.inode)
                if hold.drop in self.dropped:
                    self.dropped.remove(hold.drop)
                hold.drop = None  # it may have been closed
        except VmemuError:  # the machine may be closed
            pass
        except BaseException:
            self.torn = True
            raise

    def anonymous(self, size: int, account: bool) -> Inode:
        """A new inode for shared anonymous memory, held once by the caller (shmem_zero_setup())."""
        inode = Inode(self._new_number(), ANON_DEVICE, "/dev/zero (deleted)")
        self._add(inode, c.OBJ_SHMEM | (c.OBJ_ACCOUNT if account else 0), size)
        return inode

    def huge_pages(self, size: int, giant: bool, reserve: bool) -> Inode:
        """A new inode for memory of huge pages, held once by the caller (hugetlb_file_setup()). They are reserved for
        its whole size or not at all."""
        inode = Inode(self._new_number(), HUGE_DEVICE, "/anon_hugepage (deleted)")
        kind = c.OBJ_SHMEM | c.OBJ_HUGETLB | (c.OBJ_GIANT if giant else 0) | (c.OBJ_RESERVE if reserve else 0)
        self._add(inode, kind, size)
        return inode

    @_whole
    def create(self, name: str, data: bytes | bytearray | memoryview, writenotify: bool) -> File:
        """A file in memory."""
        if not isinstance(name, str):
            raise TypeError(f"create_file: name must be a str, not {type(name).__name__}")
        view = byte_view(data)
        with self.lock:
            inode = Inode(self._new_number(), MEMORY_DEVICE, name)
            kind = c.OBJ_FILE | c.OBJ_WRITENOTIFY if writenotify else c.OBJ_SHMEM
            self._add(inode, kind, len(view))
            file = File(self, inode, name, self._new_tag(inode, name), True)
            try:
                if writenotify:
                    inode.blocks = npages = -(-len(view) // PAGE_SIZE)
                    self._create_on_disk(inode, npages, bytes(view))
                else:
                    file.pwrite(view, 0)
            except BaseException:
                file.close()
                raise
            return file

    def _create_on_disk(self, inode: Inode, npages: int, data: bytes) -> None:
        """What a new file holds, in the page cache as far as that goes."""
        try:
            self.core.object_fill(inode.object, 0, npages, data, None, "create_file")
        except OutOfMemory:
            if self.pager is None:
                raise
            inode.disk = {i: data[i * PAGE_SIZE : (i + 1) * PAGE_SIZE] for i in range(npages)}

    @_whole
    def reopen(self, file: File, inode: Inode, writable: bool, readable: bool) -> File:
        """One more handle on an inode that *file* holds."""
        if writable and inode.key is not None:
            raise syscall_error("open", errno.EACCES, f"{file.name} is a file of the host, which is read-only")
        with self.lock:
            self.core.object_hold(inode.object)
            return File(self, inode, file.name, self._new_tag(inode, file.name), writable, readable)

    @_whole
    def open(self, path: str | os.PathLike[str]) -> File:
        """A file of the host, read-only. Errors as open(2), and what mmap(2) says of what cannot be
        mapped, ENODEV."""
        name = os.fsdecode(path)
        with self.lock:
            inode = self._open_inode(name)
            return File(self, inode, inode.path, self._new_tag(inode, inode.path), False)

    @_whole
    def open_executable(self, path: str) -> File:
        """The same for execve, whose mappings of one file all have the same tag."""
        with self.lock:
            inode = self._open_inode(path)
            if not inode.exec_tag:
                inode.exec_tag = self._new_tag(inode, inode.path)
            return File(self, inode, inode.path, inode.exec_tag, False)

    def _open_inode(self, path: str) -> Inode:
        """The host file's inode, with a hold for the caller."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise syscall_error("open", error.errno or errno.EIO, path) from None
        except ValueError as error:
            raise syscall_error("open", errno.EINVAL, f"{path!r}: {error}") from None
        st = os.fstat(fd)
        key = (st.st_dev, st.st_ino, st.st_mtime_ns, st.st_ctime_ns, st.st_size)
        inode = self._by_key.get(key)
        if not stat.S_ISREG(st.st_mode):
            os.close(fd)
            raise syscall_error("open", errno.ENODEV, f"{path} is not a regular file")
        if inode is not None and self.core.object_hold(inode.object):
            os.close(fd)
            return inode
        device = (os.major(st.st_dev), os.minor(st.st_dev))
        inode = Inode(self._host_number(st), device, os.path.realpath(path), fd=fd, key=key)
        self._add(inode, c.OBJ_FILE, st.st_size)
        self._by_key[key] = inode
        if self.pager is not None:
            self._keep(inode)
        return inode

    # ---- what stays in the page cache ----

    def _keep(self, inode: Inode) -> None:
        """Holds a host file so that its pages stay until they are reclaimed."""
        if len(self._kept) >= _KEPT:
            self._let_go(next(iter(self._kept)))
        self.core.object_hold(inode.object)
        self._kept[inode.object] = inode

    def _let_go(self, object_: int) -> None:
        inode = self._kept.pop(object_)
        self.core.object_release(object_)
        self._forget_if_gone(inode)

    def forget_empty(self) -> None:
        """Lets go of kept files of which no page is left."""
        for object_ in list(self._kept):
            info = self.core.object_info(object_)
            if info is None or (not info.nframes and not info.nvmas):
                self._let_go(object_)

    def mend(self) -> None:
        """Gives back the holds that belong to no open file, as a call was interrupted, or the drop of a file, of which
        nobody hears; and forgets what then is gone. The lock is held."""
        ndropped = len(self.dropped)
        for object_, held in self.core.objects().items():
            inode = self._by_object.get(object_)
            kept = int(object_ in self._kept)
            for hold in () if inode is None else inode.holds:
                hold.kept = hold.kept and hold.alive() is not None  # a file may have been dropped just now
                kept += hold.kept
            for _ in range(held - kept):
                self.core.object_release(object_)
        self.sweep()
        self.torn = False
        del self.dropped[:ndropped]

    # ---- pages ----

    def insist(self, function: Callable[..., _R], *args: object) -> _R:
        """The result of a call for which nobody's memory is used, made again as long as frames that it lacks can be
        had."""
        while True:
            try:
                return function(*args)
            except OutOfMemory as error:
                if not self.make_room(error):
                    raise

    def page_in(self, object_: int, index: int, call: str, major: bool = True, hint: int = 0, cgroup: int = 0) -> bool:
        """Reads the page that a fault misses, and some around it. False: it can't be read (SIGBUS).

        *major*: the fault that finds it then is a major one. *hint*: VM_RAND_READ of the mapping, to read no other, or
        VM_SEQ_READ, to read those that follow. *cgroup* pays.
        """
        with self.lock:
            inode = self._by_object.get(object_)  # none if another thread unmapped it meanwhile
            self._payer = cgroup
            try:
                return inode is None or self.read_in(inode, index, index if major else None, call, hint)
            finally:
                self._payer = 0

    def read_in(self, inode: Inode, index: int, major: int | None, call: str, hint: int = 0) -> bool:
        """Brings page *index* into the cache and, as *hint* says, others around it; *major* is marked as just read."""
        if not inode.on_disk:
            return self.pager is not None and self.pager.read_in(inode.object, index)
        if hint & c.VM_RAND_READ:
            return self.fill(inode, index, 1, major, call, index)
        around = READ_AROUND if inode.fd >= 0 else READ_AROUND_IN_MEMORY
        if self.pager is not None:  # not at the price of what is in use
            around = min(around, max(1, self.core.free_frames() // 4))
        first = index if hint & c.VM_SEQ_READ else max(0, index - around // 2)
        return self.fill(inode, first, around, major, call, index)

    def fill(self, inode: Inode, first: int, n: int, major: int | None, call: str, needed: int | None = None) -> bool:
        """Reads *n* pages from *first* on into the cache. False if they, or page *needed*, can't be read."""
        data = b""
        if inode.fd >= 0:
            try:
                data = os.pread(inode.fd, n * PAGE_SIZE, first * PAGE_SIZE)
            except OSError:
                return False
            self.bytes_read += len(data)
            if needed is not None and len(data) <= (needed - first) * PAGE_SIZE:  # the host's file became shorter
                return False
        elif inode.disk:
            data = b"".join(inode.disk.get(i, b"").ljust(PAGE_SIZE, b"\0") for i in range(first, first + n))
        try:
            self.core.object_fill(inode.object, first, n, data, major, call, self._payer)
        except OutOfMemory:
            if self.pager is None or needed is None or n == 1:
                raise
            data = data[(needed - first) * PAGE_SIZE :][:PAGE_SIZE]  # that one at least
            self.core.object_fill(inode.object, needed, 1, data, major, call, self._payer)
        return True

    def read_ahead(self, object_: int, first: int, last: int, call: str, cgroup: int = 0) -> None:
        """Brings the pages [first, last) into the cache, for which *cgroup* pays, as far as the file goes and there are
        frames: nobody is killed for them (force_page_cache_ra())."""
        with self.lock:
            inode, info = self._by_object[object_], self.core.object_info(object_)
            last = min(last, -(-int(info.size) // PAGE_SIZE)) if info is not None else first
            self._payer = cgroup
            try:
                while first < last:
                    n = min(last - first, READ_AROUND)
                    if not self.fill(inode, first, n, None, call):
                        return
                    first += n
            except OutOfMemory as error:
                if error.cgroup is None:  # it is the host that has no memory
                    raise
            finally:
                self._payer = 0

    def write_back(self, object_: int, first: int, last: int) -> bool:
        """Keeps the bytes of the cached pages [first, last), which may leave the cache, of a file that is only here;
        False if it is another file."""
        with self.lock:
            inode, info = self._by_object[object_], self.core.object_info(object_)
            if info is None or inode.fd >= 0 or info.kind & c.OBJ_SHMEM:
                return False
            for index in range(first, min(last, -(-int(info.size) // PAGE_SIZE))):
                data = bytearray(min(PAGE_SIZE, int(info.size) - index * PAGE_SIZE))
                if self.core.object_read(object_, index * PAGE_SIZE, data, 0) == len(data):
                    inode.disk[index] = bytes(data)
            return True
