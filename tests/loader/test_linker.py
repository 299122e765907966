"""The linker's part of a plan: which libraries are found, in which order, and how they are mapped."""

from __future__ import annotations

import errno
import itertools
import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from linux import tinyelf
from linux.plans import fails, lines, make_ld_so
from linux.tinyelf import ET_DYN, Part, R

from vmemu.errors import SyscallError
from vmemu.loader import ExecPlan, Layout, linker, plan
from vmemu.types import Prot

PAGE = 4096
TOP = 0x7FFFFFFFF000
PIE = 0x555555554000


@pytest.fixture
def ld_so(tmp_path: Path) -> bytes:
    return make_ld_so(tmp_path)


def libraries(tmp_path: Path, ld_so: bytes, needed: Sequence[str], **more: object) -> str:
    content = tinyelf.library(needed=needed, interp=ld_so, **more)  # type: ignore[arg-type]
    return tinyelf.save(tmp_path / "prog", content)


def found(p: ExecPlan, tmp_path: Path) -> list[str]:
    """The libraries in the order of mapping, relative to tmp_path."""
    names = [os.path.relpath(s.path, os.path.realpath(tmp_path)) for s in p.segments if s.path and s.role == "library"]
    return list(dict.fromkeys(names))


def test_libraries_breadth_first(tmp_path: Path, ld_so: bytes) -> None:
    (tmp_path / "lib").mkdir()
    for name, needed in {"a": ["c", "b"], "b": ["d", "a"], "c": [], "d": ["ld.so"]}.items():
        tinyelf.save(tmp_path / "lib" / name, tinyelf.library(f"{name}", needed, runpath="$ORIGIN"))
    path = libraries(tmp_path, ld_so, ["a", "b"], runpath="${ORIGIN}/lib")
    p = plan(path, ["x"], {}, link=True)
    assert found(p, tmp_path) == ["lib/a", "lib/b", "lib/c", "lib/d"]
    starts = [s.start for s in p.segments if s.role == "library" and s.prot == Prot.READ | Prot.EXEC]
    assert starts == sorted(starts, reverse=True)
    first = starts[0]
    assert [line for line in lines(p) if first <= line[0] < first + 0x5000] == [
        (first, first + 0x1000, "r-x", 0, "library"),
        (first + 0x1000, first + 0x2000, "---", 0x1000, "library"),
        (first + 0x2000, first + 0x3000, "rw-", 0x1000, "library"),
        (first + 0x3000, first + 0x5000, "rw-", 0, "bss"),
    ]
    assert not plan(path, ["x"], {}).protect
    assert found(plan(path, ["x"], {}), tmp_path) == []


