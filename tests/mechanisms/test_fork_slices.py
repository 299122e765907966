"""A fork of much memory is made in several calls into the core, between which a signal has its chance."""

from __future__ import annotations

import signal
import threading

import pytest

from vmemu import Advice, ForkMode, Machine, OutOfMemory, Overcommit, Process, Prot

MIB = 1 << 20
PAGE = 4096
RW = Prot.READ | Prot.WRITE
ANON = 0x4022  # private, anonymous, no reserve


def parent_of(m: Machine, sizes: list[int]) -> tuple[Process, list[int]]:
    """A process with written regions of these many MiB, apart from each other."""
    p, found = m.spawn(), []
    for size in sizes:
        found.append(p.mmap(None, size * MIB, RW, ANON))
        p.touch(found[-1], size * MIB, write=True)
        p.mmap(None, PAGE, Prot.NONE, ANON)
    return p, found


@pytest.mark.parametrize(("mode", "scale"), [(ForkMode.COW, 64), (ForkMode.EAGER, 1)])
def test_the_child_is_whole(mode: ForkMode, scale: int) -> None:
    with Machine(memory="64GiB", contents=False, overcommit=Overcommit.ALWAYS) as m:
        p, regions = parent_of(m, [scale * n for n in (70, 3, 1, 90, 40, 6)])
        p.madvise(regions[1], scale * 3 * MIB, Advice.DONTFORK)
        p.madvise(regions[2], scale * MIB, Advice.WIPEONFORK)
        p.mmap(None, 8 * PAGE, RW, ANON)  # never touched
        before = p.rss
        c = p.fork(mode=mode)
        m.verify()
        assert [(v.start, v.end) for v in c.maps()] == [
            (v.start, v.end) for v in p.maps() if not v.start <= regions[1] < v.end
        ]
        assert c.rss == before - scale * 4 * MIB and p.rss == before
        assert m.frame_stats().copied == (c.rss // PAGE if mode == ForkMode.EAGER else 0)
        c.exit(0)
        p.wait()
        m.verify()


def test_without_memory_nothing_happened() -> None:
    with Machine(memory="1GiB", contents=False, overcommit=Overcommit.ALWAYS) as m:
        p, _ = parent_of(m, [400, 200])
        free, copied = m.meminfo().free, m.frame_stats().copied
        for call in (lambda: p.fork(mode=ForkMode.EAGER), lambda: p.fork_many(3, mode=ForkMode.EAGER)):
            with pytest.raises(OutOfMemory):
                call()
            m.verify()
            assert (m.meminfo().free, m.frame_stats().copied, len(m.processes)) == (free, copied, 2)


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
def test_a_signal_ends_it_soon_and_nothing_is_left() -> None:
    with Machine(memory="64GiB", contents=False, overcommit=Overcommit.ALWAYS) as m:
        p, _ = parent_of(m, [8000])
        free = m.meminfo().free
        old = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.03)
            with pytest.raises(KeyboardInterrupt):
                while True:
                    p.fork(mode=ForkMode.EAGER).exit(0)
                    p.wait()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        for child in p.children:
            child.exit(0)
            p.wait()
        m.verify()
        assert m.meminfo().free == free
