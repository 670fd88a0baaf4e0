"""What stays of each task vector: its largest entries, those of middling size, or random ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.errors import ParameterError
from magmerge.core.parameters import Seeds, Supplied, Thresholds
from magmerge.core.traits import Survey
from magmerge.linalg.draws import derive_seed, drop, uniforms
from magmerge.linalg.radix import ModelThreshold
from magmerge.linalg.selection import by_rank, kept_count, largest, whole_share
from magmerge.linalg.survey import LayerSums, surveyed
from magmerge.linalg.threshold import LayerThreshold, magnitudes

Scope = Annotated[
    Literal["tensor", "model"], Doc("whether the density holds in each tensor or in the model")
]
Epsilon = Annotated[
    float,
    Interval(ge=0, lt=0.5),
    Doc("how far the chance to stay is from `density` at the ends of a row's ranks"),
]
Gamma = Annotated[
    float,
    Interval(ge=0, lt=1),
    Doc("share of each task vector's entries, the largest, that is removed"),
]
Rescale = Annotated[
    Literal["inverse", "l1", "none"],
    Doc(
        "inverse: divide what stays by its chance to stay; l1: give each task vector the sum of "
        "magnitudes back that it had in the whole tensor, as mergekit does; none: leave it"
    ),
]
Ratios = Annotated[Sequence[float] | None, Supplied()]
"""One factor for each expert."""

Sparse = Sequence[Float[Tensor, "*shape"]]
"""What stays of each D_k, zeros elsewhere."""
Sparsify = Callable[[Tensor, int, Mapping[str, Any]], Sequence[Tensor] | Tensor]
"""From entries [K, n], the place of the first, and what the survey before found, to what stays."""


def trim_survey(
    *,
    entries: int,
    unchanged: int = 0,
    density: float = 0.2,
    scope: str = "model",
    **_: object,
) -> Survey | None:
    """Each expert's threshold, in the layer or in the whole model."""
    if density == 1:
        return None
    if scope == "model":
        # What no expert changes is part of the model too, though it is not looked at.
        return ModelThreshold(lambda seen: [kept_count(density, seen + unchanged)], magnitudes)
    return LayerThreshold(entries, [kept_count(density, entries)])


def trimmed(
    deltas: Float[Tensor, "K *shape"],
    density: float,
    scope: str = "tensor",
    thresholds: Thresholds = None,
    start: int = 0,
) -> Sparse:
    """Each D_k with all but its largest entries set to zero: ceil(density n) of n stay."""
    if thresholds is None:
        survey = trim_survey(entries=deltas[0].numel(), density=density, scope=scope)
        if survey is None:
            return list(deltas)
        thresholds = surveyed(survey, deltas)["thresholds"]
    (per_expert,) = thresholds
    return [largest(d, t, start) for d, t in zip(deltas, per_expert, strict=True)]


def dropped(deltas: Float[Tensor, "K *shape"], p: float, seeds: Seeds, start: int = 0) -> Sparse:
    """Each D_k with each entry zero with probability p, not rescaled."""
    pairs = zip(deltas, _seeds(deltas, seeds), strict=True)
    return [drop(delta, seed, 1 - p, start) for delta, seed in pairs]


def drop_survey(
    *, p: float = 0.9, rescale: str = "inverse", seeds: Seeds = None, **_: object
) -> Survey | None:
    """The sums that the L1 rescaling of `dropped` matches."""
    if rescale != "l1":
        return None
    return l1_survey(lambda run, start, _: dropped(run, p, seeds, start))


def drop_factors(
    deltas: Float[Tensor, "K *shape"], p: float, rescale: str, seeds: Seeds, ratios: Ratios
) -> Sequence[float]:
    """What the entries that `dropped` leaves of each expert are multiplied with."""
    survey = drop_survey(p=p, rescale=rescale, seeds=seeds)
    if survey is None:
        return [1 / (1 - p) if rescale == "inverse" else 1.0] * len(deltas)
    factors: Sequence[float] = surveyed(survey, deltas)["ratios"] if ratios is None else ratios
    return factors


def check_chances(*, density: float, epsilon: float, **_: object) -> None:
    """ParameterError unless every chance to stay is within (0, 1), or nothing is dropped."""
    if density != 1 and not (density - epsilon > 0 and density + epsilon < 1):
        raise ParameterError(
            f"density {density} +- epsilon {epsilon} is not within (0, 1)",
            remedy=f"choose an epsilon below {min(density, 1 - density):g}, or another density",
        )


