"""FSC's two pure functions against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magmerge.calibrators.fsc import fsc, measure, token_norms
from magmerge.core import registry
from magmerge.core.errors import ParameterError
from magmerge.linalg.row_norms import row_norms

seeds = st.integers(0, 1000)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@given(seed=seeds, size=st.sampled_from([1e-25, 1e-3, 1.0, 1e20]))
@settings(deadline=None, max_examples=30)
def test_measure_is_the_quotient_of_lengths(norm: str, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    expert, merged = torch.randn(2, 4, 6, generator=generator) * size
    found = measure(expert, merged, norm=norm)
    for token in range(4):
        lengths = []
        for rows in (expert, merged):
            entries = [abs(value) for value in rows[token].double().tolist()]
            lengths.append(sum(entries) if norm == "l1" else math.hypot(*entries))
        assert float(found[token]) == pytest.approx(lengths[0] / lengths[1], rel=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e15, 1e30])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_tokens_are_those_of_rows_to_the_bit(
    size: float, order: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(7, 5, 301, generator=generator, dtype=dtype) * size
    features[:, :, ::2] *= 1e-8
    features[0, 0], features[0, 1, 3], features[0, 2, 3] = 0, torch.inf, torch.nan
    for tokens in (features.flatten(0, 1), features.movedim(0, 1)[1], features[..., 7:].mT[2]):
        norms = token_norms(tokens, order)
        assert torch.equal(norms.nan_to_num(-1), row_norms(tokens, order).nan_to_num(-1))


def test_tokens_without_a_change_tell_nothing() -> None:
    zero, some = torch.zeros(3, 4), torch.ones(3, 4)
    assert measure(zero, some).tolist() == [0, 0, 0]
    assert not measure(some, zero).isfinite().any()
    assert not measure(zero, zero).isfinite().any()


def test_the_factor_is_the_mean_of_what_experts_ask_for() -> None:
    deltas, merged = torch.randn(3, 5, 4), torch.randn(5, 4)
    assert float(fsc(deltas, merged, gains=torch.tensor([1.0, 2.0, 6.0]))) == 3
    rows = torch.tensor([[1.0, 2, 3, 4, 5], [3, 4, 5, 6, 7], [2, 3, 4, 5, 6]])
    assert fsc(deltas, merged, gains=rows).tolist() == [2, 3, 4, 5, 6]


def test_what_is_zero_or_not_finite_is_left_out() -> None:
    deltas, merged = torch.randn(4, 5, 4), torch.randn(5, 4)
    gains = torch.tensor([2.0, math.nan, math.inf, 0.0])
    assert float(fsc(deltas, merged, gains=gains)) == 2
    assert float(fsc(deltas, merged, gains=torch.full((4,), math.nan))) == 1


def test_it_does_not_guess_what_was_not_measured() -> None:
    with pytest.raises(ParameterError, match="no measured gains"):
        fsc(torch.randn(2, 3, 3), torch.randn(3, 3))


def test_it_says_that_it_looks_at_inputs() -> None:
    item = registry.calibrators.get("fsc")
    assert item.needs == "inputs"
    assert [parameter.name for parameter in item.parameters] == ["norm", "check"]


def test_projection_is_the_factor_that_comes_nearest_and_none_where_they_point_apart() -> None:
    torch.manual_seed(0)
    expert, merged = torch.randn(6, 4), torch.randn(6, 4)
    found = measure(expert, merged, norm="projection").double()
    for gain, own, other in zip(found, expert.double(), merged.double(), strict=True):
        nearest = float(own @ other / (other @ other))
        assert float(gain) == pytest.approx(max(nearest, 0), rel=1e-5, abs=1e-30)
    assert bool((found > 0).all())
