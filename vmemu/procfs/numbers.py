"""Numbers as they are written into files of /proc."""

from __future__ import annotations

import errno
import re

from vmemu.errors import SyscallError, syscall_error

__all__ = ["invalid", "parse_int"]

_BUFFER = 12
"""Bytes of what is written that are looked at (PROC_NUMBUF, less the final 0)."""
_DIGITS = {
    10: re.compile(rb"[+-]?[0-9]+"),
    0: re.compile(rb"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)"),
}


def invalid(file: str, data: bytes) -> SyscallError:
    """EINVAL for what makes no sense there."""
    return syscall_error("write", errno.EINVAL, f"{data!r} to {file}")


def parse_int(file: str, data: bytes, base: int = 10) -> int:
    """kstrtoint(strstrip(...)) of the first 12 bytes; *base* 0 knows 0x and a leading 0 for octal. EINVAL, ERANGE."""
    text = data[:_BUFFER].split(b"\0")[0].strip(b" \t\n\v\f\r\xa0")
    if not _DIGITS[base].fullmatch(text):
        raise invalid(file, data)
    sign, digits = (-1 if text[:1] == b"-" else 1), text.lstrip(b"+-")
    octal = base == 0 and digits[:1] == b"0" and digits[1:2] not in (b"x", b"X") and len(digits) > 1
    try:
        value = sign * int(digits, 8 if octal else base)
    except ValueError:
        raise invalid(file, data) from None
    if not -(1 << 31) <= value < 1 << 31:
        raise syscall_error("write", errno.ERANGE, f"{data!r} to {file}")
    return value
