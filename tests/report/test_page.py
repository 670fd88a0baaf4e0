"""The page says what the document says, whatever stands in it, and nothing else."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import matplotlib as mpl
import pytest

from magmerge.core.errors import CheckpointError
from magmerge.report.page import render
from tests.quick import slow
from tests.report.documents import PARTS, Page, document, evaluation, factor, layer

HOSTILE = (
    "<script>alert(1)</script>",
    "\"onload='x' --> ]]> </style></svg></title>",
    "$\\frac{1}{2}$ $x",
    "{{ 7 * 7 }}{% raw %}",
    "name" * 2500,
    "a\x00b\x1b[31m\u202eright\u2066",
    "层.3.权重",
    "9" * 5000,
    "https://example.org/x.js",
    "",
)


def page(content: dict[str, Any], *scores: dict[str, Any]) -> Page:
    found = Page(render(content, scores))
    assert found.faults == []
    return found


@pytest.mark.parametrize("dsc", [True, False])
def test_the_page_is_well_formed_and_needs_nothing_else(dsc: bool) -> None:
    text = render(document(dsc=dsc), [evaluation("a"), evaluation("b", 0.01)])
    assert Page(text).faults == []
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert Page(text).count("meta", **{"http-equiv": "Content-Security-Policy"}) == 1


def test_equal_documents_give_equal_bytes_whatever_the_callers_settings() -> None:
    first = render(document(), [evaluation("a")])
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert render(document(), [evaluation("a")]) == first
        assert mpl.rcParams["font.size"] == 30
    assert render(json.loads(json.dumps(document())), [evaluation("a")]) == first


def test_matplotlibs_global_state_is_left_alone() -> None:
    before = dict(mpl.rcParams)
    render(document())
    assert dict(mpl.rcParams) == before


def test_every_layer_is_in_the_table_with_its_numbers() -> None:
    content = document()
    text = page(content).text
    for one in content["layers"]:
        kind = f"{one['name']} {one['kind']}"
        listed = " sensitive" if one["sensitive"] else ""
        numbers = " ".join(f"{one[key]:.3f}" for key in ("xi", "xi_min", "xi_max", "xi_free"))
        assert f"{kind}{listed} {numbers if one['calibrated_by'] else ''}" in text
        for found in one["factors"]:
            assert f"{found['free']:.3f} {found['gated']:.3f}" in text
        assert f"{one['norm_before']:#.4g} {one['norm_after']:#.4g}" in text


def test_the_summary_counts_layers_and_gives_their_mean_factor() -> None:
    content = document(blocks=2)
    calibrated = [one for one in content["layers"] if one["calibrated_by"]]
    mean = sum(one["xi"] for one in calibrated) / len(calibrated)
    text = page(content).text
    assert "Three experts of one base model were merged by ties." in text
    assert "WSC and FSC then set the magnitude of six layers (12 of the 13 merged tensors)" in text
    assert f"the mean factor xi on what the merge changed is {mean:.3f}" in text


def test_the_summary_tells_what_the_gate_stopped_and_what_it_held_back() -> None:
    content = document()
    stopped = factor("wsc", 0.8, sensitive=False, experts=[])
    rows = {"xi": 1.1, "xi_min": 1.0, "xi_max": 1.5, "xi_free": 1.05}
    free = {**factor("wsc", 1.05, sensitive=False, experts=[]), "gated": 1.1}
    content["layers"] = [layer("a.weight", [stopped]), layer("b.weight", [free], **rows)]
    text = page(content).text
    assert "stopped one layer altogether and held back one layer in part" in text
    assert "without it the mean would be 0.925" in text
    content["recipe"]["gate"] = "off"
    assert "The gate was off" in page(content).text


def test_the_recipe_can_be_read_and_copied() -> None:
    content = document()
    text = page(content).text
    assert "ties (density 0.2)" in text
    assert "on: sensitive layers may only shrink, all others only grow" in text
    assert "samples 8" in text
    assert "reviews: r.jsonl" in text
    assert "density: 0.2" in text
    for path in content["recipe"]["experts"].values():
        assert path in text


def test_a_mark_for_each_layer_with_weight_and_bias_as_one() -> None:
    content = document(blocks=3)
    text = render(content)
    tips = re.findall(
        r"<title>([^:<]*?)(?: \(sensitive\))?: xi [^<]*; its bias [^<]*</title>", text
    )
    assert set(tips) <= {f"encoder.layer.{block}.{part}" for block in range(3) for part in PARTS}
    assert len(set(re.findall("<title>([^:<]*): xi ", text))) == 9
    assert Page(text).count("svg", role="img") == 8


def test_where_two_calibrators_pull_apart_is_said_and_how_the_gate_answered() -> None:
    content = document()

    def told(wsc: float, fsc: float) -> dict[str, Any]:
        pair = (("wsc", wsc), ("fsc", fsc))
        return layer("x.weight", [factor(n, f, sensitive=False, experts=[]) for n, f in pair])

    content["layers"] = [told(1.3, 0.8)]
    text = page(content).text
    assert "On one layer of 1 WSC and FSC pull apart" in text
    assert "open question of the paper" in text
    assert "kept WSC and stopped FSC" in text
    # 1.6 by WSC, and nothing more by FSC on the result of that: they agree.
    content["layers"] = [told(1.6, 1.0)]
    assert "Nowhere do WSC and FSC pull apart" in page(content).text
    content["layers"] = [told(1.0, 1.6)]
    assert "kept both" in page(content).text


def test_a_document_of_before_says_what_it_does_not_know() -> None:
    content = document(dsc=False)
    for one in content["layers"]:
        del one["norm_experts"], one["factors"]
    del content["uncovered"]
    found = page(content)
    assert "does not tell the norms of the experts" in found.text
    assert found.count("svg", role="img") == 2


def test_a_merge_without_calibration_has_a_report_too() -> None:
    content = document()
    content["layers"] = [layer("a.weight", [])]
    found = page(content)
    assert "No layer of it was calibrated" in found.text
    assert found.count("svg", role="img") == 0
    content["layers"] = []
    assert "No layer of it was calibrated" in page(content).text


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_and_nothing_else(name: str) -> None:
    content = document(blocks=1)
    for one in content["layers"]:
        one["name"] += name
        one["notes"] = [name]
    content["recipe"] = {**content["recipe"], "method": name, "base": name, name or "x": name}
    content["recipe"]["experts"] = {f"{name}{i}": name for i in range(3)}
    content["inputs"] = [{"role": name, "source": name, "files": {name: name}}]
    content["warnings"] = [name]
    content["uncovered"] = [{"layer": name, "reason": name}]
    content["versions"] = {name: name}
    content["magmerge"] = content["recipe_digest"] = name
    plain = {"columns": [name], "rows": [[name]], "caption": name}
    text = render(content, [evaluation(name, suite=name, split=name), plain], title=name or None)
    found = Page(text)
    assert found.faults == []
    assert not set(text) & set("\x00\x1b\u202e\u2066")
    if len(name) < 100 and name.isprintable():
        assert found.words.count(name) > 0 or name == ""


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 5e-324])
def test_numbers_that_cannot_be_drawn_are_left_out(value: float | None) -> None:
    content = document(blocks=2)
    numbers = ("xi", "xi_min", "xi_max", "xi_free", "norm_before", "norm_after", "norm_experts")
    for key in numbers:
        content["layers"][1][key] = value
    content["layers"][3]["factors"][0]["free"] = value
    content["layers"][3]["factors"][1]["experts"][0] = value
    content["layers"][5]["factors"][1]["gated"] = value
    text = render(content)
    assert Page(text).faults == []
    assert "nan" not in Page(text).text.split()
    for one in content["layers"]:
        for key in numbers:
            one[key] = value
        for found in one["factors"]:
            found.update(free=value, gated=value, experts=[value] * 3)
    assert Page(render(content)).faults == []


def test_one_layer() -> None:
    one = document(blocks=1, dsc=False)
    one["layers"] = one["layers"][1:2]
    assert "one layer (1 of the 1 merged tensors)" in page(one).text


@pytest.mark.parametrize("blocks", [170, slow(1700)])
def test_very_many_layers(blocks: int) -> None:
    text = render(document(blocks=blocks))
    assert len(text) < 12_000_000
    assert text.count("<svg") == text.count("</svg>")


def test_more_experts_than_shapes() -> None:
    content = document(blocks=2)
    content["recipe"]["experts"] = {f"expert{i}": "x" for i in range(12)}
    for one in content["layers"]:
        for found in one["factors"]:
            found["experts"] = [1.0 + i / 10 for i in range(12)] if found["experts"] else []
    assert "one expert each" in page(content).text


def test_scores_stand_beside_each_other_with_their_intervals() -> None:
    found = page(document(), evaluation("/runs/plain"), evaluation("/runs/wsc", 0.0125))
    assert found.text.count("77.0 to 85.0") == 3
    assert "Reviews accuracy, 300 samples 81.2 77.0 to 85.0 90.3 % of expert 82.5" in found.text
    assert "task plain wsc" in found.text
    perplexity = evaluation("m")
    for task in perplexity["tasks"]:
        task.update(metric="perplexity", score=12.34, low=None, high=None, relative=None)
    assert "12.34" in page(document(), perplexity).text
    plain = {"columns": ["model", "spam"], "rows": [["base", 56.7]], "caption": "in %"}
    assert "in % model spam base 56.7" in page(document(), plain).text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", None),
        ("layers", [{"xi": 1.0}]),
        ("layers", [{"name": "a", "xi": "much"}]),
        ("layers", [{"name": "a", "xi": True}]),
        ("recipe", []),
        ("magmerge", 3),
        ("versions", {"torch": 2}),
        ("warnings", "one"),
    ],
)
def test_what_magmerge_never_writes_is_refused(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key):
        render({**document(), key: value})


def test_scores_of_another_kind_are_refused() -> None:
    for wrong in ({}, {"suite": "a"}, {"columns": 3, "rows": []}, [], None):
        with pytest.raises(CheckpointError, match="scores"):
            render(document(), [wrong])  # type: ignore[list-item]
