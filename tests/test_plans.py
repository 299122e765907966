"""What execve keeps: the same as without, however often it is used; and never what the host's files no longer say."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from linux import tinyelf
from linux.plans import make_ld_so
from machines import PAGE, change, contents, machine, prove

from vmemu import ForkMode, Machine, OutOfMemory, Overcommit, Process, SyscallError, plans
from vmemu.limits import Resource
from vmemu.loader import ExecPlan, Layout, Restacker, linker, plan, seen


def with_strings(old: ExecPlan, argv: list[str], envp: dict[str, str]) -> ExecPlan | None:
    """The plan derived from another, as `plans` does it."""
    restacker = Restacker.of(old)
    new = restacker.restack(argv, envp) if restacker is not None else None
    return None if new is None else new.put_into(old)


FILES = "maps smaps smaps_rollup statm status auxv cmdline environ comm".split()
SH = ("/bin/sh", ["sh", "-c", "true"], {"PATH": "/bin", "HOME": "/"})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files just written are taken for old ones."""
    monkeypatch.setattr(seen, "RACY_NS", -(10**9))


def kept(m: Machine) -> list[Any]:
    """Plans that a machine keeps."""
    return list({id(entry): entry for entry in m._kernel.plans.values()}.values())


def state(m: Machine, p: Process) -> dict[str, Any]:
    """All that can be seen of a process after exec, but for its number and which frames it has."""
    texts = {name: m.procfs.read(f"{p.pid}/{name}") for name in FILES}
    texts["status"] = b"\n".join(line for line in texts["status"].splitlines() if b"id:\t" not in line)
    words = m._kernel.core.words(m._kernel.processes.space[p.pid])
    core, sid = m._kernel.core, m._kernel.processes.space[p.pid]
    anon: dict[int, int] = {}
    return {
        **texts,
        "faults": p.faults,
        "pages": [[entry >> 55 for entry in p.pagemap(v.start, v.size // PAGE).tolist()] for v in p.maps()],
        "bytes": contents(p),
        "words": words,
        "registers": (p.stack_pointer, p.entry_point, p.exe, p.argv, p.environ, p.brk()),
        "vmas": [(*v[:4], anon.setdefault(v.anon, len(anon)), v.tag) for v in core.vmas(sid, 0, 1 << 47)],
    }


def files_of(tmp_path: Path) -> dict[str, str]:
    """Programs of all kinds, by name: linked, static with bss, a script of a script."""
    ld_so = make_ld_so(tmp_path)
    relro = tinyelf.Part(tinyelf.PT_GNU_RELRO, tinyelf.R, 0x1000, 0x2000, 0x1000)
    tinyelf.save(tmp_path / "a", tinyelf.library("a", ["b"], runpath="$ORIGIN", more=[relro]))
    tinyelf.save(tmp_path / "b", tinyelf.library("b"))
    linked = tinyelf.library(needed=["a"], runpath="$ORIGIN", interp=ld_so, more=[relro])
    bss = tinyelf.Part(flags=tinyelf.R | tinyelf.W, offset=0x1000, vaddr=0x501000, filesz=0x800, memsz=0x3000)
    static = tinyelf.tiny([tinyelf.Part(flags=5, vaddr=0x400000), bss], size=0x2000)
    found = {name: tinyelf.save(tmp_path / name, data) for name, data in {"linked": linked, "static": static}.items()}
    found["script"] = tinyelf.save(tmp_path / "script", f"#! {found['static']} -x\n".encode())
    found["script2"] = tinyelf.save(tmp_path / "script2", f"#!{found['script']}\n".encode())
    return found


MACHINES: list[dict[str, Any]] = [
    {},
    {"fork_mode": ForkMode.ON_DEMAND},
    {"contents": False},
    {"overcommit": Overcommit.NEVER},
    {"overcommit": Overcommit.ALWAYS, "zero_page": False},
    {"thp": "always"},
    {"aslr": True},
]


@pytest.mark.parametrize("options", MACHINES, ids=str)
def test_an_exec_made_again_is_like_the_first(options: dict[str, Any], tmp_path: Path) -> None:
    """Maps, smaps, status, counters, faults, stack bytes, auxiliary vector, page flags, identities."""
    requests = [(path, ["x", "one"], {"A": "1"}) for path in files_of(tmp_path).values()]
    for program, argv, envp in [*requests, SH, ("/bin/true", None, [b"X=1", "Y=2"])]:
        for link in (True, False):
            with machine(memory="64MiB", **options) as m:
                holder = m.spawn(program, argv, envp, link=link)
                found = []
                for _ in range(3):
                    if "aslr" in options:
                        m._kernel.rng.seed(5)  # type: ignore[union-attr]
                    p = m.spawn()
                    before = m.faults
                    p.execve(program, argv, envp, link=link)
                    found.append((state(m, p), m.faults - before))
                    m._kernel.core.check()
                    if len(found) == 1:
                        m._kernel.plans.clear()
                        m._kernel.rng and m._kernel.rng.seed(5)
                        m.spawn(program, argv, envp, link=link).exit()
                assert found[1] == found[0] == found[2]
                assert bool(kept(m)) == ("aslr" not in options)
                holder.exit()


def test_a_plan_is_used_again(tmp_path: Path) -> None:
    """For the same request it is the same plan, and the core makes it at once; for other strings only the stack is."""
    path = files_of(tmp_path)["linked"]
    with machine() as m:
        m.spawn(path, ["x"], link=True)
        (first,) = kept(m)
        m.spawn(path, ["x"], link=True)
        assert kept(m) == [first]
        m.spawn(path, ["y"], link=True)
        (other,) = (entry for entry in kept(m) if entry is not first)
        assert other.seen is first.seen
        assert other.plan.segments[1:] == first.plan.segments[1:]
        m.spawn(path, ["x"])  # without its libraries it is another program
        assert all(entry.seen is not first.seen for entry in kept(m)[-1:])


def test_other_strings_are_as_if_planned_anew(tmp_path: Path) -> None:
    """For all of them, in machines that plan and that need not."""
    found = files_of(tmp_path)
    requests: list[tuple[list[str], dict[str, str]]] = [
        ([], {}),
        (["x"], {}),
        (["x" * 5000, "", "y"], {"A": "b" * 9000}),
        (["x", *map(str, range(300))], {str(i): "v" for i in range(500)}),
    ]
    for name, path in [*found.items(), ("sh", "/bin/sh")]:
        link = name in ("linked", "sh")
        first = plan(path, ["first"], {"Z": "1"}, link=link)
        with machine(memory="64MiB") as m, machine(memory="64MiB") as fresh:
            for one in (m, fresh):
                one.spawn(path, ["first"], {"Z": "1"}, link=link)
            for argv, envp in requests:
                assert with_strings(first, argv, envp) == plan(path, argv, envp, link=link)
                fresh._kernel.plans.clear()
                p, q = (one.spawn(path, argv, envp, link=link) for one in (m, fresh))
                assert state(m, p) == state(fresh, q)
            assert len({id(entry.seen) for entry in kept(m)}) == 1


def test_strings_that_change_more_than_the_stack(tmp_path: Path) -> None:
    """Variables of ld.so, a program that lies near the stack, limits: planned anew, with the errors that this has."""
    found = files_of(tmp_path)
    first = plan(found["linked"], ["x"], {}, link=True)
    assert with_strings(first, ["x"], {"LD_LIBRARY_PATH": "/none"}) is None
    assert with_strings(first, ["x"], {"LD_PRELOAD": "b"}) is None
    high = tinyelf.save(tmp_path / "high", tinyelf.tiny([tinyelf.Part(flags=5, vaddr=0x7FFFF7FFF000)]))
    assert with_strings(plan(high, ["x"], {}), ["y"], {}) is None
    layout = Layout(stack_limit=200 << 10)
    small = plan(found["static"], ["x"], {}, layout=layout)
    for argv in (["x" * 140_000], ["x" * 60_000] * 4, ["x"] * 20_000, ["\0"]):
        with pytest.raises(SyscallError) as cold:
            plan(found["static"], argv, {}, layout=layout)
        try:
            assert with_strings(small, argv, {}) is None
        except SyscallError as error:
            assert (error.errno, str(error)) == (cold.value.errno, str(cold.value))


# ---- what must be noticed ----


def save_other(path: Path, content: bytes, mode: int = 0o755) -> None:
    """Writes into the same inode."""
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
    path.chmod(mode)
    os.utime(path, ns=(1, 1))


def fail(number: int) -> Callable[[Machine, str], None]:
    def check(m: Machine, path: str) -> None:
        with pytest.raises(SyscallError) as refused:
            m.spawn(path, ["x"], link=True)
        assert refused.value.errno == number

    return check


def entry(address: int) -> Callable[[Machine, str], None]:
    def check(m: Machine, path: str) -> None:
        assert m.spawn(path, ["x"], link=True).entry_point & 0xFFF == address & 0xFFF

    return check


def maps(name: str, wanted: bool = True) -> Callable[[Machine, str], None]:
    def check(m: Machine, path: str) -> None:
        p = m.spawn(path, ["x"], link=True)
        assert any(v.name.endswith(name) for v in p.maps()) == wanted

    return check


def replaced(path: Path, content: bytes) -> None:
    """By a rename."""
    other = path.with_name("new")
    other.write_bytes(content)
    other.chmod(0o755)
    os.replace(other, path)


CHANGES: dict[str, tuple[Callable[[Path], object], Callable[[Machine, str], None]]] = {
    "contents": (lambda d: save_other(d / "linked", tinyelf.tiny(entry=0x400ABC)), entry(0xABC)),
    "no program any more": (lambda d: save_other(d / "linked", b"text"), fail(errno.ENOEXEC)),
    "replaced": (lambda d: replaced(d / "linked", tinyelf.tiny(entry=0x400ABC)), entry(0xABC)),
    "removed": (lambda d: (d / "linked").unlink(), fail(errno.ENOENT)),
    "permission": (lambda d: (d / "linked").chmod(0o644), fail(errno.EACCES)),
    "a directory": (lambda d: ((d / "linked").unlink(), (d / "linked").mkdir()), fail(errno.EACCES)),
    "interpreter removed": (lambda d: (d / "ld.so").unlink(), fail(errno.ENOENT)),
    "interpreter's permission": (lambda d: (d / "ld.so").chmod(0o644), fail(errno.EACCES)),
    "interpreter's contents": (lambda d: save_other(d / "ld.so", b"text"), fail(errno.EIO)),
    "library removed": (lambda d: (d / "b").unlink(), fail(errno.ELIBACC)),
    "library broken": (lambda d: save_other(d / "b", b"text"), fail(errno.ELIBBAD)),
    "library needs another": (
        lambda d: (tinyelf.save(d / "c", tinyelf.library("c")), replaced(d / "b", tinyelf.library("b", ["c"]))),
        fail(errno.ELIBACC),
    ),
    "library found earlier": (lambda d: tinyelf.save(d / "first" / "e", tinyelf.library("e")), maps("/first/e")),
    "directory of libraries": (
        lambda d: ((d / "first").rmdir(), (d / "first").symlink_to("second")),
        maps("/first/e", False),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str, tmp_path: Path) -> None:
    """Whatever is done to a file of a plan; and without a change it stands."""
    found = files_of(tmp_path)
    for directory in ("first", "second"):
        (tmp_path / directory).mkdir()
    tinyelf.save(tmp_path / "second" / "e", tinyelf.library("e"))
    search = f"{tmp_path}/first:{tmp_path}/second"
    tinyelf.save(tmp_path / "b", tinyelf.library("b", ["e"], runpath=search))
    act, check = CHANGES[name]
    with machine() as m:
        holder = m.spawn(found["linked"], ["x"], link=True)
        before = contents(holder), holder.maps()
        maps("/second/e")(m, found["linked"])
        (first,) = kept(m)
        assert first.seen.unchanged()
        act(tmp_path)
        assert not first.seen.unchanged() or name == "directory of libraries"
        check(m, found["linked"])
        prove(m)
        assert (contents(holder), holder.maps()) == before


def test_a_touch_makes_a_new_page_cache(tmp_path: Path) -> None:
    """A time changed, the bytes not: the inode of before is another one's, as when it is opened."""
    path = files_of(tmp_path)["static"]
    with machine() as m:
        p = m.spawn(path)
        os.utime(path, ns=(1, 1))
        q, r = m.spawn(path), m.spawn(path)
        text = next(v.start for v in p.maps() if "x" in v.perms)
        for who in (p, q, r):
            who.read(text, 1)
        frames = [who.translate(text).pfn for who in (p, q, r)]  # type: ignore[union-attr]
        assert frames[0] != frames[1] == frames[2]


def test_a_script_whose_interpreter_changes(tmp_path: Path) -> None:
    """The line, the interpreter, and its interpreter."""
    found = files_of(tmp_path)
    with machine() as m:
        assert m.spawn(found["script2"], ["s"]).exe == found["static"]
        tinyelf.save(tmp_path / "script", f"#!{found['linked']}\n".encode())
        p = m.spawn(found["script2"], ["s"])
        assert (p.exe, p.argv[0]) == (found["linked"], found["linked"].encode())
        (tmp_path / "script").chmod(0o600)
        fail(errno.EACCES)(m, found["script2"])


def test_links_and_directories_that_move(tmp_path: Path) -> None:
    """What a program is called is right though it is the same inode: a link that leads to another of its names, a
    directory that was moved and has a link in its place."""
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    path = files_of(there)["static"]
    with machine() as m:
        for _ in range(2):
            assert m.spawn(path).exe == path
        there.rename(elsewhere)
        there.symlink_to(elsewhere)
        for _ in range(2):
            assert m.spawn(path).exe == str(elsewhere / "static")
        os.link(elsewhere / "static", elsewhere / "name")
        link = tmp_path / "link"
        for name in ("static", "name", "static"):
            link.unlink(missing_ok=True)
            link.symlink_to(elsewhere / name)
            for _ in range(2):
                assert m.spawn(str(link)).exe == str(elsewhere / name)


def test_a_library_reached_through_a_link(tmp_path: Path) -> None:
    """The directory that the link led to is another one now, and the library is still the same: once its page cache is
    gone it is opened where it is."""
    there, elsewhere, link = tmp_path / "there", tmp_path / "elsewhere", tmp_path / "link"
    there.mkdir()
    link.symlink_to(there)
    tinyelf.save(there / "e", tinyelf.library("e"))
    program = tinyelf.library(needed=["e"], runpath=str(link), interp=make_ld_so(tmp_path))
    path = tinyelf.save(tmp_path / "prog", program)
    with machine() as m:
        first = m.spawn(path, ["x"], link=True)
        (plan_,) = kept(m)
        there.rename(elsewhere)
        link.unlink()
        link.symlink_to(elsewhere)
        there.mkdir()
        tinyelf.save(there / "e", tinyelf.library("e", ["missing"]))
        assert plan_.seen.unchanged()
        assert not plan_.seen.names_unchanged()
        assert m.spawn(path, ["x"], link=True).maps() == first.maps()  # what is in memory has the name it was found by
        for p in list(m.init.children):
            p.exit()
        assert m._kernel.core.info().nobjects == 0
        maps("/elsewhere/e")(m, path)


def test_an_object_with_the_number_of_another(tmp_path: Path) -> None:
    """A page cache that is gone leaves its number to another, which is not taken for it."""
    parts = [tinyelf.Part(flags=5, vaddr=0x400000)]
    one, other = (tinyelf.save(tmp_path / x, tinyelf.tiny(parts, data={0x200: x.encode()})) for x in ("1", "2"))

    def spawn(path: str) -> tuple[Process, int]:
        p = m.spawn(path)
        text = m._kernel.core.find(m._kernel.processes.space[p.pid], 0x400000)
        assert text is not None
        return p, text.object

    with machine() as m:
        p, number = spawn(one)
        p.exit()
        for _ in range(1000):
            p, found = spawn(other)
            if found == number:
                break
            p.exit()
        assert found == number
        assert spawn(one)[0].read(0x400200, 1) == b"1"


def test_set_id_bits_and_users(tmp_path: Path) -> None:
    """A plan is one user's, and follows the bits."""
    path = files_of(tmp_path)["static"]
    with machine() as m:
        for mode, user, expected in ((0o755, 0, 0), (0o755, 7, 7), (0o4755, 7, os.getuid()), (0o755, 7, 7)):
            os.chmod(path, mode)
            for _ in range(2):
                p = m.spawn()
                p.setresuid(user, user, user)
                p.execve(path)
                assert p.credentials.euid == expected
        os.chmod(path, 0o700)
        p = m.spawn()
        p.setresuid(4242, 4242, 4242)
        with pytest.raises(PermissionError):
            p.execve(path)


def test_the_cache_of_ld_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that ld.so.cache knows: the cache changes, goes, comes back."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(linker, "CACHE", str(cache))
    monkeypatch.setattr(linker, "DEFAULT_DIRECTORIES", (str(tmp_path / "default"),))
    ld_so = make_ld_so(tmp_path)
    for directory in ("one", "two", "default"):
        (tmp_path / directory).mkdir()
        tinyelf.save(tmp_path / directory / "l", tinyelf.library("l"))
    path = tinyelf.save(tmp_path / "prog", tinyelf.library(needed=["l"], interp=ld_so))

    def write(target: str) -> None:
        strings = b"l\0" + os.fsencode(tmp_path / target / "l") + b"\0"
        row = struct.pack("<iIIIQ", 0x0303, 72, 74, 0, 0)
        cache.write_bytes(
            b"glibc-ld.so.cache1.1" + struct.pack("<II", 1, len(strings)).ljust(28, b"\0") + row + strings
        )
        os.utime(cache, ns=(len(target), ord(target[0])))

    with machine() as m:
        for target in ("one", "two", "", "two", "one"):
            if target:
                write(target)
            else:
                cache.unlink()
            for _ in range(2):
                maps(f"/{target or 'default'}/l")(m, path)


# ---- what is not kept, and what keeping costs ----


def test_what_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random layouts, files just changed, paths that start at the working directory, long strings, strings that may be
    equal to others."""
    path = files_of(tmp_path)["static"]

    class Odd(str):
        pass

    with machine(aslr=True) as m:
        m.spawn(path)
        assert not kept(m)
    with machine() as m:
        monkeypatch.chdir(tmp_path)
        m.spawn("static")
        m.spawn(path, ["x" * plans.STACK_MAX])
        m.spawn(path, [Odd("x")])
        m.spawn(path, ["x"], {Odd("x"): "y"})
        monkeypatch.setattr(seen, "RACY_NS", 10**11)
        m.spawn(path)
        assert not kept(m)
        monkeypatch.setattr(seen, "RACY_NS", -(10**9))
        for _ in range(2):
            odds: list[Callable[[], Any]] = [lambda: ["x", b"y"], lambda: [Path("x")], lambda: iter(["x"])]
            for odd in odds:
                p = m.spawn(path, odd(), odd())
                assert (p.argv[0], p.environ[0]) == (b"x", b"x")


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept longest goes; what others are derived from stays."""
    monkeypatch.setattr(plans, "PLANS_MAX", 8)
    path = files_of(tmp_path)["static"]
    with machine() as m:
        for i in range(30):
            m.spawn(path, [str(i)]).exit()
            m.spawn(path, ["always"]).exit()
            assert len(m._kernel.plans) <= 8
            assert any(entry.is_base for entry in kept(m))


def test_nothing_kept_holds_a_page_cache(tmp_path: Path) -> None:
    """When the last process has ended all frames are free, no object is left and the host's files are closed; then the
    plan is carried out anew."""
    with machine(memory="64MiB") as m:
        boot, open_files = m.meminfo(), len(os.listdir("/proc/self/fd"))
        seen_state = []
        for _ in range(3):
            p = m.spawn(*SH, link=True)
            seen_state.append(state(m, p))
            q = m.spawn(*SH, link=True)
            assert len(kept(m)) == 1
            q.exit()
            p.exit()
            assert change(boot, m.meminfo()) == {}
            assert m._kernel.core.info().nobjects == 0
            assert len(os.listdir("/proc/self/fd")) == open_files
        assert seen_state[0]["bytes"] == seen_state[1]["bytes"] == seen_state[2]["bytes"]
        assert seen_state[0]["faults"] == seen_state[1]["faults"] == seen_state[2]["faults"]


def drop_pages(m: Machine, p: Process) -> None:
    """The page caches of all files that a process maps are empty."""
    core = m._kernel.core
    for object_ in {v.object for v in core.vmas(m._kernel.processes.space[p.pid], 0, 1 << 47)} - {0}:
        core.object_punch(object_, 0, 100)


def test_pages_that_left_the_page_cache_are_read_again(tmp_path: Path) -> None:
    """The core stops at the write that misses its page, and the rest is done as the first time."""
    path = files_of(tmp_path)["linked"]
    with machine() as m:
        holder = m.spawn(path, ["x"], link=True)
        found = []
        for clear in (False, True):
            if clear:
                m._kernel.plans.clear()
            drop_pages(m, holder)
            p = m.spawn(path, ["x"], link=True)
            found.append(state(m, p))
            p.exit()
        assert found[0] == found[1]
        assert found[0]["faults"].file_major


@pytest.mark.parametrize("punch", [False, True])
def test_without_memory_nothing_happens(punch: bool, tmp_path: Path) -> None:
    """Each allocation of an exec made again fails once: it says so, all is as before, and then it succeeds."""
    path = files_of(tmp_path)["linked"]
    with machine() as m:
        holder, p = (m.spawn(path, ["x"], link=True) for _ in range(2))
        clean = state(m, m.spawn(path, ["x"], link=True))
        failed = 0
        for n in range(1, 200):
            before, info = state(m, p), m.meminfo()
            if punch:
                drop_pages(m, holder)
            m._kernel.core.fail(n)
            try:
                p.execve(path, ["x"], link=True)
            except OutOfMemory:
                failed += 1
                m._kernel.core.fail(0)
                assert state(m, p) == before
                assert punch or change(info, m.meminfo()) == {}
                m._kernel.core.check()
                continue
            m._kernel.core.fail(0)
            break
        assert failed > 5
        after = state(m, p)
        assert [after[key] for key in ("maps", "bytes")] == [clean[key] for key in ("maps", "bytes")]
        assert len(kept(m)) == 1


def test_limits_are_those_of_now(tmp_path: Path) -> None:
    """max_map_count, overcommit, RAM and RLIMIT_STACK of each exec, not those of the first."""
    data = tinyelf.Part(flags=tinyelf.R | tinyelf.W, offset=0x1000, vaddr=0x501000, filesz=0x3000)
    dynamic = tinyelf.Part(tinyelf.PT_DYNAMIC, tinyelf.R, 0x1000, 0x501000, 0)
    relro = tinyelf.Part(tinyelf.PT_GNU_RELRO, tinyelf.R, 0x2000, 0x502000, 0x1000)
    parts = [tinyelf.Part(flags=5, vaddr=0x400000), data, dynamic, relro]
    path = tinyelf.save(tmp_path / "split", tinyelf.tiny(parts, size=0x4000, interp=make_ld_so(tmp_path)))
    settings = [{"max_map_count": 3}, {"overcommit": Overcommit.NEVER, "overcommit_kbytes": 4}, {"npages": 2}]
    with machine() as m:
        holder = m.spawn(path, ["x"], link=True)
        usual, before_npages = state(m, m.spawn(path, ["x"], link=True)), m._kernel.npages
        for setting in settings:
            before = {name: getattr(m._kernel, name) for name in setting}
            vars(m._kernel).update(setting)
            errors = []
            for clear in (False, True):
                if clear:
                    m._kernel.plans.clear()
                with pytest.raises(SyscallError) as refused:
                    m.spawn(path, ["x"], link=True)
                errors.append((type(refused.value), refused.value.errno))
            assert errors[0] == errors[1], setting
            vars(m._kernel).update(before)
            m.spawn(path, ["x"], link=True).exit()
        for clear in (False, True):  # a longer stack
            if clear:
                m._kernel.plans.clear()
            m._kernel.npages = 40
            m.spawn(path, ["x"], link=True).exit()
            with pytest.raises(SyscallError) as refused:
                m.spawn(path, ["x" * 40_000], link=True)
            assert refused.value.errno == errno.ENOMEM
            m._kernel.npages = before_npages
        assert state(m, m.spawn(path, ["x"], link=True)) == usual
        p = m.spawn()
        p.setrlimit(Resource.STACK, (64 << 10, 64 << 10))
        for _ in range(2):
            p.execve(path, ["x"], link=True)
            assert p.maps()[-1].size == 64 << 10 != holder.maps()[-1].size
