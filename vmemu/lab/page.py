"""A result as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vmemu.bombs import KINDS, Fate, Refusal, Result
from vmemu.lab import charts
from vmemu.lab.charts import Axis, reduce
from vmemu.lab.matrix import Matrix
from vmemu.lab.pictures import sharing_map, tree
from vmemu.lab.style import STYLE
from vmemu.lab.tables import size
from vmemu.lab.verdicts import ENDED, ENDED_GENERATIONS, command, counted, short
from vmemu.types import size_word

if TYPE_CHECKING:
    from vmemu.lab.charts import Series

__all__ = ["generations_page", "matrix_page", "result_page"]

_MOOD = {"unharmed": "good", "stalled": "warn", "killed": "bad"}
_MEMORY = (("anon", "anonymous"), ("page_tables", "page tables"), ("file", "page cache"), ("shmem", "shared memory"))
_COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")


def _document(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _tiles(tiles: Iterable[tuple[str, str, str, str]]) -> str:
    """Name, value, mood, and what there is to say."""
    return (
        '<dl class="tiles">'
        + "".join(
            f'<div><dt>{html.escape(name)}</dt><dd class="{mood}">{html.escape(value)}'
            f"<small>{html.escape(more)}</small></dd></div>"
            for name, value, mood, more in tiles
        )
        + "</dl>"
    )


def result_page(result: Result) -> str:
    """The page of one scenario."""
    settings = result.settings
    defences = ", ".join(settings["defences"]) or "no defence"
    title = f"{result.shape} bomb against {defences}"
    swap = f"{size(settings['swap'])} of" if settings["swap"] else "no"
    program = html.escape(settings["program"] or "the built-in program")
    about = f"{size(settings['memory'])} of RAM, {swap} swap, {program}. A tick is one turn of every process, 10 ms."
    return _page(result, title, about, _summary(result), "tick")


def generations_page(result: Result) -> str:
    """The page of a bomb that went generation by generation (see `vmemu.lab.film`)."""
    settings = result.settings
    title = f"Fork bomb of {settings['program']}"
    about = f"{size(settings['memory'])} of RAM, {settings['fork']} fork. Every living process forks once a generation."
    tiles = [
        ("Ended by", result.ended.value, "", ENDED_GENERATIONS[result.ended]),
        ("Processes", f"{result.peak_processes:,}", "", f"in generation {result.peak_tick:,}"),
        ("Forks", f"{result.forks:,}", "", f"{sum(result.refused.values()):,} refused"),
    ]
    return _page(result, title, html.escape(about), _tiles(tiles), "generation")


def _page(result: Result, title: str, about: str, summary: str, unit: str) -> str:
    body = [
        f'<header><h1>{html.escape(title)}</h1><p class="soft">{about}</p>{summary}</header>',
        '<main><h2>As it went</h2><div class="charts">',
    ]
    if len(result.samples):
        body += [part(result, unit) for part in (_processes, _memory, _faults, _kills)]
    body.append("</div><h2>What was shared, and by whom</h2>")
    if result.sharing is not None:
        body.append(sharing_map(result.sharing, unit))
    body.append(tree(result, unit))
    body.append(f"<h2>The same again</h2>{_settings(result)}</main>")
    return _document(title, "\n".join(body))


def _summary(result: Result) -> str:
    fate = result.bystander
    suffered = []
    if fate.first_stall is not None:
        suffered.append(f"first stall in tick {fate.first_stall:,}, stalled in {counted(fate.stalls, 'tick')}")
    if fate.killed_at is not None:
        suffered.append(f"killed in tick {fate.killed_at:,}")
    suffered.append(counted(fate.major_faults, "major fault"))
    contained = result.contained_at
    refused = [f"{count:,} by {why}" for why, count in result.refused.items() if count]
    return _tiles(
        [
            ("Bystander", fate.verdict, _MOOD[fate.verdict], "; ".join(suffered)),
            (
                "Bomb contained",
                "never" if contained is None else f"tick {contained:,}",
                "bad" if contained is None else "good",
                f"ended in tick {result.ticks:,}, {result.ended.value}: {ENDED[result.ended]}",
            ),
            ("Peak processes", f"{result.peak_processes:,}", "", f"in tick {result.peak_tick:,}"),
            (
                "Forks",
                f"{result.forks:,}",
                "",
                f"{sum(result.refused.values()):,} refused" + ": " * bool(refused) + ", ".join(refused),
            ),
            (
                "Killed",
                f"{result.kills:,}",
                "bad" if result.kills else "",
                f"of the bomb; {result.oom_kills:,} of all by the OOM killer",
            ),
        ]
    )


def _processes(result: Result, unit: str) -> str:
    samples = result.samples
    alive, runnable = reduce(samples["processes"], "max"), reduce(samples["runnable"], "max")
    axis = Axis(float(alive.max()))
    shapes = [charts.area(0 * alive, alive, axis, "c0")]
    if unit != "tick":
        return charts.chart("Processes", shapes, axis, result.ticks, [("c0", "alive")], unit=unit)
    shapes.append(charts.line(runnable, axis, "c1"))
    return charts.chart(
        "Processes of the bomb", shapes, axis, result.ticks, [("c0", "alive"), ("c1", "runnable")],
        "The strip is the bystander: green where it did its work, yellow where it stalled, red once it was killed.",
        _strip(result),
    )  # fmt: skip


def _strip(result: Result) -> str:
    """The bystander's ticks."""
    fates = reduce(result.samples["bystander"], "max")
    width = 1000 / len(fates)
    parts = []
    for fate in Fate:
        path = "".join(
            f"M{i * width:.4g} 0h{width + 0.5:.4g}v1h-{width + 0.5:.4g}z" for i, f in enumerate(fates) if f == fate
        )
        if path:
            parts.append(f'<path class="area {fate.name.lower()}" d="{path}"/>')
    return (
        '<svg class="strip" viewBox="0 0 1000 1" preserveAspectRatio="none" role="img" '
        f'aria-label="The bystander: {result.bystander.verdict}">{"".join(parts)}</svg>'
    )


