"""WUDI: the task vector that disturbs each task least on the inputs its own rows stand for."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.linalg.spectral import (
    ROWS,
    above_cut,
    as_matrix,
    eigen,
    gram,
    power_of_two,
    rowwise,
)
from magmerge.methods.matrices import MATRICES, scaled_mean
from magmerge.parameters import Lambda
from magmerge.registry import register_method


def scratch(shape: tuple[int, ...], _: int) -> int:
    """Six float64 matrices of columns x columns: G, one G_k, eigenvectors and room to find them."""
    return 6 * 8 * math.prod(shape[1:]) ** 2 if len(shape) > 1 else 0


@register_method(
    "wudi",
    source="WUDI-Merging, arXiv:2503.08099",
    kinds=MATRICES,
    workspace=(0, 8),
    scratch=scratch,
)
def wudi(deltas: Float[Tensor, "K *shape"], *, lambda_: Lambda = 1.0) -> Float[Tensor, "*shape"]:
    """The minimiser of sum_k |(D - D_k) D_k^T|^2 / |D_k|^2 (Frobenius norms), times lambda.

    The rows of a task vector span about what the task's inputs span, so this is the least
    interference without data. It is linear least squares: D G = sum_k D_k G_k with G_k = D_k^T D_k
    / |D_k|^2 and G their sum, solved in float64 by the pseudo-inverse of G (directions below 2^-20
    in singular value count as zero); of all minimisers it is the least, the one that descent from
    sum_k D_k tends to. The authors stop Adam after 300 steps of 1e-5 from there, so that their
    result depends on the magnitude of the weights; this is the limit of their procedure. Experts of
    zeros have no say. For [out, in] matrices and [out, rest] convolutions; a vector gets lambda
    times the mean of its task vectors.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    scale = power_of_two(deltas)
    columns = as_matrix(deltas[0]).shape[1]
    whole = torch.zeros(columns, columns, dtype=torch.float64, device=deltas.device)
    wanted = torch.zeros(as_matrix(deltas[0]).shape, dtype=torch.float64, device=deltas.device)
    for delta in deltas:
        unit = as_matrix(delta) / power_of_two(delta)
        weight = unit.double().square().sum()
        if weight > 0:
            own = gram(unit, torch.float64) / weight
            whole += own
            own *= power_of_two(delta) / scale
            for part, into in zip(torch.split(unit, ROWS), torch.split(wanted, ROWS), strict=True):
                into.addmm_(part.double(), own)
    values, vectors = eigen(whole)
    rank = above_cut(values)
    kept = vectors[:, :rank]
    found = rowwise(wanted, (kept / values[:rank].square()) @ kept.T)
    return (found.to(deltas.dtype) * (scale * lambda_)).reshape(deltas.shape[1:])
