"""Model Breadcrumbs: keep neither the largest nor the smallest entries."""

from __future__ import annotations

from typing import Any

from magmerge.core.fused import Fused
from magmerge.core.lazy import Float, Tensor
from magmerge.core.parameters import Density, Lambda, Start, Thresholds, Weights
from magmerge.core.registry import register_method
from magmerge.methods.combine import (
    Normalize,
    Vote,
    elected_merge,
    expert_weights,
    fused_election,
    fused_sum,
    scaled_sum,
    sum_scale,
)
from magmerge.methods.sparsify import (
    Gamma,
    Ratios,
    Rescale,
    band_survey,
    banded,
    fused_band,
)


def kernel(
    *,
    experts: int,
    lambda_: float,
    normalize: bool,
    weights: Weights,
    vote: str | None = None,
    **band: Any,
) -> Fused:
    """What compiled kernels do in place of `breadcrumbs`, and with a vote of `breadcrumbs_ties`."""
    terms, keep = expert_weights(range(experts), weights), fused_band(experts, **band)
    if vote is not None:
        return fused_election(terms, vote, normalize, lambda_, **keep)
    return fused_sum(terms, sum_scale(terms, lambda_, normalize, weights), **keep)


@register_method(
    "breadcrumbs",
    source="Model Breadcrumbs, arXiv:2312.06795, eqs. 1-3",
    survey=band_survey,
    apart=True,
    cut="entries",
    workspace=(1, 3),
    kernel=kernel,
)
def breadcrumbs(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.143,
    gamma: Gamma = 0.007,
    lambda_: Lambda = 0.3,
    normalize: Normalize = False,
    rescale: Rescale = "none",
    weights: Weights = None,
    thresholds: Thresholds = None,
    ratios: Ratios = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """lambda sum_k w_k D_k, of each D_k only entries of middling magnitude.

    The largest floor(gamma n) of a tensor's n entries go, the next floor(density n) stay (at least
    one), and the rest go; among equal magnitudes the first count as larger. The defaults are the
    paper's: what is between the 85th and the 99.3rd percentile of each layer. With density 1
    nothing goes. `normalize` divides by the sum of the weights.

    When: experts with a few outliers that do harm in a merge, and much noise near zero.
    """
    sparse = banded(deltas, density, gamma, rescale, thresholds, ratios, start)
    return scaled_sum(sparse, weights, lambda_, normalize)


@register_method(
    "breadcrumbs_ties",
    source="Model Breadcrumbs, arXiv:2312.06795, with the election of TIES, arXiv:2306.01708",
    survey=band_survey,
    apart=True,
    cut="entries",
    workspace=(1, 6),
    kernel=kernel,
)
def breadcrumbs_ties(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.143,
    gamma: Gamma = 0.007,
    lambda_: Lambda = 1.0,
    vote: Vote = "plain",
    normalize: Normalize = True,
    rescale: Rescale = "none",
    weights: Weights = None,
    thresholds: Thresholds = None,
    ratios: Ratios = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Keep entries of middling magnitude, elect the sign of their sum, average those that agree.

    What stays is as in breadcrumbs, the rest as in TIES. mergekit adds up what agrees:
    `normalize` off.

    When: as `breadcrumbs`, where experts also pull to both sides.
    """
    sparse = banded(deltas, density, gamma, rescale, thresholds, ratios, start)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)
