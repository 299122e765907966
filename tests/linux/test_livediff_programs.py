"""The random programs of livediff_programs.py, and how they are shrunk; neither needs a kernel."""

from __future__ import annotations

from typing import Any

import pytest
from linux import livediff_huge, livediff_profiles, livediff_programs
from linux.livediff_shrink import shrink
from recorded import script


@pytest.mark.parametrize("profile", livediff_profiles.PROFILES)
def test_a_seed_is_a_program(profile: str) -> None:
    first, again, other = (livediff_programs.program(seed, profile=profile) for seed in (1, 1, 2))
    assert first == again
    assert first["ops"] != other["ops"]


def test_programs_stay_in_the_arena_and_in_their_slots() -> None:
    kinds = set()
    for seed in range(300):
        for op in livediff_programs.program(seed)["ops"]:
            kinds.add(op["op"])
            assert 0 <= op["p"] < 8
            for page, n in (("page", op.get("n", 1)), ("to", op.get("n2", 1))):
                assert 0 <= op.get(page, 0) <= script.ARENA_PAGES - n
    assert kinds >= {
        "mmap",
        "munmap",
        "mprotect",
        "mremap",
        "madvise",
        "mlockall",
        "fork",
        "kill",
        "ftruncate",
        "mseal",
    }


def test_every_operation_is_in_some_profile() -> None:
    named = set(livediff_profiles.COMMON)
    named |= {name for group, _ in livediff_profiles.SOMETIMES for name in group}
    named |= {name for profile in livediff_profiles.PROFILES.values() for name in profile.weights}
    assert all(hasattr(livediff_huge.HugeAuthor, name) for name in named)


def test_shrinks_to_what_matters() -> None:
    """Wanted: somebody who did not start the program writes to a page that was mapped with two flags."""
    ops = livediff_programs.program(7, 120, profile="forks")["ops"]
    ops.insert(60, {"op": "mmap", "p": 0, "page": 900, "n": 7, "kind": "shared", "prot": "rx", "flags": ["POPULATE"]})

    def differs(candidate: list[dict[str, Any]]) -> bool:
        flagged = [op for op in candidate if "POPULATE" in op.get("flags", ())]
        children = [op["child"] for op in candidate if op["op"] == "fork"]
        last = candidate[-1]
        return bool(flagged) and last["op"] == "write" and children[-1:] == [last["p"]]

    while not (ops[-1]["op"] == "write" and ops[-1]["p"]):
        ops.pop()
    ops.insert(-1, {"op": "fork", "p": 0, "child": ops[-1]["p"]})
    assert differs(ops)
    small = shrink(ops, differs)
    assert sorted(op["op"] for op in small) == ["fork", "mmap", "write"]
    mapped = next(op for op in small if op["op"] == "mmap")
    assert (mapped["n"], mapped["kind"], mapped["prot"], mapped["page"]) == (1, "anon", "rw", 0)
