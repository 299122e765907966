"""mremap(2)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, counts, every_mode, filled, machine, pfns, prots, prove
from memory.errnos import HOLE, HUGE, KERNEL, TOP, World, outcome, world

from vmemu import (
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    ForkMode,
    Map,
    MemoryFault,
    SegmentationFault,
    SyscallError,
)

Call = Callable[[World], Any]
MAY, FIX, DONT = MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_DONTUNMAP

ERRORS: dict[str, tuple[Call, str]] = {
    "unknown flags": (lambda w: w.p.mremap(A, PAGE, PAGE, 8), "EINVAL"),
    "misaligned": (lambda w: w.p.mremap(A + 1, PAGE, PAGE, MAY), "EINVAL"),
    "new size 0": (lambda w: w.p.mremap(A, PAGE, 0, MAY), "EINVAL"),
    "new size wraps": (lambda w: w.p.mremap(A, PAGE, HUGE, MAY), "EINVAL"),
    "new size over the address space": (lambda w: w.p.mremap(A, PAGE, TOP + PAGE, MAY), "EINVAL"),
    "fixed without maymove": (lambda w: w.p.mremap(A, PAGE, PAGE, MREMAP_FIXED, HOLE), "EINVAL"),
    "dontunmap without maymove": (lambda w: w.p.mremap(A, PAGE, PAGE, MREMAP_DONTUNMAP), "EINVAL"),
    "dontunmap changes size": (lambda w: w.p.mremap(A, PAGE, 2 * PAGE, DONT), "EINVAL"),
    "new address misaligned": (lambda w: w.p.mremap(A, PAGE, PAGE, FIX, HOLE + 1), "EINVAL"),
    "new address at the top": (lambda w: w.p.mremap(A, PAGE, PAGE, FIX, TOP), "EINVAL"),
    "new address in the kernel half": (lambda w: w.p.mremap(A, PAGE, PAGE, FIX, KERNEL), "EINVAL"),
    "new address negative": (lambda w: w.p.mremap(A, PAGE, PAGE, FIX, -PAGE), "EINVAL"),
    "overlap": (lambda w: w.p.mremap(A, 2 * PAGE, 2 * PAGE, FIX, A + PAGE), "EINVAL"),
    "onto itself": (lambda w: w.p.mremap(A, PAGE, PAGE, FIX, A), "EINVAL"),
    "unmapped": (lambda w: w.p.mremap(HOLE, PAGE, PAGE, 0), "EFAULT"),
    "unmapped, moved": (lambda w: w.p.mremap(HOLE, PAGE, PAGE, FIX, HOLE + (1 << 20)), "EFAULT"),
    "kernel half": (lambda w: w.p.mremap(KERNEL, PAGE, PAGE, 0), "EFAULT"),
    "old size 0, private": (lambda w: w.p.mremap(A, 0, PAGE, MAY), "EINVAL"),
    "old size 0, shared": (lambda w: w.p.mremap(w.shared, 0, PAGE, MAY), "ok"),
    "old size 0, shared, without maymove": (lambda w: w.p.mremap(w.shared, 0, PAGE, 0), "ENOMEM"),
    "grow over two mappings": (lambda w: w.p.mremap(A, 8 * PAGE, 9 * PAGE, MAY), "EFAULT"),
    "grow without room": (
        lambda w: (w.p.mmap(A + 4 * PAGE, PAGE, R, ANON | Map.FIXED), w.p.mremap(A, 4 * PAGE, 5 * PAGE, 0)),
        "ENOMEM",
    ),
    "grow a part": (lambda w: w.p.mremap(A, PAGE, 2 * PAGE, 0), "ENOMEM"),
    "same size": (lambda w: w.p.mremap(A, PAGE, PAGE, 0), "ok"),
    "same size over a hole": (lambda w: w.p.mremap(A, 9 * PAGE, 9 * PAGE, 0), "ok"),
    "shrink over a hole": (lambda w: w.p.mremap(A, 9 * PAGE, PAGE, 0), "ok"),
    "grow beyond ram": (lambda w: w.p.mremap(A, 4 * PAGE, 17 << 20, MAY), "ENOMEM"),
    "sealed": (lambda w: (w.p.mseal(A, PAGE), w.p.mremap(A, PAGE, 2 * PAGE, MAY)), "EPERM"),
}


@pytest.mark.parametrize("what", list(ERRORS))
def test_errno(what: str) -> None:
    """The errno that Linux gives; a call that fails changes nothing."""
    call, expected = ERRORS[what]
    assert outcome(call, changes=what in ("sealed", "grow without room")) == expected


def test_new_address_is_ignored_where_linux_ignores_it() -> None:
    """Without FIXED or DONTUNMAP the last argument does not matter, whatever it is."""
    with world() as w:
        for ignored in (KERNEL, -1, 1, None, 0):
            assert w.p.mremap(A, 4 * PAGE, 4 * PAGE, MAY, ignored) == A


def test_shrink_unmaps_the_tail() -> None:
    """Shrinking gives the tail's frames back."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 4)
        free = m.meminfo().free
        assert p.mremap(a, 4 * PAGE, PAGE) == a
        assert m.meminfo().free == free + 3 * PAGE
        assert p.read(a, PAGE) == b"\1" * PAGE
        with pytest.raises(SegmentationFault):
            p.read(a + PAGE, 1)


