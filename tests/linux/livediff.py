"""Runs fresh random programs on the kernel of this host and in vmemu, and compares every step in every tier.

    python tests/linux/livediff.py [--programs N] [--seed FIRST] [--jobs N]      as root, on x86-64 Linux

A program on which they differ is shrunk to the operations that matter and printed as a test that runs anywhere.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import platform
import pprint
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

from linux import livediff_profiles, livediff_programs
from linux.livediff_host import Host, build_agent, why_not
from linux.livediff_shrink import shrink
from recorded.replay import RESULTS, SMAPS, TIERS, Mismatch, replay
from recorded.script import Op, tells_eager_apart

from vmemu import ForkMode

MODES = (ForkMode.COW, ForkMode.ON_DEMAND, ForkMode.EAGER)
MOST_SEEDS = 1 << 32


@dataclasses.dataclass(frozen=True)
class Difference:
    """A recording that vmemu does not reproduce."""

    mismatch: Mismatch
    mode: ForkMode

    def as_test(self) -> str:
        """The recording as a test that needs neither root nor a kernel."""
        recording = _in_tier(self.mismatch.recording, self.mismatch.tier)
        name = "".join(letter if letter.isalnum() else "_" for letter in recording["name"])
        under = "" if self.mode is ForkMode.COW else f", ForkMode.{self.mode.name}"
        return "\n".join(
            [
                "from recorded.replay import replay",
                *(["", "from vmemu import ForkMode"] if under else []),
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
        test = self.as_test()
        return (
            f"under ForkMode.{self.mode.name}: {self.mismatch}\n\n"
            f"As a test, to be put into a file in tests/ and run with pytest anywhere:\n\n{test}\n"
        )


def _in_tier(recording: dict[str, Any], tier: int) -> dict[str, Any]:
    """*recording* without the lines that a comparison in *tier* does not look at."""
    steps = [
        {
            **step,
            "procs": {
                slot: state and {key: value for key, value in state.items() if key != "smaps" or tier == SMAPS}
                for slot, state in step["procs"].items()
            },
        }
        for step in recording["steps"]
    ]
    return {**recording, "steps": steps}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one program gave."""

    program: dict[str, Any]
    difference: Difference | None = None
    missing: str = ""
    """What vmemu has not, if the program was not compared."""


def compare(recording: dict[str, Any], mode: ForkMode) -> Mismatch | None:
    """The first difference: in all tiers under COW, in results and contents otherwise."""
    if mode is ForkMode.EAGER and tells_eager_apart(recording):
        return None
    return replay(recording, TIERS if mode is ForkMode.COW else [RESULTS], mode)


def examine(host: Host, program: dict[str, Any]) -> Outcome:
    """Run *program* on both, under every fork mode, and shrink the first difference.

    A program that the kernel answers differently the second time shows nothing, and counts as agreement.
    """
    recording = host.record(program)
    for mode in MODES:
        try:
            found = compare(recording, mode)
        except NotImplementedError as missing:
            return Outcome(program, missing=str(missing) or "NotImplementedError")
        if found and host.record(program) == recording:
            return Outcome(program, Difference(smallest(host, found, mode), mode))
    return Outcome(program)


def smallest(host: Host, found: Mismatch, mode: ForkMode) -> Mismatch:
    """The mismatch of the smallest program found that still has one in the same tier (or an earlier one)."""
    best = found

    def still_differs(ops: list[Op]) -> bool:
        nonlocal best
        recording = host.record({**found.recording, "ops": ops})
        try:
            mismatch = compare(recording, mode)
        except NotImplementedError:
            return False
        if mismatch is None or mismatch.tier > best.tier:
            return False
        best = mismatch
        return True

    ops = found.recording["ops"]
    if still_differs(ops[: found.index + 1]):
        ops = ops[: found.index + 1]
    shrink(ops, still_differs)
    return best


