"""Thousands of system calls with odd arguments on the kernel of this host and in vmemu (calls_cases.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from linux import calls_cases, calls_emulated, calls_host
from linux.calls_host import Seen

pytestmark = pytest.mark.linux

Both = tuple[Path, Seen, calls_emulated.Emulation]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    if reason := calls_host.why_not():
        pytest.skip(reason)
    try:
        probe = calls_host.build(tmp_path_factory.mktemp("calls"))
    except RuntimeError as error:
        pytest.skip(str(error))
    base, heap = calls_host.run(probe, [[], [("brk", 0)]])
    emulation = calls_emulated.Emulation(base, int(heap.results[0]), memory=calls_emulated.ram())
    yield probe, base, emulation
    emulation.close()


@pytest.mark.parametrize("family", calls_cases.FAMILIES)
def test_same_as_this_kernel(both: Both, family: str) -> None:
    probe, base, emulation = both
    cases = list(calls_cases.FAMILIES[family]())
    wrong = []
    compared = 0
    for case, host in zip(cases, calls_host.run(probe, cases), strict=True):
        if host.died:  # it took its own memory away
            continue
        compared += 1
        if difference := calls_emulated.difference(host, emulation.run(case), base):
            wrong.append(f"{calls_cases.written(case)}\n{difference}")
    assert compared > len(cases) * 0.9
    assert not wrong, f"{len(wrong)} of {len(cases)} differ:\n" + "\n".join(wrong[:10])
    emulation.machine.verify()
