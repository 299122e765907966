"""Overcommit: whether the machine may promise more memory (__vm_enough_memory(), proc_sys_vm(5))."""

from __future__ import annotations

from vmemu.kernel import Kernel
from vmemu.types import PAGE_SIZE, Overcommit

__all__ = ["commit_limit", "enough_memory"]


def commit_limit(kernel: Kernel) -> int:
    """CommitLimit in pages: the share of RAM, or vm.overcommit_kbytes, plus swap (vm_commit_limit())."""
    if kernel.overcommit_kbytes:
        return kernel.overcommit_kbytes * 1024 // PAGE_SIZE + kernel.swap_pages
    return (kernel.npages - kernel.pool_pages) * kernel.overcommit_ratio // 100 + kernel.swap_pages


def enough_memory(kernel: Kernel, sid: int, npages: int, admin: bool) -> bool:
    """Whether *npages* more may be charged on behalf of space *sid*; *admin*: by who has CAP_SYS_ADMIN."""
    if kernel.overcommit is Overcommit.ALWAYS:
        return True
    if kernel.overcommit is Overcommit.HEURISTIC:
        return npages <= kernel.npages + kernel.swap_pages
    allowed = commit_limit(kernel)
    if not admin:
        allowed -= kernel.admin_reserve_kbytes * 1024 // PAGE_SIZE
    allowed -= min(int(kernel.core.sums(sid).total) // 32, kernel.user_reserve_kbytes * 1024 // PAGE_SIZE)
    return int(kernel.core.info().account) + npages < allowed
