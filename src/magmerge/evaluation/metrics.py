"""Scores of predictions; pure. All take one set of counts or values, or many resampled at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Classes = Int[Tensor, "*resamples classes"]
Values = Float[Tensor, "*resamples rows"]


class Counts(NamedTuple):
    """For each class: rows predicted rightly, rows predicted as it, and rows that are of it."""

    right: Tensor
    predicted: Tensor
    actual: Tensor


def count(labels: Int[Tensor, "rows"], predictions: Int[Tensor, "rows"], classes: int) -> Counts:
    """The counts of one set of predictions."""
    right = labels[labels == predictions]
    return Counts(
        torch.bincount(right, minlength=classes),
        torch.bincount(predictions, minlength=classes),
        torch.bincount(labels, minlength=classes),
    )


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


def perplexity(
    losses: Float[Tensor, "*resamples texts"], tokens: Float[Tensor, "*resamples texts"]
) -> Float[Tensor, "*resamples"]:
    """exp of the mean negative log-probability of a token; losses in nats, summed for each text."""
    return (losses.sum(dim=-1) / tokens.sum(dim=-1)).exp()


def pearson(labels: Values, predictions: Values) -> Float[Tensor, "*resamples"]:
    """Pearson's correlation of labels and predictions, from -1 to 1, in float64.

    0 where all labels, or all predictions, are the same.
    """
    one = _centred(labels)
    other = _centred(predictions)
    spread = (one**2).sum(dim=-1) * (other**2).sum(dim=-1)
    ratio = (one * other).sum(dim=-1) / spread.clamp(min=torch.finfo(spread.dtype).tiny).sqrt()
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
