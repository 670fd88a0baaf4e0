"""Scores of predictions, of one set or many resampled at once, and their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from magmerge.linalg.draws import BITS, derive_seed, integers

Classes = Int[Tensor, "*resamples classes"]
Draws = Int[Tensor, "*resamples rows"]
Values = Float[Tensor, "*resamples rows"]


class Counts(NamedTuple):
    """For each class: rows predicted rightly, rows predicted as it, and rows that are of it."""

    right: Tensor
    predicted: Tensor
    actual: Tensor


def count(labels: Draws, predictions: Draws, classes: int) -> Counts:
    """The counts of each set of predictions, resampled or not."""
    sets = labels.shape[:-1]
    # The classes of each set have numbers of their own.
    shift = torch.arange(sets.numel()).reshape(*sets, 1) * classes

    def tally(values: Tensor, kept: Tensor | None = None) -> Tensor:
        weights = None if kept is None else kept.flatten().double()
        sums = torch.bincount((values + shift).flatten(), weights, sets.numel() * classes)
        return sums.reshape(*sets, classes).long()

    return Counts(tally(labels, labels == predictions), tally(predictions), tally(labels))


def f1(right: Classes, predicted: Classes, actual: Classes) -> Float[Tensor, "*resamples"]:
    """Harmonic mean of precision and recall, from 0 to 1.

    Of class 1 where there are two classes; else the mean over the classes that occur among labels
    or predictions (macro F1). 0 where class 1 occurs nowhere.
    """
    sums = (predicted + actual).double()
    each = 2 * right / sums.clamp(min=1)
    if right.shape[-1] == 2:
        return each[..., 1]
    return each.sum(dim=-1) / (sums > 0).sum(dim=-1)


def matthews(right: Classes, predicted: Classes, actual: Classes) -> Float[Tensor, "*resamples"]:
    """Matthews' correlation of labels and predictions, from -1 to 1, for any number of classes.

    0 where all labels, or all predictions, are of one class.
    """
    right, predicted, actual = right.double(), predicted.double(), actual.double()
    rows = actual.sum(dim=-1)
    covariance = right.sum(dim=-1) * rows - (predicted * actual).sum(dim=-1)
    spread = (rows**2 - (predicted**2).sum(dim=-1)) * (rows**2 - (actual**2).sum(dim=-1))
    return torch.where(spread > 0, covariance / spread.clamp(min=1).sqrt(), 0.0)


def accuracy(labels: Draws, predictions: Draws) -> Float[Tensor, "*resamples"]:
    """The share of predictions that are right."""
    return (labels == predictions).double().mean(dim=-1)


def perplexity(
    losses: Float[Tensor, "*resamples texts"], tokens: Float[Tensor, "*resamples texts"]
) -> Float[Tensor, "*resamples"]:
    """exp of the mean negative log-probability of a token; losses in nats, summed for each text."""
    return (losses.sum(dim=-1) / tokens.sum(dim=-1)).exp()


def pearson(labels: Values, predictions: Values) -> Float[Tensor, "*resamples"]:
    """Pearson's correlation of labels and predictions, from -1 to 1, in float64.

    0 where all labels, or all predictions, are the same.
    """
    first, second = _centred(labels), _centred(predictions)
    spread = (first**2).sum(dim=-1) * (second**2).sum(dim=-1)
    ratio = (first * second).sum(dim=-1) / spread.clamp(min=torch.finfo(spread.dtype).tiny).sqrt()
    return torch.where(spread > 0, ratio.clamp(-1, 1), 0.0)


def spearman(labels: Values, predictions: Values) -> Float[Tensor, "*resamples"]:
    """Spearman's correlation: Pearson's of the ranks, where equal values share their mean rank."""
    return pearson(_ranks(labels), _ranks(predictions))


def _centred(values: Values) -> Values:
    """Less their mean; exactly 0 where all are the same, which a rounded mean would not give."""
    shifted = values.double() - values[..., :1].double()
    return shifted - shifted.mean(dim=-1, keepdim=True)


def _ranks(values: Values) -> Values:
    ordered = values.sort(dim=-1).values.contiguous()
    below = torch.searchsorted(ordered, values.contiguous())
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to + 1).double() / 2


Z = 1.959963984540054
"""Standard deviations on both sides that hold 95 % of a normal distribution."""
RESAMPLES = 1000
CHUNK = 1 << 22
"""Entries that are resampled at once."""
SEED = derive_seed(0, "bootstrap")


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Wilson's score interval of a share of `right` among `rows`."""
    share, weight = right / rows, Z**2 / rows
    middle = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / rows + weight / (4 * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    score: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor
) -> tuple[float, float]:
    """The percentile bootstrap interval over rows (texts), of a score of two columns."""
    scores = torch.cat([score(first[rows], second[rows]) for rows in resamples(len(first))])
    low, high = torch.quantile(scores, torch.tensor([0.025, 0.975], dtype=scores.dtype)).tolist()
    return low, high


def resamples(rows: int, seed: int = SEED) -> Iterator[Tensor]:
    """RESAMPLES draws of `rows` rows with replacement, the same for each number and seed."""
    step = max(1, CHUNK // rows)
    for start in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - start)
        words = integers(seed, draws * rows, start * rows).long()
        yield ((words * rows) >> BITS).reshape(draws, rows)
