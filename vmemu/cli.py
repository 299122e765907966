"""The command `vmemu`: reads the command line, calls what does the work, prints what it found.

Exit status: 0; 1 if the output can't be written; 2 for a usage error (one line on stderr says which); 130 if it was
interrupted; 141 if the reader of its output went away.
Everything heavy is imported by the command that needs it, so that --help is fast.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from vmemu.cli_look import PS, TOP, add_ps, add_top, joined
from vmemu.cli_policy import POLICY, add_policy
from vmemu.options import Parser, add_json, add_seed, number, size

if TYPE_CHECKING:
    from types import FrameType

    from vmemu.lab.report import BombReport, CompareReport, ExecReport

__all__ = ["main"]

_BROKEN_PIPE = 128 + signal.SIGPIPE
_INTERRUPTED = 128 + signal.SIGINT

_PROGRAM = "[--] PROGRAM [ARGS...]"
_COMMAND_HELP = "everything after the first word that is not an option belongs to the program (or after --)"


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
        return _INTERRUPTED
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

    bomb = command("bomb", _bomb, "fork a real program until a limit or memory ends it", _BOMB)
    _memory(bomb, "256MiB")
    bomb.add_argument(
        "--fork",
        choices=("cow", "on-demand", "eager"),
        default="cow",
        help="what fork copies: page tables (cow, as Linux does), nothing until it is needed (on-demand), everything "
        "(eager); default cow",
    )
    bomb.add_argument("--generations", type=number(0), metavar="N", help="stop after N generations; default: no limit")
    bomb.add_argument(
        "--max-processes",
        type=number(1),
        default=32768,
        metavar="N",
        help="stop at N processes; default 32768",
    )
    bomb.add_argument(
        "--dirty", type=number(0), default=1, metavar="N", help="pages each new process writes; default 1"
    )
    bomb.add_argument(
        "--procfs",
        metavar="DIR",
        help="leave a tree of the machine's /proc there, as it is when the bomb has stopped and no process has exited",
    )
    add_seed(bomb, "chooses the pages to write; default 0")
    add_json(bomb)
    _program(bomb, "the program; default /bin/sh")

    exe = command("exec", _exec, "load a program as execve does and show its memory", _EXEC, _PROGRAM)
    exe.add_argument("--link", action="store_true", help="map the libraries that it needs too, as ld.so would")
    exe.add_argument("--aslr", action="store_true", help="choose addresses at random (by --seed)")
    _memory(exe, "256MiB")
    add_seed(exe, "of the random addresses and of AT_RANDOM; default 0")
    add_json(exe)
    _program(exe, "the program")

    compare = command("compare", _compare, "one workload under each fork mode, side by side", _COMPARE)
    _memory(compare, "1GiB")
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
    _program(compare, "the program; default /bin/sh")

    add_policy(command("policy", None, "one trace under each policy of reclaim, side by side", POLICY, "TRACE"))
    add_ps(command("ps", None, "the processes of a machine, as ps prints them", PS, "[DIR]"))
    add_top(command("top", None, "a machine and its processes by memory, as top prints them", TOP, "[DIR]"))
    return parser, commands


_BOMB = """\
Boots an emulated machine, loads a program of this host with its libraries, lets it read all of its files and write
all of its data once, then forks it: each generation every living process forks once, and each new process writes some
pages of its private memory (data, bss, heap, stack) that the seed chooses; if the program has fewer than --dirty
pages, its heap is grown first. It ends when memory is gone or at a limit.

"without copy-on-write" (JSON: eager_bytes) is what the same processes would take if nothing were shared by
copy-on-write: the resident anonymous pages and the page tables of each, plus the page cache once."""

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


def _memory(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--memory",
        type=size(65536),
        default=default,
        metavar="SIZE",
        help=f"RAM of the machine: bytes, or a number with KiB, MiB or GiB; default {default}",
    )


def _program(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "program", nargs=argparse.REMAINDER, metavar="PROGRAM [ARGS...]", help=f"{what}; {_COMMAND_HELP}"
    )


def _words(options: argparse.Namespace) -> list[str]:
    """PROGRAM and ARGS; the first -- only ends the options."""
    words: list[str] = options.program
    return words[1:] if words[:1] == ["--"] else words


@contextlib.contextmanager
def _usage(parser: Parser, program: str) -> Iterator[None]:
    """A program that can't be executed and a machine that can't be made are usage errors."""
    from vmemu.errors import SyscallError

    try:
        yield
    except SyscallError as error:
        why = (error.strerror or str(error)).removeprefix("execve: ")
        if error.errno == errno.ENOMEM:
            why = f"does not fit into the machine's memory: {why}"
        about = "--procfs" if why.startswith("export: ") else program or repr(program)
        parser.exit(2, f"{parser.prog}: error: {about}: {why}\n")
    except ValueError as error:
        parser.error(str(error))


def _bomb(options: argparse.Namespace, parser: Parser) -> int:
    from vmemu.errors import SyscallError
    from vmemu.lab import bomb
    from vmemu.lab.report import Generation, Stopped
    from vmemu.procfs.export import check
    from vmemu.types import ForkMode

    words = _words(options)
    program = words[0] if words else bomb.default_program()
    if options.procfs is not None:
        try:
            check(options.procfs)
        except SyscallError as error:
            parser.exit(2, f"{parser.prog}: error: --procfs: {error.strerror}\n")

    def explode(progress: Callable[[Generation], None] | None, stop: Callable[[], bool]) -> BombReport:
        return bomb.run(
            program,
            words or None,
            memory=options.memory,
            fork=ForkMode[options.fork.upper().replace("-", "_")],
            generations=options.generations,
            max_processes=options.max_processes,
            dirty=options.dirty,
            seed=options.seed,
            progress=progress,
            stop=stop,
            procfs=options.procfs,
        )

    with _usage(parser, program), _interrupt() as stop:
        if sys.stderr.isatty():
            from vmemu.lab.tables import BombProgress

            with BombProgress(options.memory) as progress:
                report = explode(progress, stop)
        else:
            report = explode(None, stop)
    _print(report, options.json)
    return _INTERRUPTED if report.stopped is Stopped.INTERRUPTED else 0


def _exec(options: argparse.Namespace, parser: Parser) -> int:
    words = _words(options)
    if not words:
        parser.error("PROGRAM is missing")
    from vmemu.lab import startup

    with _usage(parser, words[0]):
        report = startup.run(
            words[0], words, memory=options.memory, link=options.link, aslr=options.aslr, seed=options.seed
        )
    _print(report, options.json)
    return 0


def _compare(options: argparse.Namespace, parser: Parser) -> int:
    from vmemu.lab import bomb, compare

    words = _words(options)
    program = words[0] if words else bomb.default_program()
    with _usage(parser, program), _status() as progress:
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


def _print(report: BombReport | ExecReport | CompareReport, as_json: bool) -> None:
    from vmemu.lab import report as reports

    if as_json:
        print(json.dumps(reports.to_json(report), indent=2))
        return
    from vmemu.lab import tables

    if isinstance(report, reports.BombReport):
        tables.print_bomb(report)
    elif isinstance(report, reports.ExecReport):
        tables.print_exec(report)
    else:
        tables.print_compare(report)


@contextlib.contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C asks to stop (the function given says so), the second raises KeyboardInterrupt."""
    asked = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
