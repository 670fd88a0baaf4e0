"""A layer gives the same bits whole and in pieces, whatever the pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import magmerge
from tests.methods.pieces_law import UNIT, by_pieces, large_layer

CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("breadcrumbs", 3, {}),
    ("breadcrumbs", 3, {"rescale": "l1", "weights": [1.0, 0.5, 2.0], "normalize": True}),
    ("breadcrumbs_ties", 3, {"density": 0.4, "gamma": 0.1}),
    ("breadcrumbs_ties", 3, {"rescale": "inverse", "normalize": False, "vote": "weighted"}),
    ("della", 3, {"seeds": [1, 2, 3]}),
    ("della", 3, {"seeds": [1, 2, 3], "rescale": "l1"}),
    ("della_linear", 3, {"seeds": [1, 2, 3], "density": 0.3, "rescale": "none"}),
    ("model_stock", 3, {}),
    ("model_stock", 3, {"filter_wise": True}),
    ("karcher", 4, {}),
    ("sce", 3, {}),
    ("sce", 2, {"select_topk": 0.5}),
    ("sce", 3, {"select_topk": 1.0, "energy_floor": 1e-6}),
    ("nuslerp", 2, {"weights": [0.3, 0.7]}),
    ("nuslerp", 2, {"weights": [0.3, 0.7], "flatten": False}),
    ("nuslerp", 2, {"flatten": False, "row_wise": True}),
    ("multislerp", 3, {"weights": [1.0, 2.0, 0.5]}),
    ("nearswap", 1, {"t": 0.004}),
    ("arcee_fusion", 1, {}),
    ("ram", 3, {"epsilon": 0.01}),
    ("ramplus_tl", 3, {"epsilon": 0.01}),
    ("passthrough", 1, {"scale": 0.7}),
    ("slerp", 2, {"t": 0.3}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "experts", "params"), CASES, ids=str)
def test_pieces_give_the_bits_of_the_whole(
    name: str, experts: int, params: dict[str, Any], dtype: torch.dtype
) -> None:
    layer = large_layer(experts, dtype)
    before = layer.clone()
    whole = magmerge.method(name).fn(layer, **params)
    assert whole.dtype == dtype
    for piece in (UNIT, 2 * UNIT):
        assert torch.equal(by_pieces(name, layer, piece=piece, **params), whole)
    assert torch.equal(layer, before)


@pytest.mark.parametrize(("name", "experts", "params"), CASES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0)], ids=str)
def test_the_least_layers(
    name: str, experts: int, params: dict[str, Any], shape: tuple[int, ...]
) -> None:
    merged = magmerge.method(name).fn(torch.ones(experts, *shape), **params)
    assert merged.shape == shape
    assert merged.isfinite().all()