def test_library_search_order(tmp_path: Path, ld_so: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    places = ["rpath", "env", "runpath", "default"]
    monkeypatch.setattr(linker, "CACHE", str(tmp_path / "no cache"))
    monkeypatch.setattr(linker, "DEFAULT_DIRECTORIES", (str(tmp_path / "default"),))
    for place in places:
        (tmp_path / place).mkdir()
        tinyelf.save(tmp_path / place / "l", tinyelf.library("l"))
    env = {"LD_LIBRARY_PATH": f"/none:{tmp_path / 'env'}"}

    def first(environment: dict[str, str], **more: str) -> str:
        path = libraries(tmp_path, ld_so, ["l"], **{key: str(tmp_path / value) for key, value in more.items()})
        return found(plan(path, ["x"], environment, link=True), tmp_path)[0]

    assert first(env, rpath="rpath") == "rpath/l"
    assert first(env, rpath="rpath", runpath="runpath") == "env/l"
    assert first({}, rpath="rpath", runpath="runpath") == "runpath/l"
    assert first({}) == "default/l"
    tinyelf.save(tmp_path / "env" / "l", tinyelf.tiny(machine=3))  # for another machine: looked past
    assert first(env) == "default/l"
    tinyelf.save(tmp_path / "env" / "l", b"text")
    fails(errno.ELIBBAD, "only 4 bytes", libraries(tmp_path, ld_so, ["l"]), ["x"], env, link=True)


def test_library_cache(tmp_path: Path, ld_so: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tinyelf.save(tmp_path / "far", tinyelf.library("libfar.so"))
    strings = b"libfar.so\0" + os.fsencode(library) + b"\0/other\0"
    base = 48 + 3 * 24
    rows = [(0x0303, 0, base + 10, 1 << 62), (0x0803, 0, base + 11, 0), (0x0303, 0, base + 10, 0)]
    table = b"".join(struct.pack("<iIIIQ", flags, base + key, value, 0, hwcap) for flags, key, value, hwcap in rows)
    header = b"glibc-ld.so.cache1.1" + struct.pack("<II", 3, len(strings)).ljust(28, b"\0")
    cache = tmp_path / "cache"
    monkeypatch.setattr(linker, "CACHE", str(cache))
    path = libraries(tmp_path, ld_so, ["libfar.so"])
    for content in (header + table + strings, b"ld.so-1.7.0".ljust(64, b"\0") + header + table + strings):
        cache.write_bytes(content)
        assert found(plan(path, ["x"], {}, link=True), tmp_path) == ["far"]
    for content in (b"", header, header[:30], b"\xff" * 99, header[:20] + b"\xff" * 200):
        cache.write_bytes(content)
        fails(errno.ELIBACC, "libfar.so, needed by", path, ["x"], {}, link=True)


def test_missing_library_is_named(tmp_path: Path, ld_so: bytes) -> None:
    tinyelf.save(tmp_path / "a", tinyelf.library("a", ["libnot-there.so.9"]))
    path = libraries(tmp_path, ld_so, ["a"], runpath="$ORIGIN")
    error = fails(errno.ELIBACC, "libnot-there.so.9, needed by", path, ["x"], {}, link=True)
    assert str(tmp_path / "a") in str(error)


def test_preload(tmp_path: Path, ld_so: bytes) -> None:
    for name in "ab":
        tinyelf.save(tmp_path / name, tinyelf.library(name))
    path = libraries(tmp_path, ld_so, ["a"], runpath="$ORIGIN")
    env = {"LD_PRELOAD": f"{tmp_path}/b:none"}
    assert found(plan(path, ["x"], env, link=True), tmp_path) == ["b", "a"]
    os.chmod(path, 0o4755)
    user = Layout(uid=4242, euid=4242)
    assert found(plan(path, ["x"], env, link=True, layout=user), tmp_path) == ["a"]


def test_relro_is_protected(tmp_path: Path, ld_so: bytes) -> None:
    relro = Part(tinyelf.PT_GNU_RELRO, R, 0x1000, 0x2000, 0x1000, 0x1800)
    tinyelf.save(tmp_path / "a", tinyelf.library("a", more=[relro]))
    p = plan(libraries(tmp_path, ld_so, ["a"], runpath="$ORIGIN", more=[relro]), ["x"], {}, link=True)
    library = next(s for s in p.segments if s.role == "library")
    assert p.protect == (
        (PIE + 0x2000, PIE + 0x3000, Prot.READ),
        (library.start + 0x2000, library.start + 0x3000, Prot.READ),
    )


def test_read_only_tail_of_a_library_is_zeroed(tmp_path: Path, ld_so: bytes) -> None:
    parts = [Part(flags=R, filesz=0x800, memsz=0x1800)]
    tinyelf.save(tmp_path / "a", tinyelf.tiny(parts, type=ET_DYN))
    p = plan(libraries(tmp_path, ld_so, ["a"], runpath="$ORIGIN"), ["x"], {}, link=True)
    first, bss = (s for s in p.segments[-2:])
    assert (first.role, bss.role, bss.prot) == ("library", "bss", Prot.READ)
    assert first.prot == Prot.READ | Prot.WRITE
    assert p.zero[-1] == (first.start + 0x800, first.end)
    assert p.protect == ((first.start, first.end, Prot.READ),)


@pytest.mark.parametrize("n", [1000, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_programs(n: int, tmp_path: Path, ld_so: bytes) -> None:
    """SyscallError is the only exception, whatever the headers of program, interpreter and library say."""
    tinyelf.save(tmp_path / "a", tinyelf.library("a"))
    relro = Part(tinyelf.PT_GNU_RELRO, R, 0x1000, 0x2000, 0x1000)
    originals = {
        "prog": tinyelf.library(needed=["a"], runpath="$ORIGIN", interp=ld_so, more=[relro]),
        "ld.so": (tmp_path / "ld.so").read_bytes(),
        "a": tinyelf.library("a", ["a", "ld.so"], more=[relro, Part(tinyelf.PT_GNU_STACK, 7)]),
    }
    for name, content in originals.items():
        tinyelf.save(tmp_path / name, content)
    rng = random.Random(3)
    odd = [0, 1, 0xFFF, 0x1000, 0x200000, 0x7FFFFFFFF000, 2**47, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1]
    outcomes = set()
    for _ in range(n):
        name = rng.choice(list(originals))
        content = bytearray(originals[name])
        for _ in range(rng.choice([1, 1, 2, 4])):
            place = rng.choice([*range(16, 64, 2), *range(64, 64 + 56 * 5, 4), *range(0x1000, 0x1080, 8)])
            value = rng.choice([rng.choice(odd), rng.getrandbits(64), rng.getrandbits(16)])
            size = rng.choice([2, 4, 8])
            content[place : place + size] = value.to_bytes(8, "little")[:size]
        tinyelf.save(tmp_path / name, bytes(content))
        try:
            p = plan(str(tmp_path / "prog"), ["x"], {}, link=True)
            spans = sorted((s.start, s.end) for s in p.segments)
            assert all(0 <= a < b <= TOP and a % PAGE == b % PAGE == 0 for a, b in spans)
            assert all(b <= c for (_, b), (c, _) in itertools.pairwise(spans))
            writable = [s for s in p.segments if s.prot & Prot.WRITE]
            assert all(a < b and any(s.start <= a and b <= s.end for s in writable) for a, b in p.zero)
            assert all(any(s.start <= a < b <= s.end for s in p.segments) for a, b, _ in p.protect)
            assert any(s.start <= p.stack_pointer and s.end == TOP for s in writable)
            outcomes.add(0)
        except SyscallError as error:
            outcomes.add(error.errno)
        tinyelf.save(tmp_path / name, originals[name])
    assert {0, errno.ENOEXEC, errno.ELIBBAD, errno.ENOMEM, errno.EINVAL} <= outcomes
