"""What ld.so(8) adds to a program's mappings (stub)."""

from __future__ import annotations

from vmemu import elf
from vmemu.bprm import Program
from vmemu.sketch import Sketch


def link(
    sketch: Sketch,
    program: Program,
    interpreter: tuple[str, elf.ElfImage] | None,
    bias: int,
    interpreter_bias: int,
    cwd: str | None,
) -> None:
    """Not written yet."""
    raise NotImplementedError("mapping the libraries")
