"""PID/status, PID/stat and PID/statm (fs/proc/array.c, task_mem() of fs/proc/task_mmu.c): one process in lines, in one
line of 52 fields, and in seven numbers of pages."""

from __future__ import annotations

from vmemu.limits import Resource
from vmemu.memory.words import (
    ARG_END,
    ARG_START,
    END_CODE,
    END_DATA,
    ENV_END,
    ENV_START,
    LOCKED_EXTRA,
    START_BRK,
    START_CODE,
    START_DATA,
    START_STACK,
)
from vmemu.pids import Flag
from vmemu.procfs.subject import TICK_NS, Subject
from vmemu.types import PAGE_SIZE

__all__ = ["stat", "statm", "status"]

_STATES = {"R": "running", "D": "disk sleep", "T": "stopped", "Z": "zombie"}
_PF_EXITING, _PF_POSTCOREDUMP, _PF_FORKNOEXEC, _PF_RANDOMIZE = 0x4, 0x8, 0x40, 0x400000
_MEMS = ",".join(["00000000"] * 31 + ["00000001"])


def _state(subject: Subject) -> str:
    """A task is ready to run, waits for its vfork child, was stopped, or is dead."""
    return "Z" if subject.zombie else "D" if subject.suspended else "T" if subject.stopped else "R"


def _threads(subject: Subject) -> int:
    """How many tasks its process has; a dead one counts until it is waited for."""
    return len({subject.pid, *subject.kernel.processes.tasks(subject.pid)})


def _signals(subject: Subject) -> tuple[int, int, int, int, int]:
    """Masks: pending for the task and for its process, blocked, ignored, caught."""
    table, said = subject.kernel.processes, subject.kernel.signals.of(subject.pid)
    own, shared = table.pending_task.get(subject.tid, 0), table.pending.get(subject.pid, 0)
    return own, shared, table.blocked[subject.tid], said.ignored, said.caught


