"""A survey of one layer alone, for a method that is called without the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from magmerge.core.traits import Survey


def surveyed(survey: Survey, tensors: Float[Tensor, "K *shape"]) -> Mapping[str, Any]:
    """What the survey finds in a layer that is here as a whole."""
    flat = tensors.reshape(len(tensors), -1)
    if survey.samples:
        survey.prepare(flat[:, :: max(1, flat.shape[1] // survey.samples)])
    while survey.passes:
        survey.observe("", 0, flat)
        survey.conclude()
    return survey.found("")
