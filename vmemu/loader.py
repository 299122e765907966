"""execve(2) on paper: what Linux 6.18 on x86-64 maps for a program, byte for byte, before anything is mapped.

`plan` follows load_elf_binary: it finds the program (`bprm`), lays out stack, program, interpreter and bss
(`sketch`), and builds what the initial stack holds. It has no side effects and reads nothing but headers; the
caller makes the mappings. Errors past the kernel's point of no return, where a real process would die by SIGSEGV,
are raised like all others, with the errno that the kernel drops.

    0x7ffffffff000  stack      grows down: strings, auxv, pointers, argc <- stack_pointer
          mmap_base  interpreter, libraries, static PIE: downwards
                 brk  grows up
    0x555555554000  PIE        ET_EXEC lies where it says
"""

from __future__ import annotations

import errno
import math
import random
import struct
from dataclasses import dataclass, replace

from vmemu import bprm, elf, linker
from vmemu.bprm import Credentials, Environment, Program, Strings
from vmemu.errors import syscall_error
from vmemu.sketch import STACK_GUARD_GAP, TASK_SIZE, MapError, Segment, Sketch, page_down, page_up
from vmemu.types import PAGE_SIZE, Prot

__all__ = ["ExecPlan", "Layout", "Segment", "plan"]

ELF_ET_DYN_BASE = 0x5555_5555_4AAA
"""Two thirds of the address space: where PIEs go, and the brk of programs that lie in the mmap area."""
STACK_EXPAND = 128 << 10
"""Bytes that a new stack has below its strings."""
MMAP_RND_BITS = 28
STACK_RND_BITS = 22
BRK_RND_BYTES = 1 << 30
_GAP_MIN = 128 << 20
_GAP_MAX = TASK_SIZE // 6 * 5
_WRAP = 0xFFFF_FFFF_FFFF_FFFF
_KILLED = "past the point of no return: Linux kills the process with SIGSEGV"
_FIXED_RANDOM = b"vmemu: AT_RANDOM"

AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY = 3, 4, 5, 6, 7, 8, 9
AT_UID, AT_EUID, AT_GID, AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK = 11, 12, 13, 14, 15, 16, 17
AT_SECURE, AT_RANDOM, AT_HWCAP2, AT_RSEQ_FEATURE_SIZE, AT_RSEQ_ALIGN = 23, 25, 26, 27, 28
AT_EXECFN, AT_SYSINFO_EHDR, AT_MINSIGSTKSZ = 31, 33, 51


@dataclass(frozen=True, slots=True)
class Layout:
    """What execve depends on besides the program: limits, randomisation, user, machine. Sizes in bytes."""

    stack_limit: float = 8 << 20
    """RLIMIT_STACK; `math.inf` or -1 for no limit."""
    rng: random.Random | None = None
    """Source of address randomisation (randomize_va_space=2), drawn from anew at each exec; None switches it off."""
    uid: int = 0
    euid: int = 0
    gid: int = 0
    egid: int = 0
    hwcap: int = 0x178BFBFF
    """AT_HWCAP: cpuid 1, edx."""
    hwcap2: int = 2
    """AT_HWCAP2: bit 1, rdfsbase and wrfsbase may be used."""
    minsigstksz: int = 1776
    rseq_feature_size: int = 28
    rseq_align: int = 32
    clktck: int = 100
    platform: bytes = b"x86_64"
    huge_align: bool = True
    """Files are mapped so that huge pages fit, as on ext4, XFS and Btrfs; on tmpfs they are not."""
    vdso: int | None = None
    """Address for AT_SYSINFO_EHDR, for comparisons with a real process. Without it the entry is left out, and its
    room stays free so that the stack pointer is the same."""
    vdso_size: int = 0
    """Bytes to leave free below the interpreter, where Linux maps vvar and vdso (32 KiB in 6.18)."""

    @property
    def credentials(self) -> Credentials:
        """The ids before execve."""
        return Credentials(self.uid, self.euid, self.gid, self.egid)


