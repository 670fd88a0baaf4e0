"""Laws that every registered calibrator keeps; a new one is tried by being listed."""

from __future__ import annotations

import pytest
import torch

from magmerge.core.traits import Calibrator
from tests.contracts.laws import CALIBRATORS, found_by, rows_for

every_calibrator = pytest.mark.parametrize("calibrator", CALIBRATORS, ids=lambda c: c.name)
every_shape = pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 3, 2), (3, 2, 2, 2)], ids=str)


@every_calibrator
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gives_a_scalar_a_row_vector_or_a_delta(
    calibrator: Calibrator, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    deltas = rows_for(calibrator, shape).to(dtype)
    found = found_by(calibrator, deltas, deltas.mean(0))
    allowed = [(), shape[:1]] if calibrator.returns == "factor" else [shape]
    assert tuple(found.shape) in allowed
    assert found.dtype == dtype
    assert found.isfinite().all()


@every_calibrator
def test_leaves_its_inputs_untouched(calibrator: Calibrator) -> None:
    deltas = rows_for(calibrator, (5, 9))
    merged = deltas.mean(0)
    kept = deltas.clone(), merged.clone()
    found_by(calibrator, deltas, merged)
    assert torch.equal(deltas, kept[0])
    assert torch.equal(merged, kept[1])


@every_calibrator
def test_one_expert_is_left_as_it_is(calibrator: Calibrator) -> None:
    deltas = rows_for(calibrator, (5, 9), experts=1)
    found = found_by(calibrator, deltas, deltas[0])
    result = found if calibrator.returns == "delta" else found.reshape(-1, 1) * deltas[0]
    assert torch.allclose(result, deltas[0], rtol=1e-5)


@every_calibrator
def test_zeros_are_left_as_they_are(calibrator: Calibrator) -> None:
    deltas = torch.zeros(3, 5, 9)
    found = found_by(calibrator, deltas, deltas[0])
    expected = torch.ones_like(found) if calibrator.returns == "factor" else deltas[0]
    assert torch.equal(found, expected)


@every_calibrator
def test_the_merges_own_magnitude_does_not_matter(calibrator: Calibrator) -> None:
    if not calibrator.scale_free:
        pytest.skip("declares that it does")
    deltas = rows_for(calibrator, (5, 9))
    merged = deltas.mean(0)
    once, twice = found_by(calibrator, deltas, merged), found_by(calibrator, deltas, 8 * merged)
    if calibrator.returns == "factor":
        twice = twice * 8
    assert torch.allclose(once, twice, rtol=1e-5)


@every_calibrator
def test_the_order_of_experts_does_not_matter(calibrator: Calibrator) -> None:
    deltas = rows_for(calibrator, (5, 9))
    once, turned = (found_by(calibrator, d, deltas.mean(0)) for d in (deltas, deltas.flip(0)))
    assert torch.allclose(once, turned, rtol=1e-5)


@every_calibrator
@pytest.mark.parametrize("factor", [2.0**-60, 1e-5, 2.0**40])
def test_scaling_everything_scales_nothing_else(calibrator: Calibrator, factor: float) -> None:
    deltas = rows_for(calibrator, (5, 9))
    merged = deltas.mean(0)
    once, scaled = (
        found_by(calibrator, deltas, merged),
        found_by(calibrator, deltas * factor, merged * factor),
    )
    if calibrator.returns == "delta":
        scaled = scaled / factor
    assert torch.allclose(once, scaled, rtol=1e-4)


@every_calibrator
def test_declares_what_users_need(calibrator: Calibrator) -> None:
    assert calibrator.source
    assert calibrator.summary
    assert calibrator.acts_on
    looks = calibrator.measure is not None or calibrator.gather is not None
    assert looks == (calibrator.needs == "inputs")
    assert (calibrator.gather is not None) == (calibrator.entries is not None)
    for parameter in calibrator.parameters:
        assert parameter.meaning, f"{calibrator.name}: say what {parameter.name} means"


@every_calibrator
def test_what_claims_to_rotate_is_the_same_in_any_basis(calibrator: Calibrator) -> None:
    if not calibrator.rotates:
        pytest.skip("does not claim it")
    turn = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(3))).Q
    deltas = rows_for(calibrator, (5, 9))
    merged = deltas.mean(0)
    turned = found_by(calibrator, deltas @ turn, merged @ turn)
    assert torch.allclose(turned, found_by(calibrator, deltas, merged), atol=1e-5)
