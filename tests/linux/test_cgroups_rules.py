"""Who may be where in a tree that hands a domain controller on: random steps in this kernel's cgroup v2 and in ours."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from linux.cgroups_host import mounts

from vmemu import Machine, SyscallError

pytestmark = pytest.mark.linux

DOMAINS = ("memory", "hugetlb", "io", "rdma", "misc", "dmem")
"""Controllers that no thread can have for itself."""
PATHS = ("a", "a/b", "a/b/c", "a/d")


@pytest.fixture
def tree() -> Iterator[tuple[Path, str]]:
    """A directory whose subtree hands a domain controller on, and which."""
    if os.geteuid():
        pytest.skip("needs root")
    found = None
    for kind, directory, _ in mounts():
        at = Path(directory)
        if kind == "cgroup2" and os.access(at / "cgroup.procs", os.W_OK):
            known = (at / "cgroup.controllers").read_text().split()
            found = next(((at, name) for name in DOMAINS if name in known), found)
    if found is None:
        pytest.skip("no cgroup v2 that is writable has a domain controller")
    base, name = found
    enabled = name not in (base / "cgroup.subtree_control").read_text().split()
    if enabled:
        (base / "cgroup.subtree_control").write_text(f"+{name}")
    top = base / f"vmemu-rules-{os.getpid()}"
    top.mkdir()
    try:
        yield top, name
    finally:
        for directory in (*(top / path for path in sorted(PATHS, key=len, reverse=True)), top):
            with contextlib.suppress(OSError):
                directory.rmdir()
        if enabled:
            with contextlib.suppress(OSError):
                (base / "cgroup.subtree_control").write_text(f"-{name}")


@pytest.mark.parametrize("seed", range(4))
def test_internal_processes(tree: tuple[Path, str], seed: int) -> None:
    """Groups made and removed, processes moved, the controller handed on and taken back: the same errno each time."""
    (top, name), rng = tree, random.Random(seed)
    hands_on = top / "cgroup.subtree_control"
    hands_on.write_text(f"+{name}")
    hosts = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    outcomes: dict[str, set[int]] = {}
    try:
        with Machine("16MiB") as m:
            m.cgroups.create("top").subtree_control = {"memory"}
            ours = [m.spawn() for _ in hosts]
            for _ in range(800):
                path, what = (
                    rng.choice(PATHS),
                    rng.choice(("mkdir", "mkdir", "rmdir", "move", "move", "leave", "+", "-")),
                )
                who = rng.randrange(len(hosts))
                real, emulated = top / path, f"top/{path}"
                if what == "+" and not hands(real.parent, name):
                    continue  # there it has no such controller
                outcomes.setdefault(what, set()).add(compare(m, ours[who], hosts[who].pid, what, real, emulated, name))
            assert all(outcomes[what] >= {0, 16} for what in ("rmdir", "move", "+")), outcomes
            m.verify()
    finally:
        for host in hosts:
            host.kill()
            host.wait()


def hands(group: Path, name: str) -> bool:
    """The group hands the controller on."""
    try:
        return name in (group / "cgroup.subtree_control").read_text().split()
    except FileNotFoundError:
        return False


def compare(m: Machine, p: object, pid: int, what: str, real: Path, path: str, name: str) -> int:
    """One step in both -> its errno, 0 for none."""
    results = []
    for emulated in (False, True):
        try:
            if what == "mkdir":
                m.cgroups.create(path) if emulated else real.mkdir()
            elif what == "rmdir":
                m.cgroups.remove(path) if emulated else real.rmdir()
            elif what == "leave":
                where = real.parents[len(path.split("/")) - 1] / "cgroup.procs"
                setattr(p, "cgroup", "/") if emulated else where.write_text(str(pid))
            elif what == "move":
                setattr(p, "cgroup", path) if emulated else (real / "cgroup.procs").write_text(str(pid))
            elif emulated:
                m.cgroupfs.write(f"{path}/cgroup.subtree_control", f"{what}memory")
            else:
                with (real / "cgroup.subtree_control").open("r+") as file:
                    file.write(f"{what}{name}")
        except (SyscallError, OSError) as error:
            results.append(error.errno)
        else:
            results.append(0)
    assert results[0] == results[1], (what, path, results)
    return results[0] or 0
