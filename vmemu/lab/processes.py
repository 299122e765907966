"""Processes as files of /proc tell of them: of an exported tree, or of any other.

What a file does not say, because it is not there or may not be read, is None.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pwd
import re
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from vmemu.errors import syscall_error
from vmemu.lab import bomb
from vmemu.types import PAGE_SIZE

__all__ = ["Memory", "ProcessRow", "Snapshot", "read", "sample"]

SAMPLE_GENERATIONS = 3
"""Of the workload that is shown when no tree is given: eight processes."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process; memory in bytes."""

    pid: int
    ppid: int
    uid: int
    """Effective."""
    user: str
    state: str
    """One letter, as ps has it."""
    name: str
    args: str
    """The command line, words separated by blanks; the name in brackets if there is none."""
    vsz: int
    rss: int
    shr: int
    """Resident page cache and shared memory."""
    pss: int | None
    uss: int | None
    swap: int | None
    minflt: int
    majflt: int
    oom_score: int | None
    oom_score_adj: int | None
    start_seconds: float
    """Since boot; of an exported tree on the machine's own clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """/proc/meminfo, in bytes."""

    total: int
    free: int
    available: int
    cached: int
    anon: int
    shmem: int
    page_tables: int
    swap_total: int
    swap_free: int
    committed: int
    commit_limit: int

    @property
    def used(self) -> int:
        """All that is neither free nor page cache."""
        return self.total - self.free - self.cached


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """All processes in order of their pids, and the machine's memory."""

    source: str
    uptime_seconds: float
    memory: Memory
    processes: list[ProcessRow]

    def states(self, letters: str) -> int:
        """How many are in one of these states."""
        return sum(row.state in letters for row in self.processes)


def sample(look: Callable[[Snapshot], None], seed: int) -> None:
    """Shows *look* a small workload: a shell forked for three generations, each process writing some of its memory."""
    with tempfile.TemporaryDirectory(prefix="vmemu-") as directory:
        tree = os.path.join(directory, "proc")
        bomb.run(memory="64MiB", generations=SAMPLE_GENERATIONS, dirty=8, seed=seed, procfs=tree)
        look(dataclasses.replace(read(tree), source="a shell forked for three generations"))


def read(directory: str) -> Snapshot:
    """The processes of a tree; those that end meanwhile are left out. Raises SyscallError: ENOENT, ENOTDIR, EACCES,
    EINVAL for a directory that is no /proc."""
    top = Path(directory)
    try:
        names = os.listdir(top)
        memory = _memory(_values(top / "meminfo"))
        uptime = float((top / "uptime").read_text().split()[0])
    except OSError as error:
        number = error.errno or errno.EIO
        if number == errno.ENOENT and top.is_dir():
            raise syscall_error("open", errno.EINVAL, f"{directory} is not a tree of /proc") from None
        raise syscall_error("open", number, directory) from None
    except (KeyError, ValueError, IndexError):
        raise syscall_error("open", errno.EINVAL, f"{directory} is not a tree of /proc") from None
    rows = [_row(top / name, int(name)) for name in names if name.isdigit()]
    found = sorted((row for row in rows if row is not None), key=lambda row: row.pid)
    return Snapshot(directory, uptime, memory, found)


def _row(at: Path, pid: int) -> ProcessRow | None:
    try:
        head, _, tail = (at / "stat").read_bytes().rpartition(b") ")
        fields = tail.split()
        uid = int(_line(at / "status", "Uid").split()[1])
        statm = [int(n) * PAGE_SIZE for n in (at / "statm").read_text().split()]
    except (OSError, ValueError, IndexError):
        return None
    name = os.fsdecode(head.partition(b" (")[2])
    words = _optional(at / "cmdline").replace(b"\0", b" ").rstrip(b" ")
    rollup = _values(at / "smaps_rollup")
    own = [rollup[key] for key in ("Private_Clean", "Private_Dirty") if key in rollup]
    alive = fields[0] not in (b"Z", b"X")
    return ProcessRow(
        pid=pid,
        ppid=int(fields[1]),
        uid=uid,
        user=_user(uid),
        state=fields[0].decode(),
        name=name,
        args=os.fsdecode(words) or (f"[{name}]" if alive else f"[{name}] <defunct>"),
        vsz=statm[0],
        rss=statm[1],
        shr=statm[2],
        pss=rollup.get("Pss") if alive else 0,
        uss=(sum(own) if len(own) == 2 else None) if alive else 0,
        swap=rollup.get("Swap") if alive else 0,
        minflt=int(fields[7]),
        majflt=int(fields[9]),
        oom_score=_number(at / "oom_score"),
        oom_score_adj=_number(at / "oom_score_adj"),
        start_seconds=int(fields[19]) / 100,
    )


def _memory(meminfo: dict[str, int]) -> Memory:
    return Memory(
        total=meminfo["MemTotal"],
        free=meminfo["MemFree"],
        available=meminfo["MemAvailable"],
        cached=meminfo["Buffers"] + meminfo["Cached"] + meminfo["SReclaimable"],
        anon=meminfo["AnonPages"],
        shmem=meminfo["Shmem"],
        page_tables=meminfo["PageTables"],
        swap_total=meminfo["SwapTotal"],
        swap_free=meminfo["SwapFree"],
        committed=meminfo["Committed_AS"],
        commit_limit=meminfo["CommitLimit"],
    )


def _optional(path: Path) -> bytes:
    """What is in a file, nothing if it can't be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _values(path: Path) -> dict[str, int]:
    """The `Key: n kB` lines of a file, in bytes; none if it can't be read."""
    lines = re.findall(rb"^(\S+):\s+(\d+) kB$", _optional(path), re.MULTILINE)
    return {key.decode(): int(value) << 10 for key, value in lines}


def _line(path: Path, key: str) -> str:
    """What follows `Key:` in a file."""
    found = re.search(rf"^{key}:(.*)$".encode(), path.read_bytes(), re.MULTILINE)
    if found is None:
        raise ValueError(key)
    return found[1].decode()


def _number(path: Path) -> int | None:
    text = _optional(path).strip()
    return int(text) if text else None


@lru_cache(256)
def _user(uid: int) -> str:
    """Name of a user of this host, the number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
