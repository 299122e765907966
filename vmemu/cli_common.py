"""What the commands that run something have in common: options, usage errors, Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vmemu.options import Parser, size

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["INTERRUPTED", "add_memory", "add_program", "check_output", "interrupt", "usage", "words_of"]

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C."""
_PATIENCE = 1.0
"""Seconds after the first Ctrl-C until another one ends the command."""

_COMMAND_HELP = "everything after the first word that is not an option belongs to the program (or after --)"


def add_memory(parser: argparse.ArgumentParser, default: str) -> None:
    """--memory."""
    parser.add_argument(
        "--memory",
        type=size(65536),
        default=default,
        metavar="SIZE",
        help=f"RAM of the machine: bytes, or a number with KiB, MiB or GiB; default {default}",
    )


def add_program(parser: argparse.ArgumentParser, what: str) -> None:
    """PROGRAM and its arguments."""
    parser.add_argument(
        "program", nargs=argparse.REMAINDER, metavar="PROGRAM [ARGS...]", help=f"{what}; {_COMMAND_HELP}"
    )


def words_of(options: argparse.Namespace) -> list[str]:
    """PROGRAM and ARGS; the first -- only ends the options."""
    words: list[str] = options.program
    return words[1:] if words[:1] == ["--"] else words


def check_output(option: str, name: str, parser: Parser) -> None:
    """A usage error of *option* if no file of that *name* can be written."""
    file = Path(name)
    problem = None
    if not name:
        problem = "No such file or directory"
    elif file.is_dir():
        problem = "Is a directory"
    elif not file.absolute().parent.is_dir():
        problem = "No such directory"
    elif not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        problem = "Permission denied"
    if problem:
        parser.error(f"{option}: {name}: {problem}")


@contextlib.contextmanager
def usage(parser: Parser, program: str, swap: str = "--swap") -> Iterator[None]:
    """A program that can't be executed and a machine that can't be made are usage errors; *swap* is the option
    that names the swap device."""
    from vmemu.errors import SyscallError

    try:
        yield
    except SyscallError as error:
        why = (error.strerror or str(error)).removeprefix("execve: ")
        if error.errno == errno.ENOMEM and not why.startswith("swap"):
            why = f"does not fit into the machine's memory: {why}"
        about = "--procfs" if why.startswith("export: ") else program or repr(program)
        if why.startswith("swap"):
            about = swap
        parser.exit(2, f"{parser.prog}: error: {about}: {why}\n")
    except (ValueError, NotImplementedError) as error:
        parser.error(str(error))


@contextlib.contextmanager
def interrupt() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C asks to stop (the function given says so). Those that follow are ignored while what
    was found is written, except after `_PATIENCE`: then one raises KeyboardInterrupt."""
    asked_at: float | None = None

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is None:
            asked_at = now
        elif now - asked_at > _PATIENCE:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked_at is not None
    finally:
        signal.signal(signal.SIGINT, before)
