"""A short run of the endurance under fork bombs; `python tests/oom_endurance.py` is the long one."""

from __future__ import annotations

import pytest
from oom_endurance import run


@pytest.mark.parametrize("seed", [1, 20, 300])
def test_bombed_it_stays_whole(seed: int) -> None:
    """Verified after each kill; the same seed kills as many."""
    figures = run(600, seed, steps=500, most=2)
    assert figures.machines == 2
    assert figures.kills > 20
    assert figures == run(600, seed, steps=500, most=2)
