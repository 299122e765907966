"""The border: the only module that imports `_core`. Handles, buffers and one funnel for error codes; no policy.

A `Core` is one machine in C. Its methods are the functions of csrc/vmemu_cdef.h with Python values for out-parameters;
what they do, require and return is documented there and not repeated here. cffi drops the GIL around every
call, and the core takes its own lock.
"""

from __future__ import annotations

import array
import errno
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vmemu._core import ffi, lib
from vmemu.errors import InvariantError, OutOfMemory, VmemuError, syscall_error
from vmemu.types import FaultCounts, FaultKind

__all__ = ["Closed", "Core", "Trap", "Vma", "byte_view", "constants"]

NWORDS: int = lib.VMEMU_NWORDS
_KINDS: int = lib.VMEMU_NKINDS
_COUNTS = f"uint64_t[{_KINDS}]"
_WORDS = f"uint64_t[{NWORDS}]"
_EVENT_COUNTS = f"uint64_t[{lib.VMEMU_NEVENTS}]"
_EVENTS = tuple(
    name.removeprefix("VMEMU_EV_").lower()
    for _, name in sorted(ffi.typeof("enum vmemu_event").elements.items())
    if name != "VMEMU_NEVENTS"
)
_BATCH = 64


class constants:  # noqa: N801 - a namespace of the C constants, not a type to instantiate
    """The C constants that Python uses, under their own names without the prefix."""

    TRAP_FAULT: int = lib.VMEMU_TRAP_FAULT
    TRAP_PAGE: int = lib.VMEMU_TRAP_PAGE
    TRAP_STACK: int = lib.VMEMU_TRAP_STACK
    TRAP_PAUSE: int = lib.VMEMU_TRAP_PAUSE
    READ: int = lib.VMEMU_READ
    WRITE: int = lib.VMEMU_WRITE
    FETCH: int = lib.VMEMU_FETCH
    GUP_WRITE: int = lib.VMEMU_GUP_WRITE
    OPT_ZERO_PAGE: int = lib.VMEMU_OPT_ZERO_PAGE
    OPT_REUSE: int = lib.VMEMU_OPT_REUSE
    OPT_CONTENTS: int = lib.VMEMU_OPT_CONTENTS
    OPT_THP_MADVISE: int = lib.VMEMU_OPT_THP_MADVISE
    OPT_THP_ALWAYS: int = lib.VMEMU_OPT_THP_ALWAYS
    OBJ_SHMEM: int = lib.VMEMU_OBJ_SHMEM
    OBJ_FILE: int = lib.VMEMU_OBJ_FILE
    OBJ_WRITENOTIFY: int = lib.VMEMU_OBJ_WRITENOTIFY
    OBJ_HUGETLB: int = lib.VMEMU_OBJ_HUGETLB
    OBJ_GIANT: int = lib.VMEMU_OBJ_GIANT
    OBJ_RESERVE: int = lib.VMEMU_OBJ_RESERVE
    OBJ_ACCOUNT: int = lib.VMEMU_OBJ_ACCOUNT
    VM_READ: int = lib.VMEMU_VM_READ
    VM_WRITE: int = lib.VMEMU_VM_WRITE
    VM_EXEC: int = lib.VMEMU_VM_EXEC
    VM_SHARED: int = lib.VMEMU_VM_SHARED
    VM_MAYREAD: int = lib.VMEMU_VM_MAYREAD
    VM_MAYWRITE: int = lib.VMEMU_VM_MAYWRITE
    VM_MAYEXEC: int = lib.VMEMU_VM_MAYEXEC
    VM_MAYSHARE: int = lib.VMEMU_VM_MAYSHARE
    VM_GROWSDOWN: int = lib.VMEMU_VM_GROWSDOWN
    VM_MAYBE_GUARD: int = lib.VMEMU_VM_MAYBE_GUARD
    VM_LOCKED: int = lib.VMEMU_VM_LOCKED
    VM_SEQ_READ: int = lib.VMEMU_VM_SEQ_READ
    VM_RAND_READ: int = lib.VMEMU_VM_RAND_READ
    VM_DONTCOPY: int = lib.VMEMU_VM_DONTCOPY
    VM_DONTEXPAND: int = lib.VMEMU_VM_DONTEXPAND
    VM_LOCKONFAULT: int = lib.VMEMU_VM_LOCKONFAULT
    VM_ACCOUNT: int = lib.VMEMU_VM_ACCOUNT
    VM_NORESERVE: int = lib.VMEMU_VM_NORESERVE
    VM_HUGETLB: int = lib.VMEMU_VM_HUGETLB
    VM_GIANT: int = lib.VMEMU_VM_GIANT
    VM_POOL_OWNER: int = lib.VMEMU_VM_POOL_OWNER
    VM_SYNC: int = lib.VMEMU_VM_SYNC
    VM_WIPEONFORK: int = lib.VMEMU_VM_WIPEONFORK
    VM_DONTDUMP: int = lib.VMEMU_VM_DONTDUMP
    VM_SOFTDIRTY: int = lib.VMEMU_VM_SOFTDIRTY
    VM_HUGEPAGE: int = lib.VMEMU_VM_HUGEPAGE
    VM_NOHUGEPAGE: int = lib.VMEMU_VM_NOHUGEPAGE
    VM_MERGEABLE: int = lib.VMEMU_VM_MERGEABLE
    VM_SEALED: int = lib.VMEMU_VM_SEALED
    VM_DROPPABLE: int = lib.VMEMU_VM_DROPPABLE


