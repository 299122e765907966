"""What execve keeps of what it did, so that a request made again costs little.

A plan holds while the host's files are as they were (`loader.Seen`); for other strings only its stack is made anew.
What it came to in the core, a pattern, holds while the page caches of its files live. Nothing is kept with
randomisation, nor of files just changed, and nothing kept holds a page cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from collections.abc import Mapping as Dictionary
from typing import Any, NamedTuple

from vmemu import loader
from vmemu._native import Pattern
from vmemu.files import Inode
from vmemu.kernel import Image
from vmemu.loader import ExecPlan, Seen
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

    __slots__ = ("image", "made", "plan", "seen")

    def __init__(self, plan: ExecPlan, seen: Seen, made: Made | None = None) -> None:
        self.plan, self.seen, self.made = plan, seen, made
        self.image = Image(
            path=plan.path,
            exec_fn=plan.exec_fn,
            argv=plan.argv,
            envp=plan.envp,
            auxv=plan.auxv,
            stack_pointer=plan.stack_pointer,
            entry_point=plan.entry_point,
        )


class Request(NamedTuple):
    """What a plan depends on besides the host's files, as keys of what is kept."""

    whole: Hashable
    """With the strings."""
    place: Hashable
    """Without."""


def request_of(argv: Arguments, environment: Environment, *others: Hashable) -> Request | None:
    """*others* are all else that a plan depends on. None if the strings can't be compared."""
    strings: object = environment
    if type(environment) is dict or isinstance(environment, Dictionary):
        strings = tuple(environment.items())
    elif type(environment) is not tuple:
        return None
    request = Request((others, argv, strings), others)
    try:
        hash(request)
    except TypeError:
        return None
    return request


def find(plans: dict[Any, Any], request: Request, argv: Arguments, environment: Environment) -> Kept | None:
    """What is kept for a request, if it still holds. Raises SyscallError for strings as execve(2) does."""
    kept: Kept | None = plans.get(request.whole)
    if kept is not None:
        return kept if kept.seen.unchanged() else None
    like: Kept | None = plans.get(request.place)
    if like is None or not like.seen.unchanged():
        return None
    plan = loader.with_strings(like.plan, argv, environment)
    return None if plan is None else Kept(plan, like.seen, _with_stack(like, plan))


def _with_stack(like: Kept, plan: ExecPlan) -> Made | None:
    """What was made, with the stack of a plan that differs in nothing else."""
    made, stack = like.made, plan.segments[0]
    if made is None:
        return None
    return made._replace(
        pattern=made.pattern.with_last(stack.start, stack.end, plan.words, (plan.stack_data_address, plan.stack_data)),
        charged=max(made.charged, stack.size // PAGE_SIZE),
    )


def keep(plans: dict[Any, Any], request: Request, kept: Kept, argv: Arguments, environment: Environment) -> None:
    """Keeps what has just been found to hold, unless it is large; what was not used for long goes."""
    known = plans.pop(request.whole, None) is kept
    if not known and (len(kept.plan.stack_data) > STACK_MAX or not _comparable(argv, environment)):
        return
    plans[request.whole] = kept
    if not known:
        plans.pop(request.place, None)
        plans[request.place] = kept
        while len(plans) > PLANS_MAX:
            del plans[next(iter(plans))]


def _comparable(argv: Arguments, environment: Environment) -> bool:
    """The strings are nothing but strings, which are equal when they are the same."""
    pairs = environment.items() if isinstance(environment, Dictionary) else (environment,)
    return all(type(text) in (str, bytes) for texts in (argv, *pairs) for text in texts)
