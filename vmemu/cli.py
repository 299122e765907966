"""The command `vmemu`: reads the command line, calls what does the work, prints what it found.

Exit status: 0; 1 if the output can't be written; 2 for a usage error (one line on stderr says which); 130 if it was
interrupted; 141 if the reader of its output went away.
Everything heavy is imported by the command that needs it, so that --help is fast.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from vmemu.cli_bomb import BOMB, add_bomb
from vmemu.cli_common import INTERRUPTED, add_memory, add_program, usage, words_of
from vmemu.cli_look import PS, TOP, add_ps, add_top, joined
from vmemu.cli_policy import POLICY, add_policy
from vmemu.options import Parser, add_json, add_seed, number, size

if TYPE_CHECKING:
    from vmemu.lab.report import CompareReport, ExecReport

__all__ = ["main"]

_BROKEN_PIPE = 128 + signal.SIGPIPE

_PROGRAM = "[--] PROGRAM [ARGS...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (default: the process's own). Returns the exit status; usage errors exit with 2."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names need not be valid text
    try:
        try:
            return _command(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        _discard_output()
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if type(error) is not OSError:  # not one of vmemu's
            raise
        _discard_output()
        print(f"vmemu: error: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1


def _discard_output() -> None:
    """Leave nothing for the interpreter to flush to where it can't be written."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(argv: Sequence[str] | None) -> int:
    parser, commands = _parser()
    options = parser.parse_args(joined(sys.argv[1:] if argv is None else argv))
    if options.command is None:
        parser.print_help()
        return 0
    status: int = options.run(options, commands[options.command])
    return status


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="vmemu",
        description="Emulates the virtual memory of a Unix machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands: dict[str, Parser] = {}

    def command(
        name: str,
        run: Callable[..., int] | None,
        summary: str,
        description: str,
        words: str = "[--] [PROGRAM [ARGS...]]",
    ) -> Parser:
        sub: Parser = subparsers.add_parser(
            name,
            help=summary,
            description=description,
            allow_abbrev=False,
            usage=f"vmemu {name} [OPTIONS] {words}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if run is not None:
            sub.set_defaults(run=run)
        commands[name] = sub
        return sub

    bomb = command("bomb", None, "fork a real program until a limit or memory ends it", BOMB)
    add_bomb(bomb)

    exe = command("exec", _exec, "load a program as execve does and show its memory", _EXEC, _PROGRAM)
    exe.add_argument("--link", action="store_true", help="map the libraries that it needs too, as ld.so would")
    exe.add_argument("--aslr", action="store_true", help="choose addresses at random (by --seed)")
    add_memory(exe, "256MiB")
    add_seed(exe, "of the random addresses and of AT_RANDOM; default 0")
    add_json(exe)
    add_program(exe, "the program")

    compare = command("compare", _compare, "one workload under each fork mode, side by side", _COMPARE)
    add_memory(compare, "1GiB")
    compare.add_argument("--processes", type=number(1), default=100, metavar="N", help="children; default 100")
    compare.add_argument(
        "--heap",
        type=size(0),
        default="1MiB",
        metavar="SIZE",
        help="heap that the parent has written before its first fork; default 1MiB",
    )
    compare.add_argument(
        "--dirty", type=number(0), default=4, metavar="N", help="pages that each child writes; default 4"
    )
    compare.add_argument(
        "--repeat", type=number(1), default=3, metavar="N", help="runs of each mode, the fastest counts; default 3"
    )
    add_seed(compare, "chooses the pages to write; default 0")
    add_json(compare)
    add_program(compare, "the program; default /bin/sh")

    add_policy(command("policy", None, "one trace under each policy of reclaim, side by side", POLICY, "TRACE"))
    add_ps(command("ps", None, "the processes of a machine, as ps prints them", PS, "[DIR]"))
    add_top(command("top", None, "a machine and its processes by memory, as top prints them", TOP, "[DIR]"))
    return parser, commands


_EXEC = """\
Loads an ELF program or a #! script of this host into an emulated machine as execve does, and prints its mappings as
/proc/PID/maps would show them at its first instruction, then its resident memory by kind and the auxiliary vector.
The program gets this command's environment."""

_COMPARE = """\
A program that has written all of its data and a heap makes children one after the other, each child writes some
pages, then all exit: under eager, copy-on-write and on-demand fork. Under vfork the child borrows its parent's memory
and only exits. Times are of one child; counts are of all children while they are alive."""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"vmemu {version('vmemu')}")
        parser.exit()


def _exec(options: argparse.Namespace, parser: Parser) -> int:
    words = words_of(options)
    if not words:
        parser.error("PROGRAM is missing")
    from vmemu.lab import startup

    with usage(parser, words[0]):
        report = startup.run(
            words[0], words, memory=options.memory, link=options.link, aslr=options.aslr, seed=options.seed
        )
    _print(report, options.json)
    return 0


def _compare(options: argparse.Namespace, parser: Parser) -> int:
    from vmemu.lab import bomb, compare

    words = words_of(options)
    program = words[0] if words else bomb.default_program()
    with usage(parser, program), _status() as progress:
        report = compare.run(
            program,
            words or None,
            memory=options.memory,
            processes=options.processes,
            dirty=options.dirty,
            heap=options.heap,
            seed=options.seed,
            repeat=options.repeat,
            progress=progress,
        )
    _print(report, options.json)
    return 0


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None] | None]:
    """A function that shows on a terminal what runs now; None without a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    erase = "\r\033[K"
    try:
        yield lambda what: print(f"{erase}running {what} ...", end="", file=sys.stderr, flush=True)
    finally:
        print(erase, end="", file=sys.stderr, flush=True)


def _print(report: ExecReport | CompareReport, as_json: bool) -> None:
    from vmemu.lab import report as reports

    if as_json:
        print(json.dumps(reports.to_json(report), indent=2))
        return
    from vmemu.lab import tables

    if isinstance(report, reports.ExecReport):
        tables.print_exec(report)
    else:
        tables.print_compare(report)
