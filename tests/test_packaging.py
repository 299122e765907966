"""The sdist is complete, the wheel has the stable ABI, both work in an empty venv; a build without a compiler says so.

The tests that build need a package index for their isolated environments and are skipped where pip reaches none.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import vmemu

SMOKE = """
import vmemu
from vmemu import Machine, Map, Prot

with Machine(memory="16MiB") as m:
    p = m.spawn()
    a = p.mmap(None, 65536, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
    p.write(a, b"parent")
    c = p.fork()
    c.write(a, b"child!")
    assert p.read(a, 6) == b"parent" and c.read(a, 6) == b"child!"
    assert m.faults.cow_copy == 1
    m.verify()
print(vmemu.__file__)
"""


PIP = importlib.util.find_spec("pip") is not None and int(importlib.metadata.version("pip").split(".")[0]) >= 23
"""The pip here can install into other environments."""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


def install(python: Path, *what: str | Path, cwd: Path, **environment: str) -> None:
    """Pip install; skips the test if there is no index to install from."""
    there = ("-m", "pip", "install", "--quiet", "--no-compile")
    if PIP:
        done = run(sys.executable, "-m", "pip", "--python", python, *there[2:], *what, cwd=cwd, **environment)
    else:
        done = run(python, *there, *what, cwd=cwd, **environment)
    if done.returncode and ("No matching distribution" in done.stdout or "Connection" in done.stdout):
        pytest.skip(f"pip reaches no package index that has {what}")
    assert done.returncode == 0, done.stdout


def make_venv(directory: Path) -> Path:
    """A new venv; returns its python. Copying pip into it takes most of the time, so that is done only if need be."""
    venv.create(directory, with_pip=not PIP)
    return directory / "bin" / "python"


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory, project: dict[str, Any]) -> Path:
    """The python of a venv that has what the build needs."""
    directory = tmp_path_factory.mktemp("builder")
    python = make_venv(directory / "venv")
    install(python, *project["build-system"]["requires"], cwd=directory)
    return python


@pytest.fixture(scope="module")
def sdist(root: Path, builder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    tree = out / "tree"
    subprocess.run(
        f"mkdir {tree} && tar -c --exclude=./.git --exclude=./.venv --exclude=./build --exclude='*.so' "
        f"--exclude='*.egg-info' --exclude='.*_cache' . | tar -x -C {tree}",
        shell=True,
        cwd=root,
        check=True,
    )
    done = run(builder, "-c", f"import setuptools.build_meta as b; b.build_sdist({str(out)!r})", cwd=tree)
    assert done.returncode == 0, done.stdout
    (path,) = out.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, builder: Path) -> Path:
    """Built from the sdist, fast rather than to be fast."""
    command = ["-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w"]
    tool = [sys.executable, "-m", "pip", "--python", builder, *command[2:]] if PIP else [builder, *command]
    done = run(*tool, sdist.parent, sdist, cwd=sdist.parent, VMEMU_CFLAGS="-O0")
    assert done.returncode == 0, done.stdout
    (path,) = sdist.parent.glob("*.whl")
    return path


def test_installed_version(project: dict[str, Any]) -> None:
    assert importlib.metadata.version("vmemu") == project["project"]["version"]


def test_installed_files() -> None:
    package = Path(vmemu.__file__).parent
    assert (package / "py.typed").exists()
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert [path.name for path in package.glob("_core*.so")] == ["_core.abi3.so"]


def test_tests_see_a_built_vmemu(root: Path) -> None:
    """What conftest.py arranges: the checkout's vmemu/ is used only if it was built in place."""
    package = Path(vmemu.__file__).parent
    assert package != root / "vmemu" or list(package.glob("_core*.so"))


def test_sdist_is_complete(root: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        inside = {str(Path(*Path(name).parts[1:])) for name in archive.getnames()}
    wanted = ["LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"]
    for pattern in ("csrc/*.[ch]", "csrc/*.py", "csrc/*.md", "vmemu/**/*.py", "tests/**/*.py", "bench/*.py"):
        wanted += [str(path.relative_to(root)) for path in root.glob(pattern)]
    assert not set(wanted) - inside
    assert not [name for name in inside if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_has_the_stable_abi(wheel: Path) -> None:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("free-threaded Python has no stable ABI")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "vmemu/_core.abi3.so" in names
    assert "vmemu/py.typed" in names
    assert not [name for name in names if not name.startswith("vmemu")]  # no tests, no sources


def test_wheel_in_an_empty_venv(wheel: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    install(python, wheel, cwd=tmp_path)
    done = run(python, "-c", SMOKE, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert str(tmp_path) in done.stdout
    done = run(tmp_path / "venv" / "bin" / "vmemu", "bomb", "--generations", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_wheel_passes_the_tests(root: Path, wheel: Path, tmp_path: Path, project: dict[str, Any]) -> None:
    python = make_venv(tmp_path / "venv")
    install(python, f"{wheel}[test]", cwd=tmp_path)
    tests = root / "tests"
    here = ("--ignore", tests / "test_packaging.py", "--ignore", tests / "test_style.py")  # these judge the sources
    done = run(python, "-m", "pytest", "-m", "not slow", *here, "--rootdir", root, tests, cwd=root)
    assert done.returncode == 0, done.stdout


def test_without_a_compiler(root: Path, sdist: Path, builder: Path, tmp_path: Path) -> None:
    """The error names the compiler that is missing and says what to install; no traceback."""
    subprocess.run(["tar", "-xf", sdist, "-C", tmp_path], check=True)
    (tree,) = tmp_path.iterdir()
    build = "import setuptools.build_meta as b; b.build_wheel('.')"
    done = run(builder, "-c", build, cwd=tree, CC="no-such-compiler")
    assert done.returncode != 0
    assert "there is no C compiler: 'no-such-compiler' was not found" in done.stdout
    assert "apt-get install gcc libc6-dev python3-dev" in done.stdout
    assert "Traceback" not in done.stdout


def test_python_m_vmemu(tmp_path: Path) -> None:
    done = run(sys.executable, "-P", "-m", "vmemu", "--version", cwd=tmp_path)
    assert done.stdout == f"vmemu {importlib.metadata.version('vmemu')}\n"


def test_benchmarks_run(root: Path) -> None:
    """Each once, without measuring."""
    command = "-m pytest bench -q -p no:cacheprovider --benchmark-disable".split()
    done = run(sys.executable, *command, cwd=root)
    assert done.returncode == 0, done.stdout
