"""The command `vmemu bomb`: generation by generation, one shape against some defences, or all against all."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vmemu.cli_common import INTERRUPTED, add_memory, add_program, check_output, interrupt, usage, words_of
from vmemu.options import Parser, add_json, add_seed, number, size

if TYPE_CHECKING:
    from vmemu.bombs import Defences, Result
    from vmemu.lab.matrix import Matrix
    from vmemu.lab.report import BombReport, Generation
    from vmemu.machine import Machine
    from vmemu.types import ForkMode

__all__ = ["BOMB", "add_bomb"]

BOMB = """\
Boots an emulated machine, loads a program of this host with its libraries, lets it read all of its files and write
all of its data once, then forks it: each generation every living process forks once, and each new process writes some
pages of its private memory (data, bss, heap, stack) that the seed chooses; if the program has fewer than --dirty
pages, its heap is grown first. It ends when memory is gone or at a limit.

"without copy-on-write" (JSON: eager_bytes) is what the same processes would take if nothing were shared by
copy-on-write: the resident anonymous pages and the page tables of each, plus the page cache once.

With --bomb SHAPE the processes take turns instead, a turn each in every tick (10 ms) in an order that the seed
shuffles, beside a bystander: a service that touches its working set in each tick. The OOM killer is on. Shapes:
  classic      :(){ :|:& };: as bash does it: each process forks one for either end of its pipe, and exits
  waiting      :(){ :|:; };: each process forks two and waits for them
  exponential  while (1) fork();
  linear       one process forks, its children only wait
  chain        the child forks, the parent exits
  touch        as exponential, but each process first writes all of its memory
  exec         as exponential, but each child executes the program
  vfork        each process vforks, all in one memory
Defences (--defence, repeatable):
  nproc=N          RLIMIT_NPROC of the bomb's user
  pids.max=N       of the bomb's cgroup
  memory.max=SIZE  of the bomb's cgroup
  overcommit=2     promise no more memory than there is
  protect          oom_score_adj -1000 for the bystander
  watcher[=N]      a process that looks every tenth tick, and kills the bomb's process group at N processes (50)
--matrix runs all shapes against all defences with the built-in program and prints who survives.

