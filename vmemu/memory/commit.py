"""Overcommit: whether the machine may promise more memory (__vm_enough_memory(), proc_sys_vm(5))."""

from __future__ import annotations

from vmemu.kernel import Kernel
from vmemu.types import PAGE_SIZE, Overcommit

__all__ = ["commit_limit", "enough_memory"]

USER_RESERVE = (128 << 20) // PAGE_SIZE
"""vm.user_reserve_kbytes' upper bound, in pages."""


def commit_limit(kernel: Kernel) -> int:
    """CommitLimit in pages: the share of RAM, plus swap (vm_commit_limit())."""
    return kernel.npages * kernel.overcommit_ratio // 100


def enough_memory(kernel: Kernel, sid: int, npages: int) -> bool:
    """Whether *npages* more may be charged on behalf of space *sid* (0: none)."""
    if kernel.overcommit == Overcommit.ALWAYS:
        return True
    if kernel.overcommit == Overcommit.HEURISTIC:
        return npages <= kernel.npages
    allowed = commit_limit(kernel)
    if sid:
        reserve = min(kernel.npages * 3 // 100, USER_RESERVE)
        allowed -= min(int(kernel.core.sums(sid).total) // 32, reserve)
    return int(kernel.core.info().account) + npages < allowed