def _text(subject: Subject) -> int:
    """Bytes of the program's own code."""
    words = subject.words
    return (-(-words[END_CODE] // PAGE_SIZE) - words[START_CODE] // PAGE_SIZE) * PAGE_SIZE


def _escape(name: bytes) -> bytes:
    """As status prints names (proc_task_name(), string_escape_str())."""
    return name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")


def status(subject: Subject) -> bytes:
    """PID/status; a zombie has no lines on memory."""
    who, table, state, pid = subject.credentials, subject.kernel.processes, _state(subject), subject.pid
    alive, shown = subject.space is not None, subject.shown
    lines: list[tuple[str, object]] = [
        ("State", f"{state} ({_STATES[state]})"),
        ("Tgid", shown(pid)),
        ("Ngid", 0),
        ("Pid", shown(subject.tid)),
        ("PPid", shown(table.parent[pid])),
        ("TracerPid", 0),
        ("Uid", f"{who.uid}\t{who.euid}\t{who.suid}\t{who.fsuid}"),
        ("Gid", f"{who.gid}\t{who.egid}\t{who.sgid}\t{who.fsgid}"),
        ("FDSize", 64 if alive else 0),
        ("Groups", "".join(f"{group} " for group in who.groups) or " "),
        ("NStgid", shown(pid)),
        ("NSpid", shown(subject.tid)),
        ("NSpgid", shown(table.group[pid])),
        ("NSsid", shown(table.session[pid])),
        ("Kthread", 0),
    ]
    if alive:
        lines.insert(0, ("Umask", "0022"))
        lines += [(key, f"{value >> 10:8} kB") for key, value in _memory(subject)]
        lines += [("CoreDumping", 0), ("THP_enabled", int(not subject.no_thp)), ("untag_mask", "0xffffffffffffffff")]
    masks = dict(zip(("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"), _signals(subject), strict=True))
    queued = masks["SigPnd"].bit_count() + masks["ShdPnd"].bit_count()
    lines += [("Threads", _threads(subject)), ("SigQ", f"{queued}/{subject.limits.soft(Resource.SIGPENDING)}")]
    lines += [(key, f"{mask:016x}") for key, mask in masks.items()]
    lines += [
        ("CapInh", f"{who.inheritable:016x}"),
        ("CapPrm", f"{who.permitted:016x}"),
        ("CapEff", f"{who.effective:016x}"),
        ("CapBnd", f"{who.bounding:016x}"),
        ("CapAmb", f"{who.ambient:016x}"),
        ("NoNewPrivs", 0),
        ("Seccomp", 0),
        ("Seccomp_filters", 0),
        ("Speculation_Store_Bypass", "vulnerable"),
        ("SpeculationIndirectBranch", "always enabled"),
        ("Cpus_allowed", 1),
        ("Cpus_allowed_list", 0),
        ("Mems_allowed", _MEMS),
        ("Mems_allowed_list", 0),
        ("voluntary_ctxt_switches", 0),
        ("nonvoluntary_ctxt_switches", 0),
    ]
    return b"Name:\t" + _escape(subject.name) + b"\n" + "".join(f"{key}:\t{value}\n" for key, value in lines).encode()


def _memory(subject: Subject) -> list[tuple[str, int]]:
    """VmPeak to HugetlbPages, in bytes (task_mem())."""
    info = subject.info
    sums = info.sums
    text = min(_text(subject), sums.exec * PAGE_SIZE)
    return [
        ("VmPeak", info.peak_total * PAGE_SIZE),
        ("VmSize", sums.total * PAGE_SIZE),
        ("VmLck", (sums.locked + subject.words[LOCKED_EXTRA]) * PAGE_SIZE),
        ("VmPin", 0),
        ("VmHWM", info.peak_rss * PAGE_SIZE),
        ("VmRSS", subject.rss * PAGE_SIZE),
        ("RssAnon", info.anon * PAGE_SIZE),
        ("RssFile", info.file * PAGE_SIZE),
        ("RssShmem", info.shmem * PAGE_SIZE),
        ("VmData", sums.data * PAGE_SIZE),
        ("VmStk", sums.stack * PAGE_SIZE),
        ("VmExe", text),
        ("VmLib", sums.exec * PAGE_SIZE - text),
        ("VmPTE", subject.page_tables),
        ("VmSwap", subject.swapped * PAGE_SIZE),
        ("HugetlbPages", info.hugetlb * PAGE_SIZE),
    ]


def stat(subject: Subject) -> bytes:
    """PID/stat: 52 fields (do_task_stat())."""
    table, pid, alive = subject.kernel.processes, subject.pid, subject.space is not None
    (minor, major), shown = subject.faults, subject.shown
    own, _, *masks = _signals(subject)
    words = subject.words if alive else [0] * 14
    flags = _PF_RANDOMIZE if subject.kernel.rng is not None else 0
    flags |= 0 if table.flags[subject.tid] & Flag.EXECED else _PF_FORKNOEXEC
    flags |= 0 if alive else _PF_EXITING | _PF_POSTCOREDUMP
    fields = (
        _state(subject),
        shown(table.parent[pid]),
        shown(table.group[pid]),
        shown(table.session[pid]),
        0,  # tty_nr
        -1,  # tpgid
        flags,
        minor,
        table.children_minor[pid],
        major,
        table.children_major[pid],
        *(0, 0, 0, 0),  # utime to cstime
        20,  # priority
        0,  # nice
        _threads(subject),
        0,
        table.started_ns[subject.tid] // TICK_NS,
        subject.info.sums.total * PAGE_SIZE if alive else 0,
        subject.rss,
        subject.limits.soft(Resource.RSS),
        words[START_CODE],
        words[END_CODE],
        words[START_STACK],
        *(0, 0),  # kstkesp, kstkeip
        *(mask & 0x7FFF_FFFF for mask in (own, *masks)),  # signal to sigcatch
        0 if _state(subject) == "R" else 1,  # wchan
        *(0, 0),
        table.exit_signal[pid] if subject.tid == pid else -1,
        *(0, 0, 0, 0, 0, 0),  # processor to cguest_time
        words[START_DATA],
        words[END_DATA],
        words[START_BRK],
        words[ARG_START],
        words[ARG_END],
        words[ENV_START],
        words[ENV_END],
        0 if alive else table.status[pid],
    )
    return f"{shown(subject.tid)} (".encode() + subject.name + b") " + " ".join(map(str, fields)).encode() + b"\n"


def statm(subject: Subject) -> bytes:
    """PID/statm: seven numbers of pages (task_statm())."""
    if subject.space is None:
        return b"0 0 0 0 0 0 0\n"
    info = subject.info
    sums = info.sums
    shared = info.file + info.shmem
    text = _text(subject) // PAGE_SIZE
    return f"{sums.total} {shared + info.anon} {shared} {text} 0 {sums.data + sums.stack} 0\n".encode()
