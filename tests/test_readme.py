"""README says what is so."""

from __future__ import annotations

from pathlib import Path

from scripts.readme_tree import tree

import magmerge

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_tree_is_the_packages() -> None:
    assert tree() in README


def test_the_whole_tree_is_in_the_page_on_the_house() -> None:
    page = Path(__file__).parents[1] / "docs" / "architecture.md"
    assert tree(whole=True) in page.read_text(encoding="utf-8")


def test_every_method_and_calibrator_is_in_the_table() -> None:
    for entry in magmerge.catalog():
        for name in (entry["name"], *entry["aliases"]):
            assert f"`{name}`" in README


def test_the_demo_rows_are_quoted_as_they_are_printed() -> None:
    for row in ("base", "experts", "task_arithmetic + wsc", "ties + dsc", "  + fsc", "mean xi"):
        assert row in README


def test_the_mathematics_snippet_runs() -> None:
    blocks = [part.partition("```")[0] for part in README.split("```python\n")[1:]]
    names: dict = {"magmerge": magmerge}
    exec(blocks[1], names)
    assert names["xi"].shape == (64,)
