"""Model Breadcrumbs: keep neither the largest nor the smallest entries."""

from __future__ import annotations

from magmerge.core.lazy import Float, Tensor
from magmerge.core.parameters import Density, Lambda, Start, Thresholds, Weights
from magmerge.core.registry import register_method
from magmerge.methods.combine import Normalize, Vote, elected_merge, scaled_sum
from magmerge.methods.sparsify import Gamma, Ratios, Rescale, band_survey, banded


@register_method(
    "breadcrumbs",
    source="Model Breadcrumbs, arXiv:2312.06795, eqs. 1-3",
    survey=band_survey,
    apart=True,
    cut="entries",
    workspace=(1, 3),
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
    """
    sparse = banded(deltas, density, gamma, rescale, thresholds, ratios, start)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)
