"""The fuzzers of fuzz.py over a core that is built here with AddressSanitizer, UndefinedBehaviorSanitizer and junk in
freed frames. VMEMU_FUZZ_SECONDS says how long each target runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("VMEMU_FUZZ_SECONDS", "1.5"))
LIBRARIES = ("libasan.so", "libubsan.so")
BUILD = """
import os, runpy, subprocess, sys, sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
core = runpy.run_path("csrc/build_core.py")
out, compiler = Path(sys.argv[1]), sys.argv[2]
core["ffi"].emit_c_code(str(out / "_core.c"))
flags = [*core["compile_args"], "-DVMEMU_JUNK", "-fPIC", "-Icsrc", "-I" + sysconfig.get_path("include")]
def compile(source):
    target = out / (Path(source).stem + ".o")
    subprocess.run([compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
    return str(target)
sources = [out / "_core.c", *sorted(Path("csrc").glob("*.c"))]
with ThreadPoolExecutor(os.cpu_count()) as pool:
    objects = list(pool.map(compile, sources))
command = [compiler, "-shared", *objects, *core["link_args"], "-o", str(out / "vmemu" / "_core.abi3.so")]
subprocess.run(command, check=True)
"""
"""As setup.py does, without needing setuptools: argv is the directory to build in and the compiler."""


def preload(compiler: str) -> str:
    """The sanitizers' libraries for LD_PRELOAD; skips where they are not installed."""
    paths = []
    for name in LIBRARIES:
        found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = found.stdout.strip()
        if not os.path.isabs(path):  # the name alone: there is none
            pytest.skip(f"{compiler} has no {name}")
        paths.append(path)
    return " ".join(paths)


@pytest.fixture(scope="module")
def environment(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a Python that imports the instrumented core."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc")
    if not (root / "csrc").is_dir():
        pytest.skip("the sources of the core are not here")
    plain = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    out = tmp_path_factory.mktemp("sanitized")
    shutil.copytree(root / "vmemu", out / "vmemu", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(out), compiler],
        cwd=root,
        env={**plain, "VMEMU_SANITIZE": "address,undefined"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    yield {
        **plain,
        "LD_PRELOAD": preload(compiler),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(out),
    }
    shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("target", ["api", "border", "elf"])
def test_fuzz(target: str, environment: dict[str, str], root: Path, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(3), "little") if SECONDS > 10 else 0
    command = [sys.executable, str(root / "tests" / "fuzz.py"), target, "--seconds", str(SECONDS)]
    done = subprocess.run(
        [*command, "--seed", str(seed), "--log", str(tmp_path / "log")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS * 3 + 100,
    )
    last = (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []
    report = "\n".join([*last[:1], *last[-8:], done.stdout[-2000:], done.stderr[:6000]])
    assert done.returncode == 0, report
    found = re.search(rf"^{target}: (\d+) operations", done.stdout, re.MULTILINE)
    assert found is not None, report
    assert int(found[1]) > 0  # a round at least, however slow the host
    print(done.stdout.strip().splitlines()[-1])
