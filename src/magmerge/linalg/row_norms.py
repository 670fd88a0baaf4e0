"""Rows of a layer: norms, scales and angles that neither underflow nor depend on blocks.

Sums over rows are taken in float64 and in one order, which is part of the definition: an entry
belongs to one of LANES lanes by its place, each lane of BLOCK entries is added up in their order,
then block after block, and at last the lanes, halved again and again. Products of float32 numbers
are exact in float64, so that no other machine or library gives other bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from magmerge.core.lazy import Float, Tensor, torch
from magmerge.kernels import parts
from magmerge.kernels.arguments import kernels_take

LANES, BLOCK = 8, 128
AT_ONCE = 1 << 17
"""Entries whose products are in memory at once."""


def as_rows(tensor: Float[Tensor, "rows *rest"]) -> Float[Tensor, "rows columns"]:
    """`tensor` with everything behind its first dimension flattened: a kernel becomes a row."""
    return tensor.reshape(tensor.shape[0], -1)


def row_dots(
    left: Float[Tensor, "rows columns"], right: Float[Tensor, "rows columns"]
) -> Float[Tensor, "rows"]:
    """<left, right> of each row, in float64."""
    rows, columns = left.shape
    height = max(1, AT_ONCE // max(BLOCK, columns))
    parts = [
        _dots(a, b)
        for a, b in zip(torch.split(left, height), torch.split(right, height), strict=True)
        if rows
    ]
    return torch.cat(parts) if parts else left.new_zeros(0, dtype=torch.float64)


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """The same of rows whose products fit into memory, or of one long row."""
    lanes = left.new_zeros((len(left), LANES), dtype=torch.float64)
    if left.shape[1]:
        for a, b in zip(
            *(torch.split(side, AT_ONCE, dim=1) for side in (left, right)), strict=True
        ):
            lanes = _added(lanes, a.double() * b.double())
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _added(lanes: Tensor, products: Tensor) -> Tensor:
    """The lanes, with the products of further columns."""
    rows, columns = products.shape
    blocks = -(-columns // BLOCK)
    products = torch.nn.functional.pad(products, (0, blocks * BLOCK - columns))
    terms = products.reshape(rows, blocks, BLOCK // LANES, LANES)
    sums = terms[:, :, 0].clone()
    for place in range(1, BLOCK // LANES):
        sums += terms[:, :, place]
    sums[:, 0] += lanes
    return sums.cumsum(dim=1)[:, -1]


def roots(squares: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Square roots, rounded as IEEE 754 has it: torch's own may be a bit off on the CPU."""
    if not squares.is_cpu or squares.requires_grad:
        return squares.sqrt()
    return torch.from_numpy(np.sqrt(squares.numpy()))


def row_gram(
    merged: Float[Tensor, "rows *rest"] | None, deltas: Float[Tensor, "K rows *rest"]
) -> Float[Tensor, "N N rows"]:
    """All inner products of the same row of different task vectors, in float64: first the merged
    one's, where there is one, then the experts'.
    """
    layers = [as_rows(delta) for delta in deltas]
    if merged is not None:
        layers.insert(0, as_rows(merged))
    if all(map(kernels_take, layers)):
        return torch.from_numpy(parts.gram([layer.contiguous().numpy() for layer in layers]))
    count = len(layers)
    gram = layers[0].new_empty((count, count, len(layers[0])), dtype=torch.float64)
    for i, left in enumerate(layers):
        for j in range(i, count):
            gram[i, j] = gram[j, i] = row_dots(left, layers[j])
    return gram


def row_norms(
    rows: Float[Tensor, "*batch rows columns"], order: int = 2
) -> Float[Tensor, "*batch rows"]:
    """Norm of each row, Euclidean or of another order, without underflow: |s x| = s |x|."""
    scale = row_scale(rows)
    norms: Tensor = torch.linalg.vector_norm(rows / scale.unsqueeze(-1), order, dim=-1)
    return norms * scale


def row_scale(rows: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows"]:
    """A power of two near each row's greatest magnitude, 1 for a row of zeros.

    Dividing by it is exact, and lets squares of tiny entries neither underflow nor overflow.
    """
    if rows.shape[-1] == 0:
        return rows.new_ones(rows.shape[:-1])
    # The bounds keep both the power and its reciprocal within float32.
    greatest, exponent = torch.frexp(rows.abs().amax(dim=-1))
    return torch.ldexp(torch.ones_like(greatest), exponent.clamp(min=-125, max=126))


def mean_cosines(gram: Float[Tensor, "K K rows"]) -> Float[Tensor, "paired"]:
    """Mean cosine between the same row of different task vectors, for each row, in float64; from
    their inner products.

    Rows of zeros have no direction; a row with fewer than two directions is left out.
    """
    norms = roots(torch.diagonal(gram).T)
    total, pairs = torch.zeros_like(gram[0, 0]), torch.zeros_like(gram[0, 0])
    for j in range(len(gram)):
        for i in range(j):
            both = (norms[i] > 0) & (norms[j] > 0)
            pairs += both
            total += torch.where(both, gram[i, j] / torch.where(both, norms[i] * norms[j], 1.0), 0)
    paired = pairs > 0
    return (total[paired] / pairs[paired]).cpu()


def mean_of(values: Sequence[float]) -> float | None:
    """The mean, rounded once, whatever the order; None of nothing."""
    return math.fsum(values) / len(values) if values else None


def squares(tensor: Float[Tensor, "*shape"], grain: int) -> list[float]:
    """The sum of squares of every `grain` entries."""
    flat = tensor.reshape(-1)
    full = len(flat) // grain * grain
    rows, rest = flat[:full].reshape(-1, grain), flat[full:].reshape(1, -1)
    layers = [layer for layer in (rows, rest) if layer.numel() or full == len(flat) == 0]
    return [float(square) for layer in layers for square in row_gram(None, layer[None])[0, 0]]
