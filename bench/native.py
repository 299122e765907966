"""The two small C programs that vmemu is compared with, compiled when needed: the kernel's side, the physical bound."""

from __future__ import annotations

import atexit
import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["BENCH", "Buffer", "NoCompiler", "bound", "compiled", "compiler", "kernel", "kernel_program", "scratch"]

BENCH = Path(__file__).resolve().parent
_PAGE = 4096


class NoCompiler(Exception):
    """There is nothing to compile the C programs with, or it failed; the message is one for the user."""


def compiler() -> list[str]:
    """The command named in CC, else cc, gcc or clang."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise NoCompiler(f"no C compiler: {named[0] if named else 'cc'} was not found (bench/*.c must be compiled)")


@cache
def scratch() -> Path:
    """A directory that goes with this process."""
    directory = Path(tempfile.mkdtemp(prefix="vmemu-bench-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def compiled(out: Path, *arguments: str | Path) -> Path:
    """Runs the compiler; *out* is what it makes."""
    command = [*compiler(), "-O2", "-std=gnu11", "-o", str(out), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        said = done.stdout.splitlines()
        why = next((line for line in said if "error" in line), said[0] if said else f"exit status {done.returncode}")
        raise NoCompiler(f"{shlex.join(command)} failed: {why}")
    return out


@cache
def kernel_program() -> Path:
    """kernel.c, compiled."""
    out = scratch() / "kernel"
    try:  # a static program is the smallest one: the kernel's forks are the cheaper for it
        return compiled(out, BENCH / "kernel.c", "-static")
    except NoCompiler:
        return compiled(out, BENCH / "kernel.c")


def kernel(scenario: str, *arguments: int | str) -> dict[str, float]:
    """Runs a scenario of kernel.c on this process's CPUs -> nanoseconds by name."""
    done = subprocess.run(
        [kernel_program(), scenario, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}


class _Bound:
    """bound.c through ctypes, which drops the GIL."""

    def __init__(self) -> None:
        path = compiled(scratch() / "bound.so", "-shared", "-fPIC", BENCH / "bound.c")
        lib = ctypes.CDLL(str(path))
        word, at = ctypes.c_uint64, ctypes.c_void_p
        for name, result, arguments in (
            ("bound_buffer", at, (word, ctypes.c_int)),
            ("bound_release", None, (at, word)),
            ("bound_copy", None, (at, at, at, word, word)),
            ("bound_copy_buffer", None, (at, at, word, word)),
            ("bound_zero", None, (at, at, word, word)),
            ("bound_stream", None, (at, at, at, word)),
            ("bound_stream_zero", None, (at, at, word)),
            ("bound_read", word, (at, at, word)),
            ("bound_walk", word, (at, ctypes.c_uint32, word)),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        self._lib: Any = lib

    def copy(self, ram: int, source: NDArray[np.uint64], to: NDArray[np.uint64]) -> None:
        """memcpy of frame source[i] to frame to[i], in order; *ram* is an address."""
        self._lib.bound_copy(ram, source.ctypes.data, to.ctypes.data, len(source), _PAGE)

    def copy_buffer(self, to: Buffer, source: Buffer, npages: int) -> None:
        """memcpy page by page, in order."""
        self._lib.bound_copy_buffer(to.address, source.address, npages, _PAGE)

    def zero(self, ram: int, to: NDArray[np.uint64]) -> None:
        """memset of frame to[i], in order."""
        self._lib.bound_zero(ram, to.ctypes.data, len(to), _PAGE)

    def stream(self, ram: int, source: NDArray[np.uint64], to: NDArray[np.uint64]) -> None:
        """As `copy`, past the caches."""
        self._lib.bound_stream(ram, source.ctypes.data, to.ctypes.data, len(source))

    def stream_zero(self, ram: int, to: NDArray[np.uint64]) -> None:
        """As `zero`, past the caches."""
        self._lib.bound_stream_zero(ram, to.ctypes.data, len(to))

    def read(self, buffer: Buffer, offsets: NDArray[np.uint64]) -> int:
        """Reads a byte at each offset in a C loop -> their sum."""
        return int(self._lib.bound_read(buffer.address, offsets.ctypes.data, len(offsets)))

    def walk(self, table: NDArray[np.uint32], n: int) -> int:
        """*n* dependent steps through a table of a power of two words."""
        return int(self._lib.bound_walk(table.ctypes.data, len(table), n))

    def buffer(self, size: int, written: bool) -> int:
        address = self._lib.bound_buffer(size, written)
        if not address:
            raise MemoryError(f"the host has no {size >> 20} MiB")
        return int(address)

    def release(self, address: int, size: int) -> None:
        self._lib.bound_release(address, size)


@cache
def bound() -> _Bound:
    """bound.c, compiled and loaded."""
    return _Bound()


class Buffer:
    """Host memory on huge pages, *size* bytes; every byte written unless *fresh*. A context manager."""

    def __init__(self, size: int, fresh: bool = False) -> None:
        self.size = size
        self.address = bound().buffer(size, not fresh)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        bound().release(self.address, self.size)
