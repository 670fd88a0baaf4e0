"""Ticks, blocks and model order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magmerge.report.account import LayerAccount, in_model_order, modules_of
from magmerge.report.axis import blocks_of, common_stem, factor_ticks


def layers(*names: str) -> tuple[LayerAccount, ...]:
    return tuple(LayerAccount(name=name) for name in names)


@given(st.floats(1e-9, 0.999), st.floats(1.001, 1e9))
def test_ticks_are_few_and_round_and_1_is_among_them(low: float, high: float) -> None:
    ticks = factor_ticks(low, high)
    assert 1 in ticks
    assert 1 < len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= high for tick in ticks)


def test_names_in_the_order_of_letters_are_put_into_that_of_numbers() -> None:
    sorted_by_letter = layers("h.0.a", "h.1.a", "h.10.a", "h.2.a", "wte")
    found = [one.name for one in in_model_order(sorted_by_letter)]
    assert found == ["h.0.a", "h.1.a", "h.2.a", "h.10.a", "wte"]
    given_order = layers("wte", "h.10.a", "h.2.a")
    assert in_model_order(given_order) == given_order


def test_blocks_are_runs_of_names_up_to_their_first_number() -> None:
    found = blocks_of(["embed", "h.0.q", "h.0.mlp.1", "h.1.q", "head"])
    assert [(one.start, one.stop, one.label) for one in found] == [
        (0, 1, "embed"),
        (1, 3, "0"),
        (3, 4, "1"),
        (4, 5, "head"),
    ]
    assert common_stem(["embed", "h.0.q", "h.1.q"]) == "h"
    assert common_stem(["conv1", "conv2"]) is None


@pytest.mark.parametrize("name", ["0.weight", "layers_3_dense.weight", "a.0weight", "12"])
def test_names_with_numbers_anywhere_have_blocks(name: str) -> None:
    assert len(blocks_of([name])) == 1


def test_a_bias_with_a_factor_of_its_own_has_a_mark_of_its_own() -> None:
    weight = LayerAccount(name="a.weight", kind="matrix", xi=1.5, calibrated_by=("x",))
    same = LayerAccount(name="a.bias", kind="vector", xi=1.5, calibrated_by=("x",))
    other = LayerAccount(name="a.bias", kind="vector", xi=1.2, calibrated_by=("x",))
    assert [one.name for one in modules_of((same, weight))] == ["a"]
    assert modules_of((same, weight))[0].lead is weight
    assert [one.name for one in modules_of((other, weight))] == ["a.bias", "a.weight"]
