"""ELF files as execve(2) and ld.so(8) read them: headers, program headers, interpreter, dynamic section.

Only headers are read, never segments, and nothing is trusted: whatever is wrong with a file comes out as the errno
that Linux gives, raised by `vmemu.errors.syscall_error`. Section headers are not looked at, as the kernel does not
either, so a stripped, damaged or hand-written section table does no harm. What was parsed is kept per file identity
(device, inode, times of modification and change, size), bounded.

pyelftools knows the formats; it is imported when the first ELF file is parsed (about 0.1 s).
"""

from __future__ import annotations

import errno
import functools
import io
import os
from dataclasses import dataclass
from typing import Any

from vmemu.errors import syscall_error
from vmemu.loader.seen import ByFile

__all__ = ["Dynamic", "ElfImage", "Phdr", "dynamic", "is_foreign", "parse", "parse_fd"]

ET_EXEC = 2
ET_DYN = 3
EM_X86_64 = 62
PT_LOAD = 1
PT_DYNAMIC = 2
PT_INTERP = 3
PT_GNU_STACK = 0x6474E551
PT_GNU_RELRO = 0x6474E552
PF_X, PF_W, PF_R = 1, 2, 4

EHDR_SIZE = 64
PHDR_SIZE = 56
PHDRS_MAX = 65536
"""Bytes of program headers that Linux accepts at most (load_elf_phdrs)."""
PATH_MAX = 4096
PAGE_SIZE = 4096

_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 14, 15, 29
_DT_FLAGS_1, _DF_1_NODEFLIB = 0x6FFFFFFB, 0x800
_IDENT = b"\x02\x01\x01".ljust(12, b"\0")
_DYN_MAX = 4096
"""Dynamic entries read at most; real files have under 100."""


@dataclass(frozen=True, slots=True)
class Phdr:
    """One program header, elf(5). Addresses and sizes in bytes, as the file has them."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """What execve and ld.so need of one file. Nothing in it depends on where the file is mapped."""

    type: int
    """ET_EXEC (2), ET_DYN (3), or whatever the file says (an interpreter's is looked at late)."""
    entry: int
    phoff: int
    phentsize: int
    phdrs: tuple[Phdr, ...]
    """All program headers, in file order."""
    interp: bytes | None
    """The path in the first PT_INTERP, without its NUL; None without one."""
    interp_problem: tuple[int, str] | None
    """(errno, reason) with which execve of this file fails when it comes to PT_INTERP."""
    file_size: int

    @property
    def phnum(self) -> int:
        """Number of program headers."""
        return len(self.phdrs)

    @property
    def loads(self) -> tuple[Phdr, ...]:
        """The PT_LOAD headers, in file order."""
        return tuple(header for header in self.phdrs if header.type == PT_LOAD)

    @property
    def stack_flags(self) -> int | None:
        """p_flags of the last PT_GNU_STACK (that is the one Linux goes by); None without one."""
        flags = [header.flags for header in self.phdrs if header.type == PT_GNU_STACK]
        return flags[-1] if flags else None

    @property
    def span(self) -> int:
        """Bytes from the page of the lowest PT_LOAD to the end of the highest; 0 without any (total_mapping_size)."""
        loads = self.loads
        if not loads:
            return 0
        low = min(header.vaddr & -PAGE_SIZE for header in loads)
        high = max((header.vaddr + header.memsz) & 0xFFFF_FFFF_FFFF_FFFF for header in loads)
        return (high - low) & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def align(self) -> int:
        """The largest p_align of a PT_LOAD that is a power of two, page aligned; 0 without any (maximum_alignment)."""
        aligns = [header.align for header in self.loads if header.align and not header.align & (header.align - 1)]
        return (max(aligns, default=0) + PAGE_SIZE - 1) & -PAGE_SIZE & 0xFFFF_FFFF_FFFF_FFFF

    def file_offset(self, vaddr: int, length: int = 1) -> int | None:
        """Where the file holds [vaddr, vaddr + length) of its own addresses; None if not in one PT_LOAD's file part."""
        for header in self.loads:
            if header.vaddr <= vaddr and vaddr + length <= header.vaddr + header.filesz:
                return vaddr - header.vaddr + header.offset
        return None


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What the dynamic section says of the libraries a file needs, ld.so(8)."""

    needed: tuple[str, ...]
    """DT_NEEDED, in order."""
    soname: str | None
    rpath: tuple[str, ...]
    """DT_RPATH, split at the colons; empty where DT_RUNPATH is present, as that switches it off."""
    runpath: tuple[str, ...]
    nodeflib: bool
    """DF_1_NODEFLIB: the default directories are not searched."""


_images: ByFile[ElfImage] = ByFile()
_dynamics: ByFile[Dynamic] = ByFile()


@functools.cache
def _structs() -> Any:
    """pyelftools' descriptions of the x86-64 ELF structures."""
    from elftools.elf.structs import ELFStructs

    structs = ELFStructs(little_endian=True, elfclass=64)
    structs.create_basic_structs()
    structs.create_advanced_structs("ET_DYN", "EM_X86_64", "ELFOSABI_SYSV")
    return structs


@functools.cache
def _numbers(enum: str) -> dict[str, int]:
    """pyelftools gives known constants by name: name -> number of one of its tables."""
    from elftools.elf import enums

    return {name: number for name, number in vars(enums)[enum].items() if isinstance(number, int)}


def _number(value: int | str, enum: str) -> int:
    return value if isinstance(value, int) else _numbers(enum)[value]


def _pread(fd: int, length: int, offset: int) -> bytes:
    """Up to *length* bytes at *offset*; fewer at the end of the file, none at an offset that no file has."""
    if offset + length > 0x7FFF_FFFF_FFFF_FFFF:
        return b""
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(fd, length, offset)
        if not part:
            break
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)


