"""Arcee Fusion: take over the changes of one expert that stand out."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.core.parameters import Supplied
from magmerge.core.registry import register_method
from magmerge.linalg.selection import nth_largest

FLOOR = 1e-8
"""Added to each probability."""
SPREAD = 1.5
"""How many interquartile ranges above the median an entry stands out."""
BLOCK = 1 << 18
"""Entries whose softmax is taken at once."""


@register_method(
    "arcee_fusion",
    source="mergekit 0.1.5, arcee_fusion",
    experts=(1, 1),
    workspace=(0, 4),
    homogeneous=False,
)
def arcee_fusion(
    deltas: Float[Tensor, "1 *shape"],
    *,
    base: Annotated[Float[Tensor, "*shape"] | None, Supplied()] = None,
) -> Float[Tensor, "*shape"]:
    """D where |D| KL >= median + 1.5 (Q3 - Q1) of all entries, else zero.

    KL is the divergence of the row's softmax from the base's, sum P ln(P / Q) over the last axis,
    P = softmax(W_0 + D) + 1e-8, Q = softmax(W_0) + 1e-8, W_0 the base's weights (zeros if none are
    given). A vector is one row. The quartiles are those of all |D| KL of the tensor, the entries
    at floor(q (n-1)) of n in rising order; mergekit takes them from a random sample where n is
    over a million, and computes in the weights' own format, where KL may be lost in rounding.

    When: to take over from one expert only the changes that stand out.
    """
    delta = deltas[0]
    if delta.numel() == 0:
        return delta.clone()
    rows = delta.reshape(-1, delta.shape[-1]) if delta.ndim > 1 else delta.reshape(1, -1)
    importance = torch.empty_like(rows)
    step = max(1, BLOCK // rows.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        before = None if base is None else base.reshape(rows.shape)[part]
        torch.mul(rows[part].abs(), divergence(rows[part], before), out=importance[part])
    count = importance.numel()
    places = [count - (count - 1) * quarter // 4 for quarter in (1, 2, 3)]
    low, median, high = nth_largest(importance.reshape(-1), *places)
    bound = torch.tensor(median + SPREAD * (high - low), dtype=delta.dtype, device=delta.device)
    return delta * (importance >= bound).reshape(delta.shape)


def divergence(
    deltas: Float[Tensor, "rows columns"], base: Float[Tensor, "rows columns"] | None
) -> Float[Tensor, "rows 1"]:
    """KL of the softmax of each row of the expert from that of the base, in float64."""
    before = torch.zeros_like(deltas, dtype=torch.float64) if base is None else base.double()
    old = before.softmax(dim=-1).add_(FLOOR)
    new = (before + deltas).softmax(dim=-1).add_(FLOOR)
    ratio = (new / old).log_()
    return ratio.mul_(new).sum(dim=-1, keepdim=True).to(deltas.dtype)
