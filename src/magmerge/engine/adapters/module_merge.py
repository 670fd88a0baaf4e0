"""Adapters alone: a module's merge in factors where the method allows it, else in full pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.checkpoints.adapters.factored import coordinates, norm_of, norms, spectrum, truncate
from magmerge.checkpoints.adapters.nouns import LowRank
from magmerge.checkpoints.adapters.union import AdapterTaskVectors, AdapterUnion
from magmerge.core import journal
from magmerge.core.dtypes import code_of
from magmerge.core.parameters import UNIT
from magmerge.core.types import Piece, Step, TensorSpec
from magmerge.engine.adapters.module_memory import sizes_of_module
from magmerge.engine.adapters.products import merged_by_pieces, merged_from_products
from magmerge.engine.executors.local import Job, Task
from magmerge.engine.job import Work
from magmerge.engine.layer import Merged, calibrate_layer, merge_layer, record_of
from magmerge.engine.stages import Truncation
from magmerge.engine.step_method import method_for, of_piece
from magmerge.engine.steps import Bench, Outcome, run_step
from magmerge.linalg.best_rank import Start, best_rank, rank_by_energy, rank_for_energy, zero_rows
from magmerge.linalg.spectral import Triplets

UP, DOWN = "::up", "::down"
"""What a factor is called in a pass's sink, after its module's name."""


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """What became of one module. `norms` are those of each adapter's task vector; `merged` is that
    of the plain merge and `written` that of the result, both at `rank`; `error` is what the
    truncation to that rank lost, relative to the norm of the whole merge.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    error: float
    norms: tuple[float, ...]
    merged: float
    written: float


class _Cut(NamedTuple):
    """A truncated merge `up @ down @ basis` [out, r], [r, d], [d, in]; the experts' task vectors in
    that basis [K, out, d], or none [0, out, d] where nothing looks at them, and their norms; what
    was lost, and notes.
    """

    up: Tensor
    down: Tensor
    basis: Tensor
    deltas: Tensor
    norms: list[float]
    error: float
    notes: tuple[str, ...]


def run_module(bench: Bench, step: Step) -> Task[Outcome]:
    """One module: its merge, truncated, then calibrated, so that its magnitude is kept."""
    work, name = bench.work, step.spec.name
    union = _union(work)
    if name in union.added:
        outcome = yield from run_step(bench, step)
        return outcome
    if work.job.takes:
        yield [Job(0, partial(_take, bench, step))]
        return Outcome()
    size, products = sizes_of_module(work.job, step, work.plan.piece)
    if work.stages.in_factors(step):
        cuts = yield [Job(size, partial(_by_factors, bench, step))]
    elif products:
        cuts = yield [Job(max(size, products), partial(_by_products, bench, step))]
    else:
        merged = yield from merged_by_pieces(bench, step)
        cuts = yield [Job(size, partial(_by_matrix, work, step, *merged))]
    finished = yield [Job(0, partial(_finish, bench, step, cuts[0]))]
    return finished[0]  # type: ignore[no-any-return]


def _take(bench: Bench, step: Step) -> None:
    """An adapter's own factors, as they are."""
    factors = _union(bench.work).adapters[0].read(step.spec.name)
    put_factors(bench, step, factors.up, factors.down, stored=True)


def put_factors(
    bench: Bench, step: Step, up: Tensor, down: Tensor, *, stored: bool = False
) -> None:
    """Give both factors of a step's task vector to the sink, in its format; with `stored` in their
    own, unless the recipe names one.
    """
    for ending, factor in ((UP, up), (DOWN, down)):
        own = code_of(factor.dtype) if stored else None
        code = bench.work.job.recipe.output.dtype or own or step.spec.dtype
        spec = TensorSpec(f"{step.spec.name}{ending}", tuple(factor.shape), code)
        # An error names the module, not the factor.
        bench.put(replace(step, spec=spec), 0, factor, name=step.spec.name)


def _by_factors(bench: Bench, step: Step) -> _Cut:
    """A merge that is the same in coordinates."""
    factors = _factors(bench.work, step)
    coords = coordinates(factors)
    base = torch.zeros_like(coords.deltas[0])
    with journal.listening() as notes:
        method, keywords = method_for(bench.work, step, None)
        keywords = of_piece(method, keywords, 0, base)
        merged = merge_layer(step, method, keywords, base, coords.deltas).delta
        values, vectors = spectrum(merged)
        rank = _chosen(bench.work, values, max(factor.down.shape[0] for factor in factors))
        up, down, error = truncate(merged, values, vectors, rank)
    sizes = norms(coords.deltas)
    return _Cut(up, down, coords.basis, coords.deltas, sizes, error, tuple(notes))


def _by_products(bench: Bench, step: Step) -> _Cut:
    """A merge whose full task vectors fit into memory, all at once."""
    return _by_matrix(bench.work, step, *merged_from_products(bench, step))


