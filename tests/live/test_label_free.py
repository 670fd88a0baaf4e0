"""Measures without labels against plain float64 references, and their ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from magmerge.data.rows import Inputs
from magmerge.live.label_free import (
    Answer,
    agreement,
    answer_of,
    change_cosine,
    change_ratio,
    compare,
    divergence,
    feature_error,
    means,
)


def _answers(seed: int, *, tokens: bool = True) -> Answer:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 4) if tokens else (3,)
    features = torch.randn(*shape, 5, generator=generator)
    logits = torch.randn(*shape, 6, generator=generator)
    kept = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool() if tokens else None
    return Answer(features, logits, kept)


def test_measures_of_features_by_hand() -> None:
    base, expert = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    own = torch.tensor([[0.0, 4.0]])
    assert float(feature_error(own, expert, base)) == pytest.approx(3 / 5)
    assert float(change_cosine(own, expert, base)) == pytest.approx(16 / 20)
    assert float(change_ratio(own, expert, base)) == pytest.approx(4 / 5)


def test_outputs_against_a_loop() -> None:
    own, expert = _answers(0, tokens=False), _answers(1, tokens=False)
    for row in range(3):
        p, q = (answer.logits[row].double().softmax(0).tolist() for answer in (expert, own))
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert float(divergence(own.logits, expert.logits)[row]) == pytest.approx(kl)
        same = p.index(max(p)) == q.index(max(q))
        assert bool(agreement(own.logits, expert.logits)[row]) == same


def test_padding_never_counts() -> None:
    own, expert, base = (_answers(seed) for seed in range(3))
    clean = compare(own, expert, base)
    loud = [answer.features.clone() for answer in (own, expert, base)]
    for features in loud:
        features[~expert.kept] = torch.randn(5) * 100
    logits = own.logits.clone()
    logits[~expert.kept] = 50 * torch.randn(6)
    again = compare(
        Answer(loud[0], logits, own.kept), expert._replace(features=loud[1]),
        base._replace(features=loud[2]),
    )  # fmt: skip
    assert torch.equal(clean, again)


def test_the_expert_and_the_base_are_the_ends() -> None:
    expert, base = _answers(1), _answers(2)
    best, worst = means(compare(expert, expert, base)), means(compare(base, expert, base))
    assert best == pytest.approx(
        {"feature error": 0, "cosine": 1, "norm ratio": 1, "kl": 0, "agreement": 1}
    )
    assert worst["feature error"] == pytest.approx(1)
    assert worst["norm ratio"] == 0
    assert worst["cosine"] is None


def test_what_a_model_has_not_is_none() -> None:
    own, expert, base = (_answers(seed)._replace(logits=None) for seed in range(3))
    assert means(compare(own, expert, base))["kl"] is None
    assert means(compare(own, expert, base))["cosine"] is not None


def test_a_masked_class_adds_nothing_and_a_single_number_counts_by_its_square() -> None:
    own, expert = torch.randn(3, 4), torch.randn(3, 4)
    masked = [logits.index_fill(1, torch.tensor([0]), -torch.inf) for logits in (own, expert)]
    torch.testing.assert_close(divergence(*masked), divergence(own[:, 1:], expert[:, 1:]))
    numbers = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    assert divergence(*numbers).tolist() == [2.0]
    assert agreement(*numbers).isnan().all()
    broken = torch.full((2, 5), torch.nan)
    broken[0, 3], broken[1, 3] = 1.0, torch.inf
    assert means(broken)["kl"] == 1


@pytest.mark.parametrize(
    ("output", "logits", "features"),
    [
        (torch.ones(2, 3), None, (2, 3)),
        ((torch.ones(2, 3), torch.ones(2, 5)), None, (2, 3)),
        ([torch.ones(2).long(), torch.ones(2, 5)], None, (2, 5)),
        (torch.ones(2), (2, 1), None),
        ({"logits": torch.ones(2)}, (2, 1), None),
        ({"logits": torch.ones(2, 4), "last_hidden_state": torch.ones(1)}, (2, 4), None),
    ],
)
def test_odd_outputs(
    output: Any, logits: tuple[int, ...] | None, features: tuple[int, ...] | None
) -> None:
    answer = answer_of(output, Inputs((), {}, 2))
    assert answer is not None
    assert (_shape(answer.logits), _shape(answer.features)) == (logits, features)


def _shape(part: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if part is None else tuple(part.shape)


@pytest.mark.parametrize("output", [torch.tensor(1.0), torch.ones(2).long(), torch.ones(3, 4), "x"])
def test_outputs_that_tell_nothing(output: Any) -> None:
    assert answer_of(output, Inputs((), {}, 2)) is None
