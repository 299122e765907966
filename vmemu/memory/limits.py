"""How much memory a process may have: its resource limits, getrlimit(2), and overcommit, as mm/mmap.c asks."""

from __future__ import annotations

from typing import Any

from vmemu._native import constants as c
from vmemu.credentials import Capability
from vmemu.kernel import Kernel
from vmemu.limits import Resource
from vmemu.memory.commit import enough_memory
from vmemu.memory.words import END_DATA, LOCKED_EXTRA, START_BRK, START_DATA
from vmemu.types import PAGE_SIZE

__all__ = ["Holder"]

_AS, _DATA = int(Resource.AS), int(Resource.DATA)
_WRITABLE_KINDS = c.VM_WRITE | c.VM_SHARED | c.VM_GROWSDOWN


class Holder:
    """A handle: space *sid* of *kernel* as process *pid* has it, or its thread *tid*. It has no state of its own."""

    __slots__ = ("kernel", "pid", "sid", "tid")

    def __init__(self, kernel: Kernel, sid: int, pid: int, tid: int | None = None) -> None:
        self.kernel = kernel
        self.sid = sid
        self.pid = pid
        self.tid = pid if tid is None else tid

    def capable(self, capability: Capability) -> bool:
        """The task has it."""
        return self.kernel.credentials.of(self.tid).capable(capability)

    def limit(self, resource: Resource) -> int:
        """A soft limit of the process, RLIM_INFINITY for none."""
        return self.kernel.limits.of(self.pid).soft(resource)

    def enough_memory(self, npages: int) -> bool:
        """Overcommit lets it be promised *npages* more (security_vm_enough_memory_mm())."""
        return enough_memory(self.kernel, self.sid, npages, self.capable(Capability.SYS_ADMIN))

    def may_expand(self, flags: int, npages: int, sums: Any = None) -> bool:
        """RLIMIT_AS and RLIMIT_DATA let a mapping with these VM flags have *npages* more (may_expand_vm()). A soft
        limit of 0 on data means the hard one, for Valgrind's sake. *sums*: the space's, if they are known."""
        limits = self.kernel.limits.of(self.pid).pairs
        if sums is None:
            sums = self.kernel.core.sums(self.sid)
        if int(sums.total) + npages > limits[_AS][0] // PAGE_SIZE:
            return False
        if flags & _WRITABLE_KINDS != c.VM_WRITE:
            return True
        allowed, hard = limits[_DATA]
        return int(sums.data) + npages <= (allowed or hard) // PAGE_SIZE

    def may_move_break(self, words: list[int], to: int) -> bool:
        """RLIMIT_DATA lets the break be at *to*: heap and initialised data count (check_data_rlimit()). *words* are the
        space's."""
        data = words[END_DATA] - words[START_DATA]
        return to - words[START_BRK] + data <= self.limit(Resource.DATA)

    def locked_pages(self) -> int:
        """VmLck in pages (mm->locked_vm)."""
        return int(self.kernel.core.sums(self.sid).locked) + self.kernel.core.words(self.sid)[LOCKED_EXTRA]

    def may_lock(self) -> bool:
        """It may lock memory at all (can_do_mlock())."""
        return self.limit(Resource.MEMLOCK) != 0 or self.capable(Capability.IPC_LOCK)

    def may_lock_more(self, flags: int, nbytes: int) -> bool:
        """RLIMIT_MEMLOCK lets it have *nbytes* more of a mapping with these VM flags (mlock_future_ok())."""
        if not flags & c.VM_LOCKED or self.capable(Capability.IPC_LOCK):
            return True
        return nbytes // PAGE_SIZE + self.locked_pages() <= self.limit(Resource.MEMLOCK) // PAGE_SIZE
