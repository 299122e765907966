"""What the words of a space mean: the fields of mm_struct that fork copies and the core need not know.

Most are addresses. `DEF_FLAGS` are VM flags that every new mapping gets (mlockall(2)), `LOCKED_EXTRA` pages that
count as locked though no mapping is (what MREMAP_DONTUNMAP leaves of mm->locked_vm); a fork's child has neither.
"""

from __future__ import annotations

__all__ = [
    "ARG_END",
    "ARG_START",
    "BRK",
    "DEF_FLAGS",
    "EMPTY",
    "END_CODE",
    "END_DATA",
    "ENV_END",
    "ENV_START",
    "LOCKED_EXTRA",
    "MMAP_BASE",
    "START_BRK",
    "START_CODE",
    "START_DATA",
    "START_STACK",
]

(
    START_BRK,
    BRK,
    MMAP_BASE,
    START_STACK,
    ARG_START,
    ARG_END,
    ENV_START,
    ENV_END,
    START_CODE,
    END_CODE,
    START_DATA,
    END_DATA,
    DEF_FLAGS,
    LOCKED_EXTRA,
) = range(14)

EMPTY = (0x5555_5555_4000, 0x5555_5555_4000, 0x7FFF_F7FF_F000, *[0] * 11)
"""Of a process that executes nothing: the break where a PIE lies, the mmap area 128 MiB below the top."""
