"""Peers that magmerge does not have: plain formulas, registered so that the front door takes them.

Each is written from its paper's formula, none from anybody's code. What a paper does not say, or
what could not be read of it, is said in the docstring. Importing this file registers them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Lambda
from magmerge.core.registry import register_calibrator, register_method
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.spectral import above_cut, eigen, gram
from magmerge.methods.matrices import MATRICES, scaled_mean

CALIBRATED = MATRICES - {"experts"}
Share = Annotated[float, Doc("the paper's own parameter; see the docstring")]


def triplets(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], s [r], V [n, r] of the singular values that are not zero, by the smaller Gram
    matrix in float64.
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = triplets(matrix.T)
        return left, values, right
    values, vectors = eigen(gram(matrix, torch.float64))
    rank = above_cut(values)
    values, right = values[:rank], vectors[:, :rank]
    left = matrix.double() @ right / values
    return left.float(), values.float(), right.float()


def polar_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns."""
    left, _, right = triplets(matrix)
    return left @ right.T


def solved(target: Tensor, whole: Tensor, ridge: float, start: Tensor) -> Tensor:
    """D of D (S + l I) = R + l D_0, where l is `ridge` times the mean eigenvalue of S."""
    whole, target, start = whole.double(), target.double(), start.double()
    size = ridge * float(whole.trace()) / len(whole)
    if size == 0:
        return torch.zeros_like(start)
    shifted = whole + size * torch.eye(len(whole), dtype=torch.float64)
    found: Tensor = torch.linalg.solve(shifted, (target + size * start).T)
    return found.T


def added(matrices: Iterable[Tensor]) -> Tensor:
    """Their sum."""
    return torch.stack(list(matrices)).sum(0)


def matrices_of(deltas: Tensor) -> list[Tensor]:
    """The task vectors [out, rest] one by one."""
    return [as_rows(delta) for delta in deltas]


@register_method("actmat", source="arXiv:2604.01329", kinds=MATRICES, faithful=False)
def actmat(deltas: Tensor, *, ridge: Share = 1e-6, lambda_: Lambda = 1.0) -> Tensor:
    """D = sum_k D_k G_k (sum_j G_j)^-1 with the raw G_k = D_k^T D_k.

    The pseudo-inverse is taken with a ridge, a share of the mean eigenvalue, without a start.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    parts = [one.double() for one in matrices_of(deltas)]
    grams = [one.T @ one for one in parts]
    target = added(one @ gram for one, gram in zip(parts, grams, strict=True))
    found = solved(target, added(grams), ridge, torch.zeros_like(parts[0]))
    return (lambda_ * found).to(deltas.dtype).reshape(deltas.shape[1:])


@register_method("ace", source="ACE-Merging, arXiv:2603.02945", kinds=MATRICES, faithful=False)
def ace(
    deltas: Tensor, *, prior: Share = 0.1, refine: Share = 0.3, lambda_: Lambda = 1.0
) -> Tensor:
    """As `actmat`, with G_k over its trace, `prior` of the mean of all in each, and a refinement.

    The paper's refinement was not readable: here the singular values of the result are raised by
    `refine` of the way to their mean.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    parts = [one.double() for one in matrices_of(deltas)]
    sizes = [float(one.square().sum()) for one in parts]
    grams = [
        one.T @ one / size if size else one.T @ one for one, size in zip(parts, sizes, strict=True)
    ]
    mean = added(grams) / len(grams)
    own = [(1 - prior) * gram + prior * mean for gram in grams]
    target = added(one @ gram for one, gram in zip(parts, own, strict=True))
    found = solved(target, added(own), 1e-6, torch.zeros_like(parts[0]))
    left, values, right = triplets(found.float())
    if len(values):
        values = torch.lerp(values, torch.maximum(values, values.mean()), refine)
    refined = (left * values) @ right.T
    return (lambda_ * refined).to(deltas.dtype).reshape(deltas.shape[1:])


