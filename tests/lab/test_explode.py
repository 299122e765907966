"""Bombs from the command's side: the matrix, the tables, the live view, the page."""

from __future__ import annotations

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vmemu import Machine
from vmemu.bombs import SHAPES, Ended, Event, Result, Sample, classic
from vmemu.lab import bomb, charts, explode, matrix, pictures
from vmemu.lab.film import Film
from vmemu.lab.live import LiveView, bar, sparkline
from vmemu.lab.page import generations_page, matrix_page, result_page
from vmemu.lab.verdicts import command, print_matrix, print_result


def run(shape: str = "classic", memory: str = "16MiB", **settings: Any) -> Result:
    return explode.run(explode.boot(memory), shape, **settings)


@pytest.fixture(scope="module")
def result() -> Result:
    return run(sharing=True, defences=["protect"])


@pytest.fixture(scope="module")
def table() -> matrix.Matrix:
    return matrix.run(memory="8MiB", ticks=30)


# ---- runs ----


def test_each_tick_is_shown_and_the_end_too() -> None:
    shown: list[Sample] = []
    seen: list[int] = []
    result = run(
        "linear",
        ticks=9,
        progress=lambda _, sample: shown.append(sample),
        at_end=lambda machine: seen.append(len(machine.processes)),
    )
    assert [sample.tick for sample in shown] == list(range(1, 10))
    assert seen == [result.peak_processes + 2]


def test_stop() -> None:
    asked: list[int] = []
    result = run("exponential", progress=lambda _, sample: asked.append(sample.tick), stop=lambda: len(asked) > 2)
    assert (result.ended, result.ticks) == (Ended.INTERRUPTED, 4)


def test_the_machine_is_closed_whatever_happens() -> None:
    machine = explode.boot("16MiB")
    with pytest.raises(ValueError, match="petard"):
        explode.run(machine, "petard")
    assert "closed" in repr(machine)


# ---- the matrix ----


def test_all_against_all(table: matrix.Matrix) -> None:
    names = [defence.name for defence in table.defences]
    assert names[0] == "none"
    assert names[-1] == "all"
    assert "memory.max=2MiB" in names
    assert set(table.results) == {(shape, name) for shape in SHAPES for name in names}
    assert not table.interrupted
    assert table.results["exponential", "none"].bystander.verdict == "killed"
    assert table.results["exponential", "protect"].bystander.verdict != "killed"
    assert table.results["exponential", "all"].bystander.verdict == "unharmed"


def test_several_jobs_change_nothing() -> None:
    one, two = (
        matrix.run(memory="8MiB", ticks=10, shapes=["linear", "classic"], jobs=jobs, seed=5).to_json()
        for jobs in (1, 2)
    )
    assert one == two


def test_matrix_stops() -> None:
    done: list[int] = []
    found = matrix.run(memory="8MiB", ticks=5, progress=lambda n, _: done.append(n), stop=lambda: len(done) >= 3)
    assert found.interrupted
    assert len(found.results) == 3
    assert "-" in printed(print_matrix, found)
    assert "not run" in matrix_page(found)


def test_matrix_as_json(table: matrix.Matrix) -> None:
    out = json.loads(json.dumps(table.to_json()))
    assert len(out["results"]) == len(SHAPES) * len(table.defences)
    first = out["results"][0]
    assert {"shape", "defence", "ended", "bystander", "peak_processes", "refused", "contained_at", "digest"} <= set(
        first
    )


# ---- text ----


def printed(function: Any, what: Any) -> str:
    out = io.StringIO()
    function(what, out)
    return out.getvalue()


def test_result_as_text(result: Result) -> None:
    text = printed(print_result, result)
    for word in ("classic bomb against protect", "bystander", "peak processes", "killed", "cow_copy", "least free"):
        assert word in text
    assert command(result) in text.replace("\n", " ")


def test_command_is_the_settings() -> None:
    result = run("touch", defences=["nproc=7", "protect"], ticks=60, seed=3, dirty=2, generations=9, max_processes=99)
    assert command(result) == (
        "vmemu bomb --bomb touch --defence nproc=7 --defence protect --memory 16MiB --ticks 60 --dirty 2 --seed 3 "
        "--max-processes 99 --generations 9 --built-in"
    )


def test_matrix_as_text(table: matrix.Matrix) -> None:
    text = printed(print_matrix, table)
    for word in (*SHAPES, "nproc=100", "watcher", "unharmed", "killed @", "held @"):
        assert word in text


# ---- the live view ----


def test_live_view_has_what_it_promises() -> None:
    with Machine(memory="16MiB") as machine:
        view = LiveView("classic", 1000, machine)
        view.swap = 1 << 20
        view.processes.extend([1, 2, 4, 8])
        *_, last = classic(machine, ticks=3, defences=["nproc=2"])
        out = io.StringIO()
        Console(file=out, width=100).print(view.picture(last))
    for word in ("processes", "free of", "used of", "faults/s", "killed", "1 refused: 1 by nproc", "fine", "▁▂▄█"):
        assert word in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 100


def test_small_pictures() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
    assert sparkline([]) == ""
    assert tuple(map(len, bar(0.5, 10))) == tuple(map(len, bar(0.51, 10))) == (5, 5)
    assert tuple(map(len, bar(7, 10))) == (10, 0)


# ---- the page ----


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found for name, found in self.tags if name == tag and all(found.get(k) == v for k, v in attributes.items())
        ]


def alone(text: str) -> None:
    """It loads nothing."""
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<img|\ssrc=|\shref=", text)
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text


