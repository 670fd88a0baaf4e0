"""reproduce(): find inputs and sensitive layers, merge, calibrate, measure; or go on with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from magmerge.errors import MagmergeWarning
from magmerge.machine import Progress
from magmerge.reproduction.asked import Asked, Wishes, check_wishes
from magmerge.reproduction.estimating import (
    GB,
    Estimate,
    download_bytes,
    free_bytes,
    seconds_a_row,
)
from magmerge.reproduction.harness_measuring import HarnessMeasure
from magmerge.reproduction.inputs import Inputs, find_here, find_inputs, missing_models
from magmerge.reproduction.ledger import Ledger, rows_measured
from magmerge.reproduction.making import Workshop
from magmerge.reproduction.measuring import Machine, Measure, SuiteMeasure
from magmerge.reproduction.places import check_place, settings_of
from magmerge.reproduction.preparing import Ready, projects, ready, seeing_half, set_base
from magmerge.reproduction.rounds import measure_all, models_a_round
from magmerge.reproduction.sensitive import most_sensitive
from magmerge.reproduction.table import ZERO_SHOT, Reproduction, rows_of
from magmerge.reproduction.tiny import made_tiny
from magmerge.reproduction.variants import PAPER
from magmerge.suites import suite
from magmerge.whole_file import replace_whole

TABLE, BASE, MODELS = "table.md", "base", "models"
"""Names in the folder of a run."""


def reproduce(
    name: str,
    out: str | Path | None = None,
    *,
    inputs: str | Path | None = None,
    data: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    spaces: Sequence[str] = PAPER,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    samples: int = 8,
    seeds: int = 1,
    alpha: int = 10,
    generic: str | Path | None = None,
    generic_samples: int | None = None,
    tiny: bool = False,
    keep: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    workers: int | None = None,
    memory: str | int = "8GB",
    device: str = "cpu",
    dtype: str | None = None,
    announce: Callable[[Estimate], None] | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Run a pipeline from published checkpoints to its table, or go on with one that was stopped.

    `name` is a pipeline: clip-b32, clip-b16, clip-l14, bert, glue or llama. Everything is kept in
    the folder `out` (default magmerge-NAME): results.json after every task, table.md, the suite.
    Models are looked for in the folder `inputs`, in the hub's cache, then on the hub; data in the
    folder `data`, else by name. `spaces` are none, wsc, fsc, dsc, and the controls global and
    shuffled; `seeds` draws of `samples` unlabelled samples a task are made for each. The `alpha`
    most sensitive layers are found on `generic_samples` of `generic`, a source of samples (default:
    256 of the pipeline's own); 0 finds none. `tiny` runs the same path on small generated
    checkpoints and data. `keep` leaves the merged models in `out`/models. `announce` hears the
    estimate before the work begins. `out` must be a folder of its own; `overwrite` gives up what a
    run in it has found. Raises MagmergeError's children.
    """
    asked = check_wishes(
        name,
        Wishes(tasks, methods, spaces, params, samples, seeds, alpha),
        folder=None if out is None else Path(out),
        inputs=None if inputs is None else Path(inputs),
        data=None if data is None else Path(data),
        generic=None if generic is None else str(generic),
        generic_samples=generic_samples,
        machine=Machine(threads, workers, memory, device, dtype),
        tiny=tiny,
    )
    check_place(asked)
    if tiny:
        asked = made_tiny(asked, progress, anew=overwrite)
    estimated = _estimate(asked, keep)
    if announce is not None:
        announce(estimated)
    estimated.check(asked.folder)
    found = find_inputs(asked.pipeline, asked.tasks, asked.inputs, progress=progress)
    ledger = Ledger.opened(asked.folder, settings_of(asked, found), anew=overwrite)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", MagmergeWarning)
        try:
            shop = _prepared(asked, found, ledger, progress, anew=overwrite)
            measure_all(shop, ledger, asked.variants, keep=keep, progress=progress)
        finally:
            ledger.say([str(one.message) for one in heard])
    finished = _finished(asked, shop, ledger)
    for told in finished.warnings:
        warnings.warn(told, MagmergeWarning, stacklevel=2)
    return finished


def _prepared(
    asked: Asked, found: Inputs, ledger: Ledger, progress: Progress | None, *, anew: bool
) -> Workshop:
    """Models under one naming, what they are measured on, and the sensitive layers."""
    prepared, measure = _measured_by(asked, found, progress, anew=anew)
    if ledger.sensitive is None:
        model_class = measure.model_class
        ledger.sensitive = most_sensitive(asked, prepared, found.base, model_class, progress)
        ledger.save()
    return Workshop(
        prepared, measure, asked.folder / MODELS, asked.samples, ledger.sensitive, asked.params,
        asked.machine,
    )  # fmt: skip


def _measured_by(
    asked: Asked, found: Inputs, progress: Progress | None, *, anew: bool
) -> tuple[Ready, Measure]:
    pipeline, machine = asked.pipeline, asked.machine
    if pipeline.suite is None:
        entries, include = pipeline.experts, asked.include
        harness = HarnessMeasure(found.base, found.experts, entries, include, machine, progress)
        return ready(found.base, found.experts), harness
    base, projected = found.base, True
    if pipeline.kind == "vision":
        projected = projects(base, found.experts)
        base = seeing_half(base, asked.folder / BASE, projected=projected, anew=anew)
    made = suite(
        pipeline.suite,
        asked.folder / "suite",
        base=found.base,
        data=asked.data,
        tasks=asked.tasks,
        experts=found.experts,
        projection="model" if projected else "base",
        overwrite=True,
        progress=progress,
    )
    if base != found.base:
        set_base(made.file, base)
    prepared = ready(base, found.experts)
    return prepared, SuiteMeasure(made.file, prepared, machine, progress)


def _estimate(asked: Asked, keep: bool) -> Estimate:
    """What is left to do, as far as it can be told from what is here."""
    pipeline, machine = asked.pipeline, asked.machine
    missing = missing_models(pipeline, asked.tasks, asked.inputs)
    known = rows_measured(asked.folder)
    rows = sum(pipeline.experts[task].rows or 0 for task in asked.tasks)
    left = [one for one in asked.variants if one.name not in known]
    passes = rows * len(left) + (0 if ZERO_SHOT in known else 2 * rows)
    base, one = find_here(pipeline, "base", asked.inputs), None
    if base is not None and passes:
        one = seconds_a_row(pipeline.kind, base, machine.dtype, machine.device)
    size = int(pipeline.expert_gb * GB)
    together = len(left) if keep else min(len(left), models_a_round(machine.memory, size))
    return Estimate(
        len(left), rows, passes, download_bytes(pipeline, missing), size * together,
        free_bytes(asked.folder), None if one is None else one * passes,
    )  # fmt: skip


def _finished(asked: Asked, shop: Workshop, ledger: Ledger) -> Reproduction:
    from magmerge.report.reproduction_table import markdown

    columns = {expert: shop.measure.tasks_of(expert) for expert in asked.tasks}
    found = Reproduction(
        pipeline=asked.pipeline,
        folder=asked.folder,
        columns=columns,
        rows=rows_of(asked, ledger, columns),
        sensitive=ledger.sensitive or (),
        alpha=asked.alpha,
        warnings=tuple(ledger.said),
        tiny=asked.tiny,
        samples=asked.samples,
    )
    replace_whole(asked.folder / TABLE, markdown(found))
    return found