@dataclass(frozen=True, slots=True)
class ExecPlan:
    """All that execve does to an address space. Addresses and sizes in bytes; names as in the kernel's mm_struct."""

    path: str
    """The executable as /proc/PID/maps shows it: for a script its interpreter."""
    interpreter: str | None
    """The ELF interpreter, likewise."""
    exec_fn: bytes
    """The path as given to execve."""
    argv: tuple[bytes, ...]
    """As the program sees it: after ``#!`` rewriting, and never empty."""
    envp: tuple[bytes, ...]
    comm: bytes
    """Name of the task, at most 15 bytes."""
    segments: tuple[Segment, ...]
    """Disjoint, in the order of mapping; the stack is first. Neighbours that Linux would merge are not merged."""
    zero: tuple[tuple[int, int], ...]
    """[start, end) that are zeroed by writing, which copies a page each: the tails of data segments before bss."""
    stack_data: bytes
    """What the stack holds from stack_pointer to its upper end."""
    stack_pointer: int
    """rsp at the first instruction; also mm->start_stack."""
    entry_point: int
    """rip at the first instruction: the interpreter's entry if there is one."""
    start_brk: int
    brk: int
    mmap_base: int
    """Upper end of the area for mappings without an address."""
    start_code: int
    end_code: int
    start_data: int
    end_data: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    auxv: tuple[tuple[int, int], ...]
    """getauxval(3) entries in order, without the final AT_NULL."""
    credentials: Credentials
    """After set-user-ID and set-group-ID bits."""

    @property
    def stack_data_address(self) -> int:
        """Where stack_data goes."""
        return self.stack_pointer

    @property
    def start_stack(self) -> int:
        """mm->start_stack; the mapping with this address is shown as [stack]."""
        return self.stack_pointer

    @property
    def stack(self) -> Segment:
        """The stack's segment."""
        return next(segment for segment in self.segments if segment.growsdown)


@dataclass(slots=True)
class _Loaded:
    """One file as mapped: see load_elf_binary for the names."""

    bias: int
    phdr: int = 0
    brk: int = 0
    start_code: int = _WRAP
    end_code: int = 0
    start_data: int = 0
    end_data: int = 0


def plan(
    program: str,
    argv: Strings,
    envp: Environment,
    *,
    layout: Layout = Layout(),
    link: bool = False,
    cwd: str | None = None,
) -> ExecPlan:
    """What execve(*program*, *argv*, *envp*) maps and where; nothing is changed anywhere.

    With *link* the libraries are mapped as well and RELRO is read-only, as after ld.so(8) has started the program
    (see `linker`). A relative *program* starts at *cwd*. Raises SyscallError with Linux's errno and the reason; a
    library that cannot be found gives ELIBACC.
    """
    layout = replace(layout, stack_limit=bprm.normal_limit(layout.stack_limit))
    prog = bprm.collect(program, argv, envp, stack_limit=layout.stack_limit, credentials=layout.credentials, cwd=cwd)
    interpreter = bprm.find_interpreter(prog, cwd)
    try:
        return _load(prog, interpreter, layout, link, cwd)
    except MapError as error:
        raise syscall_error("execve", error.number, f"{error}; {_KILLED}", prog.path) from None


