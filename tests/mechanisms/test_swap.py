"""Swap: entries, slots and their holders, the swap cache, devices; and that every byte comes back.

Semantics as Linux's do_swap_page(), try_to_unmap_one(), copy_nonpresent_pte() and folio_free_swap().
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from machines import ANON, PAGE, RW, SHARED, R, every_mode, machine, sharing_mode

from vmemu import Advice, FaultKind, ForkMode, Machine, Map, OutOfMemory, Overcommit, Process, SyscallError
from vmemu._native.reclaims import ReclaimCalls
from vmemu.memory.reclaim import shrink
from vmemu.swap import POLICIES

SWAPPED, PRESENT, FILE = 1 << 62, 1 << 63, 1 << 61
every_policy = pytest.mark.parametrize("policy", POLICIES)


def entries(p: Process, address: int, npages: int = 1) -> list[int]:
    return [int(entry) for entry in p.pagemap(address, npages)]


def filled(p: Process, npages: int, flags: int = ANON) -> int:
    """Memory whose pages differ."""
    a = p.mmap(None, npages * PAGE, RW, flags)
    for i in range(npages):
        p.write(a + i * PAGE, page(i))
    return a


def page(i: int) -> bytes:
    return (i + 1).to_bytes(4, "little") * (PAGE // 4)


def swap_out(p: Process, address: int, npages: int) -> None:
    p.madvise(address, npages * PAGE, Advice.PAGEOUT)


def swap_used(m: Machine) -> int:
    info = m.meminfo()
    return (info.swap_total - info.swap_free) // PAGE


def test_out_and_in() -> None:
    """A page that goes leaves type and offset; reading it is a major fault, and the copy in its slot stays."""
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 3)
        rss, free = p.rss, m.meminfo().free
        swap_out(p, a, 3)
        assert [e & (SWAPPED | PRESENT | FILE) for e in entries(p, a, 3)] == [SWAPPED] * 3
        assert [e & 31 for e in entries(p, a, 3)] == [0] * 3
        offsets = {e >> 5 & (1 << 50) - 1 for e in entries(p, a, 3)}
        assert len(offsets) == 3 and 0 not in offsets
        assert (p.rss, m.meminfo().free) == (rss - 3 * PAGE, free + 3 * PAGE)
        assert swap_used(m) == 3
        before = p.faults
        assert p.read(a, PAGE) == page(0)
        new = p.faults - before
        assert (new.swap_in, new.major, new.total) == (1, 1, 1)
        assert entries(p, a)[0] & (SWAPPED | PRESENT) == PRESENT
        assert swap_used(m) == 3, "the swap cache keeps the slot of a page that was only read"
        assert b"SwapCached:            4 kB" in m.procfs.read("meminfo")
        p.write(a, b"x")  # in place: it was this process's alone
        assert (p.faults - before).total == 1
        assert p.read(a, PAGE) == b"x" + page(0)[1:]


def test_write_frees_the_slot() -> None:
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 1)
        swap_out(p, a, 1)
        before = p.faults
        p.write(a + 5, b"yes")
        assert (p.faults - before).swap_in == (p.faults - before).total == 1
        assert swap_used(m) == 0
        assert p.read(a, 8) == page(0)[:5] + b"yes"


def test_clean_page_is_not_written_again() -> None:
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 4)
        swap_out(p, a, 4)
        assert m.vmstat()["pswpout"] == 4
        p.touch(a, 4 * PAGE)
        swap_out(p, a, 4)
        assert (m.vmstat()["pswpout"], m.vmstat()["pswpin"]) == (4, 4)
        p.touch(a, 4 * PAGE)
        p.write(a, b"new")
        swap_out(p, a, 4)
        assert m.vmstat()["pswpout"] == 5
        assert p.read(a, 3) == b"new"


@sharing_mode
def test_fork_shares_slots(mode: ForkMode) -> None:
    """A slot has as many holders as entries; who comes second finds the page in the swap cache: a minor fault."""
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 2)
        swap_out(p, a, 2)
        c = p.fork(mode)
        assert entries(c, a, 2) == entries(p, a, 2)
        assert swap_used(m) == 2
        assert c.read(a, PAGE) == page(0)
        before = p.faults
        assert p.read(a, PAGE) == page(0)
        new = p.faults - before
        assert (new.major, new.file_minor) == (0, 1)
        assert p.translate(a).pfn == c.translate(a).pfn  # type: ignore[union-attr]
        before = c.faults
        c.write(a, b"child")
        new = c.faults - before
        assert (new.cow_copy, new.total) == (1, 1)
        assert p.read(a, PAGE) == page(0)
        before = c.faults
        c.write(a + PAGE, b"child")  # read and copied in one fault, for the parent has it too
        assert ((c.faults - before).swap_in, (c.faults - before).total) == (1, 1)
        assert p.read(a + PAGE, PAGE) == page(1)
        c.exit()
        p.munmap(a, 2 * PAGE)
        assert swap_used(m) == 0


@sharing_mode
def test_all_mappers_lose_it(mode: ForkMode) -> None:
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 8)
        kids = [p.fork(mode) for _ in range(5)]
        for c in kids:
            c.read(a, 1)
        assert shrink(m._kernel, 8) >= 8
        assert swap_used(m) == 8
        for who in (p, *kids):
            assert all(e & SWAPPED for e in entries(who, a, 8))
            assert m.procfs.read(f"{who.pid}/status").split(b"VmSwap:")[1].split()[0] == b"32"
        usage = p.smaps()[0]
        holders = 6 if mode == ForkMode.COW else usage.swap // usage.swap_pss
        assert (usage.swap, usage.swap_pss) == (8 * PAGE, 8 * (PAGE // holders) + usage.swap_pss % 8)
        kids[0].write(a, b"mine")
        assert p.read(a, PAGE) == page(0)
        assert [c.read(a, 4) for c in kids[:2]] == [b"mine", page(0)[:4]]


def test_eager_fork_leaves_swap_shared() -> None:
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 2)
        swap_out(p, a, 1)
        c = p.fork(ForkMode.EAGER)
        assert c.translate(a + PAGE).pfn != p.translate(a + PAGE).pfn  # type: ignore[union-attr]
        c.write(a, b"child")
        assert p.read(a, PAGE) == page(0)
        assert c.read(a, PAGE) == b"child" + page(0)[5:]


def test_sole_owner_reuses() -> None:
    """The other one is gone when the page comes back: no copy."""
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 1)
        c = p.fork()
        shrink(m._kernel, 1)
        c.exit()
        copied = m.frame_stats().copied
        p.write(a, b"w")
        assert m.frame_stats().copied == copied
        assert swap_used(m) == 0


def test_calls_on_swapped_pages() -> None:
    """munmap, mremap, mprotect, DONTNEED, FREE, mincore, mlock and exec know them."""
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 16)
        swap_out(p, a, 16)
        assert p.mincore(a, 16 * PAGE) == bytes(16)
        p.mprotect(a, 4 * PAGE, R)
        assert p.read(a, PAGE) == page(0)
        p.mprotect(a, 4 * PAGE, RW)
        p.munmap(a + PAGE, PAGE)
        assert swap_used(m) == 15
        p.madvise(a + 2 * PAGE, PAGE, Advice.DONTNEED)
        assert p.read(a + 2 * PAGE, PAGE) == bytes(PAGE)
        p.madvise(a + 3 * PAGE, PAGE, Advice.FREE)
        assert swap_used(m) == 13
        assert p.read(a + 3 * PAGE, PAGE) == bytes(PAGE)
        b = p.mremap(a + 4 * PAGE, 4 * PAGE, 8 * PAGE, 1)
        assert [p.read(b + i * PAGE, PAGE) for i in range(4)] == [page(4 + i) for i in range(4)]
        p.mlock(a + 8 * PAGE, 4 * PAGE)
        assert all(e & PRESENT for e in entries(p, a + 8 * PAGE, 4))
        p.madvise(a + 12 * PAGE, PAGE, Advice.GUARD_INSTALL)
        m.verify()
        p.exit()
        assert swap_used(m) == 0


def test_mincore_shows_the_swap_cache() -> None:
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 1)
        c = p.fork()
        shrink(m._kernel, 1)
        c.read(a, 1)
        assert p.mincore(a, PAGE) == b"\1"


@every_mode
def test_private_file_pages(mode: ForkMode) -> None:
    """Copies of a file's pages go to swap, the pages themselves back to the file; truncating takes the slots too."""
    with machine(swap="1MiB") as m:
        p, f = m.spawn(), m.create_file("f", b"file" * 3072)
        a = p.mmap(None, 3 * PAGE, RW, Map.PRIVATE, f)
        p.write(a + PAGE, b"copy")
        p.read(a, 1)
        shrink(m._kernel, 1000)
        c = p.fork(mode)
        assert c.read(a + PAGE, 8) == b"copyfile"
        assert p.read(a, 8) == b"filefile"
        shrink(m._kernel, 1000)
        f.truncate(PAGE)
        assert p.read(a, 4) == b"file"
        m.verify()


