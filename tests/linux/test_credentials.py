"""Random changes of user and group in a process of this host and in vmemu: the same errno, ids and capabilities."""

from __future__ import annotations

import ctypes
import json
import os
import random
from typing import Any

import pytest
from machines import machine

from vmemu import SyscallError

pytestmark = pytest.mark.linux
IDS = (0, 0, 1000, 1001, -1)
CALLS = {"setuid": 1, "setreuid": 2, "setresuid": 3, "setfsuid": 1, "setgid": 1, "setregid": 2, "setresgid": 3}


def script(seed: int) -> list[tuple[str, list[int]]]:
    rng = random.Random(seed)
    names = [rng.choice(list(CALLS)) for _ in range(12)]
    return [(name, [rng.choice(IDS) for _ in range(CALLS[name])]) for name in names]


def on_this_host(calls: list[tuple[str, list[int]]]) -> list[Any]:
    """What a child of ours saw: before anything, then after each call."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            seen = [[0, *_status()]]
            for name, args in calls:
                failed = getattr(libc, name)(*args) < 0
                seen.append([ctypes.get_errno() if failed else 0, *_status()])
            os.write(writer, json.dumps(seen).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return list(json.loads(text))


def _status() -> list[Any]:
    """Real, effective, saved and file system ids of user and group; permitted and effective capabilities."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    ids = [int(word) for key in ("Uid", "Gid") for word in fields[key].split()]
    return [*ids, int(fields["CapPrm"], 16), int(fields["CapEff"], 16)]


@pytest.mark.parametrize("seed", range(40))
def test_same_as_this_kernel(seed: int) -> None:
    if os.getuid():
        pytest.skip("needs root")
    calls = script(seed)
    first, *steps = on_this_host(calls)
    with machine() as m:
        p = m.spawn()
        p.capset(first[-1], first[-2])  # a container's root may have less than all
        for (name, args), expected in zip(calls, steps, strict=True):
            number = 0
            try:
                getattr(p, name)(*args)
            except SyscallError as error:
                number = error.errno or 0
            c = p.credentials
            ids = [c.uid, c.euid, c.suid, c.fsuid, c.gid, c.egid, c.sgid, c.fsgid]
            if name == "setfsuid":
                expected[0] = 0  # it returns the id before, which may look like -1
            assert [number, *ids, c.permitted, c.effective] == expected, (name, args)
