"""What the spectral methods share: which layers are matrices to them, and what others get"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from magmerge.core.types import Kind
from magmerge.linalg.in_turn import InTurn
from magmerge.linalg.spectral import summed

MATRICES: frozenset[Kind] = frozenset({"matrix", "transposed", "convolution", "experts"})
"""Kinds that are matrices to these methods; fused experts come one by one. Not here: embeddings and
heads, whose rows are tokens or classes, and vectors: these get lambda times the mean, as in the
sources."""


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """The longer and the shorter side of a layer of this shape as a matrix [out, rest]."""
    rows, columns = shape[0], math.prod(shape[1:])
    return max(rows, columns), min(rows, columns)


def scaled_mean(
    deltas: Float[Tensor, "K *shape"] | InTurn, lambda_: float
) -> Float[Tensor, "*shape"]:
    """lambda times the mean of the task vectors, for what is no matrix."""
    return summed(deltas).div_(len(deltas)).mul_(lambda_)
