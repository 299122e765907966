"""vmemu emulates the virtual memory of a Unix machine: page tables, fork, copy-on-write, execve and the zero page.

    from vmemu import Machine, Map, Prot

    with Machine(memory="64MiB") as m:
        parent = m.spawn()
        a = parent.mmap(None, 4096, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        parent.write(a, b"hello")
        child = parent.fork()
        child.write(a, b"HELLO")      # faults, copies one page, is executed again
        parent.read(a, 5)             # b"hello"

Reference: Linux on x86-64. Every public name is importable from here and listed in `__all__`.
"""

from vmemu.errors import (
    BusError,
    InvariantError,
    MemoryFault,
    OutOfMemory,
    ProcessKilled,
    SegmentationFault,
    SyscallError,
    VmemuError,
)
from vmemu.files import File
from vmemu.ksm import KsmCounts, KsmStat
from vmemu.limits import RLIM_INFINITY, Resource
from vmemu.machine import Machine
from vmemu.process import Process
from vmemu.types import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PAGE_SIZE,
    Advice,
    ByKind,
    Clone,
    FaultCounts,
    FaultKind,
    ForkMode,
    FrameStats,
    HugePool,
    Map,
    Mapping,
    MappingUsage,
    MemInfo,
    Overcommit,
    Prot,
    Translation,
)

__all__ = [
    "MREMAP_DONTUNMAP",
    "MREMAP_FIXED",
    "MREMAP_MAYMOVE",
    "PAGE_SIZE",
    "RLIM_INFINITY",
    "Advice",
    "BusError",
    "ByKind",
    "Clone",
    "FaultCounts",
    "FaultKind",
    "File",
    "ForkMode",
    "FrameStats",
    "HugePool",
    "InvariantError",
    "KsmCounts",
    "KsmStat",
    "Machine",
    "Map",
    "Mapping",
    "MappingUsage",
    "MemInfo",
    "MemoryFault",
    "OutOfMemory",
    "Overcommit",
    "Process",
    "ProcessKilled",
    "Prot",
    "Resource",
    "SegmentationFault",
    "SyscallError",
    "Translation",
    "VmemuError",
]
__version__ = "0.1.0"