class Vma(NamedTuple):
    """One mapping as the core has it; `pgoff` in pages, the rest in bytes."""

    start: int
    end: int
    pgoff: int
    flags: int
    anon: int
    object: int
    tag: int


class Trap(NamedTuple):
    """Where and why an access stopped; `reason` 0 if it did not."""

    reason: int
    done: int
    address: int = 0
    page: int = 0
    """Index of the missing page in `object`."""
    object: int = 0
    kind: int = 0


def byte_view(data: Any) -> memoryview:
    """The bytes of any contiguous buffer. TypeError or ValueError for what is none, or holds references."""
    view = memoryview(data)
    if "O" in view.format:
        raise TypeError("data must be bytes, not Python objects")
    return view.cast("B")


def _fail(rc: int, call: str) -> None:
    if rc == -errno.ENOMEM:
        raise OutOfMemory(errno.ENOMEM, f"{call}: Cannot allocate memory (no frame is left)")
    if rc == -errno.EBADF:  # ended by another thread since it was looked up
        raise syscall_error(call, errno.ESRCH, "the process has exited")
    raise syscall_error(call, -rc)


def _trap(reason: int, trap: Any) -> Trap:
    if reason < 0:
        _fail(reason, "access")
    return Trap(reason, trap.done, trap.address, trap.index, trap.object, trap.kind)


def _vma(v: Any) -> Vma:
    return Vma(v.start, v.end, v.pgoff, v.flags, v.anon, v.object, v.tag)


