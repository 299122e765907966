"""The ELF parser: what it reads, what it refuses and why, and that no input makes it do anything else."""

from __future__ import annotations

import errno
import os
import random
import struct
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linux import tinyelf
from linux.tinyelf import Part

from vmemu.errors import SyscallError
from vmemu.loader import elf, seen

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIELDS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 1, 0xFFF, 0x1000, 0x1001, 2**31, 2**32 - 1, 2**47, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 4096]),
)


def parse(tmp_path: Path, content: bytes, *, interpreter: bool = False) -> elf.ElfImage:
    return elf.parse(tinyelf.save(tmp_path / "file", content), interpreter=interpreter)


def test_fields(tmp_path: Path) -> None:
    content = tinyelf.library("libx.so.1", ["liba.so", "libb.so"], runpath="$ORIGIN:/opt", interp=b"/lib/ld.so\0")
    image = parse(tmp_path, content)
    assert (image.type, image.entry, image.phoff, image.phentsize, image.phnum) == (elf.ET_DYN, 0x100, 64, 56, 4)
    assert image.interp == b"/lib/ld.so"
    assert image.interp_problem is None
    assert [(load.vaddr, load.filesz, load.memsz) for load in image.loads] == [
        (0, 0x1000, 0x1000),
        (0x2000, 0x1000, 0x2800),
    ]
    assert image.span == 0x4800
    assert image.align == 0x1000
    assert image.stack_flags is None
    assert image.file_offset(0x2010) == 0x1010
    assert image.file_offset(0x3000) is None
    dynamic = elf.dynamic(str(tmp_path / "file"), image)
    assert dynamic == elf.Dynamic(("liba.so", "libb.so"), "libx.so.1", (), ("$ORIGIN", "/opt"), False)


def test_runpath_switches_rpath_off(tmp_path: Path) -> None:
    for rpath, runpath, expected in (("/a", None, ("/a",)), ("/a", "/b", ())):
        image = parse(tmp_path, tinyelf.library(rpath=rpath, runpath=runpath))
        assert elf.dynamic(str(tmp_path / "file"), image).rpath == expected


def test_last_stack_header_counts(tmp_path: Path) -> None:
    parts = [Part(flags=tinyelf.R), Part(tinyelf.PT_GNU_STACK, 7), Part(tinyelf.PT_GNU_STACK, 6)]
    assert parse(tmp_path, tinyelf.tiny(parts)).stack_flags == 6


def test_largest_power_of_two_alignment_counts(tmp_path: Path) -> None:
    parts = [Part(align=0x3000000), Part(align=0x200000), Part(align=0), Part(align=1)]
    assert parse(tmp_path, tinyelf.tiny(parts)).align == 0x200000
    assert parse(tmp_path, tinyelf.tiny([Part(align=3)])).align == 0


