"""Resource limits and overcommit as the calls on mappings ask about them."""

from __future__ import annotations

import errno

import pytest
from machines import ANON, PAGE, RW, SHARED, A, R, anon, machine

from vmemu import (
    RLIM_INFINITY,
    Machine,
    Map,
    Overcommit,
    Process,
    Prot,
    Resource,
    SegmentationFault,
    SyscallError,
)

KIB = 1024
NOBODY = 65534
MAYMOVE = 1


def limited(m: Machine, resource: Resource, size: int, user: int = 0) -> Process:
    p = m.spawn()
    p.setrlimit(resource, (size, size))
    if user:
        p.setuid(user)
    return p


def fails(number: int, call: object, *args: object) -> None:
    with pytest.raises(SyscallError) as refused:
        call(*args)  # type: ignore[operator]
    assert refused.value.errno == number


def test_prlimit_reads_and_sets() -> None:
    with machine() as m:
        p = m.spawn()
        assert p.getrlimit(Resource.STACK) == (8 << 20, RLIM_INFINITY)
        assert p.prlimit(Resource.AS, (1 << 30, -1)) == (RLIM_INFINITY, RLIM_INFINITY)
        assert p.prlimit(Resource.AS) == (1 << 30, RLIM_INFINITY)
        assert p.fork().getrlimit(Resource.AS) == (1 << 30, RLIM_INFINITY)
        assert m.init.getrlimit(Resource.AS) == (RLIM_INFINITY, RLIM_INFINITY)


def test_prlimit_refuses_what_do_prlimit_refuses() -> None:
    with machine() as m:
        p = limited(m, Resource.DATA, 64 * KIB)
        fails(errno.EINVAL, p.getrlimit, 16)
        fails(errno.EINVAL, p.getrlimit, -1)
        fails(errno.EINVAL, p.setrlimit, Resource.AS, (2, 1))
        fails(errno.EPERM, p.setrlimit, Resource.NOFILE, (0, (1 << 20) + 1))
        p.setrlimit(Resource.DATA, (0, 128 * KIB))  # root may raise it
        p.setuid(NOBODY)
        p.setrlimit(Resource.DATA, (128 * KIB, 128 * KIB))
        fails(errno.EPERM, p.setrlimit, Resource.DATA, (0, 129 * KIB))
        p.setrlimit(Resource.DATA, (0, 0))
        fails(errno.EPERM, p.setrlimit, Resource.DATA, (0, 1))


def test_address_space_bounds_every_way_to_grow() -> None:
    with machine() as m:
        p = limited(m, Resource.AS, 8 * PAGE)
        a = anon(p, 4, A)
        fails(errno.ENOMEM, p.mmap, None, 5 * PAGE, R, SHARED)
        p.mmap(A, 8 * PAGE, RW, ANON | Map.FIXED)  # what it replaces does not count
        p.munmap(A + 4 * PAGE, 4 * PAGE)
        fails(errno.ENOMEM, p.mremap, a, 4 * PAGE, 9 * PAGE, MAYMOVE)
        fails(errno.ENOMEM, p.mremap, a, 5 * PAGE - PAGE, 9 * PAGE, 0)
        top = p.brk()
        assert p.brk(top + 5 * PAGE) == top
        assert p.brk(top + 4 * PAGE) == top + 4 * PAGE
        fails(errno.ENOMEM, anon, p, 1)
        assert p.fork().maps() == p.maps()  # fork does not look at it
        p.setrlimit(Resource.AS, (0, 0))
        p.munmap(a, PAGE)
        fails(errno.ENOMEM, anon, p, 1)


def test_data_counts_private_writable_memory_only() -> None:
    with machine() as m:
        p = limited(m, Resource.DATA, 4 * PAGE)
        anon(p, 3)
        fails(errno.ENOMEM, anon, p, 2)
        readonly = anon(p, 64, prot=R)
        p.mmap(None, 64 * PAGE, RW, SHARED)
        p.mmap(A, 64 * PAGE, RW, ANON | Map.FIXED | Map.GROWSDOWN)
        fails(errno.ENOMEM, p.mprotect, readonly, 2 * PAGE, RW)
        p.mprotect(readonly, PAGE, RW)
        top = p.brk()
        assert p.brk(top + PAGE) == top
        p.setrlimit(Resource.DATA, (0, 8 * PAGE))  # 0 means the hard limit here
        anon(p, 4)
        fails(errno.ENOMEM, anon, p, 1)


