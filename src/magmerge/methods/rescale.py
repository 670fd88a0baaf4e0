"""Give a thinned task vector back the size it had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Supplied
from magmerge.core.traits import Survey
from magmerge.methods.gram import LayerSums

Rescale = Annotated[
    Literal["inverse", "l1", "none"],
    Doc(
        "inverse: divide what stays by its chance to stay; l1: give each task vector the sum of "
        "magnitudes back that it had in the whole tensor, as mergekit does; none: leave it"
    ),
]
Ratios = Annotated[Sequence[float] | None, Supplied()]
"""One factor for each expert."""

Sparsify = Callable[[Tensor, int, Mapping[str, Any]], Sequence[Tensor] | Tensor]
"""From entries [K, n], the place of the first, and what the survey before found, to what stays."""


class L1Ratios:
    """For each expert the factor sum|D_k| / sum|what stays of D_k|, as the keyword `ratios`.

    `sparsify` says what stays. Where that takes a survey of its own, give it as `first`: its sweeps
    are made before, and what it finds is handed to `sparsify`, and to the method's function too.
    """

    scope: Literal["layer"] = "layer"

    def __init__(self, sparsify: Sparsify, first: Survey | None = None) -> None:
        self._sparsify = sparsify
        self._first = first
        self._name = ""
        self._sums = LayerSums(self._measure, lambda total: {"ratios": l1_ratios(*total)})

    @property
    def samples(self) -> int:
        return 0 if self._first is None else self._first.samples

    @property
    def passes(self) -> int:
        return self._before() + self._sums.passes

    def prepare(self, sample: Float[Tensor, "K samples"]) -> None:
        assert self._first is not None
        self._first.prepare(sample)

    def wants(self, name: str, start: int, stop: int) -> bool:
        return self._now().wants(name, start, stop)

    def observe(self, name: str, start: int, tensors: Float[Tensor, "K *shape"]) -> None:
        self._name = name
        self._now().observe(name, start, tensors)

    def conclude(self) -> None:
        self._now().conclude()

    def found(self, name: str) -> Mapping[str, Any]:
        """The ratios, and what the survey before found."""
        return {**self._earlier(), **self._sums.found(name)}

    def _before(self) -> int:
        return 0 if self._first is None else self._first.passes

    def _now(self) -> Survey:
        return self._first if self._first is not None and self._before() else self._sums

    def _earlier(self) -> Mapping[str, Any]:
        return {} if self._first is None else self._first.found(self._name)

    def _measure(self, start: int, run: Tensor) -> Tensor:
        kept = self._sparsify(run, start, self._earlier())
        return torch.stack([_magnitude(run), torch.stack([_magnitude(one) for one in kept])])


def l1_ratios(before: Float[Tensor, "K"], after: Float[Tensor, "K"]) -> list[float]:
    """before / after, and 1 where either is zero."""
    pairs = zip(before.tolist(), after.tolist(), strict=True)
    return [b / a if a > 0 and b > 0 else 1.0 for b, a in pairs]


def _magnitude(run: Tensor) -> Tensor:
    """sum|D| over the last dimension, in float64."""
    found: Tensor = torch.linalg.vector_norm(run, 1, dim=-1, dtype=torch.float64)
    return found
