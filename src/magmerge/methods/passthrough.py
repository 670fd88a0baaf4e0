"""One model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from typing_extensions import Doc

from magmerge.core.lazy import Float, Tensor
from magmerge.core.parameters import PerExpert
from magmerge.core.registry import register_method
from magmerge.methods.combine import one_for_each

Scale = Annotated[
    float | Sequence[float], PerExpert(), Doc("factor on the weights, or one for each expert")
]


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
    scale: Scale = 1.0,
) -> Float[Tensor, "*shape"]:
    """The expert's own weights, times `scale`; to the last bit where that is 1.

    When: to stack blocks of models (slices), or to write a model as it is in another form.
    """
    return weights[0] * one_for_each(scale, len(weights), "scale")[0]
