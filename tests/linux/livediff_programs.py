"""Random programs for `livediff.py`: `program(seed)` is a pure function of its arguments."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

from linux.livediff_author import GROWING, Author
from linux.livediff_huge import HugeAuthor
from linux.livediff_profiles import PROFILES, choose


def program(
    seed: int, nops: int | None = None, files: Collection[str] = ("F", "E", GROWING), profile: str | None = None
) -> dict[str, Any]:
    """A program of *nops* operations, and at the end one sweep by each live process.

    *files*: those that exist, and `GROWING`. *profile*: a key of `PROFILES`. What is None is chosen by the seed.
    """
    rng = random.Random(f"livediff {seed}")
    name = profile or choose(rng)
    author = HugeAuthor if PROFILES[name].huge else Author
    return author(rng, name, files).write(seed, nops)
