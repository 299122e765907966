"""What /proc says of a program at its first instruction, here and on this kernel: memory, strings, vector."""

from __future__ import annotations

import os
import random
import re
import stat
from pathlib import Path

import pytest
from linux import execstop
from procfs.shape import values

from vmemu import Machine

FILES = ("status", "smaps_rollup", "statm", "maps", "cmdline", "environ", "auxv", "comm")
MEMORY = (
    "VmPeak VmSize VmLck VmPin VmHWM VmRSS RssAnon RssFile RssShmem VmData VmStk VmExe VmLib VmPTE VmSwap HugetlbPages"
).split()
ROLLUP = "Rss Pss_Anon Pss_Shmem Referenced Anonymous Private_Dirty AnonHugePages Swap Locked".split()

pytestmark = [pytest.mark.linux, pytest.mark.usefixtures("stoppable")]


def kernels_own(maps: bytes, names: str) -> int:
    """Bytes of mappings that an emulated process has not: the vdso and its data."""
    found = re.findall(rf"^(\w+)-(\w+) .*\[(?:{names})\]$".encode(), maps, re.MULTILINE)
    return sum(int(end, 16) - int(start, 16) for start, end in found)


def real_files(program: str, argv: list[bytes], envp: list[bytes], patch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Files of a real process that is stopped at its first instruction."""
    texts: dict[str, bytes] = {}
    inspect = execstop._inspect

    def look(pid: int) -> execstop.Stopped:
        texts.update((name, Path(f"/proc/{pid}/{name}").read_bytes()) for name in FILES)
        return inspect(pid)

    with patch.context() as once:
        once.setattr(execstop, "_inspect", look)
        execstop.record(program, argv, envp)
    return texts


def test_programs_at_their_first_instruction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of memory in status and smaps_rollup, page tables included, and the strings."""
    programs = [path for path in execstop.elf_programs() if not os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID)]
    with Machine(memory="512MiB") as m:
        for program in random.Random(7).sample(programs, min(15, len(programs))):
            argv, envp = [program.encode(), b"an argument", b""], [b"PATH=/bin", b"X="]
            real = real_files(program, argv, envp, monkeypatch)
            p = m.spawn(program, argv, envp)
            mine = {name: m.procfs.read(f"{p.pid}/{name}") for name in FILES}
            want, vdso = values(real["status"]), kernels_own(real["maps"], "vdso")
            for key in ("VmPeak", "VmSize"):
                want[key] -= kernels_own(real["maps"], r"vdso|vvar\w*")
            want["VmLib"] -= vdso
            got = values(mine["status"])
            assert {key: got[key] for key in MEMORY} == {key: want[key] for key in MEMORY}, program
            got, want = values(mine["smaps_rollup"]), values(real["smaps_rollup"])
            assert {key: got[key] for key in ROLLUP} == {key: want[key] for key in ROLLUP}, program
            for name in ("cmdline", "environ", "comm"):
                assert mine[name] == real[name], program
            assert len(mine["auxv"]) == len(real["auxv"]) - 16, program  # without AT_SYSINFO_EHDR
            p.exit()
