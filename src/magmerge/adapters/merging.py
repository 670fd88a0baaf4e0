"""Merge adapters module by module: in factors where the method allows it, else in full pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge import dtypes, journal
from magmerge.adapters.factored import coordinates, norms, spectrum, truncate
from magmerge.adapters.nouns import LowRank, ModuleSpec
from magmerge.adapters.ranks import ENERGY, chosen_rank
from magmerge.adapters.union import AdapterTaskVectors, AdapterUnion
from magmerge.binding import Treatment
from magmerge.checkpoints.writer import MemorySink
from magmerge.errors import NonFiniteError
from magmerge.executors import local
from magmerge.executors.local import Job, Task
from magmerge.filters import varies
from magmerge.layer import Merged, calibrate_layer, merge_layer, record_of
from magmerge.linalg.low_rank import best_rank, rank_by_energy
from magmerge.parameters import UNIT
from magmerge.recipe import AdapterOutput
from magmerge.run import Progress, Work, counter, method_for, survey_model, treat_layer
from magmerge.types import LayerRecord, Method, Piece, Step, Survey

FACTORED = 8
"""Tensors of the size of one task vector's coordinates that a module in factors takes besides."""
SKETCHED = 3
"""Full matrices that the truncation of one holds."""


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


@dataclass(frozen=True, slots=True)
class Finished:
    """One merged module, in the dtype of the output."""

    factors: LowRank
    record: LayerRecord
    module: ModuleRecord


def merge_modules(
    work: Work,
    output: AdapterOutput,
    dtype: torch.dtype,
    *,
    threads: int,
    progress: Progress | None = None,
) -> dict[str, Finished]:
    """Every module of the plan, merged, truncated, then calibrated, in the order of the plan."""
    plain = replace(work, bound=replace(work.bound, treatment=Treatment()))
    survey = survey_model(plain, threads, progress)
    steps = [step for step in work.plan.steps if step.action in ("merge", "mean")]
    done = counter("merging", len(steps), progress)
    found = local.run(
        (_module(work, plain, step, survey, output, dtype) for step in steps),
        threads=threads,
        room=work.plan.room,
        done=done,
    )
    return {step.spec.name: one for step, one in zip(steps, found, strict=True)}


def in_factors(method: Method | None, keywords: Mapping[str, Any]) -> bool:
    """Whether the method, with these parameters, works on coordinates."""
    if method is None:
        return False
    return method.rotates(**keywords) if callable(method.rotates) else method.rotates


def always_in_factors(method: Method | None, keywords: Mapping[str, Any]) -> bool:
    """Whether it does so for every module, also where parameters vary by layer."""
    decides = method is not None and callable(method.rotates)
    return in_factors(method, keywords) and not (decides and any(map(varies, keywords.values())))


def bytes_of_module(spec: ModuleSpec, ranks: Sequence[int], *, factored: bool) -> int:
    """What merging one module takes at most, beside the pieces of a survey."""
    out, features = spec.shape[0], math.prod(spec.shape[1:])
    width = min(features, sum(ranks) + (0 if factored else max(ranks)))
    each = 4 * width * (out * (len(ranks) + FACTORED) + 3 * features)
    return each + (0 if factored else 4 * SKETCHED * out * features)


def _module(
    work: Work,
    plain: Work,
    step: Step,
    survey: Survey | None,
    output: AdapterOutput,
    dtype: torch.dtype,
) -> Task[Finished]:
    """One module: its merge, and what is done to it then."""
    union = work.sources.layout
    assert isinstance(union, AdapterUnion)
    spec, name = union.modules[step.spec.name], step.spec.name
    ranks = [one.modules[name].rank if name in one.modules else 0 for one in union.adapters]
    keywords = work.bound.keywords_at(step)
    factored = step.action == "mean" or in_factors(work.bound.method, keywords)
    size = bytes_of_module(spec, ranks, factored=factored)
    if factored:
        finished = yield [Job(size, partial(_by_factors, work, step, output, dtype))]
        return finished[0]  # type: ignore[no-any-return]
    kept = MemorySink()
    plainly = yield from treat_layer(plain, step, [], survey, kept)
    assert isinstance(plainly, LayerRecord)
    delta = kept.tensors[name].flatten(1)
    call = partial(_by_matrix, work, step, delta, plainly.notes, output, dtype)
    finished = yield [Job(size, call)]
    return finished[0]  # type: ignore[no-any-return]


