"""Reclaim: making frames free that may be had back."""

from __future__ import annotations

from vmemu.kernel import Kernel

__all__ = ["shrink"]


def shrink(kernel: Kernel, npages: int, cgroup: int = 0) -> int:
    """Tries to free *npages* frames of the machine, or of those charged to a control group or one below it -> how many
    it freed."""
    return 0
