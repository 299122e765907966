"""ELF files made by hand, without sections, as small and as odd as a test wants them."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
DYN = struct.Struct("<qQ")
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
PT_GNU_STACK, PT_GNU_RELRO = 0x6474E551, 0x6474E552
R, W, X = 4, 2, 1
ET_EXEC, ET_DYN = 2, 3
DT_NEEDED, DT_STRTAB, DT_SONAME, DT_RPATH, DT_RUNPATH = 1, 5, 14, 15, 29


@dataclasses.dataclass
class Part:
    """One program header."""

    type: int = PT_LOAD
    flags: int = R
    offset: int = 0
    vaddr: int = 0
    filesz: int = 0x1000
    memsz: int | None = None
    align: int = 0x1000

    def pack(self) -> bytes:
        memsz = self.filesz if self.memsz is None else self.memsz
        return PHDR.pack(self.type, self.flags, self.offset, self.vaddr, self.vaddr, self.filesz, memsz, self.align)


def tiny(
    parts: Sequence[Part] = (Part(flags=R | X, vaddr=0x400000),),
    *,
    type: int = ET_EXEC,  # noqa: A002
    entry: int = 0x400100,
    size: int = 0x1000,
    machine: int = 62,
    phnum: int | None = None,
    phoff: int = EHDR.size,
    phentsize: int = PHDR.size,
    interp: bytes | None = None,
    data: dict[int, bytes] | None = None,
) -> bytes:
    """The bytes of a file of *size* bytes; *interp* adds a PT_INTERP, *data* goes to the offsets given."""
    parts = list(parts)
    pieces = dict(data or {})
    if interp is not None:
        parts.insert(0, Part(PT_INTERP, R, 0xE00, 0, len(interp)))
        pieces[0xE00] = interp
    count = len(parts) if phnum is None else phnum
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    file = bytearray(size)
    header = EHDR.pack(ident, type, machine, 1, entry, phoff, 0, 0, EHDR.size, phentsize, count, 0, 0, 0)
    for offset, piece in {**pieces, 0: header, EHDR.size: b"".join(part.pack() for part in parts)}.items():
        file[offset : offset + len(piece)] = piece
    return bytes(file)


def library(
    soname: str | None = None,
    needed: Sequence[str] = (),
    *,
    rpath: str | None = None,
    runpath: str | None = None,
    interp: bytes | None = None,
    more: Sequence[Part] = (),
) -> bytes:
    """A shared library, or with *interp* a program, that needs others: text, then data with the dynamic section."""
    strings, entries = b"\0", []
    for tag, text in (
        *((DT_NEEDED, name) for name in needed),
        (DT_SONAME, soname),
        (DT_RPATH, rpath),
        (DT_RUNPATH, runpath),
    ):
        if text is not None:
            entries.append((tag, len(strings)))
            strings += text.encode() + b"\0"
    entries += [(DT_STRTAB, 0x2400), (0, 0)]
    table = b"".join(DYN.pack(*entry) for entry in entries)
    parts = [
        Part(flags=R | X, filesz=0x1000),
        Part(flags=R | W, offset=0x1000, vaddr=0x2000, filesz=0x1000, memsz=0x2800),
        Part(PT_DYNAMIC, R | W, 0x1000, 0x2000, len(table)),
        *more,
    ]
    data = {0x1000: table, 0x1400: strings}
    return tiny(parts, type=ET_DYN, entry=0x100, size=0x2000, interp=interp, data=data)


def save(path: Path, content: bytes, mode: int = 0o755) -> str:
    """Write an executable file anew (another inode than before); its path."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)
