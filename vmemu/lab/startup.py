"""A program at its first instruction: what execve has mapped, what of it is resident, and the auxiliary vector."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Dictionary

from vmemu.lab.bomb import find_program
from vmemu.lab.report import ExecReport
from vmemu.machine import Machine

__all__ = ["AUX_NAMES", "run"]

AUX_NAMES = {
    0: "AT_NULL",
    1: "AT_IGNORE",
    2: "AT_EXECFD",
    3: "AT_PHDR",
    4: "AT_PHENT",
    5: "AT_PHNUM",
    6: "AT_PAGESZ",
    7: "AT_BASE",
    8: "AT_FLAGS",
    9: "AT_ENTRY",
    10: "AT_NOTELF",
    11: "AT_UID",
    12: "AT_EUID",
    13: "AT_GID",
    14: "AT_EGID",
    15: "AT_PLATFORM",
    16: "AT_HWCAP",
    17: "AT_CLKTCK",
    23: "AT_SECURE",
    24: "AT_BASE_PLATFORM",
    25: "AT_RANDOM",
    26: "AT_HWCAP2",
    27: "AT_RSEQ_FEATURE_SIZE",
    28: "AT_RSEQ_ALIGN",
    29: "AT_HWCAP3",
    30: "AT_HWCAP4",
    31: "AT_EXECFN",
    33: "AT_SYSINFO_EHDR",
    51: "AT_MINSIGSTKSZ",
}
"""Types of auxiliary vector entries, getauxval(3)."""

_TEXTS = ("AT_EXECFN", "AT_PLATFORM", "AT_BASE_PLATFORM")


def run(
    program: str,
    argv: Sequence[str] | None = None,
    environment: Dictionary[str, str] | None = None,
    *,
    memory: int | str = "256MiB",
    link: bool = False,
    aslr: bool = False,
    seed: int = 0,
) -> ExecReport:
    """Exec *program* on a new machine with *memory* of RAM and look at it.

    *environment* is this process's by default; *link* maps the libraries that the program needs, as ld.so would;
    *aslr* places everything at addresses that *seed* chooses. Raises SyscallError if the program can't be executed.
    """
    path = find_program(program)
    arguments = list(argv) if argv is not None else [program]
    with Machine(memory=memory, aslr=aslr, seed=seed) as machine:
        process = machine.spawn(path, arguments, dict(os.environ if environment is None else environment), link=link)
        return ExecReport(
            program=path,
            argv=arguments,
            pid=process.pid,
            maps=list(process.maps()),
            rss=process.rss_by_kind,
            pss=process.pss_by_kind,
            uss=process.uss,
            page_table_bytes=process.page_tables,
            stack_pointer=process.stack_pointer,
            entry_point=process.entry_point,
            auxv=[
                (kind, AUX_NAMES.get(kind, "?"), value, _pointed_at(process.read, AUX_NAMES.get(kind), value))
                for kind, value in process.auxv
            ],
            faults=machine.faults,
            maps_text=machine.procfs.read(f"{process.pid}/maps").decode(errors="surrogateescape"),
        )


def _pointed_at(read: Callable[[int, int], bytes], name: str | None, address: int) -> str:
    """What the value of an entry points at, for those that point at a text or at bytes."""
    if name == "AT_RANDOM":
        return read(address, 16).hex()
    if name not in _TEXTS or not address:
        return ""
    text = b""
    while b"\0" not in text:
        text += read(address + len(text), 1)
    return os.fsdecode(text[:-1])
