"""The plot of a search: what is on it, whatever names and values hold."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from magmerge.core.marks import Mark, Marked, read_marked
from magmerge.studies.tuning.trials import Trial, best_of
from magmerge.studies.tuning.tuning_plot import FIGURES, PANELS, draw_trials

pytest.importorskip("matplotlib")


def drawn(folder: Path, marks: dict[str, Mark], trials: list[Trial]) -> str:
    best = best_of(trials, rising=True)
    assert best is not None
    draw_trials(trials, marks, folder, "mean accuracy of 2 tasks", best)
    assert (folder / FIGURES[1]).read_bytes().startswith(b"\x89PNG")
    return (folder / FIGURES[0]).read_text()


def texts_of(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter()]


def test_a_panel_for_each_value_and_a_tip_for_each_trial(tmp_path: Path) -> None:
    text = "m: !tune [ties, tsv_m]\nd: !tune [0.1, 0.9]\nw: !tune {low: 0.01, high: 1, log: true}\n"
    marks = dict(read_marked(text, "r").marks)
    trials = [
        Trial(0, {"m": "tsv_m", "w": 0.1}, 0.5),
        Trial(1, {"m": "ties", "d": 0.3, "w": 0.01}, 0.75),
        Trial(2, {"m": "ties", "d": 0.9, "w": 1.0}, fault="not finite"),
    ]
    words = texts_of(drawn(tmp_path, marks, trials))
    for title in ("score of each trial", "m", "d", "w", "mean accuracy of 2 tasks", "ties", "0.1"):
        assert title in words
    for label in ("default", "best", "other trials", "failed"):
        assert label in words
    assert "trial 1: 0.75 with m ties, d 0.3, w 0.01" in words
    again = tmp_path / "again"
    again.mkdir()
    drawn(again, marks, trials)
    for name in FIGURES:
        assert (tmp_path / name).read_bytes() == (again / name).read_bytes()


def test_hostile_names_and_many_values(tmp_path: Path) -> None:
    odd = '<b>"&$x_{2}$\\n\x1b[31m\u202e\U0001f600'
    marks = Marked.of(
        [{odd: read_marked("a: !tune [x, y, z, u, v, {b: [1]}]\n", "r").marks["a"],
          **{f"p{n}": read_marked("a: !tune [1, 9]\n", "r").marks["a"] for n in range(20)}}]
    ).marks  # fmt: skip
    name = next(iter(marks))
    trials = [Trial(0, {name: {"b": [1]}, **{f"p{n}": 5 for n in range(20)}}, 0.5)]
    words = texts_of(drawn(tmp_path, dict(marks), trials))
    assert sum(word in marks for word in words) >= PANELS - 1
    assert any("trial 0: 0.5" in word for word in words)
