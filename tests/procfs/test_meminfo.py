"""/proc/meminfo: every line of Linux 6.18 in its order, the machine's own figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import PAGE, RW, SHARED, A, R, filled, machine
from procfs.shape import host, shape, values

from vmemu import Map, Overcommit


@pytest.mark.linux
def test_lines_are_the_kernels() -> None:
    """The keys of this kernel that are known here in its order and columns; there is none that it does not have."""
    with machine() as m:
        mine, real = m.procfs.read("meminfo"), host("meminfo")
        theirs = {line.split(b":")[0]: form for line, form in zip(real.splitlines(), shape(real), strict=True)}
        keys = [line.split(b":")[0] for line in mine.splitlines()]
        assert [key for key in keys if key in theirs] == [key for key in theirs if key in keys]
        assert len(set(keys) & set(theirs)) > 40
        large = (b"VmallocTotal", b"DirectMap")
        for key, form in zip(keys, shape(mine), strict=True):
            if key in theirs and not key.startswith(large):
                assert form == theirs[key]


def test_figures_are_the_machines(tmp_path: Path) -> None:
    """Each figure against Machine.meminfo() or a count by hand."""
    (tmp_path / "f").write_bytes(bytes(40 * PAGE))
    with machine(memory="17MiB") as m:
        p = m.spawn()
        a = filled(p, 8, A)
        p.fork()
        p.read(p.mmap(None, 40 * PAGE, R, Map.PRIVATE, m.open_file(tmp_path / "f")), 1)
        shared = p.mmap(None, 16 * PAGE, RW, SHARED)
        p.touch(shared, 4 * PAGE, write=True)
        p.mlock(a, PAGE)
        file = m.create_file("g", bytes(6 * PAGE), writenotify=True)
        p.write(p.mmap(None, 6 * PAGE, RW, Map.SHARED, file), b"x")
        got, info = values(m.procfs.read("meminfo")), m.meminfo()
        want = {
            "MemTotal": info.total,
            "MemFree": info.free,
            "MemAvailable": info.available,
            "Cached": info.file + info.shmem,
            "AnonPages": info.anon,
            "Shmem": info.shmem,
            "PageTables": info.page_tables,
            "Committed_AS": info.committed,
            "CommitLimit": info.commit_limit,
            "SwapTotal": info.swap_total,
            "SwapFree": info.swap_free,
            "Mapped": (16 + 4 + 1) * PAGE,
            "Dirty": PAGE,
            "Mlocked": PAGE,
            "Unevictable": PAGE,
            "Inactive(anon)": info.anon + info.shmem - PAGE,
            "Inactive(file)": info.file,
            "Inactive": info.anon + info.shmem + info.file - PAGE,
            "DirectMap4k": 1 << 20,
            "DirectMap2M": 16 << 20,
            "Hugepagesize": 2 << 20,
        }
        assert {key: got[key] for key in want} == want
        assert got["MemTotal"] == got["MemFree"] + got["AnonPages"] + got["Cached"] + got["PageTables"] + PAGE


def test_commit_limit_follows_the_setting() -> None:
    """sys/vm/overcommit_ratio is of RAM."""
    with machine(overcommit=Overcommit.NEVER, overcommit_ratio=50) as m:
        assert values(m.procfs.read("meminfo"))["CommitLimit"] == 8 << 20
        m.procfs.write("sys/vm/overcommit_ratio", b"25\n")
        assert values(m.procfs.read("meminfo"))["CommitLimit"] == m.meminfo().commit_limit == 4 << 20
        m.procfs.write("sys/vm/overcommit_kbytes", b"2048")
        assert values(m.procfs.read("meminfo"))["CommitLimit"] == m.meminfo().commit_limit == 2 << 20
        assert m.procfs.read("sys/vm/overcommit_ratio") == b"0\n"
        m.procfs.write("sys/vm/overcommit_ratio", b"25")
        assert m.procfs.read("sys/vm/overcommit_kbytes") == b"0\n"
