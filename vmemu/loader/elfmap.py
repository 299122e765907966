"""The PT_LOADs of a program and of its interpreter, mapped on paper as load_elf_binary and load_elf_interp do."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass

from vmemu.loader import elf
from vmemu.loader.initstack import MMAP_RND_BITS, random_pages
from vmemu.loader.sketch import TASK_SIZE, MapError, Sketch, page_down, page_up, prot_of
from vmemu.types import PAGE_SIZE, Prot

__all__ = ["ELF_ET_DYN_BASE", "Loaded", "map_interpreter", "map_program"]

ELF_ET_DYN_BASE = 0x5555_5555_4AAA
"""Two thirds of the address space: where PIEs go, and the brk of programs that lie in the mmap area."""
_WRAP = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(slots=True)
class Loaded:
    """One file as mapped: see load_elf_binary for the names."""

    bias: int
    phdr: int = 0
    brk: int = 0
    start_code: int = _WRAP
    end_code: int = 0
    start_data: int = 0
    end_data: int = 0


def _map_load(
    sketch: Sketch,
    path: str,
    image: elf.ElfImage,
    header: elf.Phdr,
    address: int,
    role: str,
    *,
    span: int = 0,
    fixed: bool = False,
    replace: bool = True,
) -> int:
    """elf_load: one PT_LOAD at *address*, with its bss; returns the page where it begins.

    *span* is given for the first one of a file whose whole extent has to be free. Raises MapError.
    """
    address &= _WRAP
    prot, inside = prot_of(header.flags), header.vaddr % PAGE_SIZE
    start = page_down(address)
    if header.filesz:
        size = page_up((header.filesz + inside) & _WRAP)
        if size:
            offset = header.offset - inside
            length = page_up(span) if span else size
            start = sketch.map(start, length, prot, path, offset, role, fixed=fixed, replace=replace)
            if span:
                sketch.unmap(start + size, start + length)
        zero_start = start + inside + header.filesz
    else:
        zero_start = start
    if header.memsz <= header.filesz:
        return _user(start)
    zero_end = start + inside + header.memsz
    if header.filesz and zero_start % PAGE_SIZE and header.flags & elf.PF_W:
        if page_down(header.offset + header.filesz) >= image.file_size:
            raise MapError(errno.EFAULT, "the file ends before the page where the bss begins")
        sketch.zero.append((zero_start, page_up(zero_start)))
    first, last = page_up(zero_start), page_up(zero_end)
    if last > first:
        bss = Prot.READ | Prot.WRITE | (prot & Prot.EXEC)
        sketch.map(first, last - first, bss, None, 0, "bss", fixed=True)
    return _user(start)


def _user(address: int) -> int:
    if address >= TASK_SIZE:
        raise MapError(errno.EINVAL, f"address {address:#x} is outside the address space")
    return address


def map_program(sketch: Sketch, path: str, image: elf.ElfImage, interp: bool, rng: random.Random | None) -> Loaded:
    """The PT_LOADs of the program, and what mm_struct keeps of them (relative to the bias)."""
    loaded = Loaded(bias=0)
    for index, header in enumerate(image.loads):
        span, fixed, replacing = 0, True, index > 0
        if index == 0 and image.type == elf.ET_DYN:
            span = image.span
            if not span:
                raise MapError(errno.EINVAL, "the PT_LOADs span no bytes")
            if interp:
                loaded.bias = ELF_ET_DYN_BASE + random_pages(rng, MMAP_RND_BITS)
                loaded.bias &= -image.align if image.align else _WRAP
            elif image.align > PAGE_SIZE:
                trial = Sketch(sketch.mmap_base, sketch.huge_align)
                trial.segments = list(sketch.segments)
                loaded.bias = _map_load(trial, path, image, header, 0, "program", span=span) & -image.align
            else:
                fixed = False
            loaded.bias = (loaded.bias - header.vaddr) & -PAGE_SIZE & _WRAP
        wanted = (loaded.bias + header.vaddr) & _WRAP
        start = _map_load(sketch, path, image, header, wanted, "program", span=span, fixed=fixed, replace=replacing)
        if index == 0 and image.type == elf.ET_DYN:
            loaded.bias = (loaded.bias + start - page_down(wanted)) & _WRAP
        if header.offset <= image.phoff < header.offset + header.filesz:
            loaded.phdr = image.phoff - header.offset + header.vaddr
        if header.flags & elf.PF_X:
            loaded.start_code = min(loaded.start_code, header.vaddr)
        loaded.start_data = max(loaded.start_data, header.vaddr)
        _check_extent(header, header.vaddr, errno.EINVAL)
        if header.flags & elf.PF_X:
            loaded.end_code = max(loaded.end_code, header.vaddr + header.filesz)
        loaded.end_data = max(loaded.end_data, header.vaddr + header.filesz)
        loaded.brk = max(loaded.brk, header.vaddr + header.memsz)
    loaded.phdr = (loaded.phdr + loaded.bias) & _WRAP
    loaded.brk = (loaded.brk + loaded.bias) & _WRAP
    return loaded


def _check_extent(header: elf.Phdr, address: int, number: int) -> None:
    if header.filesz > header.memsz:
        raise MapError(number, f"p_filesz {header.filesz:#x} is more than p_memsz {header.memsz:#x}")
    if address >= TASK_SIZE or header.memsz > TASK_SIZE or TASK_SIZE - header.memsz < address:
        raise MapError(number, f"a segment of {header.memsz:#x} bytes at {address:#x} leaves the address space")


def map_interpreter(sketch: Sketch, path: str, image: elf.ElfImage, program_bias: int) -> int:
    """load_elf_interp: the PT_LOADs of the interpreter; returns its bias (AT_BASE)."""
    if image.type not in (elf.ET_EXEC, elf.ET_DYN):
        raise MapError(errno.EPERM, f"the interpreter's ELF type is {image.type}")
    span = image.span
    if not span:
        raise MapError(errno.EINVAL, "the interpreter has nothing to load")
    bias, placed = 0, False
    for header in image.loads:
        fixed = placed or image.type == elf.ET_EXEC
        if not fixed and program_bias:
            bias = -header.vaddr
        start = _map_load(sketch, path, image, header, bias + header.vaddr, "interpreter", span=span, fixed=fixed)
        span = 0
        if not placed and image.type == elf.ET_DYN:
            bias, placed = start - page_down(header.vaddr), True
        _check_extent(header, (bias + header.vaddr) & _WRAP, errno.ENOMEM)
    return bias & _WRAP
