"""PID/maps, smaps and smaps_rollup, byte for byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, filled, machine

from vmemu import Advice, Map, Mapping, Prot
from vmemu.procfs.maps import maps_text as render

LINE = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-])([sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)(?: +(.*)| )\n?"
)


def parse(text: bytes) -> list[Mapping]:
    """Real lines of /proc/PID/maps as records."""
    out = []
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        assert found, line
        start, end, rwx, shared, offset, major, minor, inode, name = found.groups()
        prot = sum(bit for bit, flag in zip((1, 2, 4), rwx, strict=True) if flag != ord("-"))
        out.append(
            Mapping(
                start=int(start, 16),
                end=int(end, 16),
                prot=Prot(prot),
                shared=shared == b"s",
                offset=int(offset, 16),
                device=(int(major, 16), int(minor, 16)),
                inode=int(inode),
                name=os.fsdecode((name or b"").replace(b"\\012", b"\n")),
            )
        )
    return out


def real_maps(path: Path) -> bytes:
    """The mappings of a real process that has some of every kind, those of this one included."""
    (path / "with space").write_bytes(bytes(3 * PAGE))
    (path / "line\nbreak").write_bytes(bytes(PAGE))
    (path / "gone").write_bytes(bytes(PAGE))
    (path / os.fsdecode(b"\xff\xfe")).write_bytes(bytes(PAGE))
    code = (
        "import mmap, os, sys\n"
        "keep = [mmap.mmap(-1, 8192), mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)]\n"
        "for name in os.listdir(sys.argv[1]):\n"
        "    fd = os.open(os.path.join(sys.argv[1], name), os.O_RDWR)\n"
        "    keep.append(mmap.mmap(fd, 4096, mmap.MAP_PRIVATE))\n"
        "    keep.append(mmap.mmap(fd, 4096, mmap.MAP_SHARED))\n"
        "os.unlink(os.path.join(sys.argv[1], 'gone'))\n"
        "sys.stdout.buffer.write(open('/proc/self/maps', 'rb').read())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, check=True, timeout=60)
    return done.stdout


@pytest.mark.linux
def test_lines_of_the_real_kernel_render_to_themselves(tmp_path: Path) -> None:
    """Parsed and printed again, each line of a real /proc/PID/maps is byte for byte what the kernel printed."""
    text = real_maps(tmp_path)
    assert b"[stack]" in text
    assert b"\\012" in text
    assert b"(deleted)" in text
    for line in text.splitlines(keepends=True):
        assert render(parse(line)) == line
    assert render(parse(text)) == text


def test_maps_of_an_emulated_process() -> None:
    """Anonymous, shared, file and heap lines."""
    with machine() as m:
        p = m.spawn()
        anon(p, 2, A)
        p.mmap(A + 2 * PAGE, PAGE, Prot.NONE, ANON | Map.FIXED)
        p.mmap(A + 4 * PAGE, PAGE, RW, SHARED | Map.FIXED)
        file = m.create_file("a label", bytes(9 * PAGE))
        p.mmap(A + 6 * PAGE, PAGE, Prot.READ | Prot.EXEC, Map.PRIVATE | Map.FIXED, file, 3 * PAGE)
        p.brk(p.brk() + 1)
        text = m.procfs.read(f"{p.pid}/maps").decode()
        shm = next(v.inode for v in p.maps() if v.shared)
        device = "00:01"
        heap = p.brk() - 1
        pad = 73
        assert text == (
            "10000000-10002000 rw-p 00000000 00:00 0 \n"
            "10002000-10003000 ---p 00000000 00:00 0 \n"
            + f"10004000-10005000 rw-s 00000000 {device} {shm} ".ljust(pad)
            + "/dev/zero (deleted)\n"
            + f"10006000-10007000 r-xp 00003000 00:1a {file.inode} ".ljust(pad)
            + "a label\n"
            + f"{heap:x}-{heap + PAGE:x} rw-p 00000000 00:00 0 ".ljust(pad)
            + "[heap]\n"
        )
        assert parse(text.encode()) == [
            Mapping(**{**{f: getattr(v, f) for f in Mapping.__dataclass_fields__}, "flags": ()}) for v in p.maps()
        ]


def test_file_names_in_maps(tmp_path: Path) -> None:
    """The resolved path; a line break as \\012, blanks and other bytes as they are."""
    with machine() as m:
        p = m.spawn()
        for i, raw in enumerate([b"with space", b"line\nbreak", b"back\\slash", b"\xff\xfe", "grüße".encode()]):
            path = tmp_path / os.fsdecode(raw)
            path.write_bytes(b"x")
            link = tmp_path / f"link{i}"
            link.symlink_to(path)
            p.mmap(A + 2 * i * PAGE, PAGE, R, Map.PRIVATE | Map.FIXED, m.open_file(link))
        names = [line.split(maxsplit=5)[5] for line in m.procfs.read(f"{p.pid}/maps").splitlines()]
        top = os.fsencode(os.path.realpath(tmp_path)) + b"/"
        want = [b"with space", b"line\\012break", b"back\\slash", b"\xff\xfe", "grüße".encode()]
        assert names == [top + name for name in want]


def test_maps_of_a_program_has_its_stack_and_heap() -> None:
    """[stack] is the mapping that holds the stack pointer, [heap] the break's."""
    with machine(memory="64MiB") as m:
        p = m.spawn("/bin/sh", ["sh"], {})
        p.brk(p.brk() + PAGE)
        text = m.procfs.read(f"{p.pid}/maps").decode()
        named = {line.split(maxsplit=5)[5]: line for line in text.splitlines() if len(line.split(maxsplit=5)) == 6}
        assert {"[stack]", "[heap]", os.path.realpath("/bin/sh")} <= set(named)
        stack = parse(named["[stack]"].encode())[0]
        assert stack.start <= p.stack_pointer < stack.end
        assert text.splitlines() == sorted(text.splitlines(), key=lambda line: int(line.split("-")[0], 16))


