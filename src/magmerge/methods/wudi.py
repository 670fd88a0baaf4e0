"""WUDI: the task vector that disturbs each task least on the inputs its own rows stand for.

Its successors SWUDI and ASWUDI (arXiv:2606.07289) are here too: they share the objective, the sums
over experts and the cost, and differ in how much of the solution is believed along each direction.
So that is a parameter, `filter`, and not a method each; `aswudi` is what `wudi` does by default.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from magmerge.core.parameters import Lambda
from magmerge.core.registry import register_method
from magmerge.linalg.cholesky import cholesky_solution
from magmerge.linalg.in_turn import InTurn
from magmerge.linalg.row_norms import as_rows
from magmerge.linalg.spectral import (
    ROWS,
    TOLERANCE,
    above_cut,
    eigen,
    gram,
    noise,
    power_of_two,
    rowwise,
)
from magmerge.methods.matrices import MATRICES, scaled_mean

SINGLE = 256
"""Columns from which on float32 saves enough time to be tried."""
NEAR_ZERO = 1e-6
"""Below this the exponential filter is its limit, to float64's half."""

Filter = Annotated[
    Literal["rank", "exponential", "tikhonov"],
    Doc("rank: the leading directions, without a parameter (ASWUDI); exponential: by `time` "
        "(SWUDI); tikhonov: by `ridge`"),
]  # fmt: skip
Time = Annotated[
    float, Interval(gt=0), Doc("of the exponential filter: how long the descent from the sum lasts")
]
Ridge = Annotated[float, Interval(gt=0), Doc("of the filter tikhonov: what is added to G")]


def scratch(shape: tuple[int, ...], _: int) -> int:
    """Six float64 matrices of columns x columns: G, one G_k, eigenvectors and room to find them.
    Beside them six of the layer's size: R, D_0, a task vector, and what the result is a sum of.
    """
    if len(shape) < 2:
        return 0
    columns = math.prod(shape[1:])
    return 6 * 8 * columns**2 + 6 * 8 * shape[0] * columns


def effective_rank(values: Float[Tensor, "n"]) -> int:
    """How many of the descending singular `values` carry the whole: their sum's square over that
    of their squares, to the nearest whole number; n for equal ones, 0 for zeros.
    """
    there = values[: above_cut(values)]
    if not len(there):
        return 0
    return min(len(there), max(1, round(float(there.sum().square() / there.square().sum()))))


class Equations(NamedTuple):
    """What least interference asks of D: D G = R. All but G is divided by `scale`, in float64.

    G = sum_k G_k [n, n] and R = sum_k D_k G_k [m, n] with G_k = D_k^T D_k / |D_k|^2; `start` is the
    sum of all D_k [m, n].
    """

    gram: Tensor
    target: Tensor
    start: Tensor
    scale: float


@register_method(
    "wudi",
    aliases=("aswudi",),
    source="WUDI-Merging, arXiv:2503.08099; its filters: arXiv:2606.07289",
    kinds=MATRICES,
    workspace=(0, 0),
    scratch=scratch,
    faithful=False,
    in_turn=True,
)
def wudi(
    deltas: Float[Tensor, "K *shape"] | InTurn,
    *,
    filter_: Filter = "rank",
    time: Time = 300.0,
    ridge: Ridge = 0.01,
    lambda_: Lambda = 1.0,
) -> Float[Tensor, "*shape"]:
    """The D that disturbs the tasks least, as far as a filter believes it, times lambda.

    The objective is that of WUDI's authors: sum_k |(D - D_k) D_k^T|^2 / |D_k|^2 (Frobenius norms).
    The rows of a task vector span about what the task's inputs span, so its minimum is the least
    interference without data. It is linear least squares: D G = R with G = sum_k G_k, R = sum_k
    D_k G_k, G_k = D_k^T D_k / |D_k|^2. With w and U the eigenvalues and eigenvectors of G:

    rank (ASWUDI): D = R U_r w_r^-1 U_r^T on the r greatest, where r is (sum_i sqrt(w_i))^2 / sum_i
    w_i to the nearest whole number. exponential (SWUDI): D = D_0 + (R - D_0 G) U f(w) / w U^T with
    f(w) = 1 - exp(-`time` w) and D_0 = sum_k D_k: where plain gradient descent on the objective is
    after so long. tikhonov: the same with f(w) = w / (w + `ridge`).

    The authors': the objective, D_0, and in arXiv:2606.07289 all three filters, `time` 300 and the
    rank. Not theirs: WUDI's 300 steps of Adam of size 1e-5, whose result depends on the magnitude
    of the weights, have no place here; and no filter divides by an eigenvalue of zero. The limit of
    all three, the pseudo-inverse of G, divides the weakest directions by almost nothing: on experts
    of low rank it is of no use, and neither is a `time` or a `ridge` too near to it.

    Computed in float64, the exponential in float32 where an estimate of its error allows that.
    Experts of zeros have no say. For [out, in] matrices and [out, rest] convolutions; a vector gets
    lambda times the mean of its task vectors.

    When: fully fine-tuned experts, without data. On LoRA adapters take `filter=tikhonov` with
    `ridge=0.1`: the others divide weak directions by almost nothing.
    """
    if deltas.ndim < 3:
        return scaled_mean(deltas, lambda_)
    asked = equations(deltas)
    if filter_ == "rank":
        solution = by_rank(asked)
    elif filter_ == "exponential":
        solution = by_time(asked, time, deltas.dtype)
    else:
        solution = by_ridge(asked, ridge)
    return (solution.to(deltas.dtype) * (asked.scale * lambda_)).reshape(deltas.shape[1:])


