"""What stays of each task vector: its largest entries, those of middling size, or random ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import (
    Chance,
    Density,
    PerExpert,
    Probability,
    Seeds,
    Supplied,
    Thresholds,
)
from magmerge.core.traits import Survey
from magmerge.linalg.draws import derive_seed, drop
from magmerge.linalg.selection import kept_count, largest, whole_share
from magmerge.linalg.survey import LayerSums, SurveyOfEach, surveyed
from magmerge.linalg.threshold import ThresholdSurvey
from magmerge.methods.combine import one_for_each

Scope = Annotated[
    Literal["tensor", "model"], Doc("whether the density holds in each tensor or in the model")
]
Gamma = Annotated[
    Chance | Sequence[Chance],
    PerExpert(),
    Doc(
        "share of each task vector's entries, the largest, that is removed, or one for each expert"
    ),
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
    experts: int = 1,
    unchanged: int = 0,
    density: Density = 0.2,
    scope: str = "model",
    **_: object,
) -> Survey | None:
    """Each expert's threshold, in the layer of so many entries or in the whole model."""

    def threshold(share: float, rows: int) -> Survey:
        # What no expert changes is part of the model too, though it is not looked at.
        if scope == "model":
            ranks = [kept_count(share, entries + unchanged)]
            return ThresholdSurvey(entries, ranks, scope="model", experts=rows)
        return ThresholdSurvey(entries, [kept_count(share, entries)], experts=rows)

    if isinstance(density, Sequence):
        return SurveyOfEach([threshold(own, 1) for own in density])
    return None if density == 1 else threshold(density, experts)


def trimmed(
    deltas: Float[Tensor, "K *shape"],
    density: Density,
    scope: str = "tensor",
    thresholds: Thresholds = None,
    start: int = 0,
) -> Sparse:
    """Each D_k with all but its largest entries set to zero: ceil(density n) of n stay."""
    if thresholds is None:
        _check_count(deltas, density=density)
        survey = trim_survey(entries=deltas[0].numel(), density=density, scope=scope)
        if survey is None:
            return list(deltas)
        thresholds = surveyed(survey, deltas)["thresholds"]
    (per_expert,) = thresholds
    return [largest(d, t, start) for d, t in zip(deltas, per_expert, strict=True)]


def dropped(
    deltas: Float[Tensor, "K *shape"], p: Probability, seeds: Seeds, start: int = 0
) -> Sparse:
    """Each D_k with each entry zero with probability p, not rescaled."""
    chances = one_for_each(p, len(deltas), "p")
    triples = zip(deltas, seeds_of(deltas, seeds), chances, strict=True)
    return [drop(delta, seed, 1 - chance, start) for delta, seed, chance in triples]


def drop_survey(
    *, p: Probability = 0.9, rescale: str = "inverse", seeds: Seeds = None, **_: object
) -> Survey | None:
    """The sums that the L1 rescaling of `dropped` matches."""
    if rescale != "l1":
        return None
    return l1_survey(lambda run, start, _: dropped(run, p, seeds, start))


def drop_factors(
    deltas: Float[Tensor, "K *shape"], p: Probability, rescale: str, seeds: Seeds, ratios: Ratios
) -> Sequence[float]:
    """What the entries that `dropped` leaves of each expert are multiplied with."""
    survey = drop_survey(p=p, rescale=rescale, seeds=seeds)
    if survey is not None and ratios is None:
        ratios = surveyed(survey, deltas)["ratios"]
    return kept_factors(len(deltas), p, rescale, ratios)


def kept_factors(
    experts: int, p: Probability, rescale: str, ratios: Ratios, **_: object
) -> Sequence[float]:
    """The same where the ratios of L1 rescaling are known."""
    if rescale == "l1":
        assert ratios is not None
        return ratios
    chances = one_for_each(p, experts, "p")
    return [1 / (1 - chance) if rescale == "inverse" else 1.0 for chance in chances]


def fused_drop(experts: int, p: Probability, seeds: Seeds, **_: object) -> dict[str, Any]:
    """What `dropped` leaves, as compiled kernels do it."""
    stay = [1 - chance for chance in one_for_each(p, experts, "p")]
    return {"keep": "drop", "stay": stay, "seeds": seeds_of(range(experts), seeds)}


def fused_band(
    experts: int,
    density: Density,
    rescale: str,
    thresholds: Thresholds,
    ratios: Ratios,
    **_: object,
) -> dict[str, Any]:
    """What `banded` leaves, as compiled kernels do it; without thresholds that is everything."""
    if thresholds is None:
        return {}
    high, low = thresholds
    shares = one_for_each(density, experts, "density")
    factors = [1 / share for share in shares] if rescale == "inverse" else ratios
    return {"keep": "band", "thresholds": (low, high), "factors": factors}


def _check_count(deltas: Tensor, **parameters: float | Sequence[float]) -> None:
    """ParameterError for a list that has not one value for each expert."""
    for name, value in parameters.items():
        one_for_each(value, len(deltas), name)


def seeds_of(deltas: Sized, seeds: Seeds) -> Sequence[int]:
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
    experts: int = 1,
    density: Density = 0.143,
    gamma: Gamma = 0.007,
    rescale: str = "none",
    **_: object,
) -> Survey | None:
    """Both thresholds of each expert, and where asked for, the ratios of what stays."""
    if density == 1 or entries == 0:
        return None
    lists = [own for own in (density, gamma) if isinstance(own, Sequence)]
    if lists:
        shares = one_for_each(density, len(lists[0]), "density")
        pairs = zip(shares, one_for_each(gamma, len(lists[0]), "gamma"), strict=True)
        thresholds: Survey = SurveyOfEach(
            [ThresholdSurvey(entries, band_ranks(entries, *pair)) for pair in pairs]
        )
    else:
        assert not isinstance(density, Sequence)
        assert not isinstance(gamma, Sequence)
        ranks = band_ranks(entries, density, gamma)
        thresholds = ThresholdSurvey(entries, ranks, experts=experts)
    if rescale != "l1":
        return thresholds
    return l1_survey(lambda run, start, first: _band(run, first["thresholds"], start), thresholds)


def banded(
    deltas: Float[Tensor, "K *shape"],
    density: Density,
    gamma: Gamma,
    rescale: str,
    thresholds: Thresholds,
    ratios: Ratios,
    start: int,
) -> Sparse:
    """Each D_k with only entries of middling magnitude, rescaled."""
    if thresholds is None:
        _check_count(deltas, density=density, gamma=gamma)
        survey = band_survey(
            entries=deltas[0].numel(), density=density, gamma=gamma, rescale=rescale
        )
        if survey is None:
            return list(deltas)
        result = surveyed(survey, deltas)
        thresholds, ratios = result["thresholds"], result.get("ratios")
    assert thresholds is not None
    sparse = _band(deltas, thresholds, start)
    shares = one_for_each(density, len(deltas), "density")
    factors = [1 / share for share in shares] if rescale == "inverse" else ratios or []
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
