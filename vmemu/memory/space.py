"""Accesses: bytes in and out of a process's memory, and what to do when one stops.

The core makes each access through the page tables and resolves what faults it can. Where a decision is needed it stops
with a trap, unfinished; the decision is made here and the access goes on at the same byte: a file page is read, a stack
grows, memory is missing, or the access is refused.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, TypeVar

from vmemu._native import Trap, Vma, byte_view, to_short_trap
from vmemu._native import constants as c
from vmemu.errors import BusError, OutOfMemory, SegmentationFault, SyscallError, syscall_error
from vmemu.limits import Resource
from vmemu.memory.args import MASK, TASK_SIZE, integer
from vmemu.memory.limits import Holder
from vmemu.memory.reclaim import balance, hold_back, in_vain, swap_in
from vmemu.memory.shortage import call, relieve
from vmemu.types import PAGE_SIZE, FaultCounts, FaultKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["STACK_GUARD", "Space"]

_T = TypeVar("_T")

STACK_GUARD = 256 * PAGE_SIZE
"""Bytes kept free below a stack (stack_guard_gap)."""
_LARGE = 64 << 20
"""Bytes from which on a read looks at the mappings before it asks the host for a buffer."""
_NAMES = {c.READ: "read", c.WRITE: "write", c.FETCH: "fetch", c.GUP_WRITE: "write"}
_KINDS = len(FaultKind)


class Space(Holder):
    """Space *sid* of *kernel* as process *pid* uses it."""

    __slots__ = ()

    # ---- accesses ----

    def read(self, address: SupportsIndex, length: int, fetch: bool = False) -> bytes:
        """*length* bytes at *address*."""
        access = c.FETCH if fetch else c.READ
        length = integer(length, "read", "length")
        if length < 0:
            raise ValueError(f"length: {length} is negative")
        if not length:
            integer(address, _NAMES[access], "address")
            return b""
        where = self._address(address, access)
        if length > _LARGE:  # fail where memory ends, not for want of a buffer
            length = min(length, self._mapped(where, length) + 1)
        if length > _LARGE:  # no second copy: a bytes that nobody has seen yet is filled in place
            buffer = bytes(length)
            self.read_into(buffer, where, access)
            return buffer
        small = bytearray(length)
        self.read_into(small, where, access)
        return bytes(small)

    def _mapped(self, address: int, length: int) -> int:
        """How many of *length* bytes from *address* on are mapped without a hole."""
        at = address
        for vma in self.kernel.core.vmas(self.sid, address, min(address + length, TASK_SIZE)):
            if vma.start > at:
                break
            at = vma.end
        return at - address

    def read_into(self, buffer: bytes | bytearray, address: int, access: int, trap: Trap | None = None) -> None:
        """Fills a buffer; *trap*: where that was begun and stopped."""
        length, done = len(buffer), 0
        while True:
            if trap is None:
                trap = self.kernel.core.read(self.sid, address + done & MASK, buffer, done, length - done, access)
            done += trap.done
            if not trap.reason:
                return
            self._handle(trap, access)
            trap = None

    def write(self, address: SupportsIndex, data: Any) -> None:
        """*data*, any contiguous buffer of bytes, to *address*."""
        if not isinstance(data, bytes | bytearray):
            data = byte_view(data)
        if not len(data):
            integer(address, "write", "address")
            return
        where = self._address(address, c.WRITE)
        self.write_from(data, where)

    def write_from(self, data: Any, address: int, trap: Trap | None = None) -> None:
        """Stores a buffer; *trap*: where that was begun and stopped."""
        length, done = len(data), 0
        while True:
            if trap is None:
                trap = self.kernel.core.write(self.sid, address + done & MASK, data, done, length - done)
            done += trap.done
            if not trap.reason:
                return
            self._handle(trap, c.WRITE)
            trap = None

    def write_on(self, trap: Trap, address: int, data: bytes) -> None:
        """The rest of a write of *data* to *address* that stopped with a trap."""
        self._handle(trap, c.WRITE)
        self.write(address + trap.done, data[trap.done :])

    def touch(self, address: SupportsIndex, length: int, write: bool) -> FaultCounts:
        """One access to each page of [address, address + length)."""
        length = integer(length, "touch", "length")
        if length < 0:
            raise ValueError(f"length: {length} is negative")
        access = c.WRITE if write else c.READ
        counts = array("Q", bytes(8 * _KINDS))
        if length:
            self._touch(self._address(address, access), length, access, counts)
        else:
            integer(address, "touch", "address")
        return FaultCounts(*counts)

    def touch_on(self, address: int, length: int, write: bool, raw: bytes, outcome: int) -> FaultCounts:
        """The rest of a touch that stopped: with what it counted and came to as `touch_short` tells."""
        trap = to_short_trap(outcome, address)
        if trap.done:
            trap = trap._replace(address=(address & -PAGE_SIZE) + trap.done * PAGE_SIZE)
        access = c.WRITE if write else c.READ
        counts = array("Q", raw)
        self._handle(trap, access)
        self._touch(trap.address, address + length - trap.address, access, counts)
        return FaultCounts(*counts)

    def _touch(self, address: int, length: int, access: int, counts: array[int], major: bool = True) -> None:
        end = min(address + length, 1 << 64)
        while address < end:
            trap = self.kernel.core.touch(self.sid, address, min(end - address, MASK), access, counts)
            if not trap.reason:
                return
            address = trap.address
            self._handle(trap, access, major)

    def access(self, addresses: ArrayLike, write: bool | ArrayLike) -> NDArray[np.uint8]:
        """One access for each address -> the FaultKind of each."""
        import numpy as np

        where = _addresses(addresses)
        which, access = None, c.READ
        flags = np.asarray(write)
        if flags.size and flags.dtype.kind not in "biu":
            name = flags.dtype if isinstance(write, np.ndarray) else type(write).__name__
            raise TypeError(f"write must be a bool or an array of bool, not {name}")
        if flags.dtype.kind in "iu":
            wrong = flags[(flags < 0) | (flags > 1)]
            if wrong.size:
                raise ValueError(f"write: {wrong[0]} is not a bool (or 0 or 1)")
        if not flags.ndim:
            access = c.WRITE if flags.any() else c.READ
        elif flags.shape != where.shape:
            raise ValueError(f"write has shape {flags.shape}, addresses {where.shape}")
        else:
            which = np.ascontiguousarray(flags.astype(bool)).view(np.uint8)
        kinds = np.zeros(where.shape, np.uint8)
        at, n = 0, len(where)
        while at < n:
            trap = self.kernel.core.access(self.sid, where, which, access, at, n, kinds)
            at += trap.done
            if not trap.reason:
                break
            kind = self._decide(trap)
            if kind is not None:
                kinds[at] = kind
                at += 1
        return kinds

    def populate(self, start: int, end: int, write: bool, major: bool = False) -> bool:
        """Faults in [start, end), inside one mapping, as get_user_pages() does. False: a page could not be had.

        Where a page is read, populate_vma_page_range() takes the fault again as if it were the first time; so it is a
        minor one, unless *major*.
        """
        counts = array("Q", bytes(8 * _KINDS))
        try:
            self._touch(start, end - start, c.GUP_WRITE if write else c.READ, counts, major)
        except (SegmentationFault, BusError):
            return False
        finally:
            self.kernel.core.drain()  # populate_vma_page_range() ends so
        return True

    def _address(self, address: SupportsIndex, access: int) -> int:
        """*address* as an int. One beyond 64 bits is a fault, counted and recorded as that of the last byte."""
        number = integer(address, _NAMES[access], "address")
        if not 0 <= number <= MASK:
            self.kernel.core.touch(self.sid, MASK, 1, access, array("Q", bytes(8 * _KINDS)))
            raise SegmentationFault(self.pid, number, _NAMES[access], FaultKind.SEGV_MAPERR)
        return number

    # ---- decisions ----

    def _handle(self, trap: Trap, access: int, major: bool = True) -> None:
        """Makes the access possible, or raises."""
        kind = self._decide(trap, major)
        if kind is not None:
            self._refuse(kind, trap, access)

    def _decide(self, trap: Trap, major: bool = True) -> FaultKind | None:
        """None: try again. Else what the access comes to."""
        kind = self._decide_on(trap, major)
        if (
            kind is not None
            and trap.reason != c.TRAP_FAULT
            and (kind == FaultKind.OOM or self.kernel.log_owners is not None)
        ):
            self.kernel.core.log_refused(self.sid, trap.address, trap.access, kind)
        return kind

    def _decide_on(self, trap: Trap, major: bool) -> FaultKind | None:
        if trap.reason == c.TRAP_FAULT:
            return FaultKind(trap.kind)
        if trap.reason == c.TRAP_RECLAIM:
            vain = in_vain(self.kernel, self.sid, trap.address)
            if trap.object:
                hold_back(self.kernel, trap.object, vain)
            else:
                balance(self.kernel, vain)
            return None
        if trap.reason == c.TRAP_SWAP:
            try:
                return call(self.kernel, self.pid, swap_in, self.kernel, trap, major)
            except OutOfMemory:
                return FaultKind.OOM
        if trap.reason == c.TRAP_PAGE:
            vma = self.kernel.core.find(self.sid, trap.address)
            hint = vma.flags & (c.VM_SEQ_READ | c.VM_RAND_READ) if vma else 0
            try:
                kernel = self.kernel
                payer = kernel.processes.cgroup[self.pid]
                page_in = kernel.files.page_in
                read = call(kernel, self.pid, page_in, trap.object, trap.page, "page fault", major, hint, payer)
                return None if read else FaultKind.BUS_ADRERR
            except OutOfMemory:
                return FaultKind.OOM
        if trap.reason in (c.TRAP_FRAMES, c.TRAP_CHARGE):
            vain = in_vain(self.kernel, self.sid, trap.address)
            return None if relieve(self.kernel, self.pid, trap, vain) else FaultKind.OOM
        if trap.reason == c.TRAP_STACK:
            return None if self.grow_stack(trap.address) else FaultKind.SEGV_MAPERR
        return None  # a time slice is over; a signal handler of Python's has had its chance

    def _refuse(self, kind: FaultKind, trap: Trap, access: int) -> NoReturn:
        address = trap.address
        if kind == FaultKind.OOM:
            why = "the memory cgroup is at its limit" if trap.reason == c.TRAP_CHARGE else "no frame is left"
            raise OutOfMemory(errno.ENOMEM, f"pid {self.pid}: {_NAMES[access]} at {address:#x}: Out of memory ({why})")
        fault = BusError if kind == FaultKind.BUS_ADRERR else SegmentationFault
        raise fault(self.pid, address, _NAMES[access], kind)

    def grow_stack(self, address: int) -> bool:
        """Extends the stack mapping above *address* down to it, if limits and gap allow (expand_stack())."""
        kernel = self.kernel
        with kernel.lock:
            stack = kernel.core.find(self.sid, address)
            if stack is None or not stack.flags & c.VM_GROWSDOWN:
                return False
            if stack.start <= address:
                return True  # another thread was faster
            start = address & -PAGE_SIZE
            below = kernel.core.find_before(self.sid, stack.start)
            accessible = c.VM_READ | c.VM_WRITE | c.VM_EXEC
            if start < 65536 or (
                below is not None
                and below.flags & accessible
                and not below.flags & c.VM_GROWSDOWN
                and start - below.end < STACK_GUARD
            ):
                return False
            try:
                self.insist(kernel.core.prepare_anon, self.sid, stack.start, "expand_stack")
                if not self._may_grow(stack, start):
                    return False
                self.insist(kernel.core.extend, self.sid, stack.start, start, True, "expand_stack")
            except SyscallError:
                return False
        return True

    def _may_grow(self, stack: Vma, start: int) -> bool:
        """acct_stack_growth()."""
        grow = stack.start - start
        return (
            self.may_expand(stack.flags, grow // PAGE_SIZE)
            and stack.end - start <= self.limit(Resource.STACK)
            and self.may_lock_more(stack.flags, grow)
            and self.enough_memory(grow // PAGE_SIZE)
        )

    # ---- what the calls on mappings need ----

    def insist(self, function: Callable[..., _T], *args: object) -> _T:
        """The result of a function of the core that does all or nothing on behalf of this process, made again as long
        as frames that it lacks can be had. Raises OutOfMemory, or ProcessKilled if this process is killed for them."""
        return call(self.kernel, self.pid, function, *args)

    def vmas(self, start: int = 0, end: int = TASK_SIZE) -> list[Vma]:
        """The mappings that overlap [start, end)."""
        return list(self.kernel.core.vmas(self.sid, start, end))

    def reflag(self, vma: Vma, start: int, end: int, flags: int, call: str) -> None:
        """New flags for a part of *vma*, which may split it. ENOMEM at max_map_count."""
        extra = (start > vma.start) + (end < vma.end)
        if flags != vma.flags and extra and not self.room_for_split(extra):
            raise syscall_error(call, errno.ENOMEM, f"more than {self.kernel.max_map_count} mappings")
        self.insist(self.kernel.core.reflag, self.sid, start, end, flags, call)

    def room_for_split(self, extra: int = 1) -> bool:
        """*extra* more mappings would stay within max_map_count."""
        return int(self.kernel.core.sums(self.sid).nvmas) + extra <= self.kernel.max_map_count


def _addresses(addresses: ArrayLike) -> NDArray[np.uint64]:
    """A contiguous uint64 array (n,) of what was given as one."""
    import numpy as np

    try:
        where = np.asarray(addresses)
    except ValueError:
        raise ValueError("addresses must have one dimension") from None
    if not where.ndim and not isinstance(addresses, np.ndarray):
        raise TypeError(f"addresses must be an array of integers, not {type(addresses).__name__}")
    if where.ndim != 1:
        raise ValueError(f"addresses must have one dimension, not {where.ndim}")
    if where.dtype.kind == "i" and where.size and where.min() < 0:
        raise ValueError("addresses: negative")
    if where.size and where.dtype.kind not in "iu":
        if isinstance(addresses, np.ndarray) or where.dtype.kind == "b":
            raise TypeError(f"addresses must be integers, not {where.dtype}")
        # a list of integers that NumPy finds no common type for
        numbers = [integer(item, "access", "each address") for item in addresses]  # type: ignore[union-attr, arg-type]
        if not all(0 <= number <= MASK for number in numbers):
            raise ValueError("addresses must fit in 64 bits")
        return np.array(numbers, np.uint64)
    return np.ascontiguousarray(where, np.uint64)
