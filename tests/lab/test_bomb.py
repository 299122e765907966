"""The fork bomb and the comparison, from Python."""

from __future__ import annotations

import dataclasses

import pytest

from vmemu import ByKind, ForkMode, Machine, SyscallError
from vmemu.lab import bomb, compare
from vmemu.lab.report import BombReport, Generation, Stopped, to_json
from vmemu.types import PAGE_SIZE


def explode(**options: object) -> BombReport:
    return bomb.run("/bin/sh", **{"memory": "32MiB", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ForkMode)
def test_memory_is_an_outcome(mode: ForkMode) -> None:
    report = explode(fork=mode, memory="16MiB")
    assert report.stopped is Stopped.MEMORY
    assert report.processes == report.forks + 1 > 10
    assert report.memory == 16 << 20
    assert report.used_bytes > 0.99 * report.memory


def test_generations_double() -> None:
    report = explode(generations=6)
    assert report.stopped is Stopped.GENERATIONS
    assert report.processes == 64
    assert [(state.number, state.processes) for state in report.history] == [(n, 2**n) for n in range(7)]


def test_max_processes() -> None:
    report = explode(max_processes=21)
    assert report.stopped is Stopped.MAX_PROCESSES
    assert report.processes == 21
    assert report.generations == 4


def test_no_generations_is_the_program_alone() -> None:
    report = explode(generations=0)
    assert (report.processes, report.forks) == (1, 0)


def test_program_that_does_not_fit() -> None:
    report = explode(memory="512KiB")
    assert report.stopped is Stopped.MEMORY
    assert report.processes == 0


def test_stop_is_asked_for() -> None:
    asked: list[Generation] = []
    report = explode(progress=asked.append, stop=lambda: len(asked) > 3)
    assert report.stopped is Stopped.INTERRUPTED
    assert report.generations == 4


@pytest.mark.parametrize("dirty", [0, 1, 7, 300])
def test_each_new_process_copies_what_it_writes(dirty: int) -> None:
    """All that children write was written before the first fork: each write copies one frame, as parents write nothing.

    300 pages are more than sh has: the heap grows.
    """
    before, after = (explode(generations=n, dirty=dirty, memory="128MiB") for n in (0, 5))
    assert after.frames_copied - before.frames_copied == 31 * dirty
    assert after.faults.cow_copy - before.faults.cow_copy == 31 * dirty
    assert after.faults.total - before.faults.total == 31 * dirty


def test_more_pages_than_memory() -> None:
    report = explode(dirty=1 << 20)
    assert report.stopped is Stopped.MEMORY
    assert report.processes == 0


def test_eager_copies_all_and_takes_what_was_predicted() -> None:
    cow, eager = (explode(generations=5, fork=mode) for mode in (ForkMode.COW, ForkMode.EAGER))
    assert eager.faults.cow_copy < cow.faults.cow_copy
    assert eager.frames_copied > 10 * cow.frames_copied
    assert cow.used_bytes < cow.eager_bytes == eager.eager_bytes
    # The machine itself has the zero page and init's memory.
    assert 0 <= eager.used_bytes - eager.eager_bytes <= 4 * PAGE_SIZE


def test_on_demand_takes_less_for_tables() -> None:
    tables = {mode: explode(generations=6, fork=mode).page_table_bytes for mode in ForkMode}
    assert tables[ForkMode.ON_DEMAND] < tables[ForkMode.COW] <= tables[ForkMode.EAGER]


def deterministic(report: object) -> object:
    """The report without what depends on the host's clock or memory."""
    match report:
        case dict():
            clock = ("seconds", "_ns", "per_s", "host")
            return {
                key: deterministic(value) for key, value in report.items() if not any(word in key for word in clock)
            }
        case list():
            return [deterministic(item) for item in report]
    return report


@pytest.mark.parametrize("mode", ForkMode)
def test_same_seed_same_report(mode: ForkMode) -> None:
    first, second = (deterministic(to_json(explode(fork=mode, seed=7, dirty=3))) for _ in range(2))
    assert first == second


def test_other_seed_other_pages() -> None:
    one, two = (explode(seed=seed, dirty=3, generations=6) for seed in (1, 2))
    assert one.processes == two.processes
    assert deterministic(to_json(one)) != deterministic(to_json(two))


def test_json_has_the_promised_keys() -> None:
    out = to_json(explode(generations=2))
    keys = {"processes", "seconds", "forks_per_s", "faults", "frames_shared", "frames_copied", "page_table_bytes"}
    assert keys | {"eager_bytes", "stopped"} <= set(out)
    assert sum(out["faults"].values()) > 0
    assert out["stopped"] == "generations"
    assert out["fork"] == "cow"


@pytest.mark.parametrize(
    "options", [{"generations": -1}, {"max_processes": 0}, {"dirty": -1}, {"memory": "many"}, {"memory": 0}]
)
def test_senseless_numbers(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        explode(**options)


def test_missing_program() -> None:
    with pytest.raises(SyscallError):
        bomb.run("/no/such/program")


def test_compare() -> None:
    report = compare.run("/bin/sh", processes=20, dirty=3, repeat=2)
    costs = {cost.how: cost for cost in report.costs}
    assert list(costs) == ["eager", "cow", "on-demand", "vfork"]
    assert {cost.processes for cost in report.costs} == {20}
    assert {cost.stopped for cost in report.costs} == {Stopped.DONE}
    assert costs["eager"].faults.cow_copy == 0
    assert costs["eager"].frames_copied > costs["cow"].frames_copied
    assert costs["cow"].faults.cow_copy == costs["cow"].frames_copied > 0
    assert costs["on-demand"].frames_copied == costs["cow"].frames_copied
    assert costs["on-demand"].page_table_bytes < costs["cow"].page_table_bytes
    assert costs["vfork"].frames_used == costs["vfork"].frames_copied == costs["vfork"].faults.total == 0


def test_compare_is_deterministic() -> None:
    first, second = (deterministic(to_json(compare.run("/bin/sh", processes=10, repeat=1, seed=3))) for _ in range(2))
    assert first == second


def test_compare_when_memory_ends() -> None:
    report = compare.run("/bin/sh", processes=200, memory="8MiB", repeat=1)
    costs = {cost.how: cost for cost in report.costs}
    assert costs["eager"].stopped is Stopped.MEMORY
    assert 0 < costs["eager"].processes < costs["on-demand"].processes
    assert costs["vfork"].stopped is Stopped.DONE


def test_reports_are_immutable() -> None:
    report = explode(generations=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.processes = 2  # type: ignore[misc]


@pytest.mark.parametrize(("mode", "dirty"), [(ForkMode.ON_DEMAND, 1), (ForkMode.COW, 2), (ForkMode.COW, 0)])
def test_processes_are_predicted(mode: ForkMode, dirty: int) -> None:
    """From the first generation with a thousand, or the last one before the end."""
    report = explode(fork=mode, dirty=dirty, memory="64MiB")
    prediction = report.predicted()
    assert report.stopped is Stopped.MEMORY
    assert prediction is not None
    fit, each, generation = prediction
    assert abs(fit - report.processes) <= max(2, report.processes // 200)
    assert each == pytest.approx(PAGE_SIZE * round(each / PAGE_SIZE), rel=0.01)
    assert generation <= report.generations
    assert explode(generations=0).predicted() is None


def test_bytes_of_the_eager_way_are_those_of_each_process() -> None:
    """What is summed in one call is what each process says of itself."""
    with Machine(memory="64MiB") as machine:
        process, _ = bomb.start(machine, "/bin/sh", ["sh"])
        family = [process, *process.fork_many(3), process.fork(mode=ForkMode.ON_DEMAND)]
        family[1].exit(0)
        usage = machine.usage(family)
        for row, one in zip(usage.tolist(), family, strict=True):
            alive = one.state == "running"
            rss = one.rss_by_kind if alive else ByKind(0, 0, 0)
            assert row == [rss.anon, rss.file, rss.shmem, one.page_tables if alive else 0]
        assert machine.usage([]).shape == (0, 4)
        with Machine(memory="1MiB") as other, pytest.raises(ValueError, match="belongs to another machine"):
            other.usage(family)
        with pytest.raises(TypeError, match="usage: 3 is not a Process"):
            machine.usage([3])  # type: ignore[list-item]
