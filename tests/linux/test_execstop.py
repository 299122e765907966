"""The loader's plan against the kernel that runs the tests: every address, every byte of the stack, every errno.

Each program is exec'ed for real and stopped at its first instruction (`execstop`), then planned; nothing may differ.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from linux import execstop, linkstop, tinyelf
from linux.tinyelf import ET_DYN, Part, R, W, X

pytestmark = pytest.mark.linux

LD_SO = "/lib64/ld-linux-x86-64.so.2"
SOURCE = """
#include <stdio.h>
char room[ROOM + 1]; int data = 5;
int main(void) { puts("x"); return room[0] + data; }
"""
BUILDS: dict[str, tuple[int, str]] = {
    "pie": (100000, "-pie"),
    "no-pie": (100000, "-no-pie"),
    "static": (100000, "-static"),
    "static-pie": (100000, "-static-pie"),
    "bss-within-a-page": (8, "-pie"),
    "bss-of-300-MiB": (300 << 20, "-pie"),
    "bss-of-300-MiB-static-pie": (300 << 20, "-static-pie"),
    "execstack": (8, "-z execstack"),
    "aligned-2-MiB": (100000, "-Wl,-z,max-page-size=0x200000"),
    "aligned-2-MiB-static-pie": (100000, "-static-pie -Wl,-z,max-page-size=0x200000"),
    "aligned-2-MiB-static": (100000, "-static -Wl,-z,max-page-size=0x200000"),
    "noseparate-code": (100000, "-z noseparate-code"),
    "noseparate-code-static-pie": (8, "-static-pie -z noseparate-code"),
    "no-relro": (8, "-z norelro"),
}
TINY = {
    "one page": tinyelf.tiny(),
    "no bss, ET_DYN": tinyelf.tiny([Part(flags=R | X)], type=ET_DYN),
    "first address not zero": tinyelf.tiny([Part(flags=R | X, vaddr=0x10000)], type=ET_DYN),
    "bss only": tinyelf.tiny(
        [Part(flags=R | X, vaddr=0x400000), Part(flags=R | W, vaddr=0x500123, filesz=0, memsz=9999)]
    ),
    "executable bss": tinyelf.tiny([Part(flags=R | W | X, vaddr=0x400000, filesz=0x900, memsz=0x5000)]),
    "read-only bss": tinyelf.tiny([Part(flags=R, vaddr=0x400000, filesz=0x900, memsz=0x5000)]),
    "overlapping": tinyelf.tiny(
        [Part(flags=R | W, vaddr=0x400000, filesz=0x800, memsz=0x4000), Part(flags=R | X, vaddr=0x401000)]
    ),
    "beyond the end of the file": tinyelf.tiny([Part(flags=R | X, vaddr=0x400000, filesz=0x9000)]),
    "backwards": tinyelf.tiny([Part(flags=R | W, vaddr=0x600000, memsz=0x2100), Part(flags=R | X, vaddr=0x400000)]),
    "nothing to load": tinyelf.tiny([Part(tinyelf.PT_GNU_STACK, 7)]),
    "other alignments": tinyelf.tiny(
        [Part(flags=R | X, align=0x3000), Part(vaddr=0x9000, align=0x4000000)], type=ET_DYN
    ),
    "last page": tinyelf.tiny([Part(vaddr=0x7FFFFFFFE000)]),
    "up to the guard gap": tinyelf.tiny([Part(flags=R | W, vaddr=0x7FFFFFD00000, memsz=0x1DE000)]),
    "stack over it": tinyelf.tiny([Part(vaddr=0x400000), Part(vaddr=0x7FFFFFFF0000)]),
    "program headers not mapped": tinyelf.tiny([Part(vaddr=0x401000, offset=0x1000)], size=0x2000),
}


@pytest.fixture(scope="module", autouse=True)
def _usable(stoppable: None) -> None:
    major, minor = (int(part) for part in platform.release().split(".")[:2])
    if (major, minor) < (6, 15):
        pytest.skip(f"Linux {major}.{minor} places the brk and counts the auxiliary vector otherwise")


@functools.cache
def programs() -> list[str]:
    return execstop.elf_programs()


def same(program: str | Path, argv: list[bytes] | None = None, envp: list[bytes] | None = None, **more: object) -> None:
    argv = [b"name", b"argument"] if argv is None else argv
    wrong = execstop.check(str(program), argv, [b"PATH=/bin"] if envp is None else envp, **more)  # type: ignore[arg-type]
    assert not wrong, "\n".join([str(program), *wrong])


def test_sample_of_installed_programs() -> None:
    rng = random.Random(0)
    sample = rng.sample(programs(), min(100, len(programs())))
    if len(sample) < 40:
        pytest.skip("fewer than 40 ELF programs in /usr/bin")
    wrong = {path: lines for path in sample if (lines := execstop.check(path, [path.encode()], [b"X=1"]))}
    assert not wrong


def test_sample_of_started_programs() -> None:
    """With link=True: the files that ld.so has mapped when it jumps to the program."""
    if not os.path.exists(LD_SO):
        pytest.skip("no glibc here")
    names = ["ls", "cat", "bash", "sh", "env", "sleep", "sort", "tar", "grep", "sed", "awk", "perl", "openssl", "gcc"]
    present = [path for name in names if (path := f"/usr/bin/{name}") in programs()]
    wrong = {path: lines for path in present if (lines := linkstop.check(path))}
    assert not wrong


@pytest.mark.parametrize("name", BUILDS)
def test_compiled(name: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    room, flags = BUILDS[name]
    command = ["gcc", f"-DROOM={room}", "-x", "c", "-", "-o", str(tmp_path / "prog"), *flags.split()]
    done = subprocess.run(command, input=SOURCE, text=True, capture_output=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"gcc: {done.stderr.strip().splitlines()[-1]}")
    same(tmp_path / "prog")


@pytest.mark.parametrize("name", TINY)
def test_hand_written(name: str, tmp_path: Path) -> None:
    same(tinyelf.save(tmp_path / "tiny", TINY[name]))


def test_dynamic_loader_itself() -> None:
    if not os.path.exists(LD_SO):
        pytest.skip("no glibc here")
    same(LD_SO)


SHAPES: dict[str, tuple[list[bytes], list[bytes]]] = {
    "none": ([], []),
    "empty": ([b""], [b""]),
    "many empty": ([b""] * 100, [b""] * 99),
    "odd count": ([b"a", b"b", b"c"], [b"X"]),
    "long": ([b"a" * 131071], [b"b" * 131071]),
    "too long": ([b"a" * 131072], []),
    "many": ([b"x"] * 5000, [b"y" * 30] * 3000),
    "pointers beyond 128 KiB": ([b""] * 40000, []),
    "nearly 6 MiB": ([b"z" * 100000] * 20, [b"z" * 1000] * 100),
    "more than 2 MiB": ([b"z" * 100000] * 22, []),
    "not ASCII": (["ä€".encode(), b"\xff\xfe"], [b"LANG=\xe9"]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_strings(name: str) -> None:
    argv, envp = SHAPES[name]
    same("/bin/true", argv, envp)


def test_every_alignment_of_strings() -> None:
    for length in range(17):
        same("/bin/true", [b"a" * length], [b"X"])


@pytest.mark.parametrize(
    "limit", [0, 4096, 8192, 100000, 128 << 10, 1 << 20, 64 << 20, 1 << 30, 1 << 40, 150 << 40, -1]
)
def test_stack_limits(limit: int) -> None:
    for argv in ([b"a"], [b"x" * 3000] * 30, [b"y" * 100000], [b""] * 16385, [b""] * 20000):
        same("/bin/true", argv, stack_limit=limit)


@pytest.mark.parametrize("n", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_scripts(n: int, tmp_path: Path) -> None:
    """Lines of all kinds, and scripts that name scripts."""
    rng = random.Random(4)
    names = [b"/bin/true", b"/bin/sh", b"", b"nosuch", b"/bin", b"./0", b"./1", b"./2", b"/bin/true/x", b"loop"]
    names += [b"/bin/" + b"./" * count + b"true" for count in (60, 120, 122, 123, 124, 130)]
    ends = [b"", b" ", b"\t", b" arg", b" two words ", b"\0", b" \0", b" a\0b", b" " + b"q" * 250, b" " * 240, b"\r"]
    (tmp_path / "loop").symlink_to("loop")
    for _ in range(n):
        for number in range(3):
            line = b"#!" + rng.choice([b"", b"", b" ", b"\t ", b" " * 200]) + rng.choice(names) + rng.choice(ends)
            tinyelf.save(tmp_path / str(number), line + rng.choice([b"", b"\n", b"\n", b"\nrest"]))
        for argv in ([b"x", b"y"], [], [b"long" * 50]):
            same(rng.choice(["0", "./1"]), argv, cwd=str(tmp_path))


def test_script_chains(tmp_path: Path) -> None:
    last = "/bin/true"
    for number in range(8):
        last = tinyelf.save(tmp_path / str(number), f"#!{last} {number}\n".encode())
        same(last)


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "plain").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe", 0o755)
    tinyelf.save(tmp_path / "empty", b"")
    tinyelf.save(tmp_path / "text", b"echo\n")
    names = ["", "none", ".", "loop", "plain", "plain/", "empty/x", "pipe", "empty", "text", "a" * 255, "a" * 256]
    for name in [*names, "/dev/null", "a" * 4095, "a" * 4096, "/" * 4096, "/proc/1/exe/x"]:
        same(name, cwd=str(tmp_path))


def test_bad_interpreters(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o755)
    (tmp_path / "plain").write_bytes(tinyelf.tiny())
    good = tinyelf.tiny([Part(flags=R | X)], type=ET_DYN)
    contents = [b"", b"abc", b"#!/bin/sh\n".ljust(99), tinyelf.tiny(machine=3), tinyelf.tiny(type=1), good[:100]]
    contents += [tinyelf.tiny([Part(tinyelf.PT_GNU_STACK)]), tinyelf.tiny(), good, tinyelf.tiny(phnum=0)]
    contents += [tinyelf.tiny([Part(vaddr=address)], type=ET_DYN) for address in (0x1000, 0x10000, 0x400000, 2**40)]
    for number, content in enumerate(contents):
        tinyelf.save(tmp_path / f"i{number}", content)
    for name in [*(f"i{number}" for number in range(len(contents))), "none", "plain", "pipe", ".", "", "./i8"]:
        for kind in (2, 3):
            part = Part(flags=R | X, vaddr=0x400000 if kind == 2 else 0)
            program = tinyelf.tiny([part], type=kind, interp=name.encode() + b"\0")
            tinyelf.save(tmp_path / "prog", program)
            same("./prog", cwd=str(tmp_path))


def test_set_id_programs(tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("the temporary directory is mounted nosuid")
    for mode in (0o4755, 0o2755, 0o2745, 0o6755):
        path = tinyelf.save(tmp_path / "prog", tinyelf.tiny())
        os.chown(path, 4242, 4343)
        os.chmod(path, mode)
        same(path)


ODD = [0, 1, 8, 0xFFF, 0x1000, 0x1001, 0x2000, 0x200000, 0x400000, 0x7FFFFFFFF000, 0x7FFFFFFFE000, 0x7FFFF8000000]
ODD += [2**31, 2**32 - 1, 2**47, 0x555555554000, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1]
MEMORY_MAX = 2 << 30
"""Bytes of bss that any machine grants; the plan knows no limit on memory."""


def mutated(original: bytes, rng: random.Random) -> bytes:
    """One to three fields of the headers set to something else."""
    content = bytearray(original)
    count = struct.unpack_from("<H", content, 56)[0]
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.15:
            place, size = rng.choice([(16, 2), (18, 2), (24, 8), (32, 8), (54, 2), (56, 2), (4, 1), (40, 8)])
        else:
            field, size = rng.choice([(0, 4), (4, 4), (8, 8), (16, 8), (32, 8), (40, 8), (48, 8)])
            place = 64 + 56 * rng.randrange(count) + field
        old = int.from_bytes(content[place : place + size], "little")
        nearby = old + rng.choice([-1, 1, 8, 0x800, -0x1000, 0x1000, 0x2000, 0x100000, 0x200000, -0x200000])
        new = rng.choice([rng.choice(ODD), nearby, old ^ 1 << rng.randrange(8 * size)])
        content[place : place + size] = (new & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(content)


def greedy(content: bytes) -> bool:
    """Whether a PT_LOAD asks for so much memory that the machine may say no."""
    count = min(struct.unpack_from("<H", content, 56)[0], 1170)
    rows = [content[64 + 56 * i : 120 + 56 * i] for i in range(count)]
    loads = [row for row in map(struct.Struct("<IIQQQQQQ").unpack, (r for r in rows if len(r) == 56)) if row[0] == 1]
    ends = [row[3] + row[6] for row in loads] + [row[3] for row in loads]
    return any(row[6] > MEMORY_MAX for row in loads) or (bool(ends) and max(ends) - min(ends) > MEMORY_MAX)


@pytest.mark.parametrize("n", [250, pytest.param(600, marks=pytest.mark.slow)])
def test_mutated_headers(n: int, tmp_path: Path) -> None:
    """What the kernel makes of broken programs: the same maps, or the same error."""
    rng = random.Random(8)
    two = [
        Part(flags=R | X, filesz=0x1000),
        Part(flags=R | W, offset=0x1000, vaddr=0x2800, filesz=0x700, memsz=0x3000),
        Part(tinyelf.PT_GNU_STACK, 6, filesz=0),
    ]
    fixed = [Part(p.type, p.flags, p.offset, p.vaddr + 0x400000, p.filesz, p.memsz) for p in two]
    originals = [
        tinyelf.tiny(two, type=ET_DYN, size=0x2000),
        tinyelf.tiny(two, type=ET_DYN, size=0x2000, interp=os.fsencode(tmp_path / "ld.so") + b"\0"),
        tinyelf.tiny(fixed, size=0x2000),
        tinyelf.tiny(fixed, size=0x2000, interp=os.fsencode(tmp_path / "ld.so") + b"\0"),
    ]
    loader = originals[0]
    for _ in range(n):
        program, broken = rng.choice(originals), loader
        if rng.random() < 0.3:
            broken = mutated(loader, rng)
        else:
            program = mutated(program, rng)
        if greedy(program) or greedy(broken):
            continue
        tinyelf.save(tmp_path / "ld.so", broken)
        same(tinyelf.save(tmp_path / "prog", program))


def test_randomised_addresses_lie_in_the_same_ranges() -> None:
    rng = random.Random(2)
    for _ in range(40):
        real = execstop.record("/bin/true", [b"a"], [b"X"], randomize=True)
        plan = execstop.loader.plan("/bin/true", [b"a"], [b"X"], layout=execstop.layout_of(real, rng=rng))
        rows = [
            (real.maps, real.rsp, real.mm),
            (execstop.planned_maps(plan), plan.stack_pointer, {"start_brk": plan.brk}),
        ]
        for maps, rsp, mm in rows:
            image_end = max(end for _, end, _, _, name in maps if end < 0x600000000000)
            top = next(end for start, end, *_ in maps if start <= rsp < end)
            assert 0x555555554000 <= maps[0][0] < 0x555555554000 + (1 << 40)
            assert image_end + 4096 <= mm["start_brk"] < image_end + 4096 + (1 << 30)
            assert 0 <= 0x7FFFFFFFF000 - top < 1 << 34
            assert rsp % 16 == 0
            assert 0 < top - rsp < 8192 * 2 + 4096


def test_it_would_notice(tmp_path: Path) -> None:
    """The comparison itself: a plan for another program, or with another layout, differs."""
    real = execstop.record("/bin/true", [b"a"], [b"X"])
    layout = execstop.layout_of(real)
    plan = execstop.loader.plan
    assert not execstop.differences(real, plan("/bin/true", ["a"], ["X"], layout=layout))
    assert execstop.differences(real, plan("/bin/cat", ["a"], ["X"], layout=layout))
    assert execstop.differences(real, plan("/bin/true", ["b"], ["X"], layout=layout))
    assert execstop.differences(real, plan("/bin/true", ["a"], ["X"], layout=execstop.layout_of(real, uid=1)))
    with pytest.raises(execstop.ExecFailed) as failed:
        execstop.record(str(tmp_path / "none"), [b"a"], [])
    assert failed.value.errno == errno.ENOENT
