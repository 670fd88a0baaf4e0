"""Laws that every registered merge method keeps; a new one is tried by being listed."""

from __future__ import annotations

import inspect

import pytest
import torch

from magmerge.core.traits import Method
from tests.contracts.laws import METHODS, SHAPES, count_for, deltas_for

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@every_method
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_shape_and_dtype(method: Method, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    merged = method.fn(deltas_for(method, shape).to(dtype))
    assert merged.shape == shape
    assert merged.dtype == dtype
    assert merged.isfinite().all()


@every_method
def test_leaves_its_inputs_untouched(method: Method) -> None:
    deltas = deltas_for(method, (5, 9))
    before = deltas.clone()
    merged = method.fn(deltas)
    merged.add_(1.0)
    assert torch.equal(deltas, before)


@every_method
def test_zeros_merge_to_zeros(method: Method) -> None:
    deltas = torch.zeros_like(deltas_for(method, (5, 9)))
    assert torch.equal(method.fn(deltas), torch.zeros(5, 9))


@every_method
def test_one_expert_alone_gives_a_multiple_of_its_own_entries(method: Method) -> None:
    if method.experts[0] > 1:
        pytest.skip("takes more than one expert")
    if not method.faithful:
        pytest.skip("declares that it turns task vectors")
    delta = deltas_for(method, (5, 9))[:1]
    merged = method.fn(delta)
    ratio = (merged / delta[0])[merged != 0]
    assert len(ratio) > 0
    assert torch.allclose(ratio, ratio[0].expand_as(ratio))


@every_method
def test_copies_of_one_expert_keep_its_direction(method: Method) -> None:
    if method.random:
        pytest.skip("each copy has draws of its own")
    if not method.faithful:
        pytest.skip("declares that it turns task vectors")
    one = deltas_for(method, (5, 9))[0]
    merged = method.fn(one.expand(count_for(method), 5, 9).contiguous())
    kept = merged != 0
    ratio = merged[kept] / one[kept]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-5)


@every_method
def test_order_of_experts_does_not_matter_unless_declared(method: Method) -> None:
    deltas = deltas_for(method, (6, 8))
    keywords = {"seeds": [3, 4, 5]} if method.random else {}
    turned = {"seeds": [5, 4, 3]} if method.random else {}
    merged, other = method.fn(deltas, **keywords), method.fn(deltas.flip(0), **turned)
    if method.ordered:
        parameters = {p.name: p.default for p in method.parameters}
        assert "t" in parameters, "an ordered method should say by which parameter"
        assert not torch.allclose(method.fn(deltas, t=0.2), method.fn(deltas.flip(0), t=0.2))
    else:
        assert torch.allclose(merged, other, atol=1e-6)


@every_method
@pytest.mark.parametrize("factor", [2.0, 0.25, 2.0**-20])
def test_scales_with_its_inputs(method: Method, factor: float) -> None:
    if not method.homogeneous:
        pytest.skip("declares a parameter that is a size")
    deltas = deltas_for(method, (6, 8))
    assert torch.allclose(method.fn(deltas * factor), method.fn(deltas) * factor, rtol=1e-5, atol=0)


@every_method
def test_same_inputs_give_the_same_bits(method: Method) -> None:
    deltas = deltas_for(method, (6, 8))
    assert torch.equal(method.fn(deltas), method.fn(deltas))


@every_method
def test_declares_what_users_need(method: Method) -> None:
    assert method.source
    assert method.summary
    for parameter in method.parameters:
        assert parameter.meaning, f"{method.name}: say what {parameter.name} means"
    takes_seeds = "seeds" in inspect.signature(method.fn).parameters
    assert method.random == takes_seeds


@every_method
def test_a_turned_view_is_as_good_as_a_copy(method: Method) -> None:
    deltas = deltas_for(method, (8, 6)).transpose(1, 2)
    assert not deltas.is_contiguous()
    assert torch.allclose(method.fn(deltas), method.fn(deltas.contiguous()), atol=1e-6)


@every_method
def test_what_claims_to_rotate_is_the_same_in_any_basis(method: Method) -> None:
    rotates = method.rotates() if callable(method.rotates) else method.rotates
    if not rotates:
        pytest.skip("does not claim it")
    turn = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(3))).Q
    deltas = deltas_for(method, (5, 9))
    turned = method.fn(deltas @ turn)
    assert torch.allclose(turned, method.fn(deltas) @ turn, atol=1e-5)


@every_method
def test_lambda_is_a_factor_on_the_result(method: Method) -> None:
    if "lambda" not in {parameter.name for parameter in method.parameters}:
        pytest.skip("has none")
    deltas = deltas_for(method, (5, 9))
    half = method.fn(deltas, lambda_=0.5)
    assert torch.allclose(half, method.fn(deltas, lambda_=1.0) * 0.5, rtol=1e-5)
