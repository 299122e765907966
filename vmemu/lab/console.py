"""The terminal: rich's console, except that whoever runs the command hears of a reader that went away."""

from __future__ import annotations

from typing import NoReturn

from rich import console

__all__ = ["Console"]


class Console(console.Console):
    """Raises BrokenPipeError; rich's own would exit with 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Rich's hook."""
        raise BrokenPipeError
