"""CKA of features, by which `auto` compares models that have no logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from magmerge.live.label_free import ENOUGH, Answer, alignment, pooled


def features(rows: int = 9, width: int = 5, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=draw, dtype=torch.float64)


def test_it_is_linear_cka_as_its_paper_has_it() -> None:
    one, other = features(), features(width=9, seed=1)
    x, y = (part.numpy() - part.numpy().mean(axis=0) for part in (one, other))
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    assert alignment(one, other) == pytest.approx(np.linalg.norm(x.T @ y) ** 2 / norms)


def test_length_rotation_and_a_shift_do_not_count() -> None:
    one = features()
    turned = torch.linalg.qr(features(5, 5, seed=2)).Q
    assert alignment(one, 3 * one @ turned + 1) == pytest.approx(1)
    assert alignment(one, features(seed=3)) < 0.99


@pytest.mark.parametrize("rows", [1, ENOUGH - 1])
def test_few_rows_tell_nothing_and_neither_do_equal_ones(rows: int) -> None:
    assert math.isnan(alignment(features(rows), features(rows, seed=1)))
    assert math.isnan(alignment(torch.ones(9, 3).double(), features(9, 3)))


def test_padding_has_no_part_in_the_features_of_a_row() -> None:
    states = torch.randn(2, 4, 3)
    kept = torch.tensor([[True, True, False, False], [True] * 4])
    found = pooled(Answer(states, None, kept))
    assert found is not None
    torch.testing.assert_close(found[0], states[0, :2].double().mean(0))
    torch.testing.assert_close(found[1], states[1].double().mean(0))
    assert pooled(Answer(None, states)) is None
    image = torch.randn(2, 3, 4, 4)
    flat = pooled(Answer(image, None))
    assert flat is not None
    assert flat.shape == (2, 48)
