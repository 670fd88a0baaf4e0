"""The inner products of all experts over a whole layer, and the norms and cosines they give."""

from __future__ import annotations

from typing import Annotated

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.parameters import Supplied
from magmerge.linalg.survey import LayerSums, surveyed

BLOCK = 1 << 13
"""Entries that are converted to float64 at once: they fit into the cache."""

GramMatrix = Annotated[Float[Tensor, "K K"] | None, Supplied()]


def gram_survey(*, experts: int = 2, **_: object) -> LayerSums | None:
    """Gathers the Gram matrix G_ij = <D_i, D_j> of a layer, as `gram`; None for one expert."""
    if experts == 1:
        return None
    return LayerSums(lambda _, run, __: inner_products(run), lambda total: {"gram": total})


def inner_products(run: Float[Tensor, "K entries"]) -> Float[Tensor, "K K"]:
    """<D_i, D_j> in float64, in which no square of a float32 under- or overflows."""
    total = torch.zeros((len(run), len(run)), dtype=torch.float64, device=run.device)
    for block in torch.split(run, BLOCK, dim=1):
        wide = block.to(torch.float64, memory_format=torch.contiguous_format)
        total.addmm_(wide, wide.T)
    return total


def gram_of(tensors: Float[Tensor, "K *shape"], gram: GramMatrix) -> Float[Tensor, "K K"]:
    """`gram`, or that of `tensors`, which are then the whole layer."""
    survey = gram_survey()
    assert survey is not None
    product: Tensor = surveyed(survey, tensors)["gram"] if gram is None else gram
    return product


def norms_and_cosines(
    gram: Float[Tensor, "K K"],
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K K"]]:
    """Norms, and cosines of all pairs: zero, even with itself, for a vector of zeros."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    safe = torch.where(norms > 0, norms, 1.0)
    cosines = (gram / safe.unsqueeze(0) / safe.unsqueeze(1)).clamp(-1.0, 1.0)
    cosines.diagonal().copy_(norms.sign())
    return norms, cosines