def test_stack_grows_up_to_its_limit() -> None:
    with machine() as m:
        p = limited(m, Resource.STACK, 4 * PAGE)
        p.mmap(A, PAGE, RW, ANON | Map.FIXED | Map.GROWSDOWN)
        p.write(A - 3 * PAGE, b"x")
        with pytest.raises(SegmentationFault):
            p.write(A - 4 * PAGE, b"x")
        assert p.maps()[0].size == 4 * PAGE


def test_a_stack_that_may_not_grow_has_its_identity_nevertheless() -> None:
    """expand_downwards() prepares the anon_vma before it asks for limits, so what lies above no longer merges."""
    with machine() as m:
        p = limited(m, Resource.STACK, PAGE)
        p.mmap(A, PAGE, RW, ANON | Map.FIXED | Map.GROWSDOWN)
        p.mmap(A + PAGE, PAGE, RW, ANON | Map.FIXED)
        p.touch(A + PAGE, PAGE, write=True)
        with pytest.raises(SegmentationFault):
            p.read(A - PAGE, 1)
        anons = {vma.start: vma.anon for vma in m._kernel.core.vmas(p._space("test").sid, 0, 1 << 47)}
        assert anons[A]
        assert anons[A] != anons[A + PAGE]


def test_locked_memory_of_who_may_not_lock_everything() -> None:
    with machine() as m:
        p = limited(m, Resource.MEMLOCK, 2 * PAGE, NOBODY)
        a = anon(p, 16)
        p.mlock(a, 2 * PAGE)
        p.mlock(a, 2 * PAGE)  # locked already, so nothing more
        fails(errno.ENOMEM, p.mlock, a, 3 * PAGE)
        fails(errno.ENOMEM, p.mlock, a + 2 * PAGE, PAGE, 1)
        fails(errno.EAGAIN, p.mmap, None, PAGE, RW, ANON | Map.LOCKED)
        fails(errno.ENOMEM, p.mlockall, 1)
        fails(errno.EAGAIN, p.mremap, a, 2 * PAGE, 8 * PAGE, MAYMOVE)
        p.mlockall(2)
        fails(errno.EAGAIN, anon, p, 1)
        top = p.brk()
        assert p.brk(top + PAGE) == top
        p.munlock(a, PAGE)
        anon(p, 1)


def test_no_locked_memory_at_all() -> None:
    with machine() as m:
        p = limited(m, Resource.MEMLOCK, 0, NOBODY)
        a = anon(p, 1)
        fails(errno.EPERM, p.mlock, a, PAGE)
        fails(errno.EPERM, p.mlock, a, 0)
        fails(errno.EPERM, p.mmap, None, PAGE, RW, ANON | Map.LOCKED)
        fails(errno.EPERM, p.mlockall, 2)
        p.munlock(a, PAGE)
        p.munlockall()
        root = limited(m, Resource.MEMLOCK, 0)
        root.mlock(anon(root, 4), 4 * PAGE)
        root.mlockall(3)


def test_low_addresses_are_for_the_privileged() -> None:
    with machine() as m:
        p = m.spawn()
        p.mmap(0, PAGE, RW, ANON | Map.FIXED)
        p.setuid(NOBODY)
        fails(errno.EPERM, p.mmap, 0, PAGE, RW, ANON | Map.FIXED)
        assert p.mmap(4096, PAGE, RW, ANON) == 65536
        fails(errno.EPERM, p.mremap, 65536, PAGE, PAGE, 3, 0)
        p.mmap(4096, PAGE, RW, ANON | Map.FIXED)


def test_what_map_fixed_replaces_is_given_credit_for() -> None:
    with machine(memory="16MiB", overcommit=Overcommit.NEVER, overcommit_ratio=50) as m:
        p = m.spawn()
        a = p.mmap(A, 6 << 20, RW, ANON | Map.FIXED)
        fails(errno.ENOMEM, p.mmap, None, 3 << 20, RW, ANON)
        p.mmap(a, 7 << 20, RW, ANON | Map.FIXED)
        p.mmap(a, 7 << 20, RW, ANON | Map.FIXED)
        assert m.meminfo().committed == 7 << 20


