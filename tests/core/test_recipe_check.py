"""Everything that is wrong with a recipe's file is told at once, each with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import magmerge
from magmerge.core.errors import MagmergeError, ParameterError, RecipeError, UnknownNameError
from magmerge.core.recipe_check import check_text
from magmerge.core.recipe_lines import line_of, lines_of
from tests.conftest import CommandLine
from tests.quick import examples

BAD = """\
# A recipe with everything wrong.
base: bsae
experts:
  one: expert0
  two: nowhere/of/expert1
metod: ties
method: ties
params:
  density: 2
  lamda: 1
calibrate:
  - wsx
  - method: wsc
    params: {target: cube}
gate: maybe
seed: many
output:
  dtype: float99
  shard: 3
rename: {tree: {a: b}}
"""
LINES = {
    2: "bsae: no such file", 5: "nowhere/of/expert1: no such file", 6: "unknown key 'metod'",
    9: "density = 2 for ties", 10: "no parameter 'lamda'", 12: "no calibrator named 'wsx'",
    13: "target = 'cube' for wsc", 15: "gate: input should be", 16: "seed: input should be",
    18: "no floating-point dtype 'float99'", 19: "unknown key 'output.shard'",
    20: "no expert 'tree'",
}  # fmt: skip
MENDED = {
    2: "base: base", 5: "  two: expert1", 6: "", 9: "  density: 0.5", 10: "  lambda: 1",
    12: "  - wsc", 13: "  - method: fsc" , 14: "", 15: "gate: on", 16: "seed: 3",
    18: "  dtype: float32", 19: "", 20: "",
}  # fmt: skip


@pytest.fixture
def recipe(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yml"
    file.write_text(BAD)
    return file


def test_every_fault_is_told_with_its_line(recipe: Path, magmerge_cli: CommandLine) -> None:
    shown = magmerge_cli("merge", recipe, "out")
    assert shown.code == 1
    assert f"{len(LINES)} faults found before any work" in shown.err
    told = dict(re.findall(r"recipe\.yml:(\d+): (.*)", shown.err))
    assert list(map(int, told)) == list(LINES)
    for line, words in LINES.items():
        assert words in told[str(line)], line
    assert "did you mean method?" in shown.err
    assert "did you mean base?" in shown.err
    assert not Path("out").exists()


def test_what_is_left_is_told_until_nothing_is(recipe: Path) -> None:
    """Line after line is mended as its remedy says, and each time the others are told."""
    lines = BAD.splitlines()
    left = set(LINES)
    for line in LINES:
        with pytest.raises(MagmergeError) as raised:
            magmerge.run(recipe, "out")
        told = {int(number) for number in re.findall(r"yml:(\d+):", str(raised.value))}
        assert told == left
        assert isinstance(raised.value, RecipeError) == (len(left) > 1)
        for number in range(line, line + (2 if line == 13 else 1)):
            lines[number - 1] = MENDED[number]
        left -= {line}
        recipe.write_text("\n".join(lines).replace("  - method: fsc\n", ""))
        if line >= 13:
            lines[12] = "#"
            recipe.write_text("\n".join(lines))
    assert magmerge.run(recipe, "out").path == Path("out")


def test_one_fault_keeps_its_kind_and_gets_its_line() -> None:
    with pytest.raises(UnknownNameError, match="no method named 'tyes'") as raised:
        check_text("experts: {}\nmethod: tyes\n", "r.yml")
    assert raised.value.source == "r.yml:2"
    with pytest.raises(ParameterError, match="gate") as other:
        check_text("experts: {}\n\ngate: perhaps\n", "r.yml")
    assert other.value.source == "r.yml:3"
    check_text("experts: {}\nmethod: ties\n", "r.yml")


def test_documents_have_lines_of_their_own_and_results_are_not_missed(tmp_path: Path) -> None:
    text = "name: first\nbase: nowhere\n---\nbase: first\nmethod: tyes\n"
    with pytest.raises(RecipeError) as raised:
        check_text(text, "r.yml")
    assert [error.source for error in raised.value.errors] == ["r.yml:2", "r.yml:5"]
    check_text("base: nowhere\n", "r.yml", {"base"})
    with pytest.raises(RecipeError):
        check_text("base: nowhere\nexperts: {base2: nowhere}\nmethod: tyes", "r.yml", {"base"})


def test_lines_of_keys_lists_and_aliases() -> None:
    (lines,) = lines_of("a: &x\n  b: 1\nc:\n- d\n- e: *x\n")
    assert (line_of(lines, ("a", "b")), line_of(lines, ("c", "1"))) == (2, 5)
    assert line_of(lines, ("a", "nothing", "here")) == 1
    bomb = "a: &a [x, x]\n" + "".join(
        f"{n}: &{n} [*{chr(ord(n) - 1)}, *{chr(ord(n) - 1)}]\n" for n in "bcdefghijklmnop"
    )
    assert len(lines_of(bomb)[0]) < 2000


@settings(deadline=None, max_examples=examples(100))
@given(st.dictionaries(st.sampled_from([*magmerge.Recipe.model_fields, "x"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab/-+@", max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=3), inner),
    max_leaves=4,
)))  # fmt: skip
def test_any_values_are_told_and_none_is_a_traceback(content: dict[str, object]) -> None:
    try:
        check_text(yaml.safe_dump(content), "r.yml")
    except MagmergeError as error:
        assert str(error)