def test_smaps_sums_to_the_properties() -> None:
    """The text's Rss, Pss and Private lines add up to rss, pss and uss; a line of maps heads each block."""
    with machine() as m:
        p = m.spawn()
        filled(p, 10)
        p.write(p.mmap(None, 3 * PAGE, RW, SHARED), b"x" * 3 * PAGE)
        c = p.fork()
        c.write(p.maps()[0].start, b"x")
        text = m.procfs.read(f"{p.pid}/smaps").decode()

        def total(key: str) -> int:
            return sum(int(n) << 10 for n in re.findall(rf"^{key}: +(\d+) kB$", text, re.MULTILINE))

        assert total("Rss") == p.rss
        assert abs(total("Pss") - p.pss) < len(p.maps()) << 10
        assert total("Private_Clean") + total("Private_Dirty") == p.uss
        assert total("Size") == sum(v.size for v in p.maps())
        heads = b"".join(line + b"\n" for line in text.encode().splitlines() if LINE.fullmatch(line))
        assert heads == m.procfs.read(f"{p.pid}/maps")


@pytest.mark.linux
def test_smaps_has_the_fields_of_the_real_one() -> None:
    """The same keys in the same order and columns as this kernel prints them, those of newer or other kernels aside."""
    real = Path("/proc/self/smaps").read_text().splitlines()
    keys = [line.split(":")[0] for line in real if ":" in line and not LINE.fullmatch(line.encode())]
    first = keys[: keys.index("VmFlags") + 1]
    with machine() as m:
        p = m.spawn()
        filled(p)
        mine = m.procfs.read(f"{p.pid}/smaps").decode().splitlines()[1:]
        got = [line.split(":")[0] for line in mine]
        common = [key for key in first if key in got]
        assert [key for key in got if key in first] == common
        assert {"Size", "Rss", "Pss", "Anonymous", "VmFlags"} <= set(common)
        for line in mine[:-1]:
            sample = next(r for r in real if r.startswith(line.split(":")[0] + ":"))
            assert len(line) == len(sample)
        assert mine[-1].startswith("VmFlags: rd wr mr mw me ")


def test_flags_of_the_first_mappings() -> None:
    """VmFlags as the kernel abbreviates them."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 3)
        p.mlock(a, PAGE)
        p.madvise(a + PAGE, PAGE, Advice.WIPEONFORK)
        p.mseal(a + 2 * PAGE, PAGE)
        assert [" ".join(v.flags) for v in p.maps()] == [
            "rd wr mr mw me lo ac",
            "rd wr mr mw me ac wf",
            "rd wr mr mw me ac sl",
        ]


@pytest.mark.parametrize("flags", [Map.PRIVATE, Map.SHARED])
def test_pages_mapped_by_fault_around_count_as_referenced(flags: Map) -> None:
    """One read maps 16 pages, all of them with the accessed bit, as on x86 (arch_wants_old_prefaulted_pte() is false);
    after clear_refs only what is read again has it."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(0x10000000, 16 * PAGE, R, flags, m.create_file("f", bytes(16 * PAGE)))
        p.read(a + 5 * PAGE, 1)
        text = m.procfs.read(f"{p.pid}/smaps").decode()
        assert re.findall(r"(Rss|Referenced): +(\d+)", text) == [("Rss", "64"), ("Referenced", "64")]
        m.procfs.write(f"{p.pid}/clear_refs", b"1")
        p.read(a + 5 * PAGE, 1)
        text = m.procfs.read(f"{p.pid}/smaps").decode()
        assert re.findall(r"(Rss|Referenced): +(\d+)", text) == [("Rss", "64"), ("Referenced", "4")]
