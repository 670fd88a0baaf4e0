"""Spherical interpolation of two task vectors, or of their rows or columns, by weights."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Weights
from magmerge.core.registry import register_method
from magmerge.core.traits import Survey
from magmerge.core.types import Cut
from magmerge.methods.combine import check_weights, expert_weights, total_weight
from magmerge.methods.gram import GramMatrix, gram_survey
from magmerge.methods.slerp import arc_shares, on_arc

COLINEAR = 1 - 2.0**-24
"""Cosine beyond which vectors are one line to the precision of float32."""


def survey(*, flatten: bool = True, **_: object) -> Survey | None:
    """The angle between the two, where each is one vector."""
    return gram_survey() if flatten else None


def cut(*, flatten: bool = True, row_wise: bool = False, **_: object) -> Cut:
    """By what is one vector."""
    if flatten:
        return "entries"
    return "whole" if row_wise else "rows"


def rotates(*, flatten: bool = True, **_: object) -> bool:
    """Vectors along one axis are not those of the flattened layer."""
    return flatten


@register_method(
    "nuslerp",
    source="mergekit 0.1.5, nuslerp",
    survey=survey,
    cut=cut,
    base_free=True,
    experts=(2, 2),
    workspace=(0, 8),
    check=check_weights,
    rotates=rotates,
)
def nuslerp(
    deltas: Float[Tensor, "2 *shape"],
    *,
    weights: Weights = None,
    flatten: Annotated[bool, Doc("whether the whole tensor is one vector")] = True,
    row_wise: Annotated[
        bool,
        Doc(
            "if the tensor is not flattened: whether its vectors run along its first axis, the "
            "columns of a matrix (so mergekit has it), or its last"
        ),
    ] = False,
    gram: GramMatrix = None,
) -> Float[Tensor, "*shape"]:
    """(sin((1-t) a) D_1 + sin(t a) D_2) / sin a, t = w_2 / (w_1 + w_2), a the angle between them.

    Without a base model these are whole weights. The interpolation is linear where vectors lie on
    one line, and where one of them is zero, so that an expert that leaves a layer alone counts by
    its weight; mergekit multiplies the other by sin(t pi/2) there. Weights that add up to zero are
    a ParameterError.

    When: two experts of one base with a weight for each, where the mean of their changes would
    be too short.
    """
    t = expert_weights(deltas, weights)[1] / total_weight(deltas, weights)
    if not flatten and deltas.ndim > 1:
        return _by_vector(deltas, t, 0 if row_wise else -1)
    return on_arc(deltas, gram, t, COLINEAR)


def _by_vector(deltas: Float[Tensor, "2 *shape"], t: float, axis: int) -> Float[Tensor, "*shape"]:
    """Each vector along `axis` interpolated by an angle of its own."""
    wide = deltas.double()
    product = (wide[0] * wide[1]).sum(axis, keepdim=True)
    squares = [vector.square().sum(axis, keepdim=True) for vector in wide]
    size = squares[0].sqrt() * squares[1].sqrt()
    alive = size > 0
    cosine = torch.where(alive, product / torch.where(alive, size, 1.0), 1.0)
    first, second = arc_shares(cosine, t, COLINEAR)
    total = deltas[0] * first.to(deltas.dtype)
    return total.add_(deltas[1] * second.to(deltas.dtype))
