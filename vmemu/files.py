"""Files and their page caches: host files read on demand, files in memory, and the inode behind shared
anonymous memory.

A cache lives as long as somebody has the file open or mapped; where memory is reclaimed, that of a host
file stays until its frames are wanted.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from vmemu._native import Core, byte_view
from vmemu._native import constants as c
from vmemu.errors import OutOfMemory, VmemuError, own, syscall_error
from vmemu.openfile import File, Hold, Inode
from vmemu.types import PAGE_SIZE

__all__ = ["FileTable", "Pager"]

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
