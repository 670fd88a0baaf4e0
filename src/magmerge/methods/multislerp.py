"""The mean direction of several task vectors, at their mean length."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Weights
from magmerge.core.registry import register_method
from magmerge.methods.combine import expert_weights, total_weight, weighted_sum
from magmerge.methods.gram import GramMatrix, gram_of, gram_survey, norms_and_cosines

ROUNDING = 2.0**-24
"""Length of a sum of directions that may be left of nothing, as a root of float64's rounding."""


@register_method(
    "multislerp",
    source="goddard.blog/posts/multislerp-wow-what-a-cool-idea; mergekit 0.1.5, multislerp",
    survey=gram_survey,
    cut="entries",
    base_free=True,
    workspace=(0, 1),
    rotates=True,
)
def multislerp(
    deltas: Float[Tensor, "K *shape"],
    *,
    weights: Weights = None,
    normalize_weights: Annotated[
        bool, Doc("whether the weights are divided by their sum first")
    ] = True,
    eps: Annotated[
        float, Interval(ge=0), Doc("length of the mean direction below which there is none")
    ] = 1e-8,
    gram: GramMatrix = None,
) -> Float[Tensor, "*shape"]:
    """(sum_k w_k |D_k|) s / |s|, s = sum_k w_k D_k / |D_k|: the mean direction, the mean length.

    The whole tensor is one vector; without a base model these are whole weights. This is what
    projecting to the tangent at s / |s| and back amounts to: the weighted projections add up to
    zero there. A task vector of zeros has no direction, and shortens the mean. Where the
    directions cancel (|s| <= eps sum_k |w_k|, with an eps of at least 2^-24) the result is
    sum_k w_k D_k. One expert alone is left as it is.

    Unlike mergekit, the norms are not padded by eps, so that small task vectors keep their size,
    and more than two cancelling experts are no error. Weights that add up to zero are a
    ParameterError unless `normalize_weights` is off.

    When: as `nuslerp`, of more than two experts.
    """
    if len(deltas) == 1:
        return deltas[0].clone()
    terms = expert_weights(deltas, weights)
    total = total_weight(deltas, weights) if normalize_weights else 1.0
    shares = torch.tensor(terms, dtype=torch.float64) / total
    norms, cosines = norms_and_cosines(gram_of(deltas, gram))
    length = math.sqrt(max(0.0, float(shares @ cosines @ shares)))
    if length <= max(eps, ROUNDING) * float(shares.abs().sum()):
        return weighted_sum(deltas, shares.tolist())
    scale = float(shares @ norms) / length
    inverse = torch.where(norms > 0, norms, torch.inf).reciprocal()
    return weighted_sum(deltas, (scale * shares * inverse).tolist())
