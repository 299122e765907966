"""Files about the whole machine besides its memory: /proc/stat, uptime, loadavg, version and what tools look for.

The machine has one processor, which is idle: the emulator makes memory accesses, it does not run programs.
"""

from __future__ import annotations

from vmemu.kernel import Kernel
from vmemu.pids import PID_MAX
from vmemu.procfs.subject import TICK_NS

__all__ = ["BOOT_TIME", "FIXED", "buddyinfo", "loadavg", "stat", "swaps", "uptime", "zoneinfo"]

BOOT_TIME = 1_735_689_600
"""When the machine was booted, in seconds since 1970: 2025-01-01 00:00 UTC, always, so that runs can be compared."""

_CPUINFO = """\
processor\t: 0
vendor_id\t: vmemu
cpu family\t: 6
model\t\t: 0
model name\t: vmemu x86-64, memory only
stepping\t: 0
cpu MHz\t\t: 1000.000
physical id\t: 0
siblings\t: 1
core id\t\t: 0
cpu cores\t: 1
apicid\t\t: 0
fpu\t\t: yes
flags\t\t: fpu pse pae pge pse36 sse sse2 syscall nx pdpe1gb lm
address sizes\t: 52 bits physical, 48 bits virtual

"""

_NO_PRESSURE = "".join(f"{who} avg10=0.00 avg60=0.00 avg300=0.00 total=0\n" for who in ("some", "full"))

FIXED = {
    "cmdline": "vsyscall=none\n",
    "cpuinfo": _CPUINFO,
    "diskstats": "",
    "filesystems": "nodev\ttmpfs\nnodev\tproc\n\text4\n",
    "mounts": "/dev/root / ext4 rw,relatime 0 0\nproc /proc proc rw,relatime 0 0\n",
    "partitions": "major minor  #blocks  name\n\n",
    "pressure/cpu": _NO_PRESSURE,
    "pressure/io": _NO_PRESSURE,
    "pressure/memory": _NO_PRESSURE,
    "version": "Linux version 6.18.0 (vmemu@vmemu) #1 SMP PREEMPT_DYNAMIC\n",
    "sys/fs/file-nr": f"0\t0\t{(1 << 63) - 1}\n",
    "sys/kernel/hostname": "vmemu\n",
    "sys/kernel/osrelease": "6.18.0\n",
    "sys/kernel/ostype": "Linux\n",
    "sys/kernel/pid_max": f"{PID_MAX}\n",
    "sys/kernel/random/entropy_avail": "256\n",
    "sys/kernel/random/poolsize": "256\n",
    "sys/kernel/version": "#1 SMP PREEMPT_DYNAMIC\n",
}
"""Files that say the same of every machine."""


def _running(kernel: Kernel) -> int:
    table = kernel.processes
    idle = table.borrower
    return sum(tid not in idle for pid in table if pid not in table.stopped for tid in table.tasks(pid))


def stat(kernel: Kernel) -> bytes:
    """/proc/stat (show_stat())."""
    with kernel.lock:
        idle = kernel.clock_ns // TICK_NS
        times = f" 0 0 0 {idle} 0 0 0 0 0 0\n"
        running = _running(kernel)
        forks = kernel.processes.born
    return (
        f"cpu {times}cpu0{times}intr 0\nctxt 0\nbtime {BOOT_TIME}\nprocesses {forks}\n"
        f"procs_running {running}\nprocs_blocked 0\nsoftirq {' '.join('0' * 11)}\n"
    ).encode()


def uptime(kernel: Kernel) -> bytes:
    """/proc/uptime: seconds since boot, and idle ones."""
    ticks = kernel.clock_ns // TICK_NS
    text = f"{ticks // 100}.{ticks % 100:02}"
    return f"{text} {text}\n".encode()


def loadavg(kernel: Kernel, offset: int = 0) -> bytes:
    """/proc/loadavg; *offset* is added to the last pid."""
    with kernel.lock:
        total, last = len(kernel.processes), kernel.processes.last + offset
        return f"0.00 0.00 0.00 {_running(kernel)}/{total} {last}\n".encode()


def swaps(kernel: Kernel) -> bytes:
    """/proc/swaps (swap_show())."""
    text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    with kernel.lock:
        device = kernel.paging.device if kernel.paging is not None else None
        if device is not None:
            info = kernel.core.swap_info()
            total, used = info.total * 4, (info.total - info.free) * 4
            size = "".join(f"{n}\t" + "\t" * (n < 10_000_000) for n in (total, used))
            text += f"{device.name:<40}{device.kind}\t" + "\t" * (device.kind == "file") + f"{size}-2\n"
    return text.encode()


def zoneinfo(kernel: Kernel) -> bytes:
    """/proc/zoneinfo, as far as it is about free memory: one zone, its watermarks (zoneinfo_show_print())."""
    with kernel.lock:
        free, paging = kernel.core.free_frames(), kernel.paging
        marks = (0, 0, 0, 0) if paging is None else (paging.min, paging.low, paging.high, paging.promo)
    names = ("boost", "min", "low", "high", "promo", "spanned", "present", "managed", "cma")
    lines = [f"        {name:<8} {n}" for name, n in zip(names, (0, *marks, *[kernel.npages] * 3, 0), strict=True)]
    return "\n".join(
        [
            "Node 0, zone   Normal",
            f"  pages free     {free}",
            *lines,
            "        protection: (0, 0, 0, 0, 0)",
            f"      nr_free_pages {free}",
            "  node_unreclaimable:  0",
            "  start_pfn:           0",
            "",
        ]
    ).encode()


def buddyinfo(kernel: Kernel) -> bytes:
    """/proc/buddyinfo: free frames, those of whole 2 MiB blocks as such (order 9), the others one by one."""
    with kernel.lock:
        whole = kernel.core.whole()
        single = int(kernel.core.info().free) - whole
    free = [single + whole % 512, *[0] * 8, whole // 512, 0]
    return ("Node 0, zone   Normal " + "".join(f"{n:6} " for n in free) + "\n").encode()
