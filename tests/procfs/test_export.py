"""The exported tree: what is in it, what may be replaced, and real tools that read it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from machines import PAGE, RW, SHARED, machine, program
from procfs.shape import status, values

from vmemu import Machine, Process, Prot, SyscallError

TREE = {".vmemu-procfs", "self", "proc"}
"""What the tree has and /proc has not."""


def family(m: Machine) -> tuple[Process, Process, Process]:
    """A shell with its libraries, touched; a child that wrote, its child, one of another user, a zombie."""
    p = m.spawn("/bin/sh", ["sh", "-c", "two words"], {"KEY": "value"}, link=True)
    for mapping in p.maps():
        if mapping.prot & Prot.READ:
            p.touch(mapping.start, mapping.size)
    p.touch(p.brk(p.brk() + 64 * PAGE) - 64 * PAGE, 64 * PAGE, write=True)
    p.touch(p.mmap(None, 16 * PAGE, RW, SHARED), 16 * PAGE, write=True)
    m.sleep(3 * 10**9)
    child = p.fork()
    child.touch(child.brk() - 8 * PAGE, 8 * PAGE, write=True)
    m.sleep(10**9)
    grandchild = child.fork()
    other = p.fork()
    other.setgid(4321)
    other.setuid(1234)
    p.fork().exit(1)
    return p, child, grandchild


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[Machine, Path]]:
    """A machine with a family, and its tree."""
    with Machine(memory="64MiB") as m:
        family(m)
        m.procfs.export(tmp_path / "tree")
        yield m, tmp_path / "tree"
        m.verify()


def everything(m: Machine) -> dict[str, bytes]:
    """Path -> contents of all files that can be read whole."""
    found, waiting = {}, [""]
    while waiting:
        at = waiting.pop()
        for name in m.procfs.listdir(at):
            path = f"{at}/{name}".strip("/")
            try:
                if name not in ("kpagecount", "kpageflags", "pagemap", "exe", "cwd", "root"):
                    found[path] = m.procfs.read(path)
            except SyscallError as error:
                if error.errno == errno.EISDIR:
                    waiting.append(path)
    return found


# ---- what is in it ----


def test_files_are_what_read_gives(tree: tuple[Machine, Path]) -> None:
    """Each file of /proc, and no other; links; no leftovers beside it."""
    m, top = tree
    want = everything(m)
    assert {path: (top / path).read_bytes() for path in want} == want
    assert {name.name for name in top.iterdir()} - TREE == set(m.procfs.listdir()) - {"kpagecount", "kpageflags"}
    for pid, p in m.processes.items():
        links = {name: os.readlink(top / f"{pid}" / name) for name in ("exe", "cwd") if p.state != "zombie" and p.exe}
        assert links == {name: m.procfs.readlink(f"{pid}/{name}") for name in links}
        assert (top / f"{pid}" / "task" / f"{pid}" / "stat").read_bytes() == m.procfs.read(f"{pid}/stat")
        assert list((top / f"{pid}" / "fd").iterdir()) == []
    zombie = next(pid for pid, p in m.processes.items() if p.state == "zombie")
    assert not (top / f"{zombie}" / "smaps_rollup").exists()
    assert [path.name for path in top.parent.iterdir()] == ["tree"]


def test_pid_offset(tmp_path: Path) -> None:
    """Every pid in every file is that much higher; nobody stays 0."""
    with machine(memory="32MiB") as m:
        p = m.spawn(str(program(tmp_path)))
        p.setsid()
        c = p.fork()
        m.procfs.export(tmp_path / "tree", pid_offset=4194304)
        top = tmp_path / "tree"
        assert sorted(int(name.name) for name in top.iterdir() if name.name.isdigit()) == [4194305, 4194306, 4194307]
        at = top / str(c.pid + 4194304)
        stat = (at / "stat").read_text().split()
        assert [int(n) for n in (stat[0], *stat[3:6])] == [4194307, 4194306, 4194306, 4194306]
        got = values((at / "status").read_bytes())
        assert {got[key] for key in ("Tgid", "Pid", "NStgid", "NSpid")} == {4194307}
        assert got["PPid"] == 4194306
        assert values((top / "4194305" / "status").read_bytes())["PPid"] == 0
        assert (at / "task" / "4194307" / "stat").read_text().split() == stat
        assert (top / "loadavg").read_text().split()[-1] == "4194307"
        assert os.readlink(top / "self") == "4194305"
        with pytest.raises(ValueError, match="-1"):
            m.procfs.export(tmp_path / "other", pid_offset=-1)


def test_some_files(tmp_path: Path) -> None:
    """Only those asked for; an unknown name is EINVAL and nothing is written."""
    with machine() as m:
        m.spawn()
        m.procfs.export(tmp_path / "tree", files=["stat", "status", "stat"])
        assert {name.name for name in (tmp_path / "tree" / "2").iterdir() if name.is_file()} == {"stat", "status"}
        for name in ("nothing", "pagemap", "exe", "../x"):
            with pytest.raises(SyscallError) as caught:
                m.procfs.export(tmp_path / "other", files=[name])
            assert caught.value.errno == errno.EINVAL
        assert not (tmp_path / "other").exists()


def test_equal_texts_are_one_file(tmp_path: Path) -> None:
    """Of processes that differ in nothing but their number."""
    with Machine(memory="64MiB") as m:
        kids = m.spawn("/bin/sh").fork_many(20)
        m.procfs.export(tmp_path / "tree")
        inodes = {(tmp_path / "tree" / str(c.pid) / "smaps").stat().st_ino for c in kids}
        assert len(inodes) == 1


# ---- where it may be written ----


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    """As a whole: what is gone is gone."""
    with machine() as m:
        p = m.spawn()
        c = p.fork()
        (tmp_path / "tree").mkdir()
        m.procfs.export(tmp_path / "tree")
        assert (tmp_path / "tree" / str(c.pid)).is_dir()
        c.exit()
        p.wait()
        m.procfs.export(str(tmp_path / "tree"))
        assert not (tmp_path / "tree" / str(c.pid)).exists()
        assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_through_a_link(tmp_path: Path) -> None:
    """A link to a directory stays a link."""
    with machine() as m:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        m.procfs.export(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "1" / "stat").exists()


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    """A file, a directory that holds something, a directory in nowhere: each with its errno, nothing changed."""
    (tmp_path / "file").write_text("keep")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").write_text("keep")
    wrong = {"file": errno.ENOTDIR, "full": errno.ENOTEMPTY, "nowhere/tree": errno.ENOENT, "file/tree": errno.ENOTDIR}
    before = sorted(tmp_path.rglob("*"))
    with machine() as m:
        for name, number in wrong.items():
            with pytest.raises(SyscallError, match=re.escape(str(tmp_path))) as caught:
                m.procfs.export(tmp_path / name)
            assert caught.value.errno == number
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier tree stays, the half-written one goes."""
    with machine() as m:
        m.spawn()
        m.procfs.export(tmp_path / "tree")
        before = (tmp_path / "tree" / "2" / "stat").read_bytes()
        m.spawn()
        real = os.mkdir

        def full(path: str, *args: int, **more: int) -> None:
            if path.endswith("/fd"):
                raise OSError(errno.ENOSPC, "No space left on device", path)
            real(path, *args, **more)

        monkeypatch.setattr(os, "mkdir", full)
        with pytest.raises(SyscallError) as caught:
            m.procfs.export(tmp_path / "tree")
        assert caught.value.errno == errno.ENOSPC
        assert (tmp_path / "tree" / "2" / "stat").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["tree"]


