from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import magmerge
from magmerge.methods import arcee_fusion as module
from tests.contracts.laws import rows_for

fusion = magmerge.method("arcee_fusion").fn


def slow_softmax(row: list[float]) -> list[float]:
    top = max(row)
    sizes = [math.exp(v - top) for v in row]
    return [size / sum(sizes) + 1e-8 for size in sizes]


def slow_fusion(delta: Tensor, base: Tensor) -> Tensor:
    """Row by row, then a sort of all importances."""
    length = delta.shape[-1]
    importance = []
    for change, before in zip(
        delta.reshape(-1, length).tolist(), base.reshape(-1, length).tolist(), strict=True
    ):
        new = slow_softmax([d + b for d, b in zip(change, before, strict=True)])
        old = slow_softmax(before)
        divergence = sum(p * math.log(p / q) for p, q in zip(new, old, strict=True))
        importance += [abs(d) * divergence for d in change]
    order = sorted(importance)
    first, median, third = (order[math.floor(q * (len(order) - 1))] for q in (0.25, 0.5, 0.75))
    bound = median + 1.5 * (third - first)
    kept = [value >= bound for value in importance]
    return delta * torch.tensor(kept).reshape(delta.shape)


@pytest.mark.parametrize("shape", [(70,), (15, 9), (4, 3, 12)], ids=str)
@pytest.mark.parametrize("block", [1, 20, 1 << 18])
def test_equals_the_definition(
    shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    base = rows_for(None, shape, experts=1)[0].double()
    delta = 0.1 * rows_for(None, shape, experts=2)[1:].double()
    found = fusion(delta, base=base)
    assert torch.equal(found, slow_fusion(delta[0], base))
    assert 0 < int((found != 0).sum()) < found.numel() / 2


def test_without_a_base_the_model_is_all_change() -> None:
    delta = rows_for(None, (15, 9), experts=1).double()
    assert torch.equal(fusion(delta), slow_fusion(delta[0], torch.zeros(15, 9)))


def test_what_does_not_change_stays_the_base() -> None:
    delta = torch.zeros(1, 4, 6)
    assert not fusion(delta, base=torch.ones(4, 6)).any()


def test_small_changes_in_float32_are_told_apart() -> None:
    """Divergences of about 1e-9, which float32 sums would lose."""
    base = rows_for(None, (30, 40), experts=1)[0]
    delta = 1e-4 * rows_for(None, (30, 40), experts=2)[1:]
    found, exact = fusion(delta, base=base), slow_fusion(delta[0].double(), base.double())
    assert int(((found != 0) != (exact != 0)).sum()) <= 1


def test_a_merge_supplies_the_base() -> None:
    base = {"w.weight": rows_for(None, (15, 9), experts=1)[0].double()}
    expert = {"w.weight": base["w.weight"] + 0.1 * rows_for(None, (15, 9), experts=2)[1].double()}
    result = magmerge.merge(base=base, experts=[expert], method="arcee_fusion").state_dict()
    delta = expert["w.weight"] - base["w.weight"]
    expected = base["w.weight"] + slow_fusion(delta, base["w.weight"])
    assert torch.equal(result["w.weight"], expected)
