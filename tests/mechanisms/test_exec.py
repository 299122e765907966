"""execve(2): a new memory for an old process, .data from the file, .bss from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import (
    BSS,
    DATA,
    PAGE,
    TEXT,
    A,
    anon,
    change,
    counts,
    every_mode,
    filled,
    machine,
    mapcount,
    pfn,
    program,
    sharing_mode,
)

from vmemu import Advice, ForkMode, SegmentationFault, SyscallError


@every_mode
def test_execve_replaces_everything_with_the_same_pid(mode: ForkMode, tmp_path: Path) -> None:
    """execve replaces everything: no mapping, page or break of before is left; pid, parent, children and fault count
    stay."""
    path = program(tmp_path)
    with machine(fork_mode=mode) as m:
        parent = m.spawn()
        p = parent.fork()
        a = filled(p, 20, A)
        p.brk(p.brk() + PAGE)
        p.madvise(A, PAGE, Advice.DONTFORK)
        child = p.fork()
        faults, pid = p.faults, p.pid
        p.execve(str(path), ["program", "one"], {"NAME": "value"})
        assert (p.pid, p.ppid, p.children) == (pid, parent.pid, [child])
        with pytest.raises(SegmentationFault):
            p.read(a, 1)
        fresh = m.spawn(path, ["program", "one"], {"NAME": "value"})
        assert p.maps() == fresh.maps()
        assert [p.read(v.start, v.size) for v in p.maps()] == [fresh.read(v.start, v.size) for v in fresh.maps()]
        assert (p.argv, p.environ, p.exe, p.comm) == ((b"program", b"one"), (b"NAME=value",), str(path), "program")
        assert (p.stack_pointer, p.entry_point, p.brk()) == (fresh.stack_pointer, fresh.entry_point, fresh.brk())
        assert p.stack_pointer % 16 == 0
        assert p.faults.total > faults.total
        assert child.read(a + 2 * PAGE, 1) == b"\3"  # the others keep theirs
        p.execve(str(path))
        p.exit(3)
        assert parent.wait() == (pid, 3 << 8)


@sharing_mode
def test_exec_after_fork_leaves_the_old_frames_to_the_parent(mode: ForkMode, tmp_path: Path) -> None:
    """fork and exec: nothing of the parent is copied, and all is its own again afterwards."""
    path = program(tmp_path)
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 8)
        c = p.fork()
        c.execve(str(path))
        assert mapcount(m, pfn(p, a)) == 1
        copied = m.frame_stats().copied
        p.touch(a, 8 * PAGE, write=True)
        assert m.frame_stats().copied == copied
        assert p.uss == 8 * PAGE


@every_mode
def test_data_is_copy_on_write_from_the_file(mode: ForkMode, tmp_path: Path) -> None:
    """.data is copy-on-write from the file: the page that bss begins in is copied by execve itself, which clears its
    tail; the file's page cache and the file stay as they are."""
    path = program(tmp_path)
    raw = path.read_bytes()
    with machine(fork_mode=mode) as m:
        p, q = m.spawn(path), m.spawn(path)
        assert p.read(DATA, PAGE) == b"D" * 0x800 + bytes(0x800)
        assert pfn(p, DATA) != pfn(q, DATA)
        p.write(DATA, b"changed")
        assert q.read(DATA, 7) == b"D" * 7
        assert m.open_file(path).pread(len(raw), 0) == raw == path.read_bytes()
        c = p.fork()
        c.write(DATA, b"CHANGED")
        assert p.read(DATA, 7) == b"changed"
        assert m.spawn(path).read(DATA, 7) == b"D" * 7


def test_data_without_bss_is_shared_until_written(tmp_path: Path) -> None:
    """A data page that execve need not touch is the page cache's in all processes; a write copies it."""
    from linux import tinyelf

    path = tmp_path / "plain"
    parts = [
        tinyelf.Part(flags=tinyelf.R | tinyelf.X, vaddr=TEXT),
        tinyelf.Part(flags=tinyelf.R | tinyelf.W, offset=0x1000, vaddr=DATA),
    ]
    path.write_bytes(tinyelf.tiny(parts, size=0x2000, data={0x1000: b"D" * PAGE}))
    path.chmod(0o755)
    with machine() as m:
        p, q = m.spawn(path), m.spawn(path)
        for who in (p, q):
            assert who.translate(DATA) is None
            assert who.touch(DATA, PAGE).total == 1
        assert pfn(p, DATA) == pfn(q, DATA)
        assert p.touch(DATA, PAGE, write=True) == counts(cow_copy=1)
        p.write(DATA, b"x")
        assert q.read(DATA, PAGE) == b"D" * PAGE


@every_mode
def test_bss_is_from_the_zero_page(mode: ForkMode, tmp_path: Path) -> None:
    """.bss is anonymous: reads map the zero page, the first write fills a zeroed frame."""
    path = program(tmp_path)
    with machine(fork_mode=mode) as m:
        p = m.spawn(path)
        assert p.translate(BSS) is None
        assert p.read(BSS, 2 * PAGE) == bytes(2 * PAGE)
        assert pfn(p, BSS) == pfn(p, BSS + PAGE) == m.zero_pfn
        rss = p.rss
        assert p.touch(BSS, 2 * PAGE, write=True) == counts(zero_fill=2)
        assert p.rss == rss + 2 * PAGE
        assert p.read(BSS, 2 * PAGE) == bytes(2 * PAGE)


@every_mode
def test_all_memory_comes_back_when_programs_end(mode: ForkMode, tmp_path: Path) -> None:
    """Exec, fork, write, exit, many times: no frame is lost."""
    path = program(tmp_path)
    with machine(fork_mode=mode) as m:
        boot = m.meminfo()
        for _ in range(10):
            p = m.spawn(path)
            for c in p.fork_many(3):
                c.write(DATA, b"x")
                c.execve(str(path))
                c.exit()
            p.exit()
        assert change(boot, m.meminfo()) == {}
        assert list(m.processes) == [1]


def test_a_real_program_runs_through_its_life() -> None:
    """/bin/sh with its libraries: exec, fork, exec in the child; text in RAM once; memory given back."""
    with machine(memory="64MiB") as m:
        boot = m.meminfo()
        p = m.spawn("/bin/sh", ["sh", "-c", "true"], {"PATH": "/bin"}, link=True)
        assert p.read(p.entry_point, 1, fetch=True)
        assert p.rss_by_kind.file > 0
        text = next(v for v in p.maps() if "x" in v.perms)
        p.read(text.start, PAGE, fetch=True)
        c = p.fork()
        assert c.touch(text.start, PAGE) == counts(file_minor=1)  # left to fault, but nothing is read again
        assert pfn(p, text.start) == pfn(c, text.start)
        c.execve("/bin/sh", ["sh"], {})
        c.read(text.start, PAGE, fetch=True)
        assert pfn(p, text.start) == pfn(c, text.start)
        c.exit()
        p.exit()
        assert change(boot, m.meminfo()) == {}


def test_exec_of_a_suspended_or_dead_process_is_refused(tmp_path: Path) -> None:
    """EBUSY for a vfork parent, ESRCH for who has exited."""
    path = str(program(tmp_path))
    with machine() as m:
        p = m.spawn()
        anon(p)
        v = p.vfork()
        with pytest.raises(SyscallError):
            p.execve(path)
        v.exit()
        p.wait()
        p.execve(path)
        p.exit()
        with pytest.raises(ProcessLookupError):
            p.execve(path)
