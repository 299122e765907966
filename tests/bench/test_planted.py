"""`python -m bench --check` finds what it promises to find: each test plants a mistake in a clone of this tree.

Slow: each builds the core twice. Needs a git history.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COPY = re.compile(
    r"^(int frame_alloc_copy\(struct frames \*f, uint32_t flags, pfn_t from, pfn_t \*pfn\)\n\{\n)", re.MULTILINE
)
"""Where the copy-on-write path takes its frame, in csrc/frame.c."""

BUILD = """
import glob, runpy, subprocess, sys, sysconfig
names = runpy.run_path("csrc/build_core.py")
names["ffi"].emit_c_code("_core.c")
include = sysconfig.get_path("include")
command = ["cc", "-shared", "-fPIC", *names["compile_args"], f"-I{include}", "-Icsrc", "-o", "vmemu/_core.abi3.so"]
sys.exit(subprocess.call([*command, "_core.c", *glob.glob("csrc/*.c"), *names["link_args"]]))
"""
"""The core in place, as setup.py builds it but without an isolated environment, for which there may be no index."""

SLOWER = """
from bench.core import Core, times
print(times(Core("HEAD"), Core(), ["cow"])["cow"])
"""
RATIO = """
from bench.ratios import measure_ratios
print(measure_ratios(["cow.bookkeeping"])["cow.bookkeeping"])
"""


def python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """A clone of this tree's last commit."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("there is no git history here")
    clone = tmp_path / "tree"
    subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
    build(clone)
    done = python(clone, "-m", "bench", "--update")  # the ratios of this build, on this machine
    assert not done.returncode, done.stdout
    return clone


def plant(tree: Path, text: str, before: str = "") -> None:
    """Puts *text* at the start of frame_alloc_copy, *before* in front of it; what was planted earlier goes."""
    subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", "csrc"], check=True)
    path = tree / "csrc" / "frame.c"
    source, n = COPY.subn(lambda match: before + match[1] + text, path.read_text())
    assert n == 1, "frame_alloc_copy is not where it was"
    path.write_text(source)


def build(tree: Path) -> None:
    done = python(tree, "-c", BUILD)
    assert not done.returncode, done.stdout


def check(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = python(tree, "-m", "bench", "--check", *options)
    print(done.stdout)
    return done


def lines(output: str, kind: str) -> list[str]:
    """Rows of the table of findings that are of a kind."""
    return [line for line in output.splitlines() if re.match(rf"│ {kind} ", line)]


def test_nothing_planted(tree: Path) -> None:
    done = check(tree)
    assert done.returncode == 0 and "nothing is worse" in done.stdout


def test_extra_copy_that_is_counted(tree: Path) -> None:
    """A frame is copied twice, the first copy is dropped."""
    once = "static int once(struct frames *f, uint32_t flags, pfn_t from, pfn_t *pfn)"
    body = f"""\
\tpfn_t extra;

\tif (!once(f, flags, from, &extra))
\t\tframe_put(f, extra);
\treturn once(f, flags, from, pfn);
}}

{once}
{{
"""
    plant(tree, body, f"{once};\n")
    build(tree)
    done = check(tree, "--no-callgrind")
    assert done.returncode == 1
    assert any("frames.copied" in line for line in lines(done.stdout, "counter")), done.stdout


def test_extra_copy_that_is_not_counted(tree: Path) -> None:
    """The bytes are copied twice: no counter sees that, but instructions and times do."""
    body = """\
\tstatic unsigned char extra[4096];

\tmemcpy(extra, frame_bytes(f, from), f->contents ? 4096 : 0);
\t__asm__ volatile("" : : "r"(extra) : "memory");
"""
    plant(tree, body)
    build(tree)
    done = check(tree)
    assert done.returncode == 1
    assert any("cow_write" in line for line in lines(done.stdout, "instructions")), done.stdout


def test_five_percent_more_instructions(tree: Path) -> None:
    """In the bookkeeping of the copy-on-write path, seen by callgrind."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    script = "from bench.core import Core, count_instructions\nprint(count_instructions(Core())['cow'])"
    each = int(python(tree, "-c", script).stdout) / 1024
    plant(tree, f'\t__asm__ volatile(".rept {each * 0.05:.0f}\\n\\tnop\\n\\t.endr");\n')
    build(tree)
    done = check(tree)
    found = lines(done.stdout, "instructions")
    assert done.returncode == 1 and any(" cow " in line for line in found), done.stdout
    assert not lines(done.stdout, "counter")


def slow_down(tree: Path, measured: Callable[[], float], by: float = 1.25) -> float:
    """Plants a delay in copy-on-write faults that makes *measured* *by* times what it is; returns what it came to."""

    def planted(steps: float) -> float:
        plant(
            tree,
            "\tuint64_t planted = from;\n\n"
            f'\t__asm__ volatile(".rept {steps:.0f}\\n\\timul %0, %0\\n\\t.endr" : "+r"(planted));\n',
        )
        return measured() / before

    before = measured()
    (low, least), (high, most) = (0.0, 1.0), (64.0, planted(64))
    for _ in range(12):  # what few steps cost may hide behind other work: not a straight line
        steps = low + max(0.1, min(0.9, (by - least) / (most - least))) * (high - low)
        ratio = planted(steps)
        if -0.01 < ratio - by < 0.02:
            break
        if ratio < by:
            low, least = steps, ratio
        else:
            high, most = steps, ratio
    return ratio


@pytest.mark.parametrize("history", [True, False], ids=["git", "no git"])
def test_a_quarter_slower_without_callgrind(tree: Path, history: bool) -> None:
    """In the bookkeeping of the copy-on-write path; seen beside the baseline's revision, or by the ratios alone."""

    def core() -> float:
        return float(python(tree, "-c", SLOWER).stdout)

    def vmemu() -> float:
        build(tree)
        return float(python(tree, "-c", RATIO).stdout)

    print(f"planted: {slow_down(tree, core if history else vmemu):.3f}")
    build(tree)
    if not history:
        shutil.rmtree(tree / ".git")
    done = check(tree, "--no-callgrind")
    assert done.returncode == 1 and "less than 20 % in the cost of the core can't be seen" in done.stdout
    found = lines(done.stdout, "time, core" if history else "time by bound")
    assert any("cow" in line for line in found), done.stdout
