"""Random programs in the language of the recordings, for `livediff.py`.

`program(seed)` is a pure function of its arguments. Programs are mostly sensible (operations aim at mapped pages) and
wrong now and then. They avoid what a kernel does in its own time or by its own measure: reclaim, writeback, readahead
into holes of a disk file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

from recorded.script import FILE_PAGES, PAGE, Op

WIDTH = 32
"""Pages that a program works in: two fault-around windows."""
STRADDLE = 496
"""Where those start in half of the programs: across the end of a page table."""
STACK = range(860, 1000)
"""Pages around MAP_GROWSDOWN mappings, more than the guard gap of 256 pages away from the others."""
SLOTS = 6
OFFSETS = (0, 0, 1, 999, 1000, 2048, 4095)
FORK_ADVICE = ("WIPEONFORK", "KEEPONFORK", "DONTFORK", "DOFORK")
HINTS = ("NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTDUMP", "DODUMP", "COLD")


def program(seed: int, nops: int = 50, files: Collection[str] = ("F", "E")) -> dict[str, Any]:
    """A program of *nops* operations, and at the end one sweep by each live process. *files*: those that exist."""
    return _Author(seed, nops, files).write()


class _Author:
    """Writes one program; knows roughly which pages it has mapped."""

    def __init__(self, seed: int, nops: int, files: Collection[str]) -> None:
        self.random = random.Random(f"livediff {seed}")
        self.seed = seed
        self.nops = nops
        chance = self.random.random
        self.file = "E" if chance() < 0.3 and "E" in files else "F"
        self.base = STRADDLE if chance() < 0.5 else 0
        self.size = FILE_PAGES  # of E, which must not grow: its holes would be read ahead
        self.value = 0
        self.mapped: dict[int, set[int]] = {0: set()}
        self.slot = 0
        self.weights: dict[Callable[[], Op | None], float] = {
            self.store: 30, self.load: 20, self.mmap: 9, self.fork: 9, self.exit: 3, self.munmap: 4, self.mprotect: 8,
            self.dontneed: 4, self.fork_advice: 3, self.populate: 2, self.mremap: 6, self.mincore: 1, self.file_io: 3,
        }  # fmt: skip
        groups: tuple[tuple[dict[Callable[[], Op | None], float], float], ...] = (
            ({self.truncate: 3}, 0.2),
            ({self.lock: 4, self.dontneed_locked: 1}, 0.2),
            ({self.guard: 4}, 0.2),
            ({self.free: 4}, 0.2),
            ({self.hint: 3, self.msync: 1}, 0.25),
            ({self.seal: 1}, 0.1),
            ({self.stack: 2, self.grow: 6}, 0.15),
            ({self.remove: 2}, 0.15),
            ({self.duplicate: 2}, 0.15),
            ({self.mistake: 3}, 0.4),
        )
        for group, likely in groups:
            if chance() < likely:
                self.weights.update(group)
        self.truncates = self.truncate in self.weights

    def write(self) -> dict[str, Any]:
        ops = [self.mmap(), self.mmap()]
        kinds, weights = list(self.weights), list(self.weights.values())
        while len(ops) < self.nops:
            self.slot = self.random.choice(sorted(self.mapped))
            if op := self.random.choices(kinds, weights)[0]():
                ops.append(op)
        ops += [{"op": "sweep", "p": slot, "page": self.base, "n": WIDTH} for slot in sorted(self.mapped)]
        return {"name": f"seed-{self.seed}", "seed": self.seed, "ops": ops}

    # ---- where

    def anywhere(self) -> int:
        return self.base + self.random.randrange(WIDTH)

    def page(self) -> int:
        mine = self.mapped[self.slot]
        return self.random.choice(sorted(mine)) if mine and self.random.random() < 0.93 else self.anywhere()

    def op(self, name: str, **fields: Any) -> Op:
        return {"op": name, "p": self.slot, **fields}

    def on_range(self, name: str, **fields: Any) -> Op:
        page = self.page()
        return self.op(name, page=page, n=self.npages(page), **fields)

    def npages(self, page: int, most: int = 6) -> int:
        return self.random.randint(1, max(1, min(most, self.base + WIDTH - page)))

    def fresh(self) -> int:
        self.value = (self.value + 1) & 255
        return self.value

    # ---- what

    def store(self) -> Op:
        return self.op("write", page=self.page(), off=self.random.choice(OFFSETS), val=self.fresh())

    def load(self) -> Op:
        return self.op("read", page=self.page(), off=self.random.choice(OFFSETS))

    def mmap(self) -> Op:
        where = self.file_kind()
        kind = self.random.choices(["anon", "shared", f"{where}_private", f"{where}_shared"], [9, 4, 5, 3])[0]
        prot = self.random.choices(["rw", "r", "", "w", "rx", "rwx"], [76, 12, 4, 3, 3, 2])[0]
        page = self.anywhere()
        op = self.op("mmap", page=page, n=self.npages(page, 9), kind=kind, prot=prot)
        if where in kind:
            op["foff"] = self.random.choice([0, 0, 1, 4, 12, 17, 19, 20])
        likely = {"POPULATE": 0.07, "NORESERVE": 0.04, "FIXED_NOREPLACE": 0.03, "LOCKED": 0.02}
        if flags := [flag for flag, chance in likely.items() if self.random.random() < chance]:
            op["flags"] = flags
        elif self.random.random() < 0.04:
            op["hint"] = True
        pages = set(range(page, page + op["n"]))
        if not (("hint" in op or "FIXED_NOREPLACE" in flags) and pages & self.mapped[self.slot]):
            self.mapped[self.slot] |= pages
        return op

    def file_kind(self) -> str:
        return "ext4" if self.file == "E" else "file"

    def fork(self) -> Op | None:
        free = [slot for slot in range(SLOTS) if slot not in self.mapped]
        if not free:
            return None
        self.mapped[free[0]] = set(self.mapped[self.slot])
        return self.op("fork", child=free[0])

    def exit(self) -> Op | None:
        if len(self.mapped) < 2:
            return None
        del self.mapped[self.slot]
        return self.op("exit")

    def munmap(self) -> Op:
        op = self.on_range("munmap")
        self.mapped[self.slot] -= set(range(op["page"], op["page"] + op["n"]))
        return op

    def mprotect(self) -> Op:
        return self.on_range("mprotect", prot=self.random.choice(["r", "r", "rw", "rw", "rw", "", "rx", "w"]))

    def dontneed(self) -> Op:
        return self.on_range("madvise", advice="DONTNEED")

    def dontneed_locked(self) -> Op:
        return self.on_range("madvise", advice="DONTNEED_LOCKED")

    def fork_advice(self) -> Op:
        return self.on_range("madvise", advice=self.random.choice(FORK_ADVICE))

    def populate(self) -> Op:
        return self.on_range("madvise", advice=self.random.choice(["POPULATE_READ", "POPULATE_WRITE"]))

    def guard(self) -> Op:
        return self.on_range("madvise", advice=self.random.choice(["GUARD_INSTALL", "GUARD_INSTALL", "GUARD_REMOVE"]))

    def free(self) -> Op:
        return self.on_range("madvise", advice="FREE")

    def remove(self) -> Op | None:
        return None if self.file == "E" else self.on_range("madvise", advice="REMOVE")

    def hint(self) -> Op:
        return self.on_range("madvise", advice=self.random.choice(HINTS))

    def mremap(self) -> Op:
        op = self.on_range("mremap")
        op["n2"] = max(1, op["n"] + self.random.choice([-2, -1, 0, 0, 0, 1, 2]))
        op["flags"] = self.random.choice(
            [[], ["MAYMOVE", "FIXED"], ["MAYMOVE", "FIXED"], ["MAYMOVE", "FIXED", "DONTUNMAP"]]
        )
        if op["flags"]:
            op["to"] = self.base + self.random.randrange(max(1, WIDTH - op["n2"]))
            self.mapped[self.slot] |= set(range(op["to"], op["to"] + op["n2"]))
        return op

    def duplicate(self) -> Op:
        """A second mapping of the same shared pages: mremap of length 0."""
        page, copies = self.page(), self.random.randint(1, 3)
        to = self.base + self.random.randrange(WIDTH - copies)
        return self.op("mremap", page=page, n=0, n2=copies, flags=["MAYMOVE", "FIXED"], to=to)

    def lock(self) -> Op:
        op = self.on_range(self.random.choice(["mlock", "mlock", "munlock", "munlock", "mlock2"]))
        return {**op, "mlflags": 1} if op["op"] == "mlock2" else op

    def mincore(self) -> Op:
        return self.on_range("mincore")

    def msync(self) -> Op:
        return self.on_range("msync", msflags=self.random.choice([1, 2, 4, 0] if self.file == "F" else [1, 2, 0]))

    def seal(self) -> Op:
        return self.on_range("mseal")

    def stack(self) -> Op:
        page = self.random.choice(STACK[80:])
        return self.op("mmap", page=page, n=self.random.randint(1, 3), kind="anon", prot="rw", flags=["GROWSDOWN"])

    def grow(self) -> Op:
        page = self.random.choice(STACK)
        if self.random.random() < 0.4:
            return self.op("read", page=page, off=0)
        return self.op("write", page=page, off=8, val=self.fresh())

    def file_io(self) -> Op | None:
        if self.truncates and self.file == "E":
            return None
        where = {"file": self.file, "fpage": self.random.randrange(FILE_PAGES), "off": self.random.choice([0, 1, 4095])}
        return self.op("fwrite", **where, val=self.fresh()) if self.random.random() < 0.6 else self.op("fread", **where)

    def truncate(self) -> Op:
        if self.file == "F":
            pages = self.random.randrange(FILE_PAGES + 4)
        else:
            pages = self.size = self.random.randrange(max(1, self.size - 6), self.size + 1)
        tail = self.random.choice([0, 0, 100, 4095]) if self.file == "F" else 0
        return self.op("ftruncate", file=self.file, size=pages * PAGE + tail)

    def mistake(self) -> Op:
        page, n = self.page(), self.random.randint(1, 4)
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
            (
                "mmap",
                {"n": n, "kind": f"{self.file_kind()}_private", "prot": "rw", "foff": 1, "foff_misalign": 512},
            ),
            ("mremap", {"n": n, "n2": 0, "flags": []}),
            ("mremap", {"n": n, "n2": n, "flags": ["FIXED"], "to": page}),
            ("mremap", {"n": n, "n2": n, "flags": ["MAYMOVE", "FIXED"], "to": page}),
            ("mremap", {"n": n, "n2": n, "flags": ["DONTUNMAP"], "to": page}),
            ("mincore", {"n": n, "misalign": 1}),
            ("mlock", {"n": n, "misalign": 100}),
            ("mlock2", {"n": n, "mlflags": 2}),
            ("msync", {"n": n, "msflags": 5}),
            ("msync", {"n": n, "misalign": 9}),
        ]
        name, fields = self.random.choice(mistakes)
        return self.op(name, page=page, **fields)
