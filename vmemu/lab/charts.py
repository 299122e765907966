"""Pictures for a page: areas, lines and bars over time, as SVG that stretches, with labels in HTML that do not.

Colours are classes (c0 to c9, and those by meaning); the page's style says what they look like in light and dark.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Series = NDArray[np.float64]

__all__ = ["Axis", "area", "bars", "chart", "count", "legend", "line", "mib", "mini", "reduce"]

_SIDE = 1000
"""Units of a picture in either direction."""
_MOST_POINTS = 600


def count(value: float) -> str:
    """A number for an axis: ``"1.2k"``."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def mib(value: float) -> str:
    """Bytes for an axis: ``"12 MiB"``."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if abs(value) >= 1 << shift:
            return f"{value / (1 << shift):.3g} {unit}"
    return f"{value:.3g} B"


class Axis:
    """From nothing to at least *most*, with a handful of round marks; *binary* for bytes."""

    def __init__(self, most: float, show: Callable[[float], str] = count, binary: bool = False) -> None:
        self.show = show
        most = max(most, 1.0)
        unit = 1024.0 ** int(math.log(most, 1024)) if binary else 10.0 ** int(math.log10(most))
        steps = (
            (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if binary else (0.1, 0.2, 0.5, 1, 2, 5)
        )
        self.step = next((unit * step for step in steps if most / (unit * step) <= 4.5), most)
        if not binary:
            self.step = max(self.step, 1.0)
        self.top = self.step * math.ceil(most / self.step - 1e-9)

    def marks(self) -> list[float]:
        """Where its lines are."""
        return [self.step * i for i in range(round(self.top / self.step) + 1)]

    def y(self, value: float) -> float:
        """Where a value is, from the top."""
        return _SIDE * (1 - value / self.top)


def reduce(values: Any, how: str = "mean") -> Series:
    """At most 600 points: of neighbours the mean or the max."""
    import numpy as np

    series: Series = np.asarray(values, np.float64)
    if len(series) <= _MOST_POINTS:
        return series
    width = math.ceil(len(series) / _MOST_POINTS)
    padded = np.concatenate([series, np.full(-len(series) % width, series[-1])]).reshape(-1, width)
    reduced: Series = padded.max(axis=1) if how == "max" else padded.mean(axis=1)
    return reduced


def _xs(n: int) -> list[float]:
    return [_SIDE * i / max(n - 1, 1) for i in range(n)]


def _points(xs: Sequence[float], ys: Sequence[float]) -> str:
    return " ".join(f"{x:.4g},{y:.4g}" for x, y in zip(xs, ys, strict=True))


def _twice(values: Series) -> Series:
    """One point is no line."""
    import numpy as np

    return np.repeat(values, 2) if len(values) == 1 else values


def line(values: Series, axis: Axis, colour: str) -> str:
    """A line."""
    values = _twice(values)
    ys = [axis.y(float(value)) for value in values]
    return f'<polyline class="line {colour}" points="{_points(_xs(len(ys)), ys)}"/>'


def area(lower: Series, upper: Series, axis: Axis, colour: str) -> str:
    """What is between two lines."""
    lower, upper = _twice(lower), _twice(upper)
    xs = _xs(len(upper))
    ys = [axis.y(float(value)) for value in upper] + [axis.y(float(value)) for value in lower[::-1]]
    return f'<polygon class="area {colour}" points="{_points(xs + xs[::-1], ys)}"/>'


def bars(lower: Series, upper: Series, axis: Axis, colour: str) -> str:
    """A bar for each point, one path for all."""
    n = len(upper)
    width = _SIDE / max(n, 1)
    parts = []
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        if high > low:
            top, bottom = axis.y(float(high)), axis.y(float(low))
            parts.append(f"M{i * width:.4g} {bottom:.4g}V{top:.4g}h{width:.4g}V{bottom:.4g}z")
    return f'<path class="area {colour}" d="{"".join(parts)}"/>'


def legend(items: Sequence[tuple[str, str]]) -> str:
    """Colour and name of each."""
    keys = "".join(f'<li><i class="key {colour}"></i>{html.escape(name)}</li>' for colour, name in items)
    return f'<ul class="legend">{keys}</ul>'


def chart(
    title: str,
    shapes: Sequence[str],
    axis: Axis,
    ticks: int,
    items: Sequence[tuple[str, str]],
    note: str = "",
    strip: str = "",
    unit: str = "tick",
) -> str:
    """A figure: *shapes* over ticks 1 to *ticks*, each called a *unit*, with marks, a legend and a *note*; *strip* is
    shown below."""
    grid = "".join(
        f'<line class="grid" x1="0" x2="{_SIDE}" y1="{axis.y(v):.4g}" y2="{axis.y(v):.4g}"/>' for v in axis.marks()
    )
    labels = "".join(
        f'<span style="top:{axis.y(v) / _SIDE * 100:.4g}%">{html.escape(axis.show(v))}</span>' for v in axis.marks()
    )
    return (
        f"<figure><figcaption><h3>{html.escape(title)}</h3>{legend(items)}</figcaption>"
        f'<div class="plot"><div class="y" aria-hidden="true">{labels}</div>'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" role="img" aria-label="{html.escape(title)}">'
        f"{grid}{''.join(shapes)}</svg></div>{strip}{_ticks(ticks, unit)}"
        + (f'<p class="note">{html.escape(note)}</p>' if note else "")
        + "</figure>"
    )


def _ticks(ticks: int, unit: str) -> str:
    """Labels below a picture."""
    if ticks < 2:
        return '<div class="x"><span style="left:0">' + unit + " 1</span></div>"
    step = Axis(ticks).step
    marks = [step * i for i in range(1, int(ticks / step) + 1) if step * i < ticks * (0.8 if len(unit) < 5 else 0.7)]
    spans = "".join(f'<span style="left:{(mark - 1) / (ticks - 1) * 100:.4g}%">{count(mark)}</span>' for mark in marks)
    return f'<div class="x" aria-hidden="true">{spans}<span class="last">{unit} {ticks:,}</span></div>'


def mini(values: Series, most: float, colour: str) -> str:
    """A small picture without any label."""
    import numpy as np

    axis = Axis(1)
    axis.top = max(most, 1.0)
    return (
        f'<svg class="mini" viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" aria-hidden="true">'
        f"{area(np.zeros(len(values)), values, axis, colour)}</svg>"
    )
