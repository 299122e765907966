"""Random families of processes on this kernel and in vmemu (treediff.py); `--linux-programs N` for more."""

from __future__ import annotations

import pytest
from linux import treediff

pytestmark = pytest.mark.linux


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    first: int = metafunc.config.getoption("--linux-seed")
    metafunc.parametrize("seed", range(first, first + metafunc.config.getoption("--linux-programs")))


@pytest.fixture(scope="module")
def able() -> None:
    if reason := treediff.why_not():
        pytest.skip(reason)


@pytest.mark.usefixtures("able")
def test_same_as_this_kernel(seed: int) -> None:
    if difference := treediff.examine(seed):
        pytest.fail(difference, pytrace=False)
