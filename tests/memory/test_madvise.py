"""madvise(2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, counts, every_mode, filled, machine, pfns, sharing_mode
from memory.errnos import HOLE, HUGE, KERNEL, RO_SHARED, World, outcome, world

from vmemu import Advice, ForkMode, Map, Prot, SyscallError

Call = Callable[[World], Any]


def _sealed(w: World, advice: Advice) -> None:
    w.p.mprotect(A, PAGE, R)
    w.p.mseal(A, PAGE)
    w.p.madvise(A, PAGE, advice)


ERRORS: dict[str, tuple[Call, str]] = {
    "misaligned": (lambda w: w.p.madvise(A + 1, PAGE, Advice.DONTNEED), "EINVAL"),
    "unknown": (lambda w: w.p.madvise(A, PAGE, 77), "EINVAL"),
    "negative": (lambda w: w.p.madvise(A, PAGE, -1), "EINVAL"),
    "length wraps": (lambda w: w.p.madvise(A, HUGE, Advice.DONTNEED), "EINVAL"),
    "end wraps": (lambda w: w.p.madvise(A, HUGE - PAGE, Advice.DONTNEED), "EINVAL"),
    "length 0": (lambda w: w.p.madvise(HOLE, 0, Advice.DONTNEED), "ok"),
    "length 0, unknown": (lambda w: w.p.madvise(HOLE, 0, 77), "EINVAL"),
    "unmapped": (lambda w: w.p.madvise(HOLE, PAGE, Advice.DONTNEED), "ENOMEM"),
    "dontfork unmapped": (lambda w: w.p.madvise(HOLE, PAGE, Advice.DONTFORK), "ENOMEM"),
    "kernel half": (lambda w: w.p.madvise(KERNEL, PAGE, Advice.DONTNEED), "ENOMEM"),
    "wipeonfork shared": (lambda w: w.p.madvise(w.shared, PAGE, Advice.WIPEONFORK), "EINVAL"),
    "wipeonfork file": (lambda w: w.p.madvise(w.private, PAGE, Advice.WIPEONFORK), "EINVAL"),
    "keeponfork anywhere": (lambda w: w.p.madvise(A, PAGE, Advice.KEEPONFORK), "ok"),
    "remove private": (lambda w: w.p.madvise(A, PAGE, Advice.REMOVE), "EINVAL"),
    "remove read-only file": (lambda w: w.p.madvise(RO_SHARED, PAGE, Advice.REMOVE), "EACCES"),
    "remove private file": (lambda w: w.p.madvise(w.private, PAGE, Advice.REMOVE), "EACCES"),
    "remove shared": (lambda w: w.p.madvise(w.shared, PAGE, Advice.REMOVE), "ok"),
    "dontneed locked": (lambda w: (w.p.mlock(A, PAGE), w.p.madvise(A, PAGE, Advice.DONTNEED)), "EINVAL"),
    "dontneed_locked locked": (lambda w: (w.p.mlock(A, PAGE), w.p.madvise(A, PAGE, 24)), "ok"),
    "remove locked": (lambda w: (w.p.mlock(w.shared, PAGE), w.p.madvise(w.shared, PAGE, 9)), "EINVAL"),
    "guard locked": (lambda w: (w.p.mlock(A, PAGE), w.p.madvise(A, PAGE, Advice.GUARD_INSTALL)), "EINVAL"),
    "unguard locked": (lambda w: (w.p.mlock(A, PAGE), w.p.madvise(A, PAGE, Advice.GUARD_REMOVE)), "ok"),
    "guard hole": (lambda w: w.p.madvise(HOLE, PAGE, Advice.GUARD_INSTALL), "ENOMEM"),
    "guard sealed": (lambda w: _sealed(w, Advice.GUARD_INSTALL), "EPERM"),
    "unguard sealed": (lambda w: _sealed(w, Advice.GUARD_REMOVE), "ok"),
    "populate_write guard": (
        lambda w: (w.p.madvise(A, PAGE, Advice.GUARD_INSTALL), w.p.madvise(A, PAGE, Advice.POPULATE_WRITE)),
        "EFAULT",
    ),
    "mlock guard": (lambda w: (w.p.madvise(A, PAGE, Advice.GUARD_INSTALL), w.p.mlock(A, PAGE)), "ENOMEM"),
    "free shared": (lambda w: w.p.madvise(w.shared, PAGE, Advice.FREE), "EINVAL"),
    "free file": (lambda w: w.p.madvise(w.private, PAGE, Advice.FREE), "EINVAL"),
    "free locked": (lambda w: (w.p.mlock(A, PAGE), w.p.madvise(A, PAGE, Advice.FREE)), "EINVAL"),
    "free sealed": (lambda w: _sealed(w, Advice.FREE), "EPERM"),
    "cold locked": (lambda w: (w.p.mlock(A, PAGE), w.p.madvise(A, PAGE, Advice.COLD)), "EINVAL"),
    "pageout locked": (lambda w: (w.p.mlock(A, PAGE), w.p.madvise(A, PAGE, Advice.PAGEOUT)), "EINVAL"),
    "cold sealed": (lambda w: _sealed(w, Advice.COLD), "ok"),
    "soft_offline": (lambda w: w.p.madvise(A, PAGE, Advice.SOFT_OFFLINE), "EINVAL"),
    "soft_offline length 0": (lambda w: w.p.madvise(A, 0, Advice.SOFT_OFFLINE), "EINVAL"),
    "mergeable shared": (lambda w: w.p.madvise(w.shared, PAGE, Advice.MERGEABLE), "ok"),
    "mergeable hole": (lambda w: w.p.madvise(HOLE, PAGE, Advice.MERGEABLE), "ENOMEM"),
    "populate_read exec only": (
        lambda w: (w.p.mprotect(A, PAGE, Prot.EXEC), w.p.madvise(A, PAGE, Advice.POPULATE_READ)),
        "EINVAL",
    ),
    "hwpoison": (lambda w: w.p.madvise(A, PAGE, Advice.HWPOISON), "EINVAL"),
    "willneed": (lambda w: w.p.madvise(A, PAGE, Advice.WILLNEED), "ok"),
    "normal": (lambda w: w.p.madvise(A, PAGE, Advice.NORMAL), "ok"),
    "populate_write read-only": (lambda w: w.p.madvise(RO_SHARED, PAGE, Advice.POPULATE_WRITE), "EINVAL"),
    "populate_read hole": (lambda w: w.p.madvise(HOLE, PAGE, Advice.POPULATE_READ), "ENOMEM"),
    "populate_read none": (
        lambda w: (w.p.mprotect(A, PAGE, 0), w.p.madvise(A, PAGE, Advice.POPULATE_READ)),
        "EINVAL",
    ),
    "populate beyond the file": (
        lambda w: (w.tmp.truncate(PAGE), w.p.madvise(w.private, 2 * PAGE, Advice.POPULATE_READ)),
        "EFAULT",
    ),
}


@pytest.mark.parametrize("what", list(ERRORS))
def test_errno(what: str) -> None:
    """The errno that Linux gives; a call that fails changes nothing."""
    call, expected = ERRORS[what]
    assert (
        outcome(call, changes=any(word in what for word in ("locked", "none", "beyond", "guard", "sealed", "exec")))
        == expected
    )


@pytest.mark.parametrize("what", [a for a in Advice if a not in (4, 8, 9, 20, 21, 22, 23, 24, 25, 100, 101, 102, 103)])
def test_holes_are_passed_over_and_reported(what: Advice) -> None:
    """Advice over a hole is taken for all that is mapped, and then ENOMEM is returned."""
    with world() as w:
        try:
            w.p.madvise(A, 9 * PAGE, what)
        except NotImplementedError as error:
            assert what.name in str(error)
        except SyscallError as error:
            assert error.name == "ENOMEM"
        else:
            raise AssertionError("no error")


def test_what_is_not_there_says_so() -> None:
    """What is not there yet raises NotImplementedError that names it, and nothing else is returned for a known
    advice."""
    with machine() as m:
        for what in Advice:
            p = m.spawn()
            a = filled(p, 2)
            try:
                p.madvise(a, PAGE, what)
            except NotImplementedError as error:
                assert what.name in str(error)
            except SyscallError as error:
                assert error.name == "EINVAL"
            p.exit()


def test_dontneed_gives_frames_back() -> None:
    """DONTNEED: anonymous memory is zero again, a private copy is the file's page again, shared memory keeps its
    bytes."""
    with machine() as m:
        p = m.spawn()
        file = m.create_file("f", b"f" * 2 * PAGE)
        a, b, s = filled(p, 4), p.mmap(None, 2 * PAGE, RW, Map.PRIVATE, file), p.mmap(None, PAGE, RW, SHARED)
        p.write(b, b"b" * 2 * PAGE)
        p.write(s, b"s")
        before = m.meminfo()
        p.madvise(a + PAGE, 2 * PAGE, Advice.DONTNEED)
        p.madvise(b, PAGE, Advice.DONTNEED)
        p.madvise(s, PAGE, Advice.DONTNEED)
        assert m.meminfo().anon == before.anon - 3 * PAGE
        assert m.meminfo().free == before.free + 3 * PAGE
        assert p.read(a, 4 * PAGE) == b"\1" * PAGE + bytes(2 * PAGE) + b"\4" * PAGE
        assert p.read(b, 2 * PAGE) == b"f" * PAGE + b"b" * PAGE
        assert p.read(s, 1) == b"s"
        assert p.touch(a + PAGE, PAGE, write=True) == counts(zero_fill=1)


@sharing_mode
def test_dontneed_on_one_side_of_a_fork(mode: ForkMode) -> None:
    """The other side keeps its pages."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 4)
        c = p.fork()
        c.madvise(a, 2 * PAGE, Advice.DONTNEED)
        assert p.read(a, 4 * PAGE) == b"".join(bytes([i + 1]) * PAGE for i in range(4))
        assert c.read(a, 3 * PAGE) == bytes(2 * PAGE) + b"\3" * PAGE