class Core:
    """One machine in C. When the last reference to its handle goes, so does the machine: a call under way
    keeps it alive."""

    __slots__ = ("_m",)

    def __init__(self, nframes: int, options: int, around: int) -> None:
        handle = lib.vmemu_machine_new(nframes, options, around)
        if handle == ffi.NULL:
            raise OutOfMemory(errno.ENOMEM, f"the host has no address space for a machine of {nframes} frames")
        self._m = ffi.gc(handle, lib.vmemu_machine_free)

    # ---- machine ----

    def info(self) -> Any:
        """struct vmemu_machine_info."""
        out = ffi.new("struct vmemu_machine_info *")
        lib.vmemu_machine_info(self._m, out)
        return out

    def machine_faults(self) -> FaultCounts:
        """Faults of all processes since boot."""
        out = ffi.new(_COUNTS)
        lib.vmemu_machine_faults(self._m, out)
        return FaultCounts(*out)

    def events(self) -> dict[str, int]:
        """Counts since boot by the name of enum vmemu_event, without its prefix and in lower case."""
        out = ffi.new(_EVENT_COUNTS)
        lib.vmemu_machine_events(self._m, out)
        return dict(zip(_EVENTS, out, strict=True))

    def zero_page(self) -> int:
        """Takes a frame for the zero page and returns its pfn."""
        out = ffi.new("uint64_t *")
        rc = lib.vmemu_machine_zero_page(self._m, out)
        if rc:
            _fail(rc, "zero_page")
        return int(out[0])

    def collapse(self, sid: int, address: int) -> int:
        """Makes a huge page of 2 MiB -> 0 or the errno that says why not."""
        rc: int = lib.vmemu_space_collapse(self._m, sid, address)
        if rc == -errno.EBADF:
            _fail(rc, "madvise")
        return -rc

    def no_thp(self, sid: int, off: int, call: str) -> bool:
        """Transparent huge pages of a space switched off (1) or on (0), or as they are (-1) -> whether they are off."""
        rc: int = lib.vmemu_space_no_thp(self._m, sid, off)
        if rc < 0:
            _fail(rc, call)
        return bool(rc)

    def pool_grow(self, giant: bool) -> bool:
        """Sets one more huge page aside; False if there is no room for it."""
        return not lib.vmemu_pool_grow(self._m, giant)

    def pool_info(self, giant: bool) -> tuple[int, int, int]:
        """(total, free, reserved) huge pages of a pool."""
        out = ffi.new("struct vmemu_pool *")
        lib.vmemu_pool_info(self._m, giant, out)
        return out.total, out.free, out.reserved

    def fail(self, nth: int) -> None:
        """The nth allocation from now fails once."""
        lib.vmemu_machine_fail(self._m, nth)

    def check(self) -> None:
        """Raises InvariantError with what is wrong."""
        message = ffi.new("char[512]")
        rc = lib.vmemu_machine_check(self._m, message, 512)
        if rc == -errno.EUCLEAN:
            raise InvariantError(ffi.string(message).decode())
        if rc:
            _fail(rc, "verify")

    def mapcounts(self, first: int, n: int) -> array.array[int]:
        """Mapcounts of the frames [first, first + n)."""
        return self._per_frame(lib.vmemu_machine_mapcounts, first, n)

    def frame_flags(self, first: int, n: int) -> array.array[int]:
        """Flags of frames as kpageflags has them."""
        return self._per_frame(lib.vmemu_machine_frame_flags, first, n)

    def _per_frame(self, function: Any, first: int, n: int) -> array.array[int]:
        out = array.array("Q", bytes(8 * n))
        rc = function(self._m, first, n, ffi.from_buffer("uint64_t[]", out))
        if rc:
            _fail(rc, "kpagecount")
        return out

    def count_frames(self, with_: int, without: int) -> int:
        """Frames that have all of some flags and none of others."""
        out = ffi.new("uint64_t *")
        rc = lib.vmemu_machine_count_frames(self._m, with_, without, out)
        if rc:
            _fail(rc, "kpageflags")
        return int(out[0])

    def whole(self) -> int:
        """Free frames in blocks that are free as a whole."""
        out = ffi.new("uint64_t *")
        lib.vmemu_machine_whole(self._m, out)
        return int(out[0])

    def sharing(self) -> tuple[int, int]:
        """(frames mapped, frames mapped more than once)."""
        mapped, shared = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        rc = lib.vmemu_machine_sharing(self._m, mapped, shared)
        if rc:
            _fail(rc, "sharing")
        return int(mapped[0]), int(shared[0])

    # ---- spaces ----

    def space_new(self, call: str) -> int:
        """A new, empty space."""
        out = ffi.new("uint32_t *")
        rc = lib.vmemu_space_new(self._m, out)
        if rc:
            _fail(rc, call)
        return int(out[0])

    def space_free(self, space: int) -> None:
        """Ends a space."""
        lib.vmemu_space_free(self._m, space)

    def space_fork(self, space: int, mode: int, n: int) -> Sequence[int]:
        """Ids of n children; all or none."""
        if n == 1:
            out = ffi.new("uint32_t *")
            rc = lib.vmemu_space_fork(self._m, space, mode, 1, out)
        else:
            ids = array.array("I", bytes(4 * n))
            rc = lib.vmemu_space_fork(self._m, space, mode, n, ffi.from_buffer("uint32_t[]", ids))
        if rc:
            _fail(rc, "fork")
        return (out[0],) if n == 1 else ids

    def space_abandon(self, space: int) -> None:
        """Ends a space that came to nothing."""
        lib.vmemu_space_abandon(self._m, space)

    def space_info(self, space: int) -> Any:
        """struct vmemu_space_info."""
        out = ffi.new("struct vmemu_space_info *")
        lib.vmemu_space_info(self._m, space, out)
        return out

    def sums(self, space: int) -> Any:
        """struct vmemu_sums."""
        out = ffi.new("struct vmemu_sums *")
        lib.vmemu_space_sums(self._m, space, out)
        return out

    def faults(self, space: int) -> tuple[int, ...]:
        """Faults counted on a space, by kind."""
        out = ffi.new(_COUNTS)
        lib.vmemu_space_faults(self._m, space, out)
        return tuple(out)

    def set_faults(self, space: int, counts: Sequence[int]) -> None:
        """Sets what `faults` returns."""
        lib.vmemu_space_set_faults(self._m, space, ffi.new(_COUNTS, list(counts)))

    def words(self, space: int) -> list[int]:
        """The caller's words of a space."""
        out = ffi.new(_WORDS)
        lib.vmemu_space_words(self._m, space, out)
        return list(out)

    def set_words(self, space: int, words: Sequence[int]) -> None:
        """Sets all of them."""
        lib.vmemu_space_set_words(self._m, space, ffi.new(_WORDS, list(words)))

    def find(self, space: int, address: int) -> Vma | None:
        """First mapping that ends above address."""
        out = ffi.new("struct vmemu_vma *")
        return None if lib.vmemu_space_find(self._m, space, address, out) else _vma(out)

    def find_before(self, space: int, address: int) -> Vma | None:
        """Last mapping that ends at or below address."""
        out = ffi.new("struct vmemu_vma *")
        return None if lib.vmemu_space_find_before(self._m, space, address, out) else _vma(out)

    def vmas(self, space: int, start: int, end: int) -> Iterator[Vma]:
        """The mappings that overlap [start, end), each read when it is asked for."""
        out = ffi.new(f"struct vmemu_vma[{_BATCH}]")
        while start < end:
            n = lib.vmemu_space_vmas(self._m, space, start, out, _BATCH)
            for i in range(n):
                if out[i].start >= end:
                    return
                yield _vma(out[i])
            if n < _BATCH:
                return
            start = out[n - 1].end

    def hole(self, space: int, low: int, high: int, length: int, align: int, top: bool) -> int | None:
        """Start of a hole, None if there is none."""
        out = ffi.new("uint64_t *")
        rc = lib.vmemu_space_hole(self._m, space, low, high, length, align, top, out)
        return None if rc else int(out[0])

    def map(
        self,
        space: int,
        start: int,
        end: int,
        flags: int,
        object_: int,
        pgoff: int,
        tag: int,
        call: str,
        apart: bool = False,
    ) -> None:
        """Maps [start, end), replacing what is there; *apart*: not as one mapping with its neighbours."""
        vma = ffi.new("struct vmemu_vma *", (start, end, pgoff, flags, 0, object_, tag))
        rc = lib.vmemu_space_map(self._m, space, vma, apart)
        if rc:
            _fail(rc, call)

    def unmap(self, space: int, start: int, end: int, call: str) -> None:
        """Unmaps [start, end)."""
        rc = lib.vmemu_space_unmap(self._m, space, start, end)
        if rc:
            _fail(rc, call)

    def reflag(self, space: int, start: int, end: int, flags: int, call: str) -> None:
        """New flags for a range inside one mapping."""
        rc = lib.vmemu_space_reflag(self._m, space, start, end, flags)
        if rc:
            _fail(rc, call)

    def prepare_anon(self, space: int, at: int, call: str) -> None:
        """Gives the mapping that holds at an identity."""
        rc = lib.vmemu_space_prepare_anon(self._m, space, at)
        if rc:
            _fail(rc, call)

    def split(self, space: int, at: int, call: str) -> None:
        """Makes two mappings of one."""
        rc = lib.vmemu_space_split(self._m, space, at)
        if rc:
            _fail(rc, call)

    def zap(self, space: int, start: int, end: int, call: str) -> None:
        """Drops the pages of a range."""
        rc = lib.vmemu_space_zap(self._m, space, start, end)
        if rc:
            _fail(rc, call)

    def guard(self, space: int, start: int, end: int, call: str) -> None:
        """Puts guards on a range inside one mapping."""
        rc = lib.vmemu_space_guard(self._m, space, start, end)
        if rc:
            _fail(rc, call)

    def unguard(self, space: int, start: int, end: int, call: str) -> None:
        """Takes guards off a range inside one mapping."""
        rc = lib.vmemu_space_unguard(self._m, space, start, end)
        if rc:
            _fail(rc, call)

    def lazyfree(self, space: int, start: int, end: int, call: str) -> None:
        """MADV_FREE for a range inside one mapping."""
        rc = lib.vmemu_space_lazyfree(self._m, space, start, end)
        if rc:
            _fail(rc, call)

    def cold(self, space: int, start: int, end: int, call: str) -> None:
        """MADV_COLD for a range inside one mapping."""
        rc = lib.vmemu_space_cold(self._m, space, start, end)
        if rc:
            _fail(rc, call)

    def pageout(self, space: int, start: int, end: int, call: str) -> None:
        """MADV_PAGEOUT for a range inside one mapping."""
        rc = lib.vmemu_space_pageout(self._m, space, start, end)
        if rc:
            _fail(rc, call)

    def clear_refs(self, space: int, what: int) -> None:
        """What /proc/PID/clear_refs does for 1 to 4."""
        rc = lib.vmemu_space_clear_refs(self._m, space, what)
        if rc:
            _fail(rc, "clear_refs")

    def show_soft_dirty(self, on: bool) -> None:
        """Whether pagemap shows what is soft-dirty."""
        lib.vmemu_machine_show_soft_dirty(self._m, on)

    def ksm_spaces(self) -> list[tuple[int, int]]:
        """Spaces with mergeable mappings now or before, in the order in which they came to it: (number, id)."""
        n = lib.vmemu_machine_ksm_spaces(self._m, ffi.NULL, 0)
        out = ffi.new("struct vmemu_ksm_space[]", max(1, n))
        n = min(n, lib.vmemu_machine_ksm_spaces(self._m, out, n))
        return sorted((int(out[i].since), int(out[i].space)) for i in range(n))

    def ksm_pages(self, space: int, start: int, end: int, out: array.array[int]) -> int:
        """Anonymous pages present in a range into out, four numbers each: address, hash, pfn, merged. How many."""
        rows = ffi.from_buffer("struct vmemu_ksm_page[]", out)
        n = int(lib.vmemu_space_ksm_pages(self._m, space, start, end, rows, len(rows)))
        if n < 0:
            _fail(n, "ksm")
        return n

    def ksm_make(self, space: int, address: int) -> bool:
        """Makes a KSM frame of a page's. False if it can't be done now."""
        return bool(lib.vmemu_space_ksm_make(self._m, space, address) == 0)

    def ksm_merge(self, space: int, address: int, pfn: int) -> int:
        """Maps a page to a KSM frame, or the zero page, of the same bytes: 0, or the errno why not."""
        return -int(lib.vmemu_space_ksm_merge(self._m, space, address, pfn))

    def ksm_break(self, space: int, start: int, end: int, call: str) -> None:
        """Gives merged pages frames of their own."""
        rc = lib.vmemu_space_ksm_break(self._m, space, start, end)
        if rc:
            _fail(rc, call)

    def ksm_zero_pages(self, space: int) -> int:
        """Pages merged with the zero page."""
        return max(0, int(lib.vmemu_space_ksm_zero_pages(self._m, space)))

    def drain(self) -> None:
        """Marks of MADV_FREE that wait in a batch are seen from now on."""
        lib.vmemu_machine_drain(self._m)

    def move(self, space: int, start: int, end: int, to: int, length: int, keep: bool, call: str) -> None:
        """Moves a range inside one mapping to a hole."""
        rc = lib.vmemu_space_move(self._m, space, start, end, to, length, keep)
        if rc:
            _fail(rc, call)

    def extend(self, space: int, edge: int, to: int, down: bool, call: str) -> None:
        """Extends a mapping into the hole beside it."""
        rc = lib.vmemu_space_extend(self._m, space, edge, to, down)
        if rc:
            _fail(rc, call)

    # ---- accesses ----

    def read(self, space: int, address: int, buffer: Any, offset: int, length: int, access: int) -> Trap:
        """Reads into a buffer from offset on; a bytes object may be given that nothing else refers to yet."""
        trap = ffi.new("struct vmemu_trap *")
        data = ffi.from_buffer("uint8_t[]", buffer)
        return _trap(lib.vmemu_space_read(self._m, space, address, data + offset, length, access, trap), trap)

    def write(self, space: int, address: int, buffer: Any, offset: int, length: int) -> Trap:
        """Writes from a buffer."""
        trap = ffi.new("struct vmemu_trap *")
        data = ffi.from_buffer("uint8_t[]", buffer)
        return _trap(lib.vmemu_space_write(self._m, space, address, data + offset, length, trap), trap)

    def touch(self, space: int, address: int, length: int, access: int, counts: array.array[int]) -> Trap:
        """One access a page; adds to counts by kind."""
        trap = ffi.new("struct vmemu_trap *")
        data = ffi.from_buffer("uint64_t[]", counts)
        return _trap(lib.vmemu_space_touch(self._m, space, address, length, access, data, trap), trap)

    def access(self, space: int, addresses: Any, writes: Any, access: int, start: int, n: int, kinds: Any) -> Trap:
        """Accesses [start, n) of a batch; addresses uint64, writes uint8 or None, kinds uint8."""
        trap = ffi.new("struct vmemu_trap *")
        where = ffi.from_buffer("uint64_t[]", addresses)
        which = ffi.from_buffer("uint8_t[]", writes) + start if writes is not None else ffi.NULL
        out = ffi.from_buffer("uint8_t[]", kinds, require_writable=True)
        rc = lib.vmemu_space_access(self._m, space, where + start, which, access, n - start, out + start, trap)
        return _trap(rc, trap)

    # ---- looking ----

    def pagemap(self, space: int, address: int, npages: int, out: Any) -> None:
        """Fills out (uint64) as /proc/PID/pagemap."""
        rc = lib.vmemu_space_pagemap(self._m, space, address, npages, ffi.from_buffer("uint64_t[]", out))
        if rc:
            _fail(rc, "pagemap")

    def reset_peak(self, space: int) -> None:
        """The most that was resident is what is resident now."""
        lib.vmemu_space_reset_peak(self._m, space)

    def peek(self, space: int, address: int, length: int) -> bytes:
        """Bytes of private anonymous memory, nothing changed; fewer than *length* where no such memory is."""
        buffer = bytearray(length)
        n = lib.vmemu_space_peek(self._m, space, address, ffi.from_buffer("uint8_t[]", buffer), length)
        if n < 0:
            _fail(int(n), "peek")
        return bytes(buffer[:n])

    def translate(self, space: int, address: int) -> Any | None:
        """struct vmemu_translation, None if nothing is there."""
        out = ffi.new("struct vmemu_translation *")
        return None if lib.vmemu_space_translate(self._m, space, address, out) else out

    def usage(self, space: int, start: int, end: int) -> Any:
        """struct vmemu_usage of a range."""
        out = ffi.new("struct vmemu_usage *")
        rc = lib.vmemu_space_usage(self._m, space, start, end, out)
        if rc:
            _fail(rc, "smaps")
        return out

    def mincore(self, space: int, start: int, end: int) -> bytes | None:
        """One byte a page; None if part of the range is not mapped."""
        out = bytearray((end - start) // 4096)
        rc = lib.vmemu_space_mincore(self._m, space, start, end, ffi.from_buffer("uint8_t[]", out))
        if rc == -errno.ENOMEM:
            return None
        if rc:
            _fail(rc, "mincore")
        return bytes(out)

    # ---- objects ----

    def object_new(self, kind: int, size: int) -> int:
        """A new object with one hold."""
        out = ffi.new("uint32_t *")
        rc = lib.vmemu_object_new(self._m, kind, size, out)
        if rc:
            _fail(rc, "mmap")
        return int(out[0])

    def object_hold(self, object_: int) -> bool:
        """One more hold; False if the object is gone."""
        return bool(lib.vmemu_object_hold(self._m, object_) == 0)

    def object_release(self, object_: int) -> None:
        """One hold less."""
        lib.vmemu_object_release(self._m, object_)

    def object_info(self, object_: int) -> Any | None:
        """struct vmemu_object_info, None if the object is gone."""
        out = ffi.new("struct vmemu_object_info *")
        return None if lib.vmemu_object_info(self._m, object_, out) else out

    def object_fill(self, object_: int, index: int, npages: int, data: bytes, major: int | None, call: str) -> None:
        """Puts pages into the cache; nothing happens if the object is gone."""
        mark = 0xFFFF_FFFF_FFFF_FFFF if major is None else major
        rc = lib.vmemu_object_fill(self._m, object_, index, npages, ffi.from_buffer(data), len(data), mark)
        if rc and rc != -errno.EBADF:
            _fail(rc, call)

    def object_read(self, object_: int, offset: int, buffer: bytearray, start: int) -> int:
        """Bytes read into buffer[start:] before the first page that is not in memory."""
        data = ffi.from_buffer("uint8_t[]", buffer)
        return int(lib.vmemu_object_read(self._m, object_, offset, data + start, len(buffer) - start))

    def object_write(self, object_: int, offset: int, buffer: Any, start: int) -> int:
        """Bytes written from buffer[start:] before the first page that is not in memory."""
        data = ffi.from_buffer("uint8_t[]", buffer)
        rc = int(lib.vmemu_object_write(self._m, object_, offset, data + start, len(data) - start))
        if rc < 0:
            _fail(rc, "pwrite")
        return rc

    def object_resize(self, object_: int, size: int) -> None:
        """Truncates or extends."""
        rc = lib.vmemu_object_resize(self._m, object_, size)
        if rc:
            _fail(rc, "ftruncate")

    def object_clear_tail(self, object_: int, written: bool) -> None:
        """Zeroes what the cache holds of the last page beyond the end, and marks it as written if so."""
        lib.vmemu_object_clear_tail(self._m, object_, int(written))

    def object_punch(self, object_: int, first: int, npages: int) -> None:
        """Drops cached pages and unmaps them."""
        rc = lib.vmemu_object_punch(self._m, object_, first, npages)
        if rc:
            _fail(rc, "madvise")


class Closed:
    """Stands in for the parts of a closed machine: whatever is asked of it raises."""

    def __getattr__(self, name: str) -> Any:
        raise VmemuError("the machine is closed")

    def __len__(self) -> int:
        raise VmemuError("the machine is closed")

    def __iter__(self) -> Iterator[Any]:
        raise VmemuError("the machine is closed")


assert [int(getattr(lib, f"VMEMU_{kind.name}")) for kind in FaultKind] == list(FaultKind)  # noqa: S101
