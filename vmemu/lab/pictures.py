"""Two pictures of a bomb: which frames are shared by how many, and who forked whom."""

from __future__ import annotations

import html
import itertools
import math
from typing import TYPE_CHECKING, Any

from vmemu.bombs import Event, Result, Sharing
from vmemu.lab.charts import legend
from vmemu.types import PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["generations", "sharing_map", "tree"]

_PGTABLE, _BUDDY = 1 << 26, 1 << 10
"""Bits of /proc/kpageflags."""
_COLUMNS = 256
_MOST_CELLS = 16384
_BOUNDS = (1, 2, 3, 9, 65, 513)
_CLASSES = (
    ("free", "free"),
    ("other", "pages that nobody maps"),
    ("table", "page tables"),
    ("s1", "1 process"),
    ("s2", "2"),
    ("s3", "3 to 8"),
    ("s4", "9 to 64"),
    ("s5", "65 to 512"),
    ("s6", "more"),
)
_MOST_LINES = 160
_FIRST_LINES = 100
"""Of them for the first that were born; the others are for the first that ended, and their ancestors."""


def _classes(sharing: Sharing) -> NDArray[np.int64]:
    """For each frame the index of its class."""
    import numpy as np

    classes: NDArray[np.int64] = np.searchsorted(_BOUNDS, sharing.mapcounts, side="right") + 2
    classes[sharing.mapcounts == 0] = 1
    classes[sharing.flags & np.uint64(_PGTABLE) != 0] = 2
    classes[sharing.flags & np.uint64(_BUDDY) != 0] = 0
    return classes


def sharing_map(sharing: Sharing, unit: str = "tick") -> str:
    """All frames by number, a cell for each, or for some in a row: the most shared of them."""
    import numpy as np

    classes = _classes(sharing)
    each = max(1, math.ceil(len(classes) / _MOST_CELLS))
    cells = np.concatenate([classes, np.zeros(-len(classes) % each, np.int64)]).reshape(-1, each).max(axis=1)
    columns = min(_COLUMNS, max(16, 1 << math.ceil(math.log2(max(len(cells), 1)) / 2 + 1)))
    rows = math.ceil(len(cells) / columns)
    paths = []
    for index, (colour, name) in enumerate(_CLASSES):
        runs = _runs(cells == index, columns)
        if runs:
            cells_path = "".join(f"M{x} {y}h{n}v1h-{n}z" for x, y, n in runs)
            paths.append(f'<path class="{colour}" d="{cells_path}"><title>{html.escape(name)}</title></path>')
    counts = np.bincount(classes, minlength=len(_CLASSES))
    table = "".join(
        f'<tr><td><i class="key {colour}"></i>{html.escape(name)}</td><td class="n">{int(n):,}</td>'
        f'<td class="n">{int(n) * PAGE_SIZE / 1048576:.1f} MiB</td></tr>'
        for (colour, name), n in zip(_CLASSES, counts, strict=True)
        if n
    )
    what = "a frame of 4 KiB" if each == 1 else f"{each} frames of 4 KiB, of which it shows the most shared"
    return (
        f'<figure class="wide"><figcaption><h3>Which frames are shared by how many</h3>{legend(_CLASSES)}</figcaption>'
        f'<svg class="map" viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" shape-rendering="crispEdges" '
        f'role="img" aria-label="Map of all frames by number of processes that map them">{"".join(paths)}</svg>'
        f'<p class="note">All of RAM, row by row from frame 0; a cell is {what}. As it was in {unit} {sharing.tick:,}, '
        f"with {sharing.processes:,} processes of the bomb.</p>"
        f'<div class="scroll"><table><thead><tr><th>mapped by</th><th class="n">frames</th><th class="n">memory</th>'
        f"</tr></thead><tbody>{table}</tbody></table></div></figure>"
    )


def _runs(cells: NDArray[np.bool_], columns: int) -> list[tuple[int, int, int]]:
    """Cells in a row that are set: x, y and how many."""
    import numpy as np

    rows = math.ceil(len(cells) / columns)
    flat = np.zeros(rows * columns, np.int8)
    flat[: len(cells)] = cells
    padded = np.pad(flat.reshape(rows, columns), ((0, 0), (1, 1)))
    ys, starts = np.nonzero(np.diff(padded, axis=1) == 1)
    _, ends = np.nonzero(np.diff(padded, axis=1) == -1)
    return [(int(x), int(y), int(end - x)) for y, x, end in zip(ys, starts, ends, strict=True)]


def generations(result: Result) -> list[list[int]]:
    """For each generation: its number, processes, those that exited, were killed, live."""
    import numpy as np

    depth = np.zeros(len(result.tree), np.int64)
    for i, parent in enumerate(result.tree["parent"].tolist()):
        depth[i] = 0 if parent < 0 else depth[parent] + 1
    fates = result.tree["fate"]
    table = []
    for number in range(int(depth.max(initial=-1)) + 1):
        here = fates[depth == number]
        table.append([number, len(here), *(int((here == fate).sum()) for fate in _FATES)])
    return table


