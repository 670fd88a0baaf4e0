"""Whatever a figure's file holds, there is a figure or an error with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.report.test_fuzz import changed, steps, values
from tests.studies.figures.suites import coefficients, curves, ranking

import magmerge
from magmerge.core.errors import CheckpointError, MagmergeError
from magmerge.studies.figures.document import Curves, read_document, write_document
from magmerge.studies.figures.points import read_order, read_ranking

few = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
SMALL = [
    curves(values=(1, 5), seeds=2),
    curves("lambda", values=(0.5, 1), seeds=1),
    ranking(blocks=2),
    coefficients(blocks=2, methods=("ties",)),
]


def redrawn(content: Any, folder: Path) -> None:
    numbers = folder / "numbers.json"
    numbers.write_text(content if isinstance(content, str) else json.dumps(content))
    try:
        found = magmerge.redraw(numbers, folder / "figure.svg", overwrite=True)
        assert found.table.headings
        assert all(len(row) == len(found.table.headings) for row in found.table.rows)
        assert all(len(row) == len(found.layers.headings) for row in found.layers.rows)
    except MagmergeError as error:
        assert error.remedy
        str(error).encode("utf-8")


@few
@given(st.sampled_from(SMALL), steps, values)
def test_a_document_with_any_part_changed(
    tmp_path_factory: pytest.TempPathFactory, content: Any, path: list[int], value: Any
) -> None:
    redrawn(changed(content, path, value), tmp_path_factory.mktemp("fuzz"))


@few
@given(st.sampled_from(SMALL), st.data())
def test_a_number_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, content: Any, data: st.DataObject
) -> None:
    text = json.dumps(content)
    numbers = sorted({part for part in text.replace(",", " ").replace("}", " ").split()
                      if part[:1].isdigit()})  # fmt: skip
    old = data.draw(st.sampled_from(numbers))
    new = data.draw(st.sampled_from(["0", "-1", "1e9", "1e-9", "1e308", "1e999", "9" * 400, "NaN"]))
    redrawn(text.replace(f" {old}", f" {new}"), tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"{}", b'{"kind": "pie"}', b'{"kind": 1}',
     b'{"kind": "samples"}'],
)  # fmt: skip
def test_what_is_no_figure(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "numbers.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_document(path)
    assert "magmerge plot" in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_document(tmp_path / "none.json")


def test_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    document = Curves.model_validate(curves())
    write_document(path, document)
    assert read_document(path) == document


def test_rankings(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    layers = [{"layer": name, "worse": worse} for name, worse in (("a", 1), ("b", -1), ("c", 2))]
    path.write_text(json.dumps({"sensitive": ["c"], "layers": layers}))
    assert read_order(path) == (("c", "a"), 3)
    assert [one.layer for one in read_ranking(path).layers] == ["a", "b", "c"]
    path.write_text(json.dumps(["x", "y"]))
    assert read_order(path) == (("x", "y"), 2)
    with pytest.raises(MagmergeError, match="does not tell each layer's"):
        read_ranking(path)
    for layers in ([{"layer": "a"}], [{"layer": "a", "worse": float("inf")}], 3, [3]):
        path.write_text(json.dumps({"sensitive": [], "layers": layers}))
        with pytest.raises(MagmergeError):
            read_ranking(path)


@pytest.mark.parametrize("name", ["error", "experts"])
def test_a_number_that_no_axis_holds_is_refused(tmp_path: Path, name: str) -> None:
    content = json.loads(json.dumps(next(one for one in SMALL if name in one)))
    content[name] = 1e308
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        read_document(path)
