"""The stack of a new process: where it lies, how large it is, and what is in it at the first instruction.

    top      8 zero bytes
             file name, environment strings, argument strings
             platform, 16 random bytes
             auxiliary vector, environment pointers, argument pointers, argc   <- stack pointer, 16-byte aligned
    start    the end of what is mapped, 128 KiB below the strings

The kernel's setup_arg_pages maps it, create_elf_tables fills it.
"""

from __future__ import annotations

import errno
import math
import random
import struct
from dataclasses import replace

from vmemu.loader import elf
from vmemu.loader.bprm import Layout, Program, strings_size
from vmemu.loader.sketch import STACK_GUARD_GAP, TASK_SIZE, MapError, Segment, Sketch, page_down, page_up
from vmemu.types import PAGE_SIZE, Prot

__all__ = ["AT_BASE", "AT_ENTRY", "AT_PHDR", "InitialStack", "mmap_base"]

AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY = 3, 4, 5, 6, 7, 8, 9
AT_UID, AT_EUID, AT_GID, AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK = 11, 12, 13, 14, 15, 16, 17
AT_SECURE, AT_RANDOM, AT_HWCAP2, AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN = 23, 25, 26, 27, 28
AT_EXECFN, AT_SYSINFO_EHDR, AT_MINSIGSTKSZ = 31, 33, 51

STACK_EXPAND = 128 << 10
"""Bytes that a new stack has below its strings."""
STACK_RND_BITS = 22
"""Random bits of the stack's top, in pages."""
MMAP_RND_BITS = 28
"""Random bits of mmap_base and of a PIE's base, in pages (vm.mmap_rnd_bits)."""
_ALIGN_RND_BYTES = 8192
_GAP_MIN = 128 << 20
_GAP_MAX = TASK_SIZE // 6 * 5
_FIXED_RANDOM = b"vmemu: AT_RANDOM"


def mmap_base(layout: Layout) -> int:
    """Upper end of the area for mappings: the stack may grow to its limit above it (arch_pick_mmap_layout).

    The gap is at least 128 MiB and at most 5/6 of the address space.
    """
    gap = layout.stack_limit + STACK_GUARD_GAP
    if layout.rng is not None:
        gap += ((1 << STACK_RND_BITS) - 1) * PAGE_SIZE
    gap = _GAP_MAX if math.isinf(gap) else min(max(int(gap), _GAP_MIN), _GAP_MAX)
    return page_up(TASK_SIZE - gap - random_pages(layout.rng, MMAP_RND_BITS))


def random_pages(rng: random.Random | None, bits: int) -> int:
    """Bytes: a random number of pages below 2^*bits*, none without *rng*."""
    return rng.getrandbits(bits) * PAGE_SIZE if rng is not None else 0


def _align(address: int, rng: random.Random | None) -> int:
    """arch_align_stack: up to 8 KiB of randomness, then 16-byte alignment."""
    return (address - (rng.randrange(_ALIGN_RND_BYTES) if rng is not None else 0)) & -16


