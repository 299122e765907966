"""Fork bombs under each defence: what a whole experiment costs. Each is the same, event for event, in every round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.counters import BOMB_DEFENCES, run_bomb
from vmemu import Machine, bombs


@pytest.mark.parametrize("defence", BOMB_DEFENCES)
@pytest.mark.parametrize("shape", ["classic", "touch"])
def bench_bomb(benchmark: Any, shape: str, defence: str) -> None:
    """From the first fork until nothing more happens, on 32 MiB; the machine's boot is not timed."""
    results: list[bombs.Result] = []
    machines: list[Machine] = []

    def boot() -> tuple[tuple[Machine], dict[str, Any]]:
        machines.append(Machine(memory="32MiB", oom="kill"))
        return (machines[-1],), {}

    def close(machine: Machine) -> None:
        machine.verify()
        machine.close()

    bomb: Callable[[Machine], None] = lambda machine: results.append(run_bomb(machine, shape, defence))  # noqa: E731
    benchmark.pedantic(bomb, setup=boot, teardown=close, rounds=5, warmup_rounds=1)
    assert len({result.digest for result in results}) == 1
    benchmark.extra_info["units"] = results[0].ticks
    benchmark.extra_info["counters"] = results[0].counters()
