"""The Karcher mean of models on a sphere."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.registry import register_method
from magmerge.methods.combine import weighted_sum
from magmerge.methods.gram import GramMatrix, gram_of, gram_survey, norms_and_cosines


@register_method(
    "karcher",
    source="arXiv:2603.04972; mergekit 0.1.5, karcher",
    acts_on="weights",
    survey=gram_survey,
    cut="entries",
    base_free=True,
    workspace=(0, 1),
    rotates=True,
)
def karcher(
    weights: Float[Tensor, "K *shape"],
    *,
    max_iter: Annotated[int, Interval(ge=0), Doc("most steps of the iteration")] = 10,
    tol: Annotated[
        float, Interval(gt=0), Doc("angle below which the iteration is at its end")
    ] = 1e-5,
    gram: GramMatrix = None,
) -> Float[Tensor, "*shape"]:
    """The point of the sphere with the least squared angles to all experts, at their mean length.

    The whole tensor is one vector, u_k = W_k / |W_k|. From the normalised mean of all u_k, each
    step moves m along T = mean_k (a_k / sin a_k) (u_k - cos a_k m), a_k the angle between u_k and
    m: m <- cos|T| m + sin|T| T / |T|, until |T| < tol. The result is mean_k |W_k| times m; a
    tensor of zeros has no direction, but lowers the mean length.

    m lies in the span of the u_k, so that the iteration is one on K numbers in float64. Only the
    experts count; mergekit takes the base model as one of them. An expert opposite to m pulls
    nowhere.

    When: models of one task that are far from each other, where the mean would be too short.
    """
    if len(weights) == 1:
        return weights[0].clone()
    norms, cosines = norms_and_cosines(gram_of(weights, gram))
    alive = norms > 0
    if not bool(alive.any()):
        return torch.zeros_like(weights[0])
    mean = _mean_direction(cosines, alive.double() / alive.sum(), max_iter, tol)
    inverse = torch.where(alive, norms, torch.inf).reciprocal()
    return weighted_sum(weights, (float(norms.mean()) * mean * inverse).tolist())


def _mean_direction(
    cosines: Float[Tensor, "K K"], shares: Float[Tensor, "K"], max_iter: int, tol: float
) -> Float[Tensor, "K"]:
    """The coefficients c of the mean m = sum_k c_k u_k."""

    def length(coefficients: Tensor) -> float:
        return math.sqrt(max(0.0, float(coefficients @ cosines @ coefficients)))

    mean = shares.clone()
    if length(mean) < tol:
        # The directions cancel: begin at the first.
        mean = torch.zeros_like(shares)
        mean[int(shares.nonzero()[0])] = 1.0
    mean = mean / length(mean)
    for _ in range(max_iter):
        nearness = (cosines @ mean).clamp(-1.0, 1.0)
        angles = nearness.arccos()
        sines = angles.sin()
        pulls = (angles >= tol) & (sines >= tol)
        stretch = torch.where(pulls, shares * angles / torch.where(pulls, sines, 1.0), 0.0)
        step = stretch - float(stretch @ nearness) * mean
        size = length(step)
        if size < tol:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / length(mean)
    return mean
