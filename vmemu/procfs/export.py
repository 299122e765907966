"""The tree of /proc written to a directory, for tools that read one.

It is a snapshot: the machine is held while it is written, and the tree appears under its name all at once, complete. A
process's directory has its text files, its links, an empty `fd`, and `task/PID`, which leads back to it if it has one
thread only. Equal texts, of which processes that forked from one another have many, are one file with several names;
that is far quicker than so many files. `self` is process 1, for tools that look for it to know a /proc; `proc` is the
tree itself, for those that are given the root of a file system.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence

from vmemu.errors import SyscallError, syscall_error
from vmemu.kernel import Kernel
from vmemu.pids import INIT
from vmemu.procfs import system
from vmemu.procfs.index import LINKS, MACHINE, PROCESS, link
from vmemu.procfs.subject import Subject

__all__ = ["MARK", "check", "export"]

MARK = ".vmemu-procfs"
"""A file in the tree that says it is one; a directory with it may be replaced."""
_MARK_TEXT = b"A snapshot of an emulated machine's /proc, written by vmemu. Writing another replaces this directory.\n"
_READABLE = {name: file.read for name, file in PROCESS.items() if file.read is not None}


def export(kernel: Kernel, directory: str, offset: int, files: Sequence[str] | None) -> None:
    """See ProcFS.export()."""
    wanted = list(_READABLE) if files is None else list(dict.fromkeys(files))
    for name in wanted:
        if name not in _READABLE:
            raise syscall_error("export", errno.EINVAL, f"{name!r} is no text file of a process")
    target = check(directory)
    building = _beside(target, "new")
    try:
        os.mkdir(building)
    except OSError as error:
        raise _failed(error, target) from None
    try:
        with kernel.lock:
            _write_tree(kernel, building, offset, wanted)
        _replace(target, building)
    except SyscallError:
        raise
    except OSError as error:
        raise _failed(error, target) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _failed(error: OSError, target: str) -> Exception:
    return syscall_error("export", error.errno or errno.EIO, f"{target}: {error.filename or ''}")


def _beside(target: str, what: str) -> str:
    """A name that nobody has, in the same directory and so in the same file system."""
    head, tail = os.path.split(target)
    return os.path.join(head, f".{tail}.{what}-{os.getpid()}-{os.urandom(4).hex()}")


def check(directory: str | os.PathLike[str]) -> str:
    """The path where a tree would be written. Raises SyscallError if it may not: ENOENT, ENOTDIR, ENOTEMPTY."""
    target = os.path.realpath(os.fspath(directory))
    try:
        inside = os.listdir(target)
    except FileNotFoundError:
        above = os.path.dirname(target)
        if not os.path.isdir(above):
            number = errno.ENOTDIR if os.path.lexists(above) else errno.ENOENT
            raise syscall_error("export", number, f"{above}, in which {target} would be") from None
    except NotADirectoryError:
        raise syscall_error("export", errno.ENOTDIR, f"{target} is a file or in one") from None
    except OSError as error:
        raise _failed(error, target) from None
    else:
        if inside and MARK not in inside:
            raise syscall_error("export", errno.ENOTEMPTY, f"{target} holds something that is no earlier export")
    return target


def _replace(target: str, building: str) -> None:
    """Puts the new tree in the place of what is there, which goes away last."""
    if not os.path.lexists(target):
        os.rename(building, target)
        return
    old = _beside(target, "old")
    os.rename(target, old)
    try:
        os.rename(building, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_tree(kernel: Kernel, top: str, offset: int, files: Sequence[str]) -> None:
    _write(f"{top}/{MARK}", _MARK_TEXT)
    for path, text in MACHINE.items():
        os.makedirs(os.path.dirname(f"{top}/{path}"), exist_ok=True)
        _write(f"{top}/{path}", system.loadavg(kernel, offset) if path == "loadavg" else text(kernel))
    os.symlink(str(INIT + offset), f"{top}/self")
    os.symlink(".", f"{top}/proc")
    tree = _Tree()
    root = os.geteuid() == 0
    for pid in kernel.processes:
        subject = Subject(kernel, pid, offset=offset)
        path = f"{top}/{pid + offset}"
        os.mkdir(path)
        _write_process(tree, subject, path, files)
        _write_tasks(tree, subject, path, files, offset)
        who = subject.credentials
        if root and (who.euid or who.egid):  # ps takes the user from here
            os.chown(path, who.euid, who.egid)


def _write_process(tree: _Tree, subject: Subject, path: str, files: Sequence[str]) -> None:
    for name in files:
        read = _READABLE[name]
        try:
            text = read(subject)
        except ProcessLookupError:  # of a zombie; on Linux the file is there and cannot be opened
            continue
        tree.file(f"{path}/{name}", text)
    for name in LINKS:
        to = link(subject, name)
        if to is not None:
            tree.link(f"{path}/{name}", to)
    os.mkdir(f"{path}/fd")


def _write_tasks(tree: _Tree, subject: Subject, path: str, files: Sequence[str], offset: int) -> None:
    os.mkdir(f"{path}/task")
    tids = subject.kernel.processes.threads.get(subject.pid)
    if not tids:
        tree.link(f"{path}/task/{os.path.basename(path)}", "..")
        return
    for tid in (subject.pid, *tids):
        os.mkdir(f"{path}/task/{tid + offset}")
        task = Subject(subject.kernel, subject.pid, tid, alone=True, offset=offset)
        _write_process(tree, task, f"{path}/task/{tid + offset}", files)


class _Tree:
    """Writes files and links; what is equal to one written before becomes another name of it."""

    def __init__(self) -> None:
        self._known: dict[bytes | str, str] = {}

    def file(self, path: str, text: bytes) -> None:
        """A file."""
        if not self._again(path, text):
            _write(path, text)
            self._known[text] = path

    def link(self, path: str, to: str) -> None:
        """A symbolic link."""
        if not self._again(path, to):
            os.symlink(to, path)
            self._known[to] = path

    def _again(self, path: str, what: bytes | str) -> bool:
        first = self._known.get(what)
        if first is None:
            return False
        try:
            os.link(first, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.ENOTSUP):  # too many names, or none there
                raise
            return False
        return True


def _write(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        while text:
            text = text[os.write(fd, text) :]
    finally:
        os.close(fd)
