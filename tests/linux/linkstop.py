"""Start a program under the host's ld.so, stopped at its entry point, and compare with `plan(..., link=True)`.

    python tests/linux/linkstop.py --all            # every ELF program in /usr/bin: prints N of M equal
    python tests/linux/linkstop.py /bin/ls          # this one; prints what differs

Compared is which files are mapped and, file by file, the layout relative to its start. Absolute addresses differ by
what ld.so maps for its own use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from linux import execstop

from vmemu import loader
from vmemu.errors import SyscallError

VDSO_SIZE = 32 << 10
"""Bytes of vvar and vdso on Linux 6.18."""

Files = dict[str, list[tuple[int, int, str, int]]]


def files(maps: Sequence[execstop.Map]) -> Files:
    """Path -> (start, end, permissions, offset) of its mappings, relative to the first."""
    found: Files = {}
    for start, end, permissions, offset, name in maps:
        if name.startswith("/"):
            found.setdefault(name, []).append((start, end, permissions, offset))
    return {
        name: [
            (start - lines[0][0], end - lines[0][0], permissions, offset) for start, end, permissions, offset in lines
        ]
        for name, lines in found.items()
    }


def differences(real: execstop.Stopped, plan: loader.ExecPlan) -> list[str]:
    """What *plan* says otherwise than ld.so did; empty if they are equal."""
    theirs, ours = files(real.maps), files(execstop.planned_maps(plan))
    found = [f"only mapped by {'ld.so' if name in theirs else 'plan'}: {name}" for name in sorted({*theirs} ^ {*ours})]
    for name in theirs:
        for line in sorted({*theirs[name]} ^ {*ours.get(name, theirs[name])}):
            start, end, permissions, offset = line
            side = "ld.so" if line in theirs[name] else "plan "
            found.append(f"{name}, only {side}: +{start:x}-+{end:x} {permissions} {offset:08x}")
    return found


def check(program: str, envp: Sequence[bytes] = (b"PATH=/usr/bin:/bin",)) -> list[str]:
    """Start *program* for real and on paper; what differs."""
    real = execstop.record(program, [os.fsencode(program)], envp, started=True)
    try:
        layout = execstop.layout_of(real, vdso_size=VDSO_SIZE)
        plan = loader.plan(program, [os.fsencode(program)], envp, layout=layout, link=True)
    except SyscallError as error:
        return [f"plan: {error}"]
    return differences(real, plan)


def main(arguments: Sequence[str]) -> int:
    """Compare the programs named, or all of /usr/bin with --all; exit status 1 if one differs."""
    why = execstop.usable()
    if why is not None:
        print(why)
        return 2
    programs = execstop.elf_programs() if list(arguments) == ["--all"] else list(arguments)
    equal = 0
    for program in programs:
        try:
            wrong = check(program)
        except OSError as error:
            wrong = [f"host: {error}"]
        equal += not wrong
        for line in wrong:
            print(f"{program}: {line}")
    print(f"{equal} of {len(programs)} equal")
    return int(equal != len(programs))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