def test_shared_memory() -> None:
    """Pages of shared memory and of files in memory go to the device as well and are there for read(2)."""
    with machine(swap="1MiB") as m:
        p = m.spawn()
        a = filled(p, 8, SHARED)
        f = m.create_file("f", bytes(range(256)) * 64)
        c = p.fork()
        shrink(m._kernel, 1000)
        assert m.meminfo().shmem == 0 and swap_used(m) == 12
        m.verify()
        before = c.faults
        assert c.read(a, PAGE) == page(0)
        assert (c.faults - before).swap_in == 1
        c.write(a + PAGE, b"seen")
        assert p.read(a + PAGE, 4) == b"seen"
        assert f.pread(1 << 20, 0) == bytes(range(256)) * 64
        shrink(m._kernel, 1000)
        f.pwrite(b"written", 4090)
        f.truncate(4200)
        assert f.pread(200, 4080) == (bytes(range(0xF0, 0xFA)) + b"written" + bytes(range(1, 104)))[:120]
        p.exit()
        c.exit()
        f.close()
        m.verify()
        assert swap_used(m) == 0


def test_huge_pages_are_cut() -> None:
    with machine(memory="16MiB", swap="8MiB", thp="always") as m:
        p = m.spawn()
        a = p.mmap(0x4000_0000, 2 << 20, RW, ANON | Map.FIXED)
        for i in range(0, 512, 7):
            p.write(a + i * PAGE, page(i))
        c = p.fork()
        assert p.translate(a).level == 2  # type: ignore[union-attr]
        while shrink(m._kernel, 600):
            pass
        assert p.rss == c.rss == 0
        assert all(c.read(a + i * PAGE, PAGE) == (page(i) if i % 7 == 0 else bytes(PAGE)) for i in range(512))
        assert p.read(a, PAGE) == page(0)


