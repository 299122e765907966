"""What ld.so(8) of glibc adds to the mappings of a program: its libraries, and RELRO made read-only.

Libraries are found and mapped breadth first, each at the highest hole below the interpreter, so that they lie in
memory as in a started process. Left out: audit and glibc-hwcaps directories, relocation itself, and what ld.so maps
for its own use (the cache while it reads it, its heap, TLS), so absolute addresses are a few pages off a real run.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmemu.alignment import HUGE_PAGE
from vmemu.errors import SyscallError, syscall_error
from vmemu.loader import elf
from vmemu.loader.bprm import Program
from vmemu.loader.seen import Seen
from vmemu.loader.sketch import MapError, Sketch, page_down, page_up, prot_of
from vmemu.types import PAGE_SIZE, Prot

__all__ = ["link", "variables"]

CACHE = "/etc/ld.so.cache"
DEFAULT_DIRECTORIES = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
)
_VARIABLES = (b"LD_LIBRARY_PATH", b"LD_PRELOAD")
LIBRARIES_MAX = 4096
"""More than this many libraries are taken for a mistake."""
_LIB = "lib/x86_64-linux-gnu" if os.path.isdir("/lib/x86_64-linux-gnu") else "lib64"
_WRAP = 0xFFFF_FFFF_FFFF_FFFF
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER = 48
_CACHE_ENTRY = struct.Struct("<iIIIQ")
_CACHE_X86_64 = 0x0303
"""Flags of an entry: a library for glibc, x86-64."""
_CACHE_MAX = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class _Object:
    """A program or library that ld.so knows (struct link_map)."""

    name: str
    """The path by which it was found."""
    path: str
    """The same, resolved, as /proc/PID/maps shows it."""
    image: elf.ElfImage
    dynamic: elf.Dynamic
    bias: int
    loader: _Object | None
    """Whose DT_NEEDED it is."""

    @property
    def origin(self) -> str:
        """$ORIGIN: its directory."""
        return os.path.dirname(self.path if self.loader is None else self.name)

    def expand(self, text: str) -> str:
        """*text* with $ORIGIN, $LIB and $PLATFORM filled in."""
        if "$" in text:
            for token, value in (("ORIGIN", self.origin), ("LIB", _LIB), ("PLATFORM", "x86_64")):
                text = text.replace("${" + token + "}", value).replace("$" + token, value)
        return text


def link(
    sketch: Sketch,
    program: Program,
    bias: int,
    interpreter: tuple[str, elf.ElfImage],
    interpreter_bias: int,
    cwd: str | None,
    seen: Seen,
) -> None:
    """Map the libraries of *program*, which is mapped at *bias*, and note the RELRO of all to be protected.

    Raises SyscallError: ELIBACC with the name of a library that is missing, ELIBBAD for one that cannot be loaded.
    """
    main = _Object(program.path, program.path, program.image, elf.dynamic(program.path, program.image), bias, None)
    path, image = interpreter
    ld_so = _Object(path, path, image, elf.dynamic(path, image), interpreter_bias, main)
    objects = _Search(program, main, ld_so, cwd, seen).run(sketch)
    for item in objects:
        _protect_relro(sketch, item.image, item.bias)


def variables(envp: Sequence[bytes]) -> list[bytes]:
    """The strings of the environment that `link` looks at, or look like them."""
    return [text for text in envp if text.startswith(_VARIABLES)]


class _Search:
    """Finds the closure of DT_NEEDED and maps it as it goes."""

    def __init__(self, program: Program, main: _Object, ld_so: _Object, cwd: str | None, seen: Seen) -> None:
        ids = program.credentials
        secure = ids.uid != ids.euid or ids.gid != ids.egid
        found = dict(text.partition(b"=")[::2] for text in reversed(program.envp))  # the first one counts
        self._main, self._ld_so, self._cwd, self._seen = main, ld_so, cwd, seen
        self._library_path: tuple[str, ...] = ()
        self._preload: list[str] = []
        if not secure:
            value = os.fsdecode(found.get(b"LD_LIBRARY_PATH", b""))
            self._library_path = tuple(value.replace(";", ":").split(":")) if value else ()
            self._preload = os.fsdecode(found.get(b"LD_PRELOAD", b"")).replace(":", " ").split()
        self._known: dict[str, _Object] = {}
        self._files: dict[tuple[int, int], _Object] = {}
        self._objects: list[_Object] = []
        for item in (main, ld_so):
            self._remember(item, _stat(item.path))  # noted already, under the names that they were found by

    def run(self, sketch: Sketch) -> list[_Object]:
        """Every object, in the order of mapping after the program and ld.so."""
        queue = [self._main]
        for name in self._preload:
            try:
                queue += self._load(sketch, name, self._main)
            except SyscallError as error:
                if error.errno != errno.ELIBACC:  # ld.so warns of a missing one and goes on
                    raise
        for item in queue:  # grows while it is walked: breadth first
            for name in item.dynamic.needed:
                queue += self._load(sketch, name, item)
        return self._objects

    def _remember(self, item: _Object, st: os.stat_result | None) -> None:
        self._objects.append(item)
        if item is not self._main:
            for name in (item.name, item.dynamic.soname or os.path.basename(item.name)):
                self._known.setdefault(name, item)
        if st is not None:
            self._files.setdefault((st.st_dev, st.st_ino), item)

    def _load(self, sketch: Sketch, name: str, loader: _Object) -> list[_Object]:
        """The library *name*, mapped, in a list; an empty one if it is there already."""
        name = self._expand(loader, name)
        if name in self._known:
            return []
        for candidate in self._candidates(name, loader):
            where = candidate if self._cwd is None else os.path.join(self._cwd, candidate)
            try:
                st = self._seen.stat(where)
            except OSError:
                continue
            known = self._files.get((st.st_dev, st.st_ino))
            if known is not None:
                self._known[name] = known
                return []
            path = self._seen.realpath(where)
            image = _parse(path)
            if image is None:
                continue
            if len(self._objects) >= LIBRARIES_MAX:
                raise syscall_error("execve", errno.ELIBMAX, f"more than {LIBRARIES_MAX} libraries", path)
            bias = _map_library(sketch, path, image)
            item = _Object(candidate, path, image, elf.dynamic(path, image), bias, loader)
            self._known[name] = item
            self._remember(item, st)
            return [item]
        raise syscall_error(
            "execve", errno.ELIBACC, f"library {name}, needed by {loader.path}, is not found", self._main.path
        )

    def _candidates(self, name: str, loader: _Object) -> Iterator[str]:
        """The paths to try, in ld.so's order."""
        if "/" in name:
            yield name
            return
        if not loader.dynamic.runpath:
            chain: list[_Object] = []
            link: _Object | None = loader
            while link is not None:
                chain.append(link)
                link = link.loader
            for item in chain if self._main in chain else [*chain, self._main]:
                yield from self._under(item, item.dynamic.rpath, name)
        yield from self._under(self._main, self._library_path, name)
        yield from self._under(loader, loader.dynamic.runpath, name)
        if not loader.dynamic.nodeflib:
            cached = _cache_of(*_cache_state(self._seen)).get(name)
            if cached is not None:
                yield cached
            for directory in DEFAULT_DIRECTORIES:
                yield f"{directory}/{name}"

    def _under(self, item: _Object, directories: tuple[str, ...], name: str) -> Iterator[str]:
        for directory in directories:
            yield os.path.join(self._expand(item, directory) or ".", name)

    def _expand(self, item: _Object, text: str) -> str:
        if "$" in text:
            self._seen.names_count = True
        return item.expand(text)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _parse(path: str) -> elf.ElfImage | None:
    """The library at *path*; None where ld.so looks further: it cannot be opened, or is for another machine."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if elf.is_foreign(fd):
            return None
        image = elf.parse_fd(fd, path, interpreter=True)
    except OSError as error:
        raise syscall_error(
            "execve", errno.ELIBBAD, f"a library that cannot be loaded: {error.strerror}", path
        ) from None
    finally:
        os.close(fd)
    if image.type != elf.ET_DYN or not image.loads:
        raise syscall_error("execve", errno.ELIBBAD, "not a shared library", path)
    return image


def _map_library(sketch: Sketch, path: str, image: elf.ElfImage) -> int:
    """_dl_map_segments: all of the file at once, then each PT_LOAD over it; returns the bias. Raises SyscallError."""
    loads = image.loads
    first, last = loads[0], loads[-1]
    for before, header in zip((None, *loads), loads, strict=False):
        extent = header.vaddr + header.memsz
        if header.filesz > header.memsz or (header.vaddr - header.offset) % PAGE_SIZE or extent > _WRAP // 2:
            raise syscall_error("execve", errno.ELIBBAD, "a PT_LOAD that cannot be mapped", path)
        if before is not None and page_down(header.vaddr) < page_up(before.vaddr + before.filesz):
            raise syscall_error("execve", errno.ELIBBAD, "PT_LOADs that overlap or are not in order", path)
    low = page_down(first.vaddr)
    length = page_up(last.vaddr + last.memsz) - low
    try:
        return _map_loads(sketch, path, image, low, length)
    except MapError as error:
        raise syscall_error("execve", error.number, str(error), path) from None


def _map_loads(sketch: Sketch, path: str, image: elf.ElfImage, low: int, length: int) -> int:
    loads = image.loads
    bias = _reserve(sketch, path, image, length) - low
    ends = [page_up(header.vaddr + header.filesz) for header in loads]
    if any(end != page_down(header.vaddr) for end, header in zip(ends, loads[1:], strict=False)):
        sketch.protect(bias + ends[0], bias + page_down(loads[-1].vaddr), Prot.NONE)
    for header, end in zip(loads, ends, strict=True):
        start, prot = page_down(header.vaddr), prot_of(header.flags)
        if header is not loads[0] and end > start:
            sketch.map(bias + start, end - start, prot, path, page_down(header.offset), "library", fixed=True)
        data, stop = bias + header.vaddr + header.filesz, bias + header.vaddr + header.memsz
        if stop > data:
            full = min(page_up(data), stop)
            if full > data:
                if page_down(header.offset + header.filesz) >= image.file_size:
                    raise MapError(errno.ELIBBAD, "the file ends before the page where the bss begins")
                if not prot & Prot.WRITE:  # made writable for as long as it is zeroed
                    sketch.protect(bias + start, bias + end, prot | Prot.WRITE)
                    sketch.protected.append((bias + start, bias + end, prot))
                sketch.zero.append((data, full))
            if stop > full:
                sketch.map(full, page_up(stop) - full, prot, None, 0, "bss", fixed=True)
    return bias


def _reserve(sketch: Sketch, path: str, image: elf.ElfImage, length: int) -> int:
    """Where *length* bytes of the file go; they are mapped there with the first PT_LOAD's protection."""
    first = image.loads[0]
    prot, offset = prot_of(first.flags), page_down(first.offset)
    align = image.align
    if align <= PAGE_SIZE:
        return sketch.map(0, length, prot, path, offset, "library")
    room = page_up(max(length, align) + align)  # reserved as anonymous memory, which huge pages suit at times
    start = sketch.place(room, file_offset=0 if room % HUGE_PAGE == 0 else None)
    return sketch.map((start + align - 1) & -align, length, prot, path, offset, "library", fixed=True)


