"""execve(2) on paper: what Linux 6.18 on x86-64 maps for a program, byte for byte, before anything is mapped.

`plan` follows load_elf_binary: it finds the program (`bprm`), lays out stack, program, interpreter and bss
(`sketch`), and builds what the initial stack holds. It has no side effects and reads nothing but headers; the
caller makes the mappings. Errors past the kernel's point of no return, where a real process would die by SIGSEGV,
are raised as PastReturn, with the errno that the kernel drops.

    0x7ffffffff000  stack      grows down: strings, auxv, pointers, argc <- stack_pointer
          mmap_base  interpreter, libraries, static PIE: downwards
                 brk  grows up
    0x555555554000  PIE        ET_EXEC lies where it says
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vmemu.errors import SyscallError
from vmemu.loader import bprm, elf, elfmap, initstack, linker
from vmemu.loader.bprm import Credentials, Environment, Layout, Program, Strings
from vmemu.loader.seen import Seen
from vmemu.loader.sketch import STACK_GUARD_GAP, TASK_SIZE, MapError, Segment, Sketch, page_down, page_up
from vmemu.types import PAGE_SIZE, Prot

__all__ = ["ExecPlan", "Layout", "PastReturn", "Restacked", "Restacker", "Seen", "Segment", "plan"]

BRK_RND_BITS = 18
"""Random bits of the brk, in pages: 1 GiB (arch_randomize_brk)."""
_WRAP = 0xFFFF_FFFF_FFFF_FFFF
_VDSO = "vdso"
_DEFAULT = Layout()
_KILLED = "past the point of no return: Linux kills the process with SIGSEGV"


class PastReturn(SyscallError):
    """execve failed when the old memory was gone already: the process is killed by SIGSEGV. The errno is what the
    kernel had and dropped."""


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
    protect: tuple[tuple[int, int, Prot], ...]
    """(start, end, protection) to mprotect when all is mapped and zeroed: RELRO, with *link* only. It is not in the
    segments' protection because memory that was writable stays accounted, and so does not merge with other."""
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
    program: Program = field(compare=False, repr=False)
    layout: Layout = field(compare=False, repr=False)
    """What it was made from."""

    @property
    def stack_data_address(self) -> int:
        """Where stack_data goes."""
        return self.stack_pointer

    @property
    def start_stack(self) -> int:
        """mm->start_stack; the mapping with this address is shown as [stack]."""
        return self.stack_pointer

    @property
    def words(self) -> tuple[int, ...]:
        """What mm_struct keeps, in the order of `vmemu.memory.words`."""
        return (
            self.start_brk,
            self.brk,
            self.mmap_base,
            self.start_stack,
            self.arg_start,
            self.arg_end,
            self.env_start,
            self.env_end,
            self.start_code,
            self.end_code,
            self.start_data,
            self.end_data,
            0,
            0,
        )

    @property
    def stack(self) -> Segment:
        """The stack's segment."""
        return next(segment for segment in self.segments if segment.start <= self.stack_pointer < segment.end)


def plan(
    program: str,
    argv: Strings,
    envp: Environment,
    *,
    layout: Layout = _DEFAULT,
    link: bool = False,
    cwd: str | None = None,
    seen: Seen | None = None,
) -> ExecPlan:
    """What execve(*program*, *argv*, *envp*) maps and where; nothing is changed anywhere.

    With *link* the libraries are mapped as well and RELRO is to be made read-only, as after ld.so(8) has started the
    program (see `linker`); a static program stays as it is. A relative *program* starts at *cwd*. What the host says of
    its files is noted in *seen*. Raises SyscallError with Linux's errno and the reason; a library that cannot be found
    gives ELIBACC.
    """
    seen = Seen() if seen is None else seen
    prog = bprm.collect(program, argv, envp, layout, cwd, seen)
    interpreter = bprm.find_interpreter(prog, cwd, seen)
    try:
        return _load(prog, interpreter, layout, link, cwd, seen)
    except MapError as error:
        raise PastReturn(error.number, f"execve: {os.strerror(error.number)} ({error}; {_KILLED})", prog.path) from None


