"""The words of the interface: constants with Linux's values, and the records that snapshots are made of.

Imports nothing of vmemu. Values are Linux's on x86-64 (bits/mman-linux.h, asm-generic/mman-common.h), so the
constants of the standard `mmap` module and plain integers work wherever these do.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import struct
from typing import NamedTuple

__all__ = [
    "MREMAP_DONTUNMAP",
    "MREMAP_FIXED",
    "MREMAP_MAYMOVE",
    "PAGE_SIZE",
    "Advice",
    "ByKind",
    "Clone",
    "FaultCounts",
    "FaultKind",
    "ForkMode",
    "FrameStats",
    "HugePool",
    "Map",
    "Mapping",
    "MappingUsage",
    "MemInfo",
    "Operation",
    "Overcommit",
    "Prot",
    "Translation",
    "fork_word",
    "parse_size",
    "size_word",
]

PAGE_SIZE = 4096
MREMAP_MAYMOVE = 1
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4


class Prot(enum.IntFlag):
    """mmap(2) and mprotect(2) protection."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXEC = 4
    GROWSDOWN = 0x01000000
    GROWSUP = 0x02000000


class Map(enum.IntFlag):
    """mmap(2) flags."""

    SHARED = 0x01
    PRIVATE = 0x02
    SHARED_VALIDATE = 0x03
    DROPPABLE = 0x08
    FIXED = 0x10
    ANONYMOUS = 0x20
    BITS_32 = 0x40
    """MAP_32BIT: below 2 GiB."""
    ABOVE4G = 0x80
    GROWSDOWN = 0x0100
    DENYWRITE = 0x0800
    EXECUTABLE = 0x1000
    LOCKED = 0x2000
    NORESERVE = 0x4000
    POPULATE = 0x8000
    NONBLOCK = 0x10000
    STACK = 0x20000
    HUGETLB = 0x40000
    SYNC = 0x80000
    FIXED_NOREPLACE = 0x100000
    UNINITIALIZED = 0x4000000


class Advice(enum.IntEnum):
    """madvise(2) advice."""

    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    DONTFORK = 10
    DOFORK = 11
    MERGEABLE = 12
    UNMERGEABLE = 13
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    DODUMP = 17
    WIPEONFORK = 18
    KEEPONFORK = 19
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    DONTNEED_LOCKED = 24
    COLLAPSE = 25
    HWPOISON = 100
    SOFT_OFFLINE = 101
    GUARD_INSTALL = 102
    GUARD_REMOVE = 103


class ForkMode(enum.IntEnum):
    """How much of an address space fork() copies at once; the rest follows on demand."""

    EAGER = 0
    """Tables and frames: Unix before copy-on-write."""
    COW = 1
    """Tables; frames are shared write-protected: Linux."""
    ON_DEMAND = 2
    """Nothing: the page tables themselves are shared, from the root down (on-demand-fork, EuroSys '21)."""


class Operation(enum.IntEnum):
    """What a record of a trace does (`Machine.run`). Unless said otherwise `pid` is who does it."""

    READ = 0
    """Reads `size` bytes at `address`: an access to each page of them."""
    WRITE = 1
    """Writes there: sets the entries as a store would and leaves the bytes as they are."""
    FETCH = 2
    """Fetches instructions there."""
    SPAWN = 3
    """Init has a new child with an empty memory, which `pid` names from now on."""
    FORK = 4
    """fork(2) in the machine's mode; `address` names the child from now on."""
    EXIT = 5
    """_exit(2) with code `address`; nobody has the label then."""
    WAIT = 6
    """Reaps all children that have exited."""
    MMAP = 7
    """Maps `size` bytes at `address` with MAP_FIXED: private anonymous memory that may be read and written."""
    MMAP_SHARED = 8
    """The same, shared."""
    MUNMAP = 9
    """munmap(2) of `size` bytes at `address`."""


class Overcommit(enum.IntEnum):
    """vm.overcommit_memory, proc_sys_vm(5)."""

    HEURISTIC = 0
    ALWAYS = 1
    NEVER = 2


class Clone(enum.IntFlag):
    """Flags of clone(2); the low byte of what it is given is a signal."""

    VM = 0x100
    """The same memory for both."""
    FS = 0x200
    FILES = 0x400
    SIGHAND = 0x800
    """The same dispositions of signals for both."""
    PIDFD = 0x1000
    PTRACE = 0x2000
    VFORK = 0x4000
    """The caller is suspended until the child execs or exits."""
    PARENT = 0x8000
    """The caller's parent is the child's parent."""
    THREAD = 0x10000
    """One more task of the same process."""
    NEWNS = 0x20000
    SYSVSEM = 0x40000
    SETTLS = 0x80000
    PARENT_SETTID = 0x100000
    CHILD_CLEARTID = 0x200000
    DETACHED = 0x400000
    UNTRACED = 0x800000
    CHILD_SETTID = 0x1000000
    NEWCGROUP = 0x2000000
    NEWUTS = 0x4000000
    NEWIPC = 0x8000000
    NEWUSER = 0x10000000
    NEWPID = 0x20000000
    NEWNET = 0x40000000
    IO = 0x80000000


