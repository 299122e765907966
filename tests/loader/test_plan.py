"""The loader's plan, on hand-written programs: nothing here needs a compiler or a particular kernel."""

from __future__ import annotations

import errno
import math
import os
import random
import struct
from pathlib import Path

import pytest
from linux import tinyelf
from linux.plans import fails, lines, make_ld_so, program
from linux.tinyelf import ET_DYN, Part, R, W, X

from vmemu.errors import SyscallError
from vmemu.loader import ExecPlan, Layout, Segment, plan
from vmemu.types import Prot

PAGE = 4096
TOP = 0x7FFFFFFFF000
PIE = 0x555555554000
AT_PHDR, AT_PHENT, AT_PHNUM, AT_BASE, AT_ENTRY, AT_RANDOM, AT_EXECFN, AT_PLATFORM = 3, 4, 5, 7, 9, 25, 31, 15
SECURE_KEYS = {11, 12, 13, 14, 23}


@pytest.fixture
def ld_so(tmp_path: Path) -> bytes:
    return make_ld_so(tmp_path)


def simple(tmp_path: Path, name: str = "prog") -> str:
    return program(tmp_path, Part(flags=R | X, vaddr=0x400000), name=name)


def at(p: ExecPlan, address: int, length: int) -> bytes:
    return p.stack_data[address - p.stack_data_address :][:length]


def string(p: ExecPlan, address: int) -> bytes:
    return p.stack_data[address - p.stack_data_address :].split(b"\0", 1)[0]


