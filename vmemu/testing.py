"""vmemu in other test suites: a pytest plugin, there as soon as vmemu is installed; and `expect_faults` for any suite.

    @pytest.mark.vmemu(memory="1GiB")
    def test_a_snapshot_copies_what_is_written(vmemu_machine, vmemu_faults):
        p = vmemu_machine.spawn()
        a = p.mmap(None, 65536, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        p.touch(a, 65536, write=True)
        child = p.fork()
        with vmemu_faults(child, cow_copy=3, zero_fill=0):
            child.touch(a, 3 * 4096, write=True)

With pytest-benchmark, `vmemu_machine` and `vmemu_faults` put what they counted into the benchmark's `extra_info`.
Nothing of vmemu but this file is imported in runs that do not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from vmemu.machine import Machine
    from vmemu.process import Process
    from vmemu.types import FaultCounts

__all__ = ["Expectation", "expect_faults"]

_MEMORY = "64MiB"
_SUMS = ("minor", "major", "total")


# ---- what a block of code did ----


class Expectation:
    """What a block of code is to do to memory: a context manager, made by `expect_faults`."""

    def __init__(
        self,
        subject: Process | Machine,
        expected: dict[str, int],
        exact: bool,
        report: Callable[[FaultCounts], object] | None = None,
    ) -> None:
        from vmemu.machine import Machine
        from vmemu.process import Process

        if not isinstance(subject, Process | Machine):
            raise TypeError(f"expect_faults: a Process or a Machine, not {type(subject).__name__}")
        known = (*subject.faults.as_dict(), *_SUMS)
        for kind, n in expected.items():
            if kind == "none" or kind not in known:
                raise TypeError(f"expect_faults: there is no kind {kind!r}; there are {', '.join(known[1:])}")
            if isinstance(n, bool) or not isinstance(n, int):
                raise TypeError(f"expect_faults: {kind} must be an int, not {type(n).__name__}")
            if n < 0:
                raise ValueError(f"expect_faults: {kind}={n} is negative")
        self._subject = subject
        self._expected = expected
        self._exact = exact
        self._report = report
        self._before: FaultCounts | None = None
        self._counts: FaultCounts | None = None

    @property
    def counts(self) -> FaultCounts:
        """The faults of the block, by kind; inside it those so far."""
        if self._counts is not None:
            return self._counts
        if self._before is None:
            raise RuntimeError("the block has not begun")
        return self._subject.faults - self._before

    def __enter__(self) -> Self:
        self._before, self._counts = self._subject.faults, None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        if kind is not None:
            return
        from vmemu.errors import SyscallError

        try:
            self._counts = counts = self.counts
        except SyscallError as error:
            raise AssertionError(f"{self._subject!r} has ended inside the block: count its machine's faults") from error
        if self._report is not None:
            self._report(counts)
        wrong = self._wrong(counts)
        if wrong:
            raise AssertionError(_table(self._subject, self._expected, self._exact, counts, wrong))

    def _wrong(self, counts: FaultCounts) -> set[str]:
        """Kinds whose number is not what was expected."""
        wrong = {kind for kind, n in self._expected.items() if getattr(counts, kind) != n}
        if self._exact:
            wrong |= {kind for kind, n in counts.as_dict().items() if n and kind not in self._expected}
        return wrong


def expect_faults(subject: Process | Machine, *, exact: bool = False, **expected: int) -> Expectation:
    """Asserts that a block of code makes just these faults: ``with expect_faults(p, cow_copy=3, zero_fill=0): ...``.

    *subject* is a Process, or a Machine for all of its processes. Kinds are those of `FaultCounts`, and its sums
    `minor`, `major` and `total`. Kinds that are not named may be as they like, with *exact* there must be none of them.
    The context manager's `counts` are the faults of the block. Raises AssertionError with a table of what was expected
    and found.
    """
    return Expectation(subject, expected, exact)


def _table(subject: object, expected: dict[str, int], exact: bool, counts: FaultCounts, wrong: set[str]) -> str:
    """Kinds that were named or happened: expected, found."""
    found = counts.as_dict()
    kinds = [kind for kind in found if kind in expected or found[kind]] + [kind for kind in _SUMS if kind in expected]
    width = max(len("kind"), *map(len, kinds))
    lines = [f"not the faults that were expected of {subject!r}", f"  {'kind':{width}}  expected  found"]
    for kind in kinds:
        wanted = str(expected.get(kind, 0 if exact else "any"))
        mark = "  <--" if kind in wrong else ""
        lines.append(f"  {kind:{width}}  {wanted:>8}  {getattr(counts, kind):>5}{mark}")
    return "\n".join(lines)


# ---- the plugin ----


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line(
        "markers",
        f"vmemu(**options): options of the Machine that vmemu_machine makes (memory={_MEMORY!r} unless it is given)",
    )


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the markers say, the nearest first."""
    options: dict[str, Any] = {"memory": _MEMORY}
    for marker in reversed(list(request.node.iter_markers("vmemu"))):
        if marker.args:
            raise pytest.UsageError(f"pytest.mark.vmemu takes options by name only, not {marker.args[0]!r}")
        options |= marker.kwargs
    return options


def _extra_info(request: pytest.FixtureRequest) -> dict[str, Any] | None:
    """What pytest-benchmark saves beside the times of this test, None if it measures nothing here."""
    if "benchmark" not in request.fixturenames:
        return None
    found = getattr(request.getfixturevalue("benchmark"), "extra_info", None)
    return found if isinstance(found, dict) else None


@pytest.fixture
def vmemu_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of 64 MiB, or as ``@pytest.mark.vmemu(memory=..., ...)`` says; verified and closed after the test.

    With pytest-benchmark its counters since boot are in ``extra_info["vmemu_machine"]``.
    """
    from vmemu.machine import Machine

    extra = _extra_info(request)
    with Machine(**_options(request)) as machine:
        yield machine
        if machine._kernel.closed:
            return
        if extra is not None:
            extra["vmemu_machine"] = {
                "faults": machine.faults.as_dict(),
                "frames_copied": machine.frame_stats().copied,
                "page_tables": machine.meminfo().page_tables,
            }
        machine.verify()


@pytest.fixture
def vmemu_faults(request: pytest.FixtureRequest) -> Callable[..., Expectation]:
    """`expect_faults`: ``with vmemu_faults(p, cow_copy=3, zero_fill=0): ...``.

    With pytest-benchmark the sum over all blocks is in ``extra_info["vmemu_faults"]``, and how many these were.
    """
    extra = _extra_info(request)

    def report(counts: FaultCounts) -> None:
        if extra is not None:
            seen = extra.setdefault("vmemu_faults", {"blocks": 0, "faults": dict.fromkeys(counts.as_dict(), 0)})
            seen["blocks"] += 1
            for kind, n in counts.as_dict().items():
                seen["faults"][kind] += n

    def expect(subject: Process | Machine, *, exact: bool = False, **expected: int) -> Expectation:
        return Expectation(subject, expected, exact, report)

    return expect