def _by_factors(work: Work, step: Step, output: AdapterOutput, dtype: torch.dtype) -> Finished:
    """A merge that is the same in coordinates."""
    factors = _factors(work, step)
    coords = coordinates(factors)
    base = torch.zeros_like(coords.deltas[0])
    with journal.listening() as notes:
        method, keywords = method_for(work, step, _piece(base), None, base)
        merged = merge_layer(step, method, keywords, base, coords.deltas).delta
        values, vectors = spectrum(merged)
        rank = chosen_rank(output, values, max(one.down.shape[0] for one in factors))
        up, down, error = truncate(merged, values, vectors, rank)
    told = tuple(notes)
    return _finish(work, step, dtype, coords.deltas, up, (down, coords.basis), error, told)


def _by_matrix(
    work: Work,
    step: Step,
    delta: Float[Tensor, "out in"],
    notes: tuple[str, ...],
    output: AdapterOutput,
    dtype: torch.dtype,
) -> Finished:
    """A merge that needed the full matrix, which is `delta`."""
    factors = _factors(work, step)
    if output.rank == "auto":
        found = rank_by_energy(delta, output.energy or ENERGY, min(delta.shape))
    else:
        largest = max(one.down.shape[0] for one in factors)
        rank = largest if output.rank is None else output.rank
        assert isinstance(rank, int)
        found = best_rank(delta, min(rank, *delta.shape), _leading_of_mean(factors))
    root = found.values.sqrt()
    up, down = found.left * root, (found.right * root).T
    if not len(root):
        up, down = delta.new_zeros(len(delta), 1), delta.new_zeros(1, delta.shape[1])
    coords = coordinates([*factors, LowRank(up, down, 1.0)])
    own = down @ coords.basis.T
    return _finish(
        work, step, dtype, coords.deltas[:-1], up, (own, coords.basis), found.error, notes
    )


def _leading_of_mean(factors: Sequence[LowRank]) -> Float[Tensor, "in n"]:
    """The right singular directions of the adapters' mean, which any merge of them is about."""
    coords = coordinates(factors)
    mean = coords.deltas.mean(dim=0)
    values, vectors = spectrum(mean)
    if mean.shape[1] <= mean.shape[0]:
        return coords.basis.T @ vectors.float()
    return coords.basis.T @ (mean.T @ (vectors / values).float())


def _finish(
    work: Work,
    step: Step,
    dtype: torch.dtype,
    deltas: Float[Tensor, "K out d"],
    up: Float[Tensor, "out r"],
    down: tuple[Float[Tensor, "r d"], Float[Tensor, "d in"]],
    error: float,
    notes: tuple[str, ...],
) -> Finished:
    """Calibrate the truncated merge, so that its magnitude is kept, and cast it once."""
    treatment, delta = work.bound.treatment, up @ down[0]
    base = torch.zeros_like(delta)
    with journal.listening() as more:
        _, tally = calibrate_layer(step, _piece(delta), treatment, base, deltas, Merged(delta))
    tally = replace(tally, notes=(*notes, *more))
    record = record_of(step, treatment, [tally])
    rows = torch.tensor(tally.xi or (1.0,), dtype=torch.float64).float().unsqueeze(1)
    factors = LowRank(
        cast_once(up * rows, dtype, step.spec.name),
        cast_once(down[0] @ down[1], dtype, step.spec.name).reshape(-1, *step.spec.shape[1:]),
        1.0,
    )
    found = ModuleRecord(
        name=step.spec.name,
        shape=step.spec.shape,
        rank=up.shape[1],
        error=error,
        norms=tuple(norms(deltas)),
        merged=record.norm_before,
        written=record.norm_after,
    )
    return Finished(factors, record, found)


def _factors(work: Work, step: Step) -> list[LowRank]:
    experts = work.sources.experts
    assert all(isinstance(one, AdapterTaskVectors) for one in experts)
    return [one.factors(step.spec.name) for one in experts]  # type: ignore[attr-defined]


def _piece(matrix: Tensor) -> Piece:
    return Piece(0, matrix.numel(), tuple(matrix.shape), UNIT)


def cast_once(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The one cast; NonFiniteError where a value is too large for the output's format."""
    cast = tensor.to(dtype).contiguous()
    if not bool(cast.isfinite().all()):
        raise NonFiniteError(
            f"a value is too large for {str(dtype).removeprefix('torch.')}",
            tensor=name,
            source="the result",
            remedy="write --dtype float32 or bfloat16, or merge with smaller weights"
            if bool(tensor.isfinite().all())
            else "use a sound copy of the adapters",
        )
    return cast


def stated_dtype(union: AdapterUnion, wanted: str | None) -> str:
    """safetensors' code of the output: as asked for, as the inputs, or F32 if they differ."""
    if wanted is not None:
        return wanted
    found = {one.dtype for adapter in union.adapters for one in adapter.modules.values()}
    return found.pop() if len(found) == 1 and found <= set(dtypes.FLOATS) else "F32"
