"""A script's processes inside vmemu, driven and observed through the public interface only."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any

from recorded import script
from recorded.observer import Observer, Vma, checksum, offset
from recorded.script import ARENA, ARENA_PAGES, PAGE, SUMS, Op, State

import vmemu

MEMORY, HUGE_MEMORY = "16MiB", "64MiB"
"""RAM of the emulated machine: little, because kpagecount and kpageflags are read in full at every step."""
CLONE_VM = 0x100
_ARENA_END = ARENA + ARENA_PAGES * PAGE


class Emulated:
    """One run of one script: a machine, up to eight processes by slot, and what was last observed of them.

    *frames* and *sums*: whether to look at labels and map counts, and at smaps; both cost time.
    """

    def __init__(
        self,
        *,
        thp: bool = False,
        settled: bool = False,
        fork_mode: vmemu.ForkMode | None = None,
        frames: bool = True,
        sums: bool = True,
    ) -> None:
        self.machine = vmemu.Machine(
            memory=HUGE_MEMORY if thp else MEMORY,
            fork_mode=vmemu.ForkMode.COW if fork_mode is None else fork_mode,
            fault_around=script.FAULT_AROUND,
            thp="madvise" if thp else "never",
        )
        image = script.file_image()
        self.files = {
            "F": self.machine.create_file("F", image),
            "E": self.machine.create_file("E", image, writenotify=True),
        }
        self.slots = {0: self.machine.spawn()}
        self._settler = self.machine.spawn() if settled else None
        if self._settler is not None:
            self._page = self._settler.mmap(None, PAGE, vmemu.Prot.READ, vmemu.Map.PRIVATE | vmemu.Map.ANONYMOUS)
        self._frames, self._sums = frames, sums
        self._counts: Sequence[int] = ()
        self._flags: Sequence[int] = ()
        self.observer = Observer(self._frame, {file.inode: tag for tag, file in self.files.items()})

    def close(self) -> None:
        self.machine.close()

    @property
    def alive(self) -> Collection[int]:
        return self.slots.keys()

    # ---- operations

    def do(self, op: Op) -> dict[str, Any]:
        """Perform one operation and give its result as a recording has it, with fault counts for every operation."""
        self.observer.before(op)
        process = self.slots[op["p"]]
        before = process.faults
        try:
            result = self._perform(process, op)
        except vmemu.MemoryFault as fault:
            result = {"sig": fault.signal.name, "code": fault.kind.name.partition("_")[2]}
            if fault.address != script.byte_address(op):
                result["si_addr"] = hex(fault.address)
        except vmemu.OutOfMemory as error:
            result = {"err": f"no frame left: {error}"}
        except vmemu.SyscallError as error:
            result = {"err": errno.errorcode.get(error.errno or 0, str(error.errno))}
        if op["op"] not in ("exit", "kill"):
            taken = process.faults - before
            result |= {"minflt": taken.minor, "majflt": taken.major}
        self.observer.after(op, result)
        if self._settler is not None:
            self._settler.madvise(self._page, PAGE, vmemu.Advice.COLD)  # begins with lru_add_drain()
        return result

    def _perform(self, process: vmemu.Process, op: Op) -> dict[str, Any]:
        address, length = script.address(op), script.length(op)
        match op["op"]:
            case "read":
                return {"val": process.read(script.byte_address(op), 1)[0]}
            case "write":
                process.write(script.byte_address(op), bytes([op["val"] & 255]))
                return {"val": op["val"] & 255}
            case "sweep":
                return {"vals": [self._peek(process, address + i * PAGE) for i in range(op["n"])]}
            case "fork":
                self.slots[op["child"]] = process.fork()
            case "share":
                self.slots[op["child"]] = _call(process, "clone", CLONE_VM | signal.SIGCHLD)
            case "exit" | "kill":
                del self.slots[op["p"]]
                process.exit(0)
            case "mmap":
                file = script.mmap_file(op)
                result = process.mmap(
                    address,
                    length,
                    script.prot(op),
                    script.mmap_flags(op),
                    file=self.files[file] if file else None,
                    offset=script.mmap_offset(op),
                )
                answer = script.returned(result)
                if "ret" in answer:
                    process.munmap(result, length)
                return answer
            case "munmap":
                process.munmap(address, length)
            case "mprotect":
                process.mprotect(address, length, script.prot(op))
            case "madvise":
                process.madvise(address, length, script.advice(op))
            case "mremap":
                return script.returned(
                    process.mremap(
                        address, length, op["n2"] * PAGE, script.mremap_flags(op), new_address=script.address(op, "to")
                    )
                )
            case "mincore":
                return {"vec": "".join(str(byte & 1) for byte in process.mincore(address, length))}
            case "msync":
                process.msync(address, length, op.get("msflags", 4))
            case "mlock" | "mlock2":
                process.mlock(address, length, flags=op.get("mlflags", 0))
            case "munlock":
                process.munlock(address, length)
            case "mlockall":
                _call(process, "mlockall", op["mlflags"])
            case "munlockall":
                _call(process, "munlockall")
            case "mseal":
                process.mseal(address, length)
            case "ftruncate":
                self.files[op.get("file", "F")].truncate(op["size"])
            case "fwrite":
                self.files[op.get("file", "F")].pwrite(bytes([op["val"]]), op["fpage"] * PAGE + op.get("off", 0))
            case "fread":
                data = self.files[op.get("file", "F")].pread(1, op["fpage"] * PAGE + op.get("off", 0))
                return {"val": data[0] if data else "end of file"}
            case unknown:
                raise ValueError(f"operation {unknown!r} is not in the language of scripts")
        return {}

    @staticmethod
    def _peek(process: vmemu.Process, address: int) -> int | str:
        try:
            return process.read(address, 1)[0]
        except vmemu.MemoryFault as fault:
            return f"{fault.signal.name}:{fault.kind.name.partition('_')[2]}"

    # ---- observation

    def observe(self) -> dict[int, State]:
        """The state of every live process, by slot. Counts nothing and maps nothing; at most an accessed bit is set."""
        if self._frames:
            self._counts = memoryview(self.machine.procfs.read("kpagecount")).cast("Q")
            self._flags = memoryview(self.machine.procfs.read("kpageflags")).cast("Q")
        return self.observer.observe({slot: _View(process, self._sums) for slot, process in self.slots.items()})

    def contents(self, slot: int, pages: Sequence[int]) -> Iterator[str]:
        """Checksums of *pages*, faulting them in where they are absent."""
        return _checksums(self.slots[slot].read, pages)

    def _frame(self, pfn: int) -> tuple[int, int]:
        return (self._counts[pfn], self._flags[pfn]) if self._frames else (0, 0)


class _View:
    """One process of a run, as `observer.View` wants it."""

    def __init__(self, process: vmemu.Process, sums: bool) -> None:
        self._process = process
        self._sums = sums

    def mappings(self) -> list[Vma]:
        sums = {usage.mapping.start: _kilobytes(usage) for usage in self._process.smaps()} if self._sums else {}
        return [
            Vma(
                start=offset(mapping.start),
                end=offset(mapping.end),
                perms=mapping.perms,
                inode=mapping.inode,
                offset=mapping.offset // PAGE,
                flags=mapping.flags,
                sums=sums[mapping.start] if self._sums else None,
            )
            for mapping in self._process.maps()
            if mapping.start >= ARENA and mapping.end <= _ARENA_END
        ]

    def pagemap(self, npages: int) -> Sequence[int]:
        entries: list[int] = self._process.pagemap(ARENA, npages).tolist() if npages else []
        return entries

    def checksums(self, pages: Sequence[int]) -> Iterator[str]:
        return _checksums(self._process.read, pages)


def _call(process: vmemu.Process, name: str, *args: int) -> Any:
    """A call that vmemu may not have yet."""
    if not hasattr(process, name):
        raise NotImplementedError(name)
    return getattr(process, name)(*args)


def _kilobytes(usage: vmemu.MappingUsage) -> dict[str, int]:
    """An entry of smaps as it is printed: in kB, cut off. What vmemu does not count is 0."""
    return {key: getattr(usage, key.lower(), 0) // 1024 for key in SUMS}


def _checksums(read: Callable[[int, int], bytes], pages: Sequence[int]) -> Iterator[str]:
    """Checksums of *pages* (ascending), each run of neighbours read at once."""
    breaks = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(pages)) if b != a + 1), len(pages)]
    for first, last in pairwise(breaks):
        if first < last:
            data = memoryview(read(ARENA + pages[first] * PAGE, (last - first) * PAGE))
            for start in range(0, len(data), PAGE):
                yield checksum(data[start : start + PAGE])
