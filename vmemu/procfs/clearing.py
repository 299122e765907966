"""PID/clear_refs (clear_refs_write()): forgetting what was accessed, written, or the most that was resident."""

from __future__ import annotations

from vmemu.memory.clear_refs import ALL, HIGH_WATER, clear_refs
from vmemu.procfs.numbers import invalid, parse_int
from vmemu.procfs.subject import Subject

__all__ = ["write_clear_refs"]


def write_clear_refs(subject: Subject, data: bytes, by: int | None) -> None:
    """1 to 3: the accessed bits of all, of anonymous, of mapped files' pages; 4: soft-dirty; 5: VmHWM is now VmRSS.

    Nothing happens to a zombie. EINVAL and ERANGE for other numbers.
    """
    what = parse_int("clear_refs", data)
    if not ALL <= what <= HIGH_WATER:
        raise invalid("clear_refs", data)
    if subject.space is not None:
        clear_refs(subject.space, what)
