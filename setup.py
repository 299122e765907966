"""The C part of the build: one extension, vmemu._core, made by csrc/build_core.py. All else is in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError

INSTALL = """\
  Debian, Ubuntu:  apt-get install gcc libc6-dev python3-dev
  Fedora, RHEL:    dnf install gcc glibc-devel python3-devel
  Arch:            pacman -S gcc
  Alpine:          apk add gcc musl-dev python3-dev linux-headers"""


class Build(build):
    """Starts from nothing: a file that was deleted since the last build must not get into the wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildCore(build_ext):
    """Compiles the core, on all processors; says what to install when the compiler or a header is missing."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # the flags depend on the environment (csrc/build_core.py), which time stamps do not show

    def build_extensions(self) -> None:
        wanted = self.compiler.compiler_so[0]
        if shutil.which(wanted) is None:  # the compiler that Python was built with, or the one named in CC
            found = None if "CC" in os.environ else next(filter(shutil.which, ("cc", "gcc", "clang")), None)
            if found is None:
                raise SystemExit(
                    f"\nvmemu: there is no C compiler: {wanted!r} was not found.\n"
                    "The core of vmemu is written in C and is compiled during installation. Install one, for example\n"
                    f"{INSTALL}\nor name one that you have in the environment variable CC.\n"
                )
            for command in ("compiler", "compiler_so", "linker_so"):
                words = getattr(self.compiler, command)
                setattr(self.compiler, command, [found if word == wanted else word for word in words])
        include = Path(sysconfig.get_path("include"))
        if not (include / "Python.h").exists():
            raise SystemExit(
                f"\nvmemu: Python's header files are missing: there is no Python.h in {include}.\n"
                f"Install the development package of this Python, for example\n{INSTALL}\n"
            )
        compile_one = self.compiler.compile

        def compile_all(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [obj for objs in pool.map(lambda one: compile_one([one], **options), sources) for obj in objs]

        self.compiler.compile = compile_all
        try:
            super().build_extensions()
        except (CCompilerError, ExecError):
            raise SystemExit(
                "\nvmemu: compiling the core failed; the compiler's own message is above.\n"
                f"If a standard header was not found, install it, for example\n{INSTALL}\n"
            ) from None


# The wheel's tag: this CPython and every later one, unless the extension could not use the stable ABI.
wheel = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}

setup(
    cffi_modules=["csrc/build_core.py:ffi"],
    cmdclass={"build": Build, "build_ext": BuildCore},
    options={"bdist_wheel": wheel},
)
