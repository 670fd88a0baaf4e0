"""The layers that a pipeline's merges may only shrink, found on a generic set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magmerge.core.machine import Progress
from magmerge.evaluation import open_suite
from magmerge.evaluation.calibration_samples import calibration_split
from magmerge.evaluation.sensitivity import sensitivity
from magmerge.evaluation.suites import suite
from magmerge.studies.reproduction.pipeline_models import Ingredients
from magmerge.studies.reproduction.run_spec import RunSpec

GENERIC_SUITE, GENERIC_TASK = "vision14", "cifar100"
"""CIFAR-100 by zero-shot accuracy: arXiv:2512.19320."""


def most_sensitive(
    request: RunSpec,
    parts: Ingredients,
    base: Path,
    model_class: str | None,
    progress: Progress | None,
) -> tuple[str, ...]:
    """The `alpha` layers whose longer task vector does most harm, worst first.

    `base` is the whole CLIP where `parts` has its seeing half. Scored by accuracy where there is
    a head for the generic set, else by how far the last features drift.
    """
    if request.alpha == 0:
        return ()
    scored: dict[str, Any]
    if request.generic is not None:
        scored = {"data": request.generic, "samples": {"samples": request.generic_samples}}
    elif request.pipeline.kind == "vision":
        scored = _zero_shot(request, base, model_class, progress)
    else:
        generic = request.pipeline.generic
        options = {"samples": request.generic_samples, "split": generic.split}
        scored = {"data": generic.source, "samples": options}
    ranking = sensitivity(
        base=parts.base,
        experts=dict(parts.experts),
        alpha=request.alpha,
        ignore=parts.lacking,
        model=model_class,
        threads=request.machine.threads,
        device=request.machine.device or "cpu",
        progress=progress,
        **scored,
    )
    return ranking.sensitive


def _zero_shot(
    request: RunSpec, base: Path, model_class: str | None, progress: Progress | None
) -> dict[str, Any]:
    """The generic set of images with its zero-shot head, from its training split."""
    bare = model_class == "CLIPVisionModel"
    written = suite(
        GENERIC_SUITE,
        request.folder / "generic",
        base=base,
        data=request.data,
        tasks=[GENERIC_TASK],
        projection="base" if bare else "model",
        overwrite=True,
        progress=progress,
    )
    opened = open_suite(written.file)
    entry = opened.entry.tasks[GENERIC_TASK]
    source, split = calibration_split(opened, GENERIC_TASK)
    options = {"samples": request.generic_samples, "split": split, "text_field": entry.text_field}
    return {
        "data": source,
        "score": "accuracy",
        "label_field": entry.label_field,
        "classes": entry.classes,
        "head": written.path / str(entry.head),
        "features": opened.entry.features(entry),
        "samples": options,
    }
