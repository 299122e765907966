"""ON_DEMAND fork: page tables are shared from the root down, and every count is exact all the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from machines import (
    PAGE,
    RW,
    SHARED,
    A,
    R,
    anon,
    change,
    counts,
    every_mode,
    filled,
    machine,
    mapcount,
    pfn,
    program,
    prove,
    recount,
)

from vmemu import (
    Advice,
    ForkMode,
    Machine,
    Map,
    MemoryFault,
    Process,
    SyscallError,
)

OD = ForkMode.ON_DEMAND


def test_page_tables_are_shared_from_the_root_down_and_copied_one_by_one() -> None:
    """No table is copied at fork; the first write copies the four on its path, the next in another 2 MiB one or two
    more."""
    with machine(fork_mode=OD) as m:
        p = m.spawn()
        near, far, farther = A, A + (4 << 20), A + (3 << 30)
        for where in (near, far, farther):
            filled(p, 2, where)
        before = m.meminfo()
        c = p.fork()
        assert change(before, m.meminfo()) == {"committed": 6}
        steps = [(near, 4), (near + PAGE, 0), (far, 1), (farther, 2), (farther + PAGE, 0)]
        for where, tables in steps:
            before = m.meminfo()
            assert c.touch(where, 1, write=True) == counts(cow_copy=1)
            assert change(before, m.meminfo()).get("page_tables", 0) == tables
        assert c.page_tables == p.page_tables == 6 * PAGE  # without the root: three leaves, two above them, one above


def test_reading_shares_on() -> None:
    """Reads through shared tables need no fault and copy no table."""
    with machine(fork_mode=OD) as m:
        p = m.spawn()
        a = filled(p, 100)
        kids = p.fork_many(10)
        before = m.meminfo()
        for k in kids:
            assert k.touch(a, 100 * PAGE) == counts(none=100)
        assert m.meminfo() == before


def test_reading_an_untouched_page_takes_the_path_for_itself() -> None:
    """A fault that installs an entry is one space's own affair: the others do not see the entry."""
    with machine(fork_mode=OD) as m:
        p = m.spawn()
        a = anon(p, 4)
        p.write(a, b"x")
        c = p.fork()
        assert c.touch(a + PAGE, 1) == counts(zero_map=1)
        assert p.translate(a + PAGE) is None
        p.write(a + 2 * PAGE, b"y")
        assert c.translate(a + 2 * PAGE) is None
        assert c.read(a + 2 * PAGE, 1) == b"\0"


