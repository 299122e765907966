"""An address space on paper: where mappings would go, before any of them is made.

execve and ld.so map, overwrite and unmap; the loader follows them here and hands over only what is left. The rules
are those of mmap(2) on x86-64 with the usual top-down layout; there are never more than a few hundred mappings, so
everything is a plain list in the order of mapping.
"""

from __future__ import annotations

import dataclasses
import errno
from dataclasses import dataclass

from vmemu.alignment import place_huge
from vmemu.types import PAGE_SIZE, Prot

__all__ = [
    "STACK_GUARD_GAP",
    "TASK_SIZE",
    "MapError",
    "Segment",
    "Sketch",
    "page_down",
    "page_up",
    "prot_of",
]

TASK_SIZE = 0x7FFF_FFFF_F000
"""End of user addresses: 2^47 less a guard page."""
STACK_GUARD_GAP = 256 * PAGE_SIZE
"""Bytes kept free below a stack (stack_guard_gap)."""
MMAP_MIN = 65536
"""Below it no hint is taken (mmap_min_addr)."""
_BOTTOM = TASK_SIZE // 3 + PAGE_SIZE - 1 & -PAGE_SIZE
_WRAP = 0xFFFF_FFFF_FFFF_FFFF


def page_down(address: int) -> int:
    """*address* rounded down to a page."""
    return address & -PAGE_SIZE


def page_up(address: int) -> int:
    """*address* rounded up to a page, modulo 2^64 as the kernel computes."""
    return (address + PAGE_SIZE - 1) & -PAGE_SIZE & _WRAP


_PROTS = [
    (Prot.READ if flags & 4 else Prot.NONE)
    | (Prot.WRITE if flags & 2 else Prot.NONE)
    | (Prot.EXEC if flags & 1 else Prot.NONE)
    for flags in range(8)
]


def prot_of(flags: int) -> Prot:
    """The protection that a program header's p_flags ask for."""
    return _PROTS[flags & 7]


