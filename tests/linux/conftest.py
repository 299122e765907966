"""What several comparisons with the running kernel need of the host."""

from __future__ import annotations

import pytest
from linux import execstop


@pytest.fixture(scope="module")
def stoppable() -> None:
    """Programs can be stopped at their first instruction here; else the tests are skipped."""
    why = execstop.usable()
    if why is not None:
        pytest.skip(why)
