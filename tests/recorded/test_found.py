"""What comparing with the kernel found (tests/linux/livediff.py), each as the smallest program that showed it."""

import pytest
from recorded.outcomes import check, recordings

from vmemu import ForkMode

STEM = "found"

pytestmark = pytest.mark.linux


@pytest.mark.parametrize("mode", ForkMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize("name", recordings(STEM))
def test_as_the_kernel_did(name: str, mode: ForkMode) -> None:
    check(STEM, name, mode)
