"""Marks in a recipe's YAML: what they mean, where they may stand, and what is said of others."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from magmerge.core.errors import MagmergeError, ParameterError
from magmerge.core.marks import Choices, Mark, Range, read_marked
from magmerge.core.plain_yaml import PlainLoader, yaml_of
from magmerge.core.recipe import Recipe
from tests.quick import examples


def only(text: str) -> Mark:
    (mark,) = read_marked(text, "r.yml").marks.values()
    return mark


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("[0.1, 0.9]", Range(0.1, 0.9)),
        ("[1, 9]", Range(1, 9)),
        ("[0, 0.9]", Range(0, 0.9)),
        ("[1e-5, 1e-2]", Range(1e-5, 1e-2)),
        ("{low: 0.001, high: 1.0, log: true}", Range(0.001, 1.0, log=True)),
        ("{low: 1, high: 9, step: 2}", Range(1, 9, step=2)),
        ("{low: 0, high: 1, step: 0.25}", Range(0.0, 1.0, step=0.25)),
        ("[ties, tsv_m]", Choices(("ties", "tsv_m"))),
        ("[true, false]", Choices((True, False))),
        ("[[0.5, 0.5], [1.0, 0.2]]", Choices(([0.5, 0.5], [1.0, 0.2]))),
        ("[0.1, 0.2, 0.4]", Choices((0.1, 0.2, 0.4))),
        ("{choices: [1, 2]}", Choices((1, 2))),
        ("[1, true]", Choices((1, True))),
    ],
)
def test_a_range_or_choices(text: str, space: object) -> None:
    assert only(f"a: !tune {text}").space == space


def test_as_a_block_and_with_a_default() -> None:
    mark = only("a:\n  - b: !tune\n      low: 0.1\n      high: 1.0\n      default: 1e-1\n")
    assert (mark.space, mark.default, mark.line) == (Range(0.1, 1.0), (0.1,), 2)
    assert only("a: !tune {choices: [x, null], default: null}").default == (None,)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("0.5", "neither a range"),
        ("", "neither a range"),
        ("[]", "no two choices"),
        ("[ties]", "no two choices"),
        ("[0.9, 0.1]", "not below"),
        ("[0.1, .nan]", "no plain value"),
        ("[.inf, 1.0]", "no plain value"),
        ("{low: 0.1}", "two numbers"),
        ("{low: 0.1, high: x}", "two numbers"),
        ("{low: 0.0, high: 1.0, log: true}", "above zero"),
        ("{low: 0.1, high: 1.0, log: 3}", "above zero"),
        ("{low: 0.1, high: 1.0, step: 2}", "step is 2"),
        ("{low: 0.1, high: 1.0, step: 0}", "step is 0"),
        ("{low: 0.1, high: 1.0, lgo: true}", "unknown part 'lgo'"),
        ("{choices: [1, 2], low: 1}", "no range"),
        ("{choices: 3}", "no two choices"),
        ("[a, a]", "stands twice"),
        ("[2026-01-01, b]", "no plain value"),
        ("[{1: a}, b]", "no plain value"),
        ("{low: 0.1, high: 0.9, default: 2.0}", "none of what is searched"),
        ("{low: 0.0, high: 1.0, step: 0.5, default: 0.3}", "none of what is searched"),
        ("[1, !tune [2, 3]]", "mark within the mark"),
    ],
)
def test_a_wrong_mark_is_told_with_its_line(text: str, word: str) -> None:
    with pytest.raises(ParameterError) as caught:
        read_marked(f"base: b\na: !tune {text}\n", "r.yml")
    assert word in caught.value.problem
    assert "line 2" in caught.value.problem
    assert caught.value.source == "r.yml"


def test_a_mark_in_place_of_a_key() -> None:
    with pytest.raises(ParameterError, match="stands for a key"):
        read_marked("? !tune [a, b]\n: 1\n", "r.yml")


def test_values_go_in_wherever_the_mark_stood() -> None:
    marked = read_marked(
        "name: one\nparams:\n  weights: [!tune [0.1, 1.0], 2]\n  lambda:\n"
        "  - {filter: mlp, value: !tune [0.5, 1.5]}\n  - {value: {gradient: [0, !tune [0, 2]]}}\n"
        "---\nd: &d !tune [0.0, 1.0]\ne: *d\ncalibrate: !tune [wsc, null]\n",
        "r.yml",
    )
    assert list(marked.marks) == [
        "1:params.weights[0]",
        "1:params.lambda[0].value",
        "1:params.lambda[1].value.gradient[1]",
        "2:d",
        "2:calibrate",
    ]
    values = dict(zip(marked.marks, (0.3, 1.25, 1, 0.5, None), strict=True))
    first, second = yaml.safe_load_all(yaml_of(*marked.filled(values)))
    assert first["params"] == {
        "weights": [0.3, 2],
        "lambda": [{"filter": "mlp", "value": 1.25}, {"value": {"gradient": [0, 1]}}],
    }
    # One mark under two names has one value; what is chosen to be null is left out.
    assert second == {"d": 0.5, "e": 0.5}


def test_keys_that_look_alike_are_told_apart() -> None:
    marked = read_marked('"a.b": !tune [1, 2]\na: {b: !tune [3, 4]}\n1: !tune [5, 6]\n', "r")
    assert list(marked.marks) == ['"a.b"', "a.b", "1"]


def test_middles_and_rounding() -> None:
    assert Range(0.1, 0.9).middle == pytest.approx(0.5)
    assert Range(1, 9, step=4).middle == 5
    assert Range(0.01, 1.0, log=True).middle == pytest.approx(0.1)
    assert Range(0.0, 2.0).rounded(1.23456789) == 1.235
    assert Range(0.1, 0.10002).rounded(0.1000123456) == pytest.approx(0.10001235, abs=1e-9)
    assert Range(1e-6, 1.0, log=True).rounded(1.23456e-5) == 1.235e-05


def test_other_verbs_say_what_to_do(magmerge_cli: Any, tmp_path: Any) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text("base: b\nmethod: ties\nparams:\n  density: !tune [0.1, 0.9]\n")
    with pytest.raises(ParameterError, match="line 4") as caught:
        Recipe.from_yaml(recipe.read_text(), str(recipe))
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith(f"run magmerge tune {recipe} OUT")
    told = magmerge_cli("merge", recipe, tmp_path / "out")
    assert told.code == 1
    assert "marks to search: !tune in line 4" in told.message
    # The other remedy: a value in the mark's place.
    text = recipe.read_text().replace("!tune [0.1, 0.9]", "0.5")
    assert Recipe.from_yaml(text).params == {"density": 0.5}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=examples(300), deadline=None)
@example(content=[False, None], keys="0E0")
@example(content=[[], None], keys="?0")
@given(content=plain, keys=st.text(max_size=5))
def test_any_content_is_a_mark_or_a_plain_error(content: Any, keys: str) -> None:
    flow = yaml.safe_dump(content, default_flow_style=True, allow_unicode=True).strip("\n ")
    flow = flow.removesuffix("...").strip("\n ")
    # In braces a plain word may mean something else than in a line of its own.
    key = yaml.safe_dump(keys, default_style='"', width=1000).strip()
    try:
        marked = read_marked(f"a:\n - {{{key}: !tune {flow}}}\n", "r.yml")
        values = {
            name: mark.space.values[0] if isinstance(mark.space, Choices) else mark.space.middle
            for name, mark in marked.marks.items()
        }
    except MagmergeError:
        return
    assert all(values[name] in mark.space for name, mark in marked.marks.items())
    text = yaml_of(*marked.filled(values))
    (back,) = yaml.load_all(text, PlainLoader)
    assert "!tune" not in text or "!tune" in repr(content) + keys
    for name, mark in marked.marks.items():
        assert back == {"a": [{} if values[name] is None else {keys: values[name]}]}
        assert mark.line >= 2


@settings(max_examples=examples(300), deadline=None)
@given(st.text(alphabet=st.sampled_from(list("!tune []{}:,&*a1.0\n- #'\"?|>%<")), max_size=40))
def test_no_text_gives_anything_but_marks_or_an_error(text: str) -> None:
    try:
        marked = read_marked(text, "r.yml")
        yaml_of(*marked.filled({}))
    except MagmergeError:
        pass


def test_a_document_that_holds_itself() -> None:
    marked = read_marked("a: &a [*a, !tune [1, 2]]\n", "r.yml")
    assert list(marked.marks) == ["a[1]"]
    (filled,) = marked.filled({"a[1]": 1})
    assert filled["a"][0] is filled["a"]


def test_many_aliases_are_looked_at_once() -> None:
    lines = ["a0: &a0 [!tune [1, 2]]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    marked = read_marked("\n".join(lines), "r.yml")
    assert list(marked.marks) == ["a0[0]"]
    assert len(yaml_of(*marked.filled({"a0[0]": 2}))) < 20_000
