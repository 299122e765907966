"""Formatting, lint, types and C warnings. Each is skipped, with the reason, where its tool is not installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest


def tool(name: str) -> str:
    """The tool of this Python environment: another release of it might judge differently."""
    path = shutil.which(name, path=sysconfig.get_path("scripts"))
    if path is None:
        pytest.skip(f"{name} is not installed in this environment: pip install '.[test]'")
    return path


def check(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}"


def c_files(root: Path) -> list[Path]:
    files = sorted(root.glob("csrc/*.[ch]"))
    if not files:
        pytest.skip("the sources of the core are not here")
    return files + sorted(root.glob("bench/*.c"))


def test_ruff_check(root: Path) -> None:
    check(tool("ruff"), "check", "--quiet", "--output-format=concise", ".", cwd=root)


def test_ruff_format(root: Path) -> None:
    check(tool("ruff"), "format", "--quiet", "--check", ".", cwd=root)


def test_mypy(root: Path) -> None:
    check(tool("mypy"), "--no-error-summary", cwd=root)


def test_clang_format(root: Path) -> None:
    check(tool("clang-format"), "--dry-run", "--Werror", "--style=file", *c_files(root), cwd=root)


def test_c_warnings(root: Path) -> None:
    """The C here compiles without a warning; the flags of the build are in csrc/build_core.py."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no {compiler[0]}")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    for file in c_files(root):
        if file.suffix == ".c":
            check(*compiler, *flags, "-fsyntax-only", f"-I{root / 'csrc'}", file, cwd=root)