@pytest.mark.parametrize("n", [2, 7, 30])
def test_mapcounts_and_pss_are_exact_whoever_shares_which_tables(n: int) -> None:
    """Mapcounts, PSS and USS against a count of paths from the pagemaps of all processes, after each of many
    changes."""
    rng = random.Random(n)
    with machine(fork_mode=OD) as m:
        p = m.spawn()
        a = filled(p, 20, A)
        filled(p, 3, A + (4 << 20))
        kids = [p, *p.fork_many(n - 1)]
        assert mapcount(m, pfn(p, a)) == n
        assert p.pss == 23 * ((PAGE << 12) // n) >> 12
        for step in range(40):
            who = rng.choice(kids)
            page = A + rng.randrange(19) * PAGE
            match rng.randrange(5):
                case 0:
                    who.write(page, b"w")
                case 1:
                    who.madvise(page, 2 * PAGE, Advice.DONTNEED)
                case 2:
                    kids.append(who.fork())
                case 3:
                    who.mprotect(page, PAGE, rng.choice([R, RW]))
                    who.mprotect(page, PAGE, RW)
                case 4:
                    if len(kids) > 1:
                        kids.remove(who)
                        who.exit()
            if step % 4 == 0:
                prove(m)


def test_twenty_generations() -> None:
    """A line of twenty descendants, each of which writes one page: each still has what was there when it was born."""
    with machine(fork_mode=OD) as m:
        line = [m.spawn()]
        a = filled(line[0], 20)
        for i in range(20):
            line.append(line[-1].fork())
            line[-1].write(a + i * PAGE, bytes([100 + i]))
        for generation, who in enumerate(line):
            expected = [100 + i if i < generation else i + 1 for i in range(20)]
            assert [who.read(a + i * PAGE, 1)[0] for i in range(20)] == expected
        seen = recount(m)
        assert sum(seen.values()) == 21 * 20
        assert len(seen) == 20 + 20
        random.Random(0).shuffle(line)
        for who in line:
            who.exit()
            m.verify()
        assert m.meminfo().anon == m.meminfo().page_tables == 0


@pytest.mark.parametrize("who", ["parent", "child"])
def test_what_one_does_to_its_mappings_does_not_reach_the_other(who: str) -> None:
    """munmap, mprotect, mremap, madvise and mmap over shared tables change one space only."""
    with machine(fork_mode=OD) as m:
        p = m.spawn()
        a = filled(p, 12, A)
        c = p.fork()
        one, other = (p, c) if who == "parent" else (c, p)
        maps, pages = other.maps(), other.pagemap(a, 12).tolist()
        one.munmap(a, PAGE)
        one.mprotect(a + PAGE, PAGE, 0)
        one.madvise(a + 2 * PAGE, PAGE, Advice.DONTNEED)
        anon(one, 1, a + 3 * PAGE)
        to = one.mremap(a + 4 * PAGE, 2 * PAGE, 2 * PAGE, 3, A + (1 << 30))
        one.mremap(a + 6 * PAGE, 2 * PAGE, PAGE)
        one.mlock(a + 8 * PAGE, PAGE)
        m.verify()
        assert other.maps() == maps
        keep = (1 << 55) - 1
        assert [e & keep for e in other.pagemap(a, 12).tolist()] == [e & keep for e in pages]
        assert other.read(a, 12 * PAGE) == b"".join(bytes([i + 1]) * PAGE for i in range(12))
        assert one.read(to, 2 * PAGE) == b"\5" * PAGE + b"\6" * PAGE
        assert one.read(a + 2 * PAGE, 2 * PAGE) == bytes(2 * PAGE)


def test_grandchildren_of_several_branches_share_subtrees() -> None:
    """Tables shared at different depths at once: root here, leaf there."""
    with machine(fork_mode=OD) as m:
        p = m.spawn()
        for i in range(4):
            filled(p, 2, A + i * (2 << 20))
        left, right = p.fork(), p.fork()
        left.write(A, b"L")
        lefts = list(left.fork_many(3))
        right.write(A + (2 << 20), b"R")
        rights = list(right.fork_many(3))
        lefts[0].write(A + (4 << 20), b"l")
        rights[0].write(A + (6 << 20), b"r")
        prove(m)
        everyone = [p, left, right, *lefts, *rights]
        firsts = [bytes(w.read(A + i * (2 << 20), 1)[0] for i in range(4)) for w in everyone]
        base, with_l, with_r = b"\1\1\1\1", b"L\1\1\1", b"\1R\1\1"
        assert firsts == [base, with_l, with_r, b"L\1l\1", with_l, with_l, b"\1R\1r", with_r, with_r]
        left.exit()
        rights[1].exit()
        prove(m)


def step(rng: random.Random, ps: list[Process], files: list[object], path: Path) -> object:
    """One random call of one random process; its result, the same in every mode."""
    p = rng.choice(ps)
    where, n = A + rng.randrange(600) * PAGE, rng.choice([1, 1, 2, 5, 17, 64, 520])
    size = n * PAGE
    match rng.randrange(16):
        case 0 | 1 | 2:
            p.write(where, bytes([rng.randrange(256)]) * min(size, 17 * PAGE))
        case 3:
            return p.read(where, size)
        case 4:
            p.touch(where, size, write=rng.random() < 0.5)
        case 5 | 6:
            kind = rng.randrange(4)
            prot = rng.choice([R, RW, RW, RW, 5, 0])
            more = Map.FIXED | rng.choice([0, 0, Map.POPULATE])
            if kind < 2:
                return p.mmap(where, size, prot, (SHARED if kind else Map.PRIVATE | Map.ANONYMOUS) | more)
            file, offset = rng.choice(files), rng.randrange(30) * PAGE
            return p.mmap(where, size, prot, more | (Map.SHARED if kind == 2 else Map.PRIVATE), file, offset)  # type: ignore[arg-type]
        case 7:
            p.munmap(where, size)
        case 8:
            p.mprotect(where, size, rng.choice([0, R, RW, RW, 5]))
        case 9:
            p.madvise(where, size, rng.choice([Advice.DONTNEED, *range(8, 12), Advice.WIPEONFORK, 19, 22, 23]) | 0)
        case 10:
            flags, to = rng.choice([0, 1, 1, 3, 5]), A + rng.randrange(600) * PAGE
            return p.mremap(where, size, rng.choice([1, 3, 70, n]) * PAGE, flags, to)
        case 11 | 12:
            if len(ps) < 6:
                ps.append(p.fork())
        case 13:
            if len(ps) > 1:
                ps.remove(p)
                p.exit()
        case 14:
            (p.mlock if rng.random() < 0.5 else p.munlock)(where, size)
        case 15:
            if len(ps) < 6 and rng.random() < 0.5:
                child = p.vfork()
                try:
                    child.execve(str(path))
                except BaseException:
                    child.exit()
                    raise
                ps.append(child)
            else:
                file = rng.choice(files)
                if rng.random() < 0.7:
                    file.pwrite(rng.randbytes(5000), rng.randrange(100_000))  # type: ignore[attr-defined]
                else:
                    file.truncate(rng.randrange(150_000))  # type: ignore[attr-defined]
    return None


def story(mode: ForkMode, seed: int, path: Path) -> list[object]:
    """Results of a hundred random calls, then all mappings and all contents."""
    rng = random.Random(seed)
    out: list[object] = []
    with Machine("64MiB", fork_mode=mode) as m:
        boot = m.meminfo()
        files: list[object] = [m.create_file(n, bytes(range(250)) * 400, writenotify=n == "E") for n in "FE"]
        ps = [m.spawn()]
        anon(ps[0], 300, A)
        for i in range(100):
            try:
                out.append(step(rng, ps, files, path))
            except MemoryFault as fault:
                out.append((fault.kind, fault.address))
            except SyscallError as error:
                out.append(error.errno)
            except NotImplementedError as error:
                out.append(str(error))
            if i % 20 == 19:
                prove(m)
        for p in list(ps):
            out.append(m.procfs.read(f"{p.pid}/maps"))
            for v in p.maps():
                for where in range(v.start, v.end, PAGE):
                    try:
                        out.append(p.read(where, PAGE))
                    except MemoryFault as fault:
                        out.append(fault.kind)
        prove(m)
        for p in ps:
            p.exit()
        for file in files:
            file.close()  # type: ignore[attr-defined]
        m.verify()
        assert m.meminfo() == boot
    return out


@pytest.mark.parametrize("seed", range(40))
def test_on_demand_and_eager_give_the_results_of_cow(seed: int, tmp_path: Path) -> None:
    """ON_DEMAND and EAGER never show other results or contents than COW, over random histories; all counts are exact in
    each, and every frame comes back."""
    path = program(tmp_path)
    expected = story(ForkMode.COW, seed, path)
    assert story(ForkMode.ON_DEMAND, seed, path) == expected
    assert story(ForkMode.EAGER, seed, path) == expected


@every_mode
def test_modes_can_be_mixed_in_one_family(mode: ForkMode) -> None:
    """Each fork may have its own mode."""
    rng = random.Random(9)
    with machine(fork_mode=mode) as m:
        family = [m.spawn()]
        a = filled(family[0], 10, A)
        state = {family[0].pid: [i + 1 for i in range(10)]}
        for i in range(60):
            who = rng.choice(family)
            if len(family) < 12 and rng.random() < 0.3:
                child = who.fork(mode=rng.choice(list(ForkMode)))
                family.append(child)
                state[child.pid] = list(state[who.pid])
            else:
                page = rng.randrange(10)
                who.write(a + page * PAGE, bytes([i + 100]))
                state[who.pid][page] = i + 100
            if i % 10 == 0:
                prove(m)
        for who in family:
            assert [who.read(a + i * PAGE, 1)[0] for i in range(10)] == state[who.pid]
