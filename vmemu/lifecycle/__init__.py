"""The life of processes, room by room: a call of a process is a function that takes the kernel and a pid.

`memory`: whose memory a process uses, and whose faults are whose. `birth`: fork, vfork, what a child inherits.
`program`: execve, what of a process changes with its program. `identity`: users and groups, process groups and
sessions, names. `death`: exit, what is left of a process, who adopts its children. `waiting`: reaping them.
"""
