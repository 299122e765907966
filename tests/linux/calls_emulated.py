"""Carries out cases (`calls_cases`) in vmemu: the same calls, in a process laid out as the probe's own is."""

from __future__ import annotations

import os
from collections.abc import Sequence

from linux.calls_host import MASK, SCRATCH, Line, Seen, Step

from vmemu import BusError, File, Machine, Map, OutOfMemory, Process, SegmentationFault, SyscallError
from vmemu.memory.words import BRK, START_BRK

SIZE = 5 * 4096 + 100
"""Of the files."""
IGNORED_FLAGS = {"sd", "mg", "hg", "nh"}


def ram() -> int:
    """Bytes of this host, as its overcommit heuristic has them."""
    return os.sysconf("SC_PHYS_PAGES") * 4096


class Emulation:
    """A machine like this host, and processes like the probe."""

    def __init__(self, base: Seen, start_brk: int, *, memory: int) -> None:
        """*base*: the probe that has done nothing. *memory*: bytes of RAM."""
        self.machine = Machine(memory=memory)
        p = self.probe = self.machine.spawn()
        for start, end, perms, flags in base.mappings:
            if start < 1 << 47:
                prot = sum(bit for bit, char in zip((1, 2, 4), perms, strict=False) if char != "-")
                more = Map.GROWSDOWN if "gd" in flags.split() else 0
                p.mmap(start, end - start, prot, Map.PRIVATE | Map.ANONYMOUS | Map.FIXED | more)
                if prot & 2:
                    p.touch(end - 4096, 4096, True)
        words = self.machine._kernel.core.words(p._space("test").sid)
        words[START_BRK] = words[BRK] = start_brk
        self.machine._kernel.core.set_words(p._space("test").sid, words)

    def close(self) -> None:
        self.machine.close()

    def run(self, case: Sequence[Step]) -> Seen:
        """What comes of a case."""
        run = _Run(self)
        results = []
        for step in case:
            results.append(run.step(step))
        seen = run.look(results)
        run.close()
        return seen


class _Run:
    def __init__(self, emulation: Emulation) -> None:
        m = self.machine = emulation.machine
        self.process = emulation.probe.fork()
        self.files: dict[int, File] = {3: m.create_file("F"), 6: m.create_file("E", writenotify=True)}
        for fd in (3, 6):
            self.files[fd].truncate(SIZE)
            self.files[fd + 1] = self.files[fd].reopen("r")
        self.files[5] = self.files[3].reopen("w")
        self.scratch = b""

    def close(self) -> None:
        self.process.exit()
        for file in self.files.values():
            file.close()

    def step(self, step: Step) -> str:
        name, *arguments = step
        numbers = [int(argument) & MASK for argument in arguments]
        try:
            result = getattr(self, f"_{name}", self._plain)(str(name), *numbers)
        except OutOfMemory:
            return "ENOMEM"
        except SyscallError as error:
            return error.name
        except SegmentationFault as fault:
            return f"SIGSEGV {1 if fault.kind.name == 'SEGV_MAPERR' else 2}"
        except BusError:
            return "SIGBUS 2"
        return result if isinstance(result, str) else str(int(result or 0))

    def _plain(self, name: str, *arguments: int) -> object:
        return getattr(self.process, name)(*arguments)

    def _mmap(self, name: str, address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
        return self.process.mmap(address, length, prot, flags, self.files.get(fd), offset)

    def _brk(self, name: str, address: int) -> int:
        return self.process.brk(address)

    def _mlock2(self, name: str, address: int, length: int, flags: int) -> None:
        self.process.mlock(address, length, flags)

    def _mincore(self, name: str, address: int, length: int, vector: int) -> None:
        try:
            seen = self.process.mincore(address, length)
        except SyscallError as error:
            seen = error.partial
            raise
        finally:
            if vector == SCRATCH:
                self.scratch = seen

    def _bytes(self, name: str, n: int) -> str:
        return self.scratch[:n].ljust(n, b"\0").hex()

    def _read(self, name: str, address: int) -> int:
        return self.process.read(address, 1)[0]

    def _write(self, name: str, address: int) -> None:
        self.process.write(address, b"\x5a")

    def _ftruncate(self, name: str, fd: int, size: int) -> None:
        self.files[fd].truncate(size)

    def _setrlimit(self, name: str, resource: int, soft: int, hard: int) -> None:
        self.process.setrlimit(resource, (soft, hard))

    def _setuid(self, name: str, uid: int) -> None:
        self.process.setuid(uid)

    def _fork(self, name: str) -> None:
        before, self.process = self.process, self.process.fork()
        before.exit()

    def look(self, results: list[str]) -> Seen:
        p: Process = self.process
        mappings: list[Line] = [(v.start, v.end, v.perms, " ".join(v.flags)) for v in p.maps()]
        sums = self.machine._kernel.core.sums(p._space("test").sid)
        sizes = {
            "VmSize": sums.total,
            "VmLck": p._space("test").locked_pages(),
            "VmData": sums.data,
            "VmStk": sums.stack,
        }
        return Seen(results, mappings, {name: 4 * int(pages) for name, pages in sizes.items()})


def difference(host: Seen, emulated: Seen, base: Seen) -> str:
    """How two differ, empty if they don't. What the probe itself has mapped counts by its range only."""
    out = []
    for i, (theirs, ours) in enumerate(zip(host.results, emulated.results, strict=False)):
        if theirs != ours:
            out.append(f"step {i}: Linux {_hex(theirs)}, vmemu {_hex(ours)}")
    own = {line[0] for line in base.mappings}
    theirs, ours = (
        {_line(line) for line in seen.mappings if line[0] < 1 << 47 and line[0] not in own} for seen in (host, emulated)
    )
    out += [f"only Linux has {line}" for line in sorted(theirs - ours)]
    out += [f"only vmemu has {line}" for line in sorted(ours - theirs)]
    for name, size in host.sizes.items():
        if emulated.sizes[name] != size:
            out.append(f"{name}: Linux {size}, vmemu {emulated.sizes[name]}")
    return "\n".join(out)


def _hex(result: str) -> str:
    return f"{int(result):#x}" if result.isdigit() else result


def _line(line: Line) -> str:
    flags = " ".join(sorted(set(line[3].split()) - IGNORED_FLAGS))
    return f"{line[0]:#x}-{line[1]:#x} {line[2]} {flags}"