class Tally:
    """Counts what was compared."""

    def __init__(self) -> None:
        self.programs = self.operations = self.differences = 0
        self.kinds: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        if outcome.missing:
            self.missing[outcome.missing] += 1
            return
        self.programs += 1
        self.operations += len(outcome.program["ops"])
        self.differences += outcome.difference is not None
        self.kinds.update(op.get("advice") or op["op"] for op in outcome.program["ops"])

    def __str__(self) -> str:
        compared = (
            f"{self.programs} programs of {self.operations} operations compared, {self.differences} of them differ"
        )
        lines = [f"Linux {platform.release()}: {compared}"]
        lines += [f"{count} not compared: {text}" for text, count in self.missing.most_common()]
        return "\n".join(lines)


_host: Host
"""Of a worker process."""


def _start(agent: Path, scratch: Path, cpus: multiprocessing.Queue[int]) -> None:
    """Begin a worker process: on a CPU of its own, where its agents run, too."""
    global _host
    os.sched_setaffinity(0, {cpus.get()})
    _host = Host(agent, scratch)


def _examine(arguments: tuple[int, int | None, str | None]) -> Outcome:
    seed, nops, profile = arguments
    return examine(_host, livediff_programs.program(seed, nops, _host.files, profile))


def run(
    seeds: Iterable[int], scratch: Path, jobs: int, nops: int | None = None, profile: str | None = None
) -> Iterator[Outcome]:
    """Examine the programs of *seeds* in *jobs* processes. Outcomes come in order."""
    agent = build_agent(scratch)
    spawn = multiprocessing.get_context("spawn")
    cpus = spawn.Queue()
    for cpu in itertools.islice(itertools.cycle(sorted(os.sched_getaffinity(0), reverse=True)), jobs):
        cpus.put(cpu)
    with concurrent.futures.ProcessPoolExecutor(jobs, spawn, _start, (agent, scratch, cpus)) as pool:
        waiting = (pool.submit(_examine, (seed, nops, profile)) for seed in seeds)
        ready = list(itertools.islice(waiting, jobs * 4))
        while ready:
            yield ready.pop(0).result()
            ready += itertools.islice(waiting, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare vmemu with the kernel of this host on random programs.")
    parser.add_argument("--programs", type=int, default=100, metavar="N", help="how many (100)")
    parser.add_argument("--seed", type=int, metavar="FIRST", help="seed of the first one (another one each time)")
    parser.add_argument("--ops", type=int, metavar="N", help="operations in each (as its profile says)")
    parser.add_argument("--profile", choices=sorted(livediff_profiles.PROFILES), help="make all of them of this mix")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes to do it in, 0: one for each CPU (1)"
    )
    parser.add_argument("--stop-after", type=int, default=5, metavar="N", help="stop after N differences (5)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="add recordings of the smallest programs that differ")
    parser.add_argument("--kinds", action="store_true", help="say at the end how often each operation was compared")
    args = parser.parse_args()
    if reason := why_not():
        print(f"cannot compare: {reason}", file=sys.stderr)
        return 2
    first = random.randrange(MOST_SEEDS) if args.seed is None else args.seed
    print(f"seeds from {first}", flush=True)
    tally, last = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        seeds = range(first, first + args.programs)
        jobs = args.jobs or len(os.sched_getaffinity(0))
        for outcome in run(seeds, Path(scratch), jobs, args.ops, args.profile):
            tally.add(outcome)
            if outcome.difference:
                print(outcome.difference, flush=True)
                if args.save:
                    with args.save.open("a", encoding="ascii") as file:
                        print(json.dumps(outcome.difference.mismatch.recording, separators=(",", ":")), file=file)
                if tally.differences == args.stop_after:
                    break
            if time.monotonic() - last > 60:
                print(f"... {tally}", flush=True)
                last = time.monotonic()
    print(tally)
    if args.kinds:
        print(", ".join(f"{kind} {count}" for kind, count in tally.kinds.most_common()))
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