class MapError(Exception):
    """A mapping cannot be made: `.number` is the errno of mmap(2), the text says why."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


@dataclass(frozen=True, slots=True)
class Segment:
    """One private mapping to be made: [start, end), page aligned."""

    start: int
    end: int
    prot: Prot
    path: str | None
    """The file as /proc/PID/maps shows it; None for anonymous memory."""
    offset: int
    """Offset into the file in bytes, page aligned; 0 for anonymous memory."""
    role: str
    """``"program"``, ``"interpreter"``, ``"library"``; ``"bss"`` (anonymous, follows one of them); ``"stack"``."""
    growsdown: bool = False

    @property
    def size(self) -> int:
        """Bytes mapped."""
        return self.end - self.start

    def part(self, start: int, end: int) -> Segment:
        """The piece [start, end) of this segment, which must lie in it."""
        offset = self.offset + start - self.start if self.path is not None else 0
        return dataclasses.replace(self, start=start, end=end, offset=offset)


class Sketch:
    """The mappings made so far, and the rules for making another."""

    def __init__(self, mmap_base: int, huge_align: bool) -> None:
        """*mmap_base*: upper end of the area for mappings without an address; *huge_align*: see `Layout`."""
        self.segments: list[Segment] = []
        """Disjoint, in the order of mapping."""
        self.zero: list[tuple[int, int]] = []
        """Bytes [start, end) that are zeroed by writing, and not mapped over later."""
        self.protected: list[tuple[int, int, Prot]] = []
        """[start, end) and protection of what is to be mprotected when all is mapped and written."""
        self.mmap_base = mmap_base
        self.huge_align = huge_align

    def overlaps(self, start: int, end: int) -> bool:
        """Whether anything is mapped in [start, end)."""
        return any(segment.start < end and start < segment.end for segment in self.segments)

    def unmap(self, start: int, end: int) -> None:
        """munmap: what overlaps [start, end) is cut away."""
        if start >= end or not self.overlaps(start, end):
            return
        self.zero = [(first, last) for first, last in self.zero if last <= start or end <= first]
        left: list[Segment] = []
        for segment in self.segments:
            if segment.end <= start or end <= segment.start:
                left.append(segment)
                continue
            if segment.start < start:
                left.append(segment.part(segment.start, start))
            if end < segment.end:
                left.append(segment.part(end, segment.end))
        self.segments = left

    def put(self, segment: Segment) -> None:
        """Map *segment* in place of whatever is there (MAP_FIXED)."""
        self.unmap(segment.start, segment.end)
        self.segments.append(segment)

    def protect(self, start: int, end: int, prot: Prot) -> None:
        """mprotect: what is mapped in [start, end) gets *prot*; segments are split where needed, in place."""
        changed: list[Segment] = []
        for segment in self.segments:
            low, high = max(start, segment.start), min(end, segment.end)
            if low >= high or segment.prot == prot:
                changed.append(segment)
                continue
            if segment.start < low:
                changed.append(segment.part(segment.start, low))
            changed.append(dataclasses.replace(segment.part(low, high), prot=prot))
            if high < segment.end:
                changed.append(segment.part(high, segment.end))
        self.segments = changed

    def place(self, length: int, *, hint: int = 0, file_offset: int | None = None) -> int:
        """An address for *length* bytes (whole pages) without MAP_FIXED: at *hint* if free, else the highest hole.

        *file_offset* is given for a file: with `huge_align` a piece of 2 MiB or more of it is placed so that huge
        pages fit (thp_get_unmapped_area). Raises MapError with ENOMEM.
        """
        if length > TASK_SIZE - PAGE_SIZE:
            raise MapError(errno.ENOMEM, f"{length:#x} bytes are more than the address space has")
        hint = page_down(hint)
        if hint:
            hint = max(hint, MMAP_MIN)
        found = None
        if file_offset is not None and self.huge_align:
            found = place_huge(self._fit, hint, length, file_offset)
        if found is None:
            found = self._fit(hint, length)
        if found is None:
            raise MapError(errno.ENOMEM, f"no hole of {length:#x} bytes is left")
        return found

    def _fit(self, hint: int, length: int) -> int | None:
        """arch_get_unmapped_area_topdown: *hint* if *length* bytes are free there, else the highest hole."""
        if hint and hint + length <= TASK_SIZE and not self._near(hint, hint + length):
            return hint
        return self._hole(length)

    def _near(self, start: int, end: int) -> bool:
        """Whether something is mapped in [start, end) or a stack begins within its guard gap above."""
        return any(self._reach(segment) < end and start < segment.end for segment in self.segments)

    @staticmethod
    def _reach(segment: Segment) -> int:
        return segment.start - STACK_GUARD_GAP if segment.growsdown else segment.start

    def _hole(self, length: int) -> int | None:
        """vm_unmapped_area: the highest hole below mmap_base, or failing that the lowest above the old base."""
        taken = sorted((self._reach(segment), segment.end) for segment in self.segments)
        high = self.mmap_base
        for start, end in reversed(taken):
            if end < high:
                if high - end >= length:
                    return high - length
                high = start
            else:
                high = min(high, start)
        if high - PAGE_SIZE >= length:
            return high - length
        low = _BOTTOM
        for start, end in taken:
            if start - low >= length:
                return low
            low = max(low, end)
        return low if TASK_SIZE - low >= length else None

    def map(
        self,
        address: int,
        length: int,
        prot: Prot,
        path: str | None,
        offset: int,
        role: str,
        *,
        fixed: bool = False,
        replace: bool = True,
    ) -> int:
        """mmap of a private mapping; returns its address. *length* is in whole pages.

        *fixed* is MAP_FIXED, with *replace* false MAP_FIXED_NOREPLACE. Raises MapError with mmap's errno.
        """
        if length == 0:
            raise MapError(errno.ENOMEM, "a length that wraps around")
        if path is not None:
            if offset % PAGE_SIZE:
                raise MapError(errno.EINVAL, "address and file offset differ within the page")
            if offset < 0 or offset + length > 0x7FFF_FFFF_FFFF_FFFF:
                raise MapError(errno.EOVERFLOW, f"file offset {offset:#x} is more than a file can have")
        if fixed:
            if length > TASK_SIZE or address > TASK_SIZE - length:
                raise MapError(errno.ENOMEM, f"[{address:#x}, {address + length:#x}) is outside the address space")
            if not replace and self.overlaps(address, address + length):
                raise MapError(errno.EEXIST, f"[{address:#x}, {address + length:#x}) is taken")
        else:
            address = self.place(length, hint=address, file_offset=offset if path is not None else None)
        self.put(Segment(address, address + length, prot, path, offset, role))
        return address
