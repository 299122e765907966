"""kpagecount, kpageflags and PID/pagemap: every frame and page, from where and as much as the kernel would read."""

from __future__ import annotations

import errno
import struct

import numpy as np
import pytest
from machines import PAGE, RW, A, filled, machine, pfn

from vmemu import Map, SyscallError


def test_kpagecount_and_kpageflags_cover_every_frame() -> None:
    """Eight bytes a frame from pfn 0, the zero page and page-table frames included."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 3)
        file = m.create_file("f", b"f" * PAGE)
        f = p.mmap(None, PAGE, RW, Map.SHARED, file)
        p.read(f, 1)
        c = p.fork()
        c.write(a, b"x")
        n = m.meminfo().total // PAGE
        count = np.frombuffer(m.procfs.read("kpagecount"), np.uint64)
        flags = np.frombuffer(m.procfs.read("kpageflags"), np.uint64)
        assert count.shape == flags.shape == (n,)

        def bit(number: int) -> set[int]:
            return set(np.flatnonzero(flags >> np.uint64(number) & np.uint64(1)).tolist())

        shared, own = pfn(p, a + PAGE), pfn(c, a)
        assert (count[shared], count[own], count[pfn(p, f)]) == (2, 1, 1)
        assert m.zero_pfn is not None
        assert count[m.zero_pfn] == 0
        assert bit(24) == {m.zero_pfn}
        anonymous = {pfn(q, a + i * PAGE) for q in (p, c) for i in range(3)}
        assert bit(12) == anonymous
        assert bit(11) == set(np.flatnonzero(count).tolist()) == anonymous | {pfn(p, f)}
        assert pfn(p, f) in bit(14) - bit(12)
        assert len(bit(26)) == m.meminfo().page_tables // PAGE
        assert len(bit(10)) == m.meminfo().free // PAGE


def test_kpageflags_shows_who_may_be_written_without_asking() -> None:
    """Bits 34 (PageAnonExclusive) and, of the zero page, 24 and 32, as Linux 6.18 shows them."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2)

        def bits(frame: int) -> set[int]:
            flags = int.from_bytes(m.procfs.read("kpageflags", frame * 8, 8), "little")
            return {bit for bit in range(64) if flags >> bit & 1}

        assert 34 in bits(pfn(p, a))
        c = p.fork()
        assert 34 not in bits(pfn(p, a))
        c.write(a, b"copied")
        assert 34 in bits(pfn(c, a)) and 34 not in bits(pfn(p, a))
        assert m.zero_pfn is not None and bits(m.zero_pfn) == {24, 32}


def test_pagemap_is_read_by_offset() -> None:
    """Eight bytes a page at 8 times the page number, as Process.pagemap() has them."""
    with machine() as m:
        p = m.spawn()
        a = filled(p, 3, A)
        got = m.procfs.read(f"{p.pid}/pagemap", offset=a // PAGE * 8, length=32)
        assert list(struct.unpack("4Q", got)) == p.pagemap(a, 4).tolist()
        assert m.procfs.read(f"{p.pid}/task/{p.pid}/pagemap", a // PAGE * 8 + 8, 8) == got[8:16]
        whole = m.procfs.read(f"{p.pid}/pagemap")
        assert len(whole) == (a // PAGE + 3) * 8
        assert whole[-24:] == got[:24]
        assert not any(whole[:-24])


def test_pagemap_ends_with_the_address_space() -> None:
    """Beyond it nothing is read; all at once is too much if something is mapped high up."""
    with machine() as m:
        p = m.spawn()
        file, end = f"{p.pid}/pagemap", ((1 << 47) // PAGE - 1) * 8
        assert m.procfs.read(file) == b""
        assert m.procfs.read(file, end - 8, 64) == bytes(8)
        assert m.procfs.read(file, end, 64) == b""
        assert m.procfs.read(file, 1 << 60, 8) == b""
        filled(p)
        with pytest.raises(SyscallError) as caught:
            m.procfs.read(file)
        assert caught.value.errno == errno.EFBIG


def test_locked_pages_are_unevictable_for_as_long_as_a_locked_mapping_has_them() -> None:
    """KPF_UNEVICTABLE (18) and KPF_MLOCKED (33) of anonymous, shared and file pages; a child's copy is not locked."""
    locked = 1 << 18 | 1 << 33
    with machine() as m:
        p = m.spawn()
        a = filled(p, 2)
        f = p.mmap(None, PAGE, RW, Map.SHARED, m.create_file("f", b"f" * PAGE))

        def flags(frame: int) -> int:
            (one,) = struct.unpack("<Q", m.procfs.read("kpageflags", 8 * frame, 8))
            return one & locked

        p.mlock(a, PAGE)
        p.mlock(f, PAGE)
        assert [flags(pfn(p, at)) for at in (a, a + PAGE, f)] == [locked, 0, locked]
        c = p.fork()
        assert flags(pfn(c, a)) == locked
        c.write(a, b"c")
        assert [flags(pfn(q, a)) for q in (p, c)] == [locked, 0]
        assert m.vmstat()["nr_mlock"] == 2
        frame = pfn(p, f)
        p.munlock(a, PAGE)
        p.munmap(f, PAGE)
        assert [flags(pfn(p, a)), flags(frame), m.vmstat()["nr_mlock"]] == [0, 0, 0]


@pytest.mark.parametrize("file", ["2/pagemap", "kpagecount", "kpageflags"])
@pytest.mark.parametrize(("offset", "length"), [(4, 8), (0, 4), (0, 12), (3, None), (-8, 8), (8, -8)])
def test_reads_are_of_whole_entries(file: str, offset: int, length: int | None) -> None:
    """EINVAL for anything but multiples of 8 (pagemap_read(), kpage_read())."""
    with machine() as m:
        m.spawn()
        with pytest.raises(SyscallError) as caught:
            m.procfs.read(file, offset, length)
        assert caught.value.errno == errno.EINVAL


def test_a_part_of_the_frames() -> None:
    """kpagecount and kpageflags from a frame on; nothing behind the last."""
    with machine() as m:
        p = m.spawn()
        frame = pfn(p, filled(p))
        for file in ("kpagecount", "kpageflags"):
            whole = m.procfs.read(file)
            assert m.procfs.read(file, 8 * frame, 8) == whole[8 * frame : 8 * frame + 8] != bytes(8)
            assert m.procfs.read(file, len(whole) - 8, 80) == whole[-8:]
            assert m.procfs.read(file, len(whole) + 80, 8) == b""
