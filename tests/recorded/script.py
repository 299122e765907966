"""The language of the recordings (README.md): what a script's operations mean, as numbers that a system call takes.

Used by both sides of a comparison: `emulated.py` performs the operations in vmemu, a recorder performs them on a
kernel. Everything is raw integers, because scripts make mistakes on purpose. Imports nothing of vmemu.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

PAGE = 4096
ARENA = 0x100_0000_0000
"""Address of page 0 of a script: 1 TiB, aligned to 2 MiB, nothing else near it."""
ARENA_PAGES = 1024
FILE_PAGES, FILE_TAIL = 20, 1000
FAULT_AROUND = 16
"""Pages of the recording machine's fault-around window."""

Op = dict[str, Any]
State = dict[str, Any]
"""What one process shows: ``vmas``, ``pages``, ``smaps`` (README.md)."""

ADVICE = {
    "NORMAL": 0, "RANDOM": 1, "SEQUENTIAL": 2, "WILLNEED": 3, "DONTNEED": 4, "FREE": 8, "REMOVE": 9,
    "DONTFORK": 10, "DOFORK": 11, "MERGEABLE": 12, "UNMERGEABLE": 13, "HUGEPAGE": 14, "NOHUGEPAGE": 15,
    "DONTDUMP": 16, "DODUMP": 17, "WIPEONFORK": 18, "KEEPONFORK": 19, "COLD": 20, "PAGEOUT": 21,
    "POPULATE_READ": 22, "POPULATE_WRITE": 23, "DONTNEED_LOCKED": 24, "COLLAPSE": 25,
    "GUARD_INSTALL": 102, "GUARD_REMOVE": 103,
}  # fmt: skip
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE = 0x01, 0x02, 0x10, 0x20, 0x100000
MAP_FLAGS = {
    "GROWSDOWN": 0x100, "LOCKED": 0x2000, "NORESERVE": 0x4000, "POPULATE": 0x8000, "STACK": 0x20000,
    "FIXED_NOREPLACE": MAP_FIXED_NOREPLACE,
}  # fmt: skip
MREMAP_FLAGS = {"MAYMOVE": 1, "FIXED": 2, "DONTUNMAP": 4}
KINDS = {
    "anon": (MAP_PRIVATE | MAP_ANONYMOUS, None),
    "shared": (MAP_SHARED | MAP_ANONYMOUS, None),
    "file_private": (MAP_PRIVATE, "F"),
    "file_shared": (MAP_SHARED, "F"),
    "ext4_private": (MAP_PRIVATE, "E"),
    "ext4_shared": (MAP_SHARED, "E"),
}
VM_FLAGS = frozenset(("gd", "dc", "wf", "lo", "lf", "nr", "hg", "nh", "rr", "sr", "gu", "sl", "ac"))
"""The codes of smaps' VmFlags that recordings keep; the others follow from the permissions or the machine."""
SUMS = (
    "Rss",
    "Pss",
    "Shared_Clean",
    "Shared_Dirty",
    "Private_Clean",
    "Private_Dirty",
    "Anonymous",
    "LazyFree",
    "AnonHugePages",
)
"""The lines of smaps that are summed (kB) over a process's mappings in the arena."""


@functools.cache
def file_image() -> bytes:
    """The contents that files F and E start with."""
    return bytes((0xA0 + (i >> 12) + 3 * (i & 0xFFF)) & 0xFF for i in range(FILE_PAGES * PAGE + FILE_TAIL))


def address(op: Op, key: str = "page") -> int:
    """The address an operation starts at; ``misalign`` bytes off where it is wrong on purpose."""
    return ARENA + int(op.get(key, 0)) * PAGE + (int(op.get("misalign", 0)) if key == "page" else 0)


def byte_address(op: Op) -> int:
    """The address a read or write touches."""
    return ARENA + int(op["page"]) * PAGE + int(op.get("off", 0))


def length(op: Op) -> int:
    """Length in bytes: ``n`` pages, unless ``len`` says otherwise."""
    return int(op["len"] if "len" in op else op.get("n", 0) * PAGE)


def npages(op: Op) -> int:
    """Length in pages, rounded up."""
    return (length(op) + PAGE - 1) // PAGE


def prot(op: Op) -> int:
    """Protection bits of mmap and mprotect."""
    return sum(bit for letter, bit in (("r", 1), ("w", 2), ("x", 4)) if letter in op.get("prot", "rw"))


