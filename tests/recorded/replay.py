"""Replays recordings of a real kernel in vmemu and compares every step.

    python tests/recorded/replay.py FILE [NAME...]      a summary table, and the first difference of each script

As a library: ``replay(recording, TIERS)`` gives the first `Mismatch` or None.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import traceback
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it

from recorded import script
from recorded.emulated import Emulated
from recorded.script import Expected, State

import vmemu

RESULTS, FRAMES, FAULTS, SMAPS, VMAS = range(1, 6)
TIERS = {
    RESULTS: "results and contents",
    FRAMES: "frames (labels and map counts)",
    FAULTS: "minor and major faults",
    SMAPS: "smaps sums",
    VMAS: "mappings with flags",
}
"""What is compared, from what a program can see to what only /proc shows."""

_RESULT_KEYS = ("val", "vals", "ret_page", "ret", "vec", "err", "sig", "code", "si_addr", "skipped")
_ABSENT = ["absent"]


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """Where vmemu and the kernel part."""

    recording: dict[str, Any] = dataclasses.field(repr=False)
    index: int
    tier: int
    differences: tuple[str, ...]
    before: dict[int, State] = dataclasses.field(repr=False)
    """What the kernel showed before this step."""

    def __str__(self) -> str:
        ops = self.recording["ops"]
        where = f"{self.recording['name']}: step {self.index} of {len(ops)}"
        lines = [f"{where}, {TIERS[self.tier]}: {script.text(ops[self.index])}"]
        lines += [f"    {line}" for line in self.differences[:8]]
        if len(self.differences) > 8:
            lines.append(f"    and {len(self.differences) - 8} more")
        if "expect" in self.recording:
            lines.append(f"  what it shows: {self.recording['expect']}")
        slot = ops[self.index]["p"]
        if slot in self.before:
            lines.append(f"  p{slot} before that step, in the kernel: {outline(self.before[slot])}")
        lines.append("  the steps up to there:")
        lines += [f"    {i:3d}  {script.text(op)}" for i, op in enumerate(ops[: self.index + 1])]
        return "\n".join(lines)


def replay(
    recording: dict[str, Any], tiers: Collection[int], fork_mode: vmemu.ForkMode | None = None, *, verify: bool = True
) -> Mismatch | None:
    """The first difference between vmemu and *recording* in any of *tiers*, or None.

    *fork_mode* other than COW: use `RESULTS` only. Present pages and fault counts are vmemu's own then, so `mincore`
    is not compared under ON_DEMAND, contents are compared where both have the page, and at the end everywhere.
    *verify*: `Machine.verify()` after each step. NotImplementedError passes through, any other exception is a mismatch.
    """
    return next(mismatches(recording, tiers, fork_mode, verify=verify), None)


def mismatches(
    recording: dict[str, Any], tiers: Collection[int], fork_mode: vmemu.ForkMode | None = None, *, verify: bool = True
) -> Iterator[Mismatch]:
    """The first difference in each tier, in order of steps; a different result or content ends the replay."""
    left = set(tiers)
    relaxed = fork_mode is vmemu.ForkMode.ON_DEMAND
    before: dict[int, State] = {}
    states: dict[int, State] = {}
    run = Emulated(
        thp=recording.get("thp", False),
        settled=recording.get("settled", False),
        fork_mode=fork_mode,
        frames=FRAMES in tiers,
        sums=SMAPS in tiers,
    )
    try:
        for step in script.expected(recording):
            try:
                result = script.skipped(step.op, run.alive)
                if result is None:
                    result = run.do(step.op)
                    if verify:
                        run.machine.verify()
                    states = run.observe()
            except NotImplementedError:
                raise
            except Exception as error:
                trace = "".join(traceback.format_exception(error)).rstrip().splitlines()
                yield Mismatch(recording, step.index, RESULTS, ("vmemu raised:", *trace[-7:]), before)
                return
            for tier in sorted(left):
                if differences := tuple(_compare(tier, step, result, states, relaxed, recording)):
                    yield Mismatch(recording, step.index, tier, differences, before)
                    left.discard(tier)
            if RESULTS in tiers and RESULTS not in left:
                return
            before = step.states
        if RESULTS in left and fork_mode is not None and (differences := tuple(_all_contents(run, before))):
            yield Mismatch(recording, len(recording["ops"]) - 1, RESULTS, differences, before)
    finally:
        run.close()


def _compare(
    tier: int,
    step: Expected,
    result: dict[str, Any],
    states: dict[int, State],
    relaxed: bool,
    recording: dict[str, Any],
) -> Iterator[str]:
    """What differs in one tier after one step, in words."""
    if tier == RESULTS:
        for key in _RESULT_KEYS:
            if result.get(key) != step.result.get(key) and not (relaxed and key == "vec"):
                yield f"{key}: vmemu {result.get(key)}, kernel {step.result.get(key)}"
        if states.keys() != step.states.keys():
            yield f"live processes: vmemu {sorted(states)}, kernel {sorted(step.states)}"
    elif tier == FAULTS and "minflt" in step.result:
        kernel = {"minflt": step.result["minflt"]}
        if "val" in step.result or recording.get("settled"):  # others have majors of reads and writes only
            kernel["majflt"] = step.result.get("majflt", 0)
        for key, count in kernel.items():
            if result[key] != count:
                yield f"{key}: vmemu {result[key]}, kernel {count}"
    for slot in sorted(states.keys() & step.states.keys()):
        mine, theirs = states[slot], step.states[slot]
        if tier in (RESULTS, FRAMES):
            yield from _compare_pages(tier, f"p{slot}", mine["pages"], theirs["pages"])
        elif tier == SMAPS:
            for key, kilobytes in theirs["smaps"].items():
                if mine["smaps"][key] != kilobytes:
                    yield f"p{slot} {key}: vmemu {mine['smaps'][key]} kB, kernel {kilobytes} kB"
        elif tier == VMAS and mine["vmas"] != theirs["vmas"]:
            for vma in mine["vmas"]:
                if vma not in theirs["vmas"]:
                    yield f"p{slot} mapping {_vma(vma)}: only in vmemu"
            for vma in theirs["vmas"]:
                if vma not in mine["vmas"]:
                    yield f"p{slot} mapping {_vma(vma)}: only in the kernel"


def _compare_pages(tier: int, name: str, mine: dict[str, list[Any]], theirs: dict[str, list[Any]]) -> Iterator[str]:
    for page in sorted(mine.keys() | theirs.keys(), key=int):
        ours, kernel = mine.get(page, _ABSENT), theirs.get(page, _ABSENT)
        if tier == FRAMES:
            if ours[:2] != kernel[:2]:
                yield f"{name} page {page}: vmemu {_frame(ours)}, kernel {_frame(kernel)}"
        elif len(ours) == len(kernel) == 3 and ours[2] != kernel[2]:
            shown, wanted = f"{ours[2]} ({_frame(ours)})", f"{kernel[2]} ({_frame(kernel)})"
            yield f"{name} page {page}, contents: vmemu {shown}, kernel {wanted}"


def _all_contents(run: Emulated, states: dict[int, State]) -> Iterator[str]:
    """Contents of every page that the kernel had present, whether or not vmemu has."""
    for slot, state in states.items():
        entries = {int(page): entry[2] for page, entry in state["pages"].items() if len(entry) == 3}
        pages = sorted(entries)
        for page, found in zip(pages, run.contents(slot, pages), strict=True):
            if found != entries[page]:
                yield f"p{slot} page {page}, contents at the end: vmemu {found}, kernel {entries[page]}"


def _frame(entry: list[Any]) -> str:
    return f"{entry[0]} mapped {entry[1]}x" if len(entry) > 1 else str(entry[0])


def _vma(vma: list[Any]) -> str:
    start, end, perms, tag, offset, flags = vma
    return f"{start}-{end} {perms} {tag}{f'+{offset}' if offset else ''} [{' '.join(flags)}]"


def outline(state: State) -> str:
    """A process's mappings and frames on one line."""
    frames = (
        " ".join(f"{page}={_frame(entry).replace(' mapped ', ' ')}" for page, entry in state["pages"].items()) or "none"
    )
    return "; ".join(map(_vma, state["vmas"])) + f" | frames: {frames}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay recordings of a real kernel in vmemu.")
    parser.add_argument("file", help="JSON lines, gzipped or not")
    parser.add_argument("name", nargs="*", help="only scripts whose name contains one of these")
    parser.add_argument(
        "--fork-mode",
        type=str.upper,
        choices=[mode.name for mode in vmemu.ForkMode],
        help="compare results and contents only",
    )
    parser.add_argument("--tiers", default="12345", metavar="DIGITS", help="compare only these tiers (12345)")
    parser.add_argument("--no-verify", action="store_true", help="do not prove the machine consistent after each step")
    parser.add_argument("--show", type=int, default=10, metavar="N", help="print at most N mismatches (10)")
    args = parser.parse_args()
    mode = vmemu.ForkMode[args.fork_mode] if args.fork_mode else None
    tiers = [tier for tier in TIERS if str(tier) in args.tiers] if mode in (None, vmemu.ForkMode.COW) else [RESULTS]
    agree: Counter[int] = Counter()
    found: list[str] = []
    missing: Counter[str] = Counter()
    total = 0
    for recording in script.load(args.file):
        if args.name and not any(part in recording["name"] for part in args.name):
            continue
        total += 1
        bad: set[int] = set()
        try:
            for mismatch in mismatches(recording, tiers, mode, verify=not args.no_verify):
                bad |= set(tiers) if mismatch.tier == RESULTS else {mismatch.tier}
                found.append(str(mismatch))
        except NotImplementedError as error:
            missing[str(error)] += 1
            bad = set(tiers)
        agree.update(set(tiers) - bad)
    for text in found[: args.show]:
        print(text, end="\n\n")
    for tier in tiers:
        print(f"{agree[tier]:5d} of {total} agree in tier {tier}, {TIERS[tier]}")
    for text, count in missing.most_common():
        print(f"{count:5d} not replayed: {text or 'NotImplementedError'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
