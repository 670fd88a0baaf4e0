"""Whatever magmerge.json holds, there is a report or an error with a remedy."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from magmerge.core.errors import MagmergeError
from magmerge.report.page import render
from tests.quick import examples
from tests.report.documents import Page, document, evaluation

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, "\ud800", "<b>", 1e300, -0.0, "on", "wsc", "fsc"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
steps = st.lists(st.integers(0, 40), min_size=1, max_size=6)
few = settings(deadline=None, max_examples=examples(25), suppress_health_check=list(HealthCheck))


def changed(content: Any, path: list[int], value: Any) -> Any:
    """`content` with one of its parts, deep within, made `value`."""
    content = copy.deepcopy(content)
    place = content
    for depth, step in enumerate(path):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[step % len(keys)]
        inner = place[key]
        if depth == len(path) - 1 or not isinstance(inner, dict | list) or not inner:
            place[key] = value
            return content
        place = inner
    return content


def reported(content: Any, scores: Any = ()) -> None:
    try:
        text = render(content, scores)
    except MagmergeError as error:
        assert error.remedy
        str(error).encode("utf-8")
    else:
        text.encode("utf-8")
        assert Page(text).faults == []


@few
@given(steps, values)
def test_a_document_with_any_part_changed(path: list[int], value: Any) -> None:
    reported(changed(document(blocks=1), path, value))


@few
@given(steps, values)
def test_scores_with_any_part_changed(path: list[int], value: Any) -> None:
    content = {**document(blocks=1), "layers": []}
    reported(content, [changed(evaluation("a"), path, value)])


@few
@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_any_object_at_all(content: dict[str, Any]) -> None:
    reported(content)


@few
@given(
    st.lists(st.tuples(st.text(max_size=12), st.floats(), st.floats(), st.booleans()), max_size=12)
)
def test_any_names_and_numbers(rows: list[tuple[str, float, float, bool]]) -> None:
    content = document(blocks=1)
    pattern = content["layers"][1]
    content["layers"] = [
        {**pattern, "name": name, "xi": xi, "xi_free": free, "norm_after": free, "sensitive": known}
        for name, xi, free, known in rows
    ]
    reported(content)


def test_a_recipe_that_is_nested_beyond_measure() -> None:
    content = document(blocks=1)
    content["recipe"]["params"] = json.loads('{"a":' * 700 + "1" + "}" * 700)
    reported(content)
