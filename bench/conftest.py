"""Makes sure that the benchmarks see an installed vmemu, and gives them a machine whose counters they report."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 20


def pytest_configure() -> None:
    """Forget the checkout's vmemu/ unless it was built in place, and stop if then there is no vmemu."""
    if not list((ROOT / "vmemu").glob("_core*.so")):
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    try:
        importlib.import_module("vmemu._core")
    except ImportError as error:
        pytest.exit(
            f"vmemu is not installed here ({error}): run `pip install '.[test]'` or `pip install -e '.[dev]'`", 4
        )
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # for bench itself; at the end: vmemu is the one that is installed


@pytest.fixture
def machine() -> Iterator[Any]:
    """A machine of 1 GiB; proven consistent at the end."""
    from vmemu import Machine

    with Machine(memory="1GiB") as m:
        yield m
        m.verify()


@pytest.fixture
def process(machine: Any) -> Any:
    """An empty process of it."""
    return machine.spawn()


@pytest.fixture
def measure(benchmark: Any, machine: Any) -> Callable[..., None]:
    """Benchmarks `work`, each time between `before` and `after`, which are not timed; `before` returns its argument.

    `extra_info` gets `units`, by which the time is to be divided, and `counters`: what one call changed of the
    machine's counters.
    """
    from bench.counters import count

    def run(
        work: Callable[[Any], object],
        before: Callable[[], Any] = lambda: None,
        after: Callable[[Any], object] = lambda _: None,
        units: int = 1,
    ) -> None:
        def setup() -> tuple[tuple[Any], dict[str, Any]]:
            return (before(),), {}

        benchmark.pedantic(work, setup=setup, teardown=after, rounds=ROUNDS, warmup_rounds=2)
        given = before()
        then = count(machine)
        work(given)
        now = count(machine)
        after(given)
        benchmark.extra_info["units"] = units
        benchmark.extra_info["counters"] = {key: n - then[key] for key, n in now.items() if n != then[key]}

    return run
