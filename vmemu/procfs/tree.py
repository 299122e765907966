"""/proc of an emulated machine: what proc_pid_maps(5) and its neighbours describe, byte for byte as Linux prints it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.process import ProcessMap
from vmemu.procfs.vmstat import vmstat_text
from vmemu.types import Mapping, MappingUsage

__all__ = ["ProcFS"]

_NAME_COLUMN = 73
"""Where names begin in maps (seq_pad(), 25 + 6 * sizeof(void *))."""
_PATH = re.compile(r"(?P<pid>\d+)/(?P<file>[a-z_]+)")
_NOT_YET = (
    "smaps_rollup pagemap status stat statm cmdline environ comm io oom_score oom_score_adj limits auxv "
    "meminfo clear_refs"
).split()


class ProcFS:
    """`read(path)`: a file of the machine's /proc."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._processes = ProcessMap(kernel)

    def read(self, path: str) -> bytes:
        """The file at *path* below /proc, such as ``"7/maps"``, ``"7/smaps"``, ``"kpagecount"``, ``"kpageflags"``.

        ENOENT if there is no such file or process; NotImplementedError for files that exist on Linux and not here yet.
        """
        if not isinstance(path, str):
            raise TypeError(f"procfs: path must be a str, not {type(path).__name__}")
        name = path.removeprefix("/proc/").strip("/")
        match = _PATH.fullmatch(name)
        process = self._processes.get(int(match["pid"])) if match else None
        file = match["file"] if match else name
        if process is None and match:
            raise syscall_error("open", errno.ENOENT, f"/proc/{name}: no such process")
        if process is not None and file == "maps":
            return maps(process.maps()) if process.state != "zombie" else b""
        if process is not None and file == "smaps":
            return smaps(process.smaps()) if process.state != "zombie" else b""
        if process is None and file == "kpagecount":
            return self._kernel.core.mapcounts(0, self._kernel.npages).tobytes()
        if process is None and file == "kpageflags":
            return self._kernel.core.frame_flags(0, self._kernel.npages).tobytes()
        if process is None and file == "vmstat":
            return vmstat_text(self._kernel)
        if file in _NOT_YET:
            raise NotImplementedError(f"procfs: {file}")
        raise syscall_error("open", errno.ENOENT, f"/proc/{name}")

    def export(self, directory: str | os.PathLike[str]) -> None:
        """Writes a /proc tree. Not there yet."""
        raise NotImplementedError("procfs.export()")


def maps(mappings: Iterable[Mapping]) -> bytes:
    """/proc/PID/maps (show_map_vma())."""
    return b"".join(map(_line, mappings))


def _line(m: Mapping) -> bytes:
    major, minor = m.device
    line = f"{m.start:08x}-{m.end:08x} {m.perms} {m.offset:08x} {major:02x}:{minor:02x} {m.inode} ".encode()
    if m.name:
        line = line.ljust(_NAME_COLUMN - 1) + b" " + m.name.encode(errors="surrogateescape").replace(b"\n", b"\\012")
    return line + b"\n"


def smaps(usages: Iterable[MappingUsage]) -> bytes:
    """/proc/PID/smaps (show_smap())."""
    return b"".join(_line(usage.mapping) + _usage(usage) for usage in usages)


def _usage(u: MappingUsage) -> bytes:
    locked = u.pss if "lo" in u.mapping.flags else 0
    lines = (
        ("Size", u.mapping.size),
        ("KernelPageSize", 4096),
        ("MMUPageSize", 4096),
        ("Rss", u.rss),
        ("Pss", u.pss),
        ("Pss_Dirty", u.pss_dirty),
        ("Shared_Clean", u.shared_clean),
        ("Shared_Dirty", u.shared_dirty),
        ("Private_Clean", u.private_clean),
        ("Private_Dirty", u.private_dirty),
        ("Referenced", u.referenced),
        ("Anonymous", u.anonymous),
        ("KSM", 0),
        ("LazyFree", 0),
        ("AnonHugePages", u.anonhugepages),
        ("ShmemPmdMapped", 0),
        ("FilePmdMapped", 0),
        ("Shared_Hugetlb", 0),
        ("Private_Hugetlb", 0),
        ("Swap", 0),
        ("SwapPss", 0),
        ("Locked", locked),
    )
    text = "".join(f"{key + ':':16}{value >> 10:8} kB\n" for key, value in lines)
    text += f"THPeligible:    {u.thp_eligible:8}\n"
    return f"{text}VmFlags: {''.join(code + ' ' for code in u.mapping.flags)}\n".encode()
