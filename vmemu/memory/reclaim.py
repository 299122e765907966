"""Reclaim: frames made free by taking pages out of memory, and pages brought back.

The core says which frames go and takes them from everybody who maps them (csrc/reclaim.h). What is here is how many,
from whom, and the input and output: dirty pages are written before their frames are free, to the swap device or to
their file. What kswapd does in the background of a real machine is done at once where a fault finds too few frames
free.
"""

from __future__ import annotations

import errno
import os
from array import array
from typing import Any

from vmemu._native import Trap
from vmemu._native import constants as c
from vmemu.errors import OutOfMemory, SwapError, VmemuError
from vmemu.kernel import Kernel
from vmemu.memory.args import TASK_SIZE
from vmemu.swap import POLICIES, Paging, SwapDevice, watermarks
from vmemu.types import PAGE_SIZE

__all__ = [
    "FilePager",
    "balance",
    "fetch",
    "hold_back",
    "in_vain",
    "page_out",
    "share",
    "shrink",
    "start_paging",
    "swap_in",
    "trim",
]

_SWAPPED, _GUARD = 1 << 62, 1 << 58
"""Of pagemap."""
_LEAST, _MOST = 32, 4096
"""Frames asked for at once: where one lacks (SWAP_CLUSTER_MAX), and at most."""
_PART = 64
"""Of the machine's memory, or of a control group's, that much goes at least: all of it is looked at for that."""
_RETRIES = 16
"""Times that an access may come no further for it (MAX_RECLAIM_RETRIES)."""
_STOPS = 64
"""Spaces of which it is known where they stopped last."""


def start_paging(kernel: Kernel, device: SwapDevice | None, swappiness: int, policy: str, seed: int) -> None:
    """From now on memory is reclaimed."""
    least, low, high = watermarks(kernel.npages)
    kernel.paging = Paging(device, swappiness, policy, least, low, high)
    if device is not None:
        kernel.core.swap_on(device.npages)
        device.lent = kernel.core.swap_lend(device.memory, device.fd)
    kernel.core.policy(POLICIES.index(policy), seed & 0x7FFF_FFFF_FFFF_FFFF)
    kernel.core.watermark(low)
    kernel.files.pager = FilePager(kernel)


def shrink(kernel: Kernel, npages: int, cgroup: int = 0) -> int:
    """Tries to free *npages* frames of the machine, or of those charged to a control group or one below it -> how many
    it freed. SwapError when the swap device fails: from then on nothing is written to it; nothing is lost."""
    paging = kernel.paging
    if paging is None:
        return 0
    with kernel.lock:
        paging.stalls += 1
        before = _scanned(kernel)
        freed = _reclaim(kernel, paging, npages, cgroup)
        paging.steal_direct += freed
        paging.scan_direct += _scanned(kernel) - before
        return freed


def in_vain(kernel: Kernel, sid: int, address: int) -> bool:
    """An access of a space stops here, for want of frames, once more -> whether it did so often and came no further:
    what it needs goes as it comes (should_reclaim_retry())."""
    paging = kernel.paging
    if paging is None:
        return False
    with kernel.lock:
        last, faults, times = paging.stops.get(sid, (0, 0, 0))
        now = sum(kernel.core.faults(sid))
        times = times + 1 if (last, faults) == (address, now) else 0
        if len(paging.stops) > _STOPS:
            paging.stops.clear()
        vain = times > _RETRIES
        paging.stops[sid] = address, now, 0 if vain else times
        return vain


