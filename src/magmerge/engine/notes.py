"""What a reader should know of a result, beside what its models' headers tell."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from magmerge.checkpoints.donor import OPEN_CLIP_CONFIG, PIPELINE, companion_files
from magmerge.checkpoints.output.target import Target
from magmerge.core import dtypes
from magmerge.core.errors import MagmergeWarning, printable
from magmerge.core.parameters import BOUND
from magmerge.core.types import LayerRecord, Step
from magmerge.engine.job import Job, Work

CORRELATED = 0.1
"""Mean cosine of task vectors above which WSC's ellipsoid makes the factor too small."""

NAMED = 10
"""Layers that a warning names."""


def config_notes(job: Job, target: Target) -> tuple[str, ...]:
    """A folder without config.json holds tensors, but no model that transformers can load."""
    model = not (target.single or job.writes_adapter or job.takes)
    known = {"config.json", PIPELINE, OPEN_CLIP_CONFIG}
    if not model or known & companion_files(job.donor).keys():
        return ()
    return (
        f"{job.donor or 'a model in memory or in a single file'} has no config.json, so the result "
        "is tensors only; name the folder of a model with --donor (donor=)",
    )


def weakened(said: Mapping[str, Any], job: Job) -> tuple[str, ...]:
    """Adapters that task arithmetic's default adds less than in full: it is for whole models.
    `said` are the parameters before defaults were written out.
    """
    recipe, adapters = job.recipe, [e for e in job.models.experts if e.whole is None]
    if recipe.method != "task_arithmetic" or not adapters or "lambda" in said or recipe.calibrate:
        return ()
    return (
        f"each adapter is added at {recipe.params['lambda']} of its strength (lambda, the method's "
        "default for whole models): add them in full with --set lambda=1, or say a strength for "
        f"each, --expert {adapters[0].source}=0.8",
    )


def correlations(job: Job, records: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Where task vectors are too alike for what a calibrator assumes of them."""
    notes = []
    for item, bound in job.stages.treatment.calibrators:
        if not item.near_orthogonal(**bound):
            continue
        seen = [r for r in records if r.cosine is not None and item.name in r.calibrated_by]
        high = [r for r in seen if (r.cosine or 0.0) > CORRELATED]
        low = [r for r in seen if (r.cosine or 0.0) < -CORRELATED]
        if len(low) > len(seen) / 2:
            notes.append(
                f"the experts' task vectors point away from each other in {len(low)} layers (mean "
                f"cosine below -{CORRELATED}); is {job.recipe.base} really their base?"
            )
        if high:
            worst = max(high, key=lambda record: record.cosine or 0.0)
            notes.append(
                f"{item.name} assumes near-orthogonal task vectors, but in {len(high)} of "
                f"{len(seen)} layers their mean cosine is above {CORRELATED} "
                f"({printable(worst.name)}: {worst.cosine:.2f}), so xi is too small there; "
                f"consider target=sphere (--set {item.name}.target=sphere)"
            )
    return (*notes, *_large_factors(job, records))


def _large_factors(job: Job, records: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Layers that a calibration would make many times as large, the largest first."""
    bound, off = job.recipe.bound, job.recipe.bound == "off"
    line = BOUND if bound == "off" else bound
    asked = {r.name: r.xi_max if off else r.xi_asked or 0.0 for r in records if r.calibrated_by}
    large = sorted((name for name in asked if asked[name] > line), key=lambda n: -asked[n])
    if not large:
        return ()
    shown = ", ".join(f"{printable(name)}: {asked[name]:.3g}" for name in large[:NAMED])
    more = f" and {len(large) - NAMED} more" if len(large) > NAMED else ""
    if off:
        deed, remedy = "it makes large what is left", "drop --no-bound (bound=off), or "
    else:
        deed = f"it would make large what is left, so {line:g} was taken"
        remedy = "take it all the same with --no-bound (bound=off), or "
    return (
        f"a factor above {line:g} was found in {len(large)} layers ({shown}{more}): where the "
        f"experts' changes cancel, {deed}; {remedy}keep such a layer as merged with --skip "
        f"{printable(large[0])} (skip=)",
    )


def warn(notes: Sequence[str]) -> None:
    """Warn of each in Python's own way."""
    for note in notes:
        warnings.warn(note, MagmergeWarning, stacklevel=4)


def carried_note(work: Work, step: Step, counts: Iterable[tuple[int, int]]) -> str | None:
    """What to say of a carried tensor that is not finite: attention masks hold infinity."""
    totals = [sum(column) for column in zip(*counts, strict=True)] or [0, 0]
    if work.job.takes or not any(totals) or dtypes.width(step.spec.dtype) == 1:
        return None
    name, source = printable(step.spec.name), work.layout.source
    bad = f"{totals[0]} NaN and {totals[1]} infinite of {math.prod(step.spec.shape)} values"
    return f"{name} of {source} is carried over with {bad}"
