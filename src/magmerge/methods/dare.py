"""DARE: drop entries at random, rescale the rest, then merge."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.draws import derive_seed, keep_mask
from magmerge.methods.average import average, expert_weights
from magmerge.methods.ties import elect_and_average, trim
from magmerge.registry import register_method
from magmerge.types import Density, Lambda, Probability, Seeds, Weights


@register_method("dare", source="DARE, arXiv:2311.03099, eqs. 2-4", random=True, workspace=(1, 3))
def dare(
    deltas: Float[Tensor, "K *shape"],
    *,
    p: Probability = 0.9,
    weights: Weights = None,
    seeds: Seeds = None,
) -> Float[Tensor, "*shape"]:
    """Drop each entry with probability p, divide the rest by 1 - p, then average.

    `seeds` holds one seed per expert; without them the draws are those of seed 0.
    """
    return average(drop_and_rescale(deltas, p, seeds), weights=weights)


@register_method(
    "dare_ties",
    source="DARE with TIES, arXiv:2311.03099, sec. 4.3",
    random=True,
    workspace=(2, 6),
)
def dare_ties(
    deltas: Float[Tensor, "K *shape"],
    *,
    p: Probability = 0.9,
    density: Density = 0.2,
    lambda_: Lambda = 1.0,
    weights: Weights = None,
    seeds: Seeds = None,
) -> Float[Tensor, "*shape"]:
    """Drop each entry with probability p, divide the rest by 1 - p, then TIES.

    With the defaults TIES trims nothing more: the tenth that stays is less than its density.
    """
    dropped = drop_and_rescale(deltas, p, seeds)
    return elect_and_average(trim(dropped, density), expert_weights(deltas, weights)) * lambda_


def drop_and_rescale(
    deltas: Float[Tensor, "K *shape"], p: float, seeds: Seeds
) -> Float[Tensor, "K *shape"]:
    """Each entry zero with probability p, else divided by 1 - p: its expectation is unchanged."""
    if seeds is None:
        seeds = [derive_seed(0, "", k) for k in range(len(deltas))]
    dropped = torch.zeros_like(deltas)
    for delta, out, seed in zip(deltas, dropped, seeds, strict=True):
        mask = keep_mask(seed, delta.shape, 1 - p).to(delta.device)
        torch.where(mask, delta / (1 - p), out, out=out)
    return dropped
