"""Vocabularies beside each other, against what a plain dictionary says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.checkpoints.tokens.alignment import (
    AmbiguousRowsError,
    TokenTable,
    align,
    groups,
    padded,
)
from magmerge.checkpoints.tokens.rows import ABSENT
from tests.quick import examples


@st.composite
def tables(draw: st.DrawFn) -> list[TokenTable]:
    """Some models: texts in any order, rows cut short, padded, and with holes."""
    texts = [f"t{number}" for number in range(12)]
    models = []
    for place in range(draw(st.integers(1, 4))):
        own = draw(st.permutations(texts))[: draw(st.integers(1, 12))]
        places = draw(st.permutations(range(14)))[: len(own)]
        count = draw(st.integers(1, 16))
        models.append(TokenTable(f"m{place}", count, dict(zip(own, places, strict=True))))
    return models


def row_of(table: TokenTable, text: str) -> int:
    place = (table.ids or {}).get(text, ABSENT)
    return place if place < table.count else ABSENT


@settings(max_examples=examples(200), deadline=None)
@given(tables(), st.booleans())
def test_each_row_is_that_of_its_text(models: list[TokenTable], union: bool) -> None:
    owner = None if union else len(models) - 1
    aligned = align(models, owner)
    own = models[owner or 0]
    named = [text for text in aligned.texts if text is not None]
    assert len(set(named)) == len(named)
    held = {text for model in models for text in model.ids or {} if row_of(model, text) != ABSENT}
    if union:
        assert held <= set(named)
    for text, place in (own.ids or {}).items():
        if place < own.count:
            assert aligned.texts[place] == text
    for model, rows, lost in zip(models, aligned.rows, aligned.lost, strict=True):
        assert len(rows) == aligned.count
        for place, (text, row) in enumerate(zip(aligned.texts, rows.tolist(), strict=True)):
            if text is not None:
                assert row == row_of(model, text)
            else:
                # Without a text a row is its place, and no other token's.
                named_there = place in (model.ids or {}).values()
                assert row == (ABSENT if named_there or place >= model.count else place)
        missing = {t for t in model.ids or {} if row_of(model, t) != ABSENT} - set(named)
        assert set(lost) == missing


def test_what_has_no_texts_is_matched_by_place() -> None:
    models = [TokenTable("a", 4), TokenTable("b", 6), TokenTable("c", 3)]
    assert [rows.tolist() for rows in align(models).rows] == [
        [0, 1, 2, 3, -1, -1], [0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1],
    ]  # fmt: skip
    aligned = align(models, 0)
    assert aligned.count == 4
    assert aligned.cut == [0, 2, 0]


def test_what_has_no_texts_has_the_first_ones_of_another() -> None:
    ids = {"a": 1, "b": 0, "c": 2}
    aligned = align([TokenTable("base", 2), TokenTable("e", 3, ids)])
    assert aligned.texts == ["b", "a", "c"]
    assert aligned.assumed == {"base": "e"}
    assert aligned.rows[0].tolist() == [0, 1, ABSENT]
    with pytest.raises(AmbiguousRowsError):
        align([TokenTable("base", 2), TokenTable("e", 3, ids), TokenTable("f", 3, {"a": 0})])


def test_texts_beside_and_rows_up_to_a_multiple() -> None:
    models = [TokenTable("base", 5, {"a": 0, "b": 1}), TokenTable("e", 2, {"b": 0, "c": 1})]
    aligned = padded(align(models, 0, ["x", "a"]), 4)
    assert aligned.texts == ["a", "b", "x", None, None, None, None, None]
    assert aligned.rows[0].tolist() == [0, 1, ABSENT, 3, 4, ABSENT, ABSENT, ABSENT]
    assert aligned.rows[1].tolist() == [ABSENT, 0] + [ABSENT] * 6


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_rows_of_the_same_voters_are_together(rows: list[tuple[bool, bool]]) -> None:
    presence = [np.array(column) for column in zip(*rows, strict=True)]
    order = groups(presence)
    assert sorted(order.tolist()) == list(range(len(rows)))
    patterns = [rows[place] for place in order.tolist()]
    changes = sum(a != b for a, b in pairwise(patterns))
    assert changes == len(set(rows)) - 1
    if sum(a != b for a, b in pairwise(rows)) == changes:
        assert order.tolist() == list(range(len(rows)))
