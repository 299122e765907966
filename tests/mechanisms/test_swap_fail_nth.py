"""Swap where the n-th allocation fails: the call fails or succeeds, nothing is lost, and it can be made again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from machines import ANON, PAGE, RW, SHARED
from vmemu._core import lib

from vmemu import Advice, ForkMode, Machine, OutOfMemory, Process
from vmemu.memory.reclaim import shrink

NPAGES = 24


def page(i: int) -> bytes:
    return b"%d " % i * (PAGE // len(b"%d " % i)) + bytes(PAGE % len(b"%d " % i))


def shown(p: Process, a: int) -> list[bytes]:
    return [p.read(a + i * PAGE, PAGE) for i in range(NPAGES)]


STEPS: dict[str, Callable[[Machine, Process, int], object]] = {
    "reclaim": lambda m, p, a: shrink(m._kernel, NPAGES),
    "read back": lambda m, p, a: p.read(a, NPAGES * PAGE),
    "write back": lambda m, p, a: p.touch(a, NPAGES * PAGE, write=True),
    "page out": lambda m, p, a: p.madvise(a, NPAGES * PAGE, Advice.PAGEOUT),
    "fork": lambda m, p, a: p.fork(),
    "child reads": lambda m, p, a: p.children[-1].read(a, NPAGES * PAGE) if p.children else None,
    "move": lambda m, p, a: p.mprotect(a, NPAGES * PAGE, RW),
}


@pytest.mark.parametrize("policy", ["clock", "lru"])
@pytest.mark.parametrize("mode", list(ForkMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("flags", [ANON, SHARED], ids=["private", "shared"])
def test_nothing_is_lost(policy: str, mode: ForkMode, flags: int) -> None:
    failures = 0
    for name, step in STEPS.items():
        for n in (1, 2, 3, 4, 5, 7, 11, 18):
            with Machine("1MiB", swap="1MiB", policy=policy, fork_mode=mode) as m:
                p = m.spawn()
                a = p.mmap(None, NPAGES * PAGE, RW, flags)
                for i in range(NPAGES):
                    p.write(a + i * PAGE, page(i))
                if name != "reclaim":
                    p.fork()
                    shrink(m._kernel, NPAGES // 2)
                lib.vmemu_machine_fail(m._kernel.core._m, n)
                try:
                    step(m, p, a)
                except OutOfMemory:
                    failures += 1
                lib.vmemu_machine_fail(m._kernel.core._m, 0)
                m.verify()
                step(m, p, a)
                for who in (p, *p.children):
                    assert shown(who, a) == [page(i) for i in range(NPAGES)], (name, n)
                m.verify()
    assert failures > 10
