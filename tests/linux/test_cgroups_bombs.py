"""Fork bombs that dirty what they share, one step at a time under memory.max, in this kernel and in ours: who is killed
in which order, and the peak. `python tests/linux/test_cgroups_bombs.py` prints the comparison as a table."""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linux.cgroups_host import Bomb, Group, build_bomb, controller, group

from vmemu import Machine, Map, Process, ProcessKilled, Prot

pytestmark = pytest.mark.linux

PAGE = 4096
RW = Prot.READ | Prot.WRITE
LAZY = Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE
LIMIT = 80 << 20
SLOTS = 24
CLEAR = 500
"""Pages by which the one to be killed has more points than the next: what the kernel counts inexactly is less."""
ROOM = 1200
"""Pages that a step leaves below the limit unless it kills: the kernel's own memory is less."""
Step = tuple[int, str, int]


class Outcome(NamedTuple):
    """Of one bomb."""

    steps: list[Step]
    victims: list[int]
    """By slot, in order."""
    peak: int
    usage: list[int]
    """Bytes of processes' pages after each step."""
    kernel: int = 0
    """What was the kernel's own memory at most."""


def emulated(seed: int) -> Outcome | None:
    """A random bomb in an emulated group, None unless it is clear who is to be killed and when."""
    rng, steps, victims = random.Random(seed), [], []
    with Machine("512MiB", oom="kill", overcommit=1) as m:
        jail = m.cgroups.create("jail", memory_max=LIMIT)
        first = m.spawn()
        first.cgroup = jail
        table: dict[int, Process] = {0: first}
        usage: list[int] = []
        heap = rng.randrange(500, 1500)
        at = first.mmap(None, heap * PAGE, RW, LAZY)
        first.touch(at, heap * PAGE, write=True)
        steps.append((0, "t", heap))
        usage.append(jail.memory_current - jail.memory_stat["kernel"])
        while len(victims) < 4 and len(steps) < 60:
            alive = [slot for slot in table if table[slot].state == "running"]
            slot, what = rng.choice(alive) if alive else 0, rng.choice("fttdd")
            free = [s for s in range(SLOTS) if s not in table]
            if not alive or (what == "f" and not free):
                break
            number = free[0] if what == "f" else rng.randrange(heap) if what == "d" else rng.randrange(200, 6000)
            steps.append((slot, what, number))
            p, seen = table[slot], len(m.oom_reports)
            with contextlib.suppress(ProcessKilled):
                if what == "f":
                    table[number] = p.fork()
                elif what == "d":
                    p.touch(at, number * PAGE, write=True)
                else:
                    p.touch(p.mmap(None, number * PAGE, RW, LAZY), number * PAGE, write=True)
            for report in m.oom_reports[seen:]:
                points = sorted((c.points for c in report.candidates or () if c.points is not None), reverse=True)
                if len(points) > 1 and points[0] - points[1] < CLEAR:
                    return None
                assert report.victim
                victims.append(next(s for s, q in table.items() if q.pid == report.victim.pid))
            if LIMIT - jail.memory_current < ROOM * PAGE:
                return None
            usage.append(jail.memory_current - jail.memory_stat["kernel"])
        m.verify()
        return Outcome(steps, victims, jail.memory_peak, usage) if len(victims) >= 3 else None


def clear_bombs(n: int) -> list[tuple[int, Outcome]]:
    """The first seeds whose outcome is clear."""
    found: list[tuple[int, Outcome]] = []
    seed = 0
    while len(found) < n:
        outcome = emulated(seed)
        if outcome is not None:
            found.append((seed, outcome))
        seed += 1
    return found


def real(where: Group, program: Path, steps: list[Step]) -> Outcome:
    """The same steps in a group of this kernel."""
    v2 = where.version == 2
    where.write("memory.max" if v2 else "memory.limit_in_bytes", LIMIT)
    bomb = Bomb(program, where, SLOTS)
    victims: list[int] = []
    kernel, usage = 0, []
    try:
        for slot, what, number in steps:
            assert bomb.step(slot, what, number) or slot in bomb.dead()
            kills = where.values("memory.events" if v2 else "memory.oom_control")["oom_kill"]
            end = time.monotonic() + 20
            while len(victims) < kills and time.monotonic() < end:  # a victim takes its time to die
                victims += sorted(bomb.dead() - set(victims))
            own = where.values("memory.stat")["kernel"] if v2 else where.number("memory.kmem.usage_in_bytes")
            usage.append(where.number("memory.current" if v2 else "memory.usage_in_bytes") - own)
            kernel = max(kernel, own)
        return Outcome(
            steps, victims, where.number("memory.peak" if v2 else "memory.max_usage_in_bytes"), usage, kernel
        )
    finally:
        bomb.close()


def apart(ours: Outcome, theirs: Outcome) -> float:
    """The largest difference of usage after a step, as a part of the limit."""
    return max(abs(a - b) for a, b in zip(ours.usage, theirs.usage, strict=True)) / LIMIT


def unfit() -> str | None:
    """Why it can't be compared here."""
    where = controller("memory")
    if isinstance(where, str):
        return where
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        return "with swap the victims depend on what is swapped out"
    return None


@pytest.mark.parametrize("seed", [4, 20, 41, 113, 224, 314, 400, 460])
def test_victims_and_peak(seed: int, tmp_path: Path) -> None:
    """The same processes are killed in the same order; peaks, and usage after each step, agree within a tenth."""
    why, program, where = unfit(), build_bomb(tmp_path), controller("memory")
    if why is not None or isinstance(where, str):
        pytest.skip(why or str(where))
    if program is None:
        pytest.skip("no compiler that links statically")
    ours = emulated(seed)
    assert ours is not None
    with group("memory", where) as one:
        theirs = real(one, program, ours.steps)
    assert ours.victims == theirs.victims, seed
    assert ours.peak == pytest.approx(theirs.peak - theirs.kernel, rel=0.1)
    assert apart(ours, theirs) < 0.1


def table() -> None:
    """Prints the comparison."""
    where = controller("memory")
    if (why := unfit()) is not None or isinstance(where, str):
        sys.exit(why)
    with tempfile.TemporaryDirectory() as directory:
        program = build_bomb(Path(directory))
        if program is None:
            sys.exit("no compiler that links statically")
        print("| bomb | steps | forks | victims here | of the kernel | peak here | of the kernel | its own | apart |")
        for seed, ours in clear_bombs(int(sys.argv[1]) if len(sys.argv) > 1 else 8):
            with group("memory", where) as one:
                theirs = real(one, program, ours.steps)
            forks = sum(what == "f" for _, what, _ in ours.steps)
            peaks = " | ".join(f"{n / 1e6:.1f} MB" for n in (ours.peak, theirs.peak, theirs.kernel))
            victims = " | ".join(" ".join(map(str, v)) for v in (ours.victims, theirs.victims))
            far = f"{100 * apart(ours, theirs):.1f} %"
            print(f"| {seed} | {len(ours.steps)} | {forks} | {victims} | {peaks} | {far} |")


if __name__ == "__main__":
    table()