def test_soft_dirty_goes_along() -> None:
    with machine(swap="1MiB", soft_dirty=True) as m:
        p = m.spawn()
        a = filled(p, 3)
        m.procfs.write(f"{p.pid}/clear_refs", "4")
        p.write(a, b"again")
        swap_out(p, a, 3)
        assert [bool(e & 1 << 55) for e in entries(p, a, 3)] == [True, False, False]
        p.touch(a, 3 * PAGE)
        assert [bool(e & 1 << 55) for e in entries(p, a, 3)] == [True, False, False]
        swap_out(p, a, 3)
        m.procfs.write(f"{p.pid}/clear_refs", "4")
        assert not any(e & 1 << 55 for e in entries(p, a, 3))


def test_cmdline_is_read_from_swap(tmp_path: Path) -> None:
    from linux import tinyelf

    with machine(swap="1MiB") as m:
        p = m.spawn(tinyelf.save(tmp_path / "tiny", tinyelf.tiny()), ["name", "argument"], {"KEY": "value"})
        shrink(m._kernel, 1000)
        assert p.rss == 0
        assert m.procfs.read(f"{p.pid}/cmdline") == b"name\0argument\0"
        shrink(m._kernel, 1000)
        assert m.procfs.read(f"{p.pid}/environ") == b"KEY=value\0"


