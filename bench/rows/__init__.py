"""The rows of the table, by topic. Importing a room registers its experiments, in the table's order."""

from __future__ import annotations

import importlib

__all__ = ["load"]

ROOMS = ("faults", "forks", "many", "translation", "calls", "machines", "traces")


def load() -> None:
    """Registers all experiments."""
    for room in ROOMS:
        importlib.import_module(f"bench.rows.{room}")
