"""System calls with bad arguments, one by one: errno.txt is what Linux 6.18 answered to each, by its name here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import ANON, PAGE, RW, SHARED, R

from vmemu import Advice, Machine, Map, Process, Prot, Resource, SegmentationFault, SyscallError

pytestmark = pytest.mark.linux

A = 0x200_0000_0000
MAX = (1 << 64) - 1
TOP = 0x7FFF_FFFF_F000
MIB = 1 << 20
KIB = 1 << 10
NOBODY = 65534
CLONE_VM, CLONE_FS, CLONE_SIGHAND, CLONE_THREAD, CLONE_NEWNS, SIGCHLD = 0x100, 0x200, 0x800, 0x10000, 0x20000, 17


def lines() -> dict[str, str]:
    """Name of the case -> what Linux said; a line without one belongs to the case before."""
    found: dict[str, str] = {}
    for line in Path(__file__).with_name("errno.txt").read_text().splitlines():
        name, _, outcome = line.rpartition(": ")
        if name:
            found[name] = outcome
    return found


def ok(result: object) -> str:
    """As the recorder printed what a call returned: small numbers as they are."""
    number = result if isinstance(result, int) else 0
    return f"ok({number if 0 <= number < 4096 else 1})"


class World:
    """The process of the recorder: four pages at A, a file open for reading, one in memory, mappings of the first."""

    def __init__(self, m: Machine, directory: Path) -> None:
        self.m = m
        self.directory = directory
        self.p: Process = m.spawn()
        self.ro = m.create_file("hostname", b"host").reopen("r")
        self.rw = m.create_file("rw", bytes(2 * PAGE))
        self.wo = self.rw.reopen("w")
        self.p.mmap(A, 4 * PAGE, RW, ANON | Map.FIXED)
        self.shared = self.p.mmap(None, PAGE, R, Map.SHARED, self.ro)
        self.private = self.p.mmap(None, PAGE, R, Map.PRIVATE, self.ro)

    def limited(self, resource: Resource, size: int, user: int = 0) -> Process:
        """A child with a limit."""
        child = self.p.fork()
        child.setrlimit(resource, (size, size))
        if user:
            child.setuid(user)
        return child

    def crowded(self) -> Process:
        """A child at the limit on mappings."""
        child = self.p.fork()
        start = child.mmap(A + (1 << 32), 140000 * PAGE, RW, ANON | Map.NORESERVE | Map.FIXED)
        with pytest.raises(SyscallError) as refused:
            for i in range(1, 140000, 2):
                child.mprotect(start + i * PAGE, PAGE, R)
        assert refused.value.name == "ENOMEM"
        assert 32700 < i // 2 < 32770
        return child


def sbrk(p: Process, size: int) -> object:
    before = p.brk()
    if p.brk(before + size) != before + size:
        raise SyscallError(12, "sbrk")
    return before


def protect(p: Process, size: int) -> None:
    p.mprotect(p.mmap(None, size, R, ANON), size, RW)


def stack(w: World) -> str:
    """The two last lines that are not about one call."""
    p = w.limited(Resource.STACK, 64 * KIB)
    a = p.mmap(0x300_0000_0000, PAGE, RW, ANON | Map.GROWSDOWN | Map.FIXED)
    p.write(a - 15 * PAGE, b"x")
    with pytest.raises(SegmentationFault):
        p.write(a - 16 * PAGE, b"x")
    return "grow to 16 pages ok"


def locked(w: World, size: int) -> Process:
    child = w.limited(Resource.MEMLOCK, size, NOBODY)
    child.mmap(A, 16 * PAGE, RW, ANON | Map.FIXED)
    if size:
        child.mlock(A, 2 * PAGE)
    return child


def fifo(w: World) -> Path:
    os.mkfifo(w.directory / "fifo")
    return w.directory / "fifo"


def plain(w: World) -> str:
    path = w.directory / "plain"
    path.write_text("no program")
    path.chmod(0o755)
    return str(path)


def twice(w: World) -> int:
    size = w.m.meminfo().total // 10 * 9
    for _ in range(2):
        w.p.mmap(None, size, RW, ANON)
    return 0


def fork(p: Process) -> int:
    p.fork()
    return 0


Case = Callable[[World], object]
FIXED = ANON | Map.FIXED
MMAP: dict[str, Case] = {
    "neither shared nor private": lambda w: w.p.mmap(None, PAGE, RW, Map.ANONYMOUS),
    "len 0": lambda w: w.p.mmap(None, 0, RW, ANON),
    "len wraps to 0 (~0)": lambda w: w.p.mmap(None, MAX, RW, ANON),
    "len > TASK_SIZE": lambda w: w.p.mmap(None, 1 << 48, RW, ANON | Map.NORESERVE),
    "fixed misaligned": lambda w: w.p.mmap(A + 1, PAGE, RW, FIXED),
    "fixed at TASK_SIZE": lambda w: w.p.mmap(TOP, PAGE, RW, FIXED),
    "fixed kernel addr": lambda w: w.p.mmap(0xFFFF_8000_0000_0000, PAGE, RW, FIXED),
    "fixed 0 as root": lambda w: w.p.mmap(0, PAGE, RW, FIXED),
    "bad fd": lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, None),
    "directory": lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, w.m.open_file("/")),
    "pipe": lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, w.m.open_file(fifo(w))),
    "/dev/null": lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, w.m.open_file("/dev/null")),
    "shared write on O_RDONLY": lambda w: w.p.mmap(None, PAGE, RW, Map.SHARED, w.ro),
    "private write on O_RDONLY": lambda w: w.p.mmap(None, PAGE, RW, Map.PRIVATE, w.ro),
    "private read on O_WRONLY": lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, w.wo),
    "shared write on O_WRONLY": lambda w: w.p.mmap(None, PAGE, Prot.WRITE, Map.SHARED, w.wo),
    "offset misaligned": lambda w: w.p.mmap(None, PAGE, R, Map.PRIVATE, w.rw, 1),
    "offset overflow": lambda w: w.p.mmap(None, 2 * PAGE, R, Map.PRIVATE, w.rw, 0x7FFF_FFFF_FFFF_F000),
    "offset+len wraps pgoff": lambda w: w.p.mmap(None, 4 * PAGE, R, Map.PRIVATE, w.rw, 0xFFFF_FFFF_FFFF_F000),
    "shared_validate unknown flag": lambda w: w.p.mmap(None, PAGE, R, Map.SHARED_VALIDATE | 0x4000000, w.rw),
    "shared_validate anon": lambda w: w.p.mmap(None, PAGE, RW, Map.SHARED_VALIDATE | Map.ANONYMOUS),
    "shared|growsdown anon": lambda w: w.p.mmap(None, PAGE, RW, SHARED | Map.GROWSDOWN),
    "file growsdown": lambda w: w.p.mmap(None, PAGE, RW, Map.PRIVATE | Map.GROWSDOWN, w.rw),
    "hugetlb none reserved": lambda w: w.p.mmap(None, 2 * MIB, RW, ANON | Map.HUGETLB),
    "droppable private": lambda w: w.p.mmap(None, PAGE, RW, Map.ANONYMOUS | Map.DROPPABLE),
    "prot unknown bits": lambda w: w.p.mmap(None, PAGE, 0x100 | RW, ANON),
    "anon offset ignored": lambda w: w.p.mmap(None, PAGE, RW, ANON, None, 0x5000),
}
RANGES: dict[str, Case] = {
    "munmap misaligned": lambda w: w.p.munmap(A + 1, PAGE),
    "munmap len 0": lambda w: w.p.munmap(A, 0),
    "munmap past TASK_SIZE": lambda w: w.p.munmap(0x7FFF_FFFF_E000, 4 * PAGE),
    "munmap len huge": lambda w: w.p.munmap(A, MAX),
    "mprotect GROWSDOWN on ordinary vma": lambda w: w.p.mprotect(A, PAGE, R | Prot.GROWSDOWN),
    "mprotect GROWSDOWN|GROWSUP": lambda w: w.p.mprotect(A, PAGE, R | Prot.GROWSDOWN | Prot.GROWSUP),
    "mprotect unknown prot bits": lambda w: w.p.mprotect(A, PAGE, 0x100),
    "mprotect end wraps": lambda w: w.p.mprotect(A, MAX - 0x100000, R),
    "mprotect write on shared O_RDONLY": lambda w: w.p.mprotect(w.shared, PAGE, RW),
    "mprotect write on private O_RDONLY": lambda w: w.p.mprotect(w.private, PAGE, RW),
    "madvise len wraps": lambda w: w.p.madvise(A, MAX, Advice.DONTNEED),
    "madvise FREE on shared": lambda w: w.p.madvise(w.shared, PAGE, Advice.FREE),
    "madvise FREE on file private": lambda w: w.p.madvise(w.private, PAGE, Advice.FREE),
    "madvise REMOVE on file read-only shared": lambda w: w.p.madvise(w.shared, PAGE, Advice.REMOVE),
    "madvise MERGEABLE": lambda w: w.p.madvise(A, PAGE, Advice.MERGEABLE),
    "madvise MERGEABLE on shared": lambda w: w.p.madvise(w.shared, PAGE, Advice.MERGEABLE),
    "madvise HWPOISON": lambda w: w.p.madvise(A, PAGE, 100),
    "madvise COLD": lambda w: w.p.madvise(A, PAGE, 20),
    "madvise PAGEOUT no swap": lambda w: w.p.madvise(A, PAGE, 21),
    "madvise WILLNEED anon no swap": lambda w: w.p.madvise(A, PAGE, Advice.WILLNEED),
    "madvise COLLAPSE small": lambda w: w.p.madvise(A, PAGE, 25),
    "madvise HUGEPAGE on tiny vma": lambda w: w.p.madvise(A, PAGE, Advice.HUGEPAGE),
    "madvise DONTFORK unmapped": lambda w: w.p.madvise(A + 64 * PAGE, PAGE, Advice.DONTFORK),
    "mremap flags unknown": lambda w: w.p.mremap(A, PAGE, PAGE, 8),
    "mremap new_size over TASK_SIZE": lambda w: w.p.mremap(A, PAGE, 1 << 47, 1),
    "mremap fixed new misaligned": lambda w: w.p.mremap(A, PAGE, PAGE, 3, A + 0x10001),
    "mremap shrink unmapped tail ok": lambda w: w.p.mremap(A, 4 * PAGE, PAGE),
    "mremap unmapped no flags": lambda w: w.p.mremap(A + 99 * PAGE, PAGE, PAGE),
    "mremap new_len==old_len across hole": lambda w: (w.p.munmap(A + PAGE, PAGE), w.p.mremap(A, 4 * PAGE, 4 * PAGE))[1],
    "mlock unmapped": lambda w: w.p.mlock(A + 99 * PAGE, PAGE),
    "mlock wraps": lambda w: w.p.mlock(A, MAX),
    "mlock len 0": lambda w: w.p.mlock(A, 0),
    "mlockall 0": lambda w: w.p.mlockall(0),
    "mlockall bad": lambda w: w.p.mlockall(8),
    "mlockall onfault only": lambda w: w.p.mlockall(4),
    "mincore bad vec": lambda w: w.p.mincore(A, PAGE, 8),
    "msync unmapped": lambda w: w.p.msync(A + 99 * PAGE, PAGE, 4),
    "msync len 0": lambda w: w.p.msync(A, 0, 4),
    "brk below start": lambda w: w.p.brk(4096) and 0,
    "remap_file_pages private": lambda w: w.p.remap_file_pages(A, PAGE, 0, 0),
    "mseal misaligned": lambda w: w.p.mseal(A + 1, PAGE),
    "mseal flags": lambda w: w.p.mseal(A, PAGE, 1),
    "mseal unmapped": lambda w: w.p.mseal(A + 99 * PAGE, PAGE),
}
PROCESSES: dict[str, Case] = {
    "clone VM without SIGHAND thread": lambda w: w.p.clone(CLONE_THREAD | CLONE_VM),
    "clone SIGHAND without VM": lambda w: w.p.clone(CLONE_SIGHAND | SIGCHLD),
    "clone NEWNS|FS": lambda w: w.p.clone(CLONE_NEWNS | CLONE_FS | SIGCHLD),
    "execve missing": lambda w: w.p.execve("/nonexistent", ["x"]),
    "execve directory": lambda w: w.p.execve("/", ["x"]),
    "execve non-exec file": lambda w: w.p.execve(plain(w), ["x"]),
    "execve arg > MAX_ARG_STRLEN(128K)": lambda w: w.p.execve("/bin/true", ["x", "a" * 139999]),
    "execve args > stack/4": lambda w: w.p.execve("/bin/true", ["a" * 95] * 100000),
    "wait4 no child": lambda w: w.p.wait(-1, os.WNOHANG),
    "wait4 bad options": lambda w: w.p.wait(-1, 0x1000),
    "kill no such pid": lambda w: w.p.kill(4000000, 0),
    "kill bad signal": lambda w: w.p.kill(w.p.pid, 99),
}
LIMITS: dict[str, Case] = {
    "RLIMIT_AS: mmap 2M": lambda w: w.limited(Resource.AS, MIB).mmap(None, 2 * MIB, RW, ANON),
    "RLIMIT_AS: brk (ret unchanged => glibc ENOMEM)": lambda w: sbrk(w.limited(Resource.AS, MIB), 2 * MIB),
    "RLIMIT_AS: fork still ok": lambda w: fork(w.limited(Resource.AS, MIB)),
    "RLIMIT_DATA: mmap private rw": lambda w: w.limited(Resource.DATA, 64 * KIB).mmap(None, 2 * MIB, RW, ANON),
    "RLIMIT_DATA: mmap private ro": lambda w: w.limited(Resource.DATA, 64 * KIB).mmap(None, 2 * MIB, R, ANON),
    "RLIMIT_DATA: mmap shared rw": lambda w: w.limited(Resource.DATA, 64 * KIB).mmap(None, 2 * MIB, RW, SHARED),
    "RLIMIT_DATA: mprotect ro->rw": lambda w: protect(w.limited(Resource.DATA, 64 * KIB), 2 * MIB),
    "RLIMIT_DATA: brk": lambda w: sbrk(w.limited(Resource.DATA, 64 * KIB), MIB),
    "RLIMIT_STACK 64K": stack,
    "MEMLOCK 8K nonroot: mlock 8K": lambda w: w.limited(Resource.MEMLOCK, 8 * KIB, NOBODY).mlock(A, 2 * PAGE),
    "MEMLOCK 8K nonroot: mlock 12K": lambda w: locked(w, 8 * KIB).mlock(A, 3 * PAGE),
    "MEMLOCK: mmap MAP_LOCKED 16K": lambda w: locked(w, 8 * KIB).mmap(None, 4 * PAGE, RW, ANON | Map.LOCKED),
    "MEMLOCK: mlockall current": lambda w: locked(w, 8 * KIB).mlockall(1),
    "MEMLOCK: mremap locked grow": lambda w: locked(w, 8 * KIB).mremap(A, 2 * PAGE, 8 * PAGE, 1),
    "MEMLOCK 0 nonroot: mlock": lambda w: locked(w, 0).mlock(A, PAGE),
    "MEMLOCK 0: MAP_LOCKED": lambda w: locked(w, 0).mmap(None, PAGE, RW, ANON | Map.LOCKED),
    "MEMLOCK 0: mlockall": lambda w: locked(w, 0).mlockall(1),
    "mmap fixed 0 nonroot": lambda w: locked(w, 0).mmap(0, PAGE, RW, FIXED),
    "mmap hint 0x1000 nonroot": lambda w: int(locked(w, 0).mmap(0x1000, PAGE, RW, ANON) == 0x1000),
    "NPROC 1 nonroot: fork": lambda w: fork(w.limited(Resource.NPROC, 1, 65533)),
    "NPROC 0 root: fork": lambda w: fork(w.limited(Resource.NPROC, 0)),
    "overcommit 0: mmap > ram+swap": lambda w: w.p.mmap(None, 1 << 40, RW, ANON),
    "overcommit 0: same NORESERVE": lambda w: w.p.mmap(None, 1 << 40, RW, ANON | Map.NORESERVE),
    "overcommit 0: 0.9 of RAM twice": twice,
}
CROWDED: dict[str, Callable[[Process], object]] = {
    "max_map_count: mmap at limit": lambda p: p.mmap(None, PAGE, R | Prot.EXEC, ANON),
    "max_map_count: munmap splitting": lambda p: p.munmap(A + (1 << 32) + 139990 * PAGE, PAGE),
    "max_map_count: fork at limit": fork,
}
SPLITS = "max_map_count: mprotect split fails after ~32750 splits"
NOT_EXPRESSIBLE = {"execve bad argv ptr"}
"""Arguments are Python's here, which has no bad pointers."""
CASES = {**{f"mmap {name}": case for name, case in MMAP.items()}, **RANGES, **PROCESSES, **LIMITS}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Machine(memory="256MiB") as m:
        yield World(m, tmp_path)
        m.verify()


def outcome(call: Callable[[], object]) -> str:
    try:
        result = call()
    except SyscallError as error:
        return error.name
    return result if isinstance(result, str) else ok(result)


@pytest.mark.parametrize("name", CASES)
def test_as_linux_answered(world: World, name: str) -> None:
    assert outcome(lambda: CASES[name](world)) == lines()[name]


def test_at_the_limit_on_mappings(world: World) -> None:
    p = world.crowded()
    assert lines()[SPLITS] == "ENOMEM"
    for name, case in CROWDED.items():
        assert outcome(lambda case=case: case(p)) == lines()[name], name  # type: ignore[misc]


def test_no_case_is_left_out() -> None:
    assert set(lines()) == {*CASES, *CROWDED, SPLITS} | NOT_EXPRESSIBLE
