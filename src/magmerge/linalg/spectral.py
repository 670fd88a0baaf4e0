"""Gram matrices, their eigenvectors, and the error that rounding leaves in them

The spectral methods need polar factors and leading singular directions, not decompositions. Both
follow from the eigenvectors of the smaller Gram matrix. That squares the condition number, so each
result carries an estimate of its error, and what misses `TOLERANCE` is done again with more care:
float32, then float64, then the singular value decomposition itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.core.journal import note
from magmerge.linalg.in_turn import InTurn
from magmerge.linalg.row_norms import row_scale

RANK_CUT = 2.0**-20
"""A singular value below this share of the largest counts as zero: its direction is rounding."""
TOLERANCE = 5e-5
"""Estimated relative error (Frobenius) that a fast path may have; agreement is promised to 1e-4."""
NEAR_CUT = 0.02
"""Relative distance from the cut within which a fast path does not decide on which side one is."""
SOLVER = 3.0
"""Rounding of an eigensolver beside that of the product, as measured; see `noise`."""
ROWS = 1024
BLOCKS = 4
REDUCED = 1024
"""Columns from which on a matrix is brought to a triangle before it is decomposed."""


class Triplets(NamedTuple):
    """U [m, r], S [r] descending and V [n, r] of a matrix A: singular triplets, or some of them.

    `error`: where it is known, a relative one (Frobenius); of what, the function that gives it
    says.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    error: float = 0.0

    def first(self, rank: int) -> Triplets:
        """The first `rank` of them."""
        return Triplets(self.left[:, :rank], self.values[:rank], self.right[:, :rank], self.error)


def power_of_two(tensor: Float[Tensor, "*shape"]) -> float:
    """A power of two near the greatest magnitude; dividing by it is exact. 1 for zeros."""
    if tensor.numel() == 0:
        return 1.0
    low, high = tensor.aminmax()
    return float(row_scale(torch.stack((low, high)).reshape(1, 2))[0])


def summed(deltas: Float[Tensor, "K *shape"] | InTurn) -> Float[Tensor, "*shape"]:
    """sum_k D_k, added in float64 and rounded once, so that the order of experts is forgotten."""
    if isinstance(deltas, InTurn):
        return deltas.by_runs(summed)
    total = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    flat, out = deltas.reshape(len(deltas), -1), total.reshape(-1)
    for start in range(0, flat.shape[1], 1 << 16):
        part = flat[0, start : start + (1 << 16)].double()
        for delta in flat[1:]:
            part += delta[start : start + (1 << 16)]
        out[start : start + (1 << 16)] = part
    return total