def _load(
    prog: Program, interpreter: tuple[str, elf.ElfImage] | None, layout: Layout, link: bool, cwd: str | None
) -> ExecPlan:
    """load_elf_binary from the point of no return on."""
    image, rng = prog.image, layout.rng
    sketch = Sketch(_mmap_base(layout), layout.huge_align)
    zero: list[tuple[int, int]] = []
    stack_top = _stack_top(rng)
    strings = stack_top - 8 - prog.strings_size
    _map_stack(sketch, prog, stack_top, strings, layout)

    loaded = _map_program(sketch, zero, prog.path, image, interpreter is not None, rng)
    entry = (image.entry + loaded.bias) & _WRAP
    base, start = 0, entry
    if interpreter is not None:
        base = _map_interpreter(sketch, zero, *interpreter, loaded.bias)
        start = (base + interpreter[1].entry) & _WRAP
    if start >= TASK_SIZE:
        raise MapError(errno.EINVAL, f"entry point {start:#x} is outside the address space")
    if layout.vdso_size:
        size = page_up(layout.vdso_size)
        sketch.put(Segment(sketch_at := sketch.place(size), sketch_at + size, Prot.NONE, None, 0, "vdso"))

    at_random = rng.randbytes(16) if rng is not None else _FIXED_RANDOM
    stack = _Stack(prog, layout, strings, stack_top, _align_stack(strings, rng))
    auxv = _auxv(prog, layout, loaded, entry, base, stack)
    pointer, data = stack.build(auxv, at_random)
    _grow_stack(sketch, pointer, layout)

    brk = page_up(loaded.brk)
    moved = image.type == elf.ET_DYN and interpreter is None
    if moved:
        brk = page_up(ELF_ET_DYN_BASE)
    if rng is not None:
        brk = brk + (0 if moved else PAGE_SIZE) + rng.randrange(BRK_RND_BYTES // PAGE_SIZE) * PAGE_SIZE
    if link:
        linker.link(sketch, zero, prog, interpreter, loaded.bias, base, cwd)
    segments = tuple(segment for segment in sketch.segments if segment.role != "vdso")
    return ExecPlan(
        path=prog.path,
        interpreter=interpreter[0] if interpreter is not None else None,
        exec_fn=prog.filename,
        argv=tuple(prog.argv),
        envp=tuple(prog.envp),
        comm=prog.filename.rsplit(b"/", 1)[-1][:15],
        segments=segments,
        zero=_surviving(zero, segments),
        stack_data=data,
        stack_pointer=pointer,
        entry_point=start,
        start_brk=brk,
        brk=brk,
        mmap_base=sketch.mmap_base,
        start_code=(loaded.start_code + loaded.bias) & _WRAP,
        end_code=(loaded.end_code + loaded.bias) & _WRAP,
        start_data=(loaded.start_data + loaded.bias) & _WRAP,
        end_data=(loaded.end_data + loaded.bias) & _WRAP,
        arg_start=strings,
        arg_end=stack.arg_end,
        env_start=stack.arg_end,
        env_end=stack.env_end,
        auxv=tuple(auxv),
        credentials=prog.credentials,
    )


def _mmap_base(layout: Layout) -> int:
    """arch_pick_mmap_layout: below the stack's limit, at least 128 MiB and at most 5/6 of the address space."""
    rng = layout.rng
    gap = layout.stack_limit
    gap += STACK_GUARD_GAP + (((1 << STACK_RND_BITS) - 1) * PAGE_SIZE if rng is not None else 0)
    gap = _GAP_MAX if math.isinf(gap) else min(max(int(gap), _GAP_MIN), _GAP_MAX)
    return page_up(TASK_SIZE - gap - (rng.getrandbits(MMAP_RND_BITS) * PAGE_SIZE if rng is not None else 0))


def _align_stack(address: int, rng: random.Random | None) -> int:
    """arch_align_stack: up to 8 KiB of randomness, then 16-byte alignment."""
    return (address - (rng.randrange(8192) if rng is not None else 0)) & -16


def _stack_top(rng: random.Random | None) -> int:
    top = TASK_SIZE - (rng.getrandbits(STACK_RND_BITS) * PAGE_SIZE if rng is not None else 0)
    return page_up(_align_stack(top, rng))


def _map_stack(sketch: Sketch, prog: Program, top: int, strings: int, layout: Layout) -> None:
    """setup_arg_pages: the pages of the strings and 128 KiB more, within RLIMIT_STACK."""
    start = page_down(strings)
    limit = math.inf if math.isinf(layout.stack_limit) else page_down(int(layout.stack_limit))
    start = min(start, top - int(min(limit, top - start + STACK_EXPAND)))
    prot = Prot.READ | Prot.WRITE
    if (prog.image.stack_flags or 0) & elf.PF_X:
        prot |= Prot.EXEC
    sketch.put(Segment(start, top, prot, None, 0, "stack", growsdown=True))


def _grow_stack(sketch: Sketch, pointer: int, layout: Layout) -> None:
    """expand_stack so far that the pointers and the auxiliary vector fit."""
    old = sketch.segments[0]
    if not old.growsdown:
        raise MapError(errno.EFAULT, "the program overwrites its stack")
    start = page_down(pointer)
    if start >= old.start:
        return
    if old.end - start > layout.stack_limit:
        raise MapError(errno.EFAULT, "RLIMIT_STACK leaves no room for the argument pointers")
    if sketch.overlaps(start - STACK_GUARD_GAP, old.start):
        raise MapError(errno.EFAULT, "a mapping is in the way of the stack")
    sketch.segments[0] = replace(old, start=start)


def _prot(flags: int) -> Prot:
    prot = Prot.NONE
    for flag, bit in ((elf.PF_R, Prot.READ), (elf.PF_W, Prot.WRITE), (elf.PF_X, Prot.EXEC)):
        if flags & flag:
            prot |= bit
    return prot


def _map_load(
    sketch: Sketch,
    zero: list[tuple[int, int]],
    path: str,
    image: elf.ElfImage,
    header: elf.Phdr,
    address: int,
    role: str,
    *,
    span: int = 0,
    fixed: bool = False,
    replace: bool = True,
) -> int:
    """elf_load: one PT_LOAD at *address*, with its bss; returns the page where it begins.

    *span* is given for the first one of a file whose whole extent has to be free. Raises MapError.
    """
    address &= _WRAP
    prot, inside = _prot(header.flags), header.vaddr % PAGE_SIZE
    start = page_down(address)
    if header.filesz:
        size = page_up((header.filesz + inside) & _WRAP)
        if size:
            offset = header.offset - inside
            length = page_up(span) if span else size
            start = sketch.map(start, length, prot, path, offset, role, fixed=fixed, replace=replace)
            if span:
                sketch.unmap(start + size, start + length)
        if start >= TASK_SIZE:
            raise MapError(errno.EINVAL, f"address {start:#x} is outside the address space")
        zero_start = start + inside + header.filesz
    else:
        zero_start = start + inside
    if header.memsz <= header.filesz:
        return start
    zero_end = start + inside + header.memsz
    if header.filesz and zero_start % PAGE_SIZE and header.flags & elf.PF_W:
        if page_down(header.offset + header.filesz) >= image.file_size:
            raise MapError(errno.EFAULT, "the file ends before the page where the bss begins")
        zero.append((zero_start, page_up(zero_start)))
    first, last = page_up(zero_start), page_up(zero_end)
    if last > first:
        bss = Prot.READ | Prot.WRITE | (prot & Prot.EXEC)
        sketch.map(first, last - first, bss, None, 0, "bss", fixed=True)
    return start


def _map_program(
    sketch: Sketch, zero: list[tuple[int, int]], path: str, image: elf.ElfImage, interp: bool, rng: random.Random | None
) -> _Loaded:
    """The PT_LOADs of the program, and what mm_struct keeps of them (relative to the bias)."""
    loaded = _Loaded(bias=0)
    for index, header in enumerate(image.loads):
        span, fixed, replacing = 0, True, index > 0
        if index == 0 and image.type == elf.ET_DYN:
            span = image.span
            if not span:
                raise MapError(errno.EINVAL, "the PT_LOADs span no bytes")
            if interp:
                loaded.bias = ELF_ET_DYN_BASE
                if rng is not None:
                    loaded.bias += rng.getrandbits(MMAP_RND_BITS) * PAGE_SIZE
                loaded.bias &= -image.align if image.align else _WRAP
            elif image.align > PAGE_SIZE:
                trial = Sketch(sketch.mmap_base, sketch.huge_align)
                trial.segments = list(sketch.segments)
                loaded.bias = _map_load(trial, [], path, image, header, 0, "program", span=span) & -image.align
            else:
                fixed = False
            loaded.bias = (loaded.bias - header.vaddr) & -PAGE_SIZE & _WRAP
        wanted = (loaded.bias + header.vaddr) & _WRAP
        start = _map_load(
            sketch, zero, path, image, header, wanted, "program", span=span, fixed=fixed, replace=replacing
        )
        if index == 0 and image.type == elf.ET_DYN:
            loaded.bias = (loaded.bias + start - page_down(wanted)) & _WRAP
        if header.offset <= image.phoff < header.offset + header.filesz:
            loaded.phdr = image.phoff - header.offset + header.vaddr
        if header.flags & elf.PF_X:
            loaded.start_code = min(loaded.start_code, header.vaddr)
        loaded.start_data = max(loaded.start_data, header.vaddr)
        _check_extent(header, header.vaddr, errno.EINVAL)
        if header.flags & elf.PF_X:
            loaded.end_code = max(loaded.end_code, header.vaddr + header.filesz)
        loaded.end_data = max(loaded.end_data, header.vaddr + header.filesz)
        loaded.brk = max(loaded.brk, header.vaddr + header.memsz)
    loaded.phdr = (loaded.phdr + loaded.bias) & _WRAP
    loaded.brk = (loaded.brk + loaded.bias) & _WRAP
    return loaded


def _check_extent(header: elf.Phdr, address: int, number: int) -> None:
    if header.filesz > header.memsz:
        raise MapError(number, f"p_filesz {header.filesz:#x} is more than p_memsz {header.memsz:#x}")
    if address >= TASK_SIZE or header.memsz > TASK_SIZE or TASK_SIZE - header.memsz < address:
        raise MapError(number, f"a segment of {header.memsz:#x} bytes at {address:#x} leaves the address space")


def _map_interpreter(
    sketch: Sketch, zero: list[tuple[int, int]], path: str, image: elf.ElfImage, program_bias: int
) -> int:
    """load_elf_interp: the PT_LOADs of the interpreter; returns its bias (AT_BASE)."""
    if image.type not in (elf.ET_EXEC, elf.ET_DYN):
        raise MapError(errno.EPERM, f"the interpreter's ELF type is {image.type}")
    span = image.span
    if not span:
        raise MapError(errno.EINVAL, "the interpreter has nothing to load")
    bias, placed = 0, False
    for header in image.loads:
        fixed = placed or image.type == elf.ET_EXEC
        if not fixed and program_bias:
            bias = -header.vaddr
        start = _map_load(sketch, zero, path, image, header, bias + header.vaddr, "interpreter", span=span, fixed=fixed)
        span = 0
        if not placed and image.type == elf.ET_DYN:
            bias, placed = start - page_down(header.vaddr), True
        _check_extent(header, (bias + header.vaddr) & _WRAP, errno.ENOMEM)
    return bias & _WRAP


def _surviving(zero: list[tuple[int, int]], segments: tuple[Segment, ...]) -> tuple[tuple[int, int], ...]:
    """The ranges to zero that were not mapped over later."""
    writable = [segment for segment in segments if segment.path is not None and segment.prot & Prot.WRITE]
    return tuple((a, b) for a, b in zero if any(s.start <= a and b <= s.end for s in writable))


def _auxv(
    prog: Program, layout: Layout, loaded: _Loaded, entry: int, base: int, stack: _Stack
) -> list[tuple[int, int]]:
    """The auxiliary vector in the order of create_elf_tables."""
    ids = prog.credentials
    secure = ids.euid != ids.uid or ids.egid != ids.gid
    vdso = [(AT_SYSINFO_EHDR, layout.vdso)] if layout.vdso is not None else []
    return [
        *vdso,
        (AT_MINSIGSTKSZ, layout.minsigstksz),
        (AT_HWCAP, layout.hwcap),
        (AT_PAGESZ, PAGE_SIZE),
        (AT_CLKTCK, layout.clktck),
        (AT_PHDR, loaded.phdr),
        (AT_PHENT, elf.PHDR_SIZE),
        (AT_PHNUM, prog.image.phnum),
        (AT_BASE, base),
        (AT_FLAGS, 0),
        (AT_ENTRY, entry),
        (AT_UID, ids.uid),
        (AT_EUID, ids.euid),
        (AT_GID, ids.gid),
        (AT_EGID, ids.egid),
        (AT_SECURE, int(secure)),
        (AT_RANDOM, stack.random),
        (AT_HWCAP2, layout.hwcap2),
        (AT_EXECFN, stack.exec_fn),
        (AT_PLATFORM, stack.platform),
        (AT_RSEQ_FEATURE_SIZE, layout.rseq_feature_size),
        (AT_RSEQ_ALIGN, layout.rseq_align),
    ]


class _Stack:
    """The initial stack, create_elf_tables: where each thing goes, then the bytes.

    From the top: 8 zero bytes, file name, environment, arguments; (alignment) platform, 16 random bytes;
    (alignment) auxiliary vector, environment pointers, argument pointers, argc.
    """

    def __init__(self, prog: Program, layout: Layout, strings: int, top: int, aligned: int) -> None:
        self.prog, self.strings, self.top = prog, strings, top
        self.arg_end = strings + sum(len(text) + 1 for text in prog.argv)
        self.env_end = self.arg_end + sum(len(text) + 1 for text in prog.envp)
        self.exec_fn = self.env_end
        self._platform = layout.platform + b"\0"
        self.platform = aligned - len(self._platform)
        self.random = self.platform - 16
        self._spare = 0 if layout.vdso is not None else 16

    def build(self, auxv: list[tuple[int, int]], at_random: bytes) -> tuple[int, bytes]:
        """(stack pointer, bytes from there to the top of the stack)."""
        prog = self.prog
        words = [len(prog.argv)]
        position = self.strings
        for texts in (prog.argv, prog.envp):
            for text in texts:
                words.append(position)
                position += len(text) + 1
            words.append(0)
        pointers = len(words)
        for key, value in auxv:
            words += (key, value)
        words += (0, 0)
        auxv_size = (len(words) - pointers) * 8 + self._spare
        pointer = (self.random - auxv_size - pointers * 8) & -16
        data = bytearray(self.top - pointer)
        struct.pack_into(f"<{len(words)}Q", data, 0, *words)
        random_at = self.random - pointer
        data[random_at : random_at + 16] = at_random
        platform_at = self.platform - pointer
        data[platform_at : platform_at + len(self._platform)] = self._platform
        texts_at = self.strings - pointer
        block = b"".join(text + b"\0" for text in (*prog.argv, *prog.envp, prog.filename))
        data[texts_at : texts_at + len(block)] = block
        return pointer, bytes(data)
