"""What the tests of plans share: a program, an interpreter, and ways to look at a plan."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from linux import tinyelf
from linux.tinyelf import ET_DYN, Part, R, W, X

from vmemu.errors import SyscallError
from vmemu.loader import ExecPlan, plan
from vmemu.types import Prot


def make_ld_so(tmp_path: Path) -> bytes:
    """An interpreter: its path as PT_INTERP has it."""
    parts = [
        Part(flags=R | X, filesz=0x1000),
        Part(flags=R | W, offset=0x1000, vaddr=0x2000, filesz=0x800, memsz=0x900),
    ]
    content = tinyelf.tiny(parts, type=ET_DYN, entry=0x40, size=0x2000)
    return os.fsencode(tinyelf.save(tmp_path / "ld.so", content)) + b"\0"


def program(tmp_path: Path, *parts: Part, name: str = "prog", **more: object) -> str:
    return tinyelf.save(tmp_path / name, tinyelf.tiny(parts, **more))  # type: ignore[arg-type]


def lines(p: ExecPlan) -> list[tuple[int, int, str, int, str]]:
    """(start, end, permissions, offset, role)"""
    return [
        (
            s.start,
            s.end,
            "".join(c if s.prot & bit else "-" for c, bit in zip("rwx", Prot, strict=False)),
            s.offset,
            s.role,
        )
        for s in p.segments
    ]


def fails(number: int, why: str, *args: object, **more: object) -> SyscallError:
    with pytest.raises(SyscallError, match=why) as refused:
        plan(*args, **more)  # type: ignore[arg-type]
    assert refused.value.errno == number
    return refused.value
