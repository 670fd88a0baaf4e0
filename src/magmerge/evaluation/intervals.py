"""95 % intervals of scores: Wilson's for a share, the bootstrap's for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from magmerge.evaluation.metrics import Counts
from magmerge.linalg.draws import BITS, derive_seed, integers

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


def of_classes(
    score: Callable[[Tensor, Tensor, Tensor], Tensor],
    labels: Tensor,
    predictions: Tensor,
    classes: int,
) -> tuple[float, float]:
    """The percentile bootstrap interval over rows, of a score of classes."""
    scores = []
    for rows in resampled(len(labels)):
        drawn, guessed = labels[rows], predictions[rows]
        shift = torch.arange(len(rows)).unsqueeze(-1) * classes

        def tally(values: Tensor, weights: Tensor | None = None, shift: Tensor = shift) -> Tensor:
            flat = (values + shift).flatten()
            kept = None if weights is None else weights.flatten().double()
            counts = torch.bincount(flat, kept, minlength=shift.numel() * classes)
            return counts.reshape(-1, classes).long()

        counts = Counts(tally(drawn, drawn == guessed), tally(guessed), tally(drawn))
        scores.append(score(*counts))
    return _percentiles(torch.cat(scores))


def of_rows(
    score: Callable[[Tensor, Tensor], Tensor], one: Tensor, other: Tensor
) -> tuple[float, float]:
    """The percentile bootstrap interval over rows (texts), of a score of two columns."""
    parts = [score(one[rows], other[rows]) for rows in resampled(len(one))]
    return _percentiles(torch.cat(parts))


def resampled(rows: int) -> Iterator[Tensor]:
    """RESAMPLES draws of `rows` rows with replacement, the same for each number of rows."""
    step = max(1, CHUNK // rows)
    for start in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - start)
        words = integers(SEED, draws * rows, start * rows).long()
        yield ((words * rows) >> BITS).reshape(draws, rows)


def _percentiles(scores: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(scores, torch.tensor([0.025, 0.975], dtype=scores.dtype)).tolist()
    return low, high
