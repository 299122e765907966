"""What fuzzing and reading the core found, each as the smallest program that showed it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from vmemu._core import ffi, lib

import vmemu
from vmemu import Advice, ForkMode, Machine, Map, OutOfMemory, Prot, SegmentationFault

PAGE = 4096
RW = Prot.READ | Prot.WRITE
ANON = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED
A = 0x100000
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(vmemu.__file__).parents[1])}


def test_child_identities_after_a_mapping_above_all() -> None:
    """vmas_own() does not own the last block for a change above it; vmas_splice() then forgets `inherited`."""
    seen = []
    for mode in (ForkMode.COW, ForkMode.ON_DEMAND):
        with Machine("16MiB") as m:
            p = m.spawn()
            p.mmap(A, 4 * PAGE, RW, ANON)
            p.write(A, b"x")
            c = p.fork(mode)
            c.mmap(2 * A, PAGE, RW, ANON)
            c.mmap(A + 4 * PAGE, PAGE, RW, ANON)
            seen.append(c.maps())
    assert seen[0] == seen[1]


def test_shared_mapping_of_a_read_only_file_stays_read_only(tmp_path: Path) -> None:
    """VM_MAYWRITE must go with VM_SHARED (do_mmap()); mprotect lets the process write into the page cache."""
    (tmp_path / "f").write_bytes(b"A" * PAGE)
    with Machine("16MiB") as m:
        f, p = m.open_file(tmp_path / "f"), m.spawn()
        a = p.mmap(None, PAGE, Prot.READ, Map.SHARED, f)
        p.read(a, 1)
        with pytest.raises(PermissionError):
            p.mprotect(a, PAGE, RW)
        assert f.pread(1, 0) == b"A"
        assert "mw" not in p.maps()[0].flags


def test_pids_after_a_wrap_are_free_ones() -> None:
    """reserve() looks for free pids at the wrap only, not afterwards."""
    with Machine("16MiB") as m:
        p = m.spawn()
        kids = p.fork_many(400)
        m._kernel.processes._last = 4_194_302
        assert p.fork().pid == 4_194_303
        gone = next(kid for kid in kids if kid.pid == 310)
        gone.exit()
        p.wait(310)
        assert p.fork().pid == 310
        assert p.fork().pid not in {kid.pid for kid in kids}
        assert len(m.processes) == len(list(m.processes))


@pytest.mark.parametrize("length", [1 << 64, 1 << 70])
def test_touch_of_a_huge_range(length: int) -> None:
    with Machine("16MiB") as m, pytest.raises(SegmentationFault):
        m.spawn().touch(0, length)


def test_host_process_that_forks() -> None:
    """The arena is MADV_DONTFORK; freeing the machine in the child of os.fork() reads it: SIGSEGV."""
    code = """
import os, sys, vmemu
m = vmemu.Machine("1MiB"); p = m.spawn(); p.write(p.mmap(None, 4096, 3, 0x22), b"x")
pid = os.fork()
if pid == 0:
    sys.exit(0)
sys.exit(os.waitpid(pid, 0)[1] != 0)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, env=ENVIRONMENT).returncode == 0


def test_mremap_that_cannot_populate_is_not_half_done() -> None:
    """mremap of a locked mapping: grown, and OutOfMemory all the same; Linux ignores what mm_populate() says."""
    with Machine("256KiB", overcommit=1) as m:
        p = m.spawn()
        p.mmap(A, 4 * PAGE, RW, ANON | Map.LOCKED)
        try:
            p.mremap(A, 4 * PAGE, 400 * PAGE, 1)
        except OutOfMemory:
            assert p.maps()[0].size == 4 * PAGE
        else:
            assert p.maps()[0].size == 400 * PAGE


def test_zero_page_option_without_a_zero_page() -> None:
    """OPT_ZERO_PAGE before vmemu_machine_zero_page(): NO_PFN is mapped, abort() at the next look."""
    code = """
from vmemu._core import ffi, lib
m = lib.vmemu_machine_new(64, 7, 16); s = ffi.new("uint32_t *"); lib.vmemu_space_new(m, s)
v = ffi.new("struct vmemu_vma *", (0x100000, 0x101000, 256, 0x73, 0, 0, 0))
assert lib.vmemu_space_map(m, s[0], v, 0) == 0
b = ffi.new("uint8_t[8]"); t = ffi.new("struct vmemu_trap *")
lib.vmemu_space_read(m, s[0], 0x100000, b, 8, 0, t)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, env=ENVIRONMENT).returncode == 0


def test_pwrite_says_where_memory_ended() -> None:
    """object_write() drops -ENOMEM when a part was written; pwrite then 'reads in' 32 pages of an in-memory file."""
    with Machine("1MiB") as m:
        f = m.create_file("f", b"")
        f.truncate(64 * PAGE)
        before = m.meminfo().shmem
        m._kernel.core.fail(3)  # the node, the first page, the second page
        with contextlib.suppress(OutOfMemory):
            f.pwrite(b"x" * 2 * PAGE, 20 * PAGE)
        assert m.meminfo().shmem - before <= 2 * PAGE


def test_fork_leaves_out_untouched_when_it_fails() -> None:
    """vmemu_cdef.h: out-parameters are untouched on failure; vmemu_space_fork() leaves ids of spaces that are gone."""
    m = lib.vmemu_machine_new(64, 6, 16)
    s, out = ffi.new("uint32_t *"), ffi.new("uint32_t[]", [77, 78, 79])
    assert lib.vmemu_space_new(m, s) == 0
    lib.vmemu_machine_fail(m, 2)
    rc = lib.vmemu_space_fork(m, s[0], 2, 3, out)
    kept = list(out)
    lib.vmemu_machine_free(m)
    assert (rc, kept) == (-12, [77, 78, 79])


@pytest.mark.parametrize("access", [4, 5, 77, -1])
def test_unknown_access_kind_at_the_border(access: int) -> None:
    """access_one() tests `access & VMEMU_WRITE`, fault_resolve() `== VMEMU_WRITE`: a readable page then aborts."""
    code = f"""
