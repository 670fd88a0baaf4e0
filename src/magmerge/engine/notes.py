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
from magmerge.core.types import LayerRecord, Step
from magmerge.engine.job import Job, Work

CORRELATED = 0.1
"""Mean cosine of task vectors above which WSC's ellipsoid makes the factor too small."""

LARGE = 10.0
"""A factor above which the experts' task vectors may have cancelled, and rounding is what is left.
"""


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
    return (*notes, *_large_factors(records))


def _large_factors(records: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Layers that a calibration has made many times as large."""
    large = [record for record in records if record.calibrated_by and record.xi_max > LARGE]
    if not large:
        return ()
    worst = max(large, key=lambda record: record.xi_max)
    return (
        f"a factor above {LARGE:g} was found in {len(large)} layers ({printable(worst.name)}: "
        f"{worst.xi_max:.3g}): where the experts' changes cancel, it makes large what is left; "
        f"keep such a layer as merged with --skip {printable(worst.name)} (skip=)",
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