class FaultKind(enum.IntEnum):
    """What one access led to. Below `SEGV_MAPERR` the access was completed."""

    NONE = 0
    """No fault: the page was mapped with enough rights."""
    SPURIOUS = 1
    """A fault that found the leaf entry sufficient (only a shared page table stood in the way)."""
    ZERO_MAP = 2
    """Read of untouched anonymous memory: the machine's one zero page was mapped, read-only."""
    ZERO_FILL = 3
    """First write to anonymous memory: a zeroed frame was allocated."""
    FILE_MINOR = 4
    """File page that was in the page cache was mapped, or made writable in a shared mapping."""
    FILE_MAJOR = 5
    """File page had to be read from the file first."""
    SHM_FILL = 6
    """First touch of a page of shared memory or of a hole in an in-memory file: a zeroed frame was allocated."""
    COW_COPY = 7
    """Write to a page shared copy-on-write: one frame was copied."""
    COW_REUSE = 8
    """Write to a write-protected frame of which this space is the last owner: made writable, nothing copied."""
    SWAP_IN = 9
    """The page had to be read from swap."""
    SEGV_MAPERR = 10
    """SIGSEGV: nothing mapped."""
    SEGV_ACCERR = 11
    """SIGSEGV: the mapping forbids the access."""
    BUS_ADRERR = 12
    """SIGBUS: beyond the end of the file."""
    OOM = 13
    """No frame was left."""

    @property
    def fatal(self) -> bool:
        """The access was not completed."""
        return self >= FaultKind.SEGV_MAPERR

    @property
    def major(self) -> bool:
        """Completing it took I/O (ru_majflt of getrusage(2))."""
        return self in (FaultKind.FILE_MAJOR, FaultKind.SWAP_IN)

    @property
    def minor(self) -> bool:
        """A fault that took no I/O (ru_minflt)."""
        return FaultKind.NONE < self < FaultKind.SEGV_MAPERR and not self.major


