"""Plans, results and checkpoints as tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from magmerge.core.dtypes import torch_name
from magmerge.core.tables import Table

if TYPE_CHECKING:
    from magmerge.core.types import Plan
    from magmerge.engine.inspection import CheckpointInfo
    from magmerge.engine.result import Result

RECORD = (
    *("name", "xi", "xi_min", "xi_max", "xi_free", "norm_before", "norm_after"),
    *("norm_experts", "cosine", "calibrated_by"),
)


def result_table(result: Result) -> Table:
    """A row for each merged layer; for an adapter one for each module."""
    modules = [asdict(module) for module in getattr(result, "modules", ())]
    if modules:
        keys = [key for key in modules[0] if key not in ("shape", "norms")]
        rows = tuple(tuple(module.get(key) for key in keys) for module in modules)
        return Table(repr(result), tuple(keys), rows)
    rows = tuple(
        tuple(
            " + ".join(value) if isinstance(value := getattr(record, key), tuple) else value
            for key in RECORD
        )
        for record in result.records
    )
    return Table(repr(result), RECORD, rows)


def plan_table(plan: Plan) -> Table:
    """A row for each tensor: shape, dtype, what happens to it, and why."""
    rows = tuple(
        (
            step.spec.name,
            "x".join(map(str, step.spec.shape)) or "scalar",
            torch_name(step.spec.dtype),
            f"{step.action}{' + calibrate' if step.calibrated else ''}",
            step.reason,
        )
        for step in plan.steps
    )
    title = f"plan: {len(rows)} tensors, {plan.disk:,} bytes, peak memory {plan.memory:,} bytes"
    return Table(title, ("tensor", "shape", "dtype", "action", "why"), rows)


def checkpoint_table(info: CheckpointInfo) -> Table:
    """A row for each tensor of a checkpoint."""
    rows = tuple(
        (t.name, "x".join(map(str, t.shape)) or "scalar", torch_name(t.dtype), t.kind, t.size)
        for t in info.tensors
    )
    title = f"{info.source}: {info.parameters:,} parameters"
    return Table(title, ("tensor", "shape", "dtype", "kind", "bytes"), rows)
