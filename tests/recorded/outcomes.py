"""Outcomes of replays, shared by the tests of this folder: each script is replayed once per fork mode."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from recorded import script
from recorded.replay import RESULTS, TIERS, Mismatch, replay

from vmemu import ForkMode

HERE = Path(__file__).parent


@functools.cache
def recordings(stem: str) -> dict[str, dict[str, Any]]:
    """Name -> recording, of ``<stem>.jsonl.gz`` or ``<stem>.jsonl``."""
    path = next(HERE.glob(f"{stem}.jsonl*"))
    return {recording["name"]: recording for recording in script.load(path)}


@functools.cache
def outcome(stem: str, name: str, mode: ForkMode) -> Mismatch | NotImplementedError | None:
    """What replaying one script gave: under COW compared in full, otherwise results and contents."""
    try:
        return replay(recordings(stem)[name], TIERS if mode is ForkMode.COW else [RESULTS], mode)
    except NotImplementedError as missing:
        return missing


def check(stem: str, name: str, mode: ForkMode) -> None:
    """Fail with the mismatch; skip, saying what is missing, if the script needs what vmemu does not have."""
    result = outcome(stem, name, mode)
    if isinstance(result, NotImplementedError):
        pytest.skip(f"vmemu has not: {result}")
    if result is not None:
        pytest.fail(str(result), pytrace=False)


def check_how_many_ran(stem: str, floor: int) -> None:
    """Under every fork mode at least *floor* scripts were replayed and not skipped."""
    for mode in ForkMode:
        results = {name: outcome(stem, name, mode) for name in recordings(stem)}
        missing = {name: str(result) for name, result in results.items() if isinstance(result, NotImplementedError)}
        ran = len(results) - len(missing)
        print(f"{stem}, {mode.name}: {ran} of {len(results)} replayed")
        assert ran >= floor, f"{mode.name}: only {ran} scripts ran, {floor} did before; not replayed: {missing}"
