"""The commands `vmemu ps` and `vmemu top`: the processes of an emulated machine as people know them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vmemu.options import Parser, add_json, add_seed, number

if TYPE_CHECKING:
    from vmemu.lab.processes import Snapshot

__all__ = ["PS", "TOP", "add_ps", "add_top", "joined"]

_DIR = "a tree that Machine.procfs.export() or vmemu bomb --procfs wrote, or any other /proc; default: a small workload"
_BSD = frozenset(("a", "ax", "aux", "u", "ux", "x"))

PS = """\
Prints the processes of a tree of /proc, or without DIR of a small workload: a shell forked for three generations, each
process writing some of its memory. Columns are those of ps, sizes in KiB; PSS is what a process has of memory that it
shares, each page divided by the number of its users."""

TOP = """\
Prints once what top shows: a summary of the machine and its processes, the one with most resident memory first. DIR is
as for vmemu ps. On a terminal the table ends with the screen, unless -b is given."""


def add_ps(parser: argparse.ArgumentParser) -> None:
    """Options of `vmemu ps`."""
    _directory(parser)
    parser.add_argument("-e", "-A", action="store_true", help="all processes, as always ('vmemu ps aux' works too)")
    parser.add_argument("-o", dest="columns", metavar="COLUMNS", help=f"columns, of: {_names()}")
    parser.add_argument("--sort", metavar="KEYS", default="pid", help="columns to sort by; -rss: largest first")
    parser.add_argument("--forest", action="store_true", help="children below their parents")
    parser.add_argument("--no-headers", action="store_true", help="only the processes")
    add_seed(parser, "of the workload; default 0")
    add_json(parser)
    parser.set_defaults(run=_ps)


def add_top(parser: argparse.ArgumentParser) -> None:
    """Options of `vmemu top`."""
    _directory(parser)
    parser.add_argument("-b", action="store_true", help="all processes and whole lines on a terminal too")
    parser.add_argument("-n", type=number(1), default=1, metavar="N", help="how often to read and print; default 1")
    parser.add_argument("-d", type=_seconds, default=3.0, metavar="SECONDS", help="time between two; default 3")
    parser.add_argument(
        "-o", dest="key", metavar="COLUMN", default="rss", help="sort by it, the largest first; +: the smallest"
    )
    add_seed(parser, "of the workload; default 0")
    add_json(parser)
    parser.set_defaults(run=_top)


def joined(argv: Sequence[str]) -> list[str]:
    """Arguments with ``--sort -rss`` as one word, which argparse would take for two options."""
    words = list(argv)
    for i in range(len(words) - 2, -1, -1):
        if words[:1] == ["ps"] and words[i] == "--sort" and words[i + 1][:1] == "-":
            words[i : i + 2] = [f"--sort={words[i + 1]}"]
    return words


def _directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", metavar="DIR", help=_DIR)


def _names() -> str:
    return "user uid pid ppid %%mem vsz rss shr pss uss swap stat minflt majflt oom oomadj etime comm args"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a time")
    return value


def _show(options: argparse.Namespace, parser: Parser, show: Callable[[Snapshot], None]) -> int:
    """Calls *show* with what is to be seen. What is wrong with options and directory are usage errors."""
    from vmemu.errors import SyscallError
    from vmemu.lab import processes
    from vmemu.lab.listing import Unknown

    directory: str | None = options.directory
    if directory in _BSD and not os.path.exists(directory):
        directory = None
    try:
        if directory is None:
            processes.sample(show, options.seed)
        else:
            show(processes.read(directory))
    except Unknown as error:
        parser.error(str(error))
    except SyscallError as error:
        parser.exit(2, f"{parser.prog}: error: {(error.strerror or str(error)).removeprefix('open: ')}\n")
    return 0


def _ps(options: argparse.Namespace, parser: Parser) -> int:
    from vmemu.lab import listing

    def show(snapshot: Snapshot) -> None:
        names = listing.columns(options.columns) if options.columns is not None else list(listing.PS_COLUMNS)
        rows = listing.ordered(snapshot, options.sort)
        if options.json:
            _print_json(dataclasses.replace(snapshot, processes=rows))
            return
        listing.print_ps(snapshot, listing.forest(rows) if options.forest else rows, names, not options.no_headers)

    return _show(options, parser, show)


def _top(options: argparse.Namespace, parser: Parser) -> int:
    from vmemu.lab import listing

    def show(snapshot: Snapshot) -> None:
        rows = listing.ordered(snapshot, options.key, falling=True)
        if options.json:
            _print_json(dataclasses.replace(snapshot, processes=rows))
        else:
            room = len(rows) if options.b or not sys.stdout.isatty() else listing.top_rows()
            listing.print_top(snapshot, rows[:room], whole=options.b)

    for i in range(options.n):
        if i:
            sys.stdout.flush()
            time.sleep(options.d)
            if not options.json:
                print()
        _show(options, parser, show)
    return 0


def _print_json(snapshot: Snapshot) -> None:
    print(json.dumps(dataclasses.asdict(snapshot), indent=2))
