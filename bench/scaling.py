"""`python -m bench --scaling`: how cost grows with size, vmemu beside the kernel, as one picture."""

from __future__ import annotations

import gc
import io
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from bench.measure import pinned
from bench.native import BENCH, kernel
from bench.rows.common import GIB, MIB, PAGE, PRIVATE, RW, clock, cpu_clock, reap, resident
from vmemu import ForkMode, Machine, Process

__all__ = ["PICTURE", "SIZES", "main", "measure"]

PICTURE = BENCH / "scaling.png"
SIZES = [64 << 10 << shift for shift in range(0, 15, 2)]
"""Bytes, from 64 KiB to 1 GiB."""
TRIES = 5
WARM_UP = 3
"""Rounds until frames are recycled and not taken from the host."""
PROGRAM = "/bin/sh"

Curves = dict[str, dict[str, list[float]]]
"""Panel -> curve -> nanoseconds by size."""

PANELS = {
    "fork": ("fork()", "resident"),
    "exit": ("exit of the child, wait", "resident"),
    "copy": ("copy-on-write fault, a page", "written in one go"),
    "zero": ("demand-zero fault, a page", "written in one go"),
    "mmap": ("mmap; munmap of what is resident", "mapped"),
    "exec": ("fork + exec of /bin/sh + exit + wait", "resident in the parent"),
}


def _median(tries: int, once: Callable[[], float]) -> float:
    return statistics.median(once() for _ in range(tries))


def _kernel_side(size: int, tries: int) -> dict[tuple[str, str], float]:
    runs = [
        kernel("forks", size)
        | kernel("cow", size)
        | kernel("zero", size)
        | kernel("unmap", size)
        | kernel("forkexec", PROGRAM, size)
        for _ in range(tries)
    ]
    found = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {
        ("fork", "kernel"): found["fork"],
        ("exit", "kernel"): found["exit"],
        ("copy", "kernel"): found["cow"],
        ("zero", "kernel"): found["zero"],
        ("mmap", "kernel: mmap"): found["map"],
        ("mmap", "kernel: munmap"): found["unmap"],
        ("exec", "kernel"): found["forkexec"],
    }


