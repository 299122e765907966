"""mprotect(2) and mseal(2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, counts, filled, machine, pfn, prots, sharing_mode
from memory.errnos import GROWS, HOLE, HUGE, KERNEL, RO_SHARED, World, outcome, world

from vmemu import FaultKind, ForkMode, Map, Overcommit, Prot, SegmentationFault, SyscallError

NONE, X = Prot.NONE, Prot.EXEC
Call = Callable[[World], Any]

ERRORS: dict[str, tuple[Call, str]] = {
    "misaligned": (lambda w: w.p.mprotect(A + 1, PAGE, R), "EINVAL"),
    "length 0": (lambda w: w.p.mprotect(A, 0, R), "ok"),
    "length 0 of nothing": (lambda w: w.p.mprotect(HOLE, 0, R), "ok"),
    "unmapped": (lambda w: w.p.mprotect(HOLE, PAGE, R), "ENOMEM"),
    "starts in a hole": (lambda w: w.p.mprotect(A - PAGE, 2 * PAGE, R), "ENOMEM"),
    "end wraps": (lambda w: w.p.mprotect(A, HUGE - PAGE, R), "ENOMEM"),
    "length wraps": (lambda w: w.p.mprotect(A, HUGE, R), "ENOMEM"),
    "kernel half": (lambda w: w.p.mprotect(KERNEL, PAGE, R), "ENOMEM"),
    "unknown bits": (lambda w: w.p.mprotect(A, PAGE, 0x100), "EINVAL"),
    "negative bits": (lambda w: w.p.mprotect(A, PAGE, -1), "EINVAL"),
    "PROT_SEM": (lambda w: w.p.mprotect(A, PAGE, R | 8), "ok"),
    "grows down on what does not": (lambda w: w.p.mprotect(A, PAGE, R | Prot.GROWSDOWN), "EINVAL"),
    "grows both ways": (lambda w: w.p.mprotect(A, PAGE, R | Prot.GROWSDOWN | Prot.GROWSUP), "EINVAL"),
    "grows up": (lambda w: w.p.mprotect(A, PAGE, R | Prot.GROWSUP), "EINVAL"),
    "grows down on a stack": (lambda w: w.p.mprotect(GROWS + PAGE, PAGE, R | Prot.GROWSDOWN), "ok"),
    "write on a shared read-only file": (lambda w: w.p.mprotect(RO_SHARED, PAGE, RW), "EACCES"),
    "execute on it": (lambda w: w.p.mprotect(RO_SHARED, PAGE, R | X), "ok"),
    "mseal misaligned": (lambda w: w.p.mseal(A + 1, PAGE), "EINVAL"),
    "mseal flags": (lambda w: w.p.mseal(A, PAGE, 1), "EINVAL"),
    "mseal unmapped": (lambda w: w.p.mseal(HOLE, PAGE), "ENOMEM"),
    "mseal over a hole": (lambda w: w.p.mseal(A, 9 * PAGE), "ENOMEM"),
    "mseal length 0": (lambda w: w.p.mseal(A, 0), "ok"),
    "mseal wraps": (lambda w: w.p.mseal(A, HUGE), "EINVAL"),
}


@pytest.mark.parametrize("what", list(ERRORS))
def test_errno(what: str) -> None:
    """The errno that Linux gives; a call that fails changes nothing."""
    call, expected = ERRORS[what]
    assert outcome(call) == expected


@pytest.mark.parametrize("bit", [*range(3, 24), *range(26, 64)])
def test_unknown_bits(bit: int) -> None:
    """Every bit but PROT_SEM is refused."""
    assert outcome(lambda w: w.p.mprotect(A, PAGE, R | 1 << bit)) == ("ok" if bit == 3 else "EINVAL")


def test_a_later_hole_is_reported_after_the_work_before_it() -> None:
    """ENOMEM with what lies before the hole changed, as on Linux."""
    with world() as w:
        with pytest.raises(SyscallError) as caught:
            w.p.mprotect(A, 9 * PAGE, R)
        assert caught.value.name == "ENOMEM"
        assert [v.prot for v in w.p.maps() if A <= v.start < A + 9 * PAGE] == [R, RW]


ACCESS = {
    NONE: (False, False, False),
    R: (True, False, False),
    Prot.WRITE: (True, True, False),
    RW: (True, True, False),
    X: (True, False, True),
    R | X: (True, False, True),
    Prot.WRITE | X: (True, True, True),
}


@pytest.mark.parametrize("prot", list(ACCESS), ids=repr)
@pytest.mark.parametrize("touched", [False, True])
def test_what_each_protection_allows(prot: Prot, touched: bool) -> None:
    """Reading, writing, executing by protection, on x86: what may be written or executed may be read. Refused ones are
    SEGV_ACCERR with the address, and change nothing."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2) if touched else anon(p, 2)
        p.mprotect(a, 2 * PAGE, prot)
        tries: list[tuple[str, Callable[[], object]]] = [
            ("read", lambda: p.read(a + 5, 1)),
            ("write", lambda: p.write(a + 5, b"\1")),
            ("fetch", lambda: p.read(a + 5, 1, fetch=True)),
        ]
        for (kind, access), allowed in zip(tries, ACCESS[prot], strict=True):
            if allowed:
                access()
                continue
            with pytest.raises(SegmentationFault) as caught:
                access()
            fault = caught.value
            assert (fault.pid, fault.address, fault.access, fault.kind) == (p.pid, a + 5, kind, FaultKind.SEGV_ACCERR)
        refused = p.faults.segv_accerr
        assert refused == 3 - sum(ACCESS[prot])
        p.mprotect(a, 2 * PAGE, RW)
        assert p.read(a, 1) == (b"\1" if touched else b"\0")


