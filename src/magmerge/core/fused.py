"""A merge that acts on each entry alone, in the parts that compiled kernels are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from magmerge.core.parameters import Threshold


@dataclass(frozen=True, slots=True)
class Fused:
    """Which entries of each task vector stay, how what stays becomes one, and its scale.

    `weights`: one for each expert. `keep` "beyond": what is beyond `thresholds[0]`; "band": less
    what is beyond `thresholds[1]`; "drop": an entry of expert k with the chance `stay[k]`, as
    `seeds[k]` draws; "rank": with the chance of its rank in its row, from stay - spread to
    stay + spread, by which with `inverse` it is divided. `factors`, if given, multiply what stays.
    `combine` "sum": the weighted sum; "plain" and "weighted": what has the elected sign
    (methods/combine.py), its mean or with `mean` off its sum. Last it is multiplied with `scale`,
    or divided by it.
    """

    weights: Sequence[float]
    keep: Literal["all", "beyond", "band", "drop", "rank"] = "all"
    thresholds: Sequence[Sequence[Threshold]] = ()
    stay: Sequence[float] = ()
    seeds: Sequence[int] = ()
    spread: Sequence[float] = ()
    inverse: bool = False
    factors: Sequence[float] | None = None
    combine: Literal["sum", "plain", "weighted"] = "sum"
    mean: bool = True
    scaling: Literal["as_is", "multiply", "divide"] = "as_is"
    scale: float = 1.0