from vmemu._core import ffi, lib
m = lib.vmemu_machine_new(64, 6, 16); s = ffi.new("uint32_t *"); lib.vmemu_space_new(m, s)
v = ffi.new("struct vmemu_vma *", (0x100000, 0x101000, 256, 0x71, 0, 0, 0))
assert lib.vmemu_space_map(m, s[0], v, 0) == 0
t = ffi.new("struct vmemu_trap *"); n = ffi.new("uint64_t[]", lib.VMEMU_NKINDS)
assert lib.vmemu_space_touch(m, s[0], 0x100000, 4096, {access}, n, t) == -22
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, env=ENVIRONMENT).returncode == 0


@pytest.mark.parametrize("written", [True, False], ids=["huge page", "huge zero page"])
def test_entries_of_a_space_that_is_gone(written: bool) -> None:
    """A space that exits leaves the tables that it shared to others; folios counted its entries as if it were there."""
    with Machine("64MiB", fork_mode=ForkMode.ON_DEMAND, thp="madvise") as m:
        p = m.spawn()
        start = 4 << 20
        p.mmap(start, 2 << 20, RW, ANON)
        p.madvise(start, 2 << 20, Advice.HUGEPAGE)
        p.touch(start, PAGE, write=written)
        p.munmap(start + 300 * PAGE, PAGE)
        c = p.fork()
        p.exit(0)
        c.munmap(start, 256 * PAGE)
        m.verify()
        grandchild = c.fork(mode=ForkMode.COW)  # which may have the id of the one that is gone
        grandchild.write(start + 400 * PAGE, b"x")
        assert c.read(start + 400 * PAGE, 1) == b"\0"
        m.verify()


def test_a_fork_that_fails_has_copied_nothing() -> None:
    """Frames that an eager fork copied before memory ran out are not counted."""
    with Machine(memory="1MiB") as m:
        p = m.spawn()
        a = p.mmap(None, 150 * 4096, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        p.touch(a, 150 * 4096, write=True)
        with pytest.raises(OutOfMemory):
            p.fork(mode=ForkMode.EAGER)
        assert m.frame_stats().copied == 0
        m.verify()


def test_a_large_read_is_made_once() -> None:
    """What read() returns is filled in place; reading never takes its size twice."""
    size = 65 << 20
    with Machine(memory="80MiB") as m:
        p = m.spawn()
        a = p.mmap(None, size, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        p.write(a + size - 3, b"end")
        tracemalloc.start()
        try:
            data = p.read(a, size)
            assert tracemalloc.get_traced_memory()[1] < size * 1.1
        finally:
            tracemalloc.stop()
        assert (len(data), data[:1], data[-3:]) == (size, b"\0", b"end")
        with pytest.raises(SegmentationFault):
            p.read(a, 1 << 40)


def test_touch_of_all_that_64_bits_address() -> None:
    """A length close to 2^64 wrapped around where the pages of a run are counted: the run had no end."""
    code = """
from vmemu._core import ffi, lib
m = lib.vmemu_machine_new(64, 7, 16); s = ffi.new("uint32_t *"); lib.vmemu_space_new(m, s)
lib.vmemu_machine_zero_page(m, ffi.new("uint64_t *"))
v = ffi.new("struct vmemu_vma *", (0x100000, 0x102000, 256, 0x71, 0, 0, 0))
assert lib.vmemu_space_map(m, s[0], v, 0) == 0
t = ffi.new("struct vmemu_trap *"); n = ffi.new("uint64_t[]", lib.VMEMU_NKINDS)
assert lib.vmemu_space_touch(m, s[0], 0x100007, 2**64 - 4096, 0, n, t) == lib.VMEMU_TRAP_FAULT
assert (t.done, t.kind, n[lib.VMEMU_ZERO_MAP]) == (2, lib.VMEMU_SEGV_MAPERR, 2)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, env=ENVIRONMENT).returncode == 0
