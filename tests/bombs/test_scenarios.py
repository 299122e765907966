"""Fork bombs as experiments: what each shape does, what each defence is good for, and that all of it is repeatable."""

from __future__ import annotations

import json
import signal
from typing import Any

import numpy as np
import pytest

from vmemu import ForkMode, Machine, SyscallError, bombs
from vmemu.bombs import KINDS, SHAPES, Ended, Event, Fate, Result
from vmemu.types import parse_size

SMALL = "16MiB"


def explode(shape: str = "classic", *defences: str, memory: str = SMALL, oom: str = "raise", **settings: Any) -> Result:
    """A scenario on a machine of its own, which is consistent afterwards."""
    with Machine(memory=memory, oom=oom) as machine:
        result = bombs.scenario(machine, shape, defences=defences, **settings).result
        machine.verify()
    return result


def of(result: Result, event: Event) -> Any:
    return result.events[result.events["event"] == event]


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_same_events(shape: str) -> None:
    one, two = (explode(shape, seed=3, ticks=40, dirty=2) for _ in range(2))
    assert one.digest == two.digest
    assert np.array_equal(one.events, two.events)
    assert np.array_equal(one.samples, two.samples)
    assert np.array_equal(one.tree, two.tree)
    assert one.counters() == two.counters()
    assert one.to_json() == two.to_json()


def test_other_seed_other_events() -> None:
    assert explode(seed=1, ticks=40).digest != explode(seed=2, ticks=40).digest


def test_samples_come_as_it_goes() -> None:
    with Machine(memory=SMALL) as machine:
        scenario = bombs.exponential(machine, ticks=6)
        samples = list(scenario)
        result = scenario.result
        assert len(machine.processes) == 2 + 2**6  # init, the service, and the bomb, which lives on
    assert [sample.tick for sample in samples] == list(range(1, 7))
    assert [sample.processes for sample in samples] == [2**n for n in range(1, 7)]
    assert result.ended is Ended.TICKS
    assert result.samples["processes"].tolist() == [sample.processes for sample in samples]
    assert result.samples["free"].tolist() == [sample.free for sample in samples]
    assert result.samples["cow_copy"].tolist() == [sample.faults[KINDS.index("cow_copy")] for sample in samples]


def test_result_is_what_the_generator_returns() -> None:
    with Machine(memory=SMALL) as machine:
        scenario = bombs.linear(machine, ticks=3)
        while True:
            try:
                next(scenario)
            except StopIteration as end:
                assert end.value is scenario.result
                break


def test_counts_agree() -> None:
    result = explode("classic", ticks=400, dirty=2)
    assert result.forks == len(of(result, Event.FORK)) == len(result.tree) - 1
    assert sum(result.refused.values()) == len(of(result, Event.REFUSED))
    assert result.kills == len(of(result, Event.KILLED)) == (result.tree["fate"] == Event.KILLED).sum()
    alive = (result.tree["died"] < 0).sum()
    assert alive == result.samples["processes"][-1]
    assert alive + result.kills + len(of(result, Event.EXIT)) == len(result.tree)
    assert result.peak_processes == result.samples["processes"].max()
    assert result.samples["processes"][result.peak_tick - 1] == result.peak_processes
    parents = result.tree["parent"]
    assert parents[0] == -1
    assert (parents[1:] < np.arange(1, len(parents))).all()
    born = result.tree["born"]
    assert (born[parents[1:]] < born[1:]).all()


# ---- shapes ----


class Lonely:
    """A process whose forks fail."""

    interrupted = False
    may_retry = True


class Refusing:
    """Where it lives."""

    asked = reaped = 0

    def fork(self, *_: object) -> bool:
        self.asked += 1
        return False

    def reap(self, _: object) -> None:
        self.reaped += 1

    def dirty(self, _: object) -> list[None]:
        return []


def test_classic_forks_two_and_exits() -> None:
    result = explode("classic", ticks=9)
    parents = result.tree["parent"][1:]
    assert np.bincount(parents)[0] == 2
    assert np.bincount(parents).max() == 2
    exits = {int(pid) for pid in of(result, Event.EXIT)["pid"]}
    two = {int(result.tree["pid"][i]) for i in np.flatnonzero(np.bincount(parents) == 2)}
    assert exits <= two
    assert int(result.tree["pid"][0]) in exits


def test_classic_tries_again_as_bash_does() -> None:
    """1, 2, 4 and 8 seconds after a refusal with EAGAIN, then it gives up; or when a child's end wakes it."""
    field = Refusing()
    me = Lonely()
    assert list(SHAPES["classic"](field, me)) == [None, 100, 200, 400, 800]
    assert field.asked == field.reaped == 5
    me.may_retry = False
    assert list(SHAPES["classic"](field, me)) == [None]
    me.may_retry = me.interrupted = True
    assert list(SHAPES["classic"](field, me)) == [None, 100]