def test_none_keeps_the_frames() -> None:
    """PROT_NONE memory keeps its pages: they count, and come back as they were."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 4)
        before = [pfn(p, a + i * PAGE) for i in range(4)]
        p.mprotect(a, 4 * PAGE, NONE)
        assert p.rss == 4 * PAGE
        assert prots(p, a, 4) == [NONE] * 4
        p.mprotect(a, 4 * PAGE, RW)
        assert [pfn(p, a + i * PAGE) for i in range(4)] == before
        assert p.touch(a, 4 * PAGE, write=True) == counts(none=4)


def test_splits_and_merges() -> None:
    """A part gets a mapping of its own and merges back when it is alike again."""
    with machine() as m:
        p = m.spawn()
        filled(p, 6, A)
        p.mprotect(A + 2 * PAGE, 2 * PAGE, R)
        assert [v.size // PAGE for v in p.maps()] == [2, 2, 2]
        p.mprotect(A + PAGE, 4 * PAGE, NONE)
        assert [v.size // PAGE for v in p.maps()] == [1, 4, 1]
        p.mprotect(A, 6 * PAGE, RW)
        assert [v.size // PAGE for v in p.maps()] == [6]


@sharing_mode
def test_read_only_memory_of_a_shared_frame_never_becomes_writable_unasked(mode: ForkMode) -> None:
    """Whatever mprotect does on either side of a fork, a write on one side is never seen on the other."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 1)
        c = p.fork()
        for who in (p, c):
            for prot in (R, NONE, RW, R | X, RW):
                who.mprotect(a, PAGE, prot)
        c.write(a, b"c")
        assert p.read(a, 1) == b"\1"
        p.write(a, b"p")
        assert c.read(a, 1) == b"c"


def test_shared_memory_is_writable_again_without_a_fault() -> None:
    """For shared memory the permission is the mapping's, except where the file wants to hear of the first write."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, PAGE, R, SHARED)
        p.read(a, 1)
        p.mprotect(a, PAGE, RW)
        assert p.touch(a, PAGE, write=True) == counts(none=1)
        file = m.create_file("f", bytes(PAGE), writenotify=True)
        b = p.mmap(None, PAGE, R, Map.SHARED, file)
        p.read(b, 1)
        p.mprotect(b, PAGE, RW)
        assert p.touch(b, PAGE, write=True) == counts(file_minor=1)


def test_becoming_writable_is_charged() -> None:
    """Private memory that becomes writable is promised from then on."""
    with machine(memory=1000 * PAGE, overcommit=Overcommit.NEVER) as m:
        p = m.spawn()
        a = p.mmap(None, 450 * PAGE, R, ANON)
        b = p.mmap(None, 450 * PAGE, R, ANON)
        assert m.meminfo().committed == 0
        p.mprotect(a, 450 * PAGE, RW)
        assert m.meminfo().committed == 450 * PAGE
        with pytest.raises(SyscallError) as caught:
            p.mprotect(b, 450 * PAGE, RW)
        assert caught.value.name == "ENOMEM"
        assert m.meminfo().committed == 450 * PAGE


def test_sealed_memory_stays_as_it_is() -> None:
    """mseal: no munmap, mprotect, mremap, MAP_FIXED; discarding read-only private memory neither; writing goes on."""
    with machine() as m:
        p = m.spawn()
        filled(p, 4, A)
        p.mprotect(A + 2 * PAGE, PAGE, R)
        p.mseal(A + PAGE, 2 * PAGE)
        refused: list[Callable[[], object]] = [
            lambda: p.munmap(A, 2 * PAGE),
            lambda: p.mprotect(A + PAGE, PAGE, R),
            lambda: p.mremap(A + PAGE, PAGE, 2 * PAGE, 1),
            lambda: p.mremap(A + PAGE, PAGE, PAGE, 3, HOLE),
            lambda: anon(p, 1, A + PAGE),
            lambda: p.madvise(A + 2 * PAGE, PAGE, 4),
        ]
        before = p.maps()
        for call in refused:
            with pytest.raises(SyscallError) as caught:
                call()
            assert caught.value.name == "EPERM"
            assert p.maps() == before
        p.write(A + PAGE, b"x")
        p.madvise(A + PAGE, PAGE, 4)
        assert p.read(A + PAGE, 1) == b"\0"
        assert p.fork().maps()[1].flags[-1] == "sl"
