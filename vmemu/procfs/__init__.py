"""/proc of an emulated machine: what proc(5) describes, byte for byte as Linux 6.18 prints it.

One room for each kind of file; `tree` knows which name is which.
"""

from vmemu.procfs.tree import ProcFS

__all__ = ["ProcFS"]
