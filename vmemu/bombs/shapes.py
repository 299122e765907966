"""What the processes of a bomb do: one generator for each, which runs from one turn to the next.

A turn ends with ``yield``: None to go on in the next tick, a number to sleep so many ticks, FOREVER, or CHILD to wait
until it gets its memory back. A process whose generator ends exits. What a process does, it does through the `Field`
that it lives in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeAlias

__all__ = ["CHILD", "FOREVER", "SHAPES", "TICKS_PER_SECOND", "Actor", "Field", "Life", "Shape"]

FOREVER = -1
CHILD = -2
TICKS_PER_SECOND = 100
"""A tick is 10 ms, a jiffy of USER_HZ."""
_BASH_SLEEPS = (1, 2, 4, 8)
"""Seconds that bash sleeps after a fork that failed with EAGAIN, before it tries again (make_child(): forksleep)."""
_PAGES_PER_TURN = 16

Life: TypeAlias = Generator["int | None", None, None]


class Actor(Protocol):
    """A process of the bomb as its life sees it."""

    interrupted: bool
    """One of its children ended since it last forked, or tried to."""
    may_retry: bool
    """The last fork that was refused failed with EAGAIN."""


class Field(Protocol):
    """What a life can do with its process."""

    def fork(self, me: Any, life: Any, vfork: bool = False) -> bool:
        """A child that leads *life* from the next tick on; False if it was refused."""

    def reap(self, me: Any) -> None:
        """Waits for those of its children that are dead."""

    def dirty(self, me: Any) -> Life:
        """Writes the pages that each new process writes; ends the turn when there is no memory."""

    def write_all(self, me: Any, npages: int) -> Life:
        """Writes all of its own pages, so many in a turn."""

    def exec(self, me: Any) -> Life:
        """Executes the program and lets it start up; ends the turn when there is no memory."""


Shape: TypeAlias = Callable[[Field, Actor], Life]


def classic(field: Field, me: Actor) -> Life:
    """``:(){ :|:& };:`` as bash does it.

    Each call of the function forks a process for either end of its pipe, `:` runs in both, and the caller, which does
    not wait for what is in the background, is at its end and exits. (The pipes carry nothing, so they take no memory.)
    When a fork fails with EAGAIN, bash reaps its dead and tries again after 1, 2, 4 and 8 seconds; it gives up after
    that, if the end of a child wakes it, and with ENOMEM at once.
    """
    yield from field.dirty(me)
    yield None
    for _ in range(2):
        sleeps = list(_BASH_SLEEPS)
        while not field.fork(me, classic):
            field.reap(me)
            if not sleeps or not me.may_retry:
                return
            yield sleeps.pop(0) * TICKS_PER_SECOND
            if me.interrupted:
                return
        yield None


def waiting(field: Field, me: Actor) -> Life:
    """``:(){ :|: ; };:``: as classic, but each process waits for the two that it forked, which never end."""
    yield from field.dirty(me)
    yield None
    for _ in range(2):
        while not field.fork(me, waiting):
            yield None
        yield None
    yield FOREVER


def exponential(field: Field, me: Actor) -> Life:
    """``while (1) fork();``: twice as many each tick."""
    yield from field.dirty(me)
    while True:
        field.fork(me, exponential)
        yield None


def linear(field: Field, me: Actor) -> Life:
    """``while (1) if (!fork()) pause();``: one more each tick."""
    yield from field.dirty(me)
    while True:
        field.fork(me, _idle)
        yield None


def _idle(field: Field, me: Actor) -> Life:
    yield from field.dirty(me)
    yield FOREVER


def chain(field: Field, me: Actor) -> Life:
    """``while (!fork()); _exit(0);``: the child goes on, the parent exits; there are never more than two, and never
    the same."""
    yield from field.dirty(me)
    yield None
    while not field.fork(me, chain):
        yield None
    yield None


def touch(field: Field, me: Actor) -> Life:
    """As exponential, but a process first writes all of its memory, some pages each tick, so that nothing stays
    shared."""
    yield from field.write_all(me, _PAGES_PER_TURN)
    while True:
        field.fork(me, touch)
        yield None


def execing(field: Field, me: Actor) -> Life:
    """As exponential, but a child executes the program first, and shares nothing but the program's file."""
    yield from field.exec(me)
    yield from field.dirty(me)
    while True:
        field.fork(me, execing)
        yield None


def vfork(field: Field, me: Actor) -> Life:
    """``while (1) vfork();``: each process runs in the memory of its parent, which waits for it. Only the last one
    runs."""
    yield from field.dirty(me)
    yield None
    while True:
        yield CHILD if field.fork(me, vfork, vfork=True) else None


SHAPES: dict[str, Shape] = {
    "classic": classic,
    "waiting": waiting,
    "exponential": exponential,
    "linear": linear,
    "chain": chain,
    "touch": touch,
    "exec": execing,
    "vfork": vfork,
}
"""Those of the command line, by name."""
