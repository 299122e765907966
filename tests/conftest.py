"""Makes sure that the tests see an installed vmemu."""

from __future__ import annotations

import gc
import importlib
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIRST = (
    "test_packaging test_sanitizers test_fail_nth test_style test_state_machine test_interrupts test_execstop "
    "test_calls test_cli_bomb test_livediff test_random test_fork_modes"
).split()
"""Files that take longest: workers begin with them, so that they end together."""


def pytest_configure(config: pytest.Config) -> None:
    """Forget the checkout's vmemu/ unless it was built in place, and stop if then there is no vmemu.

    Choose the seed of this run, or do as the controller of this pytest-xdist worker did.
    """
    if config.option.linux_seed is None:
        chosen = getattr(config, "workerinput", {}).get("linux_seed")
        config.option.linux_seed = random.randrange(1 << 32) if chosen is None else chosen
    if not list((ROOT / "vmemu").glob("_core*.so")):  # `python -m pytest` puts the checkout into sys.path
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
        for name in [name for name in sys.modules if name.partition(".")[0] == "vmemu"]:
            del sys.modules[name]  # the plugin has been loaded from there
    os.environ["PYTHONSAFEPATH"] = "1"  # nor do the Pythons that tests start look into the current directory
    if sys.dont_write_bytecode and config.pluginmanager.has_plugin("cacheprovider"):
        # it goes to pytest's cache then, so that not each worker, and each Python that is started, compiles everything
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.pycache_prefix = str((ROOT / config.getini("cache_dir") / "pycache").absolute())
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
        sys.dont_write_bytecode = False
    try:
        importlib.import_module("vmemu._core")
    except ImportError as error:
        pytest.exit(
            f"vmemu is not installed here ({error}): run `pip install '.[test]'` or `pip install -e '.[dev]'`", 4
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, files together."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


def pytest_collection_finish() -> None:
    """What was made up to here stays: the many collections that tests ask for need not look at it each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a pytest-xdist worker the seed of this run."""
    node.workerinput["linux_seed"] = node.config.option.linux_seed


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many random programs to run (tests/linux/test_livediff.py, tests/mechanisms/test_fork_modes.py)."""
    parser.addoption("--linux-programs", type=int, default=20, metavar="N", help="programs to run on this kernel (20)")
    parser.addoption(
        "--fork-programs", type=int, default=40, metavar="N", help="programs to run in all fork modes (40)"
    )
    parser.addoption(
        "--linux-seed", type=int, metavar="FIRST", help="seed of the first of them (another one in each run)"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How much was compared with this kernel, and how to do the same again."""
    counts: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                counts.update({key: n for key, n in report.user_properties if key.startswith("linux ")})
    if counts:
        first, given = config.option.linux_seed, config.option.linux_programs
        compared = f"{counts['linux programs']} programs of {counts['linux operations']} operations"
        terminalreporter.write_line(
            f"compared with this kernel: {compared}, {counts['linux differences']} differ; "
            f"again: --linux-programs {given} --linux-seed {first}"
        )


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the source tree."""
    return ROOT
