"""The loader's plan, on hand-written programs: nothing here needs a compiler or a particular kernel."""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from linux import tinyelf
from linux.tinyelf import ET_DYN, Part, R, W, X

from vmemu import linker
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
    """An interpreter: its path as PT_INTERP has it."""
    parts = [
        Part(flags=R | X, filesz=0x1000),
        Part(flags=R | W, offset=0x1000, vaddr=0x2000, filesz=0x800, memsz=0x900),
    ]
    content = tinyelf.tiny(parts, type=ET_DYN, entry=0x40, size=0x2000)
    return os.fsencode(tinyelf.save(tmp_path / "ld.so", content)) + b"\0"


def program(tmp_path: Path, *parts: Part, name: str = "prog", **more: object) -> str:
    return tinyelf.save(tmp_path / name, tinyelf.tiny(parts, **more))  # type: ignore[arg-type]


def simple(tmp_path: Path, name: str = "prog") -> str:
    return program(tmp_path, Part(flags=R | X, vaddr=0x400000), name=name)


def lines(p: ExecPlan) -> list[tuple[int, int, str, int, str]]:
    """(start, end, permissions, offset, role)"""
    return [
        (
            s.start,
            s.end,
            "".join(c if s.prot & bit else "-" for c, bit in zip("rwx", Prot, strict=False)),
            s.offset,
            s.role,
        )
        for s in p.segments
    ]


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


def fails(number: int, why: str, *args: object, **more: object) -> SyscallError:
    with pytest.raises(SyscallError, match=why) as refused:
        plan(*args, **more)  # type: ignore[arg-type]
    assert refused.value.errno == number
    return refused.value


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


def test_mutated_programs(tmp_path: Path, ld_so: bytes) -> None:
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
    for _ in range(3000):
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
            assert all(a < b and any(s.start <= a and b <= s.end for s in p.segments) for a, b in p.zero)
            outcomes.add(0)
        except SyscallError as error:
            outcomes.add(error.errno)
        tinyelf.save(tmp_path / name, originals[name])
    assert {0, errno.ENOEXEC, errno.ELIBBAD, errno.ENOMEM, errno.EINVAL} <= outcomes
