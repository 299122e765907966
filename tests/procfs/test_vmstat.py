"""/proc/vmstat and Machine.vmstat(): Linux's names in Linux's order, values that are the machine's own counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import PAGE, RW, A, R, anon, filled, machine

from vmemu import Machine, Map, Overcommit


def test_counts_of_a_fork() -> None:
    """Each event where it happens: allocation, free, fault, reuse."""
    with machine() as m:
        p = m.spawn()
        before = m.vmstat()
        a = filled(p, 4, A)
        first = m.vmstat()
        tables = first["nr_page_table_pages"] - before["nr_page_table_pages"]
        assert tables == 4
        assert first["pgalloc_normal"] - before["pgalloc_normal"] == 4 + tables
        assert first["pgfault"] - before["pgfault"] == 4
        child = p.fork()
        child.write(a, b"copy")
        p.write(a, b"reuse")
        second = m.vmstat()
        assert second["pgreuse"] - first["pgreuse"] == 1
        assert second["pgfault"] - first["pgfault"] == 2
        free = second["pgfree"]
        child.exit()
        p.wait()
        assert m.vmstat()["pgfree"] - free == 1 + 4
        assert m.vmstat()["nr_free_pages"] == m.meminfo().free // PAGE


def test_reuse_in_a_shared_mapping() -> None:
    """The first write to a page that wants to hear of it is resolved in place (wp_page_shared())."""
    with machine() as m:
        p = m.spawn()
        file = m.create_file("f", bytes(PAGE), writenotify=True)
        a = p.mmap(None, PAGE, RW, Map.SHARED, file)
        p.read(a, 1)
        before = m.vmstat()
        p.write(a, b"x")
        after = m.vmstat()
        assert (after["pgreuse"] - before["pgreuse"], after["pgfault"] - before["pgfault"]) == (1, 1)
        assert (before["nr_dirty"], after["nr_dirty"]) == (0, 1)


def test_failed_faults() -> None:
    """pgfault has faults that end in SIGBUS, not those that find no mapping (mm_account_fault())."""
    with machine() as m:
        p = m.spawn()
        a = p.mmap(None, 2 * PAGE, R, Map.PRIVATE, m.create_file("f", b"x"))
        before = m.vmstat()["pgfault"]
        p.access([a + PAGE, a + 2 * PAGE, 0])
        assert m.vmstat()["pgfault"] - before == 1


def test_pages_by_use(tmp_path: Path) -> None:
    """Anonymous, mapped, cached, shared, locked; a frame in two locked mappings is locked once."""
    (tmp_path / "f").write_bytes(bytes(8 * PAGE))
    with machine() as m:
        p = m.spawn()
        a = filled(p, 3)
        p.read(p.mmap(None, 8 * PAGE, R, Map.PRIVATE, m.open_file(tmp_path / "f")), 1)
        shared = p.mmap(None, 2 * PAGE, RW, Map.SHARED | Map.ANONYMOUS)
        p.touch(shared, 2 * PAGE, write=True)
        p.mlock(a, PAGE)
        p.mlock(shared, PAGE)
        child = p.fork()
        child.mlock(shared, 2 * PAGE)
        zero = anon(p, 1, prot=R)
        p.mlock(zero, PAGE)
        found = m.vmstat()
        want = {
            "nr_anon_pages": 3,
            "nr_mapped": 10,
            "nr_file_pages": 10,
            "nr_shmem": 2,
            "nr_mlock": 3,
            "nr_unevictable": 3,
            "nr_inactive_anon": 2,
            "nr_inactive_file": 8,
            "pgmajfault": 1,
            "pgpgin": 32,
        }
        assert {name: found[name] for name in want} == want


def test_nothing_is_counted_for_a_program_that_cannot_run() -> None:
    """Frames taken for an execve that fails are given back."""
    with Machine(memory="64KiB", overcommit=Overcommit.ALWAYS) as m:
        before = m.vmstat()
        with pytest.raises(MemoryError):
            m.spawn("/bin/sh", ["sh", "x" * 100_000])
        after = m.vmstat()
        assert after["pgalloc_normal"] - before["pgalloc_normal"] == after["pgfree"] - before["pgfree"]


@pytest.mark.linux
def test_lines_are_the_kernels() -> None:
    """The names of this kernel that are known here come in its order; on the kernel of reference, all of them."""
    real = [line.split()[0] for line in Path("/proc/vmstat").read_text().splitlines()]
    with machine() as m:
        text = m.procfs.read("vmstat").decode()
        mine = [line.split()[0] for line in text.splitlines()]
        common = set(real) & set(mine)
        assert len(common) > 100
        assert [name for name in mine if name in common] == [name for name in real if name in common]
        assert text == "".join(f"{name} {value}\n" for name, value in m.vmstat().items())
