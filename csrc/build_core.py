"""Builds vmemu._core from every csrc/*.c; setup.py names `ffi` here as its cffi module.

`vmemu_cdef.h` is the one declaration of the C interface: it is given verbatim to `ffi.cdef()` and included by C.
The environment decides how: VMEMU_SANITIZE=address,undefined adds those sanitizers, VMEMU_LTO=1 optimises across files;
VMEMU_CFLAGS comes after all other flags.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from cffi import FFI

# setuptools wants paths relative to the top of the tree, and cffi runs this file without __file__.
HERE = Path("csrc")

compile_args = ["-O3", "-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"]
link_args = ["-pthread"]

sanitizers = os.environ.get("VMEMU_SANITIZE", "")
if sanitizers:
    flags = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer"]
    compile_args += ["-O1", "-g1", "-fno-sanitize-recover=all", *flags]
    link_args += flags
if os.environ.get("VMEMU_LTO") == "1":
    compile_args.append("-flto")
    link_args += ["-flto", "-O2"]
compile_args += os.environ.get("VMEMU_CFLAGS", "").split()

ffi = FFI()
ffi.cdef((HERE / "vmemu_cdef.h").read_text(encoding="utf-8"))
ffi.set_source(
    "vmemu._core",
    '#include "vmemu_cdef.h"',
    sources=sorted(map(str, HERE.glob("*.c"))),
    depends=sorted(map(str, HERE.glob("*.h"))),
    include_dirs=[str(HERE)],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
    py_limited_api=not sysconfig.get_config_var("Py_GIL_DISABLED"),  # free-threaded builds have no stable ABI
)
