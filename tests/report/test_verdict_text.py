"""The verdict on the page and in the card, and several results on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import magmerge
from magmerge.core.errors import CheckpointError, ParameterError
from magmerge.report import render
from magmerge.report.account import VerdictAccount
from magmerge.report.card import card_files
from magmerge.report.several import render_several
from magmerge.report.side_by_side_page import side_by_side_page
from magmerge.report.verdict_text import headline, verdict_line, where_text
from tests.report.browser import Browser, program
from tests.report.documents import Page, document

HOSTILE = "<script>x</script>\x1b"


def models(base: float, merge: float, calibrated: float) -> dict[str, Any]:
    return {
        "base": {"perplexity": base, "kl": 3.0}, "merge": {"perplexity": merge, "kl": None},
        "calibrated": {"perplexity": calibrated}, "expert": {"perplexity": 2.0},
    }  # fmt: skip


def verdict(merge: str = "better", base: str = "better", **more: Any) -> dict[str, Any]:
    return {
        "judge": "perplexity", "rows": {"reviews": 4, HOSTILE: 4}, "best": "calibrated",
        "calibrated_to": {"merge": merge, "base": base}, "models": models(40.0, 20.0, 10.0),
        "experts": {"reviews": models(40, 20, 5), HOSTILE: models(40, 20, 21)},
        "text": "on 8 held-out rows: perplexity 40 base, 20 merge, 10 calibrated", "next": "",
        **more,
    }  # fmt: skip


def recorded(**more: Any) -> dict[str, Any]:
    return {**document(), "verdict": verdict(**more)}


def test_the_page_leads_with_it_and_the_recipe_comes_last() -> None:
    found = Page(render(recorded()))
    assert found.faults == []
    text = found.text
    assert text.index("It helped") < text.index("Did it help?") < text.index("The factor of each")
    assert text.index("All layers") < text.index("Recipe") < text.index("Provenance")
    assert "Perplexity 20 to 10 (-50.0 %)." in text
    assert found.count("script") == 0
    assert "reviews gained most" in text


def test_the_card_has_it_too() -> None:
    card = card_files(recorded(), {})["README.md"].decode()
    assert "## Did it help?" in card
    assert "| calibrated | 10 |" in card
    assert "<script>" not in card
    assert "Did it help" not in card_files(document(), {})["README.md"].decode()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "It helped"),
        ({"base": "even"}, "The calibration helped"),
        ({"merge": "even"}, "The merge helped"),
        ({"merge": "even", "base": "even"}, "No clear difference"),
        ({"best": "merge"}, "The calibration did not help"),
        ({"best": "base"}, "The merge did not help"),
        ({"models": {}}, "not known"),
        ({"judge": "norms", "best": "merge"}, "went away"),
        ({"judge": "norms"}, "came nearer"),
        ({"judge": "norms", "merge": "even"}, "about as they were"),
        ({"judge": "norms", "calibrated_to": {}, "nearer": 0, "farther": 2}, "about as they were"),
        ({"judge": "norms", "calibrated_to": {}, "nearer": 2, "farther": 0}, "came nearer"),
    ],
)
def test_the_headline_says_whether_it_helped(more: dict[str, Any], words: str) -> None:
    assert words in headline(VerdictAccount.model_validate(verdict(**more)))


def test_one_line_and_where() -> None:
    assert verdict_line(None) == []
    (line,) = verdict_line(verdict())
    assert "\n" not in line
    found = VerdictAccount.model_validate(verdict())
    assert where_text(found) == f"reviews gained most; {HOSTILE} lost most"


def test_several_results_are_in_order_where_they_can_be(tmp_path: Path) -> None:
    other = recorded(models=models(40, 30, 25))
    found = Page(render_several({"worse" + HOSTILE: other, "better": recorded()}))
    assert found.faults == []
    assert found.count("script") == 0
    assert "By perplexity on held-out rows better is the best" in found.text
    assert found.text.index("better 40") < found.text.index("worse")
    apart = Page(render_several({"a": recorded(rows={"reviews": 5}), "b": recorded()}))
    assert "cannot be put in order" in apart.text
    assert "evaluate A B C --suite suite.yaml." in apart.text
    for name, content in (("a", recorded()), ("b", document())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "magmerge.json").write_text(json.dumps(content))
    out = magmerge.write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html")
    assert "No calibration, no verdict" in Page(out.read_text()).text
    assert magmerge.write_report([tmp_path / "a"]) == tmp_path / "a" / "report.html"
    with pytest.raises(ParameterError, match="--out"):
        magmerge.write_report([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(CheckpointError, match="no such file"):
        magmerge.write_report([tmp_path / "a", tmp_path / "c"], tmp_path / "new.html")


def test_a_record_that_somebody_changed_is_told() -> None:
    for wrong in ({"models": {"merge": {"kl": "x"}}}, {"rows": 3}, {"text": ["a"]}):
        with pytest.raises(CheckpointError, match=r"(?s)not as magmerge writes it.*verdict"):
            render(recorded(**wrong))


@pytest.mark.skipif(program() is None, reason="no Chromium is installed")
@pytest.mark.parametrize("kind", ["report", "several", "side by side"])
def test_each_page_fits_a_phone_in_the_dark_and_loads_nothing(tmp_path: Path, kind: str) -> None:
    long = "a very long name of a model " * 4
    other = recorded(models=models(40, 30, 25))
    answers = {long: "an answer " * 30, "merged": "word" * 60}
    row = {"prompt": "a prompt " * 40, "expert": long, "answers": answers, "differs": [long]}
    text = {
        "report": lambda: render(recorded()),
        "several": lambda: render_several({long: other, f"other {long}": recorded()}),
        "side by side": lambda: side_by_side_page(
            {"models": [*answers], "prompts": [row], "text": "the merged model answers"}
        ),
    }[kind]()
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        for width in (390, 1280):
            browser.open(tmp_path / "page.html", width, dark=True)
            assert browser.requests() == [(tmp_path / "page.html").as_uri()]
            assert browser.complaints() == []
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
