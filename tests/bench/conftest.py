"""bench/ is not installed with vmemu: its tests take it from the checkout or the sdist that they are in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

if not (ROOT / "bench" / "__init__.py").exists():
    pytest.skip("bench/ is not here", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # at the end: vmemu is the one that is installed


@pytest.fixture
def built() -> None:
    """`python -m bench` runs only where the core was built in place."""
    if not list((ROOT / "vmemu").glob("_core*.so")):
        pytest.skip("the core is not in the checkout: vmemu was not installed with pip install -e")


@pytest.fixture
def has_compiler() -> None:
    """What compiles bench/*.c."""
    from bench import native

    try:
        native.compiler()
    except native.NoCompiler as reason:
        pytest.skip(str(reason))
