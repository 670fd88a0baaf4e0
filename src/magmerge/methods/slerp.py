"""Spherical interpolation of two models."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.methods.combine import weighted_sum
from magmerge.methods.gram import GramMatrix, gram_of, gram_survey, norms_and_cosines

PARALLEL = 0.9995
"""Cosine beyond which the sine of the angle is too small to divide by."""


def survey(*, t: float = 0.5, **_: object) -> Survey | None:
    """The angle between the two; none is needed where the result is one of them."""
    return None if t in (0.0, 1.0) else gram_survey()


@register_method(
    "slerp",
    source="Shoemake 1985, Animating rotation with quaternion curves, sec. 3.3",
    acts_on="weights",
    survey=survey,
    cut="entries",
    ordered=True,
    base_free=True,
    experts=(2, 2),
    workspace=(0, 1),
    rotates=True,
)
def slerp(
    weights: Float[Tensor, "2 *shape"],
    *,
    t: Annotated[float, Interval(ge=0, le=1), Doc("0 is the first expert, 1 the second")] = 0.5,
    gram: GramMatrix = None,
) -> Float[Tensor, "*shape"]:
    """Spherical interpolation: (sin((1-t) a) W_1 + sin(t a) W_2) / sin a, a the angle between them.

    The whole tensor is one vector. Where an angle is not defined (a tensor of zeros) or too small
    (cosine beyond 0.9995 in size), the interpolation is linear: (1-t) W_1 + t W_2.

    When: two models of one task, and no base.
    """
    # At the ends the interpolation is one of the experts to the last bit.
    if t in (0.0, 1.0):
        return weights[int(t)].clone()
    return on_arc(weights, gram, t, PARALLEL)


def on_arc(
    tensors: Float[Tensor, "2 *shape"], gram: GramMatrix, t: float, parallel: float
) -> Float[Tensor, "*shape"]:
    """The interpolation of two whole tensors; linear where one is zero."""
    norms, cosines = norms_and_cosines(gram_of(tensors, gram))
    cosine = cosines[0, 1] if bool((norms > 0).all()) else torch.ones_like(cosines[0, 1])
    return weighted_sum(tensors, [float(share) for share in arc_shares(cosine, t, parallel)])


def arc_shares(
    cosine: Float[Tensor, "*vectors"], t: float, parallel: float
) -> tuple[Float[Tensor, "*vectors"], Float[Tensor, "*vectors"]]:
    """sin((1-t) a) / sin a and sin(t a) / sin a, or 1-t and t where |cosine| > `parallel`."""
    angle = torch.arccos(cosine.clamp(-1.0, 1.0))
    straight = cosine.abs() > parallel
    sine = torch.where(straight, 1.0, angle.sin())
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / sine)
    return first, torch.where(straight, t, torch.sin(t * angle) / sine)
