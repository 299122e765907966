"""How random programs for `livediff.py` are written, in the language of the recordings.

Programs are mostly sensible (operations aim at mapped pages) and wrong now and then; `livediff_profiles.py` says
what they are made of. They avoid what a kernel does in its own time or by its own measure: reclaim, writeback,
readahead into holes of a disk file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

from linux.livediff_profiles import COMMON, PROFILES, SOMETIMES
from recorded.script import FILE_PAGES, PAGE, Op

STRADDLE = 496
"""Where the pages of half of the programs start: across the end of a page table."""
STACK = range(860, 1000)
"""Pages around MAP_GROWSDOWN mappings, more than the guard gap of 256 pages away from the others."""
GROWING = "E grows"
"""Among the files, if E may grow, because its holes are read ahead as far as it goes."""
OFFSETS = (0, 0, 1, 999, 1000, 2048, 4095)
FORK_ADVICE = ("WIPEONFORK", "KEEPONFORK", "DONTFORK", "DOFORK")
HINTS = ("NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTDUMP", "DODUMP")
LOCK_ALL = (1, 1, 2, 3, 3, 5, 6, 7, 4, 0, 8)


class Author:
    """Writes one program; knows roughly which pages it has mapped. Its public methods are the operations."""

    def __init__(self, rng: random.Random, profile: str, files: Collection[str]) -> None:
        self.random = rng
        self.name = profile
        self.profile = PROFILES[profile]
        self.file = "E" if self.chance(self.profile.disk) and "E" in files else "F"
        self.base = STRADDLE if self.chance(0.5) else 0
        self.width = self.profile.width
        self.grows = GROWING in files
        self.size = FILE_PAGES  # of E, if that must not grow
        self.value = 0
        self.mapped: dict[int, set[int]] = {0: set()}
        self.slot = 0
        weights = {**COMMON, **self.profile.weights}
        for group, likely in SOMETIMES:
            if self.chance(likely * self.profile.sometimes):
                weights |= {name: weight for name, weight in group.items() if name not in self.profile.weights}
        self.truncates = "truncate" in weights
        self.weights: dict[Callable[[], Op | None], float] = {getattr(self, name): weights[name] for name in weights}

    def write(self, seed: int, nops: int | None) -> dict[str, Any]:
        nops = self.random.randint(*self.profile.lengths) if nops is None else nops
        ops = self.opening()
        kinds, weights = list(self.weights), list(self.weights.values())
        while len(ops) < nops:
            self.slot = self.random.choice(sorted(self.mapped))
            if op := self.random.choices(kinds, weights)[0]():
                ops.append(op)
        thp = {"thp": True} if self.profile.huge else {}
        return {"name": f"{self.name}-{seed}", "seed": seed, **thp, "ops": ops + self.closing()}

    def opening(self) -> list[Op]:
        return [self.mmap(), self.mmap()]

    def closing(self) -> list[Op]:
        return [{"op": "sweep", "p": slot, "page": self.base, "n": self.width} for slot in sorted(self.mapped)]

    # ---- where

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def _anywhere(self) -> int:
        return self.base + self.random.randrange(self.width)

    def _page(self) -> int:
        mine = self.mapped[self.slot]
        return self.random.choice(sorted(mine)) if mine and self.chance(0.93) else self._anywhere()

    def op(self, name: str, **fields: Any) -> Op:
        return {"op": name, "p": self.slot, **fields}

    def _on_range(self, name: str, **fields: Any) -> Op:
        page = self._page()
        return self.op(name, page=page, n=self._npages(page), **fields)

    def _advise(self, *advice: str) -> Op:
        return self._on_range("madvise", advice=self.random.choice(advice))

    def _npages(self, page: int, most: int = 6) -> int:
        if self.chance(0.04):
            most = self.width  # now and then over many mappings and holes
        return self.random.randint(1, max(1, min(most, self.base + self.width - page)))

    def _fresh(self) -> int:
        self.value = (self.value + 1) & 255
        return self.value

    # ---- accesses

    def store(self) -> Op:
        return self.op("write", page=self._page(), off=self.random.choice(OFFSETS), val=self._fresh())

    def load(self) -> Op:
        return self.op("read", page=self._page(), off=self.random.choice(OFFSETS))

    def sweep(self) -> Op:
        return self._on_range("sweep")

    def file_io(self) -> Op | None:
        if self.truncates and self.file == "E":
            return None  # read(2) reads holes ahead by its own measure
        where = {"file": self.file, "fpage": self.random.randrange(FILE_PAGES), "off": self.random.choice([0, 1, 4095])}
        return self.op("fwrite", **where, val=self._fresh()) if self.chance(0.6) else self.op("fread", **where)

    def truncate(self) -> Op:
        pages, tail = self.random.randrange(FILE_PAGES + 4), self.random.choice([0, 0, 100, 4095])
        if self.file == "E" and not self.grows:
            pages = self.size = self.random.randrange(max(1, self.size - 6), self.size + 1)
            tail = 0
        return self.op("ftruncate", file=self.file, size=pages * PAGE + tail)

    # ---- mappings

    def mmap(self, kind: str = "", always: Collection[str] = ()) -> Op:
        where = self._file_kind()
        kind = kind or self.random.choices(["anon", "shared", f"{where}_private", f"{where}_shared"], [9, 4, 5, 3])[0]
        prot = self.random.choices(["rw", "r", "", "w", "rx", "rwx"], [76, 12, 4, 3, 3, 2])[0]
        page = self._anywhere()
        op = self.op("mmap", page=page, n=self._npages(page, 9), kind=kind, prot=prot)
        if where in kind:
            op["foff"] = self.random.choice([0, 0, 1, 4, 12, 17, 19, 20])
        likely = {"POPULATE": 0.07, "NORESERVE": 0.04, "FIXED_NOREPLACE": 0.03, "LOCKED": 0.02}
        if flags := [flag for flag, chance in likely.items() if self.chance(chance) or flag in always]:
            op["flags"] = flags
        elif self.chance(0.04):
            op["hint"] = True
        pages = set(range(page, page + op["n"]))
        if not (("hint" in op or "FIXED_NOREPLACE" in flags) and pages & self.mapped[self.slot]):
            self.mapped[self.slot] |= pages
        return op

    def mmap_file(self) -> Op:
        return self.mmap(f"{self._file_kind()}_{self.random.choice(['private', 'shared'])}")

    def mmap_locked(self) -> Op:
        return self.mmap(always=("LOCKED",))

    def _file_kind(self) -> str:
        return "ext4" if self.file == "E" else "file"

    def munmap(self) -> Op:
        op = self._on_range("munmap")
        self.mapped[self.slot] -= set(range(op["page"], op["page"] + op["n"]))
        return op

    def mprotect(self) -> Op:
        return self._on_range("mprotect", prot=self.random.choice(["r", "r", "rw", "rw", "rw", "", "rx", "w"]))

    def mremap(self) -> Op:
        """In place, or to a fixed page: same length (over several mappings, too), growing, shrinking, leaving it."""
        op = self._on_range("mremap")
        op["n2"] = max(1, op["n"] + self.random.choice([-2, -1, 0, 0, 0, 1, 2]))
        op["flags"] = self.random.choice(
            [[], ["MAYMOVE", "FIXED"], ["MAYMOVE", "FIXED"], ["MAYMOVE", "FIXED", "DONTUNMAP"]]
        )
        if "DONTUNMAP" in op["flags"] and self.chance(0.8):
            op["n2"] = op["n"]
        if op["flags"]:
            op["to"] = self.base + self.random.randrange(max(1, self.width - op["n2"]))
            self.mapped[self.slot] |= set(range(op["to"], op["to"] + op["n2"]))
        return op

    def stray(self) -> Op:
        """A mremap that may choose the place itself: a mapping that must move leaves the arena."""
        op = self._on_range("mremap", flags=self.random.choice([["MAYMOVE"], ["MAYMOVE"], ["MAYMOVE", "DONTUNMAP"]]))
        return {**op, "n2": op["n"] + (0 if "DONTUNMAP" in op["flags"] else self.random.choice([-1, 0, 1, 2]))}

    def duplicate(self) -> Op:
        """A second mapping of the same shared pages: mremap of length 0."""
        page, copies = self._page(), self.random.randint(1, min(3, self.width - 1))
        to = self.base + self.random.randrange(self.width - copies)
        return self.op("mremap", page=page, n=0, n2=copies, flags=["MAYMOVE", "FIXED"], to=to)

    def seal(self) -> Op:
        return self._on_range("mseal")

    def stack(self) -> Op:
        page = self.random.choice(STACK[80:])
        return self.op("mmap", page=page, n=self.random.randint(1, 3), kind="anon", prot="rw", flags=["GROWSDOWN"])

    def grow(self) -> Op:
        page = self.random.choice(STACK)
        if self.chance(0.4):
            return self.op("read", page=page, off=0)
        return self.op("write", page=page, off=8, val=self._fresh())

    # ---- processes

    def fork(self) -> Op | None:
        free = [slot for slot in range(self.profile.slots) if slot not in self.mapped]
        if not free:
            return None
        self.mapped[free[0]] = set(self.mapped[self.slot])
        return self.op("fork", child=free[0])

    def share(self) -> Op | None:
        """A child in the same memory: clone(CLONE_VM)."""
        if (op := self.fork()) is None:
            return None
        self.mapped[op["child"]] = self.mapped[self.slot]
        return {**op, "op": "share"}

    def end(self) -> Op | None:
        if len(self.mapped) < 2:
            return None
        del self.mapped[self.slot]
        return self.op("kill" if self.chance(0.2) else "exit")

    # ---- advice and locks

    def dontneed(self) -> Op:
        return self._advise("DONTNEED")

    def dontneed_locked(self) -> Op:
        return self._advise("DONTNEED_LOCKED")

    def fork_advice(self) -> Op:
        return self._advise(*FORK_ADVICE)

    def populate(self) -> Op:
        return self._advise("POPULATE_READ", "POPULATE_WRITE")

    def guard(self) -> Op:
        return self._advise("GUARD_INSTALL", "GUARD_INSTALL", "GUARD_REMOVE")

    def free(self) -> Op:
        return self._advise("FREE")

    def cold(self) -> Op:
        return self._advise("COLD") if self.file == "E" else self._advise("COLD", "PAGEOUT")

    def remove(self) -> Op | None:
        return None if self.file == "E" else self._advise("REMOVE")

    def hint(self) -> Op:
        return self._advise(*HINTS)

    def mergeable(self) -> Op:
        return self._advise("MERGEABLE", "UNMERGEABLE")

    def huge_advice(self) -> Op:
        return self._advise("HUGEPAGE", "NOHUGEPAGE", "COLLAPSE")

    def lock(self) -> Op:
        op = self._on_range(self.random.choice(["mlock", "mlock", "munlock", "munlock", "mlock2"]))
        return {**op, "mlflags": 1} if op["op"] == "mlock2" else op

    def lock_all(self) -> Op:
        return self.op("munlockall") if self.chance(0.3) else self.op("mlockall", mlflags=self.random.choice(LOCK_ALL))

    def mincore(self) -> Op:
        return self._on_range("mincore")

    def msync(self) -> Op:
        return self._on_range("msync", msflags=self.random.choice([1, 2, 4, 0] if self.file == "F" else [1, 2, 0]))

    # ---- mistakes

    def mistake(self) -> Op:
        page, n = self._page(), self.random.randint(1, 4)
        mistakes: list[tuple[str, dict[str, Any]]] = [
            ("munmap", {"n": n, "misalign": 5}),
            ("munmap", {"n": 0, "len": 0}),
            ("mprotect", {"n": n, "misalign": 1, "prot": "r"}),
            ("mprotect", {"n": 0, "len": 0, "prot": "r"}),
            ("madvise", {"n": n, "advice": 99}),
            ("madvise", {"n": 0, "len": 0, "advice": "DONTNEED"}),
            ("madvise", {"n": n, "advice": "DONTNEED", "misalign": 8}),
            ("madvise", {"n": n, "advice": self.random.choice(["DOFORK", "FREE", "REMOVE"]), "misalign": 8}),
            ("mmap", {"n": n, "len": 0, "kind": "anon", "prot": "rw"}),
            ("mmap", {"n": n, "kind": "anon", "prot": "rw", "misalign": 3}),
            ("mmap", {"n": n, "kind": f"{self._file_kind()}_private", "prot": "rw", "foff": 1, "foff_misalign": 512}),
            ("mmap", {"n": n, "kind": "shared", "prot": "rw", "flags": ["GROWSDOWN"]}),
            ("mremap", {"n": n, "n2": 0, "flags": []}),
            ("mremap", {"n": n, "n2": n, "flags": [], "misalign": 1}),
            ("mremap", {"n": n, "n2": n, "flags": ["FIXED"], "to": page}),
            ("mremap", {"n": n, "n2": n, "flags": ["MAYMOVE", "FIXED"], "to": page}),
            ("mremap", {"n": n, "n2": n, "flags": ["DONTUNMAP"], "to": page}),
            ("mremap", {"n": 0, "n2": n, "flags": []}),
            ("mincore", {"n": n, "misalign": 1}),
            ("mlock", {"n": n, "misalign": 100}),
            ("mlock2", {"n": n, "mlflags": 2}),
            ("msync", {"n": n, "msflags": 5}),
            ("msync", {"n": n, "misalign": 9}),
            ("mseal", {"n": n, "misalign": 7}),
        ]
        name, fields = self.random.choice(mistakes)
        return self.op(name, page=page, **fields)
