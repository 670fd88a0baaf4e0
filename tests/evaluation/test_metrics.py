"""Metrics and intervals against scikit-learn, scipy and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score, matthews_corrcoef

from magmerge.evaluation import metrics
from tests.quick import slow


def drawn(classes: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    noise = torch.randint(classes, (rows,), generator=generator)
    kept = torch.rand(rows, generator=generator) < 0.6
    return labels, torch.where(kept, labels, noise)


def scored(name: str, labels: torch.Tensor, guessed: torch.Tensor, classes: int) -> float:
    return float(getattr(metrics, name)(*metrics.count(labels, guessed, classes)))


def interval(
    name: str, labels: torch.Tensor, guessed: torch.Tensor, classes: int
) -> tuple[float, float]:
    def score(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return getattr(metrics, name)(*metrics.count(first, second, classes))

    return metrics.bootstrap(score, labels, guessed)


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 9, 300])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_scikit_learn(classes: int, rows: int, seed: int) -> None:
    labels, guessed = drawn(classes, rows, seed)
    average = "binary" if classes == 2 else "macro"
    expected = f1_score(labels, guessed, average=average, zero_division=0)
    assert scored("f1", labels, guessed, classes) == pytest.approx(expected)
    expected = matthews_corrcoef(labels, guessed)
    assert scored("matthews", labels, guessed, classes) == pytest.approx(expected, abs=1e-12)


def test_scores_of_one_sided_predictions_are_zero() -> None:
    labels = torch.tensor([0, 0, 1])
    assert scored("f1", labels, torch.zeros(3, dtype=torch.int64), 2) == 0
    assert scored("matthews", labels, torch.zeros(3, dtype=torch.int64), 2) == 0
    assert scored("f1", labels * 0, labels * 0, 2) == 0


def test_perplexity_is_that_of_a_loop() -> None:
    losses, tokens = torch.tensor([3.0, 1.0, 9.0]).double(), torch.tensor([2.0, 1.0, 5.0]).double()
    assert float(metrics.perplexity(losses, tokens)) == pytest.approx(math.exp(13 / 8))


@pytest.mark.parametrize(("right", "rows"), [(0, 1), (1, 1), (0, 50), (37, 50), (299, 300)])
def test_wilson_is_that_of_scipy(right: int, rows: int) -> None:
    expected = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(right, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("classes", "name"), [(2, "f1"), (4, "matthews"), slow(4, "f1"), slow(2, "matthews")]
)
def test_the_bootstrap_is_that_of_a_loop(
    classes: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, guessed = drawn(classes, 60, seed=5)
    scores = [
        scored(name, labels[rows], guessed[rows], classes)
        for chunk in metrics.resamples(60)
        for rows in chunk
    ]
    assert len(scores) == metrics.RESAMPLES
    expected = torch.quantile(torch.tensor(scores).double(), torch.tensor([0.025, 0.975]).double())
    found = interval(name, labels, guessed, classes)
    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    assert found[0] < scored(name, labels, guessed, classes) < found[1]
    monkeypatch.setattr(metrics, "CHUNK", 1000)
    assert interval(name, labels, guessed, classes) == found


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(5, 40, (80,), generator=generator).double()
        losses = tokens * (2 + 0.5 * torch.randn(80, generator=generator).double())
        low, high = metrics.bootstrap(metrics.perplexity, losses, tokens)
        covered += low < math.exp(2) < high
    assert 88 <= covered <= 99


def test_resamples_are_uniform() -> None:
    rows = torch.cat(list(metrics.resamples(10)))
    shares = torch.bincount(rows.flatten(), minlength=10) / rows.numel()
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.01)


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(-4, 4), st.floats(-10, 10).map(lambda value: round(value, 1))),
        min_size=2,
        max_size=30,
    )
)
def test_correlations_are_those_of_scipy(rows: list[tuple[int, float]]) -> None:
    from scipy.stats import pearsonr, spearmanr

    labels, predictions = torch.tensor(rows, dtype=torch.float64).T
    pairs = ((metrics.pearson, pearsonr), (metrics.spearman, spearmanr))
    for ours, theirs in pairs:
        found = float(ours(labels, predictions))
        if len(labels.unique()) == 1 or len(predictions.unique()) == 1:
            assert found == 0
        else:
            assert found == pytest.approx(float(theirs(labels, predictions)[0]), abs=1e-9)
        many = ours(torch.stack([labels, -labels]), torch.stack([predictions, predictions]))
        assert many.tolist() == pytest.approx([found, -found], abs=1e-12)


def test_the_interval_of_a_correlation_holds_it() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(200, generator=generator, dtype=torch.float64)
    predictions = labels + torch.randn(200, generator=generator, dtype=torch.float64)
    low, high = metrics.bootstrap(metrics.pearson, labels, predictions)
    # Fisher's interval, which is right for normal variables.
    score = float(metrics.pearson(labels, predictions))
    middle, half = math.atanh(score), 1.96 / math.sqrt(197)
    assert low == pytest.approx(math.tanh(middle - half), abs=0.04)
    assert high == pytest.approx(math.tanh(middle + half), abs=0.04)