def test_page_of_a_result(result: Result) -> None:
    text = result_page(result)
    alone(text)
    page = Page(text)
    titles = ("Processes of the bomb", "Memory by kind", "Faults by kind, each tick", "Kills and refusals, each tick")
    for title in (*titles, "Which frames are shared by how many", "Who forked whom", "The same again"):
        assert title in page.text
    assert len(page.having("svg")) == 4 + 1 + 1 + 1  # four charts, the bystander's strip, the map, the tree
    assert command(result) in page.text
    assert result.digest in page.text
    assert f"{result.kills:,}" in page.text
    assert len(page.having("line", **{"class": "killed"})) + len(page.having("line", **{"class": "c8"})) > 50


def test_page_shows_what_was_counted(result: Result) -> None:
    """The table of the sharing map adds up to all frames."""
    assert result.sharing is not None
    page = result_page(result)
    section = page[page.index("mapped by</th>") : page.index("Who forked whom")]
    counts = [int(n.replace(",", "")) for n in re.findall(r'<td class="n">([\d,]+)</td>', section)]
    assert sum(counts) == len(result.sharing.mapcounts) == (16 << 20) // 4096
    assert (result.sharing.mapcounts > 512).sum() in [0, *counts]


def test_page_is_deterministic(result: Result) -> None:
    assert result_page(result) == result_page(run(sharing=True, defences=["protect"]))


def test_pages_of_odd_results() -> None:
    """Nothing ran; one tick; nothing was shared; a chain, whose tree is deep."""
    for settings in (
        {"defences": ["memory.max=64KiB"]},
        {"ticks": 1},
        {"generations": 0},
        {"shape": "chain", "ticks": 700},
        {"shape": "linear", "ticks": 1000, "memory": "64MiB"},
    ):
        text = result_page(run(**{"sharing": True, **settings}))
        alone(text)
        Page(text)


def test_names_are_escaped(tmp_path: Path) -> None:
    program = tmp_path / "<b>&sh"
    shutil.copy("/bin/sh", program)
    text = result_page(run(program=str(program), ticks=2, memory="64MiB"))
    assert "<b>&sh" not in text
    assert "&lt;b&gt;&amp;sh" in text


def test_page_of_a_matrix(table: matrix.Matrix) -> None:
    text = matrix_page(table)
    alone(text)
    page = Page(text)
    cells = [found["class"] for found in page.having("td") if found.get("class") in ("good", "warn", "bad")]
    assert len(cells) == len(table.results)
    assert cells.count("bad") == sum(result.bystander.verdict == "killed" for result in table.results.values()) > 0


@pytest.mark.parametrize(("most", "top"), [(0, 1), (7, 8), (10, 10), (11, 15), (1999, 2000), (2004, 2500), (64, 80)])
def test_axes_end_above_the_data(most: float, top: float) -> None:
    axis = charts.Axis(most)
    assert axis.top == pytest.approx(top)
    assert 2 <= len(axis.marks()) <= 6
    assert axis.y(0) == 1000
    assert axis.y(axis.top) == 0


def test_axis_of_bytes() -> None:
    assert [charts.mib(mark) for mark in charts.Axis(64 << 20, charts.mib, binary=True).marks()] == [
        "0 B", "16 MiB", "32 MiB", "48 MiB", "64 MiB"
    ]  # fmt: skip


def test_reduce_keeps_peaks() -> None:
    values = np.zeros(5000)
    values[1234] = 7
    reduced = charts.reduce(values, "max")
    assert len(reduced) <= 600
    assert reduced.max() == 7
    assert charts.reduce([1, 2, 3]).tolist() == [1, 2, 3]


@pytest.mark.parametrize("settings", [{"generations": 5}, {"memory": "64KiB"}, {"max_processes": 37}, {}])
def test_page_generation_by_generation(settings: dict[str, Any]) -> None:
    """A bomb without turns, filmed: of no generation, of whole ones, ended within one, ended by memory."""
    film = Film()
    report = bomb.run(memory=settings.pop("memory", "8MiB"), film=film, **settings)
    found = film.result(report, settings.get("generations"), settings.get("max_processes", 32768))
    assert found.forks == report.forks == len(found.events) == max(len(found.tree) - 1, 0)
    assert found.samples["processes"].tolist() == [
        *(2 ** (n + 1) for n in range(report.generations)),
        *[report.processes] * (len(found.samples) - report.generations),
    ]
    text = generations_page(found)
    alone(text)
    page = Page(text)
    for title in ("Who forked whom", "The same again", report.stopped.value, f"{report.processes:,}"):
        assert title in page.text
    assert not re.search(r"\btick|ystander", page.text)
    assert command(found) in page.text and "--bomb" not in page.text


def test_the_tree_shows_every_fate() -> None:
    """However late the first is killed; the same each time, and nobody without its parent."""
    result = run("exponential", ticks=60)
    killed = np.flatnonzero(result.tree["fate"] == Event.KILLED)
    assert len(killed) > 20
    chosen = pictures._chosen(result)
    assert chosen == pictures._chosen(result) == sorted(set(chosen))
    assert len(chosen) == 160 < len(result.tree)
    assert len(set(chosen) & set(killed.tolist())) > 10
    assert all(parent in chosen for parent in result.tree["parent"][chosen].tolist() if parent >= 0)
    drawn = pictures.tree(result)
    assert drawn.count('<line class="killed"') == len(set(chosen) & set(killed.tolist()))
    assert "with their ancestors" in drawn