def test_grow_in_place_and_elsewhere() -> None:
    """Where there is room it grows in place; else it moves, its frames with it."""
    with machine() as m:
        p = m.spawn()
        filled(p, 2, A)
        assert p.mremap(A, 2 * PAGE, 4 * PAGE) == A
        assert p.read(A, 4 * PAGE) == b"\1" * PAGE + b"\2" * PAGE + bytes(2 * PAGE)
        anon(p, 1, A + 4 * PAGE, prot=R)
        before, faults = pfns(p, A, 2), p.faults
        to = p.mremap(A, 4 * PAGE, 10 * PAGE, MAY)
        assert to != A
        assert pfns(p, to, 2) == before
        assert p.faults == faults
        assert p.read(to, 10 * PAGE) == b"\1" * PAGE + b"\2" * PAGE + bytes(8 * PAGE)
        with pytest.raises(SegmentationFault):
            p.read(A, 1)


@every_mode
def test_a_move_takes_everything_along(mode: ForkMode) -> None:
    """MREMAP_FIXED: frames, permissions and sharing go along; what was at the destination is gone; the other
    process of a fork sees nothing of it."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        filled(p, 4, A)
        filled(p, 6, HOLE)
        c = p.fork()
        before, rights = pfns(p, A, 4), prots(p, A, 4)
        assert p.mremap(A, 4 * PAGE, 4 * PAGE, FIX, HOLE + PAGE) == HOLE + PAGE
        assert pfns(p, HOLE + PAGE, 4) == before
        assert prots(p, HOLE + PAGE, 4) == rights
        assert p.read(HOLE, 6 * PAGE) == b"".join(bytes([i]) * PAGE for i in (1, 1, 2, 3, 4, 6))
        assert c.read(HOLE, 6 * PAGE) == b"".join(bytes([i]) * PAGE for i in (1, 2, 3, 4, 5, 6))
        assert c.read(A, 4 * PAGE) == b"".join(bytes([i]) * PAGE for i in (1, 2, 3, 4))


def test_dontunmap_leaves_an_empty_mapping() -> None:
    """DONTUNMAP: the pages go, the old mapping stays and reads as zeros."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 4)
        frames = pfns(p, a, 4)
        b = p.mremap(a, 4 * PAGE, 4 * PAGE, DONT)
        assert pfns(p, b, 4) == frames
        assert pfns(p, a, 4) == [0] * 4
        assert p.read(a, 4 * PAGE) == bytes(4 * PAGE)
        assert p.read(b, 1) == b"\1"


def test_old_size_zero_maps_the_same_pages_again() -> None:
    """Shared memory, old size 0: a second mapping of the same pages."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 4 * PAGE, RW, SHARED)
        p.write(a + PAGE, b"x")
        b = p.mremap(a + PAGE, 0, 2 * PAGE, MAY)
        assert p.read(b, 1) == b"x"
        p.write(b + PAGE, b"y")
        assert p.read(a + 2 * PAGE, 1) == b"y"
        assert pfns(p, b, 2) == pfns(p, a + PAGE, 2)


def test_a_move_without_change_of_size_may_span_mappings_and_holes() -> None:
    """Since 6.17: each mapping lands at the same distance; what is at the destination of a hole stays."""
    with machine() as m:
        p = m.spawn()
        filled(p, 2, A)
        filled(p, 2, A + 3 * PAGE)
        anon(p, 5, HOLE)
        p.write(HOLE, b"h" * 5 * PAGE)
        assert p.mremap(A, 5 * PAGE, 5 * PAGE, FIX, HOLE) == HOLE
        assert p.read(HOLE, 5 * PAGE) == b"\1" * PAGE + b"\2" * PAGE + b"h" * PAGE + b"\1" * PAGE + b"\2" * PAGE
        assert [v.start for v in p.maps() if v.start < HOLE] == []


@pytest.mark.parametrize("seed", range(6))
@every_mode
def test_against_a_model(seed: int, mode: ForkMode) -> None:
    """Random moves and resizes against a dictionary of pages, in parent and child."""
    rng = random.Random(seed)
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        filled(p, 30, A)
        models = {p: {A + i * PAGE: i + 1 for i in range(30)}}
        c = p.fork()
        models[c] = dict(models[p])
        for step in range(80):
            who = rng.choice([p, c])
            model = models[who]
            old = A + rng.randrange(60) * PAGE
            n = rng.randrange(1, 6)
            new = rng.choice([n, n, rng.randrange(1, 8)])
            to = A + rng.randrange(60) * PAGE
            flags = rng.choice([FIX, FIX, FIX, 0])
            if not any(v.start <= old and old + n * PAGE <= v.end for v in who.maps()):
                continue
            try:
                result = who.mremap(old, n * PAGE, new * PAGE, flags, to)
            except SyscallError as error:
                assert error.name == ("EINVAL" if flags else "ENOMEM")  # old and new overlap; no room to grow
                continue
            if flags:
                for at in range(to, to + new * PAGE, PAGE):
                    model.pop(at, None)
            values = [model.pop(at) for at in range(old, old + n * PAGE, PAGE)] + [0] * new
            model.update({result + i * PAGE: value for i, value in enumerate(values[:new])})
            if step % 20 == 0:
                prove(m)
        for who, model in models.items():
            for at in range(A, A + 80 * PAGE, PAGE):
                try:
                    assert who.read(at, 1)[0] == model[at]
                except MemoryFault:
                    assert at not in model


def test_locked_memory_grows_populated() -> None:
    """What a locked mapping gains is faulted in."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 2, A)
        p.mlock(a, 2 * PAGE)
        p.mremap(a, 2 * PAGE, 5 * PAGE)
        assert p.touch(a, 5 * PAGE, write=True) == counts(none=5)