def test_the_end_of_a_child_wakes_a_shell() -> None:
    """The first forks one, is refused, sleeps a second; the child does and is killed."""
    with Machine(memory=SMALL) as machine:
        scenario = bombs.classic(machine, defences=["nproc=2"], ticks=20)
        for sample in scenario:
            if sample.tick == 6:
                first, child = (process for process in machine.processes.values() if process.uid == 1000)
                machine.init.kill(child.pid, signal.SIGKILL)
    events = [(tick, Event(event).name, pid) for tick, event, pid, _ in scenario.result.events.tolist()]
    assert events[-2:] == [(7, "KILLED", child.pid), (8, "EXIT", first.pid)]


def test_waiting_waits() -> None:
    result = explode("waiting", ticks=12)
    assert not len(of(result, Event.EXIT))
    assert result.samples["runnable"][-1] < result.samples["processes"][-1] == len(result.tree)


def test_linear_grows_by_one() -> None:
    result = explode("linear", ticks=30)
    assert np.diff(result.samples["processes"]).tolist() == [1] * 29
    assert set(result.tree["parent"].tolist()) == {-1, 0}
    assert result.samples["runnable"].max() == 2  # the parent, and the child that has yet to write


def test_chain_is_never_long() -> None:
    result = explode("chain", ticks=101)
    assert result.peak_processes == 2
    assert result.forks == 50
    assert result.tree["parent"].tolist() == list(range(-1, 50))


def test_touch_shares_nothing() -> None:
    """Every page that was written before the first fork is copied for each process."""
    plain, touching = (explode(shape, "nproc=16").samples[-1] for shape in ("exponential", "touch"))
    assert touching["cow_copy"] > 10 * plain["cow_copy"]
    assert touching["anon"] > 3 * plain["anon"]


def test_exec_reads_the_program_once() -> None:
    result = explode("exec", max_processes=16, memory="64MiB")
    assert len(of(result, Event.EXEC)) >= 8
    assert result.samples["file_major"][-1] <= result.samples["file_major"][0]
    assert result.samples["zero_fill"][-1] > 8 * 30


def test_vfork_takes_no_memory() -> None:
    result = explode("vfork", ticks=100)
    assert result.peak_processes > 40
    assert result.samples["runnable"].max() == 1
    assert result.samples["anon"][-1] == result.samples["anon"][2]


@pytest.mark.parametrize("dirty", [0, 1, 5])
def test_each_new_process_writes_its_pages(dirty: int) -> None:
    """The last 32 have not had their turn."""
    result = explode("exponential", ticks=6, dirty=dirty, memory="64MiB")
    assert result.samples["cow_copy"][-1] - result.samples["cow_copy"][0] == 31 * dirty


def test_fork_mode_is_chosen() -> None:
    tables = {
        mode: explode("exponential", ticks=6, fork=mode, memory="64MiB").samples["page_tables"][-1]
        for mode in (ForkMode.COW, ForkMode.ON_DEMAND)
    }
    assert tables[ForkMode.ON_DEMAND] < tables[ForkMode.COW]


def test_a_program_of_the_host() -> None:
    result = explode("exponential", program="/bin/sh", ticks=5, memory="64MiB")
    assert result.peak_processes == 32
    assert result.settings["program"] == "/bin/sh"


# ---- ends ----


def test_max_processes() -> None:
    result = explode("exponential", max_processes=21)
    assert result.ended is Ended.MAX_PROCESSES
    assert result.peak_processes == 21


def test_generations() -> None:
    result = explode("exponential", generations=3)
    assert result.ended is Ended.GENERATIONS
    assert explode("exponential", generations=0).forks == 0


def test_memory() -> None:
    result = explode("exponential")
    assert result.ended is Ended.MEMORY
    assert result.refused["memory"] > 0
    assert result.contained_at is None
    assert result.samples["free"].min() == 0


def test_stop() -> None:
    with Machine(memory=SMALL) as machine:
        scenario = bombs.exponential(machine)
        for sample in scenario:
            if sample.tick == 5:
                scenario.stop()
        assert scenario.result.ended is Ended.INTERRUPTED
        assert scenario.result.ticks == 6
        assert len(scenario.result.samples) == 6
        machine.verify()


# ---- defences ----


