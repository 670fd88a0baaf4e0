"""The space that marks span: any recipe gives one, or one message."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quick import examples
from tests.studies.tuning.recipes import unquoted

from magmerge.core.errors import MagmergeError, UnknownNameError
from magmerge.core.marks import Choices
from magmerge.studies.tuning.space import read_space

MARKS = (
    *("!tune [ties, tsv_m]", "!tune [0.1, 0.9]", "!tune [1, 4]", "!tune [null, wsc]"),
    *("!tune [[wsc], [fsc]]", "!tune [true, false]", "!tune {choices: [dsc, 3]}"),
    "!tune [{method: wsc}, {method: 3}]",
)
leaf = st.sampled_from([*MARKS, "ties", "wsc", 0.3, 2, None, True, "x", ""])
value = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["method", "params", "density", "lambda", "target", "value"]),
            inner, max_size=3,
        ),
    ),
    max_leaves=6,
)  # fmt: skip
KEYS = ("method", "params", "calibrate", "samples", "skip", "experts", "base", "seed", "gate")


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(KEYS), value, min_size=1, max_size=4),
        min_size=1, max_size=2,
    ),
    st.integers(0, 3),
)  # fmt: skip
def test_any_recipe_is_a_space_or_one_message(documents: list[Any], place: int) -> None:
    text = unquoted(yaml.safe_dump_all(documents, sort_keys=False, width=10_000))
    try:
        space = read_space(text, "r")
        start = space.start()
        other = {
            name: mark.space.values[place % len(mark.space.values)]
            if isinstance(mark.space, Choices)
            else mark.space.high
            for name, mark in space.marks.items()
        }
        active = space.active(other)
        whole = space.text({name: other[name] for name in active})
    except MagmergeError:
        return
    assert all(start[name] in mark.space for name, mark in space.active(start).items())
    assert "!tune" not in whole
    assert isinstance(space.notes(), list)


def test_unknown_calibrators_are_told_before_the_search() -> None:
    for mark in ("!tune [wsc, wcs]", "!tune [null, {method: wcs}]"):
        with pytest.raises(UnknownNameError, match="wcs"):
            read_space(f"base: b\nexperts: [c]\nmethod: ties\ncalibrate: {mark}\n", "r")