def test_what_the_kernel_does_not_look_at(tmp_path: Path) -> None:
    """The rest of e_ident, the version and the whole section table."""
    content = bytearray(tinyelf.tiny())
    content[4:16] = b"\xee" * 12
    content[20:24] = b"\xff" * 4
    content[40:48] = struct.pack("<Q", 2**64 - 1)
    content[58:64] = b"\xff" * 6
    assert parse(tmp_path, bytes(content)).entry == 0x400100


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither an ELF file nor a script"),
        (b"\x7fEL", "not an ELF file"),
        (b"MZ".ljust(200, b"\0"), "not an ELF file"),
        (b"\x7fELF", "ELF machine 0"),
        (tinyelf.tiny(machine=3), "ELF machine 3 is not x86-64"),
        (tinyelf.tiny(machine=183), "ELF machine 183"),
        (tinyelf.tiny(machine=3)[:4] + b"\1" + tinyelf.tiny(machine=3)[5:], "32-bit ELF, machine 3"),
        (tinyelf.tiny(type=1), "ELF type 1"),
        (tinyelf.tiny(type=4), "ELF type 4"),
        (tinyelf.tiny(phnum=0), "0 program headers"),
        (tinyelf.tiny(phnum=1171), "1171 program headers"),
        (tinyelf.tiny(phnum=1170), "not all in the file"),
        (tinyelf.tiny(phentsize=32), "program headers of 32 bytes"),
        (tinyelf.tiny(phoff=0x1000), "not all in the file"),
        (tinyelf.tiny(phoff=2**63), "not all in the file"),
        (tinyelf.tiny(phoff=2**64 - 56), "not all in the file"),
        (tinyelf.tiny()[:100], "not all in the file"),
        (tinyelf.tiny()[:63], "not all in the file"),
    ],
)
def test_refused(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(SyscallError, match=why) as refused:
        parse(tmp_path, content)
    assert refused.value.errno == errno.ENOEXEC
    assert refused.value.filename == str(tmp_path / "file")


def test_refused_as_interpreter(tmp_path: Path) -> None:
    for content, number in (
        (b"\x7fELF", errno.EIO),
        (bytes(64), errno.ELIBBAD),
        (tinyelf.tiny(machine=3), errno.ELIBBAD),
        (tinyelf.tiny(phnum=0), errno.ELIBBAD),
    ):
        with pytest.raises(SyscallError) as refused:
            parse(tmp_path, content, interpreter=True)
        assert refused.value.errno == number
    assert parse(tmp_path, tinyelf.tiny(type=1), interpreter=True).type == 1  # refused later


@pytest.mark.parametrize(
    ("part", "number"),
    [
        (Part(tinyelf.PT_INTERP, offset=0x800, filesz=1), errno.ENOEXEC),
        (Part(tinyelf.PT_INTERP, offset=0x800, filesz=4097), errno.ENOEXEC),
        (Part(tinyelf.PT_INTERP, offset=0xFF0, filesz=64), errno.EIO),
        (Part(tinyelf.PT_INTERP, offset=2**63 - 8, filesz=64), errno.EINVAL),
        (Part(tinyelf.PT_INTERP, offset=2**64 - 1, filesz=64), errno.EINVAL),
        (Part(tinyelf.PT_INTERP, offset=0x800, filesz=4), errno.ENOEXEC),
    ],
)
def test_bad_interpreter_path_is_kept_for_execve(tmp_path: Path, part: Part, number: int) -> None:
    image = parse(tmp_path, tinyelf.tiny([part, Part()], data={0x800: b"/bin/x"}))
    assert image.interp is None
    assert image.interp_problem is not None
    assert image.interp_problem[0] == number


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(tinyelf.tiny())
    cases = {"none": errno.ENOENT, "file/x": errno.ENOTDIR, ".": errno.EISDIR, "pipe": errno.ESPIPE}
    for name, number in cases.items():
        with pytest.raises(SyscallError) as refused:
            elf.parse(str(tmp_path / name))
        assert refused.value.errno == number


def test_kept_per_file_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tinyelf.save(tmp_path / "file", tinyelf.tiny())
    assert elf.parse(path) is not elf.parse(path)  # just written: it could change within the clock's tick
    monkeypatch.setattr(seen, "RACY_NS", -(10**9))
    first = elf.parse(path)
    assert elf.parse(path) is first
    (tmp_path / "link").symlink_to(path)
    assert elf.parse(str(tmp_path / "link")) is first
    os.utime(path, ns=(1, 1))
    assert elf.parse(path) is not first
    tinyelf.save(tmp_path / "file", tinyelf.tiny(entry=0x400200) + b"more")
    assert elf.parse(path).entry == 0x400200


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "RACY_NS", -(10**9))
    for number in range(seen.FILES_MAX + 20):
        elf.parse(tinyelf.save(tmp_path / str(number), tinyelf.tiny()))
    assert len(elf._images) <= seen.FILES_MAX


def test_pyelftools_is_imported_late() -> None:
    code = "import sys, vmemu.loader.elf; sys.exit(any(name.startswith('elftools') for name in sys.modules))"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


def survive(path: Path, content: bytes) -> None:
    """Parse it all; SyscallError is the only exception that may come out."""
    name = tinyelf.save(path, content)
    for interpreter in (False, True):
        try:
            image = elf.parse(name, interpreter=interpreter)
            assert image.phnum <= 1170
            assert 0 <= image.span < 2**64
            elf.dynamic(name, image)
        except SyscallError as error:
            assert error.filename == name
            assert len(str(error)) < 300 + len(name)


@QUIET
@given(content=st.binary(max_size=400))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    survive(tmp_path / "file", b"\x7fELF" + content)


@QUIET
@given(data=st.data())
def test_any_headers(tmp_path: Path, data: st.DataObject) -> None:
    parts = data.draw(
        st.lists(
            st.builds(
                Part,
                type=st.sampled_from([1, 2, 3, 6, tinyelf.PT_GNU_STACK]),
                flags=st.integers(0, 2**32 - 1),
                offset=FIELDS,
                vaddr=FIELDS,
                filesz=FIELDS,
                memsz=FIELDS,
                align=FIELDS,
            ),
            max_size=6,
        )
    )
    survive(tmp_path / "file", tinyelf.tiny(parts, type=data.draw(st.sampled_from([2, 3]))))


@pytest.mark.parametrize("n", [1500, pytest.param(4000, marks=pytest.mark.slow)])
def test_mutated_headers(n: int, tmp_path: Path) -> None:
    """Thousands of broken copies of a program and a library, quickly and without large allocations."""
    rng = random.Random(1)
    originals = [
        tinyelf.library("libx.so", ["liba.so"], rpath="/a:/b", runpath="/c", interp=b"/lib/ld.so\0"),
        Path(os.path.realpath(sys.executable)).read_bytes()[:20000],
    ]
    begin = time.monotonic()
    for _ in range(n):
        content = bytearray(rng.choice(originals))
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.choice([rng.randrange(64), rng.randrange(64, 64 + 13 * 56), rng.randrange(len(content))])
            content[place : place + 8] = rng.choice([bytes(8), b"\xff" * 8, rng.randbytes(rng.randrange(1, 9))])
        if rng.random() < 0.1:
            del content[rng.randrange(len(content)) :]
        survive(tmp_path / "file", bytes(content))
    assert time.monotonic() - begin < 60
