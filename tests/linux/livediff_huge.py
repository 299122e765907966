"""Random programs with transparent huge pages: the operations of `livediff_author.Author` on the whole arena.

The arena is two ranges of 2 MiB. Programs aim at their ends and middles, and ask for huge pages with MADV_HUGEPAGE.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

from linux.livediff_author import Author
from recorded.script import ARENA_PAGES, Op

HUGE = 512
"""Pages of a huge page."""
PLACES = (0, 0, 1, 7, 255, 256, 510, 511, 512, 512, 513, 600, 768, 1022, 1023)
"""Pages to start at."""
LENGTHS = (1, 1, 2, 8, 16, 100, 256, 511, 512, 512, 513, 1024)


class HugeAuthor(Author):
    """Writes one program with huge pages."""

    def __init__(self, rng: random.Random, profile: str, files: Collection[str]) -> None:
        super().__init__(rng, profile, files)
        self.base, self.width = 0, ARENA_PAGES
        self.area = 0, ARENA_PAGES

    def opening(self) -> list[Op]:
        """The mapping that most of the program is about, and huge pages allowed in it."""
        page, n = self.area = self.random.choice([(0, 1024), (0, 1024), (0, 512), (512, 512), (1, 1023), (256, 768)])
        self.mapped[0] = set(range(page, page + n))
        kind = self.random.choices(["anon", "shared", "file_private"], [9, 1, 1])[0]
        prot = self.random.choice(["rw", "rw", "rw", "rwx", "r"])
        ops = [self.op("mmap", page=page, n=n, kind=kind, prot=prot)]
        if kind == "file_private":
            ops[0]["foff"] = 0
        if self.chance(0.9):
            ops.append(self.op("madvise", page=page, n=n, advice="HUGEPAGE"))
        return ops

    def closing(self) -> list[Op]:
        places: list[Op] = []
        for slot in sorted(self.mapped):
            places += [{"op": "sweep", "p": slot, "page": page, "n": 4} for page in (0, 254, 510, 766, 1020)]
        return places

    def _anywhere(self) -> int:
        if self.chance(0.9):
            return self.random.choice(PLACES)
        return self.random.randrange(ARENA_PAGES)

    def _page(self) -> int:
        for _ in range(20):
            if (page := self._anywhere()) in self.mapped[self.slot]:
                return page
        return self._anywhere()

    def _npages(self, page: int, most: int = 0) -> int:
        return min(self.random.choice(LENGTHS), ARENA_PAGES - page)

    def sweep(self) -> Op:
        page = min(self._page(), ARENA_PAGES - 8)
        return self.op("sweep", page=page, n=8)

    def huge_advice(self) -> Op:
        return self._advise("HUGEPAGE", "HUGEPAGE", "HUGEPAGE", "NOHUGEPAGE")

    def collapse(self) -> Op:
        page = self.random.choice([0, 0, HUGE, HUGE, 1])
        n = self.random.choice([HUGE, HUGE, 2 * HUGE])
        return self.op("madvise", page=page, n=min(n, ARENA_PAGES - page), advice="COLLAPSE")

    def mremap(self) -> Op:
        """Half of them between the two ranges as they are, so that a whole entry can move."""
        if self.chance(0.5):
            source = self.random.choice([0, HUGE])
            flags: list[str] = self.random.choice([["MAYMOVE", "FIXED"], ["MAYMOVE", "FIXED", "DONTUNMAP"]])
            to = HUGE - source
            self.mapped[self.slot] |= set(range(to, to + HUGE))
            return self.op("mremap", page=source, n=HUGE, n2=HUGE, flags=flags, to=to)
        op: dict[str, Any] = super().mremap()
        op["n2"] = min(op["n2"], ARENA_PAGES)
        if "to" in op:
            op["to"] = min(self._anywhere(), ARENA_PAGES - op["n2"])
        return op