def _protect_relro(sketch: Sketch, image: elf.ElfImage, bias: int) -> None:
    """_dl_protect_relro: the whole pages of the last PT_GNU_RELRO become read-only, as far as they are mapped."""
    for header in [header for header in image.phdrs if header.type == elf.PT_GNU_RELRO][-1:]:
        start = page_down(bias + header.vaddr)
        end = page_down(bias + header.vaddr + header.memsz)
        for segment in sketch.segments:
            low, high = max(start, segment.start), min(end, segment.end)
            if low < high:
                sketch.protected.append((low, high, Prot.READ))


def _cache_state(seen: Seen) -> tuple[str, int, int]:
    try:
        st = seen.stat(CACHE)
    except OSError:
        return CACHE, 0, 0
    return CACHE, st.st_mtime_ns, st.st_size


@functools.lru_cache(maxsize=4)
def _cache_of(path: str, _mtime_ns: int, size: int) -> dict[str, str]:
    """Name -> path of the x86-64 libraries in ldconfig(8)'s cache; empty if there is none or it is of no use."""
    try:
        with open(path, "rb") as file:
            data = file.read(min(size, _CACHE_MAX))
    except OSError:
        return {}
    base = data.find(_CACHE_MAGIC)
    if base < 0 or len(data) < base + _CACHE_HEADER:
        return {}
    (count,) = struct.unpack_from("<I", data, base + len(_CACHE_MAGIC))
    table = data[base + _CACHE_HEADER :]
    count = min(count, len(table) // _CACHE_ENTRY.size)
    found: dict[str, str] = {}
    for flags, key, value, _version, hwcap in _CACHE_ENTRY.iter_unpack(table[: count * _CACHE_ENTRY.size]):
        if flags == _CACHE_X86_64 and not hwcap:
            name, where = (_text(data, base + position) for position in (key, value))
            if name and where:
                found.setdefault(name, where)
    return found


def _text(data: bytes, start: int) -> str:
    end = data.find(b"\0", start, start + elf.PATH_MAX)
    return os.fsdecode(data[start:end]) if end >= 0 else ""
