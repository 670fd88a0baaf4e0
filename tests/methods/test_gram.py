from __future__ import annotations

import math
import random

import pytest
import torch

from magmerge.linalg.survey import surveyed
from magmerge.methods.combine import weighted_sum
from magmerge.methods.gram import gram_of, gram_survey, norms_and_cosines
from magmerge.methods.sparsify import l1_survey
from tests.methods.pieces_law import UNIT, large_layer


def test_equals_plain_inner_products() -> None:
    layer = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    gram = gram_of(layer, None)
    rows = [one.reshape(-1).tolist() for one in layer]
    for i in range(3):
        for j in range(3):
            expected = math.fsum(a * b for a, b in zip(rows[i], rows[j], strict=True))
            assert math.isclose(gram[i, j], expected, rel_tol=1e-12)


def test_depends_neither_on_pieces_nor_on_their_order() -> None:
    flat = large_layer(3).reshape(3, -1)
    whole = gram_of(flat, None)
    for piece in (UNIT, 2 * UNIT, 3 * UNIT):
        survey = gram_survey()
        starts = list(range(0, flat.shape[1], piece))
        random.Random(piece).shuffle(starts)
        for start in starts:
            survey.observe("a", start, flat[:, start : start + piece])
        survey.conclude()
        assert survey.passes == 0
        assert torch.equal(survey.keywords("a")["gram"], whole)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e30])
def test_squares_neither_vanish_nor_overflow(size: float) -> None:
    layer = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    _, expected = norms_and_cosines(gram_of(layer, None))
    norms, cosines = norms_and_cosines(gram_of(layer * size, None))
    assert torch.allclose(cosines, expected, rtol=1e-6)
    assert torch.allclose(norms, layer.double().norm(dim=1) * size, rtol=1e-6)


def test_a_vector_of_zeros_has_no_cosine() -> None:
    norms, cosines = norms_and_cosines(gram_of(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), None))
    assert norms.tolist() == [0.0, 5.0]
    assert cosines.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_it_is_the_weighted_sum() -> None:
    layer = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    assert weighted_sum(layer, [1.0, 0.5, -1.0]).tolist() == [-94.0, -188.0]
    assert weighted_sum(layer[:1], [2.0]).tolist() == [2.0, 4.0]


def test_l1_ratios_give_the_magnitudes_back() -> None:
    layer = large_layer(2)
    survey = l1_survey(lambda run, start, found: run.clamp(min=0))
    ratios = surveyed(survey, layer)["ratios"]
    for one, ratio in zip(layer.double(), ratios, strict=True):
        assert math.isclose(one.abs().sum() / one.clamp(min=0).sum(), ratio, rel_tol=1e-9)


def test_what_is_gone_altogether_is_not_rescaled() -> None:
    layer = torch.tensor([[1.0, -1.0], [0.0, 0.0], [-1.0, -2.0]])
    survey = l1_survey(lambda run, start, found: run.clamp(min=0))
    assert surveyed(survey, layer)["ratios"] == [2, 1, 1]
