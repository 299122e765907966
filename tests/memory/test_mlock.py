"""mlock(2), munlock(2), mincore(2), msync(2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, counts, every_mode, filled, machine, sharing_mode
from memory.errnos import HOLE, HUGE, KERNEL, TOP, World, outcome, world

from vmemu import Advice, ForkMode, Map, Prot, SyscallError

Call = Callable[[World], Any]

ERRORS: dict[str, tuple[Call, str]] = {
    "mlock unmapped": (lambda w: w.p.mlock(HOLE, PAGE), "ENOMEM"),
    "mlock length 0": (lambda w: w.p.mlock(HOLE, 0), "ok"),
    "mlock length wraps to 0": (lambda w: w.p.mlock(A, HUGE), "ok"),
    "mlock end wraps": (lambda w: w.p.mlock(A, HUGE - 2 * PAGE), "EINVAL"),
    "mlock kernel half": (lambda w: w.p.mlock(KERNEL, PAGE), "ENOMEM"),
    "mlock misaligned": (lambda w: w.p.mlock(A + 1, 1), "ok"),
    "mlock2 flags": (lambda w: w.p.mlock(A, PAGE, 2), "EINVAL"),
    "munlock unmapped": (lambda w: w.p.munlock(HOLE, PAGE), "ENOMEM"),
    "munlock of unlocked": (lambda w: w.p.munlock(A, PAGE), "ok"),
    "mincore misaligned": (lambda w: w.p.mincore(A + 1, PAGE), "EINVAL"),
    "mincore unmapped": (lambda w: w.p.mincore(HOLE, PAGE), "ENOMEM"),
    "mincore over a hole": (lambda w: w.p.mincore(A, 9 * PAGE), "ENOMEM"),
    "mincore length 0": (lambda w: w.p.mincore(HOLE, 0), "ok"),
    "mincore kernel half": (lambda w: w.p.mincore(KERNEL, PAGE), "ENOMEM"),
    "mincore length wraps": (lambda w: w.p.mincore(A, HUGE), "ENOMEM"),
    "mincore all": (lambda w: w.p.mincore(0, TOP), "ENOMEM"),
    "msync misaligned": (lambda w: w.p.msync(A + 1, PAGE, 4), "EINVAL"),
    "msync flags": (lambda w: w.p.msync(A, PAGE, 8), "EINVAL"),
    "msync both": (lambda w: w.p.msync(A, PAGE, 5), "EINVAL"),
    "msync unmapped": (lambda w: w.p.msync(HOLE, PAGE, 4), "ENOMEM"),
    "msync over a hole": (lambda w: w.p.msync(A, 9 * PAGE, 4), "ENOMEM"),
    "msync wraps": (lambda w: w.p.msync(A, HUGE - PAGE, 4), "ENOMEM"),
    "msync length 0": (lambda w: w.p.msync(HOLE, 0, 4), "ok"),
    "msync": (lambda w: w.p.msync(A, 4 * PAGE, 4), "ok"),
    "msync invalidate locked": (lambda w: (w.p.mlock(A, PAGE), w.p.msync(A, PAGE, 2)), "EBUSY"),
}


@pytest.mark.parametrize("what", list(ERRORS))
def test_errno(what: str) -> None:
    """The errno that Linux gives; a call that fails changes nothing."""
    call, expected = ERRORS[what]
    assert outcome(call, changes="invalidate" in what) == expected


def test_mlock_faults_everything_in() -> None:
    """Private writable memory by write faults, so that zero pages and copy-on-write are gone; else by reads."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        p.touch(a, 2 * PAGE)
        before = p.faults
        p.mlock(a, 4 * PAGE)
        assert p.faults - before == counts(zero_fill=4)
        readonly = anon(p, 2, prot=R)
        before = p.faults
        p.mlock(readonly, 2 * PAGE)
        assert p.faults - before == counts(zero_map=2)
        none = anon(p, 1, prot=Prot.NONE)
        with pytest.raises(SyscallError) as caught:
            p.mlock(none, PAGE)
        assert caught.value.name == "ENOMEM"


def test_mlock_on_fault_faults_nothing_in() -> None:
    """MLOCK_ONFAULT only marks the mapping."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        p.mlock(a, 4 * PAGE, flags=1)
        assert p.faults == counts()
        assert {"lo", "lf"} <= set(p.maps()[0].flags)


def test_an_earlier_part_stays_locked() -> None:
    """A hole is ENOMEM, with what lies before it locked."""
    with world() as w:
        with pytest.raises(SyscallError):
            w.p.mlock(A, 9 * PAGE)
        assert ["lo" in v.flags for v in w.p.maps() if A <= v.start < A + 9 * PAGE] == [True, False]


@every_mode
def test_locks_are_not_inherited(mode: ForkMode) -> None:
    """A child's memory is not locked; the parent's stays."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 3)
        p.mlock(a + PAGE, PAGE)
        c = p.fork()
        assert not any("lo" in v.flags for v in c.maps())
        assert ["lo" in v.flags for v in p.maps()] == [False, True, False]
        c.madvise(a, 3 * PAGE, Advice.DONTNEED)
        with pytest.raises(SyscallError):
            p.madvise(a, 3 * PAGE, Advice.DONTNEED)
        p.munlock(a, 3 * PAGE)
        p.madvise(a, 3 * PAGE, Advice.DONTNEED)


@every_mode
def test_mappings_that_differed_in_a_lock_stay_apart_in_the_child(mode: ForkMode) -> None:
    """dup_mmap() clears the lock and merges nothing, whatever the fork mode."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = anon(p, 3)
        p.mlock(a + PAGE, PAGE, flags=1)
        assert [(v.start - a) // PAGE for v in p.fork().maps()] == [0, 1, 2]


@sharing_mode
def test_mlock_breaks_copy_on_write(mode: ForkMode) -> None:
    """Locking after fork copies what is shared."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 3)
        c = p.fork()
        c.mlock(a, 3 * PAGE)
        assert c.faults == counts(cow_copy=3)
        assert c.touch(a, 3 * PAGE, write=True) == counts(none=3)
        assert p.read(a, PAGE) == b"\1" * PAGE


def test_mincore_shows_what_is_in_memory() -> None:
    """One byte a page: present pages of anonymous memory, the zero page too; of files what is cached, mapped or not."""
    with machine(fault_around=1) as m:
        p = m.spawn()
        a = anon(p, 4)
        p.write(a, b"x")
        p.read(a + 2 * PAGE, 1)
        assert p.mincore(a, 4 * PAGE) == b"\1\0\1\0"
        assert p.mincore(a, 3 * PAGE + 1) == b"\1\0\1\0"
        file = m.create_file("f", b"f" * PAGE)
        file.truncate(4 * PAGE)
        b = p.mmap(None, 4 * PAGE, R, Map.SHARED, file)
        assert p.mincore(b, 4 * PAGE) == b"\1\0\0\0"
        file.pwrite(b"x", 2 * PAGE)
        assert p.mincore(b, 4 * PAGE) == b"\1\0\1\0"
        s = p.mmap(None, 2 * PAGE, RW, SHARED)
        c = p.fork()
        c.write(s + PAGE, b"x")
        assert p.mincore(s, 2 * PAGE) == b"\0\1"
        assert p.mmap(None, 1, R, ANON)
