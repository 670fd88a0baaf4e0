"""Figures as files: numbers in the SVG are those of the JSON, and nothing covers anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from tests.studies.figures.suites import coefficients, curves, layer_names, ranking

import magmerge
from magmerge.core.errors import OutputError
from magmerge.report.svg import drawing
from magmerge.studies.figures.document import SHAPES
from magmerge.studies.figures.figure_file import FINE, SIZES, chart_of

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


def chart(content: dict[str, Any]) -> Any:
    return chart_of(SHAPES[content["kind"]].model_validate(content))


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
    with drawing(**SIZES):
        (axes,) = chart(content).axes
        marks = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    for one in content["points"]:
        name = one["calibration"].upper() if one["calibration"] != "none" else "none"
        number = f"{100 * one['mean']:.1f}"
        mark = marks[f"tip: ties, {name}, {one['at']:g}: {number}"]
        assert mark.get_xdata() == [one["at"]]
        assert mark.get_ydata() == pytest.approx([100 * one["mean"]])
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

    with drawing(**SIZES):
        figure = chart(content)
        figure.set_dpi(FINE)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        texts = [*figure.texts, *(text for key in figure.legends for text in key.get_texts())]
        for axes in figure.axes:
            texts += [*axes.texts, axes.xaxis.label, *axes.get_xticklabels()]
            low, high = axes.get_ylim()
            texts += [one for one in axes.get_yticklabels() if low <= one.get_position()[1] <= high]
        boxes = [
            (one.get_text(), one.get_window_extent(renderer)) for one in texts if one.get_text()
        ]
    assert len(boxes) > 8
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.width, text
        assert box.y1 <= figure.bbox.height, text
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
    long = [text for text in written(path) if text.startswith("suite a")]
    assert all("..." in text for text in long)


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


def test_layers_are_in_the_order_of_the_model(tmp_path: Path) -> None:
    tips = titles(drawn(ranking(), tmp_path))
    assert [tip.split(":")[0] for tip in tips] == layer_names(6)
