"""What all calls of one machine share: the core, the lock, the process table, the files, the settings.

No policy is here. Machine, Process and the calls on memory are handles over one Kernel.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import Any

from vmemu._native import Closed, Core
from vmemu.files import FileTable
from vmemu.pids import ProcessTable
from vmemu.types import ForkMode, Overcommit

__all__ = ["Image", "Kernel"]


@dataclass(frozen=True, slots=True)
class Image:
    """What a process executes, as execve left it; shared by all that forked from it."""

    path: str
    exec_fn: bytes
    argv: tuple[bytes, ...]
    envp: tuple[bytes, ...]
    comm: bytes
    auxv: tuple[tuple[int, int], ...]
    stack_pointer: int
    entry_point: int


class Kernel:
    """The state of one machine. `lock` is held by every call that takes more than one step."""

    def __init__(
        self,
        core: Core,
        *,
        npages: int,
        fork_mode: ForkMode,
        overcommit: Overcommit,
        overcommit_ratio: int,
        rng: random.Random | None,
        max_map_count: int,
    ) -> None:
        self.core = core
        self.lock = threading.RLock()
        self.files = FileTable(core, self.lock)
        self.processes = ProcessTable()
        self.images: list[Image | None] = [None]
        self._free_images: list[int] = []
        self.npages = npages
        self.fork_mode = fork_mode
        self.overcommit = overcommit
        self.overcommit_ratio = overcommit_ratio
        self.rng = rng
        """Source of address randomisation, None without."""
        self.max_map_count = max_map_count
        self.zero_pfn: int | None = None
        """Frame of the zero page."""
        self.borrowed_at: dict[int, tuple[int, ...]] = {}
        """By vfork child: what its space had counted when it was born; what was counted since is the child's."""

    @property
    def closed(self) -> bool:
        """The machine was closed."""
        return isinstance(self.core, Closed)

    def close(self) -> None:
        """Lets go of the core and of the host's files; whatever is asked of the machine from now on raises."""
        with self.lock:
            closed: Any = Closed()
            self.core = self.processes = closed
            self.files.close(closed)

    def new_image(self, image: Image) -> int:
        """Keeps an image and returns its index; those that no process has any more are dropped now and then."""
        if not self._free_images and len(self.images) > 64 + 2 * len(self.processes):
            used = {self.processes.image[pid] for pid in self.processes}
            self._free_images = [index for index in range(1, len(self.images)) if index not in used]
            for index in self._free_images:
                self.images[index] = None
        if self._free_images:
            index = self._free_images.pop()
            self.images[index] = image
            return index
        self.images.append(image)
        return len(self.images) - 1
