"""Fork bombs and what Linux has against them, as experiments: see `scenarios` for how they are used.

scenarios   a function on a Machine for each shape -> a Scenario, which yields samples and has a Result
shapes      what the processes of each bomb do from turn to turn
defences    limits and helpers, by name
run         the ticks, what is counted, and when it is over
swarm       the processes: turns, births, deaths, and what a turn can do
services    the bystander and the watcher
record      columns that become the arrays of a result
program     the program that is forked: one of the host, or a built-in one
"""

from vmemu.bombs.defences import Defences
from vmemu.bombs.options import MAX_PROCESSES, Options
from vmemu.bombs.result import KINDS, Bystander, Ended, Event, Fate, Refusal, Result, Sample, Sharing
from vmemu.bombs.scenarios import (
    Scenario,
    chain,
    classic,
    exec,  # noqa: A004 - the shape's name
    exponential,
    linear,
    scenario,
    touch,
    vfork,
    waiting,
)
from vmemu.bombs.shapes import SHAPES

__all__ = [
    "KINDS",
    "MAX_PROCESSES",
    "SHAPES",
    "Bystander",
    "Defences",
    "Ended",
    "Event",
    "Fate",
    "Options",
    "Refusal",
    "Result",
    "Sample",
    "Scenario",
    "Sharing",
    "chain",
    "classic",
    "exec",
    "exponential",
    "linear",
    "scenario",
    "touch",
    "vfork",
    "waiting",
]
