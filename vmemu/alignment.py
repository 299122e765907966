"""Where big mappings of files begin so that huge pages fit into them: one rule for mmap, mremap and execve."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["HUGE_PAGE", "place_huge"]

HUGE_PAGE = 2 << 20
"""Bytes of a page-table entry of level 2."""


def place_huge(fit: Callable[[int, int], int | None], hint: int, length: int, offset: int) -> int | None:
    """An address at which 2 MiB pages of the file and of memory coincide; None where the usual rule is to decide.

    *fit(hint, length)* is the usual rule. The file is mapped from *offset* on; for anonymous memory that is 0. With
    less than one whole huge page in it there is nothing to align (thp_get_unmapped_area()).
    """
    first, end = _signed((offset + HUGE_PAGE - 1) & -HUGE_PAGE), _signed(offset + length)
    if end <= first or 0 <= _signed(end - first) < HUGE_PAGE:
        return None
    found = fit(hint, length + HUGE_PAGE)
    if found is None or found == hint:
        return found
    return found + ((offset - found) % HUGE_PAGE or HUGE_PAGE)


def _signed(number: int) -> int:
    """As a loff_t computes: at the largest offsets the sums wrap around."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