def mmap_flags(op: Op) -> int:
    """Flags of mmap. MAP_FIXED is implied, except with FIXED_NOREPLACE or ``hint``."""
    flags = KINDS[op.get("kind", "anon")][0]
    for name in op.get("flags", ()):
        flags |= MAP_FLAGS[name]
    return flags if flags & MAP_FIXED_NOREPLACE or op.get("hint") else flags | MAP_FIXED


def mmap_file(op: Op) -> str | None:
    """``"F"``, ``"E"`` or None."""
    return KINDS[op.get("kind", "anon")][1]


def mmap_offset(op: Op) -> int:
    """Offset into the file, in bytes."""
    return int(op.get("foff", 0)) * PAGE + int(op.get("foff_misalign", 0))


def mremap_flags(op: Op) -> int:
    """Flags of mremap."""
    return sum(MREMAP_FLAGS[name] for name in op.get("flags", ()))


def advice(op: Op) -> int:
    """Advice of madvise, unknown numbers included."""
    return ADVICE[op["advice"]] if isinstance(op["advice"], str) else int(op["advice"])


def returned(result: int) -> dict[str, Any]:
    """How a recording shows the address that mmap or mremap returned."""
    page = (result - ARENA) // PAGE
    return {"ret_page": page} if 0 <= page < ARENA_PAGES else {"ret": "outside-arena"}


def skipped(op: Op, alive: Collection[int]) -> dict[str, Any] | None:
    """The result of an operation that cannot be performed because its slot is dead (or, for a fork's child, taken)."""
    if op["p"] not in alive:
        return {"skipped": "dead"}
    if "child" in op and op["child"] in alive:
        return {"skipped": "slot busy"}
    return None


def text(op: Op) -> str:
    """An operation on one line."""
    fields = " ".join(
        f"{key}={','.join(value) if isinstance(value, list) else value}"
        for key, value in op.items()
        if key not in ("op", "p")
    )
    return f"p{op['p']} {op['op']} {fields}".rstrip()


@dataclasses.dataclass(frozen=True)
class Expected:
    """One recorded step: the operation, its result, and every live process afterwards (slot -> state)."""

    index: int
    op: Op
    result: dict[str, Any]
    states: dict[int, State]


def expected(recording: dict[str, Any]) -> list[Expected]:
    """The steps of a recording with the differences of ``procs`` applied."""
    steps: list[Expected] = []
    states: dict[int, State] = {}
    for index, (op, step) in enumerate(zip(recording["ops"], recording["steps"], strict=True)):
        states = dict(states)
        for slot, state in step["procs"].items():
            if state is None:
                states.pop(int(slot), None)
            else:
                states[int(slot)] = state
        steps.append(Expected(index, op, step["res"], states))
    return steps


class Run(Protocol):
    """A machine that performs a program, and what shows of it."""

    @property
    def alive(self) -> Collection[int]: ...  # slots
    def do(self, op: Op) -> dict[str, Any]: ...  # result
    def observe(self) -> dict[int, State]: ...  # of every live process, by slot


def record(program: dict[str, Any], run: Run) -> dict[str, Any]:
    """*program* (``name``, ``ops``, ...) with the ``steps`` that a machine makes of it: a recording."""
    steps: list[dict[str, Any]] = []
    states: dict[int, State] = {}
    for index, op in enumerate(program["ops"]):
        before = states
        result = skipped(op, run.alive)
        if result is None:
            result = run.do(op)
            states = run.observe()
        changed: dict[str, State | None] = {
            str(slot): state for slot, state in states.items() if before.get(slot) != state
        }
        changed |= {str(slot): None for slot in before.keys() - states.keys()}
        steps.append({"i": index, "res": result, "procs": changed})
    return {**program, "settled": True, "steps": steps}


def load(path: str | Path) -> list[dict[str, Any]]:
    """The recordings of a file of JSON lines, gzipped or not, without its first line (``meta``)."""
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="ascii") as lines:
        return [recording for recording in map(json.loads, lines) if "ops" in recording]


def tells_eager_apart(program: dict[str, Any]) -> bool:
    """Memory advised MADV_FREE may be gone at any time; MADV_PAGEOUT takes what nobody shares, and an eager fork shares
    nothing. So what such a program finds there depends on the fork mode, and may."""
    return {"FREE", "PAGEOUT"} <= {op.get("advice") for op in program["ops"]}
