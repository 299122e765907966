"""execve(2) on paper: what Linux maps for a program, byte for byte, before anything is mapped.

plan       load_elf_binary: everything together -> ExecPlan
bprm       what comes before: open, permissions, ``#!``, strings and their limits
elf        the ELF file itself, from untrusted bytes
seen       what the host said of its files, so that a plan can be kept
sketch     an address space on paper: where mappings go
elfmap     PT_LOAD, bss and break of program and interpreter
initstack  what the stack holds at the first instruction
linker     what ld.so would map after that (--link)
"""

from vmemu.loader.plan import ExecPlan, Layout, PastReturn, Restacked, Restacker, Seen, Segment, plan

__all__ = ["ExecPlan", "Layout", "PastReturn", "Restacked", "Restacker", "Seen", "Segment", "plan"]