def _forks(parent: Process, address: int, size: int, mode: ForkMode) -> tuple[float, float, float]:
    """Nanoseconds of fork; of exit and wait; of a fault of the child."""
    start = cpu_clock()
    child = parent.fork(mode=mode)
    forked = cpu_clock() - start
    start = clock()
    reap(parent, child)
    ended = clock() - start
    child = parent.fork(mode=mode)
    start = cpu_clock()
    child.touch(address, size, write=True)
    written = cpu_clock() - start
    reap(parent, child)
    return forked, ended, written / (size // PAGE)


def _vmemu_side(size: int, tries: int) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    with Machine(memory=4 * size + 64 * MIB) as m:
        parent = m.spawn()
        address = resident(parent, size)
        for mode in (ForkMode.COW, ForkMode.ON_DEMAND):
            for _ in range(WARM_UP):
                _forks(parent, address, size, mode)
            times = zip(*(_forks(parent, address, size, mode) for _ in range(tries)), strict=True)
            for panel, values in zip(("fork", "exit", "copy"), times, strict=True):
                found[panel, f"vmemu, {mode.name}"] = statistics.median(values)
        mapped, filled, unmapped = [], [], []
        for _ in range(tries + WARM_UP):
            a = cpu_clock()
            where = parent.mmap(None, size, RW, PRIVATE)
            b = cpu_clock()
            parent.touch(where, size, write=True)
            c = cpu_clock()
            parent.munmap(where, size)
            d = cpu_clock()
            mapped.append(b - a)
            filled.append((c - b) / (size // PAGE))
            unmapped.append(d - c)
        found["mmap", "vmemu: mmap"] = statistics.median(mapped[WARM_UP:])
        found["mmap", "vmemu: munmap"] = statistics.median(unmapped[WARM_UP:])
        found["zero", "vmemu"] = statistics.median(filled[WARM_UP:])

        m.spawn(PROGRAM, ["sh"], {"PATH": "/bin"}, link=True)  # keeps the files in the page cache

        def cycle(mode: ForkMode) -> float:
            start = clock()
            child = parent.fork(mode=mode)
            child.execve(PROGRAM, ["sh", "-c", ":"], {"PATH": "/bin"}, link=True)
            reap(parent, child)
            return clock() - start

        for mode in (ForkMode.COW, ForkMode.ON_DEMAND):
            cycle(mode)
            found["exec", f"vmemu, {mode.name}"] = _median(tries, lambda mode=mode: cycle(mode))  # type: ignore[misc]
        m.verify()
    return found


def measure(sizes: list[int], tries: int, progress: Callable[[str], None]) -> Curves:
    """All panels' curves; the kernel and vmemu take turns, size by size."""
    curves: Curves = {panel: {} for panel in PANELS}
    with pinned(every_cpu=False):
        for size in sizes:
            for side in (_kernel_side, _vmemu_side):
                progress(f"{size >> 10} KiB: {side.__name__.strip('_').replace('_', ' ')}")
                gc.collect()
                for (panel, curve), value in side(size, tries).items():
                    curves[panel].setdefault(curve, []).append(value)
    return curves


def _style(curve: str) -> dict[str, str]:
    if curve.startswith("kernel"):
        return {"color": "#c8501e", "marker": "s", "linestyle": "--" if curve.endswith("munmap") else "-"}
    if curve.endswith(("ON_DEMAND", ": mmap")):
        return {"color": "#1b8a5a", "marker": "^", "linestyle": "-"}
    return {"color": "#1f5fbf", "marker": "o", "linestyle": "--" if curve.endswith("munmap") else "-"}


def _words(value: float, _: object) -> str:
    for limit, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if value >= limit:
            return f"{value / limit:g} {unit}"
    return f"{value:g} ns"


def _bytes(value: float, _: object) -> str:
    for limit, unit in ((GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if value >= limit:
            return f"{value / limit:g} {unit}"
    return f"{value:g} B"


def draw(sizes: list[int], curves: Curves, path: Path) -> None:
    """The picture; on a white ground of its own, so that it can be read on a dark page too."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(2, 3, figsize=(13, 7.2), facecolor="white", layout="constrained")
        for axis, (panel, (title, of)) in zip(axes.flat, PANELS.items(), strict=True):
            for curve, values in curves[panel].items():
                axis.plot(sizes, values, label=curve, markersize=5, linewidth=1.6, **_style(curve))
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(sizes[::2])
            axis.xaxis.set_major_formatter(_bytes)
            axis.yaxis.set_major_formatter(_words)
            low, high = axis.get_ylim()
            axis.set_ylim(low / 2 if panel not in ("copy", "zero") else min(low, 50), high * 2)
            axis.minorticks_off()
            axis.set_title(title, loc="left", fontweight="bold")
            axis.set_xlabel(of)
            axis.grid(True, which="major", alpha=0.3)
            axis.legend(frameon=False, fontsize=9)
        figure.suptitle("What it costs by size: vmemu from Python beside the Linux kernel, one CPU, pages of 4 KiB")
        if path.suffix == ".png":  # few colours, so few that a palette holds them: a third of the size
            from PIL import Image

            image = io.BytesIO()
            figure.savefig(image, dpi=100, format="png")
            Image.open(image).convert("RGB").quantize(64).save(path, optimize=True)
        else:
            figure.savefig(path)
        pyplot.close(figure)


def main(path: Path, quick: bool = False) -> int:
    """Measures and draws; 2 without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("bench: --scaling needs matplotlib: pip install -e '.[plot]'", file=sys.stderr)
        return 2
    sizes, tries = (SIZES[::3], 1) if quick else (SIZES, TRIES)
    curves = measure(sizes, tries, lambda text: print(text, file=sys.stderr))
    draw(sizes, curves, path)
    print(f"bench: {path.name} is drawn")
    return 0
