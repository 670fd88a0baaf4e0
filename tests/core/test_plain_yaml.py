"""YAML as plain data: what is written is read back."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from magmerge.core.plain_yaml import PlainLoader, yaml_of
from tests.quick import examples

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
words = st.text(alphabet="0123456789eE+-._", max_size=6)
plain = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@example(["\x85", {"a\u2028b": "c\u2029"}, "\ufeff"])
@settings(max_examples=examples(300), deadline=None)
@given(st.lists(plain, min_size=1, max_size=3))
def test_what_is_written_is_read_back(documents: list[Any]) -> None:
    assert list(yaml.load_all(yaml_of(*documents), PlainLoader)) == documents


@pytest.mark.parametrize("word", ["1e5", "0E0", "+1e-5", "12e+3"])
def test_a_name_that_looks_like_a_number_stays_a_name(word: str) -> None:
    assert yaml.load(yaml_of({word: [word]}), PlainLoader) == {word: [word]}
    assert yaml_of({"a": float("1e-05")}) == "a: 1.0e-05\n"
