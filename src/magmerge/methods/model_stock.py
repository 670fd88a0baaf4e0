"""Model Stock: the mean task vector, shrunk by how far the experts disagree."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.core.types import Cut
from magmerge.methods.combine import weighted_sum
from magmerge.methods.gram import GramMatrix, gram_of, gram_survey, norms_and_cosines

CANCELLED = 1e-6
"""1 + (K-1) c below which the task vectors add up to nothing."""


def survey(*, filter_wise: bool = False, **_: object) -> Survey | None:
    """The inner products of all, where each layer is one vector."""
    return None if filter_wise else gram_survey()


def cut(*, filter_wise: bool = False, **_: object) -> Cut:
    """By what is one vector."""
    return "rows" if filter_wise else "entries"


def rotates(*, filter_wise: bool = False, **_: object) -> bool:
    """Rows of the last axis are not those of the flattened layer."""
    return not filter_wise


@register_method(
    "model_stock",
    source="Model Stock, arXiv:2403.19522, eqs. 5-7",
    survey=survey,
    cut=cut,
    experts=(2, None),
    workspace=(0, 9),
    rotates=rotates,
)
def model_stock(
    deltas: Float[Tensor, "K *shape"],
    *,
    filter_wise: Annotated[
        bool, Doc("whether each row, along the last axis, has a ratio of its own")
    ] = False,
    gram: GramMatrix = None,
) -> Float[Tensor, "*shape"]:
    """t mean_k D_k, t = K c / (1 + (K-1) c), c the mean cosine of all pairs of task vectors.

    Equal task vectors give t = 1, orthogonal ones the base. t is not bounded: task vectors that
    point apart (c < 0) are turned round. Where they add up to nothing it is 0. A task vector of
    zeros has cosine 0 with all others. No absolute guard is used; mergekit takes products of norms
    below 1e-6 as 1e-6, which draws small task vectors to the base.

    When: a few fine-tunes of one task, to come near to the mean of many. Of different tasks it
    shrinks nearly all away.
    """
    if filter_wise and deltas.ndim > 1:
        return _by_row(deltas)
    _, cosines = norms_and_cosines(gram_of(deltas, gram))
    count = len(deltas)
    pairs = cosines.sum() - cosines.diagonal().sum()
    ratio = float(_ratio(pairs / (count * (count - 1)), count))
    return weighted_sum(deltas, [ratio / count] * count)


def _by_row(deltas: Float[Tensor, "K *shape"]) -> Float[Tensor, "*shape"]:
    """Each row of the last axis with a ratio of its own.

    |sum_k u_k|^2, u_k = D_k / |D_k|, is the sum of the cosines of all ordered pairs, plus one for
    each task vector that is not zero.
    """
    count = len(deltas)
    directions = torch.zeros_like(deltas[0], dtype=torch.float64)
    alive = torch.zeros_like(directions.sum(-1, keepdim=True))
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        wide = delta.to(torch.float64, copy=True)
        size = wide.square().sum(-1, keepdim=True).sqrt_()
        alive += size > 0
        directions += wide.div_(size.masked_fill_(size == 0, 1.0))
        total += delta
    pairs = directions.square().sum(-1, keepdim=True) - alive
    ratio = _ratio(pairs / (count * (count - 1)), count)
    return total.mul_((ratio / count).to(deltas.dtype))


def _ratio(cosine: Float[Tensor, "*vectors"], count: int) -> Float[Tensor, "*vectors"]:
    """K c / (1 + (K-1) c), 0 where the task vectors cancel."""
    divisor = 1 + (count - 1) * cosine
    cancelled = divisor.abs() < CANCELLED
    return torch.where(cancelled, 0.0, count * cosine / torch.where(cancelled, 1.0, divisor))