class InitialStack:
    """Addresses are fixed when it is made, which is when the random numbers are drawn."""

    def __init__(self, program: Program, layout: Layout) -> None:
        rng = layout.rng
        self._program, self._layout = program, layout
        self.top = page_up(_align(TASK_SIZE - random_pages(rng, STACK_RND_BITS), rng))
        self.arg_start = self.top - 8 - program.strings_size
        self.arg_end = self.arg_start + strings_size(program.argv)
        self.env_end = self.arg_end + strings_size(program.envp)
        self.exec_fn = self.env_end
        self.platform = _align(self.arg_start, rng) - len(layout.platform) - 1
        self.random = self.platform - 16
        self._random_bytes = rng.randbytes(16) if rng is not None else _FIXED_RANDOM

    @property
    def start(self) -> int:
        """Lower end of what is mapped at first: the pages of the strings and 128 KiB more, within RLIMIT_STACK."""
        limit = self._layout.stack_limit
        start = page_down(self.arg_start - len(self._program.stale))
        size = self.top - start + STACK_EXPAND
        if not math.isinf(limit):
            size = min(size, page_down(int(limit)))
        return min(start, self.top - size)

    def map(self, sketch: Sketch) -> None:
        """setup_arg_pages."""
        prot = Prot.READ | Prot.WRITE
        if (self._program.image.stack_flags or 0) & elf.PF_X:
            prot |= Prot.EXEC
        sketch.put(Segment(self.start, self.top, prot, None, 0, "stack", growsdown=True))

    def grow(self, sketch: Sketch, pointer: int) -> None:
        """expand_stack: so far that everything down to *pointer* fits. Raises MapError.

        A program mapped over its own strings is refused (Linux would run it, with what it finds there instead).
        """
        start = page_down(pointer)
        stacks = [segment for segment in sketch.segments if segment.growsdown and segment.end == self.top]
        if not stacks or stacks[0].start > self.arg_start:
            raise MapError(errno.EFAULT, "the program is mapped over its arguments")
        old = stacks[0]
        if start >= old.start:
            return
        if self.top - start > self._layout.stack_limit:
            raise MapError(errno.EFAULT, "RLIMIT_STACK leaves no room for the argument pointers")
        if sketch.overlaps(start - STACK_GUARD_GAP, old.start):
            raise MapError(errno.EFAULT, "a mapping is in the way of the stack")
        sketch.segments[sketch.segments.index(old)] = replace(old, start=start)

    def auxv(self, *, phdr: int, base: int, entry: int) -> list[tuple[int, int]]:
        """The auxiliary vector in the kernel's order, without AT_NULL; see getauxval(3)."""
        layout, ids = self._layout, self._program.credentials
        vdso = [(AT_SYSINFO_EHDR, layout.vdso)] if layout.vdso is not None else []
        return [
            *vdso,
            (AT_MINSIGSTKSZ, layout.minsigstksz),
            (AT_HWCAP, layout.hwcap),
            (AT_PAGESZ, PAGE_SIZE),
            (AT_CLKTCK, layout.clktck),
            (AT_PHDR, phdr),
            (AT_PHENT, elf.PHDR_SIZE),
            (AT_PHNUM, self._program.image.phnum),
            (AT_BASE, base),
            (AT_FLAGS, 0),
            (AT_ENTRY, entry),
            (AT_UID, ids.uid),
            (AT_EUID, ids.euid),
            (AT_GID, ids.gid),
            (AT_EGID, ids.egid),
            (AT_SECURE, int(ids.euid != ids.uid or ids.egid != ids.gid)),
            (AT_RANDOM, self.random),
            (AT_HWCAP2, layout.hwcap2),
            (AT_EXECFN, self.exec_fn),
            (AT_PLATFORM, self.platform),
            (AT_RSEQ_FEATURE_SIZE, layout.rseq_feature_size),
            (AT_RSEQ_ALIGN, layout.rseq_align),
        ]

    def build(self, auxv: list[tuple[int, int]]) -> tuple[int, bytes]:
        """(stack pointer, bytes from there to the top)."""
        program = self._program
        words = [len(program.argv)]
        position = self.arg_start
        for texts in (program.argv, program.envp):
            for text in texts:
                words.append(position)
                position += len(text) + 1
            words.append(0)
        for entry in (*auxv, (0, 0)):
            words += entry
        # Without a vdso the room of its entry stays free, so that the pointer is where Linux has it.
        spare = 0 if self._layout.vdso is not None else 16
        pointer = (self.random - spare - len(words) * 8) & -16
        data = bytearray(self.top - pointer)

        def put(address: int, piece: bytes) -> None:
            data[address - pointer : address - pointer + len(piece)] = piece

        put(max(pointer, self.arg_start - len(program.stale)), program.stale[-(self.arg_start - pointer) :])
        put(pointer, struct.pack(f"<{len(words)}Q", *words))
        put(self.random, self._random_bytes)
        put(self.platform, self._layout.platform + b"\0")
        put(self.arg_start, b"".join(text + b"\0" for text in (*program.argv, *program.envp, program.filename)))
        return pointer, bytes(data)