def words(p: ExecPlan) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """(argv pointers, envp pointers, auxv) read from the stack as a program would."""
    values = iter(value for (value,) in struct.iter_unpack("<Q", p.stack_data[: len(p.stack_data) // 8 * 8]))
    argc = next(values)
    argv = list(iter(values.__next__, 0))
    assert len(argv) == argc
    envp = list(iter(values.__next__, 0))
    auxv = list(iter(lambda: (next(values), next(values)), (0, 0)))
    return argv, envp, auxv


def test_static_program(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        Part(flags=R | X, vaddr=0x400000, filesz=0x1000),
        Part(flags=R | W, offset=0x1000, vaddr=0x602000, filesz=0x234, memsz=0x3000),
        size=0x2000,
    )
    p = plan(path, ["a", "bc"], {"X": "1"})
    assert lines(p) == [
        (TOP - 33 * PAGE, TOP, "rw-", 0, "stack"),
        (0x400000, 0x401000, "r-x", 0, "program"),
        (0x602000, 0x603000, "rw-", 0x1000, "program"),
        (0x603000, 0x605000, "rw-", 0, "bss"),
    ]
    assert p.zero == ((0x602234, 0x603000),)
    assert (p.start_brk, p.brk, p.entry_point) == (0x605000, 0x605000, 0x400100)
    assert (p.start_code, p.end_code, p.start_data, p.end_data) == (0x400000, 0x401000, 0x602000, 0x602234)
    auxv = dict(p.auxv)
    assert (auxv[AT_BASE], auxv[AT_PHDR], auxv[AT_PHENT], auxv[AT_PHNUM]) == (0, 0x400040, 56, 2)
    assert p.mmap_base == 0x7FFFF7FFF000
    assert (p.path, p.interpreter, p.comm) == (os.path.realpath(path), None, b"prog")
    assert p.stack == Segment(TOP - 33 * PAGE, TOP, Prot.READ | Prot.WRITE, None, 0, "stack", True)


def test_program_with_interpreter(tmp_path: Path, ld_so: bytes) -> None:
    path = program(tmp_path, Part(flags=R | X), type=ET_DYN, entry=0x123, interp=ld_so)
    p = plan(path, ["a"], {})
    base = 0x7FFFF7FFF000 - 0x3000
    assert lines(p)[1:] == [
        (PIE, PIE + 0x1000, "r-x", 0, "program"),
        (base, base + 0x1000, "r-x", 0, "interpreter"),
        (base + 0x2000, base + 0x3000, "rw-", 0x1000, "interpreter"),
    ]
    assert p.entry_point == base + 0x40
    assert dict(p.auxv)[AT_ENTRY] == PIE + 0x123
    assert dict(p.auxv)[AT_BASE] == base
    assert p.zero == ((base + 0x2800, base + 0x3000),)
    assert p.brk == PIE + 0x1000
    assert p.interpreter == os.path.realpath(tmp_path / "ld.so")


def test_static_pie_moves_its_brk(tmp_path: Path) -> None:
    p = plan(program(tmp_path, Part(flags=R | X), type=ET_DYN), ["a"], {})
    assert lines(p)[1] == (0x7FFFF7FFE000, 0x7FFFF7FFF000, "r-x", 0, "program")
    assert p.brk == 0x555555555000


def test_large_alignment(tmp_path: Path, ld_so: bytes) -> None:
    part = Part(flags=R | X, align=0x200000)
    assert plan(program(tmp_path, part, type=ET_DYN), ["a"], {}).segments[1].start == 0x7FFFF7E00000
    assert plan(program(tmp_path, part, type=ET_DYN, interp=ld_so), ["a"], {}).segments[1].start == 0x555555400000


def test_stack_contents(tmp_path: Path) -> None:
    path = simple(tmp_path)
    p = plan(path, [b"a", "", "long" * 99], ["X=1", b"Y=\xff"])
    argv, envp, auxv = words(p)
    assert p.stack_pointer % 16 == 0
    assert [string(p, a) for a in argv] == [b"a", b"", b"long" * 99] == list(p.argv)
    assert [string(p, a) for a in envp] == [b"X=1", b"Y=\xff"] == list(p.envp)
    assert auxv == list(p.auxv)
    assert (argv[0], envp[0]) == (p.arg_start, p.env_start) == (p.arg_start, p.arg_end)
    assert p.env_end == dict(auxv)[AT_EXECFN]
    assert string(p, dict(auxv)[AT_EXECFN]) == os.fsencode(path) == p.exec_fn
    assert string(p, dict(auxv)[AT_PLATFORM]) == b"x86_64"
    assert at(p, dict(auxv)[AT_RANDOM], 16) == b"vmemu: AT_RANDOM"
    assert p.stack_data.endswith(os.fsencode(path) + b"\0" * 9)
    assert p.stack_pointer + len(p.stack_data) == TOP
    assert not {33} & dict(auxv).keys()


def test_room_of_the_vdso_entry_is_kept(tmp_path: Path) -> None:
    path = simple(tmp_path)
    without, real = (plan(path, ["a"], {}, layout=Layout(vdso=vdso)) for vdso in (None, 0x7FFFF7FC8000))
    assert without.stack_pointer == real.stack_pointer
    assert real.auxv[0] == (33, 0x7FFFF7FC8000)
    assert real.auxv[1:] == without.auxv


def test_no_arguments_become_an_empty_one(tmp_path: Path) -> None:
    assert plan(simple(tmp_path), [], {}).argv == (b"",)


def test_executable_stack(tmp_path: Path) -> None:
    for flags, prot in ((7, Prot.READ | Prot.WRITE | Prot.EXEC), (6, Prot.READ | Prot.WRITE)):
        path = program(tmp_path, Part(flags=R | X, vaddr=0x400000), Part(tinyelf.PT_GNU_STACK, flags))
        assert plan(path, ["a"], {}).stack.prot == prot


@pytest.mark.parametrize(
    ("limit", "pages", "base"),
    [
        (8 << 20, 33, 0x7FFFF7FFF000),
        (0, 1, 0x7FFFF7FFF000),
        (64 << 10, 16, 0x7FFFF7FFF000),
        (256 << 20, 33, TOP - (257 << 20)),
        (math.inf, 33, TOP - TOP // 6 * 5 & -PAGE),
        (-1, 33, TOP - TOP // 6 * 5 & -PAGE),
        (2**64 - 1, 33, TOP - TOP // 6 * 5 & -PAGE),
    ],
)
def test_stack_limit(tmp_path: Path, limit: float, pages: int, base: int) -> None:
    p = plan(simple(tmp_path), ["a"], {}, layout=Layout(stack_limit=limit))
    assert p.stack.size == pages * PAGE
    assert abs(p.mmap_base - base) <= PAGE
    assert p.mmap_base % PAGE == 0


def test_stack_grows_for_many_pointers(tmp_path: Path) -> None:
    p = plan(simple(tmp_path), [""] * 30000, {})
    assert p.stack.start == p.stack_pointer & -PAGE
    fails(errno.EFAULT, "SIGSEGV", simple(tmp_path), [""] * 14000, {}, layout=Layout(stack_limit=100 << 10))


def test_strings_too_long(tmp_path: Path) -> None:
    path = simple(tmp_path)
    plan(path, ["x" * 131071], {})
    fails(errno.E2BIG, "a string of 131072 bytes", path, ["x" * 131072], {})
    fails(errno.E2BIG, "more than", path, ["x" * 100000] * 70, {})
    fails(errno.E2BIG, "more than", path, ["x" * 100000] * 2, {}, layout=Layout(stack_limit=256 << 10))
    fails(errno.E2BIG, "pointers", path, [""] * 800000, {})
    fails(errno.E2BIG, "RLIMIT_STACK", path, ["x" * 9000], {}, layout=Layout(stack_limit=8192))


def test_files_that_cannot_be_executed(tmp_path: Path) -> None:
    path = simple(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "plain").write_bytes(tinyelf.tiny())
    os.mkfifo(tmp_path / "pipe", 0o755)
    args: tuple[list[str], dict[str, str]] = (["a"], {})
    fails(errno.ENOENT, "cannot be opened", str(tmp_path / "none"), *args)
    fails(errno.ENOENT, "empty", "", *args)
    fails(errno.ENOENT, "NUL", path + "\0", *args)
    fails(errno.ENOTDIR, "cannot be opened", path + "/", *args)
    fails(errno.ENOTDIR, "cannot be opened", path + "/x", *args)
    fails(errno.ELOOP, "cannot be opened", str(tmp_path / "loop"), *args)
    fails(errno.ENAMETOOLONG, "4096", "x" * 4096, *args)
    fails(errno.EACCES, "directory", str(tmp_path), *args)
    fails(errno.EACCES, "not a regular", str(tmp_path / "pipe"), *args)
    fails(errno.EACCES, "-rw-r--r--", str(tmp_path / "plain"), *args)
    fails(errno.ENOEXEC, "neither", tinyelf.save(tmp_path / "empty", b""), *args)
    fails(errno.EINVAL, "NUL", path, ["a\0b"], {})
    with pytest.raises(TypeError, match="argv"):
        plan(path, "a", {})


def test_permission_by_user(tmp_path: Path) -> None:
    path = simple(tmp_path)
    owner = os.stat(path)
    for mode, uid, gid, allowed in (
        (0o001, 0, 0, True),
        (0o011, owner.st_uid or 1, 99, not owner.st_uid),
        (0o100, owner.st_uid, 99, True),
        (0o010, 77, owner.st_gid, True),
        (0o101, 77, owner.st_gid, False),
        (0o001, 77, 77, True),
        (0o110, 77, 77, False),
    ):
        os.chmod(path, mode | 0o444)
        layout = Layout(uid=uid, euid=uid, gid=gid, egid=gid)
        if allowed:
            plan(path, ["a"], {}, layout=layout)
        else:
            fails(errno.EACCES, "execute", path, ["a"], {}, layout=layout)


def test_set_user_id(tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("the temporary directory is mounted nosuid")
    path = simple(tmp_path)
    os.chmod(path, 0o6755)
    st = os.stat(path)
    p = plan(path, ["a"], {}, layout=Layout(uid=4242, euid=4242, gid=4242, egid=4242))
    assert [(k, v) for k, v in p.auxv if k in SECURE_KEYS] == [
        (11, 4242),
        (12, st.st_uid),
        (13, 4242),
        (14, st.st_gid),
        (23, 1),
    ]
    assert (p.credentials.euid, p.credentials.egid) == (st.st_uid, st.st_gid)


@pytest.mark.parametrize(
    ("part", "number"),
    [
        (Part(vaddr=0x400001), errno.EINVAL),
        (Part(vaddr=0x400000, memsz=0x800), errno.EINVAL),
        (Part(vaddr=TOP), errno.ENOMEM),
        (Part(vaddr=2**64 - 0x1000), errno.ENOMEM),
        (Part(vaddr=0x400000, memsz=2**63), errno.ENOMEM),
        (Part(vaddr=0x400000, offset=2**63 - 0x1000), errno.EOVERFLOW),
        (Part(vaddr=TOP - 0x1000), errno.EEXIST),
        (Part(flags=R | W, vaddr=0x400800, offset=0x8800, filesz=0x100, memsz=0x200), errno.EFAULT),
        (Part(vaddr=0x400000, filesz=2**64 - 1, memsz=2**64 - 1), errno.EINVAL),
    ],
)
def test_past_the_point_of_no_return(tmp_path: Path, part: Part, number: int) -> None:
    fails(number, "SIGSEGV", program(tmp_path, part), ["a"], {})


def test_file_shorter_than_its_segments(tmp_path: Path) -> None:
    """Linux maps it all the same; what is beyond the end of the file gives SIGBUS later."""
    assert plan(program(tmp_path, Part(vaddr=0x400000, filesz=0x100000)), ["a"], {}).segments[1].size == 0x100000


def test_huge_bss_costs_nothing(tmp_path: Path) -> None:
    path = program(tmp_path, Part(flags=R | W, vaddr=0x400000, filesz=0x1000, memsz=1 << 45))
    assert plan(path, ["a"], {}).segments[-1].size == (1 << 45) - 0x1000


def test_later_segments_replace_earlier_ones(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        Part(flags=R | W, vaddr=0x400000, filesz=0x800, memsz=0x4000),
        Part(flags=R | X, vaddr=0x401000),
    )
    p = plan(path, ["a"], {})
    assert lines(p)[1:] == [
        (0x400000, 0x401000, "rw-", 0, "program"),
        (0x402000, 0x404000, "rw-", 0, "bss"),
        (0x401000, 0x402000, "r-x", 0, "program"),
    ]


def test_bad_interpreters(tmp_path: Path) -> None:
    def with_interp(
        name: str, content: bytes | None = None, mode: int = 0o755
    ) -> tuple[str, list[str], dict[str, str]]:
        if content is not None:
            tinyelf.save(tmp_path / name, content, mode)
        interp = os.fsencode(tmp_path / name) + b"\0"
        return program(tmp_path, Part(flags=R | X), type=ET_DYN, interp=interp), ["a"], {}

    fails(errno.ENOENT, "ELF interpreter of", *with_interp("none"))
    fails(errno.EACCES, "mode", *with_interp("i", tinyelf.tiny(), 0o644))
    fails(errno.EIO, "only 3 bytes", *with_interp("i", b"abc"))
    fails(errno.ELIBBAD, "not an ELF", *with_interp("i", b"#!/bin/sh\n".ljust(99)))
    fails(errno.ELIBBAD, "machine", *with_interp("i", tinyelf.tiny(machine=3)))
    fails(errno.EPERM, "SIGSEGV", *with_interp("i", tinyelf.tiny(type=1)))
    fails(errno.EINVAL, "SIGSEGV", *with_interp("i", tinyelf.tiny([Part(tinyelf.PT_GNU_STACK)])))
    fails(errno.EACCES, "directory", *with_interp("."))


@pytest.mark.parametrize(
    ("line", "name", "argument"),
    [
        (b"#!%s\n", True, None),
        (b"#! \t %s \t \n", True, None),
        (b"#!%s -x y  z \n", True, b"-x y  z"),
        (b"#!%s", True, None),
        (b"#!%s ", True, b""),
        (b"#!%s\0 junk\n", True, None),
        (b"#!%s a\0junk\n", True, b"a"),
        (b"#!%s " + b"y" * 300, True, None),
        (b"#!\n", False, "no interpreter"),
        (b"#!  \t\n%s", False, "no interpreter"),
        (b"#!" + b" " * 300, False, "blanks"),
        (b"#!/" + b"x" * 300 + b"\n", False, "256 bytes"),
    ],
)
def test_script_line(tmp_path: Path, line: bytes, name: bool, argument: object) -> None:
    path = simple(tmp_path, "p")
    line = line.replace(b"%s", os.fsencode(path))
    script = tinyelf.save(tmp_path / "script", line)
    if not name:
        fails(errno.ENOEXEC, str(argument), script, ["a", "b"], {})
        return
    p = plan(script, ["a", "b"], {})
    if len(line) > 256:
        argument = line[: 256 - 1].split(b" ")[1]
    middle = [argument] if argument is not None else []
    assert list(p.argv) == [os.fsencode(path), *middle, os.fsencode(script), b"b"]
    assert (p.exec_fn, p.comm) == (os.fsencode(script), b"script")
    assert p.path == os.path.realpath(path)


def chain(tmp_path: Path, length: int) -> str:
    last = simple(tmp_path, "p")
    for number in range(length):
        last = tinyelf.save(tmp_path / f"s{number}", b"#!" + os.fsencode(last) + b" %d\n" % number)
    return last


def test_script_chain(tmp_path: Path) -> None:
    p = plan(chain(tmp_path, 5), ["zero", "one"], {})
    assert [os.path.basename(text) for text in p.argv] == [
        *(b"p", b"0", b"s0", b"1", b"s1", b"2", b"s2", b"3", b"s3", b"4", b"s4"),
        b"one",
    ]
    fails(errno.ELOOP, "more than 5", chain(tmp_path, 6), ["zero"], {})


def test_relative_to_cwd(tmp_path: Path) -> None:
    simple(tmp_path, "p")
    tinyelf.save(tmp_path / "script", b"#!./p\n")
    p = plan("./script", ["x"], {}, cwd=str(tmp_path))
    assert p.argv == (b"./p", b"./script")
    assert p.path == os.path.realpath(tmp_path / "p")
    fails(errno.ENOENT, "cannot be opened", "./script", ["x"], {}, cwd="/")


def test_randomisation(tmp_path: Path, ld_so: bytes) -> None:
    path = program(tmp_path, Part(flags=R | X), type=ET_DYN, interp=ld_so)
    one, two = (plan(path, ["a"], {}, layout=Layout(rng=random.Random(7))) for _ in range(2))
    assert one == two
    rng = random.Random(1)
    plans = [plan(path, ["a"], {}, layout=Layout(rng=rng)) for _ in range(400)]
    bits = {
        28 + 12: [p.segments[1].start - PIE for p in plans],
        28 + 12.0: [0x7FFFF7FFF000 - p.mmap_base - (16 << 30) for p in plans],
        22 + 12: [TOP - p.stack.end for p in plans],
        18 + 12: [p.brk - p.segments[1].end - PAGE for p in plans],
    }
    for width, values in bits.items():
        assert all(-(256 << 20) <= value < 1 << int(width) for value in values), width
        assert max(values) > 0.9 * 2**width
        assert min(values) < 0.1 * 2**width
        assert all(value % PAGE == 0 for value in values)
    assert len({at(p, dict(p.auxv)[AT_RANDOM], 16) for p in plans}) == 400
    assert len({p.arg_start - p.stack_pointer for p in plans}) > 100
    assert all(p.stack_pointer % 16 == 0 and words(p)[2] == list(p.auxv) for p in plans)


def test_plan_changes_nothing(tmp_path: Path) -> None:
    path = simple(tmp_path)
    before = os.stat(path), os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else None
    plan(path, ["a"], {})
    for bad in (path + "x", str(tmp_path)):
        with pytest.raises(SyscallError):
            plan(bad, ["a"], {})
    after = os.stat(path), os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else None
    assert before[0].st_mtime_ns == after[0].st_mtime_ns
    assert before[1] == after[1]
