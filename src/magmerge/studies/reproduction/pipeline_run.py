"""reproduce(): a paper's pipeline from published checkpoints to its table; or on from a stop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from magmerge.core.errors import MagmergeWarning
from magmerge.core.machine import Progress
from magmerge.core.whole_file import replace_whole
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
    find_models,
    ingredients,
    projects,
    seeing_half,
)
from magmerge.studies.reproduction.reproduction_table import Reproduction, markdown, rows_of
from magmerge.studies.reproduction.run_estimate import RunEstimate, estimate
from magmerge.studies.reproduction.run_scores import RunScores, check_place, settings_of
from magmerge.studies.reproduction.run_spec import RunSpec, request_of
from magmerge.studies.reproduction.sensitive_layers import most_sensitive

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
    request = request_of(name, out, **options)
    check_place(request)
    forecast = estimate(request)
    if announce is not None:
        announce(forecast)
    forecast.check(request.folder)
    models = find_models(request.pipeline, request.tasks, request.inputs, progress=progress)
    ledger = RunScores.opened(request.folder, settings_of(request, models), anew=overwrite)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", MagmergeWarning)
        try:
            parts, measure = _measure_of(request, models, progress, anew=overwrite)
            layers = ledger.results.sensitive
            if layers is None:
                kind = measure.model_class
                layers = most_sensitive(request, parts, models.base, kind, progress)
                ledger.results.sensitive = layers
                ledger.save()
            measure_all(RunMerges(request, parts, measure, layers), ledger, progress)
        finally:
            ledger.say([str(warning.message) for warning in heard])
    result = _result(request, measure, ledger)
    for warning in result.warnings:
        warnings.warn(warning, MagmergeWarning, stacklevel=2)
    return result


def _measure_of(
    request: RunSpec, models: PipelineModels, progress: Progress | None, *, anew: bool
) -> tuple[Ingredients, TaskMeasure]:
    """Models under one naming, and what they are measured on."""
    pipeline, machine, base, projected = request.pipeline, request.machine, models.base, True
    if pipeline.suite is None:
        measure = HarnessMeasure(models, pipeline, machine, progress)
        return ingredients(base, models.experts), measure
    if pipeline.kind == "vision":
        projected = projects(base, models.experts)
        base = seeing_half(base, request.folder / BASE, projected=projected, anew=anew)
    written = suite(
        pipeline.suite,
        request.folder / "suite",
        base=models.base,
        data=request.data,
        tasks=request.tasks,
        experts=models.experts,
        projection="model" if projected else "base",
        overwrite=True,
        progress=progress,
    )
    if base != models.base:
        # Figures of this suite are drawn of what is merged here.
        content = yaml.safe_load(written.file.read_text(encoding="utf-8"))
        content["base"] = str(base.resolve())
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        replace_whole(written.file, f"{MARK}\n{text}")
    parts = ingredients(base, models.experts)
    return parts, SuiteMeasure(written.file, parts, machine, progress)


def _result(request: RunSpec, measure: TaskMeasure, ledger: RunScores) -> Reproduction:
    columns = {expert: measure.tasks_of(expert) for expert in request.tasks}
    result = Reproduction(
        pipeline=request.pipeline,
        folder=request.folder,
        columns=columns,
        rows=rows_of(request, ledger, columns),
        sensitive=ledger.results.sensitive or (),
        alpha=request.alpha,
        warnings=tuple(ledger.results.warnings),
        samples=request.samples,
    )
    replace_whole(request.folder / TABLE, markdown(result))
    return result