# ---- real tools ----


@pytest.fixture
def ps(tree: tuple[Machine, Path], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """psutil looks at the tree."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tree[1]))
    monkeypatch.setattr(psutil._pslinux, "BOOT_TIME", None, raising=False)
    return tree[0]


def test_psutil_lists_processes(ps: Machine) -> None:
    """Their numbers, parents, names, states, users, times, command lines."""
    assert psutil.pids() == list(ps.processes)
    for pid, p in ps.processes.items():
        seen = psutil.Process(pid)
        assert (seen.ppid(), seen.name()) == (p.ppid, p.comm)
        assert sorted(c.pid for c in seen.children()) == sorted(c.pid for c in p.children)
        assert seen.uids() == (p.uid, p.euid, p.credentials.suid)
        assert seen.gids() == (p.gid, p.egid, p.credentials.sgid)
        assert seen.status() == {"running": psutil.STATUS_RUNNING, "zombie": psutil.STATUS_ZOMBIE}[p.state]
        assert round(seen.create_time() - psutil.boot_time(), 2) == p.started_ns // 10**7 / 100
        if p.state != "zombie" and p.exe:
            assert seen.exe() == p.exe
            assert seen.cmdline() == ["sh", "-c", "two words"]
            assert seen.environ() == {"KEY": "value"}
            assert seen.cwd() == "/"
            assert (seen.num_threads(), seen.num_fds(), seen.open_files()) == (1, 0, [])
            assert [thread.id for thread in seen.threads()] == [pid]
    tree = psutil.Process(2).children(recursive=True)
    assert {c.pid for c in tree} == set(ps.processes) - {1, 2}


def test_psutil_measures_memory(ps: Machine) -> None:
    """memory_full_info and memory_maps are the Process's own figures."""
    for pid, p in ps.processes.items():
        if p.state == "zombie":
            assert psutil.Process(pid).memory_info().rss == 0
            continue
        seen, kinds = psutil.Process(pid), p.rss_by_kind
        full = seen.memory_full_info()
        assert (full.rss, full.vms, full.shared) == (p.rss, sum(v.size for v in p.maps()), kinds.file + kinds.shmem)
        assert (full.uss, full.pss, full.swap) == (p.uss, p.pss >> 10 << 10, 0)
        own = {f"{u.mapping.start:08x}-{u.mapping.end:08x}": u for u in p.smaps()}
        maps = seen.memory_maps(grouped=False)
        assert [one.addr for one in maps] == list(own)
        for one in maps:
            u = own[one.addr]
            kb = [u.rss, u.mapping.size, u.pss, u.shared_clean, u.shared_dirty, u.private_clean, u.private_dirty]
            kb += [u.referenced, u.anonymous, 0]
            assert list(one[3:]) == [n >> 10 << 10 for n in kb]
            assert (one.perms, one.path) == (u.mapping.perms, u.mapping.name.removesuffix(" (deleted)") or "[anon]")


def test_psutil_measures_the_machine(ps: Machine) -> None:
    """virtual_memory and swap_memory are meminfo's."""
    info, seen = ps.meminfo(), psutil.virtual_memory()
    assert (seen.total, seen.available, seen.free) == (info.total, info.available, info.free)
    assert (seen.cached, seen.shared, seen.buffers) == (info.file + info.shmem, info.shmem, 0)
    assert psutil.swap_memory().total == 0
    assert psutil.cpu_times().idle == ps.clock_ns // 10**7 / 100


def tool(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.linux
def test_smem(tree: tuple[Machine, Path]) -> None:
    """smem -S: PSS, USS and RSS by process and by user."""
    m, top = tree
    lines = run(tool("smem"), "-S", str(top), "-c", "pid swap uss pss rss", "-H").splitlines()
    seen = {int(pid): [int(n) << 10 for n in rest] for pid, *rest in (line.split() for line in lines)}
    alive = {pid: p for pid, p in m.processes.items() if p.state != "zombie" and p.maps()}
    want = {pid: [0, p.uss, sum(u.pss >> 10 << 10 for u in p.smaps()), p.rss] for pid, p in alive.items()}
    assert seen == want
    users = run(tool("smem"), "-S", str(top), "-u", "-n", "-H", "-c", "user count rss").splitlines()
    expected = {"0": [len(alive) - 1, sum(p.rss for p in alive.values() if not p.uid)]}
    if os.geteuid() == 0:
        expected["1234"] = [1, sum(p.rss for p in alive.values() if p.uid)]
        assert {u: [int(n), int(r) << 10] for u, n, r in map(str.split, users)} == expected


@pytest.mark.linux
def test_node_exporter(tree: tuple[Machine, Path]) -> None:
    """prometheus-node-exporter --path.procfs: the collectors of memory, processes and the system succeed."""
    m, top = tree
    command = tool("prometheus-node-exporter")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    wanted = ["meminfo", "vmstat", "processes", "stat", "loadavg", "filefd", "pressure"]
    flags = ["--collector.disable-defaults", *(f"--collector.{name}" for name in wanted)]
    arguments = [command, f"--path.procfs={top}", f"--web.listen-address={address}", *flags]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as exporter:
        try:
            text = scrape(f"http://{address}/metrics", exporter)
        finally:
            exporter.kill()
    seen = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("node_"))
    for name in wanted:
        assert seen[f'node_scrape_collector_success{{collector="{name}"}}'] == "1"
    meminfo = values(m.procfs.read("meminfo"))
    for key in ("MemTotal", "MemFree", "AnonPages", "Cached", "PageTables", "Committed_AS", "Mapped"):
        assert float(seen[f"node_memory_{key}_bytes"]) == meminfo[key]
    stats = m.vmstat()
    for key in ("pgfault", "pgmajfault", "pgpgin"):
        assert float(seen[f"node_vmstat_{key}"]) == stats[key]
    assert float(seen["node_processes_pids"]) == len(m.processes)
    assert float(seen['node_processes_state{state="Z"}']) == 1
    assert float(seen["node_forks_total"]) == len(m.processes)


def scrape(url: str, exporter: subprocess.Popen[bytes]) -> str:
    for _ in range(300):
        assert exporter.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("node_exporter does not answer")


def mounted(top: Path, *command: str) -> str:
    """What a command says that has the tree as its /proc, and is process 1 there."""
    if os.geteuid():
        pytest.skip("mounting the tree takes root")
    script = 'mount --bind "$0" /proc && exec "$@"'
    done = subprocess.run(
        [tool("unshare"), "-mpf", "sh", "-c", script, str(top), *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.linux
def test_procps(tree: tuple[Machine, Path]) -> None:
    """ps, top, free and pmap with the tree on /proc."""
    m, top = tree
    rows = mounted(top, tool("ps"), "-e", "-o", "pid=,ppid=,stat=,rss=,vsz=,min_flt=,maj_flt=,uid=,args=").splitlines()
    seen = {int(row.split()[0]): row.split(maxsplit=8) for row in rows}
    assert set(seen) == set(m.processes)
    for pid, p in m.processes.items():
        _, ppid, state, rss, vsz, minor, major, uid, args = seen[pid]
        assert (int(ppid), state[0], int(uid)) == (p.ppid, "Z" if p.state == "zombie" else "R", p.uid)
        if p.state != "zombie":
            assert (int(rss) << 10, int(vsz) << 10) == (p.rss, status(m, p)["VmSize"])
            assert (int(minor), int(major)) == (p.faults.minor, p.faults.major)
            assert args == ("sh -c two words" if p.exe else "[init]")
    total = mounted(top, tool("free"), "-b").splitlines()[1].split()
    assert (int(total[1]), int(total[3])) == (m.meminfo().total, m.meminfo().free)
    assert f"{len(m.processes)} total" in mounted(top, tool("top"), "-b", "-n1")
    p = m.processes[2]
    assert mounted(top, tool("pmap"), "-x", "2").splitlines()[-1].split()[2:4] == [
        str(status(m, p)["VmSize"] >> 10),
        str(p.rss >> 10),
    ]
