"""Results as tables: text, HTML, pandas, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import magmerge
from magmerge.core import interactive
from magmerge.core.errors import MagmergeWarning, MissingExtraError, OutputError, ParameterError
from magmerge.core.machine import shown_progress
from magmerge.core.tables import SHOWN, Spread, Table
from magmerge.evaluation.result_tables import compare_scores
from magmerge.evaluation.scores import Scores, ScoresList, TaskScore

SPHERE = {"method": "wsc", "params": {"target": "sphere"}}
TABLE = Table(
    "a & b",
    ("model", "score_1", "loss"),
    (("<one>", Spread(0.5, 0.25), 2.0), ("two\x1b", Spread(0.75, None), 1.0), ("x", None, None)),
    {"score_1": True, "loss": False},
    2,
)


def scores(model: str, value: float, count: int = 10) -> Scores:
    rows = (
        TaskScore("a", "A", "accuracy", value, None, None, count, None, 1.0),
        TaskScore("b", "B", "perplexity", 10 * value, None, None, count, None, 1.0),
    )
    return Scores("suite", "test", model, rows, 1.0)


def merged() -> magmerge.Result:
    torch.manual_seed(0)
    base = {f"layer.{n}.weight": torch.randn(4, 4) for n in range(SHOWN + 3)}
    experts = [{k: v + torch.randn(4, 4) for k, v in base.items()} for _ in range(2)]
    return magmerge.merge(base=base, experts=experts, method="average", calibrate=SPHERE)


def test_the_best_is_bold_in_latex_and_html_and_names_are_no_markup() -> None:
    latex = TABLE.to_latex(caption="50 %", label="tab:one")
    assert r"\textbf{0.75} & \textbf{1.00} \\" in latex
    assert r"<one> & 0.50 $\pm$ 0.25 & 2.00 \\" in latex
    assert r"score\_1" in latex
    assert r"\caption{50 \%}" in latex
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in latex
    page = TABLE._repr_html_()
    assert "&lt;one&gt;" in page
    assert "<strong>0.75</strong>" in page
    assert "\x1b" not in page + latex + str(TABLE)


def test_pandas_and_csv_have_every_digit_and_spreads_in_two_columns(tmp_path: Path) -> None:
    frame = TABLE.to_pandas()
    assert list(frame.columns) == ["model", "score_1", "score_1 sd", "loss"]
    assert frame["score_1 sd"][0] == 0.25
    text = TABLE.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == text
    assert [*csv.reader(io.StringIO(text))][1] == ["<one>", "0.5", "0.25", "2.0"]
    with pytest.raises(OutputError, match="exists already"):
        TABLE.to_csv(tmp_path / "table.csv")


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"magmerge\[tables\]"):
        TABLE.to_pandas()


def test_a_result_is_short_as_text_and_a_table_in_a_notebook() -> None:
    result = merged()
    assert len(str(result).splitlines()) == 2
    assert len(result.to_pandas()) == SHOWN + 3
    assert "3 rows more" in result._repr_html_()
    plan = magmerge.plan(
        base={"w.weight": torch.zeros(2, 2)}, experts=[{"w.weight": torch.ones(2, 2)}]
    )
    assert "w.weight" in str(plan)
    assert plan.to_csv().startswith("tensor,shape,dtype")


def test_models_over_seeds_are_mean_and_deviation() -> None:
    table = compare_scores(
        {"one": [scores("one", 0.5), scores("one", 0.7)], "two": scores("two", 0.4)}
    )
    assert table.columns == ("model", "A", "B", "mean")
    mean, deviation = table.rows[0][1]  # type: ignore[misc]
    assert (mean, deviation) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert table.rising == {"A": True, "B": False, "mean": True}
    both = ScoresList([scores("one", 0.5), scores("one", 0.6)])
    assert [row[0] for row in both.table.rows] == ["one", "one (2)"]
    with pytest.raises(ParameterError, match="other tasks or rows"):
        compare_scores({"one": scores("one", 0.5), "two": scores("two", 0.5, count=9)})
    with pytest.raises(ParameterError, match="no scores"):
        compare_scores({})


class Shown:
    """IPython's display, as far as a bar asks for it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.HTML = str

    def display(self, text: str, **_: Any) -> Shown:
        self.texts.append(text)
        return self

    def update(self, text: str) -> None:
        self.texts.append(text)


def test_a_notebook_shows_bars_and_warnings_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown()
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    monkeypatch.setattr(interactive, "_state", {"quiet": False, "warnings": False})
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert isinstance(shown_progress(), interactive.NotebookBar)
    merged()
    assert 'value="15" max="15"' in shown.texts[-1]
    told = warnings.formatwarning(MagmergeWarning("look"), MagmergeWarning, "file.py", 3)
    assert told == "magmerge: look\n"
    assert "file.py:3" in warnings.formatwarning(UserWarning("x"), UserWarning, "file.py", 3)
    interactive.stay_quiet()
    assert shown_progress() is None


def test_a_terminal_shows_bars_and_a_log_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interactive, "_state", {"quiet": False, "warnings": True})
    merged()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    merged()
    assert f"merging [{'#' * 30}] 15/15\n" in capsys.readouterr().err
