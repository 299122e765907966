"""What the processes of a script show, in the form recordings have: mappings, pages with labelled frames, smaps sums.

The rule is one for every machine, emulated or real: it needs only what /proc shows (maps, pagemap, kpagecount,
kpageflags, smaps) and checksums that the process computes itself. Imports nothing of vmemu.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from recorded import script
from recorded.script import ARENA, PAGE, SUMS, VM_FLAGS, Op, State

PRESENT, SWAPPED, FILE, GUARD, EXCLUSIVE = 1 << 63, 1 << 62, 1 << 61, 1 << 58, 1 << 56  # pagemap
PFN = (1 << 55) - 1
KPF_ANON, KPF_COMPOUND, KPF_ZERO = 1 << 12, 3 << 15, 1 << 24  # kpageflags
_ZEROS = bytes(PAGE)


class Vma(NamedTuple):
    """One mapping inside the arena, as maps and smaps show it."""

    start: int
    """First page, counted from the arena's start."""
    end: int
    perms: str
    inode: int
    offset: int
    """Offset into the file in pages."""
    flags: Sequence[str]
    """smaps' VmFlags."""
    sums: dict[str, int] | None
    """smaps' lines in kB; None where nobody asked for them."""


class View(Protocol):
    """One live process, seen through /proc."""

    def mappings(self) -> list[Vma]: ...
    def pagemap(self, npages: int) -> Sequence[int]: ...  # of the arena's first npages
    def checksums(self, pages: Sequence[int]) -> Iterable[str]: ...  # `checksum` of present, readable pages


def checksum(page: bytes | memoryview) -> str:
    """``z`` for a page of zeros, else its CRC-32 in hexadecimal."""
    return "z" if page == _ZEROS else f"{zlib.crc32(page):08x}"


class Observer:
    """Names frames and shared objects through the life of one script.

    ``A<n>`` names an anonymous frame as long as it stays mapped anywhere: the same label later is the same frame
    (nothing was copied), the same label in two processes is a shared frame. Numbers are given by slot, then page.
    """

    def __init__(self, frame: Callable[[int], tuple[int, int]], files: dict[int, str]) -> None:
        """*frame*: pfn -> (kpagecount, kpageflags). *files*: inode -> "F" or "E"."""
        self._frame = frame
        self._objects = dict(files)
        self._shared = 0
        self._labels: dict[int, str] = {}
        self._given = 0
        self.states: dict[int, State] = {}

    def before(self, op: Op) -> None:
        """To be called before an operation is performed.

        A populating mmap may free frames and be given the same ones again within the one call: their labels go first.
        """
        if op["op"] == "mmap" and {"POPULATE", "LOCKED"} & set(op.get("flags", ())):
            self._forget(op["p"], range(op["page"], op["page"] + op.get("n", 0)))

    def after(self, op: Op, result: dict[str, Any]) -> None:
        """To be called after an operation: the same for what populates because of mlockall or a locked mapping, an mmap
        or a growing mremap over something.
        """
        if op["op"] == "mmap" and "ret_page" in result:
            self._forget(op["p"], range(op["page"], op["page"] + script.npages(op)))
        if op["op"] == "mremap" and "ret_page" in result and "FIXED" in op["flags"] and op["n2"] > script.npages(op):
            self._forget(op["p"], range(op["to"], op["to"] + op["n2"]))

    def _forget(self, slot: int, pages: range) -> None:
        """Drop the labels of frames that only *pages* of this process map."""
        state = self.states.get(slot)
        entries = state["pages"].items() if state else ()
        names = {entry[0] for page, entry in entries if int(page) in pages and entry[0][0] == "A" and entry[1] == 1}
        self._labels = {pfn: name for pfn, name in self._labels.items() if name not in names}

    def observe(self, views: Mapping[int, View]) -> dict[int, State]:
        """The state of every live process; *views* by slot."""
        live: set[int] = set()
        self.states = {slot: self._state(views[slot], live) for slot in sorted(views)}
        self._labels = {pfn: name for pfn, name in self._labels.items() if pfn in live}
        return self.states

    def _state(self, view: View, live: set[int]) -> State:
        vmas = view.mappings()
        entries = view.pagemap(max((vma.end for vma in vmas), default=0))
        lines: list[list[Any]] = []
        pages: dict[str, list[Any]] = {}
        readable: list[int] = []
        for vma in vmas:
            tag = self._tag(vma.inode)
            flags = [flag for flag in vma.flags if flag in VM_FLAGS]
            lines.append([vma.start, vma.end, vma.perms, tag, vma.offset if tag != "anon" else 0, flags])
            for page in range(vma.start, vma.end):
                entry = entries[page]
                if entry & PRESENT:
                    pages[str(page)] = self._page(entry, f"{tag}:{vma.offset + page - vma.start}", live)
                    if "r" in vma.perms or "w" in vma.perms:
                        readable.append(page)
                elif entry & GUARD:
                    pages[str(page)] = ["guard"]
                elif entry & SWAPPED:
                    pages[str(page)] = ["swap"]
        for page, value in zip(readable, view.checksums(readable), strict=True):
            pages[str(page)].append(value)
        state: State = {"vmas": lines, "pages": pages}
        if all(vma.sums is not None for vma in vmas):
            state["smaps"] = {key: sum(vma.sums.get(key, 0) for vma in vmas if vma.sums) for key in SUMS}
        return state

    def _tag(self, inode: int) -> str:
        if not inode:
            return "anon"
        if inode not in self._objects:
            self._objects[inode] = f"S{self._shared}"
            self._shared += 1
        return self._objects[inode]

    def _page(self, entry: int, cached: str, live: set[int]) -> list[Any]:
        pfn = entry & PFN
        count, flags = self._frame(pfn)
        if flags & KPF_ZERO:
            label = "Z"
        elif flags & KPF_ANON:
            if pfn not in self._labels:
                self._labels[pfn] = f"A{self._given}"
                self._given += 1
            label = self._labels[pfn]
            live.add(pfn)
        else:
            label = cached
        # pagemap must agree with kpageflags and kpagecount; where it does not, the label says so and matches nothing
        if label != "Z" and bool(entry & FILE) != (label[0] != "A"):
            label += " but pagemap bit 61 is wrong"
        if not flags & KPF_COMPOUND and bool(entry & EXCLUSIVE) != (label != "Z" and count == 1):
            label += " but pagemap bit 56 is wrong"
        return [label, count]


def offset(address: int) -> int:
    """An address as a page number of the arena."""
    return (address - ARENA) // PAGE