@pytest.mark.parametrize("shape", ["classic", "waiting", "exponential", "linear", "touch", "exec", "vfork"])
def test_nproc_contains(shape: str) -> None:
    result = explode(shape, "nproc=20", memory="64MiB")
    assert result.ended is Ended.CONTAINED
    assert result.peak_processes == 20
    assert result.refused["nproc"] == sum(result.refused.values()) > 0
    assert result.contained_at == result.peak_tick
    assert result.bystander.verdict == "unharmed"


@pytest.mark.parametrize("shape", ["classic", "waiting", "exponential", "linear", "touch", "exec"])
def test_pids_max_contains(shape: str) -> None:
    result = explode(shape, "pids.max=20", memory="64MiB")
    assert result.ended is Ended.CONTAINED
    assert result.peak_processes == 20
    assert result.refused["pids.max"] == sum(result.refused.values()) > 0
    assert result.bystander.verdict == "unharmed"


def test_the_lower_limit_refuses() -> None:
    assert explode("exponential", "pids.max=20", "nproc=30").refused["nproc"] == 0
    assert explode("exponential", "pids.max=30", "nproc=20").refused["pids.max"] == 0


@pytest.mark.parametrize("shape", ["classic", "exponential", "touch"])
def test_strict_overcommit_contains(shape: str) -> None:
    result = explode(shape, "overcommit=2", memory="32MiB")
    assert result.ended is Ended.CONTAINED
    assert result.refused["overcommit"] > 0
    assert result.refused["memory"] == 0
    assert result.samples["free"].min() > 0


def test_watcher_kills_the_group() -> None:
    result = explode("exponential", "watcher=30", memory="64MiB")
    assert result.ended is Ended.CONTAINED
    assert result.contained_at == result.ticks == 10
    assert result.kills == len(result.tree) - len(of(result, Event.EXIT))
    assert result.samples["processes"][-1] == 0


def test_watcher_does_not_see_a_chain() -> None:
    assert explode("chain", "watcher", ticks=60).ended is Ended.TICKS


def test_bystander_stalls_without_memory() -> None:
    result = explode("exponential")
    fate = result.bystander
    assert fate.verdict == "stalled"
    assert fate.first_stall is not None
    assert result.samples["bystander"][fate.first_stall - 1] == Fate.STALLED
    assert (result.samples["bystander"] == Fate.STALLED).sum() == fate.stalls == len(of(result, Event.STALL))
    assert result.samples["free"][fate.first_stall - 3] > 0


# ---- the OOM killer ----


def test_the_bystander_is_killed_first() -> None:
    """It is larger than any process of the bomb."""
    result = explode("exponential", oom="kill")
    assert result.ended is Ended.MEMORY
    assert result.bystander.verdict == "killed"
    killed = of(result, Event.KILLED)
    assert killed["tick"][0] == result.bystander.killed_at
    assert result.samples["bystander"][-1] == Fate.KILLED
    assert result.oom_kills == result.kills + 1
    assert np.median(np.diff(result.samples["oom_kills"].astype(int))[result.bystander.killed_at :]) == 10


def test_a_protected_bystander_lives() -> None:
    result = explode("exponential", "protect", oom="kill")
    assert result.ended is Ended.MEMORY
    assert result.bystander.killed_at is None
    assert result.oom_kills == result.kills > 100


@pytest.mark.parametrize("shape", ["classic", "exponential", "touch", "exec"])
def test_memory_max_contains(shape: str) -> None:
    """The killer runs, but only in the bomb's cgroup."""
    result = explode(shape, "memory.max=4MiB", oom="kill")
    assert result.ended is Ended.CONTAINED
    assert result.kills == result.oom_kills > 0
    assert result.bystander.verdict == "unharmed"
    assert result.samples["free"].min() > 8 << 20


def test_a_cgroup_too_small_for_one() -> None:
    result = explode("classic", "memory.max=64KiB", oom="kill")
    assert (result.ended, result.contained_at, result.peak_processes) == (Ended.CONTAINED, 0, 0)
    assert len(result.samples) == len(result.tree) == 0
    assert result.counters()["ticks"] == 0


@pytest.mark.parametrize("oom", ["raise", "kill"])
def test_a_machine_too_small_for_the_bomb(oom: str) -> None:
    result = explode("classic", memory="256KiB", oom=oom)
    assert (result.ended, result.contained_at, result.peak_processes) == (Ended.MEMORY, None, 0)
    with pytest.raises(SyscallError, match="Cannot allocate memory"):
        explode("classic", memory="64KiB", oom=oom)


def test_all_defences_together() -> None:
    words = ["nproc=30", "pids.max=30", "memory.max=8MiB", "overcommit=2", "protect", "watcher=20"]
    result = explode("exponential", *words, oom="kill", memory="32MiB")
    assert result.ended is Ended.CONTAINED
    assert result.samples["processes"][-1] == 0


