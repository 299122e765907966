"""The random programs of test_state_machine.py where one of the machines has swap and loses pages at any time.

What a process reads, and what raises, is what it is without. After each step the pages that are not in memory are
compared with the model as the swap device has them.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from linux import tinyelf
from test_state_machine import PAGE, Comparison, length
from vmemu._core import ffi, lib

from vmemu import Machine
from vmemu.memory.reclaim import shrink
from vmemu.swap import POLICIES

SWAPPED, GUARD = 1 << 62, 1 << 58


class Swapping(Comparison):
    """The rules, and one more."""

    @initialize(policy=st.sampled_from(POLICIES), swappiness=st.sampled_from((0, 60, 200)))
    def start(self, policy: str = "clock", swappiness: int = 60) -> None:
        self.machines[1].close()
        self.machines = (self.machines[0], Machine("32MiB", swap="8MiB", policy=policy, swappiness=swappiness))
        self.ram = [lib.vmemu_machine_ram(m._kernel.core._m) for m in self.machines]
        Comparison.start(self)

    @precondition(lambda self: not self.freed)  # what was freed lazily goes, and reads as zeros then
    @rule(npages=st.sampled_from((1, 2, 5, 20, 1000)), swappiness=st.sampled_from((0, 60, 200)))
    def squeeze(self, npages: int, swappiness: int) -> None:
        kernel = self.machines[1]._kernel
        assert kernel.paging is not None
        kernel.paging.swappiness = swappiness
        shrink(kernel, npages)

    @invariant()
    def same_contents(self) -> None:
        """Whatever is resident holds what the model says, and so does the swap device; nothing is accessed for it."""
        for task in self.tasks:
            if task.state != "running":
                continue
            expected = {n: task.memory.view(n) for n in task.memory.pages}
            for which, real in enumerate(task.real):
                for n, content in expected.items():
                    found = real.translate(n * PAGE)
                    if found is not None:
                        there: Any = bytes(ffi.buffer(self.ram[which] + found.physical, PAGE))
                    elif which and n in task.memory.own:
                        entry = int(real.pagemap(n * PAGE, 1)[0])
                        assert entry & (SWAPPED | GUARD) == SWAPPED, (real.pid, hex(n))
                        paging = self.machines[1]._kernel.paging
                        assert paging is not None and paging.device is not None
                        there = bytes(paging.device.read(entry >> 5 & (1 << 50) - 1))
                    else:
                        assert n not in task.memory.own, (real.pid, hex(n))
                        continue
                    assert there == content, (real.pid, hex(n))


@pytest.fixture(scope="module", autouse=True)
def _program(tmp_path_factory: pytest.TempPathFactory) -> None:
    Comparison.program = tinyelf.save(tmp_path_factory.mktemp("bin") / "tiny", tinyelf.tiny())


TestSwapping = Swapping.TestCase
TestSwapping.settings = length(30)
