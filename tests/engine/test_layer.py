from __future__ import annotations

import pytest
import torch

from magmerge.core import registry
from magmerge.core.pieces import cut
from magmerge.core.traits import Calibrator
from magmerge.core.types import LayerRecord, Step, TensorSpec
from magmerge.engine.layer import Merged, apply_factor, calibrate_layer, merge_layer, record_of
from magmerge.engine.stages import Treatment

WSC = registry.calibrators.get("wsc")


def step(shape: tuple[int, ...], kind: str = "matrix", sensitive: bool = False) -> Step:
    spec = TensorSpec("layer.weight", shape, "F32")
    return Step(spec, kind, "merge", "", calibrated=True, sensitive=sensitive)


def treat(
    step: Step, treatment: Treatment, base: torch.Tensor, deltas: torch.Tensor, merged: Merged
) -> tuple[torch.Tensor, LayerRecord]:
    """The layer as one piece, and its record."""
    (piece,) = cut(step.spec.shape, step.kind, "whole")
    done = calibrate_layer(step, piece, treatment, base, deltas, merged)
    return done.weight, record_of(step, treatment, [done.tally])


@pytest.fixture
def deltas() -> torch.Tensor:
    return torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(0))


def test_the_factor_multiplies_the_merged_task_vector(deltas: torch.Tensor) -> None:
    base, merged = torch.randn(24, 32), deltas.mean(0)
    treatment = Treatment(((WSC, {}),), gated=False)
    found, record = treat(step((24, 32)), treatment, base, deltas, Merged(merged))
    xi = WSC.fn(deltas, merged)
    assert torch.equal(found, base + xi.unsqueeze(1) * merged)
    assert record.xi == pytest.approx(float(xi.mean()))
    assert (record.xi_min, record.xi_max) == (float(xi.min()), float(xi.max()))
    assert record.norm_before == pytest.approx(float(merged.norm()))
    assert record.norm_after == pytest.approx(float((found - base).norm()), rel=1e-5)
    assert abs(record.cosine) < 0.1
    assert record.calibrated_by == ("wsc",)


def test_a_transposed_layer_has_its_rows_in_columns(deltas: torch.Tensor) -> None:
    base, merged = torch.randn(24, 32), deltas.mean(0)
    treatment = Treatment(((WSC, {}),), gated=False)
    plain, one = treat(step((24, 32)), treatment, base, deltas, Merged(merged))
    turned, other = treat(
        step((32, 24), "transposed"), treatment, base.T, deltas.transpose(1, 2), Merged(merged.T)
    )
    assert torch.allclose(turned.T, plain, atol=1e-6)
    assert other.cosine == pytest.approx(one.cosine, abs=1e-6)


@pytest.mark.parametrize(("sensitive", "lam"), [(False, 10.0), (True, 0.01)])
def test_the_gate_holds_what_would_go_the_wrong_way(
    deltas: torch.Tensor, sensitive: bool, lam: float
) -> None:
    base, merged = torch.randn(24, 32), lam * deltas.mean(0)
    treatment = Treatment(((WSC, {}),), gated=True)
    given = step((24, 32), sensitive=sensitive)
    found, record = treat(given, treatment, base, deltas, Merged(merged))
    assert torch.equal(found, base + merged)
    assert record.xi == 1
    assert (record.xi_free < 1) != sensitive


def test_a_weight_that_is_known_stays_to_the_last_bit() -> None:
    base, weight = torch.randn(40, 50), torch.randn(40, 50) * 1e-3
    assert torch.equal(apply_factor(base, weight - base, torch.ones(()), weight), weight)
    far = apply_factor(base, weight - base, torch.tensor(2.0), weight)
    assert torch.allclose(far, base + 2 * (weight - base), atol=1e-5)


def test_a_second_calibrator_sees_what_the_first_made(deltas: torch.Tensor) -> None:
    base, merged = torch.zeros(24, 32), deltas.mean(0)
    sphere = {"target": "sphere"}
    once = Treatment(((WSC, sphere),), gated=False)
    twice = Treatment(((WSC, {}), (WSC, sphere)), gated=False)
    first, _ = treat(step((24, 32)), once, base, deltas, Merged(merged))
    second, record = treat(step((24, 32)), twice, base, deltas, Merged(merged))
    assert torch.allclose(first, second, rtol=1e-4)
    assert record.calibrated_by == ("wsc", "wsc")


def test_a_calibrator_may_give_a_new_task_vector(deltas: torch.Tensor) -> None:
    def halve(deltas: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        return merged / 2

    item = Calibrator("halve", halve, "", "", (), frozenset({"matrix"}), returns="delta")
    base = torch.randn(24, 32)
    merged = deltas.mean(0)
    found, record = treat(step((24, 32)), Treatment(((item, {}),)), base, deltas, Merged(merged))
    assert torch.equal(found, base + merged / 2)
    assert record.norm_after == pytest.approx(record.norm_before / 2)


def test_a_method_on_weights_gives_weight_and_task_vector() -> None:
    base, weights = torch.randn(4, 5), torch.randn(2, 4, 5)
    slerp = registry.methods.get("slerp")
    merged = merge_layer(step((4, 5)), slerp, {"t": 0.3}, base, weights)
    assert torch.equal(merged.delta, merged.weight - base)


def test_pieces_of_rows_add_up_to_the_whole_layer() -> None:
    shape = (250, 1000)
    deltas = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    base, merged = torch.randn(shape), deltas.mean(0)
    given, treatment = step(shape), Treatment(((WSC, {}),), gated=False)
    whole, record = treat(given, treatment, base, deltas, Merged(merged))
    pieces = cut(shape, "matrix", "rows", limit=1 << 16)
    assert len(pieces) > 2
    parts = []
    for piece in pieces:
        rows = slice(piece.start // 1000, piece.stop // 1000)
        part = Merged(merged[rows])
        parts.append(calibrate_layer(given, piece, treatment, base[rows], deltas[:, rows], part))
    assert torch.equal(torch.cat([part.weight for part in parts]), whole)
    found = record_of(given, treatment, [part.tally for part in parts])
    assert found.xi == record.xi
    assert found.cosine == record.cosine
    assert found.norm_after == pytest.approx(record.norm_after, rel=1e-6)