@register_method("dc_merge", source="DC-Merge, arXiv:2603.06242", kinds=MATRICES, faithful=False)
def dc_merge(deltas: Tensor, *, flat: Share = 1.0, lambda_: Lambda = 1.0) -> Tensor:
    """Each D_k cut to rank n/K with its singular values flattened, summed in a joint basis.

    Flattening moves them `flat` of the way to their mean. The joint bases are the polar factors of
    all left and of all right vectors side by side; there the K diagonal blocks alone are kept.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    parts = matrices_of(deltas.float())
    count = max(1, min(parts[0].shape) // len(parts))
    found = [tuple(side[..., :count] for side in triplets(one)) for one in parts]
    sizes = [len(values) for _, values, _ in found]
    if not sum(sizes):
        return torch.zeros_like(deltas[0])
    left = polar_factor(torch.cat([one[0] for one in found], dim=1))
    right = polar_factor(torch.cat([one[2] for one in found], dim=1))
    total = sum((u * torch.lerp(s, s.mean(), flat)) @ v.T for u, s, v in found if len(s))
    inner = left.T @ total @ right
    blocks = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    kept = blocks[:, None] == blocks
    merged: Tensor = left @ (inner * kept) @ right.T
    return (lambda_ * merged).to(deltas.dtype).reshape(deltas.shape[1:])


@register_method("star", source="STAR, arXiv:2502.10339", kinds=MATRICES, faithful=False)
def star(deltas: Tensor, *, share: Share = 0.4, lambda_: Lambda = 1.0) -> Tensor:
    """The mean of the D_k, each cut to `share` of its nuclear norm and scaled to all of it."""
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    total = torch.zeros_like(as_rows(deltas[0]).float())
    for one in matrices_of(deltas.float()):
        left, values, right = triplets(one)
        if len(values):
            sums = values.cumsum(0)
            rank = int((sums < share * sums[-1]).sum()) + 1
            factor = sums[-1] / sums[rank - 1]
            total += (left[:, :rank] * (values[:rank] * factor)) @ right[:, :rank].T
    return (lambda_ / len(deltas) * total).to(deltas.dtype).reshape(deltas.shape[1:])


@register_calibrator(
    "subspace_boosting", source="arXiv:2506.16506", acts_on=CALIBRATED, returns="delta"
)
def subspace_boosting(_: Tensor, merged: Tensor, *, share: Share = 0.2) -> Tensor:
    """Singular values of the merge after the first, which hold `share` of their sum, raised to it.

    The singular value at which the running sum of them reaches `share` of the whole becomes the
    least that there is.
    """
    left, values, right = triplets(as_rows(merged).float())
    if not len(values):
        return merged
    sums = values.cumsum(0)
    place = int((sums < share * sums[-1]).sum())
    raised = values.clamp(min=float(values[min(place, len(values) - 1)]))
    return ((left * raised) @ right.T).to(merged.dtype).reshape(merged.shape)


def effective(values: Tensor) -> float:
    """exp of the entropy of the singular values over their sum."""
    shares = values[values > 0] / values.sum()
    return math.exp(float(-(shares * shares.log()).sum())) if len(shares) else 0.0


TIERS = (0.9, 1.0, 1.1)
"""Factors of the three tiers of `in_tiers`."""


def in_tiers(base: dict[str, Tensor], merged: dict[str, Tensor]) -> dict[str, Tensor]:
    """LARV (its abstract alone was readable): a factor on each matrix by its effective ranks.

    Matrices are sorted by erank(W_0) / erank(D), D the merge's task vector; the third with the
    least contrast is multiplied by the first of TIERS, the next by the second, the last by the
    third. A factor on every D_k is the same for merges that are homogeneous.
    """
    changes = {
        name: as_rows(merged[name].float() - base[name].float())
        for name in merged
        if merged[name].ndim == 2
        and "embed" not in name
        and bool((merged[name] != base[name]).any())
    }
    contrast = {
        name: effective(torch.linalg.svdvals(as_rows(base[name].float())))
        / max(1.0, effective(torch.linalg.svdvals(change)))
        for name, change in changes.items()
    }
    order = sorted(contrast, key=lambda name: contrast[name])
    factors = {name: TIERS[3 * place // len(order)] for place, name in enumerate(order)}
    return {
        name: base[name] + factors[name] * (tensor - base[name]) if name in factors else tensor
        for name, tensor in merged.items()
    }
