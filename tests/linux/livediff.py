"""Runs fresh random programs on the kernel of this host and in vmemu, and compares every step in every tier.

    python tests/linux/livediff.py [--programs N] [--seed FIRST] [--ops N]      as root, on x86-64 Linux

A program on which they differ is shrunk to the operations that matter and printed as a test that runs anywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import pprint
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

from linux import livediff_programs
from linux.livediff_host import Host, build_agent, why_not
from recorded.replay import RESULTS, TIERS, Mismatch, replay
from recorded.script import Op

from vmemu import ForkMode

MODES = (ForkMode.COW, ForkMode.ON_DEMAND, ForkMode.EAGER)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A recording that vmemu does not reproduce."""

    mismatch: Mismatch
    mode: ForkMode

    def as_test(self) -> str:
        """The recording as a test that needs neither root nor a kernel."""
        recording = self.mismatch.recording
        name = "".join(letter if letter.isalnum() else "_" for letter in recording["name"])
        under = "" if self.mode is ForkMode.COW else f", ForkMode.{self.mode.name}"
        return "\n".join(
            [
                *(["from vmemu import ForkMode"] if under else []),
                "from recorded.replay import replay",
                "",
                f"RECORDING = {pprint.pformat(recording, width=110, compact=True, sort_dicts=False)}",
                "",
                "",
                f"def test_{name}() -> None:",
                f"    mismatch = replay(RECORDING, [{self.mismatch.tier}]{under})",
                "    assert mismatch is None, str(mismatch)",
            ]
        )

    def __str__(self) -> str:
        return f"under ForkMode.{self.mode.name}: {self.mismatch}\n\nAs a test:\n\n{self.as_test()}\n"


def compare(recording: dict[str, Any], mode: ForkMode) -> Mismatch | None:
    """The first difference: in all tiers under COW, in results and contents otherwise."""
    return replay(recording, TIERS if mode is ForkMode.COW else [RESULTS], mode)


def examine(host: Host, program: dict[str, Any]) -> Difference | None:
    """Run *program* on both, under every fork mode, and shrink the first difference.

    A program that the kernel answers differently the second time shows nothing, and counts as agreement.
    NotImplementedError passes through.
    """
    recording = host.record(program)
    for mode in MODES:
        if compare(recording, mode) is None:
            continue
        if host.record(program) != recording:
            return None
        return Difference(shrink(host, recording, mode), mode)
    return None


def shrink(host: Host, recording: dict[str, Any], mode: ForkMode) -> Mismatch:
    """The mismatch of the smallest program found that still has one in the same tier (or an earlier one)."""
    found = compare(recording, mode)
    assert found is not None
    best = found

    def still_differs(ops: list[Op]) -> bool:
        nonlocal best
        mismatch = compare(host.record({**recording, "ops": ops}), mode)
        if mismatch is None or mismatch.tier > best.tier:
            return False
        best = mismatch
        return True

    ops = recording["ops"][: found.index + 1]
    while True:
        before = ops
        ops = _without_parts(ops, still_differs)
        ops = _with_simpler_operations(ops, still_differs)
        if ops == before:
            break
    still_differs(ops)
    return best


def _without_parts(ops: list[Op], still_differs: Callable[[list[Op]], bool]) -> list[Op]:
    """*ops* without every part that is not needed, tried in halves, quarters and so on down to single operations."""
    size = len(ops) // 2
    while size:
        start = 0
        while start < len(ops):
            fewer = ops[:start] + ops[start + size :]
            if fewer and still_differs(fewer):
                ops = fewer
            else:
                start += size
        size //= 2
    return ops


def _with_simpler_operations(ops: list[Op], still_differs: Callable[[list[Op]], bool]) -> list[Op]:
    for index in range(len(ops)):
        for simpler in _simpler(ops[index]):
            changed = [*ops[:index], simpler, *ops[index + 1 :]]
            if still_differs(changed):
                ops = changed
    return ops


def _simpler(op: Op) -> Iterator[Op]:
    """Ways to ask for less."""
    for key, value in (("flags", None), ("off", 0), ("foff", 0), ("hint", None)):
        if op["op"] != "mremap" and op.get(key) not in (None, value):
            yield {k: v for k, v in op.items() if k != key} if value is None else {**op, key: value}
    if op["op"] not in ("sweep", "mremap") and op.get("n", 1) > 1:
        yield {**op, "n": 1}
        yield {**op, "n": op["n"] - 1}
    if op["op"] == "sweep":
        for page in range(op["page"], op["page"] + op["n"]):
            yield {"op": "read", "p": op["p"], "page": page, "off": 0}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare vmemu with the kernel of this host on random programs.")
    parser.add_argument("--programs", type=int, default=100, metavar="N", help="how many (100)")
    parser.add_argument("--seed", type=int, default=0, metavar="FIRST", help="seed of the first one (0)")
    parser.add_argument("--ops", type=int, default=50, metavar="N", help="operations in each (50)")
    parser.add_argument("--stop-after", type=int, default=5, metavar="N", help="stop after N differences (5)")
    args = parser.parse_args()
    if reason := why_not():
        print(f"cannot compare: {reason}", file=sys.stderr)
        return 2
    differences = ran = 0
    missing: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        host = Host(build_agent(Path(scratch)), Path(scratch))
        for seed in range(args.seed, args.seed + args.programs):
            try:
                difference = examine(host, livediff_programs.program(seed, args.ops, host.files))
            except NotImplementedError as error:
                missing[str(error)] += 1
                continue
            ran += 1
            if difference:
                print(difference, flush=True)
                differences += 1
                if differences == args.stop_after:
                    break
        host.close()
    print(f"{ran} programs compared, {differences} of them differ")
    for text, count in missing.most_common():
        print(f"{count} not compared: {text or 'NotImplementedError'}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