def balance(kernel: Kernel, vain: bool = False) -> None:
    """Brings the free frames back over the high watermark if they are below the low one (balance_pgdat()). *vain*:
    nothing comes of that now."""
    paging = kernel.paging
    if paging is None or kernel.core.free_frames() >= paging.low:
        return
    with kernel.lock:
        before = _scanned(kernel)
        wanted = paging.high - kernel.core.free_frames()
        if wanted > 0 and not vain:
            wanted = max(wanted, kernel.npages // _PART)
            freed = _reclaim(kernel, paging, wanted, 0)
            paging.balanced += 1
            paging.steal_kswapd += freed
            paging.scan_kswapd += _scanned(kernel) - before
        if vain or kernel.core.free_frames() < paging.low:
            kernel.core.stalled()


def share(kernel: Kernel, cgroup: int) -> int:
    """Frames that are worth a look at all of them: of the machine, what kswapd frees meanwhile too."""
    if kernel.paging is None:
        return 0
    if cgroup:
        return min(int(kernel.core.cgroup_info(cgroup).usage) // _PART, _MOST)
    return max(kernel.paging.high - kernel.core.free_frames(), kernel.npages // _PART)


def trim(kernel: Kernel, cgroup: int, most: int) -> None:
    """Brings what a control group is charged for down to *most* pages, as far as reclaim goes (memory_high_write())."""
    while (over := int(kernel.core.cgroup_info(cgroup).usage) - most) > 0 and shrink(kernel, over, cgroup):
        pass


def hold_back(kernel: Kernel, cgroup: int, vain: bool) -> None:
    """A control group was charged beyond its memory.high: brings it back (reclaim_high()). *vain*: nothing comes of
    that now."""
    with kernel.lock:
        group = kernel.cgroups.by_id.get(cgroup)
        if group is None:  # by now
            return
        if not vain and group.memory_high is not None:
            trim(kernel, cgroup, group.memory_high // PAGE_SIZE)
        kernel.core.cgroup_settled(cgroup, _LEAST)


def _scanned(kernel: Kernel) -> int:
    counts = kernel.core.swap_info().counts
    return int(counts[c.RC_SCAN_ANON] + counts[c.RC_SCAN_FILE])


def _reclaim(kernel: Kernel, paging: Paging, npages: int, cgroup: int) -> int:
    """Batch after batch as long as something comes of it."""
    groups, freed = _groups(kernel, cgroup) if cgroup else None, 0
    while freed < npages:
        cap = min(npages - freed, _MOST)
        victims, n, done = kernel.core.reclaim(cap, paging.swappiness, groups, paging.failed)
        found = done + n
        done += _write_out(kernel, paging, victims, n)
        freed += done
        if not done or found < cap:  # that is all there is
            break
    kernel.files.forget_empty()
    return freed


def _groups(kernel: Kernel, cgroup: int) -> bytes:
    """By number whether it is that control group or one below it."""
    numbers = [group.number for group in kernel.cgroups.by_id[cgroup].below()]
    flags = bytearray(max(numbers) + 1)
    for number in numbers:
        flags[number] = 1
    return bytes(flags)


def _write_out(kernel: Kernel, paging: Paging, victims: Any, n: int) -> int:
    """Writes victims and lets them go -> how many frames are free by that."""
    if not n:
        return 0
    try:
        for i in range(n):
            victim = victims[i]
            if victim.slot:  # those of files come first
                _write_slots(kernel, paging, victims, n)
                break
            if kernel.files.write_back(victim.object, victim.index, victim.index + 1):
                victim.written = 1
    finally:
        freed = kernel.core.reclaimed(victims, n)
    return freed


def _write_slots(kernel: Kernel, paging: Paging, victims: Any, n: int) -> None:
    device = paging.device
    assert device is not None  # noqa: S101 - who gave out the slots else
    why = None
    if kernel.contents:
        try:
            device.check()
        except OSError as error:
            why = error.strerror
    number = kernel.core.swap_write(victims, n) if why is None else 0
    if number == errno.ENOMEM:  # of the host's
        raise OutOfMemory(number, "swap: Cannot allocate memory (the host has no memory for it)")
    if number:
        why = os.strerror(number)
    if why is not None:
        paging.failed = True
        why = f"{device.name} can't be written any more: {why}; what is in memory is kept"
        raise SwapError(errno.EIO, f"swap: Input/output error ({why})")


def _read(kernel: Kernel, slot: int) -> bytes | memoryview:
    if kernel.closed:
        raise VmemuError("the machine is closed")
    assert kernel.paging is not None and kernel.paging.device is not None  # noqa: S101 - who gave out the slot else
    device = kernel.paging.device
    if not kernel.contents:
        return b""
    try:
        return device.read(slot)
    except OSError as error:
        why = f"page {slot} of {device.name} can't be read back: {error.strerror}"
        raise SwapError(errno.EIO, f"swap: Input/output error ({why})") from None


def swap_in(kernel: Kernel, trap: Trap, major: bool = True) -> None:
    """Reads the page that a fault misses. OutOfMemory without a frame; EIO if the device fails."""
    with kernel.lock:
        if trap.object:
            _swap_in_object(kernel, trap.object, trap.page, major)
        else:
            kernel.core.swap_fill(trap.page, _read(kernel, trap.page))


def _swap_in_object(kernel: Kernel, object_: int, index: int, major: bool = False) -> bool:
    """The same for a page of shared memory; False if it is not on the device."""
    slot = kernel.core.object_slot(object_, index)
    if slot:
        kernel.core.object_swap_fill(object_, index, _read(kernel, slot), major)
    return bool(slot)


def fetch(kernel: Kernel, sid: int, address: int) -> bool:
    """Brings an anonymous page back into the swap cache, without an access; False if it is not on the device."""
    if kernel.paging is None or address >= TASK_SIZE:
        return False
    entry = array("Q", bytes(8))
    kernel.core.pagemap(sid, address & -PAGE_SIZE, 1, entry)
    if not entry[0] & _SWAPPED or entry[0] & _GUARD:
        return False
    with kernel.lock:
        slot = entry[0] >> 5 & (1 << 50) - 1
        while True:
            try:
                kernel.core.swap_fill(slot, _read(kernel, slot))
                return True
            except OutOfMemory as error:
                if error.cgroup is None or not shrink(kernel, _LEAST, error.cgroup):
                    raise


class FilePager:
    """For the files of a machine; see files.Pager."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def read_in(self, object_: int, index: int) -> bool:
        """Shared memory back from the swap device."""
        return _swap_in_object(self._kernel, object_, index)


def page_out(kernel: Kernel, sid: int, start: int, end: int, call: str) -> None:
    """MADV_PAGEOUT of a range inside one mapping."""
    paging = kernel.paging
    if paging is None or paging.device is None or paging.failed:
        kernel.core.pageout(sid, start, end, call)
        return
    victims, n = kernel.core.swap_out(sid, start, end, call)
    _write_out(kernel, paging, victims, n)