def gram(
    matrix: Float[Tensor, "rows columns"], dtype: torch.dtype, scale: float = 1.0
) -> Float[Tensor, "n n"]:
    """A^T A of A / `scale` in `dtype`, by blocks on and above the diagonal, without a copy of A in
    `dtype`.
    """
    n = matrix.shape[1]
    product = torch.zeros(n, n, dtype=dtype, device=matrix.device)
    width = max(1, -(-n // BLOCKS))
    rows = matrix.shape[0] if matrix.dtype == dtype else ROWS
    for part in torch.split(matrix, max(1, rows)):
        cast = part.to(dtype) if scale == 1 else part.to(dtype) / scale
        for start in range(0, n, width):
            block = cast[:, start : start + width]
            product[start : start + width, start:].addmm_(block.T, cast[:, start:])
    for start in range(0, n, width):
        stop = min(start + width, n)
        product[stop:, start:stop] = product[start:stop, stop:].T
    return product


def rowwise(
    matrix: Float[Tensor, "m n"], other: Float[Tensor, "n k"], dtype: torch.dtype | None = None
) -> Float[Tensor, "m k"]:
    """`matrix @ other` in the dtype of `other`, rounded to `dtype` (None: that of `matrix`), by
    blocks of rows.
    """
    out = matrix.new_empty(matrix.shape[0], other.shape[1], dtype=dtype)
    for part, into in zip(torch.split(matrix, ROWS), torch.split(out, ROWS), strict=True):
        into.copy_(part.to(other.dtype) @ other)
    return out


def eigen(product: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n n"]]:
    """Singular values (roots of eigenvalues) and eigenvectors of a Gram matrix, largest first."""
    values, vectors = torch.linalg.eigh(product)
    return values.flip(0).clamp(min=0).sqrt(), vectors.flip(1)


def noise(mean: float, largest: float, directions: int) -> float:
    """What rounding does to the Gram matrix A^T A and its eigenproblem, in units of float spacing.

    The root mean square entry in the basis of the eigenvectors. Rounding errors are many and
    unrelated, so they spread over all n^2 entries alike: in the product they are of the size of the
    mean eigenvalue, in the eigenproblem of the largest one over sqrt(n).
    """
    return float(mean + SOLVER * largest / directions**0.5)


def above_cut(values: Float[Tensor, "n"], largest: float | None = None) -> int:
    """How many of the descending singular `values` count as not zero, against the largest."""
    if values.numel() == 0:
        return 0
    largest = float(values[0]) if largest is None else largest
    return int((values > RANK_CUT * largest).sum()) if largest > 0 else 0


def undecided(values: Float[Tensor, "n"], largest: float | None = None) -> bool:
    """Whether a value lies so near the rank's cut that rounding may decide its side."""
    if values.numel() == 0:
        return False
    cut = RANK_CUT * (float(values[0]) if largest is None else largest)
    return bool(((values - cut).abs() < NEAR_CUT * cut).any())


def decompose(matrix: Float[Tensor, "m n"], why: str) -> Triplets:
    """The slow path, U, S and V of a singular value decomposition in float64, with a note."""
    note(f"singular value decomposition used: {why}")
    return svd(matrix)


def svd(matrix: Float[Tensor, "m n"]) -> Triplets:
    """U, S and V of a singular value decomposition in float64, S descending."""
    exact = matrix.double()
    try:
        left, values, right = torch.linalg.svd(exact, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # Divide and conquer may fail on a matrix and not on its transpose.
        right, values, left = torch.linalg.svd(exact.T.contiguous(), full_matrices=False)
        return Triplets(left.T, values, right)
    return Triplets(left, values, right.T)


def decompose_above_cut(
    matrix: Float[Tensor, "m n"], scale: float, largest: float | None, why: str
) -> Triplets:
    """Of the slow path for A / `scale`, m >= n, the triplets that do not count as zero.

    A large matrix is first brought to its triangular factor R, by blocks of rows, so that the
    decomposition's many copies are of n x n entries: R = W S V^T has the S and V of A, and
    U = A V S^-1 loses S_1 / S_j spacings of float64 at most, 2^-32.
    """
    if matrix.shape[1] < REDUCED:
        whole = decompose(matrix / scale, why)
        return whole.first(above_cut(whole.values, largest))
    note(f"singular value decomposition used: {why}")
    triangle = matrix.new_empty(0, matrix.shape[1], dtype=torch.float64)
    for part in torch.split(matrix, matrix.shape[1]):
        below = torch.cat([triangle, part.double() / scale])
        triangle = torch.linalg.qr(below, mode="r").R
        del below
    _, values, right, _ = svd(triangle)
    del triangle
    rank = above_cut(values, largest)
    values, right = values[:rank], right[:, :rank]
    return Triplets(rowwise(matrix, right / values / scale, torch.float64), values, right)


def decomposition_bytes(shape: tuple[int, int]) -> int:
    """What `decompose_above_cut` takes beside the matrix, before its U of a large one."""
    m, n = max(shape), min(shape)
    if n >= REDUCED:
        return 7 * 8 * n * n
    # The matrix scaled, and in float64 twice; both sets of vectors, LAPACK's workspace, and what
    # blocks of these sizes leave in splinters.
    return 40 * m * n + 8 * n * (m + n + 4 * n)
