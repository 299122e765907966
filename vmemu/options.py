"""What the commands have in common: a parser whose errors are one line, and the types of options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

__all__ = ["Parser", "add_json", "add_seed", "number", "size"]


class Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        """A usage error: one line on stderr, exit status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse would not mention that it could not write."""
        if message:
            (file or sys.stderr).write(message)


def add_seed(parser: argparse.ArgumentParser, what: str) -> None:
    """--seed."""
    parser.add_argument("--seed", type=number(0), default=0, metavar="N", help=what)


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def number(least: int) -> Callable[[str], int]:
    """A whole number of at least *least*."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return whole


def size(least: int) -> Callable[[str], int]:
    """A size of at least *least* bytes."""

    def nbytes(text: str) -> int:
        from vmemu.types import parse_size

        try:
            value = parse_size(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a size: write bytes, or a number with KiB, MiB or GiB"
            ) from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least} bytes")
        return value

    return nbytes
