"""DELLA: drop entries at random, small ones more often than large ones, then merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Interval
from typing_extensions import Doc

from magmerge.core.errors import ParameterError
from magmerge.core.fused import Fused
from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import Density, Lambda, PerExpert, Seeds, Start, Weights
from magmerge.core.registry import register_method
from magmerge.core.types import Cut
from magmerge.linalg.draws import chances_by_rank, uniforms
from magmerge.linalg.selection import by_rank
from magmerge.linalg.survey import surveyed
from magmerge.methods.combine import (
    Normalize,
    Vote,
    elected_merge,
    expert_weights,
    fused_election,
    fused_sum,
    one_for_each,
    scaled_sum,
    sum_scale,
)
from magmerge.methods.sparsify import Rescale, Sparse, l1_survey, seeds_of

Spread = Annotated[float, Interval(ge=0, lt=0.5)]
Epsilon = Annotated[
    Spread | Sequence[Spread],
    PerExpert(),
    Doc(
        "how far the chance to stay is from `density` at the ends of a row's ranks, or one for "
        "each expert"
    ),
]


def cut(*, rescale: str = "inverse", **_: object) -> Cut:
    """Ranks are those of a row; mergekit's rescaling is that of a whole tensor."""
    return "whole" if rescale == "l1" else "rows"


def check_chances(*, density: Density, epsilon: Epsilon, **_: object) -> None:
    """ParameterError unless every chance to stay is within (0, 1), or nothing is dropped."""
    experts = max(len(own) if isinstance(own, Sequence) else 1 for own in (density, epsilon))
    shares = one_for_each(density, experts, "density")
    for own, spread in zip(shares, one_for_each(epsilon, experts, "epsilon"), strict=True):
        if own != 1 and not (own - spread > 0 and own + spread < 1):
            raise ParameterError(
                f"density {own} +- epsilon {spread} is not within (0, 1)",
                remedy=f"choose an epsilon below {min(own, 1 - own):g}, or another density",
            )


def kernel(
    *,
    experts: int,
    density: Density,
    epsilon: Epsilon,
    rescale: str,
    lambda_: float,
    weights: Weights,
    normalize: bool,
    seeds: Seeds,
    vote: str | None = None,
) -> Fused | None:
    """What compiled kernels do in place of `della`, and without a vote of `della_linear`."""
    if density == 1 or rescale == "l1":
        return None
    keep: dict[str, Any] = {
        "keep": "rank",
        "stay": one_for_each(density, experts, "density"),
        "spread": one_for_each(epsilon, experts, "epsilon"),
        "seeds": seeds_of(range(experts), seeds),
        "inverse": rescale == "inverse",
    }
    terms = expert_weights(range(experts), weights)
    if vote is not None:
        return fused_election(terms, vote, normalize, lambda_, **keep)
    return fused_sum(terms, sum_scale(terms, lambda_, normalize, weights), **keep)


@register_method(
    "della",
    source="DELLA, arXiv:2406.11617, sec. 3",
    random=True,
    cut=cut,
    workspace=(1, 9),
    faithful=False,
    check=check_chances,
    kernel=kernel,
)
def della(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.5,
    epsilon: Epsilon = 0.15,
    lambda_: Lambda = 1.0,
    vote: Vote = "plain",
    normalize: Normalize = True,
    rescale: Rescale = "inverse",
    weights: Weights = None,
    seeds: Seeds = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Drop entries by rank, divide the rest by their chance to stay, elect and merge as TIES.

    In a row of m entries, the one of rank r by magnitude (from 1, the smallest; among equals the
    first is smaller) stays with probability density - epsilon + 2 epsilon (r-1) / (m-1): on average
    with `density`. Rows are those of the tensor flattened behind its first axis; a vector is one
    row. density +- epsilon must lie within (0, 1), else ParameterError; with density 1 nothing is
    dropped. The paper tunes both; these are mergekit's epsilon, and half of the entries.
    `seeds` holds one seed per expert; without them the draws are those of seed 0.

    When: as `dare_ties`, where large changes should stay more often than small ones. The result
    depends on the seed.
    """
    sparse = dropped_by_rank(deltas, density, epsilon, rescale, seeds, start)
    return elected_merge(sparse, weights, vote, normalize).mul_(lambda_)


@register_method(
    "della_linear",
    source="DELLA, arXiv:2406.11617, sec. 3, without the election",
    random=True,
    cut=cut,
    workspace=(1, 9),
    faithful=False,
    check=check_chances,
    kernel=kernel,
)
def della_linear(
    deltas: Float[Tensor, "K *shape"],
    *,
    density: Density = 0.5,
    epsilon: Epsilon = 0.15,
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Rescale = "inverse",
    weights: Weights = None,
    seeds: Seeds = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """Drop entries by rank as DELLA, divide the rest by their chance to stay, add up.

    lambda sum_k w_k D_k of what stays; `normalize` divides by the sum of the weights.

    When: as `della`, where experts agree on most signs. The result depends on the seed.
    """
    sparse = dropped_by_rank(deltas, density, epsilon, rescale, seeds, start)
    return scaled_sum(sparse, weights, lambda_, normalize)


def dropped_by_rank(
    deltas: Float[Tensor, "K *shape"],
    density: Density,
    epsilon: Epsilon,
    rescale: str,
    seeds: Seeds,
    start: int = 0,
) -> Sparse:
    """Each D_k with small entries dropped more often than large ones of their row, rescaled."""
    if density == 1 or deltas[0].numel() == 0:
        return list(deltas)
    check_chances(density=density, epsilon=epsilon)
    own = one_for_each(density, len(deltas), "density")
    spreads = one_for_each(epsilon, len(deltas), "epsilon")
    experts = zip(deltas, seeds_of(deltas, seeds), own, spreads, strict=True)
    kept = [
        delta.clone() if share == 1 else _by_rank(delta, seed, (share, spread), rescale, start)
        for delta, seed, share, spread in experts
    ]
    if rescale == "l1":
        flat = [delta.reshape(-1) for delta in kept]
        survey = l1_survey(lambda run, at, _: [row[at : at + run.shape[1]] for row in flat])
        for delta, ratio in zip(kept, surveyed(survey, deltas)["ratios"], strict=True):
            delta.mul_(ratio)
    return kept


def _by_rank(
    delta: Float[Tensor, "*shape"], seed: int, share: tuple[float, float], rescale: str, start: int
) -> Float[Tensor, "*shape"]:
    """One task vector's entries, each with the chance of its rank, of a density and an epsilon."""
    # A vector is one row.
    count = len(delta) if delta.ndim > 1 else 1
    rows = delta.reshape(count, -1)
    ladder = torch.from_numpy(chances_by_rank(rows.shape[1], *share))
    chances = by_rank(rows, ladder)
    draws = uniforms(seed, rows.shape, start).to(chances)
    # 1 where the draw is below the chance, else 0.
    stays = draws.neg_().add_(chances).sign_().clamp_(min=0).mul_(rows)
    return (stays.div_(chances) if rescale == "inverse" else stays).reshape(delta.shape)
