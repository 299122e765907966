"""A program in an emulated machine against the same program on this kernel, stopped at its first instruction: mappings
as /proc shows them, device and inode included, registers, and what is mapped.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from linux import execstop

from vmemu import ForkMode, Machine, Prot

pytestmark = [pytest.mark.linux, pytest.mark.usefixtures("stoppable")]


def same(machine: Machine, program: str) -> None:
    argv, envp = [program.encode(), b"an argument"], [b"PATH=/bin", b"X="]
    real = execstop.record(program, argv, envp)
    process = machine.spawn(program, argv, envp)
    assert execstop.parse_maps(machine.procfs.read(f"{process.pid}/maps")) == real.maps, program
    assert (process.entry_point, process.stack_pointer) == (real.rip, real.rsp), program
    assert process.comm.encode() == real.comm
    assert len(process.read(process.stack_pointer, len(real.stack))) == len(real.stack)
    for mapping in process.maps():
        if mapping.name.startswith("/"):
            st = os.stat(mapping.name)
            assert (mapping.device, mapping.inode) == ((os.major(st.st_dev), os.minor(st.st_dev)), st.st_ino)
            if not mapping.prot & Prot.WRITE:
                data = Path(mapping.name).read_bytes()[mapping.offset : mapping.offset + mapping.size]
                assert process.read(mapping.start, len(data)) == data
        elif not mapping.name:
            assert process.read(mapping.start, min(mapping.size, 1 << 20)) == bytes(min(mapping.size, 1 << 20)), program
    machine.verify()
    child = process.fork(ForkMode.ON_DEMAND)
    assert child.read(real.rsp, 8) == (2).to_bytes(8, "little")
    child.exit()
    process.exit()


def test_sample_of_installed_programs() -> None:
    # Linux switches randomisation on again for set-ID programs
    programs = [path for path in execstop.elf_programs() if not os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID)]
    sample = random.Random(1).sample(programs, min(40, len(programs)))
    with Machine(memory="512MiB") as machine:
        free = machine.meminfo().free
        for program in sample:
            same(machine, program)
        assert machine.meminfo().free == free


@pytest.mark.parametrize("flags", [["-static"], ["-static-pie"], ["-no-pie"], ["-pie"]], ids=lambda flags: flags[0])
def test_compiled(flags: list[str], tmp_path: Path) -> None:
    """bss within a page, bss beyond it, data: all kinds of program."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    source = tmp_path / "a.c"
    source.write_text("char data[5000] = {1, 2, 3}; char bss[70000]; int main(void) { return data[0] + bss[1]; }")
    program = tmp_path / "a"
    done = subprocess.run(["gcc", *flags, "-o", program, source], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"gcc {flags[0]}: {done.stderr.splitlines()[-1]}")
    with Machine(memory="64MiB") as machine:
        same(machine, str(program))


def test_script(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh -e\ntrue\n")
    script.chmod(0o755)
    with Machine(memory="64MiB") as machine:
        real = execstop.record(str(script), [b"name", b"x"], [])
        process = machine.spawn(str(script), [b"name", b"x"], [])
        assert execstop.parse_maps(machine.procfs.read(f"{process.pid}/maps")) == real.maps
        assert (process.entry_point, process.stack_pointer) == (real.rip, real.rsp)
        assert process.argv == (b"/bin/sh", b"-e", str(script).encode(), b"x")
