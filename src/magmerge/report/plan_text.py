"""What a plan says first: what comes in, what goes out, and what it takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.text import Text

from magmerge.core.dtypes import spoken_size
from magmerge.report.terminal_tables import paragraph, plan_summary

if TYPE_CHECKING:
    from magmerge.engine.document_plan import PlannedDocument
    from magmerge.engine.trial import Trial


def document_text(document: PlannedDocument) -> Text:
    """The summary of a document's plan; why there is none, where there is none."""
    recipe, plan = document.recipe, document.plan
    steps = [recipe.method or ("calibration" if recipe.merged else "one model as it is")]
    steps += [calibration.method for calibration in recipe.calibrate]
    name = f"{recipe.name}: " if recipe.name else ""
    lines = [f"{name}{' + '.join(steps)}"]
    if plan is None:
        lines.append(f"not planned: {document.reason}; its recipe is sound as far as can be told")
        return paragraph("\n".join(lines))
    for entry in document.inputs:
        held = f"{entry.tensors} tensors, {spoken_size(entry.size)}"
        lines.append(f"reads {entry.role} {entry.source} ({held})")
    text = paragraph("\n".join(lines) + "\n") + plan_summary(plan)
    trial = document.trial
    return text if trial is None else text + paragraph(f"\n{trial_text(trial)}")


def trial_text(trial: Trial) -> str:
    """What a trial measured, and what it makes of the whole."""
    return (
        f"time about {_span(trial.least, trial.most)} for {spoken_size(trial.total)} of tensors, "
        f"without writing, digests and samples: {trial.tensors} tensors "
        f"({spoken_size(trial.measured)}) took {trial.seconds:.1f} s in a trial"
    )


def _span(least: float, most: float) -> str:
    """Both ends in the unit of the later one."""
    units = ((90, "s", 1), (5400, "min", 60), (math.inf, "h", 3600))
    unit, size = next((unit, size) for limit, unit, size in units if most < limit)
    digits = 0 if most / size >= 10 else 1
    return f"{least / size:.{digits}f} to {most / size:.{digits}f} {unit}"
