"""Control groups of this kernel for a comparison: where they can be made, processes in them that do as they are told.

Under cgroup v2 if a mount has the controller, else in the hierarchy of cgroup v1 that has it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Bomb", "Group", "Hog", "Tree", "build_bomb", "build_hog", "controller", "group", "may_protect", "mounts"]

PAGE = 4096


def mounts() -> Iterator[tuple[str, str, set[str]]]:
    """(type, directory, options) of what is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, directory, kind, options = line.split()[:4]
        yield kind, directory, set(options.split(","))


def controller(name: str) -> tuple[int, Path] | str:
    """Where groups with a controller can be made: (version, directory); or why they cannot."""
    if os.geteuid():
        return "needs root"
    for kind, directory, options in mounts():
        at = Path(directory)
        if kind == "cgroup2" and name in (at / "cgroup.controllers").read_text().split():
            version = 2
        elif kind == "cgroup" and name in options:
            version = 1
        else:
            continue
        if not os.access(at / "cgroup.procs", os.W_OK):
            return f"{directory} is not writable"
        return version, at
    return f"no cgroup hierarchy has the controller {name}"


class Group:
    """One group that is ours."""

    def __init__(self, version: int, path: Path) -> None:
        self.version, self.path = version, path

    def read(self, name: str) -> str:
        """A file."""
        return (self.path / name).read_text()

    def write(self, name: str, value: object) -> None:
        """A file; the errno of the kernel comes as OSError."""
        (self.path / name).write_text(str(value))

    def number(self, name: str) -> int:
        """A file that holds one."""
        return int(self.read(name))

    def values(self, name: str) -> dict[str, int]:
        """A file of names and numbers."""
        return {key: int(value) for key, value in map(str.split, self.read(name).splitlines())}


@contextlib.contextmanager
def group(name: str, where: tuple[int, Path], above: Group | None = None) -> Iterator[Group]:
    """A group that is gone afterwards, with all that is in it."""
    version, base = where
    base = above.path if above else base
    enabled = version == 2 and name not in (base / "cgroup.subtree_control").read_text().split()
    if enabled:
        (base / "cgroup.subtree_control").write_text(f"+{name}")
    path = base / f"vmemu-{os.getpid()}"
    path.mkdir()
    try:
        yield Group(version, path)
    finally:
        for _ in range(400):
            for pid in (path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                path.rmdir()
                break
            except OSError:
                time.sleep(0.01)
        if enabled:
            with contextlib.suppress(OSError):
                (base / "cgroup.subtree_control").write_text(f"-{name}")


# ---- a tree of processes ----

_AGENT = """
import os, socket, sys
sockets = [socket.socket(fileno=int(fd)) for fd in sys.argv[1:]]
slot = 0
while True:
    what, _, number = sockets[slot].recv(64).decode().partition(" ")
    reply = 0
    try:
        if what == "fork":
            reply = os.fork()
            if not reply:
                slot = int(number)
                continue
        elif what == "wait":
            os.waitpid(int(number), 0)
    except OSError as error:
        reply = -error.errno
    sockets[slot].send(str(reply).encode())
    if what == "exit":
        os._exit(0)
"""


class Tree:
    """Processes, by slot; the one in slot 0 is there from the start. One of them does something at a time."""

    def __init__(self, slots: int) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(slots)]
        self._ours = [ours for ours, _ in pairs]
        fds = [theirs.fileno() for _, theirs in pairs]
        self._first = subprocess.Popen([sys.executable, "-S", "-c", _AGENT, *map(str, fds)], pass_fds=fds)
        for _, theirs in pairs:
            theirs.close()
        for ours in self._ours:
            ours.settimeout(30)
        self.pids = {0: self._first.pid}
        self._ask(0, "wait 0")  # it runs

    def _ask(self, slot: int, what: str) -> int:
        self._ours[slot].send(what.encode())
        return int(self._ours[slot].recv(64))

    def fork(self, slot: int, new: int) -> int:
        """0, or the errno."""
        pid = self._ask(slot, f"fork {new}")
        if pid > 0:
            self.pids[new] = pid
        return min(pid, 0)

    def exit(self, slot: int) -> None:
        """It is a zombie when this returns."""
        self._ask(slot, "exit")
        stat = Path(f"/proc/{self.pids[slot]}/stat")
        while stat.read_text().rpartition(") ")[2][0] != "Z":
            time.sleep(0.001)

    def wait(self, slot: int, child: int) -> None:
        """For the child in a slot, which is dead."""
        assert self._ask(slot, f"wait {self.pids.pop(child)}") == 0

    def close(self) -> None:
        """Ends what is left."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._first.wait()
        for ours in self._ours:
            ours.close()


# ---- processes that hold memory ----

_HOG = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void)
{
	char text[32];
	ssize_t n;

	while ((n = read(0, text, sizeof(text) - 1)) > 0) {
		size_t pages, bytes;
		char *at;

		text[n] = 0;
		pages = strtoul(text, NULL, 10);
		bytes = pages << 12;
		at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (at == MAP_FAILED)
			return 1;
		madvise(at, bytes, MADV_NOHUGEPAGE);
		for (size_t i = 0; i < pages; i++)
			at[i << 12] = 1;
		if (write(1, "k", 1) != 1)
			return 1;
	}
	return 0;
}
"""


