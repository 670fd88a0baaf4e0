"""The rules by which `auto` chooses: pure functions of what was measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.core.choice import (
    ALIKE,
    BRAKES,
    LOW_RANK,
    Candidate,
    Evidence,
    by_weights,
    candidates,
    check_auto,
    chosen,
    compared,
    fit,
    nearest,
)
from magmerge.core.choice_account import Comparison, told, told_of_rows
from magmerge.core.errors import MagmergeError, UnknownNameError
from magmerge.core.recipe import Calibration, Recipe
from magmerge.core.validation import check_calibrations, check_method, is_auto
from tests.quick import examples

EXPERTS = {"a": "A", "b": "B"}
AUTO = Recipe(base="X", experts=EXPERTS, method="auto")
DATA: dict[str, Any] = {"data": {"a": "a.txt", "b": "b.txt"}}
evidences = st.builds(
    Evidence, st.integers(1, 9), st.floats(0, 1), st.floats(-1, 1), st.floats(0, 9),
    st.integers(0, 50),
)  # fmt: skip
recipes = st.builds(
    lambda method, calibrate, samples: Recipe(
        base="X", experts=EXPERTS, method=method, samples=samples,
        calibrate=calibrate if method == "auto" else ["auto"],
    ),
    st.sampled_from(["auto", "tsv_m", "average"]),
    st.sampled_from([[], ["auto"], ["wsc"]]),
    st.sampled_from([None, DATA]),
)  # fmt: skip


@settings(deadline=None, max_examples=examples(100))
@given(recipes, evidences)
def test_what_is_chosen_is_a_recipe_without_auto_that_can_be_carried_out(
    recipe: Recipe, evidence: Evidence
) -> None:
    assert is_auto(recipe)
    sampled = recipe.samples is not None
    every = fit(recipe, sampled, evidence)
    first, reason = by_weights(recipe, evidence)
    assert every[0] == first
    assert reason
    assert not first.sampled
    assert len({one.label for one in every}) == len(every)
    for one in every:
        own = chosen(recipe, one)
        assert not is_auto(own)
        assert (own.samples is not None) == one.sampled or recipe.calibrate == check("wsc")
        check_method(own.method, own.params)
        check_calibrations(own.calibrate)


def check(name: str) -> tuple[Calibration, ...]:
    return (Calibration(method=name),)


@pytest.mark.parametrize(
    ("evidence", "label"),
    [
        (Evidence(1, 0.9, 1.0, 0.01, 5), "task_arithmetic"),
        (Evidence(3, 0.9, ALIKE, 0.01, 5), "average"),
        (Evidence(3, LOW_RANK / 2, 0.0, 0.01, 5), "tsv_m"),
        (Evidence(3, LOW_RANK, 0.0, 0.01, 5), "tsv_m + regression"),
        (Evidence(3, 0.0, 0.0, 0.0, 0), "average"),
    ],
)
def test_each_rule_by_weights(evidence: Evidence, label: str) -> None:
    assert by_weights(AUTO, evidence)[0].label == label


@settings(deadline=None, max_examples=examples(100))
@given(evidences)
def test_a_given_calibration_stays(evidence: Evidence) -> None:
    recipe = AUTO.model_copy(update={"calibrate": check("wsc")})
    assert not by_weights(recipe, evidence)[0].calibrate
    for one in fit(recipe, False, evidence):
        assert chosen(recipe, one).calibrate == check("wsc")


def test_a_merge_that_exists_and_is_not_calibrated_is_taken_as_it_is() -> None:
    recipe = Recipe(base="X", experts=EXPERTS, merged="M", calibrate=["auto"], samples=DATA)
    own = chosen(recipe, Candidate())
    assert own.experts == {"model": "M"}
    assert (own.base, own.merged, own.method, own.calibrate) == (None, None, None, ())


losses = st.integers(1, 6).flatmap(
    lambda rows: st.lists(
        st.lists(
            st.one_of(st.floats(0, 100), st.just(math.inf)), min_size=rows, max_size=rows
        ),
        min_size=3, max_size=6,
    )
)  # fmt: skip


def named(rows: list[list[float]]) -> dict[str, list[float]]:
    return dict(zip(["first", *BRAKES[:2], "p", "q", "r"], rows, strict=False))


def mean(rows: list[float]) -> float:
    return sum(rows) / len(rows)


@settings(deadline=None, max_examples=examples(100))
@given(losses)
def test_nothing_is_chosen_that_is_farther_than_base_or_average(rows: list[list[float]]) -> None:
    known = named(rows)
    best = nearest(known)
    for brake in BRAKES[:2]:
        assert mean(known[best]) <= mean(known[brake]) + 1e-9


@settings(deadline=None, max_examples=examples(100))
@given(losses, st.randoms())
def test_the_order_of_all_but_the_first_does_not_matter(rows: list[list[float]], draw: Any) -> None:
    known = named(rows)
    others = [*known][1:]
    draw.shuffle(others)
    other = nearest({name: known[name] for name in ["first", *others]})
    assert other == nearest(known) or mean(known[other]) == mean(known[nearest(known)])


def test_every_candidate_worse_than_the_base_keeps_the_base_and_says_so() -> None:
    known = {
        "tsv_m": [2.0, 2.1, 1.9], "base": [1.0, 1.1, 0.9], "average": [1.5, 1.4, 1.6],
        "knots": [3.0, 3.0, 3.0],
    }  # fmt: skip
    assert nearest(known) == "base"
    every = {one.label: one for one in candidates(AUTO, True)}
    found = Comparison("KL", known, {"a": 3}, {})
    evidence = Evidence(2, 0.1, 0.0, 0.01, 4)
    text = told_of_rows(evidence, every["base"], every["tsv_m"], "why", found)["text"]
    assert "auto chose base: on 3 rows" in text
    assert "nothing else came as near" in text


def test_chance_does_not_overrule_what_weights_choose() -> None:
    brakes = {"base": [9.0, 9.0, 9.0], "average": [8.0, 8.0, 8.0]}
    first, other = [1.0, 2.0, 3.0], [0.5, 2.5, 2.9]
    assert nearest({"first": first, "p": other, **brakes}) == "first"
    surely = [own - 0.1 for own in first]
    assert nearest({"first": first, "p": surely, **brakes}) == "p"
    assert nearest({"first": [math.nan, 1.0, 1.0], "p": other, **brakes}) == "p"


def test_rows_count_where_base_and_average_are_finite() -> None:
    known = compared({"first": [1.0, math.nan, 3.0], "base": [1.0, 2.0, math.nan]})
    assert known["base"] == [1.0, 2.0]
    assert math.isnan(known["first"][1])
    assert told(Evidence(2, 0, 0, 0, 0), Candidate("average"), "why")["chosen"] == "average"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": None}, "name the base with --base"),
        ({"calibrate": check("auto") + check("wsc")}, "leave it alone"),
        ({"statistics": {"a": "f"}}, "give samples"),
        ({"moe": {"gate_mode": "random"}}, "name the method"),
    ],
)
def test_where_nothing_can_be_chosen(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MagmergeError) as caught:
        check_auto(AUTO.model_copy(update=changes))
    assert words in str(caught.value)


def test_auto_has_no_parameters() -> None:
    for call in (
        lambda: check_method("auto", {"density": 0.2}),
        lambda: check_calibrations({"method": "auto", "params": {"density": 0.2}}),
    ):
        with pytest.raises(UnknownNameError, match="auto has no parameter 'density'"):
            call()