Ctrl-C ends the bomb, and what was found is printed and written; another one more than a second later gives that up."""

_ONLY = ("defence", "ticks", "swap", "swap_file", "policy", "built_in")
"""Options that need --bomb or --matrix."""


def add_bomb(parser: argparse.ArgumentParser) -> None:
    """Options of `vmemu bomb`."""
    parser.set_defaults(run=_bomb)
    parser.add_argument("--bomb", metavar="SHAPE", help="a shape, see below; default: generation by generation")
    parser.add_argument("--defence", action="append", metavar="NAME[=VALUE]", help="what stands against it, see below")
    parser.add_argument("--matrix", action="store_true", help="all shapes against all defences")
    add_memory(parser, "256MiB")
    parser.add_argument(
        "--swap", type=size(0), default=0, metavar="SIZE", help="swap, in this host's memory; default 0"
    )
    parser.add_argument("--swap-file", metavar="FILE", help="swap in a file of this host, which it overwrites")
    parser.add_argument("--policy", metavar="NAME", help="what reclaim goes by; default clock")
    parser.add_argument(
        "--fork",
        choices=("cow", "on-demand", "eager"),
        default="cow",
        help="what fork copies: page tables (cow, as Linux does), nothing until it is needed (on-demand), everything "
        "(eager); default cow",
    )
    parser.add_argument(
        "--generations", type=number(0), metavar="N", help="stop after N generations; default: no limit"
    )
    parser.add_argument(
        "--max-processes",
        type=number(1),
        default=32768,
        metavar="N",
        help="stop at N processes; default 32768",
    )
    parser.add_argument("--ticks", type=number(1), metavar="N", help="stop after N ticks; default 1000")
    parser.add_argument(
        "--dirty", type=number(0), default=1, metavar="N", help="pages each new process writes; default 1"
    )
    parser.add_argument("--report", metavar="FILE.html", help="write a page about it, which needs nothing else")
    parser.add_argument(
        "--procfs",
        metavar="DIR",
        help="leave a tree of the machine's /proc there, as it is when the bomb has stopped and no process has exited",
    )
    add_seed(parser, "chooses the pages to write, and whose turn it is; default 0")
    add_json(parser)
    parser.add_argument("--built-in", action="store_true", help="fork a small built-in program, the same everywhere")
    add_program(parser, "the program; default /bin/sh")


def _bomb(options: argparse.Namespace, parser: Parser) -> int:
    from vmemu.types import ForkMode

    fork = ForkMode[options.fork.upper().replace("-", "_")]
    if options.procfs is not None:
        from vmemu.errors import SyscallError
        from vmemu.procfs.export import check

        try:
            check(options.procfs)
        except SyscallError as error:
            parser.exit(2, f"{parser.prog}: error: --procfs: {error.strerror}\n")
    if not options.matrix and options.bomb is None:
        for name in _ONLY:
            if getattr(options, name):
                parser.error(f"--{name.replace('_', '-')} needs --bomb or --matrix")
    with interrupt() as stop:  # until all is printed and written
        if options.matrix:
            return _matrix(options, parser, fork, stop)
        if options.bomb is not None:
            return _scenario(options, parser, fork, stop)
        return _generations(options, parser, fork, stop)


# ---- generation by generation ----


def _generations(options: argparse.Namespace, parser: Parser, fork: ForkMode, stop: Callable[[], bool]) -> int:
    from vmemu.lab import bomb
    from vmemu.lab.report import Stopped, to_json

    words = words_of(options)
    program = words[0] if words else bomb.default_program()
    _check_report(options, parser)
    film = None
    if options.report is not None:
        from vmemu.lab.film import Film

        film = Film()

    def explode(progress: Callable[[Generation], None] | None, stop: Callable[[], bool]) -> BombReport:
        return bomb.run(
            program,
            words or None,
            memory=options.memory,
            fork=fork,
            generations=options.generations,
            max_processes=options.max_processes,
            dirty=options.dirty,
            seed=options.seed,
            progress=progress,
            stop=stop,
            procfs=options.procfs,
            film=film,
        )

    with usage(parser, program):
        if sys.stderr.isatty():
            from vmemu.lab.tables import BombProgress

            with BombProgress(options.memory) as progress:
                report = explode(progress, stop)
        else:
            report = explode(None, stop)
    if options.json:
        print(json.dumps(to_json(report), indent=2))
    else:
        from vmemu.lab.tables import print_bomb

        print_bomb(report)
    status = 0
    if film is not None:
        result = film.result(report, options.generations, options.max_processes)
        status = _write_report(options, parser, lambda: _generations_page(result))
    return status or (INTERRUPTED if report.stopped is Stopped.INTERRUPTED else 0)


# ---- one shape ----


def _scenario(options: argparse.Namespace, parser: Parser, fork: ForkMode, stop: Callable[[], bool]) -> int:
    from vmemu.bombs import SHAPES, Ended
    from vmemu.bombs.program import default_program

    if options.bomb not in SHAPES:
        parser.error(f"--bomb: {options.bomb!r} is no bomb; there are {', '.join(SHAPES)}")
    defences = _defences(options, parser)
    words = words_of(options)
    if words and options.built_in:
        parser.error(f"--built-in contradicts the program {words[0]}")
    program = None if options.built_in else words[0] if words else default_program()
    _check_report(options, parser)
    swap = "--swap" if options.swap_file is None else "--swap-file"
    with usage(parser, program or "the built-in program", swap):
        result = _explode(options, fork, defences, program, words, stop)
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        from vmemu.lab.verdicts import print_result

        print_result(result)
    status = _write_report(options, parser, lambda: _page(result))
    if result.failure is not None:
        print(f"{parser.prog}: error: {swap}: {result.failure}", file=sys.stderr)
        return 2
    return status or (INTERRUPTED if result.ended is Ended.INTERRUPTED else 0)


def _explode(
    options: argparse.Namespace,
    fork: ForkMode,
    defences: Defences,
    program: str | None,
    words: list[str],
    stop: Callable[[], bool],
) -> Result:
    from vmemu.lab import explode

    ticks = options.ticks or 1000
    machine = explode.boot(options.memory, fork, options.swap, options.swap_file, options.policy)

    def export(machine: Machine) -> None:
        machine.procfs.export(options.procfs)

    with contextlib.ExitStack() as view:
        progress = None
        if sys.stderr.isatty():
            from vmemu.lab.live import LiveView

            progress = view.enter_context(LiveView(options.bomb, ticks, machine)).update
        return explode.run(
            machine,
            options.bomb,
            progress=progress,
            stop=stop,
            at_end=None if options.procfs is None else export,
            defences=defences,
            ticks=ticks,
            max_processes=options.max_processes,
            generations=options.generations,
            dirty=options.dirty,
            seed=options.seed,
            program=program,
            argv=words or None,
            fork=fork,
            policy=options.policy,
            sharing=options.report is not None,
        )


def _defences(options: argparse.Namespace, parser: Parser) -> Defences:
    from vmemu.bombs import Defences

    try:
        defences = Defences.parse(options.defence or ())
        defences.check(options.memory)
    except ValueError as error:
        parser.error(f"--defence: {error}")
    return defences


# ---- all of them ----


def _matrix(options: argparse.Namespace, parser: Parser, fork: ForkMode, stop: Callable[[], bool]) -> int:
    from vmemu.bombs import SHAPES
    from vmemu.lab import matrix

    for name in ("bomb", "defence", "procfs", "swap", "swap_file", "policy", "program"):
        if getattr(options, name):
            what = "PROGRAM" if name == "program" else f"--{name.replace('_', '-')}"
            parser.error(f"--matrix runs all bombs against all defences on machines of its own: no {what} with it")
    _check_report(options, parser)
    runs = len(matrix.defences_for(options.memory)) * len(SHAPES)
    with usage(parser, "the built-in program"), contextlib.ExitStack() as view:
        progress = None
        if sys.stderr.isatty():
            from vmemu.lab.live import MatrixProgress

            progress = view.enter_context(MatrixProgress(runs)).update
        found = matrix.run(
            memory=options.memory,
            fork=fork,
            ticks=options.ticks or 1000,
            max_processes=options.max_processes,
            generations=options.generations,
            dirty=options.dirty,
            seed=options.seed,
            jobs=len(os.sched_getaffinity(0)),
            progress=progress,
            stop=stop,
        )
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        from vmemu.lab.verdicts import print_matrix

        print_matrix(found)
    status = _write_report(options, parser, lambda: _matrix_page(found))
    return status or (INTERRUPTED if found.interrupted else 0)


# ---- the page ----


def _page(result: Result) -> str:
    from vmemu.lab.page import result_page

    return result_page(result)


def _generations_page(result: Result) -> str:
    from vmemu.lab.page import generations_page

    return generations_page(result)


def _matrix_page(found: Matrix) -> str:
    from vmemu.lab.page import matrix_page

    return matrix_page(found)


def _check_report(options: argparse.Namespace, parser: Parser) -> None:
    """That the report can be written is known before anything runs."""
    if options.report is None:
        return
    if options.report == "-":  # standard output is for the text
        parser.error("--report: -: the page needs a file")
    check_output("--report", options.report, parser)


def _write_report(options: argparse.Namespace, parser: Parser, page: Callable[[], str]) -> int:
    """Exit status 1 if it could not be written after all."""
    if options.report is None:
        return 0
    try:
        Path(options.report).write_text(page(), encoding="utf-8")
    except OSError as error:
        print(f"{parser.prog}: error: --report: {options.report}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
