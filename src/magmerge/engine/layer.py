"""The heart: one tensor in, one tensor out. Pure functions of one layer, or of a piece of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from magmerge.calibrators.gate import bounded, gate
from magmerge.core.errors import naming
from magmerge.core.lazy import Float, Tensor, torch
from magmerge.core.traits import Method
from magmerge.core.types import Factor, LayerRecord, Piece, Step
from magmerge.engine.stages import Treatment
from magmerge.linalg.row_norms import as_rows, mean_cosines, mean_of, row_dots, row_gram, squares


@dataclass(frozen=True, slots=True)
class Merged:
    """One layer's merge: its task vector, and its weight where the method makes that itself."""

    delta: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What was done to one piece, in parts that add up to the layer's record in any cut.

    `xi` holds the factor of each row, `free` and `gated` what each calibrator in turn found before
    and after the gate and the bound, `over` what rows above the bound would have, `experts` the
    squares of each expert's task vector, `before` and `after` those of the merged one: row by row
    where the layer is calibrated, else grain by grain.
    """

    xi: tuple[float, ...] = ()
    free: tuple[tuple[float, ...], ...] = ()
    gated: tuple[tuple[float, ...], ...] = ()
    over: tuple[float, ...] = ()
    experts: tuple[tuple[float, ...], ...] = ()
    cosines: tuple[float, ...] = ()
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


class Calibrated(NamedTuple):
    """The new weight, the task vector in it, and the tally of what was done."""

    weight: Tensor
    delta: Tensor
    tally: Tally


def merge_layer(
    step: Step,
    method: Method,
    keywords: Mapping[str, Any],
    base: Float[Tensor, "*shape"],
    tensors: Float[Tensor, "K *shape"],
) -> Merged:
    """Apply `method` to the experts' task vectors, or to their weights if it acts on those.

    A method for matrices gets them as [out, in], however they are stored.
    """
    result = applied(step, method, keywords, tensors)
    if method.acts_on == "weights":
        return Merged(result - base, result)
    return Merged(result)


def applied(
    step: Step, method: Method, keywords: Mapping[str, Any], tensors: Any
) -> Float[Tensor, "*shape"]:
    """What the method's function makes of a layer, [K, *shape] as a tensor or an `InTurn`, stored
    as the layer is.
    """
    with naming(step.spec.name):
        if method.kinds is None:
            return method.fn(tensors, **keywords)
        rows_first = tensors.transpose(1, 2) if step.kind == "transposed" else tensors
        return _rows_first(method.fn(rows_first, **keywords), step, 0)


def calibrate_layer(
    step: Step,
    piece: Piece,
    treatment: Treatment,
    base: Float[Tensor, "*shape"],
    deltas: Float[Tensor, "K *shape"],
    merged: Merged,
) -> Calibrated:
    """The new weight is base + xi * delta.

    A calibrator that gives a new task vector instead of a factor replaces delta. Each calibrator
    sees what those before it made. Without calibrators xi = 1.
    """
    delta, weight = merged.delta, merged.weight
    calibrators = treatment.at(step, piece)
    if not calibrators:
        before = tuple(squares(delta, piece.grain))
        result = base + delta if weight is None else weight
        return Calibrated(result, delta, Tally(before=before, after=before))
    gram = row_gram(_rows_of(delta, step), torch.stack([_rows_of(own, step) for own in deltas]))
    size = gram[0, 0]
    xi, asked = _unscaled(delta)
    free, gated, over = list[tuple[float, ...]](), list[tuple[float, ...]](), list[float]()
    for calibrator, keywords in calibrators:
        solved = treatment.solved(calibrator, step, piece)
        if solved is None:
            task_vector = _rows_first(spread(xi, step, delta) * delta, step, 0)
            own = {"base": _rows_first(base, step, 0)} if "base" in calibrator.supplied else {}
            with naming(step.spec.name):
                output = calibrator.fn(_rows_first(deltas, step, 1), task_vector, **keywords, **own)
            if calibrator.returns == "delta":
                solved = _rows_first(output, step, 0)
        if solved is not None:
            delta, weight, free, gated = solved, None, [], []
            over += _above(asked, treatment)
            xi, asked, size = *_unscaled(delta), _squares(delta, step)
            continue
        held = treatment.gated and calibrator.gated
        factor = gate(output, step.sensitive) if held else output
        asked = torch.maximum(asked, xi * factor)
        xi, factor = bounded(xi, factor, treatment.bound)
        free.append(_numbers(output))
        gated.append(_numbers(factor))
    xi = share_of(xi, treatment.shares.get(step.spec.name, 1.0))
    scaled = spread(xi, step, delta) * delta
    tally = Tally(
        xi=_numbers(xi),
        free=tuple(free),
        gated=tuple(gated),
        over=(*over, *_above(asked, treatment)),
        experts=tuple(map(_numbers, gram.diagonal().T[1:])),
        cosines=_numbers(mean_cosines(gram[1:, 1:])),
        before=_numbers(gram[0, 0]),
        after=_numbers(size * xi.double().square()),
    )
    result = apply_factor(base, delta, spread(xi, step, delta), weight)
    return Calibrated(result, scaled, tally)


def _above(asked: Tensor, treatment: Treatment) -> tuple[float, ...]:
    """The factors that were asked for and are above the bound."""
    return _numbers(asked[asked > treatment.bound])


def _unscaled(delta: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of a layer that none has scaled yet, and the largest that was asked for: 1."""
    one = torch.ones((), dtype=delta.dtype, device=delta.device)
    return one, one


