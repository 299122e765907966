"""Makes sure that the benchmarks see an installed vmemu, as tests/conftest.py does for the tests."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Forget the checkout's vmemu/ unless it was built in place, and stop if then there is no vmemu."""
    if not list((ROOT / "vmemu").glob("_core*.so")):
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    try:
        importlib.import_module("vmemu._core")
    except ImportError as error:
        pytest.exit(
            f"vmemu is not installed here ({error}): run `pip install '.[test]'` or `pip install -e '.[dev]'`", 4
        )
