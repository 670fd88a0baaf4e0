"""Consensus: only the entries that several tasks need."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Lambda
from magmerge.core.registry import register_method
from magmerge.linalg.spectral import summed


@register_method(
    "consensus_ta",
    source="Consensus merging with TALL masks, arXiv:2405.07813, secs. 4-5",
    cut="entries",
    workspace=(0, 5),
)
def consensus_ta(
    deltas: Float[Tensor, "K *shape"],
    *,
    l: Annotated[  # noqa: E741 - the paper's letter
        float, Interval(ge=0), Doc("how large an entry is to be beside the other tasks' sum")
    ] = 0.4,
    threshold: Annotated[
        int, Interval(ge=1), Doc("by how many tasks an entry is to be needed, at most by all")
    ] = 2,
    lambda_: Lambda = 0.3,
) -> Float[Tensor, "*shape"]:
    """Task arithmetic on the entries that enough tasks need: lambda sum_k D_k there, else zero.

    Task k needs an entry if |D_k| >= l |sum_j D_j - D_k|. An entry stays if at least `threshold`
    tasks need it, or all K if there are fewer; so one expert alone keeps all its entries.

    When: many experts, of whose changes some serve one task alone.
    """
    total = summed(deltas)
    needed = torch.zeros_like(total, dtype=torch.int32)
    for delta in deltas:
        needed += delta.abs() >= (total - delta).abs_().mul_(l)
    return total.mul_(lambda_).masked_fill_(needed < min(threshold, len(deltas)), 0.0)