def _by_matrix(
    work: Work, step: Step, delta: Float[Tensor, "out in"], notes: tuple[str, ...]
) -> _Cut:
    """A merge that needed the full matrix, which is `delta`."""
    factors, truncation = _factors(work, step), work.stages.truncation
    assert truncation is not None
    largest = max(factor.down.shape[0] for factor in factors)
    best = _nearest(delta, truncation, largest, partial(_leading_of_mean, factors))
    root = best.values.sqrt()
    up, rows = best.left * root, best.right.T
    if not work.stages.treatment.of(step):
        sizes, nothing = [norm_of(factor) for factor in factors], up.new_empty(0, *up.shape)
        return _Cut(up, torch.diag(root), rows, nothing, sizes, best.error, notes)
    coords = coordinates([*factors, LowRank(up, (best.right * root).T, 1.0)])
    own, deltas = (best.right * root).T @ coords.basis.T, coords.deltas[:-1]
    return _Cut(up, own, coords.basis, deltas, norms(deltas), best.error, notes)


def as_factors(
    matrix: Float[Tensor, "out in"],
    truncation: Truncation,
    largest: int,
    start: Start | None = None,
) -> tuple[Float[Tensor, "out r"], Float[Tensor, "r in"], float]:
    """A matrix as two factors of equal size at its rank, and what that loses; of rank 1 for zeros.

    `largest` is the rank where none is said.
    """
    best = _nearest(matrix, truncation, largest, start)
    root = best.values.sqrt()
    return best.left * root, (best.right * root).T, best.error


def _nearest(
    matrix: Float[Tensor, "out in"], truncation: Truncation, largest: int, start: Start | None
) -> Triplets:
    """The singular triplets of a matrix at its rank; for zeros one of zeros."""
    most = min(matrix.shape)
    if truncation.rank == "auto":
        best = rank_by_energy(matrix, truncation.energy, most)
    else:
        rank = largest if truncation.rank is None else truncation.rank
        assert isinstance(rank, int)
        best = best_rank(matrix, min(rank, most), start)
    if not len(best.values):
        out, features = matrix.shape
        zeros = matrix.new_zeros
        return Triplets(zeros(out, 1), zeros(1), zeros(features, 1), best.error)
    left = best.left.clone()
    # Rounding leaves of a row of zeros what a calibration would enlarge to the experts' length.
    left[zero_rows(matrix)] = 0
    return best._replace(left=left)


def _leading_of_mean(factors: Sequence[LowRank]) -> Float[Tensor, "in n"]:
    """The right singular directions of the adapters' mean, which any merge of them is about."""
    coords = coordinates(factors)
    mean = coords.deltas.mean(dim=0)
    values, vectors = spectrum(mean)
    if mean.shape[1] <= mean.shape[0]:
        return coords.basis.T @ vectors.float()
    return coords.basis.T @ (mean.T @ (vectors / values).float())


def _chosen(work: Work, values: Float[Tensor, "n"], largest: int) -> int:
    """The rank for a module whose merge has these singular values, largest first."""
    truncation = work.stages.truncation
    assert truncation is not None
    if truncation.rank == "exact":
        return len(values)
    if truncation.rank == "auto":
        whole = float(torch.linalg.vector_norm(values))
        return rank_for_energy(values, whole, truncation.energy)
    return largest if truncation.rank is None else truncation.rank


def _finish(bench: Bench, step: Step, cut: _Cut) -> Outcome:
    """Calibrate the truncated merge, and give its factors to the sink."""
    treatment, delta = bench.work.stages.treatment, cut.up @ cut.down
    base = torch.zeros_like(delta)
    with journal.listening() as more:
        done = calibrate_layer(step, _piece(delta), treatment, base, cut.deltas, Merged(delta))
    tally = replace(done.tally, notes=(*cut.notes, *more))
    record = record_of(step, treatment, [tally])
    rows = torch.tensor(tally.xi or (1.0,), dtype=torch.float64).float().unsqueeze(1)
    down = (cut.down @ cut.basis).reshape(-1, *step.spec.shape[1:])
    put_factors(bench, step, cut.up * rows, down)
    module = ModuleRecord(
        name=step.spec.name,
        shape=step.spec.shape,
        rank=cut.up.shape[1],
        error=cut.error,
        norms=tuple(cut.norms),
        merged=record.norm_before,
        written=record.norm_after,
    )
    return Outcome(record, module)


def _factors(work: Work, step: Step) -> list[LowRank]:
    experts = [expert for expert in work.models.experts if isinstance(expert, AdapterTaskVectors)]
    return [expert.factors(step.spec.name) for expert in experts]


def _union(work: Work) -> AdapterUnion:
    assert work.models.union is not None
    return work.models.union


def _piece(matrix: Tensor) -> Piece:
    return Piece(0, matrix.numel(), tuple(matrix.shape), UNIT)