def dropped_by_rank(
    deltas: Float[Tensor, "K *shape"],
    density: float,
    epsilon: float,
    rescale: str,
    seeds: Seeds,
    start: int = 0,
) -> Sparse:
    """Each D_k with small entries dropped more often than large ones of their row, rescaled."""
    if density == 1 or deltas[0].numel() == 0:
        return list(deltas)
    check_chances(density=density, epsilon=epsilon)
    # A vector is one row.
    count = len(deltas[0]) if deltas.ndim > 2 else 1
    ladder = chances_by_rank(deltas[0].numel() // count, density, epsilon)
    kept = []
    for delta, seed in zip(deltas, _seeds(deltas, seeds), strict=True):
        rows = delta.reshape(count, -1)
        chances = by_rank(rows, ladder)
        draws = uniforms(seed, rows.shape, start).to(chances)
        # 1 where the draw is below the chance, else 0.
        stays = draws.neg_().add_(chances).sign_().clamp_(min=0).mul_(rows)
        kept.append((stays.div_(chances) if rescale == "inverse" else stays).reshape(delta.shape))
    if rescale == "l1":
        flat = [delta.reshape(-1) for delta in kept]
        survey = l1_survey(lambda run, at, _: [row[at : at + run.shape[1]] for row in flat])
        for delta, ratio in zip(kept, surveyed(survey, deltas)["ratios"], strict=True):
            delta.mul_(ratio)
    return kept


def chances_by_rank(count: int, density: float, epsilon: float) -> Float[Tensor, "count"]:
    """The chance to stay of each rank, from the smallest entry to the largest."""
    if count == 1:
        return torch.full((1,), density, dtype=torch.float64)
    steps = torch.arange(count, dtype=torch.float64) / (count - 1)
    return density - epsilon + 2 * epsilon * steps


def _seeds(deltas: Sequence[Tensor] | Tensor, seeds: Seeds) -> Sequence[int]:
    """One seed for each expert; without any, those of a layer without name by the seed 0."""
    return [derive_seed(0, "", k) for k in range(len(deltas))] if seeds is None else seeds


def band_ranks(entries: int, density: float, gamma: float) -> tuple[int, int]:
    """How many of the largest entries go, and how many there are before the smallest that go.

    floor(gamma n) go, then floor(density n) stay, but at least one; where both together are more
    than n, fewer go. The decimals are taken as written, not as binary rounds them.
    """
    stay = max(1, whole_share(density, entries))
    gone = min(whole_share(gamma, entries), entries - stay)
    return gone, gone + stay


def band_survey(
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
    thresholds = LayerThreshold(entries, band_ranks(entries, density, gamma))
    if rescale != "l1":
        return thresholds
    return l1_survey(lambda run, start, first: _band(run, first["thresholds"], start), thresholds)


def banded(
    deltas: Float[Tensor, "K *shape"],
    density: float,
    gamma: float,
    rescale: str,
    thresholds: Thresholds,
    ratios: Ratios,
    start: int,
) -> Sparse:
    """Each D_k with only entries of middling magnitude, rescaled."""
    if thresholds is None:
        survey = band_survey(
            entries=deltas[0].numel(), density=density, gamma=gamma, rescale=rescale
        )
        if survey is None:
            return list(deltas)
        result = surveyed(survey, deltas)
        thresholds, ratios = result["thresholds"], result.get("ratios")
    assert thresholds is not None
    sparse = _band(deltas, thresholds, start)
    factors = [1 / density] * len(deltas) if rescale == "inverse" else ratios or []
    for delta, factor in zip(sparse, factors, strict=False):
        delta.mul_(factor)
    return sparse


def _band(deltas: Float[Tensor, "K *shape"], thresholds: Sequence[Any], start: int) -> Sparse:
    """The entries of each D_k beyond its second threshold, less those beyond its first."""
    kept = []
    for delta, high, low in zip(deltas, *thresholds, strict=True):
        kept.append(largest(delta, low, start))
        if not math.isinf(high.value):
            kept[-1].sub_(largest(delta, high, start))
    return kept


def l1_survey(sparsify: Sparsify, first: Survey | None = None) -> LayerSums:
    """For each expert the factor sum|D_k| / sum|what stays of D_k|, as the keyword `ratios`.

    1 where either is zero. `sparsify` says what stays; what a survey `first` finds is handed to it.
    """

    def magnitudes_of(start: int, run: Tensor, earlier: Mapping[str, Any]) -> Tensor:
        kept = sparsify(run, start, earlier)
        return torch.stack([_magnitude(run), torch.stack([_magnitude(part) for part in kept])])

    def ratios(total: Tensor) -> Mapping[str, Any]:
        pairs = total.T.tolist()
        return {"ratios": [b / a if a > 0 and b > 0 else 1.0 for b, a in pairs]}

    return LayerSums(magnitudes_of, ratios, first)


def _magnitude(run: Tensor) -> Tensor:
    """sum|D| over the last dimension, in float64."""
    total: Tensor = torch.linalg.vector_norm(run, 1, dim=-1, dtype=torch.float64)
    return total