def test_a_late_failure_leaves_a_hole() -> None:
    """Shared memory is promised after what MAP_FIXED replaces has gone (vms_abort_munmap_vmas())."""
    with machine(memory="16MiB") as m:
        p = m.spawn()
        anon(p, 4, A)
        fails(errno.ENOMEM, p.mmap, A, 32 << 20, RW, ANON | Map.FIXED)
        assert len(p.maps()) == 1
        fails(errno.ENOMEM, p.mmap, A, 32 << 20, RW, SHARED | Map.FIXED)
        assert p.maps() == []


def test_overcommit_in_kibibytes_and_its_reserves() -> None:
    with machine(memory="64MiB", overcommit=Overcommit.NEVER, overcommit_kbytes=16384) as m:
        assert m.meminfo().commit_limit == 16 << 20
        root, other = m.spawn(), m.spawn()
        other.setuid(NOBODY)
        fails(errno.ENOMEM, anon, other, (14 << 20) // PAGE)  # 2 MiB are kept for who repairs things
        anon(root, (14 << 20) // PAGE)
        fails(errno.ENOMEM, anon, root, (2 << 20) // PAGE)


def test_mlockall_is_for_what_is_to_come_too() -> None:
    with machine() as m:
        p = m.spawn()
        a = anon(p, 2, A)
        p.mlockall(2)
        b = anon(p, 2)
        assert "lo" not in p.maps()[0].flags
        assert p.pagemap(a, 2).tolist() == [0, 0]
        assert all(p.pagemap(b, 2))
        top = p.brk(p.brk() + PAGE)
        assert all(p.pagemap(top - PAGE, 1))
        assert not any("lo" in v.flags for v in p.fork().maps())
        p.munlockall()
        assert not any("lo" in v.flags for v in p.maps())
        assert p.pagemap(anon(p, 1), 1).tolist() == [0]


def test_mlockall_on_fault() -> None:
    with machine() as m:
        p = m.spawn()
        a = anon(p, 2, A)
        p.mlockall(7)
        b = anon(p, 2)
        assert [("lo" in v.flags, "lf" in v.flags) for v in p.maps()] == [(True, True)] * 2
        assert not any(p.pagemap(a, 2)) and not any(p.pagemap(b, 2))


def test_droppable_memory() -> None:
    with machine() as m:
        p = m.spawn()
        a = p.mmap(A, 2 * PAGE, RW, Map.ANONYMOUS | Map.FIXED | Map.DROPPABLE)
        assert {"dp", "wf", "dd", "nr"} <= set(p.maps()[0].flags)
        p.write(a, b"x")
        p.mlock(a, PAGE)
        p.mlockall(3)
        assert "lo" not in p.maps()[0].flags
        assert p.fork().read(a, 1) == b"\0"
        assert m.meminfo().committed == 0
        fails(errno.EINVAL, p.madvise, a, PAGE, 19)
        fails(errno.EINVAL, p.madvise, a, PAGE, 17)
        fails(errno.EINVAL, p.mmap, None, PAGE, RW, Map.ANONYMOUS | Map.DROPPABLE | Map.LOCKED)


def test_remap_file_pages_shows_other_pages() -> None:
    with machine() as m:
        p = m.spawn()
        file = m.create_file("f", bytes([1]) * PAGE + bytes([2]) * PAGE)
        a = p.mmap(A, 2 * PAGE, Prot.READ | Prot.WRITE, Map.SHARED | Map.FIXED, file)
        p.remap_file_pages(a, PAGE, 0, 1)
        assert p.read(a, 1) == p.read(a + PAGE, 1) == b"\2"
        fails(errno.EINVAL, p.remap_file_pages, a, PAGE, 1, 0)
        fails(errno.EINVAL, p.remap_file_pages, a, 3 * PAGE, 0, 0)


def test_mincore_says_what_it_saw_before_the_hole() -> None:
    with machine() as m:
        p = m.spawn()
        a = anon(p, 2, A)
        p.touch(a, PAGE)
        with pytest.raises(SyscallError) as refused:
            p.mincore(a, 3 * PAGE)
        assert (refused.value.errno, refused.value.partial) == (errno.ENOMEM, b"\1\0")
