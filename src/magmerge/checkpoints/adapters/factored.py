"""Low-rank task vectors: parts of their products, and their rows' inner products without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.checkpoints.adapters.nouns import LowRank
from magmerge.linalg.spectral import above_cut, eigen, gram, power_of_two

TILE = 64
"""Rows of a product that are multiplied together."""


class Coordinates(NamedTuple):
    """Task vectors `deltas` [K, out, d] in an orthonormal `basis` [d, in] of all their rows.

    Task vector k is deltas[k] @ basis. What only looks at inner products and combinations of rows
    gives the same for deltas[k].
    """

    deltas: Tensor
    basis: Tensor


def coordinates(factors: Sequence[LowRank]) -> Coordinates:
    """The task vectors scale B A of K adapters, in float32, without building any of them.

    With the rows of all A stacked, A^T = Q R, Q orthonormal: B_k A_k = (B_k R_k^T) Q^T. An adapter
    that lacks the module has factors of rank 0.
    """
    downs = [factor.down.flatten(1).to(torch.float32) for factor in factors]
    basis, triangle = torch.linalg.qr(torch.cat(downs).T)
    parts = triangle.T.split([len(down) for down in downs])
    deltas = [
        (factor.up.to(torch.float32) * factor.scale) @ part
        for factor, part in zip(factors, parts, strict=True)
    ]
    return Coordinates(torch.stack(deltas), basis.T)


def spectrum(delta: Float[Tensor, "out d"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "m n"]]:
    """Singular values but zeros, falling, and the shorter side's vectors, in float64."""
    scale = power_of_two(delta)
    short = delta if delta.shape[1] <= delta.shape[0] else delta.T.contiguous()
    values, vectors = eigen(gram(short / scale, torch.float64))
    count = above_cut(values)
    return values[:count] * scale, vectors[:, :count]


def truncate(
    delta: Float[Tensor, "out d"],
    values: Float[Tensor, "n"],
    vectors: Float[Tensor, "m n"],
    rank: int,
) -> tuple[Tensor, Tensor, float]:
    """The nearest matrix of rank `rank` (Eckart and Young 1936) as up and down factors of equal
    size, and its error relative to the norm of `delta`.

    `values` and `vectors` are the spectrum of `delta`: with V_r its first right singular vectors
    the nearest is (D V_r) V_r^T, with U_r its left ones U_r (U_r^T D).
    """
    rank = min(rank, len(values))
    kept, whole = values[:rank], float(values.square().sum())
    lost = float(values[rank:].square().sum())
    error = (lost / whole) ** 0.5 if whole > 0 else 0.0
    if rank == 0:
        return delta.new_zeros(len(delta), 1), delta.new_zeros(1, delta.shape[1]), error
    root = kept.sqrt()
    axes = vectors[:, :rank]
    if delta.shape[1] <= delta.shape[0]:
        return delta @ (axes / root).float(), (axes * root).T.float(), error
    return (axes * root).float(), (axes / root).T.float() @ delta, error


def rows_between(left: Tensor, right: Tensor, start: int, stop: int) -> Tensor:
    """Entries [start, stop) of the flattened product, in memory of their own.

    Rows are multiplied TILE at a time from the first on, whatever is asked for: products of other
    sizes may differ in their last bits.
    """
    row = right.shape[1]
    if start == stop:
        return left.new_empty(0)
    first, last = start // row // TILE * TILE, -(-stop // row)
    product = left.new_empty(min(last, len(left)) - first, row)
    multiplied(left[first:last], right, product)
    part = product.reshape(-1)[start - first * row : stop - first * row]
    return part if part.numel() == product.numel() else part.clone()


def multiplied(left: Tensor, right: Tensor, out: Float[Tensor, "rows columns"]) -> None:
    """`left @ right` into `out`, TILE rows at a time."""
    right = right.contiguous()
    for some, into in zip(torch.split(left, TILE), torch.split(out, TILE), strict=True):
        torch.mm(some.contiguous(), right, out=into)


def norms(deltas: Float[Tensor, "K out d"]) -> list[float]:
    """The Frobenius norm of each task vector."""
    return [float(torch.linalg.vector_norm(delta, dtype=torch.float64)) for delta in deltas]


def norm_of(factors: LowRank) -> float:
    """The Frobenius norm of one adapter's task vector, without building it.

    |B A|^2 is the sum of the products of the entries of B^T B and A A^T, in float64.
    """
    up, down, scale = factors
    squares = gram(up, torch.float64) * gram(down.flatten(1).T, torch.float64)
    return abs(scale) * math.sqrt(max(0.0, float(squares.sum())))
