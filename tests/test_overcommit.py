"""Overcommit: what may be promised in each mode, what is charged, the classic case of a large process that forks."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from linux import tinyelf

from vmemu import (
    Advice,
    Clone,
    File,
    ForkMode,
    Machine,
    Map,
    Overcommit,
    Process,
    ProcessKilled,
    Prot,
    Resource,
    SegmentationFault,
    SyscallError,
)

PAGE = 4096
MIB = 1 << 20
RW = Prot.READ | Prot.WRITE
ANON = Map.PRIVATE | Map.ANONYMOUS
MODES = list(Overcommit)


def committed(m: Machine) -> int:
    """Committed_AS in pages."""
    return m.meminfo().committed // PAGE


def most(m: Machine, p: Process) -> int:
    """The largest private writable mapping that can be had, in pages."""
    low, high = 0, 1 << 24
    while high - low > 1:
        n = (low + high) // 2
        try:
            p.munmap(p.mmap(None, n * PAGE, RW, ANON), n * PAGE)
        except SyscallError as error:
            assert error.errno == errno.ENOMEM
            high = n
        else:
            low = n
    return low


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A small one."""
    return tinyelf.save(tmp_path / "tiny", tinyelf.tiny())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["fork", "vfork", "posix_spawn"])
@pytest.mark.parametrize("fork_mode", list(ForkMode))
def test_a_large_process_runs_a_small_command(mode: Overcommit, how: str, fork_mode: ForkMode, program: str) -> None:
    """A heap of 60 % of RAM: fork is refused where nothing is promised twice, vfork and posix_spawn never are."""
    memory = "64MiB" if fork_mode is not ForkMode.EAGER else "160MiB"
    with Machine(memory, overcommit=mode, overcommit_ratio=90, fork_mode=fork_mode) as m:
        p = m.spawn(program)
        heap = p.brk(0)
        size = m.meminfo().total * 60 // 100 & -PAGE
        assert p.brk(heap + size) == heap + size
        p.touch(heap, size if fork_mode is not ForkMode.EAGER else MIB, write=True)
        p.write(heap, b"mine")
        before = (committed(m), m.meminfo())
        if mode is Overcommit.NEVER and how == "fork":
            with pytest.raises(SyscallError, match="Cannot allocate memory") as info:
                p.fork()
            assert info.value.errno == errno.ENOMEM
            assert (committed(m), m.meminfo()) == before
        elif how == "posix_spawn":
            c = p.posix_spawn(program, ["command"], {})
            assert c.argv == (b"command",)
        else:
            c = getattr(p, how)()
            c.execve(program, ["command"])
            c.exit(3)
            assert p.wait() == (c.pid, 3 << 8)
            assert committed(m) == before[0]
        assert p.read(heap, 4) == b"mine"
        m.verify()


def test_posix_spawn(program: str) -> None:
    """A child that runs the program; the parent goes on at once. What fails leaves no child."""
    with Machine("16MiB") as m:
        p = m.spawn(program)
        c = p.posix_spawn(program, ["a", "b"], {"X": "y"})
        assert (c.ppid, c.argv, c.environ, c.state, p.state) == (p.pid, (b"a", b"b"), (b"X=y",), "running", "running")
        for number, path in ((errno.ENOENT, "/does/not/exist"), (errno.EACCES, "/")):
            with pytest.raises(SyscallError) as info:
                p.posix_spawn(path)
            assert info.value.errno == number
            assert [k.pid for k in p.children] == [c.pid]
        p.setrlimit(6, (2, 2))
        p.setuid(7)
        assert p.posix_spawn(program).uid == 7
        with pytest.raises(SyscallError) as info:
            p.posix_spawn(program)
        assert info.value.errno == errno.EAGAIN
        m.verify()


def test_heuristic_refuses_single_requests_only() -> None:
    """One mapping may be as large as RAM, and there may be many."""
    with Machine("16MiB", overcommit=Overcommit.HEURISTIC) as m:
        p = m.spawn()
        assert most(m, p) == 4096
        for _ in range(3):
            p.mmap(None, 15 * MIB, RW, ANON)
        assert committed(m) == 3 * 3840
        p.mmap(None, 64 * MIB, RW, ANON | Map.NORESERVE)
        p.mmap(None, 64 * MIB, Prot.READ, ANON)
        assert committed(m) == 3 * 3840
        with pytest.raises(SyscallError):  # the three are one mapping by now, which a fork would promise in one piece
            p.fork()
        largest = max(p.maps(), key=lambda mapping: mapping.size if "ac" in mapping.flags else 0)
        p.mprotect(largest.start + 15 * MIB, 15 * MIB, Prot.READ)
        assert committed(m) == 2 * 3840  # nothing was written there: it is not charged any more
        p.fork()
        assert committed(m) == 4 * 3840


