"""The few dominant directions of a large matrix, taken apart so that float32 does for the rest

Rounding in a Gram matrix is of the size of its largest eigenvalue. What a fine-tuning changes has a
few singular values far above all others, which would drive the rest to float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.linalg.spectral import ROWS, SOLVER, rowwise

LARGE = 1024
"""Directions from which on it is tried."""
BLOCK, MOST = 160, 128
"""Directions that are iterated on, and how many of them are taken apart at most."""
STEPS = 6
"""Multiplications with the float32 Gram matrix, before one with the matrix in float64."""


class Deflated(NamedTuple):
    """A = U diag(S) V^T + rest: U [m, q], S [q] and V [n, q] in float64, the rest in float32.

    `residuals` [q]: |A^T A v - s^2 v| of each direction, what is left to couple it to the rest.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    rest: Tensor
    residuals: Tensor


def deflate(unit: Float[Tensor, "m n"], product: Float[Tensor, "n n"]) -> Deflated | None:
    """The directions whose rounding weighs more than that of all others; None where there are none.

    `product` is the Gram matrix of `unit` in float32.
    """
    n = len(product)
    weighty = float(product.diagonal().double().mean()) * n**0.5 / SOLVER
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(n, BLOCK, generator=generator).to(product)
    for _ in range(STEPS):
        block = torch.linalg.qr(product @ block)[0]
    if float(torch.linalg.eigvalsh(block.T @ (product @ block))[-1]) < weighty:
        return None
    basis = torch.linalg.qr(_times_transposed(unit, rowwise(unit, block.double(), torch.float64)))[
        0
    ]
    images = rowwise(unit, basis, torch.float64)
    squares, turn = torch.linalg.eigh(images.T @ images)
    count = min(MOST, int((squares > weighty).sum()))
    if not count:
        return None
    squares, turn = squares.flip(0)[:count], turn.flip(1)[:, :count]
    basis, images = basis @ turn, images @ turn
    residuals = torch.addcmul(_times_transposed(unit, images), basis, squares, value=-1)
    rest = torch.empty_like(unit)
    for part, of, into in zip(*(torch.split(t, ROWS) for t in (unit, images, rest)), strict=True):
        into.copy_(torch.addmm(part.double(), of, basis.T, alpha=-1))
    values = squares.sqrt()
    return Deflated(images / values, values, basis, rest, residuals.norm(dim=0))


def _times_transposed(
    matrix: Float[Tensor, "m n"], other: Float[Tensor, "m k"]
) -> Float[Tensor, "n k"]:
    """`matrix.T @ other` in the dtype of `other`, by blocks of rows."""
    total = other.new_zeros(matrix.shape[1], other.shape[1])
    for part, of in zip(torch.split(matrix, ROWS), torch.split(other, ROWS), strict=True):
        total.addmm_(part.to(other.dtype).T, of)
    return total