def lend_for_writing_only(m: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page that is missing stops the access, and is read from Python."""
    assert m._kernel.paging is not None and m._kernel.paging.device is not None
    fd, write = m._kernel.paging.device.fd, ReclaimCalls.swap_write

    def lend_and_write(core: Any, victims: Any, n: int) -> int:
        core.swap_lend(None, fd)
        rc = write(core, victims, n)
        core.swap_lend(None, -1)
        return rc

    monkeypatch.setattr(ReclaimCalls, "swap_write", lend_and_write)
    m._kernel.core.swap_lend(None, -1)


@every_policy
@pytest.mark.parametrize("device", ["memory", "file", "caller"])
@every_mode
def test_every_byte_comes_back(
    policy: str, device: str, mode: ForkMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAM is filled three times over by 16 processes with pages that each can prove; swap is in the host's memory, in a
    file, or read by the caller."""
    rng = random.Random(5)
    path = tmp_path / "swap"
    path.touch()
    os.truncate(path, 16 << 20)
    where_to: dict[str, Any] = {"swap": "16MiB"} if device == "memory" else {"swap_file": path}
    with Machine("2MiB", policy=policy, fork_mode=mode, **where_to) as m:
        if device == "caller":
            lend_for_writing_only(m, monkeypatch)
        p = m.spawn()
        a = filled(p, 40)
        kids = [p.fork() for _ in range(16)]
        own = 3 * (2 << 20) // PAGE // 16
        where = [c.mmap(None, own * PAGE, RW, ANON) for c in kids]
        content: dict[tuple[int, int], bytes] = {}
        for k, c in enumerate(kids):
            for i in range(own):
                content[k, i] = rng.randbytes(PAGE)
                c.write(where[k] + i * PAGE, content[k, i])
            c.write(a + k * PAGE, b"child %d" % k)
            m.verify()
        for _ in range(2):
            for k, c in enumerate(kids):
                for i in range(own):
                    assert c.read(where[k] + i * PAGE, PAGE) == content[k, i]
                for i in range(40):
                    was = page(i)
                    assert c.read(a + i * PAGE, PAGE) == (
                        b"child %d" % k + was[len(b"child %d" % k) :] if i == k else was
                    )
            kids[3].write(where[3], rng.randbytes(PAGE))
            content[3, 0] = kids[3].read(where[3], PAGE)
            m.verify()
        assert [p.read(a + i * PAGE, PAGE) for i in range(40)] == [page(i) for i in range(40)]
        m.verify()
        for c in kids:
            c.exit()
        p.exit()
        info = m.meminfo()
        assert (info.anon, info.swap_free) == (0, info.swap_total)
        m.verify()


@pytest.mark.parametrize("policy", POLICIES)
def test_same_run_without_contents(policy: str) -> None:
    """Without bytes all else is the same."""

    def run(contents: bool) -> tuple[Any, ...]:
        with Machine("1MiB", swap="8MiB", policy=policy, contents=contents, seed=3) as m:
            p = m.spawn()
            a = p.mmap(None, 600 * PAGE, RW, ANON)
            for i in range(3000):
                p.touch(a + (i * i * 7 + i // 3) % 600 * PAGE, 1, write=i % 3 == 0)
            m.verify()
            return m.faults, m.meminfo(), m.vmstat()

    assert run(True) == run(False)


def test_swap_gets_full() -> None:
    """Then memory is what is left, and giving some back helps."""
    with machine(memory="1MiB", swap="256KiB", overcommit=Overcommit.ALWAYS) as m:
        p = m.spawn()
        a = p.mmap(None, 400 * PAGE, RW, ANON | Map.NORESERVE)
        with pytest.raises(OutOfMemory):
            p.touch(a, 400 * PAGE, write=True)
        assert m.meminfo().swap_free == 0
        m.verify()
        p.munmap(a, 200 * PAGE)
        p.touch(a + 200 * PAGE, 100 * PAGE, write=True)


def test_batches_and_traces_swap() -> None:
    with machine(memory="1MiB", swap="4MiB") as m:
        p = m.spawn()
        a = p.mmap(None, 500 * PAGE, RW, ANON)
        kinds = p.access([a + i * PAGE for i in range(500)], True)
        assert set(kinds.tolist()) == {int(FaultKind.ZERO_FILL)}
        kinds = p.access([a + i * PAGE for i in range(500)], False)
        assert int(FaultKind.SWAP_IN) in kinds and int(FaultKind.OOM) not in kinds


# ---- devices ----


def test_swap_file(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    path.write_bytes(bytes(1 << 20))
    with machine(memory="1MiB", swap_file=path) as m:
        assert m.meminfo().swap_total == 1 << 20
        p = m.spawn()
        a = filled(p, 300)
        assert [p.read(a + i * PAGE, PAGE) for i in range(300)] == [page(i) for i in range(300)]
        assert str(path).encode() in m.procfs.read("swaps")
    with machine(memory="1MiB", swap="512KiB", swap_file=str(path)) as m:
        assert m.meminfo().swap_total == 512 << 10


@pytest.mark.parametrize(
    ("size", "swap", "number"), [(4096, 0, errno.EINVAL), (1 << 20, "2MiB", errno.EINVAL), (-1, 0, errno.ENOENT)]
)
def test_bad_swap_file(tmp_path: Path, size: int, swap: Any, number: int) -> None:
    path = tmp_path / "swap"
    if size >= 0:
        path.write_bytes(bytes(size))
    with pytest.raises(SyscallError) as error:
        Machine("1MiB", swap=swap, swap_file=path)
    assert error.value.errno == number and str(path) in str(error.value)


def test_swap_file_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as error:
        Machine("1MiB", swap_file=tmp_path)
    assert error.value.errno in (errno.EISDIR, errno.EINVAL)


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_swap_file_vanishes(tmp_path: Path, how: str) -> None:
    """Nothing more goes there, which is said; what is in memory and what can be read back is kept."""
    path = tmp_path / "swap"
    path.write_bytes(bytes(4 << 20))
    with machine(memory="1MiB", swap_file=path) as m:
        p = m.spawn()
        a = filled(p, 300)
        if how == "removed":
            path.unlink()
        else:
            os.truncate(path, 2 << 20)
        b = p.mmap(None, 300 * PAGE, RW, ANON)
        with pytest.raises(SyscallError, match="swap") as error:
            p.touch(b, 300 * PAGE, write=True)
        assert error.value.errno == errno.EIO and str(path) in str(error.value)
        m.verify()
        p.munmap(b, 300 * PAGE)
        gone = 0
        for i in range(0, 300, 9):
            try:
                assert p.read(a + i * PAGE, PAGE) == page(i)
            except SyscallError:
                gone += 1
        assert gone < 300 // 9


@pytest.mark.parametrize(
    "options",
    [
        {"swap": -1},
        {"swap": 100},
        {"swap": "1MiB", "swappiness": 201},
        {"swap": "1MiB", "swappiness": -1},
        {"policy": "best"},
        {"policy": "opt"},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(name for name in ("policy", "swappiness", "swap") if name in options)):
        Machine("1MiB", **options)
