"""The pytest plugin: fixtures for other suites, and that it leaves those alone which do not use it."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest
from machines import PAGE, anon, machine

import vmemu
from vmemu import FaultCounts
from vmemu.testing import expect_faults

pytest_plugins = ["pytester"]

USE = """
import pytest
from vmemu import Map, Prot

ANON = Map.PRIVATE | Map.ANONYMOUS

def forked(m):
    p = m.spawn()
    a = p.mmap(None, 65536, Prot.READ | Prot.WRITE, ANON)
    p.touch(a, 65536, write=True)
    return p.fork(), a
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with a strict suite in it, which knows nothing of the run that it is part of."""
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    pytester.makeini("[pytest]\naddopts = --strict-markers --strict-config -p no:xdist\nfilterwarnings = error\n")
    return pytester


def run(inner: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    inner.makepyfile(USE + code)
    # other tests of this process have imported vmemu, which the inner pytest would like to have done
    return inner.runpytest_inprocess("-W", "ignore::pytest.PytestAssertRewriteWarning", *options)


# ---- the block ----


def test_what_a_block_did() -> None:
    with machine() as m:
        p = m.spawn()
        a = anon(p, 8)
        with expect_faults(p, zero_fill=2, total=2) as seen:
            p.touch(a, 2 * PAGE, write=True)
            assert seen.counts == FaultCounts(zero_fill=2)
            p.touch(a, PAGE, write=True)
        p.touch(a, 8 * PAGE, write=True)
        assert seen.counts == FaultCounts(zero_fill=2)
        c = p.fork()
        with expect_faults(m, cow_copy=1, cow_reuse=1, minor=2, major=0, exact=True):
            p.write(a, b"x")
            c.write(a, b"x")
        with expect_faults(c, exact=True):
            p.write(a + PAGE, b"x")
        with expect_faults(c, cow_reuse=1) as seen:  # what is not named is as it likes
            c.read(c.mmap(None, PAGE, 1, 34), 1)
            c.write(a + PAGE, b"x")
        assert seen.counts.zero_map == 1


def test_a_failure_shows_a_table() -> None:
    with machine() as m:
        p = m.spawn()
        a = anon(p, 8)
        p.touch(a, 8 * PAGE, write=True)
        c = p.fork()
        with pytest.raises(AssertionError) as failed, expect_faults(c, cow_copy=3, zero_fill=0, total=3):
            c.touch(a, 2 * PAGE, write=True)
            c.read(anon(c), 1)
        assert str(failed.value).splitlines() == [
            "not the faults that were expected of <vmemu.Process 3 running>",
            "  kind       expected  found",
            "  zero_map        any      1",
            "  zero_fill         0      0",
            "  cow_copy          3      2  <--",
            "  total             3      3",
        ]
        with pytest.raises(AssertionError) as failed, expect_faults(c, exact=True, cow_copy=1):
            c.touch(a + 2 * PAGE, PAGE, write=True)
            c.read(anon(c), 1)
        assert str(failed.value).splitlines()[1:] == [
            "  kind      expected  found",
            "  zero_map         0      1  <--",
            "  cow_copy         1      1",
        ]


def test_a_block_that_raises_is_not_judged() -> None:
    with machine() as m:
        p = m.spawn()
        with pytest.raises(ZeroDivisionError), expect_faults(p, cow_copy=5):
            _ = 1 / 0
        with pytest.raises(AssertionError, match="has ended inside the block"), expect_faults(p, cow_copy=0):
            p.exit()


def test_bad_expectations_are_named() -> None:
    with machine() as m:
        p = m.spawn()
        for options, error, message in (
            ({"cow_copies": 1}, TypeError, "there is no kind 'cow_copies'; there are spurious, zero_map, zero_fill"),
            ({"none": 1}, TypeError, "there is no kind 'none'"),
            ({"cow_copy": 1.0}, TypeError, "cow_copy must be an int, not float"),
            ({"cow_copy": True}, TypeError, "cow_copy must be an int, not bool"),
            ({"cow_copy": -1}, ValueError, "cow_copy=-1 is negative"),
        ):
            with pytest.raises(error, match=message):
                expect_faults(p, **options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a Process or a Machine, not int"):
            expect_faults(p.pid)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="has not begun"):
            _ = expect_faults(p).counts


# ---- the fixtures ----


def test_the_fixtures(inner: pytest.Pytester) -> None:
    code = """
    import vmemu

    seen = []

    def test_machine(vmemu_machine, vmemu_faults):
        assert vmemu_machine.meminfo().total == 64 << 20
        c, a = forked(vmemu_machine)
        with vmemu_faults(c, cow_copy=3, zero_fill=0):
            c.touch(a, 3 * 4096, write=True)
        seen.append(vmemu_machine)

    def test_it_was_closed():
        with pytest.raises(vmemu.VmemuError, match="closed"):
            seen[0].spawn()

    @pytest.mark.vmemu(memory="128MiB", fork_mode=vmemu.ForkMode.EAGER)
    class TestMarked:
        def test_class(self, vmemu_machine, vmemu_faults):
            assert vmemu_machine.meminfo().total == 128 << 20
            c, a = forked(vmemu_machine)
            with vmemu_faults(c, exact=True):
                c.touch(a, 3 * 4096, write=True)

        @pytest.mark.vmemu(memory="32MiB")
        def test_nearer(self, vmemu_machine, vmemu_faults):
            assert vmemu_machine.meminfo().total == 32 << 20
            c, a = forked(vmemu_machine)
            with vmemu_faults(vmemu_machine, total=0):
                c.touch(a, 3 * 4096, write=True)

    def test_may_close_it_itself(vmemu_machine):
        vmemu_machine.close()
    """
    run(inner, code.replace("\n    ", "\n")).assert_outcomes(passed=5)


def test_a_failing_block_in_a_test(inner: pytest.Pytester) -> None:
    code = """
