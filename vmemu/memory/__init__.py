"""The memory of one process: accesses (`space`) and a room for each system call on mappings.

Each call decides here (limits, flags, errno, what backs a mapping) and has the core do it. A call checks
everything first; what it then does partly is what Linux does partly.
"""
