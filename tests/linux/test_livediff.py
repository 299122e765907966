"""Fresh random programs on the kernel of this host and in vmemu (livediff.py); `--linux-programs N` for more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from linux import livediff, livediff_host, livediff_programs
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


def test_same_as_this_kernel(host: livediff_host.Host, seed: int) -> None:
    try:
        difference = livediff.examine(host, livediff_programs.program(seed, files=host.files))
    except NotImplementedError as missing:
        pytest.skip(f"vmemu has not: {missing}")
    if difference:
        pytest.fail(str(difference), pytrace=False)


def test_recorder_reproduces_a_recording(host: livediff_host.Host) -> None:
    """Results and memory contents of a short program that no kernel should see differently."""
    recording = recordings("scenarios")["celada-grandchild"]
    again = host.record({"name": recording["name"], "ops": recording["ops"]})
    assert again["steps"] == recording["steps"]