def _stacked(layers: list[tuple[str, str, Series]], axis: Axis, how: Any = charts.area) -> list[str]:
    shapes, base = [], 0 * layers[0][2]
    for colour, _, values in layers:
        shapes.append(how(base, base + values, axis, colour))
        base = base + values
    return shapes


def _memory(result: Result, unit: str) -> str:
    samples, total = result.samples, result.settings["memory"]
    layers = [
        (colour, name, reduce(samples[key]))
        for colour, (key, name) in zip(_COLOURS, _MEMORY, strict=False)
        if samples[key].any()
    ]
    known = sum((samples[key] for key, _ in _MEMORY), start=samples["free"])
    layers.append(("c8", "other", reduce((total - known.astype("i8")).clip(0))))
    swap = result.settings["swap"]
    axis = Axis(float(max(total, swap)), charts.mib, binary=True)
    shapes, items = _stacked(layers, axis), [(colour, name) for colour, name, _ in layers]
    if swap:
        shapes.append(charts.line(reduce(samples["swap_used"]), axis, "c7"))
        items.append(("c7", "swap used"))
    note = f"What is left above is free, of {size(total)}."
    return charts.chart("Memory by kind", shapes, axis, result.ticks, items, note, unit=unit)


def _per_tick(result: Result, name: str) -> Series:
    import numpy as np

    return reduce(np.diff(result.samples[name].astype(np.int64), prepend=0))


def _faults(result: Result, unit: str) -> str:
    import numpy as np

    found = [(kind, _per_tick(result, kind)) for kind in KINDS]
    if len(result.samples) > 1:  # what the first tick shows is how the service and the bomb started
        for _, values in found:
            values[0] = 0
    layers = [
        (_COLOURS[index % len(_COLOURS)], kind, values) for index, (kind, values) in enumerate(found) if values.any()
    ]
    if not layers:
        layers = [("c8", "none", np.zeros(min(len(result.samples), 600)))]
    axis = Axis(float(np.sum([values for _, _, values in layers], axis=0).max()))
    items = [(colour, kind) for colour, kind, _ in layers]
    return charts.chart(
        f"Faults by kind, each {unit}", _stacked(layers, axis, charts.bars), axis, result.ticks, items,
        f"Of the whole machine; those before the first {unit}, when the programs started, are left out.",
        unit=unit,
    )  # fmt: skip


