from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import magmerge
from magmerge.core.errors import StructureError
from tests.conftest import State


def test_inspect_tells_what_the_headers_say(folders: list[Path], base: State) -> None:
    info = magmerge.inspect(folders[0])
    assert info.parameters == sum(tensor.numel() for tensor in base.values())
    assert info.size == 4 * info.parameters
    assert {t.name: t.shape for t in info.tensors} == {n: tuple(t.shape) for n, t in base.items()}


def test_shared_tensors_count_once() -> None:
    shared = torch.ones(3, 2)
    assert magmerge.inspect({"a": shared, "b": shared}).parameters == 6


def test_diff_gives_norms_relative_size_and_cosine() -> None:
    a = {"w": torch.tensor([3.0, 4.0]), "z": torch.zeros(2), "n": torch.tensor([1, 2])}
    b = {"w": torch.tensor([6.0, 8.0]), "z": torch.ones(2), "n": torch.tensor([1, 2])}
    w, z, n = magmerge.diff(a, b)
    assert (w.norm_a, w.norm_b, w.difference, w.relative) == (5, 10, 5, 1)
    assert w.cosine == pytest.approx(1)
    assert z.relative == math.inf
    assert z.cosine is None
    assert n.difference == 0


def test_diff_lists_all_that_does_not_match(base: State) -> None:
    other = {**base, "extra": torch.ones(1), "lm_head.weight": torch.ones(2)}
    del other["layers.0.mlp.weight"]
    with pytest.raises(StructureError) as caught:
        magmerge.diff(base, other)
    assert len(caught.value.faults) == 3
    assert magmerge.diff(base, other, ignore=["extra", "lm_head.weight", "*.mlp.*"])