def equations(deltas: Float[Tensor, "K *shape"] | InTurn) -> Equations:
    """The sums over experts, of whom one at a time is looked at.

    They are divided by the largest of the powers of two near the experts' magnitudes, so that
    nothing under- or overflows; where a larger one comes later, that is made up for exactly.
    """
    sums: Equations | None = None
    for delta in deltas:
        size = power_of_two(delta)
        unit = as_rows(delta) / size
        sums = zeros(unit) if sums is None else sums
        weight = unit.double().square().sum()
        if not weight > 0:
            continue
        whole, target, start, scale = sums
        if size > scale:
            target *= scale / size
            start *= scale / size
            sums = sums._replace(scale=size)
        own = gram(unit, torch.float64) / weight
        whole += own
        own *= size / sums.scale
        for part, into in zip(torch.split(unit, ROWS), torch.split(target, ROWS), strict=True):
            into.addmm_(part.double(), own)
        start.add_(unit, alpha=size / sums.scale)
    assert sums is not None, "there is one expert at least"
    return sums


def zeros(matrix: Float[Tensor, "m n"]) -> Equations:
    """The sums over no expert, beside a matrix of their sizes."""
    columns = matrix.shape[1]
    double = matrix.new_zeros(0, dtype=torch.float64)
    target, start = double.new_zeros(matrix.shape), double.new_zeros(matrix.shape)
    return Equations(double.new_zeros(columns, columns), target, start, 0.0)


def by_rank(asked: Equations) -> Float[Tensor, "m n"]:
    """R U_r w_r^-1 U_r^T. The rank depends on the root of every eigenvalue, of which float32 would
    lose the small ones, so that all is in float64.
    """
    values, vectors = eigen(asked.gram)
    rank = effective_rank(values)
    kept = vectors[:, :rank]
    return rowwise(asked.target, (kept / values[:rank].square()) @ kept.T)


def by_time(asked: Equations, time: float, dtype: torch.dtype) -> Float[Tensor, "m n"]:
    """D_0 + (R - D_0 G) U f(w) / w U^T; of a large float32 layer with eigenvectors in float32 where
    that leaves an error below TOLERANCE, as estimated.
    """
    missing = asked.target.sub_(asked.start @ asked.gram)
    if dtype == torch.float32 and len(asked.gram) >= SINGLE:
        values, vectors = torch.linalg.eigh(asked.gram.float())
        weights, slopes = descended(values.double(), time)
        step = rowwise(missing, (vectors * weights.float()) @ vectors.T)
        whole = asked.start + step
        along = torch.linalg.vector_norm(rowwise(missing, vectors), dim=0)
        if filter_error(values.double(), weights, slopes, along) < TOLERANCE * float(whole.norm()):
            return whole
    values, vectors = torch.linalg.eigh(asked.gram)
    weights, _ = descended(values, time)
    return asked.start + rowwise(missing, (vectors * weights) @ vectors.T)


def descended(
    values: Float[Tensor, "n"], time: float
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """(1 - exp(-time w)) / w of each eigenvalue w, near zero by its series, and its derivative."""
    far = time * values.clamp(min=0)
    near = far < NEAR_ZERO
    far = torch.where(near, 1.0, far)
    weights = time * torch.where(near, 1.0, -torch.expm1(-far) / far)
    slopes = time**2 * torch.where(near, -0.5, (torch.exp(-far) * (1 + far) - 1) / far.square())
    return weights, slopes


def filter_error(
    values: Float[Tensor, "n"],
    weights: Float[Tensor, "n"],
    slopes: Float[Tensor, "n"],
    along: Float[Tensor, "n"],
) -> float:
    """Expected Frobenius error of X U g(w) U^T if G is as noisy as float32 makes it.

    `values` are w, `weights` g(w), `slopes` its derivative, `along` the norms of X u_i. To first
    order, noise e_ij in the eigenvectors' basis moves the filter by e_ij (g_i - g_j) / (w_i - w_j).
    To that comes the rounding of X and of the products.
    """
    total = 0.0
    for part, own, slope, size in zip(
        *(torch.split(each, ROWS) for each in (values, weights, slopes, along)), strict=True
    ):
        apart = part[:, None] - values
        change = (own[:, None] - weights) / torch.where(apart == 0, 1.0, apart)
        change = torch.where(apart == 0, slope[:, None], change)
        total += float((size.square()[:, None] * change.square()).sum())
    noisy = noise(float(values.mean()), float(values.max()), len(values))
    rounding = 2 * float(along.square().sum() * weights.square().mean()) ** 0.5
    return float(torch.finfo(torch.float32).eps * (noisy * total**0.5 + rounding))


def by_ridge(asked: Equations, ridge: float) -> Float[Tensor, "m n"]:
    """(R + ridge D_0) (G + ridge I)^-1; ParameterError for a ridge below the rounding of G."""
    asked.gram.diagonal().add_(ridge)
    target = asked.target.add_(asked.start, alpha=ridge)
    return cholesky_solution(asked.gram, target.T, remedy="raise ridge").T