def _kills(result: Result, unit: str) -> str:
    import numpy as np

    layers = [("killed", "killed", _per_tick(result, "kills"))]
    for colour, why in zip(("c3", "c6", "c2", "c1", "c8"), Refusal, strict=True):
        values = _per_tick(result, f"refused_{why.value.replace('.', '_')}")
        if values.any():
            layers.append((colour, f"fork refused: {why.value}", values))
    axis = Axis(float(np.sum([values for _, _, values in layers], axis=0).max()))
    items = [(colour, name) for colour, name, _ in layers]
    return charts.chart(
        f"Kills and refusals, each {unit}", _stacked(layers, axis, charts.bars), axis, result.ticks, items, unit=unit
    )


def _settings(result: Result) -> str:
    rows = []
    for name, value in result.settings.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        if isinstance(value, dict):  # of the machine
            shown = ", ".join(f"{key} {one}" for key, one in value.items() if one is not None and one != {})
        if name in ("memory", "swap", "service"):
            shown += f" bytes, {size(value)}"
        rows.append(
            f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(shown or 'default')}</td></tr>"
        )
    rows.append(f"<tr><th>events</th><td>{len(result.events):,}, with the samples SHA-256 {result.digest}</td></tr>")
    return (
        f"<pre>{html.escape(command(result))}</pre>"
        f'<table class="settings"><tbody>{"".join(rows)}</tbody></table>'
        '<p class="note">The same settings and the same program file give the same events on any machine.</p>'
    )


def matrix_page(matrix: Matrix) -> str:
    """The page of all bombs against all defences."""
    settings = matrix.settings
    names = [html.escape(defence.name).replace("=", "=<wbr>") for defence in matrix.defences]
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for shape in matrix.shapes:
        results = [matrix.results.get((shape, defence.name)) for defence in matrix.defences]
        most = max((result.peak_processes for result in results if result), default=1)
        cells = "".join(_cell(result, most) for result in results)
        rows.append(f"<tr><th>{html.escape(shape)}</th>{cells}</tr>")
    survived = sum(result.bystander.verdict == "unharmed" for result in matrix.results.values())
    contained = sum(result.contained_at is not None for result in matrix.results.values())
    runs = len(matrix.results)
    about = f"{size(settings['memory'])} of RAM, {settings['ticks']:,} ticks of 10 ms, the built-in program."
    table = f'<table class="matrix"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    note = (
        "@: in that tick. held: the bomb is dead, or as large as it gets, and nobody else is hurt any more. "
        "The little pictures show the processes of the bomb over its run, a row to one scale."
    )
    stands = "".join(
        f"<tr><th>{html.escape(one.name)}</th><td>{html.escape(', '.join(one.defences.words) or 'nothing')}</td></tr>"
        for one in matrix.defences
    )
    body = [
        "<header><h1>Fork bombs against defences: who survives</h1>",
        f'<p class="soft">{about}</p>',
        _tiles(
            [
                ("Runs", f"{runs}", "", "interrupted" if matrix.interrupted else "each shape against each defence"),
                ("Bystander unharmed", f"{survived}", "good", f"of {runs}"),
                ("Bomb contained", f"{contained}", "good", f"of {runs}"),
            ]
        ),
        "</header><main><h2>The bystander, and below it the bomb</h2>",
        f'<div class="scroll">{table}</div><p class="note">{note}</p>',
        f"<h2>The same again</h2><pre>{html.escape(_matrix_command(settings))}</pre>",
        f'<table class="settings"><tbody>{stands}</tbody></table></main>',
    ]
    return _document("Fork bombs against defences", "\n".join(body))


def _matrix_command(settings: dict[str, Any]) -> str:
    words = ["vmemu bomb --matrix", f"--memory {size_word(settings['memory'])}"]
    words += [f"--{name} {settings[name]}" for name in ("ticks", "dirty", "seed")]
    for name in ("fork", "generations", "max_processes"):
        if settings.get(name) is not None:
            words.append(f"--{name.replace('_', '-')} {str(settings[name]).replace('_', '-')}")
    return " ".join(words)


def _cell(result: Result | None, most: int) -> str:
    if result is None:
        return "<td>not run</td>"
    fate, bomb, peak = short(result)
    picture = charts.mini(reduce(result.samples["processes"], "max"), most, "") if len(result.samples) else ""
    return f'<td class="{_MOOD[result.bystander.verdict]}"><b>{fate}</b><small>{bomb}<br>{peak}</small>{picture}</td>'