_FATES = (Event.EXIT, Event.KILLED, Event.FORK)
_COLOURS = {Event.EXIT: "c8", Event.KILLED: "killed", Event.FORK: "c0"}


def tree(result: Result, unit: str = "tick") -> str:
    """A line for each of the first processes, from its birth to its death, children below their parents."""
    nodes = result.tree
    chosen = _chosen(result)
    shown = len(chosen)
    order = _depth_first(chosen, nodes["parent"].tolist())
    at = {index: y for y, index in enumerate(order)}
    ticks = max(result.ticks, 1)
    if shown < len(nodes):  # only as far as something happens to those
        ticks = max(int(nodes["born"][chosen].max()) + 1, min(ticks, int(nodes["died"][chosen].max()) + 1), 1)

    def x(tick: int) -> float:
        return 1000 * min(tick, ticks) / ticks

    forks, lives = [], []
    for index in order:
        node, y = nodes[index], at[index] + 0.5
        born = x(int(node["born"]))
        died = x(int(node["died"]) if node["died"] >= 0 else ticks)
        parent = int(node["parent"])
        if parent >= 0:
            forks.append(f'<line class="fork" x1="{born:.4g}" x2="{born:.4g}" y1="{at[parent] + 0.5}" y2="{y}"/>')
        fate = Event(int(node["fate"]))
        until = f", {fate.name.lower()} in {unit} {node['died']}" if node["died"] >= 0 else ""
        lives.append(
            f'<line class="{_COLOURS[fate]}" x1="{born:.4g}" x2="{max(died, born + 2):.4g}" y1="{y}" y2="{y}">'
            f"<title>pid {node['pid']}: born in {unit} {node['born']}{until}</title></line>"
        )
    rows = "".join(
        "<tr>" + "".join(f'<td class="n">{value:,}</td>' for value in row) + "</tr>" for row in generations(result)[:40]
    )
    some = "All processes of the bomb"
    if shown < len(nodes):
        first = next((i for i, index in enumerate(chosen) if i != index), shown)
        some = f"{shown:,} of {len(nodes):,} processes of the bomb: the first {first:,}"
        if first < shown:
            some += ", and of the later ones the first that were killed or exited, with their ancestors"
    return (
        '<figure class="wide"><figcaption><h3>Who forked whom</h3>'
        + legend([("c0", "alive"), ("c8", "exited"), ("killed", "killed")])
        + f'</figcaption><svg class="tree" style="height:{max(shown * 4, 24)}px" viewBox="0 0 1000 {max(shown, 1)}" '
        f'preserveAspectRatio="none" role="img" aria-label="Tree of processes over time">{"".join(forks + lives)}</svg>'
        '<div class="x" style="margin-left:0"><span style="left:0;transform:none">start</span>'
        f'<span class="last">{unit} {ticks:,}</span></div>'
        f'<p class="note">{some}. Each is a line from its birth to its death, children below their parent.</p>'
        '<details><summary>By generation</summary><div class="scroll"><table><thead><tr><th class="n">generation</th>'
        '<th class="n">processes</th><th class="n">exited</th><th class="n">killed</th><th class="n">alive</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div></details></figure>"
    )


def _chosen(result: Result) -> list[int]:
    """Indices of the processes to show, in order of birth: some of the first, then in order of their deaths as many of
    those that were killed and those that exited in turn, each with its ancestors, and more of the first if there is
    room."""
    import numpy as np

    nodes = result.tree
    if len(nodes) <= _MOST_LINES:
        return list(range(len(nodes)))
    parents = nodes["parent"].tolist()
    chosen = set(range(_FIRST_LINES))
    by_death = np.argsort(nodes["died"], kind="stable")
    ended = [[int(i) for i in by_death if nodes["fate"][i] == fate] for fate in (Event.KILLED, Event.EXIT)]
    for index in (index for pair in itertools.zip_longest(*ended) for index in pair if index is not None):
        line = set()
        while index >= 0 and index not in chosen:
            line.add(index)
            index = parents[index]
        if len(chosen) + len(line) <= _MOST_LINES:
            chosen |= line
        if len(chosen) == _MOST_LINES:
            break
    chosen.update(itertools.islice((i for i in range(len(nodes)) if i not in chosen), _MOST_LINES - len(chosen)))
    return sorted(chosen)


def _depth_first(chosen: list[int], parents: list[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for index in chosen:
        children.setdefault(parents[index], []).append(index)
    order: list[int] = []
    stack: list[Any] = list(reversed(children.get(-1, [])))
    while stack:
        index = stack.pop()
        order.append(index)
        stack += reversed(children.get(index, []))
    return order
