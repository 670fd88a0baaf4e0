"""TIES: trim, elect a sign, merge what agrees."""

from __future__ import annotations

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
)
from magmerge.methods.sparsify import Scope, trim_survey, trimmed


def kernel(
    *,
    experts: int,
    lambda_: float,
    vote: str,
    normalize: bool,
    weights: Weights,
    thresholds: Thresholds,
    **_: object,
) -> Fused:
    """What compiled kernels do in place of `ties`; without thresholds everything stays."""
    keep = {} if thresholds is None else {"keep": "beyond", "thresholds": thresholds}
    return fused_election(expert_weights(range(experts), weights), vote, normalize, lambda_, **keep)


@register_method(
    "ties",
    source="TIES-Merging, arXiv:2306.01708, alg. 1",
    survey=trim_survey,
    apart=True,
    cut="entries",
    workspace=(1, 5),
    kernel=kernel,
)
def ties(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.2,
    lambda_: Lambda = 1.0,
    scope: Scope = "model",
    vote: Vote = "plain",
    normalize: Normalize = True,
    weights: Weights = None,
    thresholds: Thresholds = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Keep the largest entries, elect the sign of their sum, average those that agree with it.

    Of each D_k the `density` largest in magnitude stay (ceil(density n) of n; among equals the
    first). The elected sign is that of sum_k D_k; where that sum is zero the result is zero.
    The result is lambda times the weighted mean of the entries that stay and have that sign, or
    with `normalize` off their weighted sum. With scope "model" the density holds in the whole
    task vector, not in each tensor; a single tensor is then its own whole model.

    When: experts that pull many entries to both sides. Its result has about the length of an
    expert's change, so that a calibration adds little.
    """
    sparse = trimmed(deltas, density, scope, thresholds, start)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)
