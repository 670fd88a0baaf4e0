"""The heart: one tensor in, one tensor out. Pure functions of one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from magmerge.calibrators.gate import gate
from magmerge.linalg import mean_pairwise_cosine, norm
from magmerge.types import Calibrator, LayerRecord, Method, Step


@dataclass(frozen=True, slots=True)
class Merged:
    """One layer's merge: its task vector, and its weight where the method makes that itself."""

    delta: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a layer is calibrated: the calibrators in their order, each with its keywords."""

    calibrators: Sequence[tuple[Calibrator, Mapping[str, Any]]] = field(default=())
    gated: bool = True


def merge_layer(
    method: Method,
    keywords: Mapping[str, Any],
    base: Float[Tensor, "*shape"],
    tensors: Float[Tensor, "K *shape"],
) -> Merged:
    """Apply `method` to the experts' task vectors, or to their weights if it acts on those."""
    result = method.fn(tensors, **keywords)
    if method.acts_on == "weights":
        return Merged(result - base, result)
    return Merged(result)


def calibrate_layer(
    step: Step,
    treatment: Treatment,
    base: Float[Tensor, "*shape"],
    deltas: Float[Tensor, "K *shape"],
    merged: Merged,
) -> tuple[Float[Tensor, "*shape"], LayerRecord]:
    """The layer's new weight, base + xi * delta, and the record of what was done.

    A calibrator that gives a new task vector instead of a factor replaces delta. Each calibrator
    sees what those before it made. Non-matrices pass with xi = 1.
    """
    delta, weight = merged.delta, merged.weight
    xi = torch.ones((), dtype=delta.dtype, device=delta.device)
    free = 1.0
    calibrators = [
        (calibrator, keywords)
        for calibrator, keywords in treatment.calibrators
        if step.calibrated and step.kind in calibrator.acts_on
    ]
    for calibrator, keywords in calibrators:
        rows = _rows_first(deltas, step, 1), _rows_first(_spread(xi, step) * delta, step, 0)
        found = calibrator.fn(*rows, **keywords)
        if calibrator.returns == "delta":
            delta, weight, xi = _rows_first(found, step, 0), None, torch.ones_like(xi.mean())
            free = 1.0
        else:
            bounded = treatment.gated and calibrator.gated
            xi = xi * (gate(found, step.sensitive) if bounded else found)
            free *= float(found.mean())
    cosine = None
    if calibrators and len(deltas) > 1:
        cosine = mean_pairwise_cosine(_rows_first(deltas, step, 1))
    result = apply_factor(base, delta, _spread(xi, step), weight)
    record = LayerRecord(
        name=step.spec.name,
        action=step.action,
        kind=step.kind,
        sensitive=step.sensitive,
        xi=float(xi.mean()),
        xi_min=float(xi.min()),
        xi_max=float(xi.max()),
        xi_free=free,
        norm_before=norm(merged.delta),
        norm_after=norm(_spread(xi, step) * delta),
        cosine=cosine,
        calibrated_by=tuple(calibrator.name for calibrator, _ in calibrators),
    )
    return result, record


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


def _rows_first(tensor: Tensor, step: Step, axis: int) -> Tensor:
    """The layer with its output rows at `axis`, where a transposed matrix has its columns."""
    return tensor.transpose(axis, axis + 1) if step.kind == "transposed" else tensor


def _spread(xi: Tensor, step: Step) -> Tensor:
    """A factor for each row in a shape that multiplies the layer."""
    if xi.ndim == 0:
        return xi
    shape = [1] * len(step.spec.shape)
    shape[1 if step.kind == "transposed" else 0] = -1
    return xi.reshape(shape)
