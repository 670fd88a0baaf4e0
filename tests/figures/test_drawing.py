"""Figures as files: numbers in the SVG are those of the JSON, and nothing covers anything."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import magmerge
from magmerge.errors import OutputError
from magmerge.figures.axis import alike
from magmerge.figures.canvas import FINE, Canvas, drawing, shown, width_of, wrapped
from magmerge.figures.curve_chart import curve_chart, spread
from magmerge.figures.document import SHAPES
from magmerge.figures.layer_chart import coefficient_chart, ranking_chart
from tests.figures.suites import coefficients, curves, layer_names, ranking

CHARTS = {"sensitivity": ranking_chart, "coefficients": coefficient_chart}
ORDINARY = [
    curves(),
    curves(methods=("ties", "dare"), values=(1, 2)),
    curves(methods=("average", "ties", "dare", "tsv_m", "iso_c")),
    curves("lambda", values=(0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)),
    curves("alpha", values=(0, 5, 10, 20), spread=0.0),
    curves("lambda", values=tuple(n / 20 for n in range(60)), seeds=1),
    ranking(),
    ranking(blocks=60),
    ranking(score="loss", alpha=24),
    coefficients(),
    coefficients(blocks=60, methods=("ties",), gate="off"),
]


def drawn(content: dict[str, Any], folder: Path, suffix: str = ".svg") -> Path:
    numbers = folder / "numbers.json"
    numbers.write_text(json.dumps(content))
    return magmerge.redraw(numbers, folder / f"figure{suffix}", overwrite=True).path


def titles(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}title")]


def written(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")]


def chart(content: dict[str, Any]) -> Canvas:
    document = SHAPES[content["kind"]].model_validate(content)
    return CHARTS.get(content["kind"], curve_chart)(document)


def test_every_mark_of_a_curve_tells_its_numbers(tmp_path: Path) -> None:
    content = curves(methods=("ties", "dare"))
    path = drawn(content, tmp_path)
    found = titles(path)
    for method in ("ties", "dare"):
        for at in (1, 5, 10, 20):
            own = [
                100 * one["mean"]
                for one in content["points"]
                if (one["method"], one["calibration"], one["at"]) == (method, "fsc", at)
            ]
            assert len(own) == 3
            numbers = f"{sum(own) / 3:.1f} [{min(own):.1f}, {max(own):.1f}]"
            assert f"{method}, FSC, {at}: {numbers}" in found
        (plain,) = (
            one["mean"]
            for one in content["points"]
            if (one["method"], one["calibration"]) == (method, "none")
        )
        assert f"{method}, none: {100 * plain:.1f}" in found
    words = " ".join(written(path))
    for text in ("suite made up, test split, 2 tasks with 800 rows in all", "mean accuracy, %",
                 "unlabelled samples per task", "mean of 3 draws", "±1.0 points",
                 "Experts, each on its own task: 90.0 %"):  # fmt: skip
        assert text in words


def test_marks_stand_where_the_numbers_are(tmp_path: Path) -> None:
    content = curves("lambda", values=(0.5, 1.0, 2.0), seeds=1)
    with drawing():
        canvas = chart(content)
        (axes, _) = canvas.panels[0]
        lines = {line.get_gid(): line for line in axes.get_lines() if line.get_gid()}
    assert len(lines) == 4
    for gid, line in lines.items():
        name = canvas.tips[gid][0].split(", ")[1].lower()
        own = {one["at"]: one["mean"] for one in content["points"] if one["calibration"] == name}
        if len(own) == 3:
            assert list(line.get_xdata()) == [0.5, 1.0, 2.0]
        assert list(line.get_ydata()) == pytest.approx([100 * own[at] for at in own])
    low, high = axes.get_ylim()
    assert high - low >= 2.0  # two sampling errors of one point


def test_every_layer_tells_its_numbers(tmp_path: Path) -> None:
    content = ranking()
    found = titles(drawn(content, tmp_path))
    for one in content["layers"]:
        assert f"{one['layer']}: {one['worse']:.6g}" in found
    content = coefficients(methods=("ties",))
    found = titles(drawn(content, tmp_path))
    wsc, first, second = (one["layers"] for one in content["points"])
    for own, *others in zip(wsc, first, second, strict=True):
        asked, applied = (sum(one[key] for one in others) / 2 for key in ("xi_free", "xi"))
        for free, xi in ((own["xi_free"], own["xi"]), (asked, applied)):
            assert f"{own['layer']}: asked for {free:.6g}, applied {xi:.6g}" in found


@pytest.mark.parametrize("content", ORDINARY, ids=lambda c: c["kind"])
def test_no_text_covers_another_or_leaves_the_sheet(content: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with drawing():
        canvas = chart(content)
        canvas.figure.set_dpi(FINE)
        renderer = FigureCanvasAgg(canvas.figure).get_renderer()
        canvas.figure.draw(renderer)
        texts = list(canvas.figure.texts)
        for axes, _ in canvas.panels:
            texts += [*axes.texts, axes.xaxis.label, *axes.get_xticklabels()]
            texts += axes.get_yticklabels()
        boxes = [
            (one.get_text(), one.get_window_extent(renderer)) for one in texts if one.get_text()
        ]
    assert len(boxes) > 8
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= canvas.width * FINE / 72, text
        assert box.y1 <= canvas.height * FINE / 72, text
    for place, (text, box) in enumerate(boxes):
        for other, beside in boxes[:place]:
            across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
            up = min(box.y1, beside.y1) - max(box.y0, beside.y0)
            assert across <= 1 or up <= 1, (text, other)


@pytest.mark.parametrize("content", [ORDINARY[0], ORDINARY[6], ORDINARY[9]])
def test_all_formats_open_and_are_the_same_again(content: dict[str, Any], tmp_path: Path) -> None:
    for suffix in (".svg", ".png", ".pdf"):
        first = drawn(content, tmp_path, suffix).read_bytes()
        assert drawn(content, tmp_path, suffix).read_bytes() == first
    with Image.open(tmp_path / "figure.png") as image:
        image.load()
        assert image.size[0] > 1500
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(image.convert("RGB").getcolors(2**20) or []) > 20
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    root = ElementTree.parse(tmp_path / "figure.svg").getroot()
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]


def test_names_from_files_are_shown_as_they_are(tmp_path: Path) -> None:
    odd = "a\x1b[31m$x$ <b>&\u202e漢" + "w" * 90
    content = ranking(suite=odd)
    content["layers"][0]["layer"] = odd
    path = drawn(content, tmp_path)
    assert "\x1b" not in path.read_text()
    assert any(text.startswith("suite a\\x1b[31m$x$ <b>&\\u202e?www") for text in written(path))
    drawn(content, tmp_path, ".png")
    with drawing():
        assert shown("x" * 200).endswith("...")


def test_perplexity_is_not_in_percent(tmp_path: Path) -> None:
    content = curves(error=None, experts=None)
    for task in content["tasks"]:
        task["metric"] = "perplexity"
    words = " ".join(written(drawn(content, tmp_path)))
    assert "Mean perplexity by" in words
    assert "the lower the better" in words
    content["tasks"][0]["metric"] = "f1"
    words = " ".join(written(drawn(content, tmp_path)))
    assert "mean f1, % (perplexity left out)" in words


def test_gates_are_told(tmp_path: Path) -> None:
    words = " ".join(written(drawn(curves("lambda"), tmp_path)))
    assert "flat from below alone" in words
    words = " ".join(written(drawn(curves("lambda", gate="off"), tmp_path)))
    assert "No gate." in words
    assert "from below" not in words


def test_redraw_needs_numbers_and_a_place(tmp_path: Path) -> None:
    path = drawn(curves(), tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        magmerge.redraw(tmp_path / "numbers.json", path)
    with pytest.raises(OutputError, match=r"\.svg, \.png or \.pdf"):
        magmerge.redraw(tmp_path / "numbers.json", tmp_path / "figure.gif")


def test_an_empty_figure_is_drawn_too(tmp_path: Path) -> None:
    for content in (curves(points=[]), curves(methods=()), ranking(layers=[]),
                    coefficients(points=[])):  # fmt: skip
        drawn(content, tmp_path)


@settings(deadline=None)
@given(st.lists(st.floats(0, 300), max_size=12), st.floats(1, 20))
def test_names_at_line_ends_make_room(wanted: list[float], apart: float) -> None:
    found = spread(wanted, apart, 0.0, 300.0)
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    ends = [found[place] for place in order]
    assert all(b - a >= apart - 1e-6 for a, b in pairwise(ends))
    if apart * len(wanted) <= 300 and ends:
        assert ends[0] >= -1e-6
        assert ends[-1] <= 300 + 1e-6
    lone = sorted(wanted)
    if all(b - a >= apart for a, b in pairwise(lone)):
        assert ends == pytest.approx(lone)


def test_ticks_have_as_many_decimals_as_they_need() -> None:
    assert alike([84.5, 85.0, 86.25]) == ["84.50", "85.00", "86.25"]
    assert alike([20.0, 40.0]) == ["20", "40"]


def test_lines_are_no_longer_than_the_sheet() -> None:
    with drawing():
        lines = wrapped("some words that go on and on " * 5 + "w" * 80, 9, 150)
        assert " ".join(lines).split() == ("some words that go on and on " * 5 + "w" * 80).split()
        assert all(width_of(line, 9) <= 150 for line in lines if "www" not in line)


def test_layers_are_in_the_order_of_the_model() -> None:
    with drawing():
        canvas = chart(ranking())
    assert [tips[0].split(":")[0] for tips in canvas.tips.values()] == layer_names(6)
