"""The command `vmemu policy`: which policy of reclaim suits a trace."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING

from vmemu.cli_common import check_output
from vmemu.options import Parser, add_json, add_seed, size

if TYPE_CHECKING:
    from vmemu.lab.policy import PolicyReport

__all__ = ["POLICY", "add_policy"]

_NAMES = ("clock", "fifo", "random", "lru", "aging", "opt")

POLICY = """\
Runs a trace, a .npy file of vmemu.save_trace(), on machines with little memory and enough swap, once for each policy of
reclaim, and prints how many pages had to be read back from swap. "opt" is the least that is possible with so much
memory: it knows the future, has no page tables and keeps no frame free."""


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Options of `vmemu policy`."""
    parser.add_argument("trace", metavar="TRACE", help="the .npy file")
    parser.add_argument(
        "--memory",
        type=size(65536),
        action="append",
        metavar="SIZE",
        help="RAM of a machine, may be repeated; default: a quarter, half and three quarters of what the trace needs",
    )
    parser.add_argument(
        "--policy", choices=_NAMES, action="append", metavar="NAME", help=f"of {', '.join(_NAMES)}; default: all"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw it too (needs Matplotlib: the extra 'plot')")
    add_seed(parser, "of the random policy; default 0")
    add_json(parser)
    parser.set_defaults(run=_policy)


def _policy(options: argparse.Namespace, parser: Parser) -> int:
    from vmemu.errors import TraceError
    from vmemu.lab import policy

    _check_plot(options, parser)
    try:
        with _status() as progress:
            report = policy.run(options.trace, options.memory or (), options.policy or _NAMES, options.seed, progress)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {options.trace}: {error.strerror}\n")
    except TraceError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    if options.json:
        print(json.dumps(policy.to_json(report), indent=2))
    else:
        _print(report)
    if options.plot is not None:
        try:
            policy.plot(report, options.plot)
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
            print(f"{parser.prog}: error: --plot: {options.plot}: {why}", file=sys.stderr)
            return 1
    return 0


def _check_plot(options: argparse.Namespace, parser: Parser) -> None:
    """That the picture can be drawn and written is known before anything runs."""
    if options.plot is None:
        return
    from vmemu.lab import policy

    try:
        known = policy.plot_formats()
    except ImportError:
        parser.error("--plot needs Matplotlib: install vmemu with the extra 'plot'")
    ending = os.path.splitext(options.plot)[1].removeprefix(".").lower()
    if ending and ending not in known:
        parser.error(f"--plot: {options.plot}: {ending!r} is no format; there are {', '.join(known)}")
    check_output("--plot", options.plot, parser)


@contextlib.contextmanager
def _status():  # type: ignore[no-untyped-def]
    """A function that shows on a terminal what runs now; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    erase = "\r\033[K"
    try:
        yield lambda what: print(f"{erase}running {what} ...", end="", file=sys.stderr, flush=True)
    finally:
        print(erase, end="", file=sys.stderr, flush=True)


def _print(report: PolicyReport) -> None:
    from vmemu.lab.policy_table import print_policy

    print_policy(report)
