"""Many processes alive at once."""

from __future__ import annotations

from collections.abc import Iterator

from bench import subject
from bench.measure import Line, Sides, at_most, experiment, faster
from bench.native import kernel

MILLION = 1_000_000
LIVING = 100_000
LIKE = (
    "kernel: fork() at 2,000 alive, from free memory that was in use before; "
    "so the 100,000 were made and ended once, and are made again"
)


@experiment(
    "million",
    Line("million.fork", "fork_many(1,000,000), ON_DEMAND, all alive", "fork", (at_most(1000),)),
    Line(
        "million.memory",
        "host memory of them, the process table included",
        "process",
        (at_most(512),),
        note="a Process object comes on top for each that is held",
        measure="bytes",
    ),
    Line("million.write", "10,000 of them write a page each", "write", ()),
    Line("million.exit", "exit of all", "process", ()),
    Line("million.wait", "wait for all", "process", ()),
    rounds=3,
)
def million() -> Iterator[Sides]:
    def vmemu() -> dict[str, float]:
        found = subject.run("million", MILLION)
        return {
            "million.fork": found["fork_ns"],
            "million.memory": found["host_bytes"],
            "million.write": found["write_ns"],
            "million.exit": found["exit_ns"],
            "million.wait": found["wait_ns"],
        }

    yield {"vmemu": vmemu}


@experiment(
    "alive",
    Line(
        "alive.single",
        "100,000 live processes under COW, 40 pages in three regions: fork() each",
        "fork",
        (faster("kernel", 4, aim=7),),
        note=LIKE,
    ),
    Line(
        "alive.many",
        "the same in one fork_many()",
        "fork",
        (faster("kernel", 4, aim=7),),
        note=LIKE,
    ),
    Line("alive.memory", "host memory of them", "process", (), measure="bytes"),
    rounds=3,
)
def alive() -> Iterator[Sides]:
    def kernel_side() -> dict[str, float]:
        ns = kernel("alive", 2000, 300)["alive"]
        return {"alive.single": ns, "alive.many": ns}

    def vmemu() -> dict[str, float]:
        single, many = (subject.run(f"alive.{how}", LIVING) for how in ("single", "many"))
        return {
            "alive.single": single["fork_ns"],
            "alive.many": many["fork_ns"],
            "alive.memory": single["host_bytes"],
        }

    yield {"kernel": kernel_side, "vmemu": vmemu}