def test_fails(vmemu_machine, vmemu_faults):
    c, a = forked(vmemu_machine)
    with vmemu_faults(c, cow_copy=3):
        c.touch(a, 2 * 4096, write=True)
"""
    result = run(inner, code)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       with vmemu_faults(c, cow_copy=3):",
            "E       AssertionError: not the faults that were expected of <vmemu.Process 3 running>",
            "E         kind      expected  found",
            "E         cow_copy         3      2  <--",
        ]
    )
    assert "testing.py" not in result.stdout.str()


def test_an_inconsistent_machine_is_an_error(inner: pytest.Pytester) -> None:
    """The proof at the end is made."""
    code = """
def test_breaks(vmemu_machine):
    p, a = forked(vmemu_machine)
    vmemu_machine._kernel.users[0] += 1
"""
    result = run(inner, code)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*InvariantError*"])


def test_bad_markers(inner: pytest.Pytester) -> None:
    code = """
@pytest.mark.vmemu("1GiB")
def test_by_place(vmemu_machine):
    pass

@pytest.mark.vmemu(memori="1GiB")
def test_unknown(vmemu_machine):
    pass
"""
    result = run(inner, code)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*takes options by name only, not '1GiB'*", "*unexpected keyword argument 'memori'*"])


def test_the_marker_is_listed(inner: pytest.Pytester) -> None:
    inner.runpytest_subprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.vmemu(**options): options of the*"])


def test_benchmarks_carry_the_counters(inner: pytest.Pytester) -> None:
    pytest.importorskip("pytest_benchmark")
    code = """
def test_writes(benchmark, vmemu_machine, vmemu_faults):
    c, a = forked(vmemu_machine)

    def once():
        with vmemu_faults(c, zero_fill=0):
            c.touch(a, 2 * 4096, write=True)

    benchmark.pedantic(once, rounds=3)

def test_without_a_machine(benchmark):
    benchmark(lambda: 0)
"""
    run(inner, code, "--benchmark-json=out.json").assert_outcomes(passed=2)
    one, two = json.loads((inner.path / "out.json").read_text())["benchmarks"]
    assert two["extra_info"] == {}
    faults = {kind: n for kind, n in one["extra_info"]["vmemu_machine"]["faults"].items() if n}
    assert faults == {"zero_fill": 16, "cow_copy": 2}
    assert one["extra_info"]["vmemu_machine"]["frames_copied"] == 2
    assert one["extra_info"]["vmemu_machine"]["page_tables"] % PAGE == 0
    assert one["extra_info"]["vmemu_faults"]["blocks"] == 3
    assert {kind: n for kind, n in one["extra_info"]["vmemu_faults"]["faults"].items() if n} == {"cow_copy": 2}
    disabled = run(inner, code, "--benchmark-disable")
    disabled.assert_outcomes(passed=2)


# ---- suites that do not use it ----


def test_a_run_that_does_not_use_it_loads_next_to_nothing(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import sys

        def test_nothing():
            ours = {name for name in sys.modules if name.partition(".")[0] in ("vmemu", "numpy", "elftools", "rich")}
            assert ours == {"vmemu", "vmemu.testing"}, ours
        """
    )
    inner.runpytest_subprocess("-p", "no:benchmark").assert_outcomes(passed=1)


def test_it_can_be_left_out(inner: pytest.Pytester) -> None:
    inner.makepyfile("def test_uses(vmemu_machine): pass")
    result = inner.runpytest_subprocess("-p", "no:vmemu")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'vmemu_machine' not found*"])


def test_installed_in_another_environment(inner: pytest.Pytester, tmp_path: Path) -> None:
    """A wheel's entry point in a virtual environment of its own, where pytest rewrites the asserts of what it loads."""
    package = Path(vmemu.__file__).parent
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    site = next((home / "lib").glob("python*/site-packages"))
    subprocess.run(["cp", "-r", str(package), str(site / "vmemu")], check=True)
    info = site / "vmemu-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vmemu\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[pytest11]\nvmemu = vmemu.testing\n")
    files = [path.relative_to(site).as_posix() for path in [*(site / "vmemu").rglob("*.py"), *info.iterdir()]]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    borrowed = tmp_path / "borrowed"  # pytest and what it and vmemu need, without this vmemu
    borrowed.mkdir()
    for path in Path(pytest.__file__).parent.parent.iterdir():
        if "vmemu" not in path.name and path.suffix != ".pth":
            (borrowed / path.name).symlink_to(path)
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    inner.makepyfile(
        USE
        + f"""
def test_uses(vmemu_machine, vmemu_faults):
    import vmemu
    assert vmemu.__file__.startswith({str(site)!r})
    c, a = forked(vmemu_machine)
    with vmemu_faults(c, cow_copy=1):
        c.write(a, b"x")
"""
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [home / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=inner.path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