def build_hog(directory: Path) -> Path | None:
    """The program of `Hog`; None without a compiler."""
    return _build(directory, "hog", _HOG)


def build_bomb(directory: Path) -> Path | None:
    """That of `Bomb`."""
    return _build(directory, "bomb", _BOMB)


def _build(directory: Path, name: str, text: str) -> Path | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source, program = directory / f"{name}.c", directory / name
    source.write_text(text)
    done = subprocess.run([compiler, "-O1", "-static", "-o", program, source], capture_output=True, check=False)
    return program if done.returncode == 0 else None


def may_protect() -> bool:
    """An oom_score_adj below the one that processes have here can be set."""
    adj = Path("/proc/self/oom_score_adj")
    before = adj.read_text()
    try:
        adj.write_text("-1000")
    except OSError:
        return False
    adj.write_text(before)
    return True


class Hog:
    """A process in a group that touches as many pages as it is told."""

    def __init__(self, program: Path, where: Group, adj: int) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        try:
            where.write("cgroup.procs", self._process.pid)
            Path(f"/proc/{self._process.pid}/oom_score_adj").write_text(str(adj))
            assert self.touch(1)
        except BaseException:
            self.close()
            raise

    def touch(self, npages: int) -> bool:
        """False: it was killed."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(str(npages).encode())
        return self._process.stdout.read(1) == b"k"

    def dead(self, wait: bool = False) -> bool:
        """It was killed."""
        status = self._process.wait() if wait else self._process.poll()
        assert status in (None, -signal.SIGKILL)
        return status is not None

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()


# ---- a bomb, one step at a time ----

_BOMB = r"""
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	char text[64], *heap = NULL;
	int slot = 1;
	ssize_t n;

	(void)argc;
	signal(SIGCHLD, SIG_IGN);
	while ((n = recv(atoi(argv[slot]), text, sizeof(text) - 1, 0)) > 0) {
		char what = text[0];
		size_t number, bytes;
		long reply = 0;

		text[n] = 0;
		number = strtoul(text + 1, NULL, 10);
		bytes = number << 12;
		if (what == 'f') {
			reply = fork();
			if (!reply) {
				slot = 1 + (int)number;
				continue;
			}
		} else if (what == 't') {
			char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

			if (at == MAP_FAILED)
				return 1;
			madvise(at, bytes, MADV_NOHUGEPAGE);
			for (size_t i = 0; i < number; i++)
				at[i << 12] = 1;
			heap = heap ? heap : at;
		} else if (what == 'd') {
			for (size_t i = 0; i < number; i++)
				heap[i << 12]++;
		}
		n = snprintf(text, sizeof(text), "%ld", reply);
		send(atoi(argv[slot]), text, (size_t)n, 0);
	}
	return 0;
}
"""


class Bomb:
    """Processes by slot in a group, the first in slot 0: they fork, touch new pages, and write to those that they all
    have from the first."""

    def __init__(self, program: Path, where: Group, slots: int) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(slots)]
        self._ours = [ours for ours, _ in pairs]
        fds = [theirs.fileno() for _, theirs in pairs]
        self._first = subprocess.Popen([program, *map(str, fds)], pass_fds=fds)
        for _, theirs in pairs:
            theirs.close()
        for ours in self._ours:
            ours.settimeout(0.01)
        self.pids = {0: self._first.pid}
        where.write("cgroup.procs", self._first.pid)
        self.step(0, "d", 0)  # it runs

    def step(self, slot: int, what: str, number: int) -> bool:
        """Fork into slot *number*, or touch ("t") or write ("d") so many pages. False: it was killed meanwhile."""
        self._ours[slot].send(f"{what}{number}".encode())
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                answer = self._ours[slot].recv(64)
                if answer:
                    if what == "f":
                        self.pids[number] = int(answer)
                        assert self.pids[number] > 0
                    return True
                time.sleep(0.001)  # nobody has the other end any more
            if slot in self.dead():
                return False
        raise TimeoutError(f"{what}{number} in {slot}")

    def dead(self) -> set[int]:
        """The slots whose processes are gone."""
        gone = set()
        for slot, pid in self.pids.items():
            try:
                if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX":
                    gone.add(slot)
            except (FileNotFoundError, ProcessLookupError):
                gone.add(slot)
        return gone

    def close(self) -> None:
        """Ends what is left."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._first.wait()
        for ours in self._ours:
            ours.close()
