"""Control groups where memory is reclaimed: memory.swap.max and what it counts, memory.max and memory.high, before
anybody is killed."""

from __future__ import annotations

import hashlib

import pytest
from machines import ANON, PAGE, RW, machine

from vmemu import ForkMode, Machine, OutOfMemory, Process, ProcessKilled
from vmemu.memory.reclaim import shrink

MIB = 1 << 20


def page_of(i: int, tag: int = 0) -> bytes:
    return hashlib.blake2b(b"%d %d" % (i, tag)).digest() * (PAGE // 64)


def fill(p: Process, npages: int, tag: int = 0) -> int:
    a = p.mmap(None, npages * PAGE, RW, ANON)
    for i in range(npages):
        p.write(a + i * PAGE, page_of(i, tag))
    return a


def intact(p: Process, a: int, npages: int, tag: int = 0) -> bool:
    return all(p.read(a + i * PAGE, PAGE) == page_of(i, tag) for i in range(npages))


def jailed(m: Machine, **limits: object) -> Process:
    group = m.cgroups.create("jail", **limits)  # type: ignore[arg-type]
    p = m.spawn()
    p.cgroup = group
    return p


def test_memory_max_swaps_before_it_kills() -> None:
    """A group with three times what it may have in memory, on a machine that has plenty; others keep theirs."""
    with machine(memory="64MiB", swap="16MiB", oom="kill") as m:
        other = m.spawn()
        theirs = fill(other, 200, 7)
        p = jailed(m, memory_max="1MiB")
        a = fill(p, 768)
        jail = m.cgroups["jail"]
        assert intact(p, a, 768)
        assert jail.memory_current <= MIB == jail.memory_max
        assert jail.memory_peak == MIB
        assert jail.memory_swap_current >= 2 * MIB
        assert jail.memory_swap_peak >= jail.memory_swap_current
        assert jail.memory_events["max"] > 0 and jail.memory_events["oom"] == 0
        assert not m.oom_reports
        assert not other.faults.swap_in and intact(other, theirs, 200, 7)
        assert m.cgroupfs.read("jail/memory.swap.current") == b"%d\n" % jail.memory_swap_current
        p.exit(0)
        assert jail.memory_swap_current == 0 < jail.memory_swap_peak


def test_swap_max_is_kept() -> None:
    """When the group has its slots its anonymous memory stays, and its process is killed."""
    with machine(memory="64MiB", swap="16MiB", oom="kill") as m:
        p = jailed(m, memory_max="1MiB", memory_swap_max="512KiB")
        jail = m.cgroups["jail"]
        with pytest.raises(ProcessKilled):
            fill(p, 768)
        assert jail.memory_swap_peak == 512 * 1024 == jail.memory_swap_max
        assert jail.memory_events["oom_kill"] == 1
        assert jail.memory_swap_events["max"] >= 1 and jail.memory_swap_events["fail"] >= 1
        (report,) = m.oom_reports
        assert report.total_pages == 256 + 128
        assert report.victim.swapents == 128  # type: ignore[union-attr]
        assert report.victim.points == report.victim.rss + 128 + report.victim.pgtables_bytes // PAGE  # type: ignore[union-attr]
        assert jail.memory_swap_current == 0
        lines = dict(line.split() for line in m.cgroupfs.read("jail/memory.swap.events").splitlines())
        assert lines[b"high"] == b"0" and int(lines[b"max"]) == jail.memory_swap_events["max"]


def test_no_swap_for_a_group() -> None:
    """memory.swap.max 0: as without swap, for it alone; nothing is tried, so nothing is counted."""
    with machine(memory="64MiB", swap="16MiB") as m:
        p = jailed(m, memory_max="1MiB", memory_swap_max=0)
        with pytest.raises(OutOfMemory):
            fill(p, 300)
        jail = m.cgroups["jail"]
        assert (jail.memory_swap_peak, jail.memory_swap_events) == (0, {"high": 0, "max": 0, "fail": 0})
        other = m.spawn()
        a = fill(other, 64)
        assert shrink(m._kernel, 32) >= 32
        assert intact(other, a, 64)


def test_limits_above_count() -> None:
    """A limit of the parent's holds for both children; counters are hierarchical, and its when a child is gone."""
    with machine(memory="64MiB", swap="16MiB") as m:
        top = m.cgroups.create("top", memory_swap_max="256KiB")
        ps = []
        for name in ("a", "b"):
            group = m.cgroups.create(name, parent=top)
            p = m.spawn()
            p.cgroup = group
            fill(p, 64)
            ps.append(p)
        assert shrink(m._kernel, 1000, top.number) == 64
        assert top.memory_swap_current == 256 * 1024 == sum(child.memory_swap_current for child in top.children)
        refused = [child.memory_swap_events["max"] for child in top.children]
        assert refused[0] == 0 < refused[1] == top.memory_swap_events["max"]
        a, b = top.children
        before = b.memory_swap_current
        ps[0].cgroup = top
        m.cgroups.remove(a)
        m.verify()
        assert top.memory_swap_current == 256 * 1024
        ps[0].exit(0)
        assert top.memory_swap_current == before == b.memory_swap_current


def test_who_paid_pays_again() -> None:
    """A page that is read back is charged to the group of its slot, not to the reader's; fork shares slots."""
    with machine(memory="64MiB", swap="16MiB") as m:
        p = jailed(m)
        a = fill(p, 32)
        jail = m.cgroups["jail"]
        anon = jail.memory_stat["anon"]
        shrink(m._kernel, 32, jail.number)
        assert jail.memory_stat["anon"] == anon - 32 * PAGE
        assert jail.memory_swap_current == 32 * PAGE
        child = p.fork(ForkMode.COW)
        child.cgroup = m.cgroups.create("other")
        assert intact(child, a, 32)
        assert jail.memory_stat["anon"] == anon
        assert jail.memory_stat["swapcached"] == 32 * PAGE == jail.memory_swap_current
        child.write(a, b"mine")
        assert m.cgroups["other"].memory_stat["anon"] == PAGE
        child.exit(0)
        p.wait()


def test_shared_memory_is_charged_as_such() -> None:
    with machine(memory="64MiB", swap="16MiB") as m:
        p = jailed(m)
        jail = m.cgroups["jail"]
        a = p.mmap(None, 16 * PAGE, RW, 0x21)
        p.touch(a, 16 * PAGE, write=True)
        before = jail.memory_stat
        assert before["shmem"] == 16 * PAGE
        shrink(m._kernel, 16, jail.number)
        assert jail.memory_stat["shmem"] == 0 and jail.memory_swap_current == 16 * PAGE
        p.touch(a, 16 * PAGE)
        assert jail.memory_stat["shmem"] == 16 * PAGE and jail.memory_stat["anon"] == before["anon"]
        assert jail.memory_swap_current == 0


def test_memory_high_reclaims_and_kills_nobody() -> None:
    """Charges go on beyond it, and are brought back."""
    with machine(memory="64MiB", swap="16MiB", oom="kill") as m:
        p = jailed(m, memory_high="1MiB")
        jail = m.cgroups["jail"]
        a = fill(p, 768)
        assert jail.memory_current <= MIB + 32 * PAGE
        assert jail.memory_events["high"] > 0 and not m.oom_reports
        assert intact(p, a, 768)
        jail.memory_high = None
        assert intact(p, a, 768)
        jail.memory_high = "512KiB"  # at once
        assert jail.memory_current <= 512 * 1024
        assert intact(p, a, 768)


def test_memory_high_without_swap_lets_go_on() -> None:
    with machine(memory="64MiB", policy="clock") as m:
        p = jailed(m, memory_high="256KiB")
        a = fill(p, 300)
        assert intact(p, a, 300)
        assert m.cgroups["jail"].memory_current > 300 * PAGE


def test_page_cache_of_the_group_goes_first(tmp_path: object) -> None:
    with machine(memory="64MiB", swap="16MiB", swappiness=0) as m:
        p = jailed(m, memory_max="1MiB")
        a = fill(p, 100)
        file = m.create_file("f", b"f" * (400 * PAGE), writenotify=True)
        b = p.mmap(None, 400 * PAGE, 1, 2, file)
        shrink(m._kernel, 10_000)  # made on behalf of nobody
        m.vmstat()
        before = p.faults.swap_in
        p.touch(a, 100 * PAGE)
        p.touch(b, 400 * PAGE)
        jail = m.cgroups["jail"]
        assert jail.memory_current <= MIB
        after = p.faults.swap_in
        p.touch(a, 100 * PAGE)
        assert p.faults.swap_in == after >= before  # they had stayed


def test_lower_memory_max_pages_out() -> None:
    """memory.max set below what is used: to swap, not to death."""
    with machine(memory="64MiB", swap="16MiB", oom="kill") as m:
        p = jailed(m)
        a = fill(p, 512)
        m.cgroups["jail"].memory_max = "1MiB"
        assert m.cgroups["jail"].memory_current <= MIB
        assert intact(p, a, 512) and not m.oom_reports


def test_memory_high_holds_within_one_call() -> None:
    """A batch of accesses is stopped as single ones are, so that the group is never far beyond."""
    with machine(memory="64MiB", swap="32MiB", oom="kill") as m:
        p = jailed(m, memory_high="1MiB")
        a = p.mmap(None, 16 * MIB, RW, ANON)
        p.touch(a, 16 * MIB, write=True)
        jail = m.cgroups["jail"]
        assert MIB < jail.memory_peak <= MIB + 64 * PAGE
        seen = m.vmstat()
        assert seen["pgpgout"] == 4 * seen["pswpout"] > 0


@pytest.mark.parametrize("nested", [False, True])
def test_memory_high_of_a_group_above(nested: bool) -> None:
    with machine(memory="64MiB", swap="32MiB") as m:
        m.cgroups.create("above", memory_high="1MiB")
        m.cgroups.create("above/below", memory_high="8MiB" if nested else None)
        p = m.spawn()
        p.cgroup = "above/below"
        a = p.mmap(None, 4 * MIB, RW, ANON)
        p.touch(a, 4 * MIB, write=True)
        assert MIB < m.cgroups["above"].memory_peak <= MIB + 64 * PAGE
