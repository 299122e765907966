"""What execve keeps of what it did, so that a request made again costs little.

A plan holds while the host's files are as they were (`loader.Seen`); for other strings only its stack is made anew.
What it came to in the core, a pattern, holds while the page caches of its files live. Nothing is kept with
randomisation, nor of files just changed, and nothing kept holds a page cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from collections.abc import Mapping as Dictionary
from typing import Any, NamedTuple

from vmemu._native import Pattern
from vmemu.kernel import Image
from vmemu.loader import ExecPlan, Restacked, Restacker, Seen
from vmemu.openfile import Inode
from vmemu.types import PAGE_SIZE

__all__ = ["Kept", "Made", "Request", "find", "keep", "request_of"]

Arguments = tuple[str | bytes, ...]
Environment = Dictionary[str, str] | Sequence[str | bytes]

PLANS_MAX = 256
"""Entries that one machine keeps: a plan has one for its request and one for requests with other strings."""
STACK_MAX = 64 << 10
"""Bytes of strings and vectors with which a plan is too large to keep."""


class Made(NamedTuple):
    """What a plan came to in the core, to be made again."""

    pattern: Pattern
    inodes: tuple[tuple[Inode, int], ...]
    """The files in it, and the objects that they had."""
    charged: int
    """Pages of the largest mapping that is charged, or more."""
    max_map_count: int


class Kept:
    """What one request led to."""

    __slots__ = ("_like", "_plan", "_restacker", "credentials", "image", "made", "name", "seen", "size", "stored")

    def __init__(self, plan: ExecPlan, seen: Seen, strings: Restacked | None = None, made: Made | None = None) -> None:
        """With *strings*, *plan* is that of a request with others."""
        self._plan, self._like, self.seen, self.made = plan, strings, seen, made
        self._restacker: Restacker | None = None
        self.stored = False
        """`keep` has it."""
        mine = plan if strings is None else strings
        self.size = len(mine.stack_data)
        self.name, self.credentials = plan.comm, plan.credentials
        self.image = Image(
            path=plan.path,
            exec_fn=plan.exec_fn,
            argv=mine.argv,
            envp=mine.envp,
            auxv=mine.auxv,
            stack_pointer=mine.stack_pointer,
            entry_point=plan.entry_point,
        )

    @property
    def is_base(self) -> bool:
        """Others can be derived from it."""
        return self._restacker is not None

    @property
    def plan(self) -> ExecPlan:
        """The plan."""
        if self._like is not None:
            self._plan, self._like = self._like.put_into(self._plan), None
        return self._plan

    def carried_out(self, made: Made) -> None:
        """The plan came to this, from which others can be derived."""
        self.made = made
        self._restacker = Restacker.of(self.plan)

    def with_strings(self, argv: Arguments, environment: Environment) -> Kept | None:
        """The same for other strings; None if they could change more than the stack. Raises SyscallError for strings as
        execve(2) does."""
        made = self.made
        new = self._restacker.restack(argv, environment) if self._restacker is not None else None
        if new is None or made is None:
            return None
        write = (new.stack_pointer, new.stack_data)
        pattern = made.pattern.with_last(new.stack_start, new.stack_end, new.words(self._plan), write)
        pages = (new.stack_end - new.stack_start) // PAGE_SIZE
        made = Made(pattern, made.inodes, max(made.charged, pages), made.max_map_count)
        return Kept(self._plan, self.seen, new, made)


class Request(NamedTuple):
    """What a plan depends on besides the host's files, as keys of what is kept."""

    whole: Hashable
    """With the strings."""
    place: Hashable
    """Without."""


def request_of(argv: Arguments, environment: Environment, *others: Hashable) -> Request | None:
    """*others* are all else that a plan depends on. None if what is to be the strings is not any."""
    strings: object = environment
    if type(environment) is dict or isinstance(environment, Dictionary):
        strings = tuple(environment.items())
    elif type(environment) is not tuple:
        return None
    return Request((others, argv, strings), others)


def find(plans: dict[Any, Any], request: Request, argv: Arguments, environment: Environment) -> Kept | None:
    """What is kept for a request, if it still holds. Raises SyscallError for strings as execve(2) does."""
    try:
        kept: Kept | None = plans.get(request.whole)
    except TypeError:  # some of them can't be compared
        return None
    if kept is not None:
        return kept if kept.seen.unchanged() else None
    like: Kept | None = plans.get(request.place)
    if like is None or not like.seen.unchanged():
        return None
    return like.with_strings(argv, environment)


def keep(plans: dict[Any, Any], request: Request, kept: Kept, argv: Arguments, environment: Environment) -> None:
    """Keeps what has just been found to hold, unless it is large; what was kept first goes first."""
    if kept.size > STACK_MAX or not _comparable(argv, environment):
        return
    base = plans.pop(request.place, None)
    plans[request.whole], kept.stored = kept, True
    plans[request.place] = kept if base is None or kept.is_base else base
    while len(plans) > PLANS_MAX:
        del plans[next(iter(plans))]


def _comparable(argv: Arguments, environment: Environment) -> bool:
    """The strings are nothing but strings, which are equal when they are the same."""
    types = {*map(type, argv), *map(type, environment)}
    if isinstance(environment, Dictionary):
        types.update(map(type, environment.values()))
    return types <= {str, bytes}
