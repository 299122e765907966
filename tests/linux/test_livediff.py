"""Fresh random programs on the kernel of this host and in vmemu (livediff.py).

`--linux-programs N` for more of them; a run says how to repeat it with `--linux-seed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from linux import livediff, livediff_host, livediff_programs
from recorded.emulated import Emulated
from recorded.outcomes import recordings

pytestmark = pytest.mark.linux


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first: int = metafunc.config.getoption("--linux-seed")
        metafunc.parametrize("seed", range(first, first + metafunc.config.getoption("--linux-programs")))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[livediff_host.Host]:
    if reason := livediff_host.why_not():
        pytest.skip(reason)
    scratch: Path = tmp_path_factory.mktemp("livediff")
    try:
        agent = livediff_host.build_agent(scratch)
    except RuntimeError as error:
        pytest.skip(str(error))
    host = livediff_host.Host(agent, scratch)
    yield host
    host.close()


def test_same_as_this_kernel(
    host: livediff_host.Host, seed: int, record_property: Callable[[str, object], None]
) -> None:
    outcome = livediff.examine(host, livediff_programs.program(seed, files=host.files))
    if outcome.missing:
        pytest.skip(f"vmemu has not: {outcome.missing}")
    record_property("linux programs", 1)
    record_property("linux operations", len(outcome.program["ops"]))
    record_property("linux differences", int(outcome.difference is not None))
    if outcome.difference:
        pytest.fail(str(outcome.difference), pytrace=False)


def test_recorder_reproduces_a_recording(host: livediff_host.Host) -> None:
    """Results and memory contents of a short program that no kernel should see differently."""
    recording = recordings("scenarios")["celada-grandchild"]
    again = host.record({"name": recording["name"], "ops": recording["ops"]})
    assert again["steps"] == recording["steps"]


def test_a_difference_is_shrunk_to_a_test_that_runs(host: livediff_host.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator that forgets what children write: a fork remains, and a write that the kernel refuses."""
    perform = Emulated._perform

    def forgetful(self: Emulated, process: Any, op: dict[str, Any]) -> dict[str, Any]:
        return {"val": op["val"]} if op["op"] == "write" and op["p"] else perform(self, process, op)

    ops: list[dict[str, Any]] = [{"op": "mmap", "p": 0, "page": 3, "n": 8, "kind": "anon", "prot": "rw"}]
    ops += [{"op": "write", "p": 0, "page": page, "off": 1, "val": page} for page in range(3, 11)]
    ops += [{"op": "fork", "p": 0, "child": 1}, {"op": "fork", "p": 1, "child": 2}, {"op": "read", "p": 1, "page": 4}]
    ops += [{"op": "write", "p": 2, "page": 7, "off": 0, "val": 9}, {"op": "sweep", "p": 2, "page": 3, "n": 8}]
    monkeypatch.setattr(Emulated, "_perform", forgetful)
    difference = livediff.examine(host, {"name": "forgotten", "ops": ops}).difference
    assert difference
    assert [op["op"] for op in difference.mismatch.recording["ops"]] == ["fork", "write"]
    printed: dict[str, Any] = {}
    exec(difference.as_test(), printed)
    with pytest.raises(AssertionError, match="kernel SIGSEGV"):
        printed["test_forgotten"]()
    monkeypatch.undo()
    printed["test_forgotten"]()
