"""WUDI: the task vector that disturbs each task least on the inputs its own rows stand for."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.core.parameters import Lambda
from magmerge.core.registry import register_method
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.spectral import ROWS, above_cut, eigen, gram, power_of_two, rowwise
from magmerge.methods.matrices import MATRICES, scaled_mean


def scratch(shape: tuple[int, ...], _: int) -> int:
    """Six float64 matrices of columns x columns: G, one G_k, eigenvectors and room to find them."""
    return 6 * 8 * math.prod(shape[1:]) ** 2 if len(shape) > 1 else 0


def effective_rank(values: Float[Tensor, "n"]) -> int:
    """How many of the descending singular `values` carry the whole: their sum's square over that
    of their squares, to the nearest whole number; n for equal ones, 0 for zeros.
    """
    there = values[: above_cut(values)]
    if not len(there):
        return 0
    return min(len(there), max(1, round(float(there.sum().square() / there.square().sum()))))


@register_method(
    "wudi",
    source="WUDI-Merging, arXiv:2503.08099; its rank: arXiv:2606.07289",
    kinds=MATRICES,
    workspace=(0, 8),
    scratch=scratch,
    faithful=False,
)
def wudi(deltas: Float[Tensor, "K *shape"], *, lambda_: Lambda = 1.0) -> Float[Tensor, "*shape"]:
    """The D on the leading directions of G that disturbs the tasks least, times lambda.

    The objective is that of WUDI's authors: sum_k |(D - D_k) D_k^T|^2 / |D_k|^2 (Frobenius norms).
    The rows of a task vector span about what the task's inputs span, so its minimum is the least
    interference without data. It is linear least squares: D G = sum_k D_k G_k with G_k = D_k^T D_k
    / |D_k|^2 and G their sum. The authors take 300 steps of Adam of size 1e-5 from sum_k D_k, so
    that their result depends on the magnitude of the weights. Theirs is not followed here, nor to
    its limit, the pseudo-inverse of G: that divides the weakest directions by almost nothing. In
    closed form, D = sum_k D_k G_k U_r w_r^-1 U_r^T with the r greatest eigenvalues w of G and their
    eigenvectors U, where r is (sum_i sqrt(w_i))^2 / sum_i w_i to the nearest whole number
    (arXiv:2606.07289). Computed in float64. Experts of zeros have no say. For [out, in] matrices
    and [out, rest] convolutions; a vector gets lambda times the mean of its task vectors.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    scale = power_of_two(deltas)
    columns = as_rows(deltas[0]).shape[1]
    whole = torch.zeros(columns, columns, dtype=torch.float64, device=deltas.device)
    target = torch.zeros(as_rows(deltas[0]).shape, dtype=torch.float64, device=deltas.device)
    for delta in deltas:
        unit = as_rows(delta) / power_of_two(delta)
        weight = unit.double().square().sum()
        if weight > 0:
            own = gram(unit, torch.float64) / weight
            whole += own
            own *= power_of_two(delta) / scale
            for part, into in zip(torch.split(unit, ROWS), torch.split(target, ROWS), strict=True):
                into.addmm_(part.double(), own)
    values, vectors = eigen(whole)
    rank = effective_rank(values)
    kept = vectors[:, :rank]
    solution = rowwise(target, (kept / values[:rank].square()) @ kept.T)
    return (solution.to(deltas.dtype) * (scale * lambda_)).reshape(deltas.shape[1:])
