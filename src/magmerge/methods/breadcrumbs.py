"""Model Breadcrumbs: keep neither the largest nor the smallest entries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Density, Lambda, Start, Thresholds, Weights
from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.linalg.ranks import whole_share
from magmerge.linalg.selection import largest
from magmerge.methods.average import Normalize, scaled_sum
from magmerge.methods.rescale import L1Ratios, Ratios, Rescale
from magmerge.methods.survey import surveyed
from magmerge.methods.threshold import LayerThreshold
from magmerge.methods.ties import Vote, elected_merge

Gamma = Annotated[
    float,
    Interval(ge=0, lt=1),
    Doc("share of each task vector's entries, the largest, that is removed"),
]


def ranks(entries: int, density: float, gamma: float) -> tuple[int, int]:
    """How many of the largest entries go, and how many there are before the smallest that go.

    floor(gamma n) go, then floor(density n) stay, but at least one; where both together are more
    than n, fewer go. The decimals are taken as written, not as binary rounds them.
    """
    stay = max(1, whole_share(density, entries))
    gone = min(whole_share(gamma, entries), entries - stay)
    return gone, gone + stay


def survey(
    *,
    entries: int,
    density: float = 0.143,
    gamma: float = 0.007,
    rescale: str = "none",
    **_: object,
) -> Survey | None:
    """Both thresholds of each expert, and where asked for, the ratios of what stays."""
    if density == 1 or entries == 0:
        return None
    thresholds = LayerThreshold(entries, ranks(entries, density, gamma))
    if rescale != "l1":
        return thresholds

    def sparsify(run: Tensor, start: int, found: Mapping[str, Any]) -> Sequence[Tensor]:
        return between(run, found["thresholds"], start)

    return L1Ratios(sparsify, thresholds)


@register_method(
    "breadcrumbs",
    source="Model Breadcrumbs, arXiv:2312.06795, eqs. 1-3",
    survey=survey,
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
    sparse = thinned(deltas, density, gamma, rescale, thresholds, ratios, start)
    return scaled_sum(sparse, weights, lambda_, normalize)


@register_method(
    "breadcrumbs_ties",
    source="Model Breadcrumbs, arXiv:2312.06795, with the election of TIES, arXiv:2306.01708",
    survey=survey,
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
    sparse = thinned(deltas, density, gamma, rescale, thresholds, ratios, start)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)


def thinned(
    deltas: Float[Tensor, "K *shape"],
    density: float,
    gamma: float,
    rescale: str,
    thresholds: Thresholds,
    ratios: Ratios,
    start: int,
) -> Sequence[Float[Tensor, "*shape"]]:
    """What stays of each D_k, rescaled."""
    entries = deltas[0].numel()
    if density == 1 or entries == 0:
        return list(deltas)
    if thresholds is None:
        whole = survey(entries=entries, density=density, gamma=gamma, rescale=rescale)
        assert whole is not None
        found = surveyed(whole, deltas)
        thresholds, ratios = found["thresholds"], found.get("ratios")
    assert thresholds is not None
    sparse = between(deltas, thresholds, start)
    factors: Sequence[float] = ratios or []
    if rescale == "inverse":
        factors = [1 / density] * len(deltas)
    for one, factor in zip(sparse, factors, strict=False):
        one.mul_(factor)
    return sparse


def between(
    deltas: Float[Tensor, "K *shape"], thresholds: Sequence[Any], start: int
) -> Sequence[Float[Tensor, "*shape"]]:
    """The entries of each D_k beyond its second threshold, less those beyond its first."""
    kept = []
    for delta, high, low in zip(deltas, *thresholds, strict=True):
        one = largest(delta, low, start)
        if not math.isinf(high.value):
            one.sub_(largest(delta, high, start))
        kept.append(one)
    return kept
