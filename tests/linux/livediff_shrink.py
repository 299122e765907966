"""Makes a program small that shows a difference: fewer operations, fewer processes, fewer pages, simpler arguments.

Knows the language of programs and nothing of machines: `shrink` is given a predicate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from recorded.script import Op

MOST_TRIES = 1500
"""Programs that are tried before the smallest so far has to do."""

_PLAIN: dict[str, Any] = {"off": 0, "foff": 0, "val": 1, "prot": "rw", "kind": "anon", "n": 1, "n2": 1, "misalign": 1}
"""What is simple for an argument."""


def shrink(ops: list[Op], still_differs: Callable[[list[Op]], bool]) -> list[Op]:
    """The smallest program found that *still_differs*, starting from *ops*, which does."""
    tries = 0

    def differs(candidate: list[Op]) -> bool:
        nonlocal tries
        tries += 1
        return tries <= MOST_TRIES and bool(candidate) and still_differs(candidate)

    while True:
        before = ops
        ops = _without_parts(ops, differs)
        for variants in (_fewer_processes, _simpler_operations, _nearer_pages):
            ops = _simplest(ops, variants, differs)
        if ops == before or tries > MOST_TRIES:
            return ops


def _without_parts(ops: list[Op], differs: Callable[[list[Op]], bool]) -> list[Op]:
    """*ops* without every part that is not needed, tried in halves, quarters and so on down to single operations."""
    size = max(1, len(ops) // 2)
    while size:
        start = 0
        while start < len(ops):
            if differs(fewer := ops[:start] + ops[start + size :]):
                ops = fewer
            else:
                start += size
        size //= 2
    return ops


def _simplest(
    ops: list[Op], variants: Callable[[list[Op]], Iterator[list[Op]]], differs: Callable[[list[Op]], bool]
) -> list[Op]:
    """Follow *variants* from *ops* as long as one of them differs as well."""
    tried = [ops]
    while True:
        for variant in variants(ops):
            if variant not in tried:
                tried.append(variant)
                if differs(variant):
                    ops = variant
                    break
        else:
            return ops


def _fewer_processes(ops: list[Op]) -> Iterator[list[Op]]:
    """Programs where a parent does what its child did, or children have lower slots."""
    for index, op in enumerate(ops):
        if "child" in op:
            child, parent = op["child"], op["p"]
            yield ops[:index] + [{**later, "p": parent} if later["p"] == child else later for later in ops[index + 1 :]]
    children = [op["child"] for op in ops if "child" in op]
    names = {old: new for new, old in enumerate(dict.fromkeys([0, *children]))}
    if len(names) == len({0, *children}) and all(op["p"] in names for op in ops):
        renamed = [{**op, "p": names[op["p"]]} for op in ops]
        yield [{**op, "child": names[op["child"]]} if "child" in op else op for op in renamed]


def _simpler_operations(ops: list[Op]) -> Iterator[list[Op]]:
    for index, op in enumerate(ops):
        for simpler in _simpler(op):
            yield [*ops[:index], simpler, *ops[index + 1 :]]


def _simpler(op: Op) -> Iterator[Op]:
    """Ways to ask for less."""
    for key in ("hint", "misalign", "len", "foff_misalign"):
        if op.get(key):
            yield {name: value for name, value in op.items() if name != key}
    if flags := op.get("flags"):
        for flag in flags:
            yield {**op, "flags": [other for other in flags if other != flag]}
    elif flags == [] and op["op"] == "mmap":
        yield {name: value for name, value in op.items() if name != "flags"}
    for key, plain in _PLAIN.items():
        if key in op and op[key] != plain and not (key in ("n", "n2") and op[key] < 2):
            yield {**op, key: plain}
            if key == "n" and "n2" in op:
                yield {**op, "n": plain, "n2": max(1, op["n2"] - op["n"] + 1)}
    if op.get("n", 0) > 2:
        yield {**op, "n": op["n"] // 2}
        yield {**op, "n": op["n"] - 1}
        if "page" in op:
            yield {**op, "page": op["page"] + 1, "n": op["n"] - 1}
    if op["op"] == "sweep":
        for page in range(op["page"], op["page"] + op["n"]):
            yield {"op": "read", "p": op["p"], "page": page, "off": 0}


def _nearer_pages(ops: list[Op]) -> Iterator[list[Op]]:
    """All pages moved down together, by most of what is unused below them first; or what lies above a page, by one."""
    lowest = min((op[key] for op in ops for key in ("page", "to") if key in op), default=0)
    for down in (lowest, lowest - 16, lowest // 512 * 512):
        if down > 0:
            yield _moved(ops, 0, down)
    for start in sorted({op[key] for op in ops for key in ("page", "to") if op.get(key, 0) > lowest}):
        yield _moved(ops, start, 1)


def _moved(ops: list[Op], start: int, down: int) -> list[Op]:
    moved = []
    for op in ops:
        changes = {key: op[key] - down for key in ("page", "to") if key in op and op[key] >= start}
        moved.append({**op, **changes} if all(page >= 0 for page in changes.values()) else op)
    return moved
