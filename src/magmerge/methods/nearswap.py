"""Move the base towards one expert, no entry by more than a given distance."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.registry import register_method


@register_method(
    "nearswap",
    source="huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001; mergekit 0.1.5, nearswap",
    cut="entries",
    experts=(1, 1),
    workspace=(0, 1),
    homogeneous=False,
    faithful=False,
)
def nearswap(
    deltas: Float[Tensor, "1 *shape"],
    *,
    t: Annotated[float, Interval(ge=0), Doc("the farthest that an entry moves")] = 1e-4,
) -> Float[Tensor, "*shape"]:
    """D with every entry bounded by t in size: entries that differ by less become the expert's.

    The formula w W_1 + (1-w) W_0 with w = min(1, t / |W_1 - W_0|), of the base W_0 and the expert
    W_1, is W_0 + w D; and w D is D where |D| <= t, else t sign(D). mergekit divides by at least
    1e-6, so that with t below 1e-6 it moves entries with |D| < 1e-6 by t / 1e-6 of D only.

    When: to give a model a slight touch of another one.
    """
    return deltas[0].clamp(-t, t)
