"""Sums over a whole layer, such as the inner products of all experts, gathered piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.core.parameters import UNIT, Supplied
from magmerge.methods.survey import surveyed

BLOCK = 1 << 13
"""Entries that are converted to float64 at once: they fit into the cache."""

Measure = Callable[[int, Tensor], Tensor]
"""From a run's first place and its entries [K, run] to the float64 numbers that are added up."""

GramMatrix = Annotated[Float[Tensor, "K K"] | None, Supplied()]


class LayerSums:
    """What `measure` gives for each run of UNIT entries, added up over the layer in float64.

    Runs are summed as they are, whatever the pieces they come in, and their sums are added without
    rounding. So the total depends neither on the pieces nor on their order.
    """

    scope: Literal["layer"] = "layer"
    samples = 0

    def __init__(self, measure: Measure, found: Callable[[Tensor], Mapping[str, Any]]) -> None:
        self._measure = measure
        self._finish = found
        self._parts: dict[int, list[float]] = {}
        self._shape: tuple[int, ...] = ()
        self._found: Mapping[str, Any] | None = None

    @property
    def passes(self) -> int:
        return 1 if self._found is None else 0

    def prepare(self, sample: Float[Tensor, "K samples"]) -> None:
        raise NotImplementedError("it takes no sample")

    def wants(self, name: str, start: int, stop: int) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def observe(self, name: str, start: int, tensors: Float[Tensor, "K *shape"]) -> None:  # noqa: ARG002
        """Measure the runs of one piece."""
        flat = tensors.reshape(len(tensors), -1)
        for first in range(0, max(1, flat.shape[1]), UNIT):
            run = flat[:, first : first + UNIT]
            measured = self._measure(start + first, run)
            # As numbers: many small tensors, which outlive the pieces, would leave the memory of
            # the pieces in splinters.
            self._parts[start + first] = measured.reshape(-1).tolist()
            self._shape = tuple(measured.shape)

    def conclude(self) -> None:
        """Add up all runs."""
        columns = zip(*self._parts.values(), strict=True)
        totals = torch.tensor([math.fsum(column) for column in columns], dtype=torch.float64)
        self._parts = {}
        self._found = self._finish(totals.reshape(self._shape))

    def found(self, name: str) -> Mapping[str, Any]:  # noqa: ARG002
        """What the sums give to the method's function."""
        assert self._found is not None
        return self._found


def gram_survey(**_: object) -> LayerSums:
    """Gathers the Gram matrix G_ij = <D_i, D_j> of a layer, as the keyword `gram`."""
    return LayerSums(lambda _, run: inner_products(run), lambda total: {"gram": total})


def inner_products(run: Float[Tensor, "K entries"]) -> Float[Tensor, "K K"]:
    """<D_i, D_j> in float64, in which no square of a float32 under- or overflows."""
    total = torch.zeros((len(run), len(run)), dtype=torch.float64, device=run.device)
    for block in torch.split(run, BLOCK, dim=1):
        wide = block.to(torch.float64, memory_format=torch.contiguous_format)
        total.addmm_(wide, wide.T)
    return total


def gram_of(tensors: Float[Tensor, "K *shape"], gram: GramMatrix) -> Float[Tensor, "K K"]:
    """`gram`, or that of `tensors`, which are then the whole layer."""
    if gram is not None:
        return gram
    found: Tensor = surveyed(gram_survey(), tensors)["gram"]
    return found


def norms_and_cosines(
    gram: Float[Tensor, "K K"],
) -> tuple[Float[Tensor, "K"], Float[Tensor, "K K"]]:
    """Norms, and cosines of all pairs: zero, even with itself, for a vector of zeros."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    safe = torch.where(norms > 0, norms, 1.0)
    cosines = (gram / safe.unsqueeze(0) / safe.unsqueeze(1)).clamp(-1.0, 1.0)
    cosines.diagonal().copy_(norms.sign())
    return norms, cosines


def combine(
    tensors: Float[Tensor, "K *shape"], coefficients: Sequence[float]
) -> Float[Tensor, "*shape"]:
    """sum_k c_k D_k, added in the order of the experts."""
    total = tensors[0] * coefficients[0]
    for coefficient, tensor in zip(coefficients[1:], tensors[1:], strict=True):
        total.add_(tensor, alpha=coefficient)
    return total