def parse(path: str, *, interpreter: bool = False) -> ElfImage:
    """Parse the ELF file *path*; see `parse_fd`. A path that cannot be opened gives the errno of open(2)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise syscall_error("execve", error.errno or errno.EIO, "cannot be opened", path) from None
    try:
        return parse_fd(fd, path, interpreter=interpreter)
    finally:
        os.close(fd)


def parse_fd(fd: int, filename: str, *, interpreter: bool = False) -> ElfImage:
    """Parse the ELF file open as *fd*, from the cache if the same file was parsed before.

    As execve does for the program (load_elf_binary), or with *interpreter* for what a PT_INTERP names. Raises
    SyscallError with ENOEXEC (for an interpreter ELIBBAD, EIO if it is too short for an ELF header) and the reason
    in its text. A bad PT_INTERP is not raised here but kept as `interp_problem`.
    """
    try:
        image = _images.get(fd, lambda size: _parse(fd, size, filename, interpreter))
    except OSError as error:
        if type(error).__module__ == syscall_error.__module__:
            raise
        raise syscall_error("execve", error.errno or errno.EIO, "cannot be read", filename) from None
    if not interpreter and image.type not in (ET_EXEC, ET_DYN):
        raise syscall_error("execve", errno.ENOEXEC, f"ELF type {image.type} is neither ET_EXEC nor ET_DYN", filename)
    return image


def is_foreign(fd: int) -> bool:
    """Whether *fd* is an ELF file for another class or machine than 64-bit x86-64. Raises OSError."""
    head = _pread(fd, 20, 0)
    return len(head) == 20 and head[:4] == b"\x7fELF" and (head[4] != 2 or head[18:20] != b"\x3e\0")


def _parse(fd: int, size: int, filename: str, interpreter: bool) -> ElfImage:
    bad = errno.ELIBBAD if interpreter else errno.ENOEXEC

    def fail(why: str, number: int = bad) -> Exception:
        return syscall_error("execve", number, why, filename)

    head = _pread(fd, EHDR_SIZE, 0)
    if interpreter and len(head) < EHDR_SIZE:
        raise fail(f"only {len(head)} bytes, an ELF header has {EHDR_SIZE}", errno.EIO)
    head = head.ljust(EHDR_SIZE, b"\0")  # execve works on a zero-padded buffer
    if head[:4] != b"\x7fELF":
        raise fail("not an ELF file" if any(head[:4]) else "neither an ELF file nor a script")
    # What else e_ident says does not count, and pyelftools stumbles over unknown classes.
    ehdr = _structs().Elf_Ehdr.parse_stream(io.BytesIO(head[:4] + _IDENT + head[16:]))
    machine = _number(ehdr.e_machine, "ENUM_E_MACHINE")
    if machine != EM_X86_64:
        kind = "32-bit ELF, machine" if head[4] == 1 else "ELF machine"
        raise fail(f"{kind} {machine} is not x86-64 ({EM_X86_64})")
    if ehdr.e_phentsize != PHDR_SIZE:
        raise fail(f"program headers of {ehdr.e_phentsize} bytes instead of {PHDR_SIZE}")
    length = ehdr.e_phnum * PHDR_SIZE
    if not 0 < length <= PHDRS_MAX:
        raise fail(f"{ehdr.e_phnum} program headers; 1 to {PHDRS_MAX // PHDR_SIZE} can be loaded")
    table = _pread(fd, length, ehdr.e_phoff)
    if len(table) < length:
        raise fail(f"the program headers at offset {ehdr.e_phoff:#x} are not all in the file, which has {size} bytes")
    phdrs = _phdrs(table)
    interp, problem = _interp(fd, phdrs)
    return ElfImage(
        type=_number(ehdr.e_type, "ENUM_E_TYPE"),
        entry=ehdr.e_entry,
        phoff=ehdr.e_phoff,
        phentsize=ehdr.e_phentsize,
        phdrs=phdrs,
        interp=interp,
        interp_problem=problem,
        file_size=size,
    )


def _phdrs(table: bytes) -> tuple[Phdr, ...]:
    stream = io.BytesIO(table)
    layout = _structs().Elf_Phdr
    found = []
    for _ in range(len(table) // PHDR_SIZE):
        raw = layout.parse_stream(stream)
        found.append(
            Phdr(
                type=_number(raw.p_type, "ENUM_P_TYPE_BASE"),
                flags=raw.p_flags,
                offset=raw.p_offset,
                vaddr=raw.p_vaddr,
                paddr=raw.p_paddr,
                filesz=raw.p_filesz,
                memsz=raw.p_memsz,
                align=raw.p_align,
            )
        )
    return tuple(found)


def _interp(fd: int, phdrs: tuple[Phdr, ...]) -> tuple[bytes | None, tuple[int, str] | None]:
    """The interpreter's path, or why it cannot be had; only the first PT_INTERP counts."""
    for header in phdrs:
        if header.type != PT_INTERP:
            continue
        if not 2 <= header.filesz <= PATH_MAX:
            return None, (errno.ENOEXEC, f"PT_INTERP of {header.filesz} bytes; 2 to {PATH_MAX} are allowed")
        if header.offset + header.filesz > 0x7FFF_FFFF_FFFF_FFFF:
            return None, (errno.EINVAL, f"PT_INTERP at offset {header.offset:#x}, which no file has")
        text = _pread(fd, header.filesz, header.offset)
        if len(text) < header.filesz:
            return None, (errno.EIO, f"PT_INTERP at offset {header.offset:#x} is not in the file")
        if text[-1]:
            return None, (errno.ENOEXEC, "the path in PT_INTERP does not end with a NUL")
        return text[: text.index(0)], None
    return None, None