def _load(
    prog: Program,
    interpreter: tuple[str, elf.ElfImage] | None,
    layout: Layout,
    link: bool,
    cwd: str | None,
    seen: Seen,
) -> ExecPlan:
    """load_elf_binary from the point of no return on. Raises MapError."""
    image = prog.image
    sketch = Sketch(initstack.mmap_base(layout), layout.huge_align)
    stack = initstack.InitialStack(prog, layout)
    stack.map(sketch)
    loaded = elfmap.map_program(sketch, prog.path, image, interpreter is not None, layout.rng)
    entry = (image.entry + loaded.bias) & _WRAP
    base, start = 0, entry
    if interpreter is not None:
        base = elfmap.map_interpreter(sketch, *interpreter, loaded.bias)
        start = (base + interpreter[1].entry) & _WRAP
    if start >= TASK_SIZE:
        raise MapError(errno.EINVAL, f"entry point {start:#x} is outside the address space")
    if layout.vdso_size:
        sketch.map(0, page_up(layout.vdso_size), Prot.NONE, None, 0, _VDSO)
    auxv = stack.auxv(phdr=loaded.phdr, base=base, entry=entry)
    pointer, data = stack.build(auxv)
    stack.grow(sketch, pointer)

    brk, moved = loaded.brk, image.type == elf.ET_DYN and interpreter is None
    if moved:  # it would be in the way of the mmap area
        brk = elfmap.ELF_ET_DYN_BASE
    brk = page_up(brk)
    if layout.rng is not None:
        brk += (0 if moved else PAGE_SIZE) + initstack.random_pages(layout.rng, BRK_RND_BITS)
    if link and interpreter is not None:
        linker.link(sketch, prog, loaded.bias, interpreter, base, cwd, seen)
    segments = tuple(segment for segment in sketch.segments if segment.role != _VDSO)
    return ExecPlan(
        path=prog.path,
        interpreter=interpreter[0] if interpreter is not None else None,
        exec_fn=prog.filename,
        argv=tuple(prog.argv),
        envp=tuple(prog.envp),
        comm=prog.filename.rsplit(b"/", 1)[-1][:15],
        segments=segments,
        zero=tuple(sketch.zero),
        protect=tuple(sketch.protected),
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
        arg_start=stack.arg_start,
        arg_end=stack.arg_end,
        env_start=stack.arg_end,
        env_end=stack.env_end,
        auxv=tuple(auxv),
        credentials=prog.credentials,
        program=prog,
        layout=layout,
    )


class Restacked(NamedTuple):
    """What of a plan is another with other strings; fields as there."""

    argv: tuple[bytes, ...]
    envp: tuple[bytes, ...]
    auxv: tuple[tuple[int, int], ...]
    stack_start: int
    stack_end: int
    stack_data: bytes
    stack_pointer: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    program: Program

    def put_into(self, plan: ExecPlan) -> ExecPlan:
        """The whole plan."""
        fields = self._asdict()
        stack = replace(plan.segments[0], start=fields.pop("stack_start"), end=fields.pop("stack_end"))
        return replace(plan, segments=(stack, *plan.segments[1:]), **fields)

    def words(self, plan: ExecPlan) -> tuple[int, ...]:
        """`ExecPlan.words` of the whole plan."""
        words = plan.words
        return (*words[:3], self.stack_pointer, self.arg_start, self.arg_end, self.env_start, self.env_end, *words[8:])


class Restacker:
    """Plans the same program with other strings, while the host's files are as they were."""

    __slots__ = ("_plan", "_variables", "_vector")

    def __init__(self, plan: ExecPlan) -> None:
        self._plan = plan
        self._vector = dict(plan.auxv)
        self._variables = linker.variables(plan.program.envp)

    @classmethod
    def of(cls, plan: ExecPlan) -> Restacker | None:
        """None if strings could change more of a plan than the stack: with randomisation, or mappings near it."""
        return cls(plan) if plan.layout.rng is None and _below(plan, plan.mmap_base) else None

    def restack(self, argv: Strings, envp: Environment) -> Restacked | None:
        """None if more is another: with other variables for ld.so, or a stack that reaches far. Raises SyscallError as
        `plan` does for strings."""
        old, vector = self._plan, self._vector
        layout = old.layout
        prog = bprm.with_strings(old.program, argv, envp, layout.stack_limit)
        if linker.variables(prog.envp) != self._variables:
            return None
        stack = initstack.InitialStack(prog, layout)
        auxv = stack.auxv(
            phdr=vector[initstack.AT_PHDR], base=vector[initstack.AT_BASE], entry=vector[initstack.AT_ENTRY]
        )
        pointer, data = stack.build(auxv)
        start = min(stack.start, page_down(pointer))
        if start < max(old.mmap_base + STACK_GUARD_GAP, stack.top - layout.stack_limit):
            return None
        return Restacked(
            argv=tuple(prog.argv),
            envp=tuple(prog.envp),
            auxv=tuple(auxv),
            stack_start=start,
            stack_end=stack.top,
            stack_data=data,
            stack_pointer=pointer,
            arg_start=stack.arg_start,
            arg_end=stack.arg_end,
            env_start=stack.arg_end,
            env_end=stack.env_end,
            program=prog,
        )


def _below(plan: ExecPlan, top: int) -> bool:
    """All but the stack lies below *top*, and the stack with its gap above it."""
    stack, *others = plan.segments
    ends = [segment.end for segment in others] + [last for _, last in plan.zero] + [last for _, last, _ in plan.protect]
    return stack.growsdown and stack.start - STACK_GUARD_GAP >= top >= max(ends, default=0)
