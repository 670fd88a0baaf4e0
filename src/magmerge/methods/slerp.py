"""Spherical interpolation of two models."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.linalg import row_scale
from magmerge.registry import register_method

PARALLEL = 0.9995
"""Cosine beyond which the sine of the angle is too small to divide by."""


@register_method(
    "slerp",
    source="Shoemake 1985, Animating rotation with quaternion curves, sec. 3.3",
    acts_on="weights",
    ordered=True,
    base_free=True,
    experts=(2, 2),
)
def slerp(
    weights: Float[Tensor, "2 *shape"],
    *,
    t: Annotated[float, Interval(ge=0, le=1), Doc("0 is the first expert, 1 the second")] = 0.5,
) -> Float[Tensor, "*shape"]:
    """Spherical interpolation: (sin((1-t) a) W_1 + sin(t a) W_2) / sin a, a the angle between them.

    The whole tensor is one vector. Where an angle is not defined (a tensor of zeros) or too small
    (cosine beyond 0.9995 in size), the interpolation is linear: (1-t) W_1 + t W_2.
    """
    first, second = weights[0], weights[1]
    # At the ends the interpolation is one of the experts to the last bit.
    if t in (0.0, 1.0):
        return (second if t else first).clone()
    flat = weights.reshape(2, -1)
    units = flat / row_scale(flat).unsqueeze(1)
    norms = torch.linalg.vector_norm(units, dim=1)
    defined = bool((norms > 0).all())
    cosine = float((units[0] / norms[0]) @ (units[1] / norms[1])) if defined else 1.0
    if abs(cosine) > PARALLEL:
        return (1 - t) * first + t * second
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    share = torch.sin((1 - t) * angle) / torch.sin(angle)
    return float(share) * first + float(torch.sin(t * angle) / torch.sin(angle)) * second
