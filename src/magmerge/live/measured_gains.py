"""Gains as they were measured: fitted to their tensors, and refused where they tell nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from magmerge.core.errors import MagmergeError
from magmerge.core.types import Step
from magmerge.live.gains import GainEstimate


def gains_by_rows(steps: Mapping[str, Step], gains: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gains by rows only where the tensor has such rows; one for the tensor elsewhere.

    That a matrix is stored as [in, out] may be known to its module alone.
    """
    fitting = dict(gains)
    for name, value in gains.items():
        axis = 1 if steps[name].kind == "transposed" else 0
        if value.ndim == 2 and value.shape[1] != steps[name].spec.shape[axis]:
            fitting[name] = value.nanmean(dim=1)
    return fitting


def check_gains(result: GainEstimate, experts: Mapping[int, str]) -> None:
    """MagmergeError where the samples of one of the `experts` tell nothing about any layer."""
    gains = result.gains.values()
    for place, expert in experts.items():
        if gains and not any(bool(gain[place].isfinite().any()) for gain in gains):
            raise MagmergeError(
                "on these samples no layer has a finite change in features",
                source=f"the data of {expert}",
                remedy="look for NaN and infinity in the samples, and in what the model makes "
                "of them (--precision float32)",
            )
    if not gains:
        reasons = sorted({layer.reason for layer in result.uncovered})
        raise MagmergeError(
            f"no layer could be measured: {'; '.join(reasons)}",
            remedy="look for NaN and infinity in the samples, or give the model that was merged",
        )
