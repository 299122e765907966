"""What needs a process of its own, so that its host memory is only that of the work: `python -m bench.subject NAME`.

Each subject prints one JSON object: nanoseconds of this thread's CPU clock, bytes of host memory (growth of the
resident size), counts.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.rows.common import GIB, MIB, PAGE, PRIVATE, RW, cpu_clock, expect, map_small, resident
from vmemu import ForkMode, Machine, Overcommit, Process

__all__ = ["run"]

ROOT = Path(__file__).resolve().parent.parent


def host_bytes() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def held_bytes() -> tuple[int, int]:
    """Resident bytes of this process: those that stay, those that the host may take (MADV_FREE: LazyFree)."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    )
    resident, lazy = (int(fields[name].split()[0]) << 10 for name in ("Rss", "LazyFree"))
    return resident - lazy, lazy


def million(n: int) -> dict[str, float]:
    """*n* children on demand, all alive; some write a page; all exit."""
    writers = min(n, 10_000)
    with Machine(memory="4GiB", overcommit=Overcommit.ALWAYS) as m:
        parent = m.spawn()
        (address, *_) = map_small(parent)
        parent.write(address, b"parent")
        gc.collect()
        before = host_bytes()
        start = cpu_clock()
        children = parent.fork_many(n, mode=ForkMode.ON_DEMAND)
        forked = cpu_clock() - start
        held = host_bytes() - before
        assert len(children) == n and len(m.processes) == n + 2
        assert children[n - 1].read(address, 6) == b"parent"
        writing = [children[i * (n // writers)] for i in range(writers)]
        before_faults = m.faults
        start = cpu_clock()
        for child in writing:
            child.write(address, b"child!")
        written = cpu_clock() - start
        expect(m.faults - before_faults, cow_copy=writers)
        del child
        assert parent.read(address, 6) == b"parent" and writing[-1].read(address, 6) == b"child!"
        start = cpu_clock()
        m.verify()
        verified = cpu_clock() - start
        start = cpu_clock()
        for child in children:
            child.exit(0)
        exited = cpu_clock() - start
        start = cpu_clock()
        for _ in range(n):
            parent.wait()
        waited = cpu_clock() - start
        assert len(m.processes) == 2
        m.verify()
        return {
            "fork_ns": forked / n,
            "write_ns": written / writers,
            "exit_ns": exited / n,
            "wait_ns": waited / n,
            "verify_ns": verified,
            "host_bytes": held / n,
        }


def alive(n: int, make: Callable[[Process, int], Sequence[Process]]) -> dict[str, float]:
    """*n* live processes under COW, from frames that as many had before: made, ended, and made again."""
    with Machine(memory="8GiB", overcommit=Overcommit.ALWAYS) as m:
        parent = m.spawn()
        (address, *_) = map_small(parent)
        parent.write(address, b"parent")
        gc.collect()
        before = host_bytes()
        children = make(parent, n)
        held = host_bytes() - before
        m.exit_many(children)
        for _ in range(n):
            parent.wait()
        del children
        gc.collect()
        start = cpu_clock()
        children = make(parent, n)
        spent = cpu_clock() - start
        assert len(m.processes) == n + 2 and children[n - 1].read(address, 6) == b"parent"
        m.verify()
    return {"fork_ns": spent / n, "host_bytes": held / n}


def alive_single(n: int) -> dict[str, float]:
    """By single calls."""
    return alive(n, lambda parent, n: [parent.fork() for _ in range(n)])


def alive_many(n: int) -> dict[str, float]:
    """By one."""
    return alive(n, lambda parent, n: parent.fork_many(n))


def terabyte(_: int) -> dict[str, float]:
    """A machine of 1 TiB without contents: boot; 64 GiB resident; copies and zero pages over 256 MiB."""
    before = host_bytes()
    start = cpu_clock()
    with Machine(memory="1TiB", contents=False, overcommit=Overcommit.ALWAYS) as m:
        booted = cpu_clock() - start
        process = m.spawn()
        address = process.mmap(None, 64 * GIB, RW, PRIVATE)
        start = cpu_clock()
        faults = process.touch(address, 64 * GIB, write=True)
        filled = cpu_clock() - start
        expect(faults, zero_fill=64 * GIB // PAGE)
        held = host_bytes() - before
        assert process.rss == 64 * GIB
        tables = m.meminfo().page_tables
        process.exit(0)
        m.verify()
    return {
        "boot_ns": booted,
        "fill_ns": filled / (64 * GIB // PAGE),
        "host_bytes": held,
        "bookkeeping_bytes": (held - tables) / (64 * GIB // PAGE),
    }


def returned(size: int) -> dict[str, float]:
    """*size* bytes (4 GiB if 0) written and unmapped again, twice: what the host still holds after each."""
    size = size or 4 * GIB
    with Machine(memory=2 * size) as m:
        process = m.spawn()
        before, _ = held_bytes()
        found: dict[str, float] = {}
        for name in ("first", "again"):
            address = process.mmap(None, size, RW, PRIVATE)
            for at in range(0, size, 64 * MIB):
                process.write(address + at, bytes(range(1, 65)) * MIB)
            found[f"{name}_full_bytes"] = held_bytes()[0] - before
            process.munmap(address, size)
            left, found[f"{name}_lazy_bytes"] = held_bytes()
            found[f"{name}_left_bytes"] = left - before
        m.verify()
        resident(process, MIB)
    return found


SUBJECTS: dict[str, Callable[[int], dict[str, float]]] = {
    "million": million,
    "alive.single": alive_single,
    "alive.many": alive_many,
    "terabyte": terabyte,
    "returned": returned,
}


def run(name: str, n: int = 0) -> dict[str, Any]:
    """A subject's figures from a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.subject", name, str(n)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise RuntimeError(f"{name}: {last[0]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(SUBJECTS[sys.argv[1]](int(sys.argv[2]))))
