"""`python -m bench`: the table; see README.md in this directory."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def parser() -> argparse.ArgumentParser:
    """The options."""
    out = argparse.ArgumentParser(
        "python -m bench", description="vmemu beside the kernel and the physical bound, and against its own baseline."
    )
    what = out.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="name the rows and measure nothing")
    what.add_argument("--check", action="store_true", help="compare with bench/baseline.json; exit status 1 if worse")
    what.add_argument("--update", action="store_true", help="write bench/baseline.json anew")
    what.add_argument("--scaling", action="store_true", help="plot cost against size (needs the extra 'plot')")
    out.add_argument("--rows", default="", metavar="TEXT", help="only rows whose name contains TEXT, or one of A,B,C")
    out.add_argument("--rounds", type=int, metavar="N", help="rounds of each row (7; quick: 2)")
    out.add_argument("--quick", action="store_true", help="few rounds: a first impression, no verdict")
    out.add_argument("--no-callgrind", action="store_true", help="check as where callgrind is not installed")
    out.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="instead of results.json, scaling.png, or (with --check, --update) baseline.json in bench/",
    )
    return out


def complaint(options: argparse.Namespace) -> str:
    """What is wrong with the options, before anything is measured; empty if nothing is."""
    if options.rounds is not None and options.rounds < 1:
        return f"--rounds: {options.rounds} is not 1 or more"
    out = options.output
    if out is None or options.list or options.check:
        return ""
    if out.is_dir():
        return f"--output: {out} is a directory"
    if not out.parent.is_dir():
        return f"--output: there is no directory {out.parent}"
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        return f"--output: {out} can't be written"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parser().parse_args(arguments)
    wrong = complaint(options)
    if wrong:
        print(f"bench: {wrong}", file=sys.stderr)
        return 2
    if not list((ROOT / "vmemu").glob("_core*.so")):
        print("bench: vmemu was not built in this checkout: run `pip install -e .` in it", file=sys.stderr)
        return 2
    from bench.native import NoCompiler, bound, compiler, kernel_program

    try:
        compiler()
        if not options.list:  # before anything is measured
            bound()
            kernel_program()
        return run(options)
    except NoCompiler as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """What the options ask for."""
    if options.check or options.update:
        from bench import check

        path = options.output or check.BASELINE
        return check.check(path, not options.no_callgrind) if options.check else check.update(path)
    if options.scaling:
        from bench import scaling

        return scaling.main(options.output or scaling.PICTURE, quick=options.quick)
    from bench import rows
    from bench.measure import EXPERIMENTS, chosen, measure
    from bench.report import print_results, write_results

    rows.load()
    experiments = chosen(EXPERIMENTS, options.rows)
    if not experiments:
        print(f"bench: no row contains {options.rows!r}; --list names them", file=sys.stderr)
        return 2
    if options.list:
        for one in experiments:
            for line in one.lines:
                print(f"{line.key:24} {line.what}")
        return 0
    rounds = options.rounds or (2 if options.quick else 7)
    terminal = sys.stderr.isatty()
    results = []
    for one in experiments:
        results += measure(
            one,
            rounds,
            (lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr)) if terminal else (lambda _: None),
        )
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr)
    print_results(results)
    path = options.output or ROOT / "bench" / "results.json"
    write_results(results, path)
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