def test_always_refuses_nothing() -> None:
    """NORESERVE is not charged there either."""
    with Machine("16MiB", overcommit=Overcommit.ALWAYS) as m:
        p = m.spawn()
        p.mmap(None, 1 << 40, RW, ANON)
        p.mmap(None, 1 << 40, RW, ANON | Map.NORESERVE)
        assert committed(m) == 1 << 28


def test_never_adds_everything_up() -> None:
    """Up to CommitLimit less the reserves; NORESERVE means nothing; what is released can be had again."""
    with Machine("64MiB", overcommit=Overcommit.NEVER, overcommit_ratio=50) as m:
        p = m.spawn()
        limit = m.meminfo().commit_limit // PAGE
        assert limit == 8192
        assert most(m, p) == limit - 1  # total_vm is 0: no reserve for the user, none for root
        a = p.mmap(None, 4000 * PAGE, RW, ANON | Map.NORESERVE)
        assert committed(m) == 4000
        assert most(m, p) == limit - 4000 - 4000 // 32 - 1
        p.munmap(a, 1000 * PAGE)
        assert most(m, p) == limit - 3000 - 3000 // 32 - 1
        b = p.mmap(None, 5000 * PAGE, Prot.READ, ANON)
        with pytest.raises(SyscallError):
            p.mprotect(b, 5000 * PAGE, RW)
        p.mprotect(b, 2000 * PAGE, RW)
        assert committed(m) == 5000
        m.verify()


def test_reserves_are_settings() -> None:
    """admin_reserve_kbytes is kept for who has CAP_SYS_ADMIN, user_reserve_kbytes from a large process."""
    with Machine("64MiB", overcommit=Overcommit.NEVER) as m:
        p = m.spawn()
        read, write = m.procfs.read, m.procfs.write
        assert read("sys/vm/admin_reserve_kbytes") == b"2048\n"  # a thirty-second of RAM, at most 8 MiB
        assert read("sys/vm/user_reserve_kbytes") == b"2048\n"
        p.mmap(None, 6400 * PAGE, Prot.READ, ANON)  # total_vm / 32 is 200
        limit = 8192
        assert most(m, p) == limit - 200 - 1
        write("sys/vm/user_reserve_kbytes", "400")
        assert most(m, p) == limit - 100 - 1
        write("sys/vm/user_reserve_kbytes", "0")
        assert most(m, p) == limit - 1
        p.setuid(5)
        assert most(m, p) == limit - 512 - 1
        write("sys/vm/admin_reserve_kbytes", "40")
        assert most(m, p) == limit - 10 - 1
    with Machine("1GiB") as m:
        assert m.procfs.read("sys/vm/admin_reserve_kbytes") == b"8192\n"
        assert m.procfs.read("sys/vm/user_reserve_kbytes") == b"32768\n"


@pytest.mark.parametrize("mode", MODES)
def test_shared_memory_is_charged_once(mode: Overcommit) -> None:
    """At mmap, for its whole size, until the last who maps it is gone."""
    with Machine("16MiB", overcommit=mode) as m:
        p = m.spawn()
        p.mmap(None, 1000 * PAGE, RW, Map.SHARED | Map.ANONYMOUS)
        kids = p.fork_many(3)
        assert committed(m) == 1000
        for one in (p, *kids):
            one.exit()
        assert committed(m) == 0
        m.verify()


def test_shared_memory_without_a_reservation_is_charged_as_it_is_used() -> None:
    """MAP_NORESERVE, and files in memory: page by page; under NEVER the flag means nothing (shmem_acct_blocks())."""
    for mode in MODES:
        with Machine("16MiB", overcommit=mode) as m:
            p, strict = m.spawn(), mode is Overcommit.NEVER
            a = p.mmap(None, 100 * PAGE, RW, Map.SHARED | Map.ANONYMOUS | Map.NORESERVE)
            assert committed(m) == 100 * strict
            p.touch(a, 30 * PAGE, write=True)
            c = p.fork()
            c.touch(a, 40 * PAGE, write=True)
            assert committed(m) == (100 if strict else 40)
            f = m.create_file("f", bytes(20 * PAGE))
            f.truncate(200 * PAGE)
            assert committed(m) == (120 if strict else 60)
            b = p.mmap(None, 200 * PAGE, RW, Map.SHARED, f)
            p.touch(b + 100 * PAGE, 7 * PAGE)
            assert committed(m) == (127 if strict else 67)
            m.verify()
            f.truncate(PAGE)
            p.exit()
            assert committed(m) == (101 if strict else 41)
            f.close()
            c.exit()
            assert committed(m) == 0
            m.create_file("g", bytes(9 * PAGE), writenotify=True)  # page cache of a disk is not
            assert committed(m) == 0
            m.verify()