@every_mode
def test_wipeonfork_keeps_the_mapping_and_the_advice(mode: ForkMode) -> None:
    """The child has the mapping, empty, with the advice; its own writes are there for it and wiped for its child."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 3)
        p.madvise(a + PAGE, PAGE, Advice.WIPEONFORK)
        c = p.fork()
        assert [v.flags.count("wf") for v in c.maps()] == [0, 1, 0]
        assert pfns(c, a + PAGE, 1) == [0]
        assert c.read(a, 3 * PAGE) == b"\1" * PAGE + bytes(PAGE) + b"\3" * PAGE
        c.write(a + PAGE, b"c")
        assert c.fork().read(a + PAGE, 1) == b"\0"
        assert p.read(a + PAGE, 1) == b"\2"
        p.madvise(a, 3 * PAGE, Advice.KEEPONFORK)
        assert p.fork().read(a + PAGE, 1) == b"\2"
        assert len(p.maps()) == 1


@every_mode
def test_dontfork_and_back(mode: ForkMode) -> None:
    """DONTFORK for a part, DOFORK for all again; other mappings of the child are as they were."""
    with machine(fork_mode=mode) as m:
        p = m.spawn()
        a = filled(p, 3)
        p.madvise(a + 2 * PAGE, PAGE, Advice.DONTFORK)
        c = p.fork()
        assert [(v.start, v.size) for v in c.maps()] == [(a, 2 * PAGE)]
        with pytest.raises(SyscallError):
            c.mprotect(a + 2 * PAGE, PAGE, R)
        anon(c, 1, a + 2 * PAGE)
        assert c.read(a + 2 * PAGE, 1) == b"\0"
        p.madvise(a, 3 * PAGE, Advice.DOFORK)
        assert p.fork().read(a + 2 * PAGE, 1) == b"\3"


def test_populate_read_and_write() -> None:
    """POPULATE_READ maps, POPULATE_WRITE breaks copy-on-write; afterwards no access faults."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 8 * PAGE, RW, ANON)
        p.madvise(a, 4 * PAGE, Advice.POPULATE_READ)
        assert p.faults == counts(zero_map=4)
        p.madvise(a, 8 * PAGE, Advice.POPULATE_WRITE)
        assert p.faults == counts(zero_map=4, zero_fill=8)
        c = p.fork()
        c.madvise(a, 8 * PAGE, Advice.POPULATE_WRITE)
        assert c.faults == counts(cow_copy=8)
        assert c.touch(a, 8 * PAGE, write=True) == counts(none=8)


def test_flags_show() -> None:
    """What was advised shows in VmFlags, and splits the mapping."""
    with machine() as m:
        p = m.spawn()
        a = anon(p, 4)
        for what, code in ((Advice.RANDOM, "rr"), (Advice.SEQUENTIAL, "sr"), (Advice.DONTDUMP, "dd")):
            p.madvise(a + PAGE, PAGE, what)
            assert [code in v.flags for v in p.maps()] == [False, True, False]
        p.madvise(a, 4 * PAGE, Advice.NORMAL)
        p.madvise(a, 4 * PAGE, Advice.DODUMP)
        assert len(p.maps()) == 1
