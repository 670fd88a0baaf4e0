"""SCE: select entries that vary, weigh experts by their energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Start, Supplied, Threshold
from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.linalg.ranks import whole_share
from magmerge.linalg.selection import count_above, largest
from magmerge.methods.gram import LayerSums
from magmerge.methods.survey import surveyed
from magmerge.methods.threshold import LayerThreshold
from magmerge.methods.ties import elect_and_average


def survey(
    *,
    experts: int,
    entries: int,
    select_topk: float = 1.0,
    energy_floor: float = 0.0,
    **_: object,
) -> Survey | None:
    """The threshold of the variance, and the experts' shares of the energy."""
    if experts == 1 or entries == 0:
        return None
    return SceSurvey(entries, select_topk, energy_floor)


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
    """
    if len(deltas) == 1 or deltas[0].numel() == 0:
        return deltas[0].clone()
    if shares is None or threshold is None:
        whole = SceSurvey(deltas[0].numel(), select_topk, energy_floor)
        found = surveyed(whole, deltas)
        threshold, shares = found["threshold"], found["shares"]
    assert threshold is not None
    assert shares is not None
    return elect_and_average(selected(deltas, threshold, start), shares)


class SceSurvey:
    """First the threshold of the variance, then the energies of what is beyond it."""

    scope: Literal["layer"] = "layer"

    def __init__(self, entries: int, select_topk: float, energy_floor: float) -> None:
        self._entries = entries
        self._topk = select_topk
        # The rank is guessed from the sample, and set right when all varying entries are counted.
        self._ranks = [entries]
        self._varying: dict[int, int] = {}
        self._counted = False
        self._name = ""
        self._threshold = LayerThreshold(entries, self._ranks, lambda ranked: ranked)
        self._selects = select_topk < 1
        self._sums = LayerSums(self._energies, lambda total: _shares(total, entries, energy_floor))

    @property
    def samples(self) -> int:
        return self._threshold.samples if self._selects else 0

    @property
    def passes(self) -> int:
        return (self._threshold.passes if self._selects else 0) + self._sums.passes

    def prepare(self, sample: Float[Tensor, "K samples"]) -> None:
        """Bracket the threshold, of the rank that the sample lets expect."""
        ranked = variances(sample)
        share = count_above(ranked[0], 0.0) / max(1, sample.shape[1])
        self._ranks[0] = self._rank(round(share * self._entries))
        self._threshold.prepare(ranked)

    def wants(self, name: str, start: int, stop: int) -> bool:
        counting = not (self._counted and self._selecting())
        return counting or self._threshold.wants(name, start, stop)

    def observe(self, name: str, start: int, tensors: Float[Tensor, "K *shape"]) -> None:
        """Rank one piece by its variance, or sum up its energies."""
        self._name = name
        if not self._selecting():
            self._sums.observe(name, start, tensors)
            return
        ranked = variances(tensors)
        if not self._counted:
            self._varying[start] = count_above(ranked[0], 0.0)
        self._threshold.observe(name, start, ranked)

    def conclude(self) -> None:
        """Count what varies, choose the threshold, or add up the energies."""
        if not self._selecting():
            self._sums.conclude()
            return
        if not self._counted:
            self._ranks[0] = self._rank(sum(self._varying.values()))
            self._counted = True
        self._threshold.conclude()

    def found(self, name: str) -> Mapping[str, Any]:
        """The variance's threshold and each expert's share of the energy."""
        return {"threshold": self._chosen(), **self._sums.found(name)}

    def _selecting(self) -> bool:
        return self._selects and self._threshold.passes > 0

    def _rank(self, varying: int) -> int:
        return max(1, whole_share(self._topk, varying)) if varying else self._entries

    def _chosen(self) -> Threshold:
        if not self._selects:
            return Threshold(0.0, 0)
        threshold: Threshold = self._threshold.found(self._name)["thresholds"][0][0]
        return threshold

    def _energies(self, start: int, run: Tensor) -> Tensor:
        kept = selected(run, self._chosen(), start).to(torch.float64)
        energies: Tensor = torch.linalg.vecdot(kept, kept)
        return energies


def variances(tensors: Float[Tensor, "K *shape"]) -> Float[Tensor, "1 entries"]:
    """The variance of each entry over the experts: exactly zero where all are the same."""
    shifted: list[Tensor] = [one - tensors[0] for one in tensors[1:]]
    mean = shifted[0].clone()
    for one in shifted[1:]:
        mean.add_(one)
    mean.div_(len(tensors))
    # The first expert's own shift is zero.
    total = mean.square()
    for one in shifted:
        total.add_(one.sub_(mean).square_())
    return total.div_(len(tensors)).reshape(1, -1)


def selected(
    deltas: Float[Tensor, "K *shape"], threshold: Threshold, start: int
) -> Float[Tensor, "K *shape"]:
    """The task vectors with every entry zero whose variance is not beyond the threshold."""
    if threshold.value <= 0:
        return deltas.clone()
    mask = largest(variances(deltas), threshold, start).sign_()
    return deltas * mask.reshape(deltas.shape[1:])


def _shares(energies: Tensor, entries: int, floor: float) -> Mapping[str, Any]:
    """Each expert's share of the energy; all the same where there is none, or less than `floor`."""
    total = float(energies.sum())
    if total == 0 or total / entries < floor:
        return {"shares": [1 / len(energies)] * len(energies)}
    return {"shares": (energies / total).tolist()}
