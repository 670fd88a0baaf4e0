"""Which tensors an adapter on a base holds, and why it has no place for the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from magmerge.checkpoints.adapters.base_names import WEIGHT, nameless
from magmerge.checkpoints.kinds import read_model_config
from magmerge.core.errors import StructureError
from magmerge.core.filters import matches
from magmerge.core.types import Naming, Step
from magmerge.core.validation import check_naming
from magmerge.engine.job import Job

BY_DEFAULT = frozenset({"matrix", "transposed", "convolution"})
"""The kinds of tensor that are adapted unless others are named."""
_VECTOR = "a bias, a norm or another vector, and adapters hold matrices"
_REASONS = {
    "vector": _VECTOR,
    "statistics": _VECTOR,
    "scalar": _VECTOR,
    "experts": "fused experts, and adapters hold modules",
    "other": "a parameter that is no layer of its own",
}
_UNASKED = {
    "embedding": "an embedding, which is adapted only if --target (targets=) names it",
    "head": "an output head, which is adapted only if --target (targets=) names it",
}
_DEPTHWISE = "a convolution of each channel by itself, which PEFT cannot adapt at every rank"


SCANNED = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})
"""Kinds of model some of whose layers are computed within a scan, past any adapter on them."""
INSIDE_SCAN = (".out_proj.weight", ".conv1d.weight")
_SCANNED = "a layer that this model computes within its scan, which PEFT refuses to adapt"


class _Reading(NamedTuple):
    """What decides which tensors an adapter holds; whether the base is of a kind in SCANNED."""

    targets: Sequence[str]
    naming: Naming
    scanned: bool


def mark_lost(job: Job, steps: Sequence[Step]) -> list[Step]:
    """The steps, with those that the adapter has no place for marked as lost, and why; and with the
    format of the factors, by default that of most of the base's weights.

    StructureError for targets that name nothing.
    """
    output, base = job.adapter_output, job.models.layout
    changed = [step for step in steps if step.action in ("merge", "mean", "average")]
    _check_targets(changed, output.targets)
    scanned = read_model_config(base).get("model_type") in SCANNED
    reading = _Reading(output.targets, check_naming(output.naming or "peft"), scanned)
    reasons = {
        step.spec.name: _reason_against(step, base.ties.get(step.spec.name), reading)
        for step in changed
    }
    held = [name for name, reason in reasons.items() if reason is None]
    without = nameless(base, held, reading.naming) if held else frozenset()
    reasons |= dict.fromkeys(without, f"it has no name under {reading.naming}")
    code = output.dtype or _most_common(job, changed)
    return [_marked(step, reasons.get(step.spec.name), code) for step in steps]


def _marked(step: Step, reason: str | None, code: str) -> Step:
    if step.action not in ("merge", "mean", "average"):
        return replace(step, action="carry") if step.action == "tie" else step
    if reason is not None:
        return replace(step, action="lose", reason=reason, calibrated=False)
    action = "mean" if step.action == "average" else step.action
    return replace(step, action=action, spec=replace(step.spec, dtype=code))


def _check_targets(steps: Sequence[Step], targets: Sequence[str]) -> None:
    """StructureError for patterns that name nothing, which are most likely misspelt."""
    names = [step.spec.name for step in steps]
    names += [name.removesuffix(WEIGHT) for name in names]
    faults = [
        f"the pattern {pattern!r} matches no tensor that could be adapted"
        for pattern in targets
        if not any(matches(name, [pattern]) for name in names)
    ]
    if faults:
        raise StructureError(
            faults,
            remedy="patterns match whole names: '*.q_proj', 'lm_head'; `magmerge inspect` lists "
            "the names",
        )


def _most_common(job: Job, steps: Sequence[Step]) -> str:
    """The format of most of the base's values in layers, or of all where it has no layer."""
    held = [step for step in steps if step.kind in BY_DEFAULT] or steps
    counts: Counter[str] = Counter()
    for step in held:
        counts[job.models.layout.specs[step.spec.name].dtype] += math.prod(step.spec.shape)
    return max(sorted(counts), key=lambda code: counts[code], default="F32")


def _reason_against(step: Step, twin: str | None, reading: _Reading) -> str | None:
    """Why an adapter of these targets does not hold this tensor; None if it does.

    `twin` is the tensor whose memory it shares in the base alone. Only PEFT adapts embeddings, and
    nothing but modules; others have names for the rows of fused projections too.
    """
    name, kind, shape, peft = step.spec.name, step.kind, step.spec.shape, reading.naming == "peft"
    if twin is not None:
        return f"it shares its memory with {twin} in the base, but not in the model"
    if kind in _REASONS:
        return _REASONS[kind]
    if peft and (not name.endswith(WEIGHT) or name == WEIGHT):
        return "a parameter that is no module's weight"
    if not peft and kind == "embedding":
        return "an embedding, which only PEFT's format has a place for"
    if kind == "transposed" and len(shape) != 2:
        return "a transposed convolution, which PEFT has no adapter for"
    if peft and reading.scanned and name.endswith(INSIDE_SCAN):
        return _SCANNED
    if step.whole is not None:
        return "a part of its rows only is merged"
    if reading.targets:
        stem = name.removesuffix(WEIGHT)
        chosen = matches(name, reading.targets) or matches(stem, reading.targets)
        return None if chosen else "no --target (targets=) names it"
    if kind == "convolution" and shape[1] == 1 < shape[0]:
        return _DEPTHWISE
    return None if kind in BY_DEFAULT else _UNASKED[kind]
