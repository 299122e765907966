"""mmap(2)'s flags as plain integers: an operation on members of an enum takes a microsecond."""

from __future__ import annotations

from vmemu.types import Map, Prot

__all__ = [
    "MAP_ABOVE4G",
    "MAP_ANONYMOUS",
    "MAP_BITS_32",
    "MAP_DROPPABLE",
    "MAP_FIXED",
    "MAP_FIXED_NOREPLACE",
    "MAP_GROWSDOWN",
    "MAP_HUGETLB",
    "MAP_LOCKED",
    "MAP_NONBLOCK",
    "MAP_NORESERVE",
    "MAP_POPULATE",
    "MAP_PRIVATE",
    "MAP_SHARED",
    "MAP_SHARED_VALIDATE",
    "MAP_STACK",
    "MAP_SYNC",
    "MAP_TYPE",
    "PROT_WRITE",
]

MAP_ABOVE4G = int(Map.ABOVE4G)
MAP_ANONYMOUS = int(Map.ANONYMOUS)
MAP_BITS_32 = int(Map.BITS_32)
MAP_DROPPABLE = int(Map.DROPPABLE)
MAP_FIXED = int(Map.FIXED)
MAP_FIXED_NOREPLACE = int(Map.FIXED_NOREPLACE)
MAP_GROWSDOWN = int(Map.GROWSDOWN)
MAP_HUGETLB = int(Map.HUGETLB)
MAP_LOCKED = int(Map.LOCKED)
MAP_NONBLOCK = int(Map.NONBLOCK)
MAP_NORESERVE = int(Map.NORESERVE)
MAP_POPULATE = int(Map.POPULATE)
MAP_PRIVATE = int(Map.PRIVATE)
MAP_SHARED = int(Map.SHARED)
MAP_SHARED_VALIDATE = int(Map.SHARED_VALIDATE)
MAP_STACK = int(Map.STACK)
MAP_SYNC = int(Map.SYNC)
PROT_WRITE = int(Prot.WRITE)
MAP_TYPE = 0xF
"""Bits of the flags that say how a mapping is shared."""
