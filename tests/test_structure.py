"""The order of the house: who may know whom. A file imports or includes only from rows strictly below its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PYTHON = """
    __init__ __main__
    cli workloads testing
    cli_look cli_bomb cli_policy
    cli_common
    lab
    bombs
    machine
    cgroupfs
    procfs traces faultlog
    crowd
    process
    task
    persona
    oom
    lifecycle
    execve ksm
    plans
    loader memory
    handles
    kernel
    cgroups
    whole
    files pids interned limits credentials dispositions swap
    openfile
    _native
    errors options
    types alignment columns
"""
"""Modules of vmemu from top to bottom; a package stands for all that is in it."""

PACKAGES = {
    "bombs": "__init__ / scenarios / run / services swarm / options record / program result defences shapes",
    "_native": "__init__ / accesses builds cgroups looks machine objects pages reclaims spaces traces / border",
    "lab": "compare startup listing page policy_table / pictures verdicts / live matrix processes "
    "/ explode policy / bomb tables optimum / film / report charts / console style __init__",
    "loader": "__init__ / plan / linker elfmap / initstack / sketch bprm / elf / seen",
    "lifecycle": "birth / mending exits sending waiting identity check / program / death / signals / memory / __init__",
    "memory": "clear_refs / mprotect mremap madvise mlock brk view census / mmap thp / place / hugetlb / space "
    "/ limits / shortage / reclaim / commit / args bits words / __init__",
    "procfs": "__init__ / tree / export / index / clearing limits maps meminfo names oom pages status strings sysctl "
    "vmstat / numbers system / subject",
}
"""The order inside each package, rows apart by slashes."""

C = """
    api api_build api_cgroup api_huge api_ksm api_mark api_object api_oom api_reclaim api_short api_space api_trace
    trace
    access check check_space check_swap fork huge look
    worst
    ksm lru mark move
    reclaim reclaim_pick
    space space_build space_object space_pool
    fault fault_anon fault_file fault_huge fault_pool fault_swap classify
    faultlog
    mm
    object table table_huge table_range
    pool
    folio swap
    frame vma vma_hole vma_rule pte
    cgroup page
    base
    vmemu_cdef
