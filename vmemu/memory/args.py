"""Arguments of system calls as the kernel sees them: 64-bit registers, pages."""

from __future__ import annotations

import errno
from typing import SupportsIndex

from vmemu.errors import syscall_error

__all__ = ["MASK", "TASK_SIZE", "i32", "integer", "page_up", "u32", "u64"]

MASK = (1 << 64) - 1
_LEAST = -(1 << 63)
TASK_SIZE = 0x7FFF_FFFF_F000
"""End of the user half; the last page below 2^47 cannot be mapped."""


def integer(value: SupportsIndex, call: str, what: str) -> int:
    """*value* as an int; TypeError that names *what* if it is none."""
    try:
        return value.__index__()
    except AttributeError:
        raise TypeError(f"{call}: {what} must be an int, not {type(value).__name__}") from None


def u64(value: SupportsIndex, call: str, what: str) -> int:
    """*value* as a register holds it: negative numbers wrap. TypeError if it is no integer, EINVAL if it has
    over 64 bits."""
    number = value if type(value) is int else integer(value, call, what)
    if 0 <= number <= MASK:
        return number
    if not _LEAST <= number < 0:
        raise syscall_error(call, errno.EINVAL, f"{what} {number:#x} does not fit in 64 bits")
    return number & MASK


def u32(value: SupportsIndex, call: str, what: str) -> int:
    """*value* as a parameter of type int takes it from a register, without its sign: the upper half is lost."""
    return u64(value, call, what) & 0xFFFF_FFFF


def i32(value: SupportsIndex, call: str, what: str) -> int:
    """The same with its sign."""
    number = u32(value, call, what)
    return number - (1 << 32) if number >> 31 else number


def page_up(length: int) -> int:
    """*length* rounded up to pages, modulo 2^64 (PAGE_ALIGN())."""
    return (length + 4095) & ~4095 & MASK
