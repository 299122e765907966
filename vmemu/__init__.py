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

from typing import TYPE_CHECKING

from vmemu.errors import (
    BusError,
    InvariantError,
    MemoryFault,
    OutOfMemory,
    ProcessKilled,
    SegmentationFault,
    SyscallError,
    TraceError,
    VmemuError,
)
from vmemu.files import File
from vmemu.ksm import KsmCounts, KsmStat
from vmemu.limits import RLIM_INFINITY, Resource
from vmemu.machine import Machine
from vmemu.process import Process
from vmemu.traces import RunResult, load_trace, save_trace
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
    Operation,
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
    "TRACE_DTYPE",
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
    "Operation",
    "OutOfMemory",
    "Overcommit",
    "Process",
    "ProcessKilled",
    "Prot",
    "Resource",
    "RunResult",
    "SegmentationFault",
    "SyscallError",
    "TraceError",
    "Translation",
    "VmemuError",
    "load_trace",
    "save_trace",
]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from vmemu.traces import TRACE_DTYPE
else:

    def __getattr__(name: str) -> object:
        """`TRACE_DTYPE`, for which NumPy is imported; importing vmemu does not do that."""
        if name != "TRACE_DTYPE":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from vmemu.traces import TRACE_DTYPE

        return TRACE_DTYPE
