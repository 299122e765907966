"""Named scenarios, each a classic behaviour, as a real kernel showed them."""

import pytest
from recorded.outcomes import check, check_how_many_ran, recordings

from vmemu import ForkMode

STEM = "scenarios"
FLOOR = 77  # scripts that ran and must go on running, under every fork mode

pytestmark = pytest.mark.linux


@pytest.mark.parametrize("name", recordings(STEM))
def test_as_the_kernel_did(name: str) -> None:
    check(STEM, name, ForkMode.COW)


@pytest.mark.parametrize("mode", [ForkMode.ON_DEMAND, ForkMode.EAGER], ids=lambda mode: mode.name)
@pytest.mark.parametrize("name", recordings(STEM))
def test_same_results_and_contents_however_fork_copies(name: str, mode: ForkMode) -> None:
    check(STEM, name, mode)


def test_how_many_ran() -> None:
    check_how_many_ran(STEM, FLOOR)
