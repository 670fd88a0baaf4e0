"""reproduce(): a paper's pipeline from published checkpoints to its table; or on from a stop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from magmerge.core.errors import MagmergeWarning
from magmerge.core.machine import Progress
from magmerge.core.plain_yaml import yaml_of
from magmerge.core.whole_file import replace_whole
from magmerge.evaluation import open_suite
from magmerge.evaluation.calibration_samples import calibration_split
from magmerge.evaluation.sensitivity import sensitivity
from magmerge.evaluation.suites import suite
from magmerge.evaluation.suites.suite_folder import MARK
from magmerge.studies.reproduction.merges import (
    HarnessMeasure,
    RunMerges,
    SuiteMeasure,
    TaskMeasure,
    measure_all,
)
from magmerge.studies.reproduction.pipeline_models import (
    Ingredients,
    PipelineModels,
    check_inputs,
    find_models,
    ingredients,
    projects,
    vision_half,
)
from magmerge.studies.reproduction.reproduction_table import Reproduction, markdown, rows_of
from magmerge.studies.reproduction.run_estimate import RunEstimate, estimate
from magmerge.studies.reproduction.run_scores import RunScores, check_place, settings_of
from magmerge.studies.reproduction.run_spec import RunOptions, RunSpec, request_of

TABLE, BASE = "table.md", "base"
"""Names in the folder of a run."""


def reproduce(
    name: str,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    announce: Callable[[RunEstimate], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Reproduction:
    """Run a pipeline from published checkpoints to its table, or go on with one that was stopped.

    `name` is a pipeline: clip-b32, clip-b16, clip-l14, bert, glue or llama, or a YAML file with one
    of your own. Everything is kept in the folder `out` (default magmerge-NAME): results.json after
    every task, table.md, the suite. `out` must be a folder of its own; `overwrite` gives up what a
    run in it has found. `announce` hears the estimate before the work begins. The options are:

    - `inputs`, `data`: models are looked for in the folder `inputs`, in the hub's cache, then on
      the hub; data in the folder `data`, else by name.
    - `tasks`, `methods`, `params` (by method); `spaces`: none, wsc, fsc, dsc, and the controls
      global and shuffled; `seeds` draws of `samples` (8) unlabelled samples a task for each.
    - `alpha` (10) most sensitive layers are found on `generic_samples` of `generic`, a source of
      samples (default: 256 of the pipeline's own); 0 finds none.
    - `keep` leaves the merged models in `out`/models; `threads`, `workers`, `memory` (8GB),
      `device`, `dtype`: what it runs on. `allow_code` allows task files that a pipeline brings.

    Raises MagmergeError's children.
    """
    request = request_of(name, out, RunOptions(progress=progress, **options))
    check_place(request)
    check_inputs(request.inputs)
    forecast = estimate(request)
    if announce is not None:
        announce(forecast)
    forecast.check(request.folder)
    models = find_models(request.pipeline, request.tasks, request.inputs, request.machine)
    ledger = RunScores.open(request.folder, settings_of(request, models), anew=overwrite)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always", MagmergeWarning)
        try:
            parts, measure = _measure_of(request, models, anew=overwrite)
            layers = ledger.results.sensitive
            if layers is None:
                layers = most_sensitive(request, parts, models.base, measure.model_class)
                ledger.results.sensitive = layers
                ledger.save()
            measure_all(RunMerges(request, parts, measure, layers), ledger)
        finally:
            ledger.say([str(warning.message) for warning in messages])
    result = _result(request, measure, ledger)
    for warning in result.warnings:
        warnings.warn(warning, MagmergeWarning, stacklevel=2)
    return result


def _measure_of(
    request: RunSpec, models: PipelineModels, *, anew: bool
) -> tuple[Ingredients, TaskMeasure]:
    """Models under one naming, and what they are measured on."""
    pipeline, base, projected = request.pipeline, models.base, True
    if pipeline.suite is None:
        return ingredients(base, models.experts), HarnessMeasure(models, request)
    if pipeline.kind == "vision":
        projected = projects(base, models.experts)
        base = vision_half(base, request.folder / BASE, projected=projected, anew=anew)
    written = suite(
        pipeline.suite,
        request.folder / "suite",
        base=models.base,
        data=request.data,
        tasks=request.tasks,
        experts=models.experts,
        projection="model" if projected else "base",
        overwrite=True,
        progress=request.machine.progress,
    )
    if base != models.base:
        # Figures of this suite are drawn of what is merged here.
        content = yaml.safe_load(written.file.read_text(encoding="utf-8"))
        content["base"] = str(base.resolve())
        text = yaml_of(content)
        replace_whole(written.file, f"{MARK}\n{text}")
    parts = ingredients(base, models.experts)
    return parts, SuiteMeasure(written.file, parts, request)


def _result(request: RunSpec, measure: TaskMeasure, ledger: RunScores) -> Reproduction:
    columns = {expert: measure.tasks_of(expert) for expert in request.tasks}
    result = Reproduction(
        pipeline=request.pipeline,
        folder=request.folder,
        columns=columns,
        rows=rows_of(request, ledger, columns),
        sensitive=ledger.results.sensitive or (),
        alpha=request.options.alpha,
        warnings=tuple(ledger.results.warnings),
        samples=request.options.samples,
    )
    replace_whole(request.folder / TABLE, markdown(result))
    return result


GENERIC_SUITE, GENERIC_TASK = "vision14", "cifar100"
"""CIFAR-100 by zero-shot accuracy: arXiv:2512.19320."""


def most_sensitive(
    request: RunSpec, parts: Ingredients, base: Path, model_class: str | None
) -> tuple[str, ...]:
    """The `alpha` layers whose longer task vector does most harm, worst first.

    `base` is the whole CLIP where `parts` has its seeing half. Scored by accuracy where there is
    a head for the generic set, else by how far the last features drift.
    """
    if request.options.alpha == 0:
        return ()
    scored: dict[str, Any]
    if request.options.generic is not None:
        source = str(request.options.generic)
        scored = {"data": source, "samples": {"samples": request.generic_samples}}
    elif request.pipeline.kind == "vision":
        scored = _zero_shot(request, base, model_class)
    else:
        generic = request.pipeline.generic
        options = {"samples": request.generic_samples, "split": generic.split}
        scored = {"data": generic.source, "samples": options}
    ranking = sensitivity(
        base=parts.base,
        experts=dict(parts.experts),
        alpha=request.options.alpha,
        ignore=parts.absent,
        model=model_class,
        threads=request.machine.threads,
        device=request.machine.device,
        progress=request.machine.progress,
        **scored,
    )
    return ranking.sensitive


def _zero_shot(request: RunSpec, base: Path, model_class: str | None) -> dict[str, Any]:
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
        progress=request.machine.progress,
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
