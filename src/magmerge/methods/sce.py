"""SCE: select entries that vary, weigh experts by their energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Interval
from typing_extensions import Doc

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import Start, Supplied, Threshold
from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.linalg.selection import count_above, largest, whole_share
from magmerge.linalg.survey import LayerSums, surveyed
from magmerge.linalg.threshold import ThresholdSurvey
from magmerge.methods.combine import elected_merge


def survey(
    *,
    experts: int,
    entries: int,
    select_topk: float = 1.0,
    energy_floor: float = 0.0,
    **_: object,
) -> Survey | None:
    """The threshold of the variance, then the experts' shares of the energy beyond it."""
    if experts == 1 or entries == 0:
        return None
    first = VarianceThreshold(entries, select_topk) if select_topk < 1 else None
    return LayerSums(_energies, lambda total: _shares(total, entries, energy_floor), first)


@register_method(
    "sce",
    source="SCE of FuseChat, arXiv:2408.07990, sec. 3.3",
    survey=survey,
    cut="entries",
    workspace=(1, 5),
)
def sce(
    deltas: Float[Tensor, "K *shape"],
    *,
    select_topk: Annotated[
        float, Interval(gt=0, le=1), Doc("share of the entries that vary which is kept")
    ] = 1.0,
    energy_floor: Annotated[
        float,
        Interval(ge=0),
        Doc("total mean square below which experts weigh the same; mergekit's is 1e-6"),
    ] = 0.0,
    threshold: Annotated[Threshold | None, Supplied()] = None,
    shares: Annotated[Sequence[float] | None, Supplied()] = None,
    start: Start = 0,
) -> Float[Tensor, "*shape"]:
    """sum_k w_k e_k D_k / sum_k w_k e_k on the entries that vary most between the experts.

    Select: of the entries whose variance over the experts is not zero, the floor(select_topk n)
    with the largest stay, at least one; among equals the first. Where nothing varies (one expert,
    or copies of one) everything stays. Calculate: w_k is the share of expert k in the sum of
    squares of what stays. Erase: e_k is 1 where D_k has the sign of sum_j D_j, else 0; where that
    sum is zero the result is. With select_topk 1, mergekit's default too, everything stays.
    mergekit weighs most models alike (energy_floor 1e-6); its plus sign for sums of zero, and its
    loss of a sole expert, are left out.

    When: experts of unequal strength: who changes more of a tensor counts for more in it.
    """
    own = survey(
        experts=len(deltas),
        entries=deltas[0].numel(),
        select_topk=select_topk,
        energy_floor=energy_floor,
    )
    if own is None:
        return deltas[0].clone()
    if shares is None:
        result = surveyed(own, deltas)
        threshold, shares = result.get("threshold"), result["shares"]
    return elected_merge(selected(deltas, threshold, start), shares, "plain", normalize=True)


class VarianceThreshold(ThresholdSurvey):
    """The threshold of the share `topk` of the variances that are not zero.

    Its rank is guessed from the sample, and set right when all varying entries are counted.
    """

    def __init__(self, entries: int, topk: float) -> None:
        super().__init__(entries, [entries], lambda ranked: ranked)
        self._topk = topk
        self._varying: dict[int, int] = {}

    def prepare(self, sample: Float[Tensor, "K samples"]) -> None:
        """Bracket the threshold, of the rank that the sample lets expect."""
        ranked = variances(sample)
        share = count_above(ranked[0], 0.0) / max(1, sample.shape[1])
        self._set_rank(round(share * self._entries))
        super().prepare(ranked)

    def observe(self, name: str, start: int, tensors: Float[Tensor, "K *shape"]) -> None:
        """Rank one piece by its variance."""
        ranked = variances(tensors)
        self._varying[start] = count_above(ranked[0], 0.0)
        super().observe(name, start, ranked)

    def conclude(self) -> None:
        """Count what varies, and choose the threshold."""
        self._set_rank(sum(self._varying.values()))
        super().conclude()

    def keywords(self, name: str) -> Mapping[str, Any]:
        """The only threshold."""
        return {"threshold": super().keywords(name)["thresholds"][0][0]}

    def _set_rank(self, varying: int) -> None:
        self._ranks = [max(1, whole_share(self._topk, varying)) if varying else self._entries]


def variances(tensors: Float[Tensor, "K *shape"]) -> Float[Tensor, "1 entries"]:
    """The variance of each entry over the experts: exactly zero where all are the same."""
    shifted: list[Tensor] = [tensor - tensors[0] for tensor in tensors[1:]]
    mean = shifted[0].clone()
    for shift in shifted[1:]:
        mean.add_(shift)
    mean.div_(len(tensors))
    # The first expert's own shift is zero.
    total = mean.square()
    for shift in shifted:
        total.add_(shift.sub_(mean).square_())
    return total.div_(len(tensors)).reshape(1, -1)


def selected(
    deltas: Float[Tensor, "K *shape"], threshold: Threshold | None, start: int
) -> Float[Tensor, "K *shape"]:
    """The task vectors with every entry zero whose variance is not beyond the threshold."""
    if threshold is None or threshold.value <= 0:
        return deltas.clone()
    mask = largest(variances(deltas), threshold, start).sign_()
    return deltas * mask.reshape(deltas.shape[1:])


def _energies(start: int, run: Tensor, earlier: Mapping[str, Any]) -> Tensor:
    kept = selected(run, earlier.get("threshold"), start).to(torch.float64)
    energies: Tensor = torch.linalg.vecdot(kept, kept)
    return energies


def _shares(energies: Tensor, entries: int, floor: float) -> Mapping[str, Any]:
    """Each expert's share of the energy; all the same where there is none, or less than `floor`."""
    total = float(energies.sum())
    if total == 0 or total / entries < floor:
        return {"shares": [1 / len(energies)] * len(energies)}
    return {"shares": (energies / total).tolist()}
