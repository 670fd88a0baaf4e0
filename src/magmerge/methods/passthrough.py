"""One model as it is."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.registry import register_method


@register_method(
    "passthrough",
    source="mergekit 0.1.5, passthrough",
    acts_on="weights",
    cut="entries",
    base_free=True,
    experts=(1, 1),
    workspace=(0, 1),
    rotates=True,
)
def passthrough(
    weights: Float[Tensor, "1 *shape"],
    *,
    scale: Annotated[float, Doc("factor on the weights")] = 1.0,
) -> Float[Tensor, "*shape"]:
    """The expert's own weights, times `scale`; to the last bit where that is 1."""
    return weights[0] * scale
