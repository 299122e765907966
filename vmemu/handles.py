"""Many processes: handles of them are made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Dictionary
from typing import Any, TypeVar

from vmemu.kernel import Kernel

__all__ = ["Children", "ProcessMap"]

H = TypeVar("H")


class Children(Sequence[H]):
    """Processes of consecutive pids; handles are made when asked for."""

    def __init__(self, kernel: Kernel, pids: range, make: Callable[[Kernel, int], H]) -> None:
        self.kernel = kernel
        self.pids = pids
        self._make = make

    def __len__(self) -> int:
        return len(self.pids)

    def __iter__(self) -> Iterator[H]:
        kernel, make = self.kernel, self._make
        return (make(kernel, pid) for pid in self.pids)

    def __getitem__(self, index: Any) -> Any:
        found = self.pids[index]
        if isinstance(found, range):
            return Children(self.kernel, found, self._make)
        return self._make(self.kernel, found)

    def __repr__(self) -> str:
        return f"<vmemu.Children: {len(self)} processes>"


class ProcessMap(Dictionary[int, H]):
    """pid -> Process of one machine, zombies included; a live view, handles are made when asked for."""

    def __init__(self, kernel: Kernel, make: Callable[[Kernel, int], H]) -> None:
        self._kernel = kernel
        self._make = make

    def __len__(self) -> int:
        return len(self._kernel.processes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._kernel.processes)

    def __contains__(self, pid: object) -> bool:
        return pid in self._kernel.processes

    def __getitem__(self, pid: int) -> H:
        if pid not in self:
            raise KeyError(pid)
        return self._make(self._kernel, pid)

    def __repr__(self) -> str:
        return f"<vmemu.ProcessMap: {'closed' if self._kernel.closed else f'{len(self)} processes'}>"
