"""Regression from samples: what layers were fed is the evidence, what weights tell the prior."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.calibrators.regmean import products, square
from magmerge.calibrators.regression import add_product, pull, unit_gram, used_share
from magmerge.core.errors import ParameterError
from magmerge.core.parameters import Supplied
from magmerge.core.registry import register_calibrator
from magmerge.core.types import Kind
from magmerge.linalg.ridge import ridge_solution
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.spectral import power_of_two

LINEAR: frozenset[Kind] = frozenset({"matrix", "transposed"})
Sums = Annotated[Tensor | None, Supplied()]
"""What `products` gives, summed up over each expert's samples: [K, columns + 1, columns + 1]."""
Prior = Annotated[
    Annotated[float, Gt(0)],
    Doc("how much what the weights tell counts against what was seen"),
]


def scratch(shape: tuple[int, ...], _: int) -> int:
    """In float64 one matrix of columns x columns and one of the layer's size, beside those that
    every calibrator which solves for a layer is counted with.
    """
    columns = math.prod(shape[1:])
    return 8 * (columns**2 + shape[0] * columns)


def evidence(seen: Float[Tensor, "n n"], tokens: float) -> float:
    """How much the inputs of a task count: n / (n + d) of n tokens, where d = tr(C)^2 / |C|^2 is
    the number of directions that inputs of this Gram matrix C of norm 1 are spread over.
    """
    return tokens / (tokens + float(seen.trace()) ** 2)


@register_calibrator(
    "regression_samples",
    source="magmerge; RegMean, arXiv:2212.09849, in forward order, with a prior",
    acts_on=LINEAR,
    needs="inputs",
    order="forward",
    returns="delta",
    gather=products,
    entries=square,
    gated=False,
    scale_free=False,
    workspace=(0, 2),
    scratch=scratch,
)
def regression_samples(
    deltas: Float[Tensor, "K rows *rest"],
    merged: Float[Tensor, "rows *rest"],
    *,
    sums: Sums = None,
    prior: Prior = 0.5,
) -> Float[Tensor, "rows *rest"]:
    """The task vector D whose output is nearest each expert's on the inputs that were seen.

    D minimises sum_k w_k |(D - D_k) C_k^(1/2)|^2 + prior |(D - D_m) A^(1/2)|^2. C_k = X_k^T X_k,
    divided by its Frobenius norm, of the inputs X_k that the merged model feeds the layer on
    samples of task k; w_k = n / (n + d), with n their tokens and d the number of directions that
    they are spread over. D_m is the merge that it follows and A = sum_k G_k + ridge I what
    `regression` knows without samples, at its ridge "spectrum": on top of `regression` these are
    its equations, with the evidence of the samples added. An expert without samples is left to the
    prior, and so is everything where nothing was seen. Computed in float64.

    When: a few unlabelled samples of each task, after `tsv_m` and `regression`. It gained on
    LoRA experts; on fully fine-tuned ones the difference was within the error.
    """
    if sums is None:
        raise ParameterError(
            "regression_samples has no sums over inputs",
            remedy="give sums=, a tensor [K, columns + 1, columns + 1], or use calibrate()",
        )
    start, unit = as_rows(merged), max(map(power_of_two, (merged, deltas)))
    left = start.new_zeros(start.shape[1], start.shape[1], dtype=torch.float64)
    shares = _add_weights(left, deltas, prior)
    if not shares:
        return merged.clone()
    right = torch.zeros_like(start, dtype=torch.float64)
    add_product(right, start, left, unit)
    for delta, own_sums in zip(deltas, sums, strict=True):
        _add_evidence(left, right, as_rows(delta), own_sums, unit)
    held = prior * pull(shares)
    solution = ridge_solution(left, right, start / unit, held, remedy="raise prior")
    return (solution * unit).to(merged.dtype).reshape(merged.shape)


def _add_weights(
    left: Float[Tensor, "n n"], deltas: Float[Tensor, "K rows *rest"], prior: float
) -> list[float]:
    """Add the Gram matrices of the task vectors times `prior`; the share that each uses."""
    shares = []
    for delta in map(as_rows, deltas):
        own = unit_gram(delta)
        if own is not None:
            shares.append(used_share(own, min(delta.shape)))
            left.add_(own, alpha=prior)
    return shares


def _add_evidence(
    left: Float[Tensor, "n n"],
    right: Float[Tensor, "m n"],
    delta: Float[Tensor, "m n"],
    sums: Float[Tensor, "n+1 n+1"],
    unit: float,
) -> None:
    """Add what an expert's samples tell, if there are any, to both sides of the equations."""
    seen, tokens = sums[:-1, :-1].double(), float(sums[-1, -1])
    size = float(torch.linalg.matrix_norm(seen))
    if size != 0:
        seen /= size
        seen *= evidence(seen, tokens)
        left += seen
        add_product(right, delta, seen, unit)
