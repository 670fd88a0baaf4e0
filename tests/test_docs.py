"""The pages of the documentation: what they name is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from scripts.package_tree import tree
from scripts.site import links, prose, python_page, stages, values

import magmerge
from magmerge.cli import VERBS
from magmerge.core import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"^(?: {4}(?:\$ )?|\$ )magmerge (.+)$", re.MULTILINE)


def text_of(page: Path) -> str:
    """A page's text, with commands that go on in the next line in one."""
    return re.sub(r" *\\\n\s*", " ", page.read_text(encoding="utf-8"))


def test_the_whole_tree_is_in_the_page_on_the_house() -> None:
    assert tree() in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_mathematics_of_the_first_page_runs() -> None:
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    names: dict = {"magmerge": magmerge}
    exec(text.split("```python\n")[2].partition("```")[0], names)
    assert names["xi"].shape == (64,)


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return stages.pages()


def test_each_method_and_calibrator_has_a_page_and_a_row(made: dict[str, str]) -> None:
    for entry in magmerge.catalog():
        room = f"{entry['kind']}s"
        page, table = made[f"{room}/{entry['name']}.md"], made[f"{room}/index.md"]
        for name in (entry["name"], *entry["aliases"]):
            assert f"`{name}`" in table
            assert f"`{name}`" in page or page.startswith(f"# {name}\n")
        for parameter in entry["parameters"]:
            assert f"| `{parameter['name']}` |" in page


def test_each_own_method_and_calibrator_says_when(made: dict[str, str]) -> None:
    own = [item for kind in (registry.methods, registry.calibrators) for item in kind]
    for item in own:
        if item.fn.__module__.startswith("magmerge."):
            assert prose.paragraphs(item.fn)[2], f"{item.name}: its docstring has no 'When: '"


def test_formulas_are_set_and_nothing_else_is() -> None:
    assert prose.markdown("lambda sum_k w_k D_k^T, |a_k| <= `a_b`") == (
        "λ Σ<sub>k</sub> w<sub>k</sub> D<sub>k</sub><sup>T</sup>, |a<sub>k</sub>| ≤ `a_b`"
    )
    assert prose.markdown("select_topk * a") == "select\\_topk · a"


def test_values_are_told_with_their_range() -> None:
    own = {
        each.name: values.allowed(each.annotation) for each in magmerge.method("ties").parameters
    }
    assert own["density"] == "a number in (0, 1], or a list of one for each expert"
    assert own["scope"] == "`tensor`, `model`"


def test_the_page_on_python_has_the_front_door() -> None:
    page = python_page.page()
    for name in set(magmerge.__all__) - {"__version__"}:
        assert f"heading: magmerge.{name}," in page


def test_code_in_tables_keeps_its_signs() -> None:
    assert links.with_pipes("| `a\\|<b>` | `c` |") == "| <code>a&#124;&#60;b&#62;</code> | `c` |"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_pages_name_are_there(page: Path) -> None:
    rooms = "tests|benchmarks|src|scripts|examples|fuzz|docs"
    for path in re.findall(rf"`((?:{rooms})/[\w./-]+)`", text_of(page)):
        assert (ROOT / path).exists() or "NAME" in path, path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path, made: dict[str, str]) -> None:
    path = page.relative_to(ROOT).as_posix()
    text, lost = links.on_site(page.read_text(encoding="utf-8"), path, ROOT)
    there = {*made, *links.ROOT_PAGES, "python.md"}
    for target in re.findall(r"\]\(([\w./-]+\.md)", text):
        assert target in there or (ROOT / "docs" / target).is_file(), target
    assert not lost


@pytest.fixture(scope="module")
def options() -> Callable[[tuple[str, ...]], set[str]]:
    """The long options of a verb, as its help has them."""

    @cache
    def of(words: tuple[str, ...]) -> set[str]:
        wide = {**os.environ, "COLUMNS": "200"}
        call = [sys.executable, "-m", "magmerge", *words, "--help"]
        shown = subprocess.run(call, capture_output=True, text=True, check=True, env=wide)
        return set(re.findall(r"--[a-z][a-z0-9-]+", shown.stdout))

    return of


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_documented_commands_are_the_programs(
    page: Path, options: Callable[[tuple[str, ...]], set[str]]
) -> None:
    for line in COMMAND.findall(text_of(page)):
        verb, *words = shlex.split(line.partition(" #")[0])
        if verb.startswith("-"):
            continue
        assert verb in VERBS, line
        used = {word.partition("=")[0] for word in words if re.match("--[a-z]", word)}
        assert used <= options((verb, words[0]) if verb == "plot" else (verb,)), line


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_programs_that_pages_name_are_there(page: Path) -> None:
    named = re.findall(r"-m (benchmarks|examples|scripts|fuzz)((?:\.\w+)*)", text_of(page))
    for room, rest in named:
        path = ROOT / room / rest.strip(".").replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), room + rest