def share_of(xi: Float[Tensor, "..."], share: float) -> Float[Tensor, "..."]:
    """xi to the power of `share`, which is 1, 1/2 or 0: each exact, or rounded once, so that no bit
    depends on how a layer is cut.
    """
    return {1.0: xi, 0.5: xi.sqrt(), 0.0: torch.ones_like(xi)}[share]


def apply_factor(
    base: Float[Tensor, "*shape"],
    delta: Float[Tensor, "*shape"],
    xi: Float[Tensor, "..."],
    weight: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """base + xi * delta. From `weight` = base + delta where that is known, so that xi = 1 keeps it.

    Both are the same number; the second form gives the known weight back to its last bit.
    """
    return base + xi * delta if weight is None else weight + (xi - 1) * delta


def record_of(step: Step, treatment: Treatment, tallies: Sequence[Tally]) -> LayerRecord:
    """The layer's record from its pieces' tallies, in their order."""
    xi = [value for tally in tallies for value in tally.xi] or [1.0]
    factors = _factors(step, treatment, tallies)
    over = [value for tally in tallies for value in tally.over]
    told = [note for tally in tallies for note in tally.notes]
    experts = [_norm(column) for column in zip(*(tally.experts for tally in tallies), strict=True)]
    return LayerRecord(
        name=step.spec.name,
        action=step.action,
        kind=step.kind,
        sensitive=step.sensitive,
        xi=mean_of(xi) or 0.0,
        xi_min=min(xi),
        xi_max=max(xi),
        xi_free=float(math.prod(factor.free for factor in factors)),
        norm_before=_norm([tally.before for tally in tallies]),
        norm_after=_norm([tally.after for tally in tallies]),
        cosine=mean_of([value for tally in tallies for value in tally.cosines]),
        calibrated_by=tuple(calibrator.name for calibrator, _ in treatment.of(step)),
        notes=tuple(dict.fromkeys([*_bound_notes(over, treatment), *told])),
        norm_experts=mean_of(experts),
        factors=factors,
        rows_bounded=len(over),
        xi_asked=min(max(over), sys.float_info.max) if over else None,
    )


def _bound_notes(over: Sequence[float], treatment: Treatment) -> tuple[str, ...]:
    """What is told of rows whose factors were above the bound."""
    if not over:
        return ()
    rows = f" in {len(over)} rows" if len(over) > 1 else ""
    return (f"factors of up to {max(over):.3g} were bounded to {treatment.bound:g}{rows}",)


def _factors(step: Step, treatment: Treatment, tallies: Sequence[Tally]) -> tuple[Factor, ...]:
    """What each calibrator found, the last of them, if an earlier one was overruled."""
    items = [calibrator for calibrator, _ in treatment.of(step)]
    if not items:
        return ()
    free = [_joined(column) for column in zip(*(tally.free for tally in tallies), strict=True)]
    gated = [_joined(column) for column in zip(*(tally.gated for tally in tallies), strict=True)]
    return tuple(
        Factor(
            item.name,
            mean_of(before) or 0.0,
            mean_of(after) or 0.0,
            treatment.asked_for(step) if item.needs == "inputs" else (),
        )
        for item, before, after in zip(items[len(items) - len(free) :], free, gated, strict=True)
    )


def _joined(column: Sequence[Sequence[float]]) -> list[float]:
    return [value for values in column for value in values]


def _norm(squares: Sequence[Sequence[float]]) -> float:
    return math.sqrt(math.fsum(value for values in squares for value in values))


def _rows_of(tensor: Tensor, step: Step) -> Float[Tensor, "rows columns"]:
    """The layer's output rows; what has no rows is one."""
    return as_rows(_rows_first(tensor, step, 0)) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _squares(delta: Tensor, step: Step) -> Float[Tensor, "rows"]:
    """|delta|^2 of each row."""
    rows = _rows_of(delta, step)
    return row_dots(rows, rows)


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    return tuple(tensor.double().reshape(-1).tolist())


def _rows_first(tensor: Tensor, step: Step, axis: int) -> Tensor:
    """The layer with its output rows at `axis`, where a transposed matrix has its columns."""
    return tensor.transpose(axis, axis + 1) if step.kind == "transposed" else tensor


def spread(xi: Tensor, step: Step, delta: Tensor) -> Tensor:
    """A factor for each row in a shape that multiplies the layer."""
    if xi.ndim == 0:
        return xi
    shape = [1] * delta.ndim
    shape[1 if step.kind == "transposed" else 0] = -1
    return xi.reshape(shape)
