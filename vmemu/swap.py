"""Swap devices: where the bytes of pages are that had to leave memory, and when they have to.

A device holds pages by slot, from 1 on; the core decides what is in which slot and never sees the device.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from dataclasses import dataclass, field
from math import isqrt
from typing import Protocol

from vmemu.errors import SyscallError, syscall_error
from vmemu.types import PAGE_SIZE

__all__ = ["POLICIES", "HostFile", "HostMemory", "Paging", "SwapDevice", "watermarks"]

POLICIES = ("clock", "fifo", "random", "lru", "aging")
"""By number, enum vmemu_policy."""
LEAST = 10 * PAGE_SIZE
"""Bytes that a swap file has at least (mkswap(8))."""
_MOST_SLOTS = (1 << 32) - 2
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
"""And MAP_NORESERVE, which Python has from 3.12 on."""


class SwapDevice(Protocol):
    """What holds the pages."""

    npages: int
    name: str
    """As /proc/swaps has it."""
    kind: str

    memory: memoryview | None
    """Its bytes, for the core to read and write,"""
    fd: int
    """or the file that it is."""
    lent: object
    """The core's hold on `memory`."""

    def check(self) -> None:
        """OSError if nothing should be written any more."""

    def read(self, slot: int) -> bytes | memoryview:
        """The page of a slot. OSError."""

    def close(self) -> None:
        """The machine is closed."""


class HostMemory:
    """A device in the host's memory, which is taken as it is used."""

    kind = "partition"
    name = "/dev/ram0"

    def __init__(self, nbytes: int) -> None:
        """Raises SyscallError ENOMEM if the host does not even promise so much."""
        self.npages = min(nbytes // PAGE_SIZE, _MOST_SLOTS)
        try:
            self._map = mmap.mmap(-1, self.npages * PAGE_SIZE, flags=_PRIVATE)
        except OSError as error:
            why = f"this host has no room for {nbytes} bytes of swap"
            raise syscall_error("swapon", error.errno or errno.ENOMEM, why) from None
        self.memory: memoryview | None = memoryview(self._map)
        self.fd = -1
        self.lent: object = None

    def check(self) -> None:
        """See SwapDevice."""

    def read(self, slot: int) -> memoryview:
        """See SwapDevice."""
        assert self.memory is not None  # noqa: S101 - it is closed else
        return self.memory[(slot - 1) * PAGE_SIZE : slot * PAGE_SIZE]

    def close(self) -> None:
        """See SwapDevice."""
        self.memory = self.lent = None
        self._map.close()


class HostFile:
    """A device in a file of the host, which must exist; what it held is overwritten."""

    kind = "file"

    def __init__(self, path: str | os.PathLike[str], nbytes: int = 0) -> None:
        """*nbytes*: how much of it to use, 0 for all. Raises SyscallError as swapon(2): EINVAL for no regular file or
        one that is too small, and what open(2) says."""
        self.name = os.fsdecode(path)
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise syscall_error("swapon", error.errno or errno.EIO, self.name) from None
        try:
            st = os.fstat(self.fd)
            size = st.st_size // PAGE_SIZE * PAGE_SIZE
            if not stat.S_ISREG(st.st_mode):
                raise syscall_error("swapon", errno.EINVAL, f"{self.name} is not a regular file")
            if size < max(LEAST, nbytes):
                raise syscall_error(
                    "swapon", errno.EINVAL, f"{self.name} is too small: {st.st_size} bytes, not {max(LEAST, nbytes)}"
                )
        except SyscallError:
            os.close(self.fd)
            raise
        self.memory: memoryview | None = None
        self.lent: object = None
        self.npages = min((nbytes or size) // PAGE_SIZE, _MOST_SLOTS)

    def check(self) -> None:
        """See SwapDevice: the file is not what it was. What it holds can be read, but no more shall go there."""
        st = os.fstat(self.fd)
        if not st.st_nlink:
            raise OSError(errno.ENOENT, "it was removed")
        if st.st_size < self.npages * PAGE_SIZE:
            raise OSError(errno.EIO, f"it was cut to {st.st_size} bytes")

    def read(self, slot: int) -> bytes:
        """See SwapDevice."""
        data = os.pread(self.fd, PAGE_SIZE, (slot - 1) * PAGE_SIZE)
        if len(data) != PAGE_SIZE:
            raise OSError(errno.EIO, "it became shorter")
        return data

    def close(self) -> None:
        """See SwapDevice."""
        os.close(self.fd)


@dataclass(slots=True)
class Paging:
    """How a machine reclaims memory, and how often it did."""

    device: SwapDevice | None
    swappiness: int
    policy: str
    min: int
    """Free frames: no fewer should there be,"""
    low: int
    """below this some are reclaimed,"""
    high: int
    """until there are so many."""

    @property
    def promo(self) -> int:
        """One step above `high` (promo_wmark_pages())."""
        return 2 * self.high - self.low

    failed: bool = False
    """The device can't be written any more."""
    stops: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """By space: where its last access stopped, when so many faults had been, and how often just there."""
    stalls: int = 0
    """Calls that had to reclaim for themselves (allocstall)."""
    balanced: int = 0
    """Times that memory was brought back to the high watermark (pageoutrun)."""
    steal_kswapd: int = 0
    """Frames, by who reclaimed them."""
    steal_direct: int = 0
    scan_kswapd: int = 0
    scan_direct: int = 0


def watermarks(npages: int) -> tuple[int, int, int]:
    """(min, low, high) free frames, as Linux has them for RAM in one zone (init_per_zone_wmark_min(),
    __setup_per_zone_wmarks()); a machine of a few MiB keeps less back than the 128 KiB that Linux insists on."""
    kbytes = min(max(isqrt(npages * PAGE_SIZE // 1024 * 16), 128), 262144)
    least = max(1, min(kbytes * 1024 // PAGE_SIZE, npages // 32))
    step = max(1, least // 4, npages // 1000)
    return least, least + step, least + 2 * step
