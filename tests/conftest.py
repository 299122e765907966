"""Makes sure that the tests see an installed vmemu."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Forget the checkout's vmemu/ unless it was built in place, and stop if then there is no vmemu."""
    if not list((ROOT / "vmemu").glob("_core*.so")):  # `python -m pytest` puts the checkout into sys.path
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    os.environ["PYTHONSAFEPATH"] = "1"  # nor do the Pythons that tests start look into the current directory
    try:
        importlib.import_module("vmemu._core")
    except ImportError as error:
        pytest.exit(
            f"vmemu is not installed here ({error}): run `pip install '.[test]'` or `pip install -e '.[dev]'`", 4
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much to compare with the kernel of this host (tests/linux/test_livediff.py)."""
    parser.addoption("--linux-programs", type=int, default=20, metavar="N", help="programs to run on this kernel")
    parser.addoption("--linux-seed", type=int, default=0, metavar="FIRST", help="seed of the first of them")


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the source tree."""
    return ROOT