Files of csrc from top to bottom, by stem; a .c file may include its own header and that of the stem it is a
part of."""

C_PARTS = {
    "api_build": "api",
    "api_cgroup": "api",
    "api_huge": "api",
    "api_ksm": "api",
    "api_mark": "api",
    "api_object": "api",
    "api_oom": "api",
    "api_reclaim": "api",
    "api_short": "api",
    "api_space": "api",
    "api_trace": "api",
    "check_space": "check",
    "check_swap": "check",
    "classify": "fault",
    "fault_anon": "fault",
    "fault_file": "fault",
    "fault_huge": "fault",
    "fault_pool": "fault",
    "fault_swap": "fault",
    "move": "space",
    "reclaim_pick": "reclaim",
    "space_build": "space",
    "space_object": "space",
    "space_pool": "space",
    "table_huge": "table",
    "table_range": "table",
    "vma_hole": "vma",
    "vma_rule": "vma",
}
"""Rooms of one header that has several .c files."""


def rows(text: str, separator: str = "\n") -> dict[str, int]:
    """Name -> height, the ground is 0."""
    lines = [line.split() for line in text.split(separator) if line.split()]
    return {name: len(lines) - 1 - i for i, line in enumerate(lines) for name in line}


def modules(root: Path) -> dict[str, Path]:
    """Module name below vmemu -> file."""
    top = root / "vmemu"
    if not top.is_dir():
        pytest.skip("the sources are not here")
    found = {}
    for path in sorted(top.rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        found[".".join(parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of vmemu that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path.name}: a relative import")
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "vmemu":
                continue
            for end in range(len(parts), 0, -1):  # vmemu.memory.space.Space -> memory.space
                module = ".".join(parts[1:end])
                if module in known or module == "_core":
                    found.add(module)
                    break
                if f"{module}.__init__".lstrip(".") in known:
                    found.add(f"{module}.__init__".lstrip("."))
                    break
    return found


def height(module: str, outer: dict[str, int]) -> tuple[int, int]:
    """Row of a module and, inside a package, its row there."""
    package, _, name = module.partition(".")
    assert package in outer, f"vmemu/{module.replace('.', '/')}.py has no row in this test"
    if not name:
        return outer[package], 0
    inner = rows(PACKAGES[package], "/")
    assert name in inner, f"vmemu/{module.replace('.', '/')}.py has no row in this test"
    return outer[package], inner[name]


def test_python_imports_go_down(root: Path) -> None:
    """A module imports only from rows below its own; those of one row do not know each other."""
    known, outer = modules(root), rows(PYTHON)
    wrong = []
    for module, path in known.items():
        here = height(module, outer)
        for other in sorted(imports(path, known) - {"_core"}):
            there = height(other, outer)
            same_package = "." in module and "." in other and module.split(".")[0] == other.split(".")[0]
            if not (there < here if same_package else there[0] < here[0]):
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_only_native_imports_the_core(root: Path) -> None:
    """The border has one gate."""
    known = modules(root)
    assert [module for module, path in known.items() if "_core" in imports(path, known)] == ["_native.border"]


def test_python_knows_no_entry_bits_and_no_ram(root: Path) -> None:
    """Nothing above the border walks tables or touches RAM: only _native names functions of the core."""
    for module, path in modules(root).items():
        if not module.startswith("_native"):
            assert not re.search(r"\b(ffi|lib)\.|vmemu_(machine|space|object)_", path.read_text()), module


def c_files(root: Path) -> list[Path]:
    files = sorted(root.glob("csrc/*.[ch]"))
    if not files:
        pytest.skip("the sources of the core are not here")
    return files


def test_c_includes_go_down(root: Path) -> None:
    """A header includes only from rows below its own; a .c file its own header and what lies below that."""
    order, wrong = rows(C), []
    for path in c_files(root):
        stem = path.stem
        assert stem in order, f"csrc/{path.name} has no row in this test"
        own = {stem, C_PARTS.get(stem, stem)} if path.suffix == ".c" else set()
        for other in re.findall(r'^#include "(\w+)\.h"', path.read_text(), re.MULTILINE):
            if other not in own and order[other] >= order[stem]:
                wrong.append(f"{path.name} includes {other}.h")
    assert not wrong


def test_every_c_file_includes_its_own_header_first(root: Path) -> None:
    """So that each header stands alone."""
    for path in c_files(root):
        if path.suffix == ".c" and (path.with_suffix(".h").exists() or path.stem in C_PARTS):
            stem = C_PARTS.get(path.stem, path.stem)
            first = re.findall(r'^#include "(\w+)\.h"', path.read_text(), re.MULTILINE)[:2]
            assert stem in first, path.name


def test_declarations_of_the_border_exist_once(root: Path) -> None:
    """Each function of vmemu_cdef.h is declared there and nowhere else, defined in one api file, and takes the lock."""
    text = re.sub(r"/\*.*?\*/", "", (root / "csrc/vmemu_cdef.h").read_text(), flags=re.DOTALL)
    declared = re.findall(r"\b(vmemu_(?:machine|space|object|cgroup)_\w+)\(", text)
    assert len(declared) == len(set(declared)) > 40
    for path in c_files(root):
        if path.name == "vmemu_cdef.h":
            continue
        source = path.read_text()
        for name in declared:
            if re.search(rf"^[\w ]+[ *]{name}\(", source, re.MULTILINE):
                assert path.name.startswith("api"), f"{name} is in {path.name}"
    defined = "".join(path.read_text() for path in c_files(root) if path.name.startswith("api"))
    for name in declared:
        assert len(re.findall(rf"^[\w ]+[ *]{name}\(", defined, re.MULTILINE)) == 1, name


def test_entry_bits_are_known_in_one_place(root: Path) -> None:
    """PTE_* masks are defined in pte.h only."""
    for path in c_files(root):
        if path.name != "pte.h":
            assert not re.search(r"#define PTE_|\bPTE_\w+ *=(?!=)", path.read_text()), path.name


def test_c_knows_no_python(root: Path) -> None:
    """The core includes nothing of Python and calls nothing back."""
    for path in c_files(root):
        assert not re.search(r"Python\.h|\bPy[A-Z]\w+\(|extern \"Python\"", path.read_text()), path.name
