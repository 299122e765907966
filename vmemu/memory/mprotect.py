"""mprotect(2) and mseal(2). Errors in the order of do_mprotect_pkey() and mprotect_fixup()."""

from __future__ import annotations

import contextlib
import errno
from typing import SupportsIndex

from vmemu._native import Vma
from vmemu._native import constants as c
from vmemu.errors import OutOfMemory, syscall_error
from vmemu.memory.args import MASK, page_up, u64
from vmemu.memory.mmap import vm_prot
from vmemu.memory.space import Space
from vmemu.types import PAGE_SIZE, Prot

__all__ = ["mprotect", "mseal"]

_ACCESS = c.VM_READ | c.VM_WRITE | c.VM_EXEC
_PROT_SEM = 8
# plain numbers: the complement of an IntFlag has only the bits that it knows
_VALID = int(Prot.READ | Prot.WRITE | Prot.EXEC) | _PROT_SEM
_GROWSDOWN, _GROWSUP = int(Prot.GROWSDOWN), int(Prot.GROWSUP)


def mprotect(space: Space, address: SupportsIndex, length: SupportsIndex, prot: int) -> list[tuple[int, int, int]]:
    """Changes the protection of a range; a later hole stops it with what lies before already changed. Returns (start,
    end, VM flags) of each part that changed, for who makes such mappings again."""
    call = "mprotect"
    addr, size = u64(address, call, "address"), u64(length, call, "length")
    prot = u64(prot, call, "prot")
    grows = prot & (_GROWSDOWN | _GROWSUP)
    prot &= ~grows
    if grows == _GROWSDOWN | _GROWSUP:
        raise syscall_error(call, errno.EINVAL, "PROT_GROWSDOWN and PROT_GROWSUP")
    if addr % PAGE_SIZE:
        raise syscall_error(call, errno.EINVAL, f"address {addr:#x} is not page aligned")
    changed: list[tuple[int, int, int]] = []
    if not size:
        return changed
    end = addr + page_up(size) & MASK
    if end <= addr:
        raise syscall_error(call, errno.ENOMEM, "the range wraps around")
    if prot & ~_VALID:
        raise syscall_error(call, errno.EINVAL, f"protection {prot:#x}")
    with space.kernel.lock:
        core = space.kernel.core
        vma = core.find(space.sid, addr)
        if vma is None or vma.start >= end:
            raise syscall_error(call, errno.ENOMEM, f"nothing is mapped at {addr:#x}")
        if grows & _GROWSDOWN:
            if not vma.flags & c.VM_GROWSDOWN:
                raise syscall_error(call, errno.EINVAL, "PROT_GROWSDOWN on a mapping that does not grow")
            addr = vma.start
        elif vma.start > addr:
            raise syscall_error(call, errno.ENOMEM, f"nothing is mapped at {addr:#x}")
        elif grows:
            raise syscall_error(call, errno.EINVAL, "PROT_GROWSUP on a mapping that does not grow")
        at = addr
        while at < end:
            vma = core.find(space.sid, at)
            if vma is None or vma.start > at:
                raise syscall_error(call, errno.ENOMEM, f"nothing is mapped at {at:#x}")
            stop = min(vma.end, end)
            flags = _change(space, vma, at, stop, vm_prot(prot))
            if flags != vma.flags:
                changed.append((at, stop, flags))
            at = stop
    return changed


def _change(space: Space, vma: Vma, start: int, end: int, access: int) -> int:
    call = "mprotect"
    flags = vma.flags & ~_ACCESS | access
    if access & ~(vma.flags >> 4) & _ACCESS:
        raise syscall_error(call, errno.EACCES, f"{vma.start:#x}-{vma.end:#x} maps a file open read-only")
    if vma.flags & c.VM_SEALED:
        raise syscall_error(call, errno.EPERM, f"{vma.start:#x}-{vma.end:#x} is sealed")
    if flags == vma.flags:
        return flags
    if access & c.VM_WRITE:
        npages = (end - start) // PAGE_SIZE
        if not space.may_expand(flags, npages) and space.may_expand(vma.flags, npages):
            raise syscall_error(call, errno.ENOMEM, f"RLIMIT_DATA: {end - start} bytes more")
        if not vma.flags & (c.VM_ACCOUNT | c.VM_WRITE | c.VM_SHARED | c.VM_NORESERVE):
            if not space.enough_memory(npages):
                raise syscall_error(
                    call, errno.ENOMEM, f"overcommit: {(end - start) // PAGE_SIZE} more pages can't be promised"
                )
            flags |= c.VM_ACCOUNT
    elif vma.flags & c.VM_ACCOUNT and not vma.object and not vma.anon:
        flags &= ~c.VM_ACCOUNT  # nothing was written yet: the promise can be taken back
    space.reflag(vma, start, end, flags, call)
    locked = vma.flags & (c.VM_WRITE | c.VM_SHARED | c.VM_LOCKED | c.VM_LOCKONFAULT) == c.VM_LOCKED
    if locked and access & c.VM_WRITE:
        with contextlib.suppress(OutOfMemory):
            space.populate(start, end, True)  # locked memory that may be written shall not fault when it is
    return flags


def mseal(space: Space, address: SupportsIndex, length: SupportsIndex, flags: int = 0) -> None:
    """Seals a range, which must be mapped throughout: no change of its mappings from now on (mm/mseal.c)."""
    call = "mseal"
    addr, size = u64(address, call, "address"), u64(length, call, "length")
    if u64(flags, call, "flags"):
        raise syscall_error(call, errno.EINVAL, f"flags {flags:#x}")
    end = addr + page_up(size) & MASK
    if addr % PAGE_SIZE or (size and not page_up(size)) or end < addr:
        raise syscall_error(call, errno.EINVAL, f"{addr:#x} + {size:#x}")
    with space.kernel.lock:
        at = addr
        for vma in space.kernel.core.vmas(space.sid, addr, end):
            if vma.start > at:
                break
            at = vma.end
        if at < end:
            raise syscall_error(call, errno.ENOMEM, f"nothing is mapped at {at:#x}")
        for vma in space.vmas(addr, end):
            space.reflag(vma, max(vma.start, addr), min(vma.end, end), vma.flags | c.VM_SEALED, call)