def test_huge_pages_set_aside_are_not_promised() -> None:
    """CommitLimit is a share of the rest, or vm.overcommit_kbytes; mappings of them are not charged."""
    with Machine("64MiB", overcommit=Overcommit.NEVER, hugepages={"2MiB": 4}) as m:
        assert m.meminfo().commit_limit == (64 - 8) * MIB // 2
        p = m.spawn()
        p.mmap(None, 4 * MIB, RW, ANON | Map.HUGETLB)
        assert committed(m) == 0
        assert most(m, p) == 28 * MIB // PAGE - 1024 // 32 - 1
        m.procfs.write("sys/vm/overcommit_kbytes", "4096")
        assert (m.meminfo().commit_limit, m.procfs.read("sys/vm/overcommit_ratio")) == (4 * MIB, b"0\n")
        m.procfs.write("sys/vm/overcommit_ratio", "25")
        assert (m.meminfo().commit_limit, m.procfs.read("sys/vm/overcommit_kbytes")) == (14 * MIB, b"0\n")
        lines = dict(line.split(":") for line in m.procfs.read("meminfo").decode().splitlines())
        assert lines["CommitLimit"].split() == [str(14 * 1024), "kB"]


def _mremap(p: Process, npages: int) -> None:
    a = p.mmap(0x1000_0000, PAGE, RW, ANON | Map.FIXED)
    p.mremap(a, PAGE, npages * PAGE)


def _mremap_elsewhere(p: Process, npages: int) -> None:
    a = p.mmap(0x1000_0000, PAGE, RW, ANON | Map.FIXED)
    p.mmap(0x1000_1000, PAGE, Prot.NONE, ANON | Map.FIXED)
    p.mremap(a, PAGE, npages * PAGE, 1)


def _stack(p: Process, npages: int) -> None:
    a = p.mmap(0x7000_0000_0000, PAGE, RW, ANON | Map.FIXED | Map.GROWSDOWN)
    p.touch(a - (npages - 1) * PAGE, 1, write=True)


def _brk(p: Process, npages: int) -> None:
    top = p.brk(0)
    if p.brk(top + npages * PAGE) == top:
        raise SyscallError(errno.ENOMEM, "brk")


def _mprotect(p: Process, npages: int) -> None:
    a = p.mmap(None, npages * PAGE, Prot.READ, ANON)
    p.mprotect(a, npages * PAGE, RW)


def _shared(p: Process, npages: int) -> None:
    p.mmap(None, npages * PAGE, RW, Map.SHARED | Map.ANONYMOUS)


def _noreserve(p: Process, npages: int) -> None:
    p.mmap(None, npages * PAGE, RW, ANON | Map.NORESERVE)


def _private_file(p: Process, npages: int) -> None:
    p.mmap(None, npages * PAGE, RW, Map.PRIVATE, FILE[0])


FILE: list[File] = []
GROWTHS = [_mremap, _mremap_elsewhere, _stack, _brk, _mprotect, _shared, _noreserve, _private_file]


@pytest.mark.parametrize("grow", GROWTHS)
def test_never_counts_every_way_to_grow(grow: Callable[[Process, int], None]) -> None:
    """To the page: what is refused leaves Committed_AS as it was, one page less is promised."""
    for fits in (False, True):
        with Machine("64MiB", overcommit=Overcommit.NEVER, overcommit_kbytes=8 << 10) as m:
            m.procfs.write("sys/vm/user_reserve_kbytes", "0")
            FILE[:] = [m.create_file("f", writenotify=True)]
            p, other = m.spawn(), m.spawn()
            p.setrlimit(3, (1 << 30, 1 << 30))
            other.mmap(None, 1000 * PAGE, RW, ANON)
            room = 2048 - 1000 - 1  # less than the limit
            before = committed(m)
            if fits:
                grow(p, room)
                assert committed(m) == 1000 + room
            else:
                with pytest.raises((SyscallError, SegmentationFault)):
                    grow(p, room + 1)
                assert committed(m) - before <= 1  # what it grew from
                p.exit()
                assert committed(m) == 1000
            m.verify()


