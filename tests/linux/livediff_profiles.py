"""What the random programs of `livediff_author.py` are made of: mixes of operations."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping

Weights = Mapping[str, float]
"""Operation (a method of `livediff_author.Author`) -> how often, relative to the others."""

COMMON: Weights = {
    "store": 30, "load": 20, "sweep": 1, "mmap": 9, "fork": 9, "end": 3, "munmap": 4, "mprotect": 8, "dontneed": 4,
    "fork_advice": 3, "populate": 2, "mremap": 6, "mincore": 1, "file_io": 3,
}  # fmt: skip
"""What every small program does."""

SOMETIMES: tuple[tuple[Weights, float], ...] = (
    ({"truncate": 3}, 0.2),
    ({"lock": 4, "dontneed_locked": 1}, 0.2),
    ({"lock_all": 2}, 0.08),
    ({"guard": 4}, 0.2),
    ({"free": 4, "cold": 2}, 0.2),
    ({"hint": 3, "msync": 1}, 0.25),
    ({"huge_advice": 1}, 0.1),
    ({"seal": 1}, 0.1),
    ({"stack": 2, "grow": 6}, 0.15),
    ({"remove": 2}, 0.15),
    ({"duplicate": 2}, 0.15),
    ({"stray": 2}, 0.1),
    ({"share": 4}, 0.1),
    ({"mistake": 3}, 0.4),
)
"""Groups of operations that some programs have as well, and how likely."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """One mix of operations."""

    share: float
    """Of all programs."""
    weights: Weights = dataclasses.field(default_factory=dict)
    """On top of `COMMON`."""
    slots: int = 6
    """Processes at most."""
    lengths: tuple[int, int] = (30, 70)
    """Operations in a program: from, to."""
    width: int = 32
    """Pages that a program works in; 32 are two fault-around windows."""
    disk: float = 0.3
    """How likely the file is on a disk filesystem, with write faults of its own, and not in memory."""
    sometimes: float = 1
    """Factor to the likelihoods of `SOMETIMES`."""
    huge: bool = False
    """Whether transparent huge pages are allowed, where MADV_HUGEPAGE asks for them."""


PROFILES: Mapping[str, Profile] = {
    "mixed": Profile(share=30),
    "long": Profile(share=8, lengths=(100, 200), slots=8),
    "forks": Profile(share=10, slots=8, weights={"fork": 16, "end": 8, "store": 40}),
    "moves": Profile(share=10, weights={"mremap": 30, "duplicate": 4, "stray": 2, "munmap": 4}),
    "files": Profile(
        share=8, disk=0.5, sometimes=0.7, weights={"mmap_file": 14, "file_io": 10, "msync": 2, "load": 30, "remove": 2}
    ),
    "truncates": Profile(share=8, disk=0.4, weights={"mmap_file": 10, "truncate": 9, "file_io": 6, "remove": 4}),
    "merges": Profile(
        share=8, width=14, weights={"mprotect": 30, "mmap": 14, "munmap": 8, "hint": 8, "fork_advice": 6, "mremap": 12}
    ),
    "locks": Profile(share=6, weights={"lock": 14, "lock_all": 6, "dontneed_locked": 4, "mmap_locked": 6, "fork": 4}),
    "marks": Profile(share=6, sometimes=0.5, weights={"guard": 12, "free": 10, "cold": 6, "mergeable": 2, "fork": 4}),
    "stacks": Profile(share=3, sometimes=0.5, weights={"stack": 6, "grow": 20, "lock_all": 1}),
    "crowded": Profile(share=3, width=4, slots=8, weights={"fork": 14, "end": 8, "mprotect": 6, "guard": 1, "free": 1}),
    "huge": Profile(
        share=8, lengths=(10, 40), slots=4, sometimes=0.4, disk=0, huge=True, weights={
            "store": 25, "load": 12, "mmap": 2, "huge_advice": 4, "collapse": 4, "fork": 8, "dontneed": 6, "mremap": 6,
            "file_io": 0, "sweep": 3, "mprotect": 6, "munmap": 4,
        },
    ),
}  # fmt: skip


def choose(rng: random.Random) -> str:
    """The name of a profile, by share."""
    return rng.choices(list(PROFILES), [profile.share for profile in PROFILES.values()])[0]
