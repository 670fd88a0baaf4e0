from __future__ import annotations

import pytest
import torch

import magmerge
from magmerge.core.errors import ParameterError
from tests.contracts.laws import rows_for


def reference(deltas: list, weights: list[float]) -> torch.Tensor:
    out = torch.zeros_like(deltas[0], dtype=torch.float64)
    for delta, weight in zip(deltas, weights, strict=True):
        out = out + weight * delta.double()
    return out


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5], [1.0, -0.5, 0.0]])
def test_equals_a_plain_weighted_mean(weights: list[float] | None) -> None:
    deltas = rows_for(None, (4, 5))
    expected = reference(list(deltas), weights or [1.0] * 3) / sum(weights or [1.0] * 3)
    found = magmerge.method("average").fn(deltas, weights=weights)
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_linear_is_another_name() -> None:
    assert magmerge.method("linear") is magmerge.method("average")


def test_task_arithmetic_is_lambda_times_the_sum() -> None:
    deltas = rows_for(None, (4, 5))
    fn = magmerge.method("task_arithmetic").fn
    assert torch.allclose(fn(deltas).double(), 0.3 * deltas.double().sum(0), atol=1e-6)
    weighted = fn(deltas, lambda_=2.0, weights=[1.0, 0.0, -1.0]).double()
    assert torch.allclose(weighted, 2 * (deltas[0] - deltas[2]).double(), atol=1e-6)


def test_weights_without_a_mean_are_refused() -> None:
    with pytest.raises(ParameterError, match="add up to zero"):
        magmerge.method("average").fn(rows_for(None, (2, 2), experts=2), weights=[1.0, -1.0])


def test_a_wrong_number_of_weights_is_refused() -> None:
    with pytest.raises(ParameterError, match="2 weights for 3 experts"):
        magmerge.method("average").fn(rows_for(None, (2, 2)), weights=[1.0, 1.0])


def test_weights_that_add_up_to_zero_but_for_rounding_have_no_mean() -> None:
    assert 0.1 + 0.2 - 0.3 != 0
    with pytest.raises(ParameterError, match="add up to zero"):
        magmerge.method("average").fn(torch.ones(3, 2), weights=[0.1, 0.2, -0.3])
    tiny = magmerge.method("average").fn(torch.ones(2, 2), weights=[1e-20, 3e-20])
    assert torch.allclose(tiny, torch.ones(2))
