"""Programs for experiments: one of the host, or a built-in one that needs no file, after they have run for a while."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from vmemu.errors import syscall_error
from vmemu.machine import Machine
from vmemu.process import Process
from vmemu.types import PAGE_SIZE, Prot

__all__ = [
    "ENVIRONMENT",
    "default_program",
    "find_program",
    "own_pages",
    "start",
    "synthetic",
    "synthetic_file",
    "warm_up",
]

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
"""Fixed, so that the stack is the same whoever runs the command."""

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_BASE = 0x400000
_PT_LOAD, _PT_GNU_STACK = 1, 0x6474E551
_READ, _WRITE, _EXEC = 4, 2, 1


def default_program() -> str:
    """``/bin/sh``, or the running Python where there is none."""
    return "/bin/sh" if os.access("/bin/sh", os.X_OK) else sys.executable


def find_program(name: str) -> str:
    """The path that a shell would give to execve: searched in PATH if *name* has no slash.

    A name that is not found comes back as it is, and execve says what is wrong with it.
    """
    return name if "/" in name else shutil.which(name) or name


def start(
    machine: Machine,
    program: str,
    argv: Sequence[str],
    dirty: int = 0,
    heap: int = 0,
    prepare: Callable[[Process], None] | None = None,
) -> tuple[Process, list[int]]:
    """Exec *program*, linked as ld.so would, and let it touch its memory as a program does that has been running.

    It reads each page of its files and writes each page of its private writable memory, except those of the stack that
    execve has not written. The heap is grown (brk) by *heap* bytes, and further if the program would have written fewer
    than *dirty* pages. *prepare* is called with the process before it execs. Returns the process and the addresses of
    the pages that it has written. Raises as spawn() does.
    """
    if prepare is None:
        process = machine.spawn(program, argv, ENVIRONMENT, link=True)
    else:
        process = machine.spawn()
        prepare(process)
        process.execve(program, argv, ENVIRONMENT, link=True)
    return process, warm_up(process, dirty, heap)


def warm_up(process: Process, dirty: int = 0, heap: int = 0) -> list[int]:
    """What `start` lets a process do that has just executed its program -> the pages that it has written."""
    pages = own_pages(process)
    wanted = heap + max(0, dirty - len(pages) - heap // PAGE_SIZE) * PAGE_SIZE
    if wanted:
        top = process.brk() + wanted
        if process.brk(top) != top:
            raise syscall_error("brk", errno.ENOMEM, f"{wanted} bytes of heap")
        pages = own_pages(process)
    for mapping in process.maps():
        if mapping.prot & Prot.READ and mapping.name != "[stack]":
            write = bool(mapping.prot & Prot.WRITE) and not mapping.shared
            process.touch(mapping.start, mapping.size, write=write)
    return pages


def own_pages(process: Process) -> list[int]:
    """Addresses of the pages of private writable memory: data, bss, heap, and what is resident of the stack."""
    pages: list[int] = []
    for mapping in process.maps():
        if mapping.prot & Prot.WRITE and not mapping.shared:
            addresses = range(mapping.start, mapping.end, PAGE_SIZE)
            if mapping.name == "[stack]":
                resident = process.mincore(mapping.start, mapping.size)
                pages += [address for address, there in zip(addresses, resident, strict=True) if there]
            else:
                pages += addresses
    return pages


def synthetic(text: int = 128 << 10, data: int = 16 << 10, bss: int = 32 << 10) -> bytes:
    """A static ELF program with mappings like a small shell's: so many bytes of text, data and bss, whole pages.

    Nothing of it is ever executed, as nothing is in vmemu.
    """
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _EHDR.pack(ident, 2, 62, 1, _BASE + 0x100, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 3, 0, 0, 0)
    parts = b"".join(
        _PHDR.pack(kind, flags, offset, address, address, in_file, in_memory, PAGE_SIZE)
        for kind, flags, offset, address, in_file, in_memory in (
            (_PT_LOAD, _READ | _EXEC, 0, _BASE, text, text),
            (_PT_LOAD, _READ | _WRITE, text, _BASE + text, data, data + bss),
            (_PT_GNU_STACK, _READ | _WRITE, 0, 0, 0, 0),
        )
    )
    return (header + parts).ljust(text + data, b"\x90")


@contextlib.contextmanager
def synthetic_file(name: str, text: int = 128 << 10) -> Iterator[str]:
    """The path of such a program, which is there within the context."""
    with tempfile.TemporaryDirectory(prefix="vmemu-") as directory:
        path = os.path.join(directory, name)
        with open(path, "wb") as file:
            file.write(synthetic(text))
        os.chmod(path, 0o755)
        yield path
