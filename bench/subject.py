"""What needs a process of its own, so that its host memory is only that of the work: `python -m bench.subject NAME`.

Each subject prints one JSON object: nanoseconds, bytes of host memory (growth of the resident size), counts.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.rows.common import GIB, MIB, PAGE, PRIVATE, RW, clock, cpu_clock, expect, map_small, resident
from vmemu import ForkMode, Machine, Overcommit

__all__ = ["run"]

ROOT = Path(__file__).resolve().parent.parent


def host_bytes() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def million(n: int) -> dict[str, float]:
    """*n* children on demand, all alive; some write a page; all exit."""
    writers = min(n, 10_000)
    with Machine(memory="4GiB", overcommit=Overcommit.ALWAYS) as m:
        parent = m.spawn()
        (address, *_) = map_small(parent)
        parent.write(address, b"parent")
        gc.collect()
        before = host_bytes()
        start = clock()
        children = parent.fork_many(n, mode=ForkMode.ON_DEMAND)
        forked = clock() - start
        held = host_bytes() - before
        assert len(children) == n and len(m.processes) == n + 2
        assert children[n - 1].read(address, 6) == b"parent"
        writing = [children[i * (n // writers)] for i in range(writers)]
        before_faults = m.faults
        start = clock()
        for child in writing:
            child.write(address, b"child!")
        written = clock() - start
        expect(m.faults - before_faults, cow_copy=writers)
        del child
        assert parent.read(address, 6) == b"parent" and writing[-1].read(address, 6) == b"child!"
        start = clock()
        m.verify()
        verified = clock() - start
        start = clock()
        for child in children:
            child.exit(0)
        exited = clock() - start
        start = clock()
        for _ in range(n):
            parent.wait()
        waited = clock() - start
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


def alive(n: int) -> dict[str, float]:
    """*n* live processes under COW: made by single calls, and by one."""
    found: dict[str, float] = {}
    for name in ("single", "many"):
        with Machine(memory="8GiB", overcommit=Overcommit.ALWAYS) as m:
            parent = m.spawn()
            (address, *_) = map_small(parent)
            parent.write(address, b"parent")
            for child in parent.fork_many(100):
                child.exit(0)
                parent.wait()
            gc.collect()
            before = host_bytes()
            start = cpu_clock()
            children = [parent.fork() for _ in range(n)] if name == "single" else parent.fork_many(n)
            found[f"{name}_ns"] = (cpu_clock() - start) / n
            found[f"{name}_host_bytes"] = (host_bytes() - before) / n
            assert len(m.processes) == n + 2 and children[n - 1].read(address, 6) == b"parent"
            m.verify()
    return found


def terabyte(_: int) -> dict[str, float]:
    """A machine of 1 TiB without contents: boot; 64 GiB resident; copies and zero pages over 256 MiB."""
    before = host_bytes()
    start = clock()
    with Machine(memory="1TiB", contents=False, overcommit=Overcommit.ALWAYS) as m:
        booted = clock() - start
        process = m.spawn()
        address = process.mmap(None, 64 * GIB, RW, PRIVATE)
        start = clock()
        faults = process.touch(address, 64 * GIB, write=True)
        filled = clock() - start
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


def returned(_: int) -> dict[str, float]:
    """4 GiB written and unmapped again: what the host still holds."""
    with Machine(memory="8GiB") as m:
        process = m.spawn()
        before = host_bytes()
        address = process.mmap(None, 4 * GIB, RW, PRIVATE)
        for at in range(0, 4 * GIB, 64 * MIB):
            process.write(address + at, bytes(range(1, 65)) * MIB)
        full = host_bytes() - before
        process.munmap(address, 4 * GIB)
        left = host_bytes() - before
        m.verify()
        resident(process, MIB)
    return {"full_bytes": full, "left_bytes": left}


SUBJECTS: dict[str, Callable[[int], dict[str, float]]] = {
    "million": million,
    "alive": alive,
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
