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

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmemu.cgroups import Cgroup, Cgroups
    from vmemu.errors import (
        BusError,
        FaultsLost,
        InvariantError,
        KernelPanic,
        MemoryFault,
        OutOfMemory,
        ProcessKilled,
        SegmentationFault,
        SwapError,
        SyscallError,
        TraceError,
        VmemuError,
    )
    from vmemu.faultlog import FAULT_DTYPE, NO_FRAME, FaultLog
    from vmemu.ksm import KsmCounts, KsmStat
    from vmemu.limits import RLIM_INFINITY, Resource
    from vmemu.machine import Machine
    from vmemu.oom import OomCandidate, OomReport
    from vmemu.openfile import File
    from vmemu.process import Process
    from vmemu.traces import TRACE_DTYPE, RunResult, load_trace, save_trace
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
    "FAULT_DTYPE",
    "MREMAP_DONTUNMAP",
    "MREMAP_FIXED",
    "MREMAP_MAYMOVE",
    "NO_FRAME",
    "PAGE_SIZE",
    "RLIM_INFINITY",
    "TRACE_DTYPE",
    "Advice",
    "BusError",
    "ByKind",
    "Cgroup",
    "Cgroups",
    "Clone",
    "FaultCounts",
    "FaultKind",
    "FaultLog",
    "FaultsLost",
    "File",
    "ForkMode",
    "FrameStats",
    "HugePool",
    "InvariantError",
    "KernelPanic",
    "KsmCounts",
    "KsmStat",
    "Machine",
    "Map",
    "Mapping",
    "MappingUsage",
    "MemInfo",
    "MemoryFault",
    "OomCandidate",
    "OomReport",
    "Operation",
    "OutOfMemory",
    "Overcommit",
    "Process",
    "ProcessKilled",
    "Prot",
    "Resource",
    "RunResult",
    "SegmentationFault",
    "SwapError",
    "SyscallError",
    "TraceError",
    "Translation",
    "VmemuError",
    "load_trace",
    "save_trace",
]
__version__ = "0.1.0"

_HOMES = {
    "cgroups": "Cgroup Cgroups",
    "errors": "BusError FaultsLost InvariantError KernelPanic MemoryFault OutOfMemory ProcessKilled "
    "SegmentationFault SwapError SyscallError TraceError VmemuError",
    "faultlog": "FAULT_DTYPE NO_FRAME FaultLog",
    "openfile": "File",
    "ksm": "KsmCounts KsmStat",
    "limits": "RLIM_INFINITY Resource",
    "machine": "Machine",
    "oom": "OomCandidate OomReport",
    "process": "Process",
    "traces": "TRACE_DTYPE RunResult load_trace save_trace",
    "types": "MREMAP_DONTUNMAP MREMAP_FIXED MREMAP_MAYMOVE PAGE_SIZE Advice ByKind Clone FaultCounts FaultKind "
    "ForkMode FrameStats HugePool Map Mapping MappingUsage MemInfo Operation Overcommit Prot Translation",
}
"""Where the names are. A module is imported when the first of its names is asked for (PEP 562): so pytest, which loads
`vmemu.testing` and with it this, begins no later than without vmemu."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A public name, or a module of vmemu."""
        import importlib

        if name in _HOMES:
            return importlib.import_module(f"vmemu.{name}")
        for home, names in _HOMES.items():
            if name in names.split():
                found = globals()[name] = getattr(importlib.import_module(f"vmemu.{home}"), name)
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """The public names too that nobody has asked for."""
        return sorted({*globals(), *__all__})