_RAW_COUNTS = struct.Struct(f"{len(FaultKind)}Q")
_KNOWN_COUNTS: dict[bytes, FaultCounts] = {}
_MOST_KNOWN = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class FaultCounts:
    """Faults by kind: one field for each `FaultKind`, in lower case. Immutable; two can be added and subtracted."""

    none: int = 0
    spurious: int = 0
    zero_map: int = 0
    zero_fill: int = 0
    file_minor: int = 0
    file_major: int = 0
    shm_fill: int = 0
    cow_copy: int = 0
    cow_reuse: int = 0
    swap_in: int = 0
    segv_maperr: int = 0
    segv_accerr: int = 0
    bus_adrerr: int = 0
    oom: int = 0

    @property
    def minor(self) -> int:
        """Faults resolved without I/O."""
        return (
            self.spurious
            + self.zero_map
            + self.zero_fill
            + self.file_minor
            + self.shm_fill
            + self.cow_copy
            + self.cow_reuse
        )

    @property
    def major(self) -> int:
        """Faults resolved with I/O."""
        return self.file_major + self.swap_in

    @property
    def total(self) -> int:
        """minor + major; accesses without a fault and fatal ones are not in it."""
        return self.minor + self.major

    @classmethod
    def of_raw(cls, raw: bytes) -> FaultCounts:
        """From the numbers as the core has them. Equal ones are one object: most calls meet faults of one kind."""
        found = _KNOWN_COUNTS.get(raw)
        if found is None:
            found = cls(*_RAW_COUNTS.unpack(raw))
            if len(_KNOWN_COUNTS) < _MOST_KNOWN:
                _KNOWN_COUNTS[raw] = found
        return found

    def as_dict(self) -> dict[str, int]:
        """Kind (lower case) -> count, every kind."""
        return {kind.name.lower(): getattr(self, kind.name.lower()) for kind in FaultKind}

    def __sub__(self, other: FaultCounts) -> FaultCounts:
        if not isinstance(other, FaultCounts):
            return NotImplemented
        return FaultCounts(*(a - b for a, b in zip(self._values(), other._values(), strict=True)))

    def __add__(self, other: FaultCounts) -> FaultCounts:
        if not isinstance(other, FaultCounts):
            return NotImplemented
        return FaultCounts(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """One VMA, as a line of /proc/PID/maps shows it (proc_pid_maps(5))."""

    start: int
    end: int
    prot: Prot
    shared: bool
    offset: int
    """Offset into the file in bytes; 0 for anonymous memory."""
    device: tuple[int, int]
    """(major, minor)"""
    inode: int
    name: str
    """Path, ``[heap]``, ``[stack]``, or empty."""
    flags: tuple[str, ...] = ()
    """The two-letter codes of smaps' VmFlags."""

    @property
    def size(self) -> int:
        """Bytes mapped."""
        return self.end - self.start

    @property
    def perms(self) -> str:
        """Permissions as printed, e.g. ``"rw-p"``."""
        bits = self.prot
        return (
            ("r" if bits & Prot.READ else "-")
            + ("w" if bits & Prot.WRITE else "-")
            + ("x" if bits & Prot.EXEC else "-")
            + ("s" if self.shared else "p")
        )


class Translation(NamedTuple):
    """What a page walk finds for one address at this moment."""

    pfn: int
    """Index of the 4 KiB frame that holds the address."""
    prot: Prot
    """What the tables allow now: a page shared copy-on-write has no WRITE even in a writable mapping."""
    level: int
    """Level of the leaf entry: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB."""
    physical: int
    """Address in the emulated RAM, in bytes."""
    accessed: bool
    dirty: bool
    exclusive: bool
    """The frame is anonymous and known to belong to this space alone (Linux: PageAnonExclusive)."""


class ByKind(NamedTuple):
    """Bytes by what backs them."""

    anon: int
    """Anonymous memory, private copies of file pages included."""
    file: int
    """Page cache of files."""
    shmem: int
    """Shared anonymous memory and in-memory files."""

    @property
    def total(self) -> int:
        """All three."""
        return self.anon + self.file + self.shmem


@dataclasses.dataclass(frozen=True, slots=True)
class MappingUsage:
    """What of one mapping is resident, in bytes, as /proc/PID/smaps counts it (proc_pid_smaps(5))."""

    mapping: Mapping
    rss: int
    pss: int
    pss_dirty: int
    shared_clean: int
    shared_dirty: int
    private_clean: int
    private_dirty: int
    referenced: int
    anonymous: int
    lazyfree: int
    """Freed with MADV_FREE and not written since."""
    ksm: int
    """In frames that equal pages share (KSM)."""
    anonhugepages: int = 0
    """Anonymous memory mapped by huge entries."""
    thp_eligible: bool = False
    """Faults here may bring transparent huge pages."""
    shared_hugetlb: int = 0
    private_hugetlb: int = 0
    swap: int = 0
    swap_pss: int = 0
    """Huge pages of a pool; they are not in rss and pss."""
    page_size: int = PAGE_SIZE
    """Bytes of the pages that the mapping is made of (KernelPageSize)."""


class HugePool(NamedTuple):
    """Huge pages set aside for MAP_HUGETLB, in such pages (/proc/meminfo, HugePages_*)."""

    page_size: int
    """Bytes."""
    total: int
    free: int
    reserved: int
    """Of the free ones: promised to mappings that have not touched them yet."""


class FrameStats(NamedTuple):
    """Frames by how they are used, the whole machine, page tables and the zero page aside."""

    mapped: int
    """Frames that some process maps."""
    shared: int
    """Frames mapped more than once."""
    copied: int
    """Frames copied since boot, by copy-on-write and by eager fork."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemInfo:
    """The machine's memory in bytes, as /proc/meminfo (proc_meminfo(5)) names it."""

    total: int
    free: int
    available: int
    anon: int
    file: int
    """Page cache of files (without shared memory)."""
    shmem: int
    """Shared anonymous memory and in-memory files."""
    page_tables: int
    swap_total: int
    swap_free: int
    committed: int
    """Committed_AS."""
    commit_limit: int


def fork_word(mode: ForkMode) -> str:
    """The fork mode as the command line writes it: ``cow``, ``on-demand`` or ``eager``."""
    return mode.name.lower().replace("_", "-")


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?B?)\s*", re.IGNORECASE)
_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def parse_size(size: int | str, what: str = "size") -> int:
    """Bytes from an int or a text such as ``"1GiB"``, ``"64M"``, ``"4096"``; units are powers of 1024.

    Raises TypeError or ValueError that names *what* and the value.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if not match:
            raise ValueError(f"{what}: {size!r} is not a size; write bytes or a number with KiB, MiB, GiB or TiB")
        unit = 1 << _SHIFT[match[2].lower()]
        return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(f"{what}: {size!r} is neither an int (bytes) nor a text such as '64MiB'")
    value = size.__index__()
    if value < 0:
        raise ValueError(f"{what}: {value} is negative")
    return value


def size_word(nbytes: int) -> str:
    """Bytes as `parse_size` takes them, in the largest unit that divides them: ``"16MiB"``, ``"4097"``."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes and not nbytes % (1 << shift):
            return f"{nbytes >> shift}{unit}"
    return str(nbytes)
