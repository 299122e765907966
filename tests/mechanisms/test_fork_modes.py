"""However a fork copies, programs see the same: fresh random programs under each mode, compared step by step.

`--fork-programs N` for more of them; no kernel is needed.
"""

from __future__ import annotations

import contextlib

import pytest
from linux import livediff_programs
from recorded import script
from recorded.emulated import Emulated
from recorded.replay import RESULTS, replay

from vmemu import ForkMode


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first: int = metafunc.config.getoption("--linux-seed")
        metafunc.parametrize("seed", range(first, first + metafunc.config.getoption("--fork-programs")))


def test_same_results_and_contents(seed: int) -> None:
    program = livediff_programs.program(seed)
    try:
        with contextlib.closing(Emulated(thp=program.get("thp", False), sums=False)) as run:
            recording = script.record(program, run)
    except NotImplementedError as missing:
        pytest.skip(f"vmemu has not: {missing}")
    for mode in (ForkMode.ON_DEMAND, ForkMode.EAGER):
        if mode is ForkMode.EAGER and script.tells_eager_apart(recording):
            continue
        if mismatch := replay(recording, [RESULTS], mode):
            again = f"again: --fork-programs 1 --linux-seed {seed}"
            pytest.fail(f'under ForkMode.{mode.name} ("kernel" is COW): {mismatch}\n{again}', pytrace=False)
