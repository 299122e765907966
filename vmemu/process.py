"""Processes as users have them: a handle whose methods are the system calls, the accesses, and what there is to see.

A Process is its pid and its machine; all state is in the process table and the core. What fork, exec, exit and wait do
is in `lifecycle`, what the calls on mappings do in `memory`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping as Dictionary
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from vmemu._native import constants, read_short, to_short_trap, touch_short, write_short
from vmemu.handles import Children
from vmemu.kernel import Image
from vmemu.lifecycle import birth, death
from vmemu.lifecycle import program as exec_
from vmemu.lifecycle.memory import faults, look, process_faults, use
from vmemu.memory import brk, clear_refs, madvise, mlock, mmap, mprotect, mremap, thp, view
from vmemu.memory.args import integer
from vmemu.memory.space import Space
from vmemu.task import Task, exit_status
from vmemu.types import ByKind, Clone, FaultCounts, FaultKind, ForkMode, Mapping, MappingUsage, Translation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from vmemu.openfile import File

__all__ = ["Process", "Thread"]

_READ, _WRITE = constants.READ, constants.WRITE
_COUNTS_SIZE = 8 * len(FaultKind)
_new = object.__new__
_SHORT = 65536
"""Bytes up to which a read looks for no other way."""


class Process(Task):
    """One emulated process, made by `Machine.spawn`, `fork`, `fork_many` and `vfork`, or found in `Machine.processes`.

    Addresses and lengths are bytes. A failed system call raises SyscallError with Linux's errno; a bad access raises
    SegmentationFault or BusError, is counted in `faults`, and leaves the process alive; OutOfMemory says that no frame
    was left. Calls on a process that has exited raise ESRCH, on a parent that is suspended in vfork EBUSY; looking at
    the latter's memory works.
    """

    __slots__ = ()

    # ---- finding the space ----

    def _look(self, call: str) -> Space:
        """The memory, for looking."""
        return look(self._kernel, self.tid, call)

    def _space(self, call: str) -> Space:
        """The memory, for using it."""
        return use(self._kernel, self.tid, call)

    # ---- system calls on mappings ----

    def mmap(
        self,
        address: SupportsIndex | None,
        length: SupportsIndex,
        prot: int,
        flags: int,
        file: File | None = None,
        offset: int = 0,
    ) -> int:
        """mmap(2): maps *length* bytes (rounded up to pages) and returns the address. *offset* in bytes into *file*."""
        return mmap.mmap(self._space("mmap"), address, length, prot, flags, file, offset)

    def remap_file_pages(
        self, address: SupportsIndex, length: SupportsIndex, prot: int, pgoff: SupportsIndex, flags: int = 0
    ) -> None:
        """remap_file_pages(2): *pgoff* in pages, *prot* must be 0; with MAP_NONBLOCK nothing is populated."""
        mmap.remap_file_pages(self._space("remap_file_pages"), address, length, prot, pgoff, flags)

    def munmap(self, address: SupportsIndex, length: SupportsIndex) -> None:
        """munmap(2)."""
        mmap.munmap(self._space("munmap"), address, length)

    def mprotect(self, address: SupportsIndex, length: SupportsIndex, prot: int) -> None:
        """mprotect(2)."""
        mprotect.mprotect(self._space("mprotect"), address, length, prot)

    def madvise(self, address: SupportsIndex, length: SupportsIndex, advice: int) -> None:
        """madvise(2)."""
        madvise.madvise(self._space("madvise"), address, length, advice)

    def mremap(
        self,
        old_address: SupportsIndex,
        old_size: SupportsIndex,
        new_size: SupportsIndex,
        flags: int = 0,
        new_address: SupportsIndex | None = None,
    ) -> int:
        """mremap(2): resizes or moves and returns the address; *new_address* counts with MREMAP_FIXED or _DONTUNMAP."""
        return mremap.mremap(self._space("mremap"), old_address, old_size, new_size, flags, new_address)

    def brk(self, address: SupportsIndex = 0) -> int:
        """brk(2) as the kernel has it: moves the program break and returns where it is; unchanged if that failed."""
        return brk.brk(self._space("brk"), address)

    def mincore(self, address: SupportsIndex, length: SupportsIndex, vector: SupportsIndex | None = None) -> bytes:
        """mincore(2): one byte a page, 1 if it is in memory; also stored at the address *vector*, unless None. What a
        hole cuts off is in the exception's `partial`."""
        return mlock.mincore(self._space("mincore"), address, length, vector)

    def msync(self, address: SupportsIndex, length: SupportsIndex, flags: int) -> None:
        """msync(2)."""
        mlock.msync(self._space("msync"), address, length, flags)

    def mlock(self, address: SupportsIndex, length: SupportsIndex, flags: int = 0) -> None:
        """mlock(2), or mlock2(2) with *flags*."""
        mlock.mlock(self._space("mlock"), address, length, flags)

    def munlock(self, address: SupportsIndex, length: SupportsIndex) -> None:
        """munlock(2)."""
        mlock.munlock(self._space("munlock"), address, length)

    def mlockall(self, flags: int) -> None:
        """mlockall(2)."""
        mlock.mlockall(self._space("mlockall"), flags)

    def munlockall(self) -> None:
        """munlockall(2)."""
        mlock.munlockall(self._space("munlockall"))

    def mseal(self, address: SupportsIndex, length: SupportsIndex, flags: int = 0) -> None:
        """mseal(2)."""
        mprotect.mseal(self._space("mseal"), address, length, flags)

    def set_thp_disable(self, off: bool) -> None:
        """prctl(PR_SET_THP_DISABLE): no transparent huge pages for this memory; fork and exec inherit it."""
        thp.disable(self._space("prctl"), off)

    @property
    def thp_disabled(self) -> bool:
        """prctl(PR_GET_THP_DISABLE)."""
        return thp.disabled(self._look("prctl"))

    # ---- accesses ----

    def read(self, address: SupportsIndex, length: int, fetch: bool = False) -> bytes:
        """*length* bytes from *address*, faulting as needed; with *fetch* as instruction fetches, which need
        PROT_EXEC."""
        kernel = self._kernel
        table = kernel.processes
        sid = table.space[self.tid]
        # the usual case: nothing that `use` looks into is so, nothing is to be converted
        if sid and type(address) is type(length) is int and 0 <= length <= _SHORT and table.plain and not fetch:
            data = bytes(length)  # filled in place: nobody else has it
            try:
                outcome = read_short(kernel.core.handle, sid, address, data, length)
            except OverflowError:
                pass  # no address
            else:
                if outcome:
                    trap = to_short_trap(outcome, address)
                    Space(kernel, sid, self.pid).read_into(data, address, _READ, trap)
                return data
        return self._space("read").read(address, length, fetch)

    def write(self, address: SupportsIndex, data: Any) -> None:
        """Stores *data* (any contiguous bytes-like object) at *address*, faulting as needed.

        What was written before a fault that can't be resolved stays, as with a CPU.
        """
        kernel = self._kernel
        table = kernel.processes
        sid = table.space[self.tid]
        if (  # as in `read`
            sid and type(address) is int and type(data) is bytes and table.plain
        ):
            try:
                outcome = write_short(kernel.core.handle, sid, address, data, len(data))
            except OverflowError:
                pass  # no address, or not short
            else:
                if outcome:
                    trap = to_short_trap(outcome, address)
                    Space(kernel, sid, self.pid).write_from(data, address, trap)
                return
        self._space("write").write(address, data)

    def touch(self, address: SupportsIndex, length: int, write: bool = False) -> FaultCounts:
        """One access to each page of [address, address + length) -> the faults of this call, `.none` for pages
        without one.

        A write sets the entry as a store would and leaves the bytes as they are.
        """
        kernel = self._kernel
        table = kernel.processes
        sid = table.space[self.tid]
        if sid and type(address) is type(length) is int and type(write) is bool and table.plain:  # as in `read`
            counts = bytes(_COUNTS_SIZE)  # filled in place: nobody else has it
            try:
                outcome = touch_short(kernel.core.handle, sid, address, length, _WRITE if write else _READ, counts)
            except OverflowError:
                pass  # no address or no length
            else:
                if not outcome:
                    return FaultCounts.of_raw(counts)
                return Space(kernel, sid, self.pid).touch_on(address, length, write, counts, outcome)
        return self._space("touch").touch(address, length, write)

    def access(self, addresses: ArrayLike, write: bool | ArrayLike = False) -> NDArray[np.uint8]:
        """One access for each of *addresses* (integers, shape (n,)) -> uint8 array (n,) of FaultKind.

        *write* is a bool for all or a bool array (n,); integers other than 0 and 1 are a ValueError. Bad accesses do
        not raise: their kind is at their index.
        """
        return self._space("access").access(addresses, write)

    # ---- fork, exec, exit, wait ----

    def fork(self, mode: ForkMode | int | None = None) -> Process:
        """fork(2): a child with a copy of this memory, made as *mode* says (the machine's by default).

        EAGAIN without a free pid, ENOMEM under strict overcommit, OutOfMemory without frames: then nothing happened.
        """
        how = mode if type(mode) is ForkMode else self._mode(mode)
        child = _new(Process)  # `__init__`, at half its price
        child._kernel = kernel = self._kernel
        child.pid = child.tid = birth.fork(kernel, self.tid, how)
        return child

    def fork_many(self, n: int, mode: ForkMode | int | None = None) -> Sequence[Process]:
        """*n* children at once, or none if one of them can't be made: as fork() n times, in one call."""
        count = integer(n, "fork_many", "n")
        if count < 0:
            raise ValueError(f"n: {count} is negative")
        self._space("fork_many")
        pids = birth.fork_many(self._kernel, self.tid, count, self._mode(mode)) if count else range(0)
        return Children(self._kernel, pids, Process)

    def _mode(self, mode: ForkMode | int | None) -> ForkMode:
        return self._kernel.fork_mode if mode is None else ForkMode(mode)

    def vfork(self) -> Process:
        """vfork(2): a child that runs in this very memory; this process is suspended until the child execs or exits."""
        return Process(self._kernel, birth.vfork(self._kernel, self.tid))

    def posix_spawn(
        self,
        program: str,
        argv: Sequence[str | bytes] | None = None,
        environment: Dictionary[str, str] | Sequence[str | bytes] | None = None,
        *,
        link: bool = False,
    ) -> Process:
        """posix_spawn(3): a child that executes *program*, made by vfork and execve, so that this memory is neither
        copied nor promised twice. Errors as execve; there is no child then."""
        path = os.fspath(program)
        return Process(self._kernel, birth.posix_spawn(self._kernel, self.tid, path, argv, environment, link))

    def clone(self, flags: SupportsIndex, mode: ForkMode | int | None = None) -> Process:
        """clone(2): a child, or a thread of this process, that shares what *flags* say (`Clone`; the low byte is the
        signal that the parent gets in the end, usually SIGCHLD). Without VM the memory is copied as *mode* says.

        VM, VFORK, SIGHAND, THREAD and PARENT count; FS, FILES, IO and the like are taken and mean nothing here. EINVAL
        for flags that contradict each other; NotImplementedError for namespaces; else as fork().
        """
        number = integer(flags, "clone", "flags")
        new = birth.clone(self._kernel, self.tid, number, self._mode(mode))
        return Thread(self._kernel, self.pid, new) if number & int(Clone.THREAD) else Process(self._kernel, new)

    @property
    def threads(self) -> list[Process]:
        """The tasks of the process, this one's too, the first one first."""
        tids, kernel = self._kernel.processes.tasks(self._process("threads")), self._kernel
        return [Thread(kernel, self.pid, tid) if tid != self.pid else Process(kernel, tid) for tid in tids]

    def execve(
        self,
        program: str,
        argv: Sequence[str | bytes] | None = None,
        environment: Dictionary[str, str] | Sequence[str | bytes] | None = None,
        *,
        link: bool = False,
    ) -> None:
        """execve(2): replaces the memory by that of *program*, a file of the host; the pid stays.

        *argv* is ``[program]`` if None, the environment empty if None. With *link* the libraries are mapped
        too, as ld.so would. Errors as execve(2); they leave the process as it was. ProcessKilled where Linux kills it
        because the old memory is gone already: a program whose segments can't be mapped.
        """
        exec_.execve(self._kernel, self.tid, os.fspath(program), argv, environment, link)

    def exit(self, code: int = 0) -> None:
        """_exit(2): frees the memory and leaves a zombie for the parent; children go to the nearest subreaper or to
        init, which reaps at once."""
        death.exit_group(self._kernel, self.tid, (code & 0xFF) << 8 if type(code) is int else exit_status(code))

    # ---- looking ----

    @property
    def children(self) -> list[Process]:
        """Children in order of birth, zombies included."""
        return [Process(self._kernel, pid) for pid in self._kernel.processes.children(self._process("children"))]

    @property
    def faults(self) -> FaultCounts:
        """Faults so far by kind; a child starts at 0, exec goes on counting. Snapshot."""
        with self._kernel.lock:
            self._look("faults")
            return FaultCounts(*self._faults())

    def _faults(self) -> Sequence[int]:
        return process_faults(self._kernel, self.pid)

    def maps(self) -> list[Mapping]:
        """The mappings, as /proc/PID/maps has them. Snapshot."""
        return view.maps(self._look("maps"))

    def smaps(self) -> list[MappingUsage]:
        """The mappings with what of them is resident. Snapshot."""
        return view.smaps(self._look("smaps"))

    def pagemap(self, address: SupportsIndex, npages: int) -> NDArray[np.uint64]:
        """uint64 array (npages,) in the format of /proc/PID/pagemap, from the page at *address* on."""
        return view.pagemap(self._look("pagemap"), address, npages)

    def dirty_pages(
        self, address: SupportsIndex | None = None, length: SupportsIndex | None = None
    ) -> NDArray[np.uint64]:
        """Addresses, ascending, of the pages written since ``4`` was last written to clear_refs, as bit 55 of pagemap
        says: all of a mapping made since counts. uint64 array; of [address, address + length) if given.
        """
        return clear_refs.dirty_pages(self._look("dirty_pages"), address, length)

    def translate(self, address: SupportsIndex) -> Translation | None:
        """What a page walk finds for *address* now; None where no frame is mapped."""
        return view.translate(self._look("translate"), address)

    @property
    def rss(self) -> int:
        """Resident bytes; the zero page does not count (VmRSS)."""
        return self.rss_by_kind.total

    @property
    def rss_by_kind(self) -> ByKind:
        """RssAnon, RssFile and RssShmem in bytes."""
        return view.rss_by_kind(self._look("rss"))

    @property
    def pss(self) -> int:
        """Resident bytes, each page divided by the number of times it is mapped (Pss of smaps)."""
        return int(view.usage(self._look("pss")).pss) >> 12

    @property
    def pss_by_kind(self) -> ByKind:
        """Pss_Anon, Pss_File and Pss_Shmem in bytes."""
        return view.pss_by_kind(self._look("pss"))

    @property
    def uss(self) -> int:
        """Resident bytes that nobody else maps (Private_Clean + Private_Dirty)."""
        return view.uss(self._look("uss"))

    @property
    def page_tables(self) -> int:
        """Bytes of page tables (VmPTE): the root not counted, tables shared with others in full."""
        return view.page_tables(self._look("page_tables"))

    # ---- what it executes ----

    def _image(self) -> Image | None:
        self._look("image")
        return self._kernel.images.of(self.tid)

    @property
    def exe(self) -> str:
        """Path of the program, resolved; empty if none was executed."""
        image = self._image()
        return image.path if image else ""

    @property
    def argv(self) -> tuple[bytes, ...]:
        """Arguments as the program sees them."""
        image = self._image()
        return image.argv if image else ()

    @property
    def environ(self) -> tuple[bytes, ...]:
        """Environment strings as the program sees them."""
        image = self._image()
        return image.envp if image else ()

    @property
    def auxv(self) -> tuple[tuple[int, int], ...]:
        """The auxiliary vector as (type, value), without the final AT_NULL, getauxval(3)."""
        image = self._image()
        return image.auxv if image else ()

    @property
    def stack_pointer(self) -> int:
        """rsp at the first instruction; 0 if nothing was executed."""
        image = self._image()
        return image.stack_pointer if image else 0

    @property
    def entry_point(self) -> int:
        """rip at the first instruction: the interpreter's entry if there is one; 0 if nothing was executed."""
        image = self._image()
        return image.entry_point if image else 0


class Thread(Process):
    """A task of a process that is not its first: `.pid` is the process's, `.tid` its own. It uses the memory like the
    others; `exit` ends it alone, `faults` are its own."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<vmemu.Thread {self.tid} of {self.pid}>"

    def exit(self, code: int = 0) -> None:
        """The system call exit(2): ends this task; the process too if it was the last."""
        self.exit_thread(code)

    def _faults(self) -> Sequence[int]:
        return faults(self._kernel, self.tid)
