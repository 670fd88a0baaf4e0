"""RAM: what one expert alone changes is kept whole, what several change is averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Supplied
from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.linalg.survey import LayerSums, surveyed

Epsilon = Annotated[
    float, Interval(ge=0), Doc("size beyond which an entry counts as changed by an expert")
]
Boosts = Annotated[Sequence[float] | None, Supplied()]


@register_method(
    "ram", source="RAM, arXiv:2601.13572", cut="entries", workspace=(0, 4), homogeneous=False
)
def ram(deltas: Float[Tensor, "K *shape"], *, epsilon: Epsilon = 1e-5) -> Float[Tensor, "*shape"]:
    """The mean, in each entry, over the experts that change it: those with |D_k| > epsilon.

    So an entry that one expert changes is that expert's own, and one that none changes is the
    base's. `epsilon` is absolute, in the units of the weights.

    When: experts that change few entries each, such as those of reinforcement learning: what
    one alone changed is not averaged away.
    """
    total, count = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta in deltas:
        changed = torch.nn.functional.hardshrink(delta, epsilon)
        total.add_(changed)
        count.add_(changed.sign_().abs_())
    return total.div_(count.clamp_(min=1.0))


def survey(*, r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5, **_: object) -> Survey:
    """How many of each expert's changes others share, as its factor `boosts`."""

    def keywords(total: Tensor) -> Mapping[str, Any]:
        return {"boosts": [_boost(s, u, r, alpha) for s, u in total.T.tolist()]}

    return LayerSums(lambda _, run, __: overlaps(run, epsilon), keywords)


@register_method(
    "ramplus_tl",
    source="RAM+, arXiv:2601.13572; with mergekit 0.1.5's ratios of each tensor",
    survey=survey,
    cut="entries",
    workspace=(0, 5),
    homogeneous=False,
)
def ramplus_tl(
    deltas: Float[Tensor, "K *shape"],
    *,
    r: Annotated[float, Doc("gain of the factor per ratio of shared to unique changes")] = 0.1,
    alpha: Annotated[float, Interval(ge=0), Doc("the greatest ratio that counts")] = 0.2,
    epsilon: Epsilon = 1e-5,
    boosts: Boosts = None,
) -> Float[Tensor, "*shape"]:
    """RAM, with what expert k alone changes times 1 + r min(alpha, shared_k / unique_k).

    shared_k and unique_k count the entries of this tensor that expert k changes (|D_k| > epsilon)
    together with others, and alone. Without any of the latter the ratio counts as `alpha`.

    When: as `ram`, where what one expert alone changed should count for more still.
    """
    if boosts is None:
        boosts = surveyed(survey(r=r, alpha=alpha, epsilon=epsilon), deltas)["boosts"]
    total, unique, count = (torch.zeros_like(deltas[0]) for _ in range(3))
    for delta, boost in zip(deltas, boosts, strict=True):
        changed = torch.nn.functional.hardshrink(delta, epsilon)
        total.add_(changed)
        unique.add_(changed, alpha=boost)
        count.add_(changed.sign_().abs_())
    alone = _alone(count)
    # One of the two parts is multiplied by zero, the other by one.
    total.div_(count.clamp_(min=1.0)).addcmul_(total, alone, value=-1.0)
    return total.add_(unique.mul_(alone))


def overlaps(run: Float[Tensor, "K entries"], epsilon: float) -> Float[Tensor, "2 K"]:
    """For each expert, how many of its changes others share, and how many are its own."""
    marks = torch.nn.functional.hardshrink(run, epsilon).sign_().abs_()
    alone = _alone(marks.sum(0))
    # Sums of ones: exact in float32 for a run.
    unique = (marks * alone).sum(1)
    return torch.stack([marks.sum(1) - unique, unique]).double()


def _alone(count: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 where at most one expert changes an entry, else 0."""
    return (2.0 - count).clamp_(0.0, 1.0)


def _boost(shared: float, unique: float, r: float, alpha: float) -> float:
    ratio = shared / unique if unique else alpha * bool(shared)
    return 1 + r * min(ratio, alpha)