def dynamic(path: str, image: ElfImage) -> Dynamic:
    """The dynamic section of *path*, which was parsed as *image*; empty if there is none (a static program).

    Raises SyscallError with ELIBBAD where it points out of the file.
    """
    header = next((header for header in image.phdrs if header.type == PT_DYNAMIC), None)
    if header is None:
        return Dynamic((), None, (), (), False)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise syscall_error("execve", error.errno or errno.EIO, "cannot be opened", path) from None
    try:
        return _dynamics.get(fd, lambda _: _dynamic(fd, path, image, header))
    except OSError as error:
        if type(error).__module__ == syscall_error.__module__:
            raise
        raise syscall_error("execve", error.errno or errno.EIO, "cannot be read", path) from None
    finally:
        os.close(fd)


def _dynamic(fd: int, path: str, image: ElfImage, header: Phdr) -> Dynamic:
    table = _pread(fd, min(header.filesz // 16, _DYN_MAX) * 16, header.offset)
    stream = io.BytesIO(table)
    layout = _structs().Elf_Dyn
    entries: list[tuple[int, int]] = []
    for _ in range(len(table) // 16):
        raw = layout.parse_stream(stream)
        tag = _number(raw.d_tag, "ENUM_D_TAG")
        if tag == _DT_NULL:
            break
        entries.append((tag, raw.d_val))
    values = dict(entries)

    def text(position: int) -> str:
        start = image.file_offset(values.get(_DT_STRTAB, 0))
        data = _pread(fd, PATH_MAX, start + position) if start is not None else b""
        if 0 not in data:
            raise syscall_error("execve", errno.ELIBBAD, "a name in the dynamic section is not in the file", path)
        return os.fsdecode(data[: data.index(0)])

    def paths(tag: int) -> tuple[str, ...]:
        return tuple(text(values[tag]).split(":")) if tag in values else ()

    runpath = paths(_DT_RUNPATH)
    return Dynamic(
        needed=tuple(text(value) for tag, value in entries if tag == _DT_NEEDED),
        soname=text(values[_DT_SONAME]) if _DT_SONAME in values else None,
        rpath=() if _DT_RUNPATH in values else paths(_DT_RPATH),
        runpath=runpath,
        nodeflib=bool(values.get(_DT_FLAGS_1, 0) & _DF_1_NODEFLIB),
    )
