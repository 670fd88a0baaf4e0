"""What a user gives for a figure: other models and samples, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.models import save_rows
from tests.studies.figures.suites import TASKS, figure_suite

import magmerge
from magmerge.core.errors import (
    MagmergeError,
    MissingExtraError,
    OutputError,
    ParameterError,
    UnknownNameError,
)

pytestmark = pytest.mark.filterwarnings("ignore::magmerge.core.errors.MagmergeWarning")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return figure_suite(tmp_path_factory.mktemp("figures"))


def data(suite: Path) -> dict[str, str]:
    return {name: str(suite.parent / "data" / f"{name}.calibration.jsonl") for name in TASKS}


def test_models_and_samples_may_be_given_instead(tmp_path: Path) -> None:
    suite = figure_suite(tmp_path / "suite")
    text = suite.read_text()
    suite.write_text("\n".join(line for line in text.splitlines() if "expert:" not in line))
    with pytest.raises(ParameterError, match="names no experts"):
        magmerge.plot("samples", tmp_path / "s.svg", suite=suite)
    options = {"suite": suite, "values": [1], "seeds": 1, "calibrate": ["fsc"]}
    experts = {name: suite.parent / name for name in TASKS}
    named = magmerge.plot("samples", tmp_path / "s.svg", experts=experts, **options)
    assert named.document.settings["data"] == {name: [path] for name, path in data(suite).items()}
    other = {"first": suite.parent / "two", "second": suite.parent / "three"}
    with pytest.raises(ParameterError, match="no unlabelled samples are known for first, second"):
        magmerge.plot("samples", tmp_path / "t.svg", experts=other, **options)
    shared = magmerge.plot(
        "samples", tmp_path / "t.svg", experts=other, data=data(suite)["two"], **options
    )
    assert shared.computed == 2
    with pytest.raises(UnknownNameError, match="no expert"):
        magmerge.plot("samples", tmp_path / "u.svg", data={"tree": "x.jsonl"}, experts=other,
                      **options)  # fmt: skip
    with pytest.raises(MagmergeError, match="names the test split"):
        magmerge.plot("samples", tmp_path / "u.svg", experts=experts, **options,
                      data=str(suite.parent / "data" / "two.test.jsonl"))  # fmt: skip


def test_one_file_without_splits_is_never_calibrated_with(tmp_path: Path) -> None:
    suite = figure_suite(tmp_path / "suite")
    rows = save_rows(tmp_path / "suite" / "rows.jsonl", [{"text": "a b", "label": 0}] * 5)
    text = suite.read_text()
    head, _, tail = text.partition("    data:\n")
    tail = tail.partition("    expert:")[2]
    suite.write_text(f"{head}    data: {rows.name}\n    expert:{tail}")
    with pytest.raises(ParameterError, match="no unlabelled samples are known for three"):
        magmerge.plot("samples", tmp_path / "s.svg", suite=suite)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sample"}, "did you mean samples"),
        ({"methods": ["tise"]}, "did you mean ties"),
        ({"methods": []}, "no merge"),
        ({"calibrate": ["fcs"]}, "did you mean fsc"),
        ({"calibrate": ["fsc", "dcs"]}, "did you mean dsc"),
        ({"calibrate": ["wsc"]}, "look at no samples"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": True}, "seeds is True"),
        ({"samples": 0}, "samples is 0"),
        ({"values": [0]}, "0 is no number of samples"),
        ({"values": [1.5]}, "whole numbers"),
        ({"values": [float("nan")]}, "nan is no number"),
        ({"values": [10**9]}, "from 1 to 1,000,000"),
        ({"kind": "lambda", "values": [-1]}, "-1 is no lambda"),
        ({"kind": "coefficients", "values": [1]}, "no values to go through"),
        ({"gate": "of"}, "it is on or off"),
        ({"alpha": 0}, "alpha is 0"),
        ({"kind": "alpha", "gate": "off"}, "without a gate"),
        ({"tasks": ["tow"]}, "did you mean two"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"device": "gpu"}, "it is cpu, cuda"),
        ({"params": {"tise": {"density": 1}}}, "did you mean ties"),
        ({"suite": None}, "no suite"),
        ({"values": [13]}, "13 rows wanted"),
        ({"kind": "sensitivity", "sensitive": ["a"]}, "does not tell how sensitive"),
    ],
)
def test_a_mistake_is_one_message(
    suite: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    arguments = {"kind": "samples", "suite": suite, "seeds": 1, **change}
    kind = arguments.pop("kind")
    with pytest.raises(MagmergeError) as caught:
        magmerge.plot(kind, tmp_path / "s.svg", **arguments)
    assert message in str(caught.value)
    assert caught.value.remedy
    assert not (tmp_path / "s.svg").exists()


def test_where_no_figure_can_be_written(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s", "s.json", "s.jpeg"):
        with pytest.raises(OutputError, match=r"\.svg, \.png or \.pdf"):
            magmerge.plot("samples", tmp_path / name, suite=suite)
    with pytest.raises(OutputError, match="its folder does not exist"):
        magmerge.plot("samples", tmp_path / "none" / "s.svg", suite=suite)
    (tmp_path / "s.json").mkdir()
    with pytest.raises(OutputError, match="folder"):
        magmerge.plot("samples", tmp_path / "s.svg", suite=suite)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"magmerge\[report\]"):
        magmerge.plot("samples", tmp_path / "t.svg", suite=suite)
