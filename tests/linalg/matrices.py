"""Matrices of known trouble, and the definitions by singular value decomposition in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from magmerge.linalg.spectral import RANK_CUT
from tests.quick import quick_ones

SHAPES = [(40, 30), (30, 40), (24, 24), (300, 260), (260, 600)]
SPECTRA = ["normal", "orthogonal", "thousand", "million", "power", "low rank", "two levels", "zero"]


def spectra(shapes: list[tuple[int, int]], kinds: list[str], numbers: tuple[int, ...]) -> list[Any]:
    """Every shape, spectrum and number together; in the quick tests every two of them once."""

    def quick(case: Any) -> bool:
        shape, spectrum, number = case
        places = shapes.index(shape) + kinds.index(spectrum)
        return numbers[places % len(numbers)] == number

    return quick_ones(product(shapes, kinds, numbers), quick)


def with_spectrum(shape: tuple[int, int], spectrum: str, seed: int = 0) -> Tensor:
    """A float32 matrix of entries near 1e-3 whose singular values are of the named kind."""
    generator = torch.Generator().manual_seed(seed)
    m, n, r = *shape, min(shape)
    if spectrum == "normal":
        return 1e-3 * torch.randn(shape, generator=generator)
    values = {
        "orthogonal": torch.ones(r),
        "thousand": torch.logspace(0, -3, r),
        "million": torch.logspace(0, -5.9, r),
        "power": torch.arange(1, r + 1) ** -0.6,
        "low rank": torch.cat([torch.logspace(0, -2, r // 6), torch.zeros(r - r // 6)]),
        "two levels": torch.cat([torch.ones(r // 2), torch.full((r - r // 2,), 1e-5)]),
        "zero": torch.zeros(r),
    }[spectrum].double()
    left = torch.linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(n, r, generator=generator, dtype=torch.float64))[0]
    return (1e-3 * (left * values) @ right.T).float()


def slow_triplets(
    matrix: Tensor, count: int, whole: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of the first `count` triplets above the cut, in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    largest = float(values[0]) if whole is None else whole
    kept = min(count, int((values > RANK_CUT * largest).sum()))
    return left[:, :kept], values[:kept], right[:kept].T


def slow_polar(matrix: Tensor) -> Tensor:
    left, _, right = slow_triplets(matrix, min(matrix.shape))
    return left @ right.T


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative error in the Frobenius norm; 0 where both are zero."""
    difference = float((found.double() - expected.double()).norm())
    return difference / float(expected.double().norm()) if difference else 0.0