@pytest.mark.parametrize("mode", list(ForkMode))
def test_never_counts_forks(mode: ForkMode) -> None:
    """All accountable mappings once more for each child, to the page; a refused one leaves everything as it was."""
    with Machine("64MiB", overcommit=Overcommit.NEVER, overcommit_kbytes=(8 << 10) - 4, fork_mode=mode) as m:
        m.procfs.write("sys/vm/user_reserve_kbytes", "0")
        p = m.spawn()
        p.mmap(0x1000_0000, 500 * PAGE, RW, ANON | Map.FIXED)
        p.mmap(0x2000_0000, 182 * PAGE, RW, ANON | Map.FIXED)
        p.mmap(0x3000_0000, 999 * PAGE, Prot.READ, ANON | Map.FIXED)
        p.madvise(0x2000_0000, PAGE, Advice.DONTFORK)  # not counted for a child
        p.mmap(0x4000_0000, PAGE, RW, ANON | Map.FIXED)
        each = 682
        assert committed(m) == each + 1
        for call in (lambda: p.fork_many(3), lambda: [p.fork() for _ in range(3)]):
            before = m.meminfo() if call.__code__.co_names[0] == "fork_many" else None
            with pytest.raises(SyscallError, match="fork") as info:
                call()
            assert info.value.errno == errno.ENOMEM
            if before is not None:
                assert m.meminfo() == before
        assert committed(m) == 2 * each + 1 == 1365  # and 682 more are not less than 2047
        m.procfs.write("sys/vm/overcommit_kbytes", str(8 * 1024))
        p.clone(0)
        assert committed(m) == 2047
        for one in p.children:
            one.exit()
        assert committed(m) == each + 1
        m.verify()


def test_execve_promises_for_what_it_replaces(tmp_path: Path) -> None:
    """The old memory is gone before the program's segments are charged (begin_new_exec()), unless others have it."""
    parts = (tinyelf.Part(flags=5, vaddr=0x400000), tinyelf.Part(flags=6, vaddr=0x600000, memsz=1000 * PAGE))
    program = tinyelf.save(tmp_path / "large", tinyelf.tiny(parts))
    with Machine("64MiB", overcommit=Overcommit.NEVER, overcommit_kbytes=8 << 10) as m:
        m.procfs.write("sys/vm/user_reserve_kbytes", "0")
        p = m.spawn()
        p.execve(program)
        needed = committed(m)
        stack = next(v.size for v in p.maps() if v.name == "[stack]") // PAGE
        assert needed > stack
        p.mmap(None, (2048 - needed - stack - 1) * PAGE, RW, ANON)
        p.execve(program)
        assert committed(m) == needed
        p.mmap(None, (2048 - needed - stack) * PAGE, RW, ANON)
        with pytest.raises(SyscallError):  # the stack was made before
            p.execve(program)
        p.munmap(p.maps()[0].start, PAGE)
        p.munmap(next(v.start for v in p.maps() if "ac" in v.flags and not v.name), 600 * PAGE)
        c = p.vfork()
        with pytest.raises(ProcessKilled):  # its parent keeps the memory
            c.execve(program)
        assert (p.state, c.state) == ("running", "zombie")
        m.verify()


def test_all_limits_are_inherited(program: str) -> None:
    """By children however they are made, and kept by execve; what one sets is its own."""
    with Machine("16MiB") as m:
        p = m.spawn()
        for resource in Resource:
            if resource not in (Resource.NPROC, Resource.STACK, Resource.AS, Resource.DATA):
                p.setrlimit(resource, (100 + resource, 200 + resource))
        limits = [p.getrlimit(r) for r in Resource]
        kids = [p.fork(), *p.fork_many(2), p.clone(0), p.clone(Clone.VM | 17), p.posix_spawn(program)]
        kids[0].execve(program)
        t = p.clone(Clone.VM | Clone.THREAD | Clone.SIGHAND)
        for one in (*kids, t, kids[1].fork()):
            assert [one.getrlimit(r) for r in Resource] == limits
            shown = m.procfs.read(f"{one.pid}/limits").decode()
            assert f"{'Max pending signals':25} {111:<20} {211:<20} signals" in shown
        kids[1].setrlimit(Resource.FSIZE, (0, 0))
        assert [k.getrlimit(Resource.FSIZE) for k in (p, kids[0], kids[2])] == [(101, 201)] * 3
        t.setrlimit(Resource.FSIZE, (5, 5))  # a thread's are its process's
        assert p.getrlimit(Resource.FSIZE) == (5, 5)
        m.verify()


def test_limits_are_inherited() -> None:
    """RLIMIT_AS and RLIMIT_DATA of a child are its parent's; setting a child's leaves the parent's."""
    with Machine("16MiB") as m:
        p = m.spawn()
        p.setrlimit(9, (100 * PAGE, 100 * PAGE))
        c = p.fork()
        d = c.fork_many(2)[1]
        for one in (c, d):
            one.mmap(None, 100 * PAGE, RW, ANON)
            with pytest.raises(SyscallError):
                one.mmap(None, PAGE, RW, ANON)
        d.setrlimit(9, (200 * PAGE, 200 * PAGE))
        d.mmap(None, 50 * PAGE, RW, ANON)
        assert c.getrlimit(9) == (100 * PAGE, 100 * PAGE)
        m.verify()


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match=r"^overcommit: 3 is not one of 0, 1, 2$"):
        Machine("8MiB", overcommit=3)
