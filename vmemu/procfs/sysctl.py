"""/proc/sys: the settings of the machine that its memory depends on, proc_sys_vm(5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmemu.kernel import Kernel
from vmemu.limits import Limits, Resource
from vmemu.procfs.numbers import invalid, parse_int
from vmemu.types import Overcommit

__all__ = ["SETTINGS", "Setting"]


class Setting(NamedTuple):
    """A number: how to get it and, if it may be changed, how and between which bounds."""

    get: Callable[[Kernel], int]
    set: Callable[[Kernel, int], None] | None = None
    least: int = 0
    most: int = (1 << 31) - 1

    def read(self, kernel: Kernel) -> bytes:
        """The file."""
        return b"%d\n" % self.get(kernel)

    def write(self, kernel: Kernel, file: str, data: bytes) -> None:
        """Sets it. EINVAL outside the bounds (proc_dointvec_minmax()); nothing happens if nothing is written."""
        if not data.strip():
            return
        value = parse_int(file, data)
        if not self.least <= value <= self.most or self.set is None:
            raise invalid(file, data)
        self.set(kernel, value)


def _overcommit_memory(kernel: Kernel, value: int) -> None:
    kernel.overcommit = Overcommit(value)


def _overcommit_ratio(kernel: Kernel, value: int) -> None:
    kernel.overcommit_ratio = value
    kernel.overcommit_kbytes = 0


def _overcommit_kbytes(kernel: Kernel, value: int) -> None:
    kernel.overcommit_kbytes = value
    kernel.overcommit_ratio = 0


def _max_map_count(kernel: Kernel, value: int) -> None:
    kernel.max_map_count = value


def _threads_max(kernel: Kernel) -> int:
    return 2 * Limits.at_boot(kernel.npages).soft(Resource.NPROC)


def _admin_reserve_kbytes(kernel: Kernel, value: int) -> None:
    kernel.admin_reserve_kbytes = value


def _user_reserve_kbytes(kernel: Kernel, value: int) -> None:
    kernel.user_reserve_kbytes = value


def _panic_on_oom(kernel: Kernel, value: int) -> None:
    kernel.panic_on_oom = value


def _oom_kill_allocating_task(kernel: Kernel, value: int) -> None:
    kernel.oom_kill_allocating_task = value


def _swappiness(kernel: Kernel, value: int) -> None:
    if kernel.paging is not None:
        kernel.paging.swappiness = value


SETTINGS = {
    "sys/vm/admin_reserve_kbytes": Setting(lambda kernel: kernel.admin_reserve_kbytes, _admin_reserve_kbytes),
    "sys/vm/max_map_count": Setting(lambda kernel: kernel.max_map_count, _max_map_count),
    "sys/vm/mmap_min_addr": Setting(lambda _: 4096),
    "sys/vm/oom_kill_allocating_task": Setting(
        lambda kernel: kernel.oom_kill_allocating_task, _oom_kill_allocating_task
    ),
    "sys/vm/panic_on_oom": Setting(lambda kernel: kernel.panic_on_oom, _panic_on_oom, most=2),
    "sys/vm/overcommit_kbytes": Setting(lambda kernel: kernel.overcommit_kbytes, _overcommit_kbytes),
    "sys/vm/overcommit_memory": Setting(lambda kernel: int(kernel.overcommit), _overcommit_memory, most=2),
    "sys/vm/overcommit_ratio": Setting(lambda kernel: kernel.overcommit_ratio, _overcommit_ratio),
    "sys/vm/swappiness": Setting(
        lambda kernel: 60 if kernel.paging is None else kernel.paging.swappiness, _swappiness, most=200
    ),
    "sys/vm/user_reserve_kbytes": Setting(lambda kernel: kernel.user_reserve_kbytes, _user_reserve_kbytes),
    "sys/kernel/threads-max": Setting(_threads_max),
    "sys/kernel/randomize_va_space": Setting(lambda kernel: 0 if kernel.rng is None else 2),
}