# ---- looking ----


def test_sharing_is_looked_at() -> None:
    result = explode("exponential", "nproc=20", sharing=True, dirty=0)
    sharing = result.sharing
    assert sharing is not None
    assert sharing.processes <= result.peak_processes
    assert len(sharing.mapcounts) == len(sharing.flags) == (16 << 20) // 4096
    assert sharing.mapcounts.max() == sharing.processes
    assert explode("exponential", "nproc=20").sharing is None


# ---- what makes no sense ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nproc=-1"], "nproc: -1 is less than 1"),
        (["nproc"], "nproc needs a value: nproc=N"),
        (["nproc=many"], "nproc: 'many' is not a whole number"),
        (["nproc=3", "nproc=4"], "nproc: 4 contradicts 3"),
        (["pids.max=0"], "pids.max: 0 is less than 1"),
        (["memory.max=-4MiB"], "memory.max: -4MiB is negative"),
        (["memory.max=much"], "memory.max: 'much' is not a size"),
        (["memory.max=1KiB"], "memory.max: 1024 is less than 4096"),
        (["memory.max=1GiB"], "memory.max: 1073741824 bytes are more than the machine has, which is 16777216"),
        (["overcommit=3"], "overcommit: 3 is not one of 0, 1, 2"),
        (["overcommit=1", "overcommit=2"], "overcommit: 2 contradicts 1"),
        (["protect=yes"], "protect takes no value"),
        (["watcher=0"], "watcher: 0 is less than 1"),
        (["prayer"], "'prayer' is no defence; there are nproc, "),
    ],
)
def test_defences_without_sense(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        explode("classic", *words)


@pytest.mark.parametrize(
    "settings",
    [{"ticks": 0}, {"max_processes": 0}, {"generations": -1}, {"dirty": -1}, {"seed": -1}, {"dirty": 1 << 40}],
)
def test_numbers_without_sense(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        explode("classic", **settings)


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match="'petard' is no bomb; there are classic, "):
        explode("petard")


def test_one_word_is_no_sequence() -> None:
    with Machine(memory=SMALL) as machine, pytest.raises(TypeError, match="nproc=3"):
        bombs.classic(machine, defences="nproc=3")


def test_defences_can_be_written_again() -> None:
    words = ["nproc=20", "pids.max=30", "memory.max=4MiB", "overcommit=2", "protect", "watcher=50"]
    assert bombs.Defences.parse(words).words == words
    assert bombs.Defences.parse(["watcher"]).words == ["watcher=50"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ticks", "5"), ("ticks", True), ("ticks", 5.0), ("ticks", None), ("max_processes", None), ("generations", 2.5),
        ("generations", False), ("dirty", "1"), ("seed", None), ("seed", 1.5), ("service", 4096.0), ("program", 3),
        ("argv", "sh"), ("fork", "cow"), ("policy", 1), ("sharing", "yes"),
    ],
)  # fmt: skip
def test_wrong_types_are_named(name: str, value: Any) -> None:
    with Machine(memory=SMALL) as machine:
        with pytest.raises(TypeError, match=f"^{name}: "):
            bombs.classic(machine, **{name: value})
        assert len(machine.processes) == 1


def test_numpy_integers_are_integers() -> None:
    assert explode(ticks=np.int64(3), seed=np.uint8(1)).to_json()["settings"]["ticks"] == 3


@pytest.mark.parametrize(
    "made",
    [
        {"fork_mode": ForkMode.EAGER}, {"thp": "always"}, {"zero_page": False, "fault_around": 1},
        {"overcommit": 2, "overcommit_ratio": 80}, {"contents": False, "reuse": False}, {"hugepages": {"2MiB": 1}},
        {"swap": "4MiB", "swappiness": 5, "policy": "random", "seed": 7}, {"oom": "kill", "aslr": True, "seed": 3},
    ],
)  # fmt: skip
def test_settings_make_the_same_machine(made: dict[str, Any]) -> None:
    """Through JSON, and whatever a defence changed meanwhile."""
    with Machine(memory=SMALL, **made) as machine:
        first = bombs.touch(machine, defences=["overcommit=0"], ticks=25).result
    settings = json.loads(json.dumps(first.settings))
    for name, value in made.items():
        assert (
            parse_size(settings["machine"][name]) == 4 << 20 if name == "swap" else settings["machine"][name] == value
        )
    assert settings["fork"] == ("eager" if "fork_mode" in made else "cow")
    with Machine(**settings["machine"]) as machine:
        again = bombs.touch(machine, defences=settings["defences"], ticks=settings["ticks"]).result
    assert (again.digest, again.settings) == (first.digest, first.settings)
