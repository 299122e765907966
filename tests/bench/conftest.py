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
