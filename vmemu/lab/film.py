"""A bomb that goes generation by generation as a `Result`, so that the page of a scenario shows it too: a tick of it is
a generation, and there is no bystander."""

from __future__ import annotations

from vmemu.bombs import Bystander, Ended, Event, Fate, Refusal, Result, Sample, Sharing
from vmemu.bombs.record import Record
from vmemu.lab.report import BombReport, Stopped
from vmemu.machine import Machine
from vmemu.types import fork_word

__all__ = ["GENERATIONS", "Film"]

GENERATIONS = "generations"
"""The shape of such a result."""


class Film:
    """Takes down what `lab.bomb.run` does; `result()` is what it was."""

    def __init__(self) -> None:
        self.record = Record()
        self.sharing: Sharing | None = None

    def born(self, generation: int, pid: int, parent: int) -> None:
        """A process is there, of the parent with index *parent*, -1 for the first."""
        index = self.record.born(generation, pid, parent)
        if parent >= 0:
            self.record.event(generation, Event.FORK, self.record.pids[parent], self.record.pids[index])

    def sample(self, generation: int, machine: Machine, processes: int, forks: int, refused: Refusal | None) -> None:
        """What there is at the end of a generation. *refused*: what refused its last fork."""
        self.record.samples.append(
            Sample.of(
                machine,
                machine.faults,
                tick=generation,
                processes=processes,
                runnable=processes,
                forks=forks,
                kills=0,
                oom_kills=0,
                refused=tuple(int(why is refused) for why in Refusal),
                bystander=Fate.FINE,
            )
        )

    def look(self, generation: int, machine: Machine, processes: int) -> None:
        """At who shares what."""
        self.sharing = Sharing.of(machine, generation, processes)

    def result(self, report: BombReport, generations: int | None, max_processes: int) -> Result:
        """All of it."""
        samples = self.record.series()
        ends = {Stopped.DONE: Ended.MEMORY, Stopped.MEMORY: Ended.MEMORY}
        return Result(
            shape=GENERATIONS,
            settings={
                "memory": report.memory,
                "swap": 0,
                "fork": fork_word(report.fork),
                "max_processes": max_processes,
                "generations": generations,
                "dirty": report.dirty,
                "seed": report.seed,
                "program": report.program,
                "argv": report.argv,
            },
            ended=ends.get(report.stopped) or Ended(report.stopped.value),
            ticks=len(samples),
            samples=samples,
            events=self.record.events(),
            tree=self.record.tree(),
            forks=report.forks,
            kills=0,
            oom_kills=0,
            refused={
                why.value: int(samples[-1][f"refused_{why.name.lower()}"]) if len(samples) else 0 for why in Refusal
            },
            peak_processes=report.processes,
            peak_tick=len(samples),
            contained_at=None,
            bystander=Bystander(None, 0, 0, None),
            sharing=self.sharing,
        )
