"""The tree of /proc: which name is which file, what may be read and written, what is in a directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import SupportsIndex

from vmemu.errors import syscall_error
from vmemu.kernel import Kernel
from vmemu.memory.args import integer
from vmemu.procfs import pages, sysctl
from vmemu.procfs.export import export
from vmemu.procfs.index import BINARY, EMPTY, LINKS, MACHINE, PAGEMAP, PROCESS, ROOT, link
from vmemu.procfs.subject import Subject

__all__ = ["ProcFS"]


class ProcFS:
    """/proc of a machine, read and written as root of the machine would; or as the process *by*, with its
    capabilities.

    Paths are relative to /proc, ``"7/maps"`` or ``"/proc/7/maps"``. Failures raise SyscallError with Linux's errno.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    # ---- finding ----

    def _name(self, path: str | os.PathLike[str]) -> list[str]:
        """The words of a path; ENOENT if it leaves /proc."""
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError(f"procfs: path must be a str, not {type(path).__name__}")
        words: list[str] = []
        for word in text.removeprefix("/proc").split("/"):
            if word == "..":
                if not words:
                    raise syscall_error("open", errno.ENOENT, f"{text} is not in /proc")
                words.pop()
            elif word not in ("", "."):
                words.append(word)
        return words

    def _process(self, words: list[str]) -> tuple[Subject, list[str]] | None:
        """The process that a path is about and the rest of the path. ENOENT if there is no such process."""
        if not words or not (words[0].isascii() and words[0].isdigit()):
            return None
        table, rest, pid = self._kernel.processes, words[1:], int(words[0])
        if words[0] != str(pid) or table.process(pid) not in table:
            raise syscall_error("open", errno.ENOENT, f"/proc/{words[0]}: no such process")
        if rest[:1] == ["task"] and len(rest) > 1:
            process = table.process(pid)
            if rest[1] not in map(str, {process, *table.tasks(process)}):
                raise syscall_error("open", errno.ENOENT, f"/proc/{'/'.join(words[:3])}: no such thread")
            return Subject(self._kernel, process, int(rest[1]), alone=True), ["task/", *rest[2:]]
        return Subject(self._kernel, table.process(pid), pid), rest

    def _file(self, words: list[str]) -> tuple[Subject, str] | str:
        """A file that is there: of a process and its name, or its path. ENOENT, ENOTDIR, EISDIR."""
        found = self._process(words)
        if found is None:
            return self._machine_file("/".join(words))
        subject, rest = found
        in_task = rest[:1] == ["task/"]
        rest = rest[1:] if in_task else rest
        if not rest or (rest == ["task"] and not in_task) or (rest[0] in EMPTY and len(rest) == 1):
            raise syscall_error("open", errno.EISDIR, f"/proc/{'/'.join(words)}")
        if rest[0] not in (*PROCESS, *LINKS, PAGEMAP):
            raise syscall_error("open", errno.ENOENT, f"/proc/{'/'.join(words)}")
        if len(rest) > 1:
            raise syscall_error("open", errno.ENOTDIR, f"/proc/{'/'.join(words)}")
        return subject, rest[0]

    def _machine_file(self, path: str) -> str:
        if path in MACHINE or path in BINARY:
            return path
        if not path or any(name.startswith(f"{path}/") for name in ROOT):
            raise syscall_error("open", errno.EISDIR, f"/proc/{path}")
        above = any(path.startswith(f"{name}/") for name in ROOT)
        raise syscall_error("open", errno.ENOTDIR if above else errno.ENOENT, f"/proc/{path}")

    # ---- reading and writing ----

    def read(
        self, path: str | os.PathLike[str], offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> bytes:
        """*length* bytes of a file from *offset* on, or to its end: ``"7/maps"``, ``"7/smaps"``, ``"meminfo"``,
        ``"kpagecount"``.

        `PID/pagemap` without *length* ends behind the last mapping, and raises EFBIG if that lies far up. ENOENT if
        there is no such file or process, ESRCH for some files of a zombie, EISDIR, EINVAL.
        """
        start = integer(offset, "read", "offset")
        count = None if length is None else integer(length, "read", "length")
        if start < 0 or (count is not None and count < 0):
            raise syscall_error("read", errno.EINVAL, f"{count} bytes from {start}")
        with self._kernel.lock:  # one moment for all that the file tells
            found = self._file(self._name(path))
            if isinstance(found, str) and found in BINARY:
                return BINARY[found](self._kernel, start, count)
            if not isinstance(found, str) and found[1] == PAGEMAP:
                return pages.pagemap(found[0], start, count)
            data = self._text(found)
        return data[start:] if count is None else data[start : start + count]

    def _text(self, found: tuple[Subject, str] | str) -> bytes:
        if isinstance(found, str):
            return MACHINE[found](self._kernel)
        subject, name = found
        if name in LINKS:
            raise syscall_error("read", errno.EINVAL, f"/proc/{subject.pid}/{name} is a link: see readlink()")
        read = PROCESS[name].read
        if read is None:
            raise syscall_error("read", errno.EINVAL, f"/proc/{subject.pid}/{name} can only be written")
        return read(subject)

    def write(self, path: str | os.PathLike[str], data: bytes | str, *, by: int | None = None) -> int:
        """Writes *data* to a file, in one write(2), and returns its length.

        `PID/clear_refs`, `oom_score_adj`, `oom_adj`, `comm`, `sys/vm/overcommit_memory` and its neighbours can be
        written; the others say EINVAL or EIO, or EACCES where the file is read-only, as on Linux. *by* is the pid of
        the process that writes, None for one with all capabilities. EINVAL and ERANGE for data that make no sense.
        """
        if isinstance(data, str):
            data = data.encode()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"procfs: data must be bytes, not {type(data).__name__}")
        raw = bytes(data)
        words = self._name(path)
        found = self._file(words)
        with self._kernel.lock:
            if isinstance(found, str):
                return self._write_machine(found, raw)
            subject, name = found
            write = PROCESS[name].write if name in PROCESS else None
            if write is None:
                raise syscall_error("write", errno.EINVAL, f"/proc/{'/'.join(words)} can only be read")
            write(subject, raw, by)
        return len(raw)

    def _write_machine(self, path: str, data: bytes) -> int:
        setting = sysctl.SETTINGS.get(path)
        if setting is not None and setting.set is not None:
            setting.write(self._kernel, path, data)
            return len(data)
        number = errno.EACCES if path.startswith("sys/") else errno.EIO
        raise syscall_error("write", number, f"/proc/{path} can only be read")

    def readlink(self, path: str | os.PathLike[str]) -> str:
        """Where `PID/exe`, `PID/cwd` and `PID/root` lead. ENOENT for a zombie and without a program; EINVAL for other
        files, readlink(2)."""
        words = self._name(path)
        found = self._process(words)
        rest = [] if found is None else [word for word in found[1] if word != "task/"]
        if found is None or rest[:1] not in ([one] for one in LINKS):
            if words and words not in (["sys"],):
                self.listdir(path) if self._is_directory(words) else self._file(words)
            raise syscall_error("readlink", errno.EINVAL, f"/proc/{'/'.join(words)} is no link")
        subject = found[0]
        target = link(subject, rest[0]) if len(rest) == 1 else None
        if target is None:
            raise syscall_error("readlink", errno.ENOENT, f"/proc/{'/'.join(words)}")
        return target

    def listdir(self, path: str | os.PathLike[str] = "") -> list[str]:
        """The names in a directory, processes in order of their pids. ENOENT, ENOTDIR."""
        words = self._name(path)
        names = self._names(words)
        if names is None:
            self._file(words)
            raise syscall_error("listdir", errno.ENOTDIR, f"/proc/{'/'.join(words)}")
        return names

    def _is_directory(self, words: list[str]) -> bool:
        return self._names(words) is not None

    def _names(self, words: list[str]) -> list[str] | None:
        """What is in a directory, None if it is none."""
        found = self._process(words)
        if found is None:
            below = "".join(f"{word}/" for word in words)
            inside = sorted({name.removeprefix(below).split("/")[0] for name in ROOT if name.startswith(below)})
            return [*map(str, self._kernel.processes), *inside] if not words else inside or None
        subject, rest = found
        if rest == ["task"]:
            table = self._kernel.processes
            return [str(tid) for tid in sorted({subject.pid, *table.tasks(subject.pid)})]
        if rest in ([], ["task/"]):
            return sorted([*PROCESS, *LINKS, *EMPTY, PAGEMAP, *([] if rest else ["task"])])
        return [] if len(rest) <= 2 and rest[-1] in EMPTY else None

    def export(
        self, directory: str | os.PathLike[str], *, pid_offset: SupportsIndex = 0, files: Iterable[str] | None = None
    ) -> None:
        """Writes the tree as it is now to *directory*, for tools that read one (psutil with PROCFS_PATH, smem -S,
        prometheus-node-exporter --path.procfs, or any other with the tree mounted on /proc).

        *directory* is made, or replaced as a whole if it is empty or an earlier export; ENOTDIR, ENOTEMPTY, EINVAL for
        another, and then nothing is written. *files* are the names of the files that each process gets, all if None;
        the binary ones are never written. *pid_offset* is added to every pid, so that a tool that signals what it sees
        (kill() of psutil, say) does not hit a process of the host: 4194304 is above all of them.
        """
        offset = integer(pid_offset, "export", "pid_offset")
        if offset < 0:
            raise ValueError(f"pid_offset: {offset} is negative")
        export(self._kernel, os.fspath(directory), offset, None if files is None else list(files))
