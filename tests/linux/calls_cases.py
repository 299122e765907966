"""One table of system calls with odd arguments, for both sides: the kernel of this host and vmemu.

A case is a list of steps, a step a call's name and its arguments; addresses are absolute. `families` makes the cases,
most of them as products of arguments that are each at some edge. They lie in an arena at A, far from everything else;
what has no address of its own goes where both sides' rules put it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from linux.calls_host import SCRATCH, Step

Case = Sequence[Step]
Family = Callable[[], Iterator[Case]]

A = 1 << 40
PG = 4096
MB = 1 << 20
TOP = 0x7FFF_FFFF_F000
KERNEL = 0xFFFF_8000_0000_0000
MAX = (1 << 64) - 1

NONE, R, W, X, SEM = 0, 1, 2, 4, 8
RW = R | W
P_DOWN, P_UP = 0x0100_0000, 0x0200_0000

SHARED, PRIVATE, VALIDATE, DROPPABLE = 1, 2, 3, 8
FIXED, ANONYMOUS, BIT32, ABOVE4G = 0x10, 0x20, 0x40, 0x80
GROWSDOWN, DENYWRITE, EXECUTABLE, LOCKED, NORESERVE = 0x100, 0x800, 0x1000, 0x2000, 0x4000
POPULATE, NONBLOCK, STACK, HUGETLB, SYNC, NOREPLACE = 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000
UNINITIALIZED = 0x4000000
ANON, ANON_SHARED = PRIVATE | ANONYMOUS, SHARED | ANONYMOUS

F, F_R, F_W, E, E_R, DIRECTORY, PIPE, DEVICE, BAD = 3, 4, 5, 6, 7, 8, 9, 10, 99
"""Descriptors: in memory, read-only, write-only; on disk, read-only; what is no file."""

LIMIT_FSIZE, LIMIT_DATA, LIMIT_STACK, LIMIT_MEMLOCK, LIMIT_AS = 1, 2, 3, 8, 9
MAYMOVE, MFIXED, DONTUNMAP = 1, 2, 4


def anon(address: int, npages: int, prot: int = RW, more: int = 0) -> Step:
    """Private anonymous memory at an address."""
    return ("mmap", address, npages * PG, prot, ANON | FIXED | more, -1, 0)


def file(address: int, npages: int, fd: int, prot: int = R, flags: int = PRIVATE, offset: int = 0) -> Step:
    """A piece of a file at an address."""
    return ("mmap", address, npages * PG, prot, flags | FIXED, fd, offset)


WORLD: list[Step] = [
    anon(A, 4),
    ("write", A),
    ("write", A + PG),
    anon(A + 5 * PG, 3, R),
    file(A + 16 * PG, 3, F, RW, SHARED),
    file(A + 20 * PG, 3, F_R, R, SHARED),
    file(A + 24 * PG, 3, E, RW, PRIVATE),
    ("mmap", A + 32 * PG, 3 * PG, RW, ANON_SHARED | FIXED, -1, 0),
    anon(A + 600 * PG, 2, RW, GROWSDOWN),
]
"""Private memory at 0..3 (two pages written), a hole, read-only memory at 5..7, files at 16, 20 and 24, shared memory
at 32, a stack at 600."""

PLACES = [A, A + 2 * PG, A + 4 * PG, A + 5 * PG, A + 16 * PG, A + 20 * PG, A + 24 * PG, A + 32 * PG, A + 600 * PG]
"""Where something is mapped, or nothing."""
ODD_ADDRESSES = [0, 1, A + 1, A + 4 * PG, TOP - PG, TOP, TOP + PG, 1 << 47, KERNEL, MAX - PG + 1, MAX]
ODD_LENGTHS = [0, 1, PG, 2 * PG + 1, 8 * PG, TOP, 1 << 47, MAX - 2 * PG + 2, MAX - PG + 1, MAX]


def mmap_flags() -> Iterator[Case]:
    kinds = [0, SHARED, PRIVATE, VALIDATE, 4, DROPPABLE, 0xF]
    odd = [0, FIXED, BIT32, GROWSDOWN, LOCKED, NORESERVE, POPULATE, STACK, SYNC, NOREPLACE, UNINITIALIZED, 1 << 40]
    for kind, more, fd in itertools.product(kinds, odd, [ANONYMOUS, F, F_R, F_W, E, BAD]):
        flags = kind | more | (ANONYMOUS if fd == ANONYMOUS else 0)
        where = A if more & (FIXED | NOREPLACE) else 0
        yield [("mmap", where, 3 * PG, RW, flags, -1 if fd == ANONYMOUS else fd, 0)]
    for fd, kind, prot in itertools.product([F_R, F_W, E_R], [SHARED, PRIVATE], [NONE, R, W, X]):
        yield [("mmap", 0, PG, prot, kind, fd, 0)]
    for more in (HUGETLB, HUGETLB | 21 << 26, HUGETLB | 30 << 26, HUGETLB | 22 << 26):
        for kind, fd in ((ANON, -1), (ANON_SHARED, -1), (PRIVATE, F), (SHARED, F), (PRIVATE, BAD)):
            for address, length in ((0, 2 * MB), (0, PG), (A, 2 * MB), (A + PG, 2 * MB)):
                yield [("mmap", address, length, RW, kind | more | (FIXED if address else 0), fd, 0)]


def mmap_places() -> Iterator[Case]:
    for address, length in itertools.product(ODD_ADDRESSES, ODD_LENGTHS):
        for more in (0, FIXED, NOREPLACE):
            yield [("mmap", address, length, R, ANON | NORESERVE | more, -1, 0)]
    for offset, length in itertools.product(
        [0, 1, PG, 1 << 40, (1 << 63) - 3 * PG, (1 << 63) - 2 * PG, (1 << 63) - PG, 1 << 63, MAX - PG + 1],
        [PG, 2 * PG, 5 * PG],
    ):
        for fd in (F, E, -1):
            yield [("mmap", 0, length, R, PRIVATE | (ANONYMOUS if fd < 0 else 0), fd, offset)]
    for flags in (BIT32, BIT32 | FIXED, ABOVE4G, BIT32 | GROWSDOWN):
        for address in (0, 64 * MB, 1 << 31, (1 << 31) - PG, A, 0x3FFFF000):
            yield [
                ("mmap", address, 2 * PG, RW, ANON | flags, -1, 0),
                ("mmap", address, 2 * PG, R, ANON | flags & ~FIXED, -1, 0),
            ]


def mmap_alignment() -> Iterator[Case]:
    sizes = [MB, 2 * MB - PG, 2 * MB, 2 * MB + PG, 4 * MB, 5 * MB, 6 * MB]
    for size, offset, fd in itertools.product(sizes, [0, PG, 2 * MB - PG, 2 * MB], [F, E]):
        for kind in (PRIVATE, SHARED):
            yield [
                ("mmap", 0, size, R, kind, fd, offset),
                ("mmap", 0, PG, R, kind, fd, 0),
                ("mmap", 0, size, RW, kind, fd, offset),
            ]
    for size, flags in itertools.product(
        sizes, [ANON, ANON_SHARED, ANON | STACK, ANON | NORESERVE, ANON | BIT32, ANON | GROWSDOWN]
    ):
        yield [
            ("mmap", 0, size, RW, flags, -1, 0),
            ("mmap", 0, PG, RW, flags, -1, 0),
            ("mmap", 0, size, R, flags, -1, 0),
        ]
        yield [("mmap", A + PG, size, RW, flags, -1, 0), ("mmap", A + PG, size, R, flags, -1, 0)]
    for size, fd in itertools.product([2 * MB, 3 * MB], [F, E]):
        yield [("mmap", A + PG, size, R, PRIVATE, fd, 0), ("mmap", A + PG, size, R, PRIVATE, fd, 0)]
    for size, new in itertools.product([PG, 2 * MB], [2 * MB, 4 * MB, 4 * MB + PG]):
        for first in (
            ("mmap", A + PG, size, RW, ANON | FIXED, -1, 0),
            ("mmap", A + PG, size, RW, ANON_SHARED | FIXED, -1, 0),
            ("mmap", A + PG, size, R, PRIVATE | FIXED, E, 0),
            ("mmap", A + PG, size, R, SHARED | FIXED, F, PG),
        ):
            blocked = anon(A + PG + size, 1, R)
            yield [first, blocked, ("mremap", A + PG, size, new, MAYMOVE, 0)]
            if size == new:
                yield [first, blocked, ("mremap", A + PG, size, new, MAYMOVE | DONTUNMAP, 0)]
                yield [first, blocked, ("mremap", A + PG, size, new, MAYMOVE | DONTUNMAP, A + 64 * MB + PG)]


def mmap_over() -> Iterator[Case]:
    """MAP_FIXED over what is there, also where it fails late."""
    huge = 1 << 45
    for address, npages in itertools.product([A, A + PG, A + 3 * PG, A + 17 * PG], [1, 3, 20]):
        yield [*WORLD, ("mmap", address, npages * PG, R, ANON | FIXED, -1, 0)]
        yield [*WORLD, ("mmap", address, npages * PG, R, SHARED | SYNC | FIXED, F, 0)]
        yield [*WORLD, ("mmap", address, npages * PG, R, VALIDATE | SYNC | FIXED, F, 0)]
        yield [*WORLD, ("mmap", address, npages * PG, R, VALIDATE | SYNC | FIXED, E, 0)]
        yield [*WORLD, ("mmap", address, npages * PG, RW, SHARED | FIXED, F_R, 0)]
        yield [*WORLD, ("mmap", address, npages * PG, RW, ANON | FIXED | HUGETLB, -1, 0)]
        yield [*WORLD, ("mmap", address, npages * PG, RW, PRIVATE | NOREPLACE, E, 0)]
        yield [*WORLD, ("mseal", A + 2 * PG, PG, 0), ("mmap", address, npages * PG, R, ANON | FIXED, -1, 0)]
    for flags in (ANON, ANON_SHARED, ANON | NORESERVE, ANON_SHARED | NORESERVE, ANON | STACK):
        yield [*WORLD, ("mmap", A, huge, RW, flags | FIXED, -1, 0)]
        yield [*WORLD, ("mmap", 0, huge, RW, flags, -1, 0)]


def munmap_ranges() -> Iterator[Case]:
    for address, length in itertools.product(ODD_ADDRESSES + PLACES, ODD_LENGTHS):
        if address < 1 << 39 and length > PG or (address < TOP and TOP - address >= length >= 1 << 46):
            continue  # the probe's own memory
        yield [*WORLD, ("munmap", address, length)]


def mprotect_ranges() -> Iterator[Case]:
    for address, length in itertools.product(ODD_ADDRESSES + PLACES, ODD_LENGTHS):
        if address < TOP and 1 << 46 <= length < 1 << 63:
            continue
        yield [*WORLD, ("mprotect", address, length, R)]
    for address, prot in itertools.product(
        PLACES, [NONE, W, RW, X, SEM, RW | SEM, 0x10, 1 << 31, 1 << 40, R | P_DOWN, R | P_UP, R | P_DOWN | P_UP, P_DOWN]
    ):
        yield [*WORLD, ("mprotect", address, 2 * PG, prot)]
        yield [*WORLD, ("mprotect", address + PG, PG, prot), ("read", address + PG), ("write", address + PG)]


def mremap_arguments() -> Iterator[Case]:
    flags = [
        0,
        MAYMOVE,
        MFIXED,
        MAYMOVE | MFIXED,
        DONTUNMAP,
        MAYMOVE | DONTUNMAP,
        MAYMOVE | MFIXED | DONTUNMAP,
        8,
        1 << 32,
    ]
    for old, new, flag in itertools.product(
        [0, 1, PG, 3 * PG, 8 * PG, 1 << 47, MAX - PG + 1, MAX],
        [0, 1, PG, 3 * PG, 4 * PG, TOP, 1 << 47, MAX - PG + 1, MAX],
        flags,
    ):
        yield [*WORLD, ("mremap", A + PG, old, new, flag, A + 64 * PG)]
    for address, flag, to in itertools.product(
        [*PLACES, A + 1, 0, TOP, KERNEL, MAX - PG + 1],
        flags[:6],
        [A + 64 * PG, A + 65 * PG + 1, TOP, MAX - PG + 1, A + 16 * PG],
    ):
        for old, new in ((2 * PG, 2 * PG), (2 * PG, PG), (2 * PG, 3 * PG), (0, PG)):
            yield [*WORLD, ("mremap", address, old, new, flag, to)]


def mremap_sealed_and_locked() -> Iterator[Case]:
    for flag, new, to in itertools.product(
        [0, MAYMOVE, MAYMOVE | MFIXED, MAYMOVE | DONTUNMAP], [PG, 2 * PG, 4 * PG], [A + 64 * PG]
    ):
        yield [*WORLD, ("mseal", A, 4 * PG, 0), ("mremap", A, 2 * PG, new, flag, to)]
        yield [*WORLD, ("mseal", A + PG, PG, 0), ("mremap", A, 2 * PG, new, flag, to)]
        yield [*WORLD, ("mlock", A, 4 * PG), ("mremap", A, 2 * PG, new, flag, to)]
        yield [*WORLD, ("mlock2", A, 4 * PG, 1), ("mremap", A, 2 * PG, new, flag, to)]
        yield [
            *WORLD,
            ("mseal", A + 64 * PG, PG, 0),
            anon(A + 64 * PG, 2),
            ("mseal", A + 65 * PG, PG, 0),
            ("mremap", A, 2 * PG, new, flag, to),
        ]


def madvise_arguments() -> Iterator[Case]:
    plain = [0, 1, 2, 3, 4, 10, 11, 16, 17, 18, 19, 24]
    unknown = [5, 6, 7, 26, 99, 104, 1000, MAX, 1 << 31, 4 | 1 << 32, 1 << 32]
    for advice in plain + unknown:
        for address, length in itertools.product(
            [A, A + 1, A + 3 * PG, A + 4 * PG, A + 16 * PG, TOP, KERNEL, MAX - PG + 1], ODD_LENGTHS
        ):
            yield [*WORLD, ("madvise", address, length, advice)]
    for advice, address in itertools.product([*plain, 9, 22, 23], PLACES):
        yield [*WORLD, ("madvise", address, 2 * PG, advice)]
        yield [*WORLD, ("mlock", address, 2 * PG), ("madvise", address, 2 * PG, advice)]
        yield [*WORLD, ("mseal", address, 2 * PG, 0), ("madvise", address, 2 * PG, advice)]


def mlock_arguments() -> Iterator[Case]:
    for address, length in itertools.product(ODD_ADDRESSES + PLACES, ODD_LENGTHS):
        if 1 << 46 <= length < 1 << 63 and address < TOP:
            continue
        yield [*WORLD, ("mlock", address, length)]
        yield [*WORLD, ("mlock", A, 4 * PG), ("munlock", address, length)]
    for address, flags in itertools.product(PLACES, [0, 1, 2, 3, 1 << 31, 1 << 32, MAX]):
        yield [*WORLD, ("mlock2", address, 2 * PG, flags)]
        yield [
            *WORLD,
            ("mlock2", address, 2 * PG, flags),
            ("mlock2", address + PG, 2 * PG, flags ^ 1),
            ("munlock", address, PG),
        ]


def mlockall_flags() -> Iterator[Case]:
    later: list[Step] = [
        anon(A + 64 * PG, 2),
        ("mmap", 0, 2 * PG, R, PRIVATE, F, 0),
        ("brk", 0x41B000 + 3 * PG),
        ("mremap", A, 4 * PG, 6 * PG, MAYMOVE, 0),
        ("mprotect", A + 64 * PG, PG, R),
        ("read", A + 599 * PG),
    ]
    for flags in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1 << 31, 1 << 32, 1 | 1 << 32):
        yield [*WORLD, ("mlockall", flags), *later]
        yield [*WORLD, ("mlockall", flags), ("fork",), *later]
        yield [*WORLD, ("mlockall", 3), ("mlockall", flags), *later]
        yield [*WORLD, ("mlockall", flags), anon(A + 64 * PG, 2, RW, LOCKED), ("munlockall",), *later]


def mincore_and_msync() -> Iterator[Case]:
    for address, length in itertools.product(ODD_ADDRESSES + PLACES, ODD_LENGTHS):
        if length < 1 << 40 and address != 0:
            yield [*WORLD, ("mincore", address, length, SCRATCH), ("bytes", 8)]
        if address < TOP and 1 << 46 <= length < 1 << 63:
            continue
        for flags in (0, 1, 4):
            yield [*WORLD, ("msync", address, length, flags)]
    for flags in (0, 1, 2, 3, 4, 5, 6, 7, 8, MAX, 1 << 31, 1 << 32, 4 | 1 << 32):
        for address, npages in ((A, 2), (A + 3 * PG, 3), (A + 4 * PG, 1), (A + 16 * PG, 3), (A + 1, 1)):
            yield [*WORLD, ("msync", address, npages * PG, flags)]
            yield [*WORLD, ("mlock", address, PG), ("msync", address, npages * PG, flags)]


def mseal_arguments() -> Iterator[Case]:
    for address, length in itertools.product(ODD_ADDRESSES + PLACES, ODD_LENGTHS):
        if address < 1 << 39 and length or (address < TOP and TOP - address >= length >= 1 << 46):
            continue
        yield [*WORLD, ("mseal", address, length, 0)]
        yield [*WORLD, ("mseal", address, length, 1)]
    after: list[Step] = [
        ("munmap", A + PG, PG),
        ("munmap", A, 8 * PG),
        ("mprotect", A, 4 * PG, R),
        ("mprotect", A, 8 * PG, RW),
        ("mmap", A, 8 * PG, RW, ANON | FIXED, -1, 0),
        ("mremap", A, 4 * PG, 2 * PG, 0, 0),
        ("mremap", A, 2 * PG, 2 * PG, 3, A + 64 * PG),
        ("madvise", A, 4 * PG, 4),
        ("mlock", A, 4 * PG),
        ("madvise", A, 4 * PG, 10),
        ("mseal", A, 4 * PG, 0),
    ]
    for step in after:
        for start, npages in ((0, 4), (1, 1), (2, 2), (5, 1)):
            yield [*WORLD, ("mseal", A + start * PG, npages * PG, 0), step]
            yield [*WORLD, ("mseal", A + start * PG, npages * PG, 0), ("fork",), step]


def brk_moves() -> Iterator[Case]:
    start = 0x41B000
    ends = [
        0,
        1,
        start - 1,
        start,
        start + 1,
        start + PG,
        start + 3 * PG,
        start + 3 * PG + 5,
        TOP - PG,
        TOP,
        MAX,
        KERNEL,
        1 << 40,
    ]
    for first, second in itertools.product([start + 2 * PG, start + 2 * PG + 7], ends):
        yield [("brk", first), ("brk", second), ("brk", 0)]
    for npages, prot, more in itertools.product([2, 3, 4, 260], [NONE, RW], [0, GROWSDOWN]):
        block = anon(start + npages * PG, 2, prot, more)
        for want in (1, 2, 3, 5):
            yield [block, ("brk", start + want * PG)]
    yield [("brk", start + 4 * PG), ("munmap", start, 4 * PG), ("brk", start + PG), ("brk", start + 6 * PG)]
    yield [("brk", start + 4 * PG), ("munmap", start + PG, PG), ("brk", start + PG), ("brk", start + 6 * PG)]
    yield [("brk", start + 4 * PG), ("mprotect", start + PG, PG, R), ("brk", start + 6 * PG), ("brk", start)]
    yield [("brk", start + 4 * PG), ("mseal", start + PG, PG, 0), ("brk", start + 3 * PG), ("brk", start)]
    yield [("brk", start + 4 * PG), ("mremap", start, 4 * PG, 4 * PG, 3, A), ("brk", start), ("brk", start + 2 * PG)]
    yield [
        ("brk", start + 2 * PG),
        ("mlock", start, 2 * PG),
        ("brk", start + 4 * PG),
        ("munlock", start, 4 * PG),
        ("brk", start + 5 * PG),
    ]


def stacks() -> Iterator[Case]:
    stack = A + 600 * PG
    for below, prot, more in itertools.product([1, 100, 254, 255, 256, 257, 300], [NONE, R, RW], [0, GROWSDOWN]):
        block = anon(stack - (below + 1) * PG, 1, prot, more)
        for want in (1, 2, 44, 45, 100):
            yield [
                anon(stack, 2, RW, GROWSDOWN),
                block,
                ("read", stack - want * PG),
                ("write", stack - PG),
                ("mprotect", stack + PG, PG, R),
            ]
    for limit in (0, PG, 16 * PG, 16 * PG + 100, 17 * PG):
        for want in (1, 14, 15, 16):
            yield [
                anon(stack, 1, RW, GROWSDOWN),
                ("setrlimit", LIMIT_STACK, limit, MAX),
                ("write", stack - want * PG),
                ("write", stack),
            ]
            yield [
                anon(stack, 1, RW, GROWSDOWN),
                ("setrlimit", LIMIT_STACK, limit, MAX),
                ("write", stack - want * PG),
                ("fork",),
                ("write", stack - 17 * PG),
            ]
    for prot in (NONE, R, X):
        yield [anon(stack, 1, prot, GROWSDOWN), ("read", stack - PG), ("write", stack - 2 * PG)]
    yield [anon(65536 + PG, 1, RW, GROWSDOWN), ("read", 65536), ("read", 65535)]
    yield [anon(stack, 1, RW, GROWSDOWN), ("mlock", stack, PG), ("read", stack - 3 * PG)]
    yield [anon(stack, 4, RW, GROWSDOWN), ("munmap", stack + PG, PG), ("read", stack - 3 * PG), ("read", stack + PG)]
    yield [anon(stack, 4, RW, GROWSDOWN), ("mmap", 0, PG, RW, ANON, -1, 0), ("mmap", stack - PG, PG, RW, ANON, -1, 0)]


def remap_file_pages() -> Iterator[Case]:
    for address, size, prot, pgoff, flags in itertools.product(
        [A, A + 16 * PG, A + 17 * PG, A + 20 * PG, A + 32 * PG, A + 4 * PG, A + 16 * PG + 1, 0],
        [0, 1, PG, 2 * PG, 4 * PG, MAX],
        [0, 1],
        [0, 1, 1 << 52, MAX],
        [0, NONBLOCK, LOCKED, MAX],
    ):
        yield [*WORLD, ("remap_file_pages", address, size, prot, pgoff, flags)]


def droppable() -> Iterator[Case]:
    base: list[Step] = [("mmap", A, 4 * PG, RW, ANONYMOUS | DROPPABLE | FIXED, -1, 0), ("write", A), ("write", A + PG)]
    for step in (
        ("mlock", A, 4 * PG), ("mlock2", A, 4 * PG, 1), ("mlockall", 1), ("munlock", A, 4 * PG), ("fork",),
        ("mprotect", A, PG, R),
        ("mremap", A, 4 * PG, 6 * PG, MAYMOVE, 0), ("mremap", A, 2 * PG, 2 * PG, 3, A + 64 * PG),
        *(("madvise", A, 2 * PG, advice) for advice in (0, 3, 4, 10, 16, 17, 18, 19, 22, 23)),
        ("mseal", A, PG, 0), ("read", A),
    ):  # fmt: skip
        yield [*base, step, ("read", A), ("write", A + PG), ("mincore", A, 4 * PG, SCRATCH), ("bytes", 4)]
    for more in (LOCKED, GROWSDOWN, HUGETLB, NORESERVE, POPULATE, STACK, BIT32):
        yield [("mmap", 0, 2 * PG, RW, ANONYMOUS | DROPPABLE | more, -1, 0)]
    yield [("mlockall", 2), *base]


def limits() -> Iterator[Case]:
    """Every way to get memory under every limit, as root and as nobody."""
    heap = 0x41B000
    ways: list[list[Step]] = [
        [anon(A + 64 * PG, 8)],
        [anon(A + 64 * PG, 8, R)],
        [("mmap", 0, 8 * PG, RW, ANON_SHARED, -1, 0)],
        [("mmap", 0, 8 * PG, RW, PRIVATE, F, 0)],
        [("mmap", 0, 8 * PG, RW, ANON | LOCKED, -1, 0)],
        [("mmap", 0, 8 * PG, RW, ANON | GROWSDOWN, -1, 0)],
        [("mmap", 0, 8 * PG, RW, ANONYMOUS | DROPPABLE, -1, 0)],
        [anon(A, 12), anon(A, 4, R), anon(A, 8)],
        [("mremap", A, 4 * PG, 12 * PG, MAYMOVE, 0), ("mremap", A, 4 * PG, 5 * PG, 0, 0)],
        [("mremap", A, 4 * PG, 4 * PG, MAYMOVE | DONTUNMAP, A + 64 * PG), ("mlock", A + 64 * PG, PG)],
        [("mremap", A + 16 * PG, 0, 8 * PG, MAYMOVE, 0)],
        [("mprotect", A + 5 * PG, 3 * PG, RW), ("mprotect", A + 5 * PG, 3 * PG, R)],
        [("brk", heap + 8 * PG), ("brk", heap + 2 * PG), ("brk", heap)],
        [("write", A + 592 * PG), ("write", A + 598 * PG), ("write", A + 440 * PG)],
        [("mlock", A, 2 * PG), ("mlock", A, 4 * PG), ("mlock", A, 4 * PG), ("munlock", A, PG)],
        [("mlock2", A, 4 * PG, 1), ("mremap", A, 4 * PG, 8 * PG, MAYMOVE, 0)],
        [("mlock", A + PG, PG), ("mlock", A, 3 * PG), ("mlock", A + 4 * PG, 8 * PG)],
        [("mlock", A + 600 * PG, PG), ("write", A + 598 * PG), ("write", A + 560 * PG)],
        [("mlockall", 1), anon(A + 64 * PG, 8), ("munlockall",)],
        [("mlockall", 2), anon(A + 64 * PG, 8), ("brk", heap + 8 * PG), ("mmap", 0, 2 * PG, R, ANON_SHARED, -1, 0)],
        [("mlockall", 7), ("mlockall", 6), ("fork",), ("mlockall", 1), ("mlock", A, PG)],
        [("mmap", 0, PG, RW, ANON | FIXED, -1, 0), ("mmap", 4096, PG, RW, ANON, -1, 0), ("mmap", 4096, PG, R, F, F, 0)],
        [("mremap", A, PG, PG, MAYMOVE | MFIXED, 4096), ("mremap", A, PG, PG, MAYMOVE | DONTUNMAP, 8192)],
        [("remap_file_pages", A + 16 * PG, PG, 0, 1, 0), ("mlock", A + 16 * PG, 3 * PG)],
    ]
    mapped = 240 + 4 * (4 + 3 + 3 + 3 + 3 + 3 + 2)  # kB of the probe and of WORLD
    data = 96 + 4 * (4 + 3)
    sizes = {
        LIMIT_AS: [0, mapped << 10, mapped + 16 << 10, mapped + 32 << 10, mapped + 33 << 10, mapped + 1000 << 10],
        LIMIT_DATA: [0, PG, data << 10, data + 12 << 10, data + 32 << 10, 8 * PG, 8 * PG + 1],
        LIMIT_STACK: [0, PG, 8 * PG, 10 * PG],
        LIMIT_MEMLOCK: [0, 1, PG, 2 * PG, 4 * PG, 8 * PG, 12 * PG, mapped << 10, mapped + 64 << 10],
    }
    for resource, bounds in sizes.items():
        for bound, way, user in itertools.product(bounds, ways, [[], [("setuid", 65534)]]):
            yield [*WORLD, ("setrlimit", resource, bound, bound), *user, *way]
            if resource == LIMIT_DATA:
                yield [*WORLD, ("setrlimit", resource, 0, bound), *user, *way]
    values = [0, 1, PG, 1 << 20, (1 << 20) + 1, 1 << 30, MAX - 1, MAX]
    for resource, soft, hard in itertools.product(range(17), values, values):
        if resource not in (0, 7) and (soft, hard) != (0, 0):  # not the probe's own time and files
            yield [("setuid", 65534), ("setrlimit", resource, soft, hard), ("setrlimit", resource, hard, MAX)]
    yield [("setrlimit", 7, 64, hard) for hard in ((1 << 20) + 1, MAX, 64)]
    yield [("setrlimit", resource, 0, 0) for resource in (16, 17, 1 << 31, MAX)]


def written(case: Case) -> str:
    """A case for people: hexadecimal, with WORLD by its name."""
    world = list(case[: len(WORLD)]) == WORLD
    steps = case[len(WORLD) :] if world else case
    calls = (f"{name}({', '.join(hex(int(argument)) for argument in arguments)})" for name, *arguments in steps)
    return ("WORLD; " if world else "") + "; ".join(calls)


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        mmap_flags, mmap_places, mmap_alignment, mmap_over, munmap_ranges, mprotect_ranges, mremap_arguments,
        mremap_sealed_and_locked, madvise_arguments, mlock_arguments, mlockall_flags, mincore_and_msync,
        mseal_arguments, brk_moves, stacks, remap_file_pages, droppable, limits,
    )
}  # fmt: skip
