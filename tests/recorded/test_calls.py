"""Ten thousand system calls with odd arguments, as a real kernel answered them (tests/linux/calls_record.py)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from linux import calls_cases
from linux.calls_emulated import Emulation, difference
from linux.calls_host import Seen

pytestmark = pytest.mark.linux

SIZES = ("VmSize", "VmLck", "VmData", "VmStk")


@cache
def recorded() -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What the probe was, and the cases by family."""
    families: dict[str, list[Any]] = {}
    with gzip.open(Path(__file__).with_name("calls.jsonl.gz"), "rt") as lines:
        meta = json.loads(next(lines))["meta"]
        for line in lines:
            family, *case = json.loads(line)
            families.setdefault(family, []).append(case)
    return meta, families


def seen(results: list[str], mappings: list[Any], sizes: list[int]) -> Seen:
    return Seen(
        results, [(line[0], line[1], line[2], line[3]) for line in mappings], dict(zip(SIZES, sizes, strict=True))
    )


@pytest.fixture(scope="module")
def base() -> Seen:
    meta, _ = recorded()
    return seen([], meta["mappings"], list(meta["sizes"].values()))


@pytest.fixture(scope="module")
def emulation(base: Seen) -> Iterator[Emulation]:
    meta, _ = recorded()
    emulation = Emulation(base, meta["heap"], memory=meta["ram"])
    yield emulation
    emulation.close()


@pytest.mark.parametrize("family", recorded()[1])
def test_as_the_kernel_answered(emulation: Emulation, base: Seen, family: str) -> None:
    wrong = []
    for steps, *outcome in recorded()[1][family]:
        case = [tuple(step) for step in steps]
        if found := difference(seen(*outcome), emulation.run(case), base):
            wrong.append(f"{calls_cases.written(case)}\n{found}")
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(wrong[:10])
    emulation.machine.verify()


def test_how_many_there_are() -> None:
    assert sum(map(len, recorded()[1].values())) > 12_000
    assert set(recorded()[1]) == set(calls_cases.FAMILIES)
