from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.core.errors import ParameterError
from tests.contracts.laws import rows_for

multislerp = magmerge.method("multislerp").fn


def slow_multislerp(deltas: Tensor, weights: list[float]) -> Tensor:
    """By way of the tangent space, vector by vector."""
    flat = deltas.double().reshape(len(deltas), -1)
    norms = [math.hypot(*one.tolist()) for one in flat]
    units = [one / norm if norm else one for one, norm in zip(flat, norms, strict=True)]
    middle = sum(w * u for w, u in zip(weights, units, strict=True))
    middle = middle / middle.norm()
    tangent = sum(w * (u - float(u @ middle) * middle) for w, u in zip(weights, units, strict=True))
    size = float(tangent.norm()) + 1e-12
    end = middle * math.cos(size) + tangent * math.sin(size) / size
    return (end * sum(w * n for w, n in zip(weights, norms, strict=True))).reshape(deltas[0].shape)


@pytest.mark.parametrize("shape", [(7,), (5, 9), (4, 3, 2)], ids=str)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 2.0, 0.5], [1.0, -0.3, 2.0]])
@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_equals_the_way_through_the_tangent_space(
    shape: tuple[int, ...], weights: list[float], size: float
) -> None:
    deltas = rows_for(None, shape) * size
    shares = [w / sum(weights) for w in weights]
    found = multislerp(deltas, weights=weights).double()
    expected = slow_multislerp(deltas, shares)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * size)
    found = multislerp(deltas, weights=weights, normalize_weights=False).double()
    expected = slow_multislerp(deltas, weights)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * size)


def test_one_expert_is_left_as_it_is() -> None:
    one = rows_for(None, (5, 9), experts=1)
    assert torch.equal(multislerp(one, weights=[0.3], normalize_weights=False), one[0])


@pytest.mark.parametrize("copies", [1, 2])
def test_directions_that_cancel_are_added_up(copies: int) -> None:
    one = rows_for(None, (5, 9), experts=1)
    deltas = torch.cat([one, -3 * one] * copies)
    assert torch.allclose(multislerp(deltas), -one[0], rtol=1e-5)


def test_an_expert_that_changes_nothing_only_shortens() -> None:
    one = rows_for(None, (5, 9), experts=1)
    assert torch.allclose(multislerp(torch.cat([one, 0 * one])), one[0] / 2, rtol=1e-6)


def test_weights_without_a_mean_are_refused_unless_taken_as_they_are() -> None:
    deltas = rows_for(None, (2, 2), experts=2)
    with pytest.raises(ParameterError, match="add up to zero"):
        multislerp(deltas, weights=[1.0, -1.0])
    assert multislerp(deltas, weights=[1.0, -1.0], normalize_weights=False).isfinite().all()
