"""reproduce(): find inputs and sensitive layers, merge, calibrate, measure; or go on with it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from magmerge.digests import DigestMemory
from magmerge.errors import MagmergeWarning
from magmerge.reproduction.asked import Asked, Wishes, check_wishes
from magmerge.reproduction.estimating import (
    Estimate,
    download_bytes,
    free_bytes,
    seconds_a_row,
)
from magmerge.reproduction.harness_measuring import HarnessMeasure
from magmerge.reproduction.inputs import Inputs, find_here, find_inputs, missing_models
from magmerge.reproduction.ledger import NAME, Ledger
from magmerge.reproduction.making import Workshop
from magmerge.reproduction.measuring import Machine, Measure, SuiteMeasure
from magmerge.reproduction.preparing import Ready, projects, ready, seeing_half, set_base
from magmerge.reproduction.rounds import measure_all
from magmerge.reproduction.sensitive import most_sensitive
from magmerge.reproduction.table import Reproduction, rows_of
from magmerge.reproduction.tiny import made_tiny
from magmerge.reproduction.variants import PAPER
from magmerge.run import Progress
from magmerge.suites import suite
from magmerge.whole_file import write_whole

TABLE = "table.md"


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
    most sensitive layers are found on `generic`, a source of samples (default: the pipeline's own);
    0 finds none. `tiny` runs the same path on small generated checkpoints and data. `keep` leaves
    the merged models in `out`/models. `announce` hears the estimate before the work begins.
    Raises MagmergeError's children.
    """
    asked = check_wishes(
        name,
        Wishes(tasks, methods, spaces, params, samples, seeds, alpha),
        folder=None if out is None else Path(out),
        inputs=None if inputs is None else Path(inputs),
        data=None if data is None else Path(data),
        generic=None if generic is None else str(generic),
        machine=Machine(threads, workers, memory, device, dtype),
        tiny=tiny,
    )
    if overwrite:
        (asked.folder / NAME).unlink(missing_ok=True)
    if tiny:
        asked = made_tiny(asked, progress)
    estimated = _estimate(asked)
    if announce is not None:
        announce(estimated)
    estimated.check(asked.folder)
    found = find_inputs(asked.pipeline, asked.tasks, asked.inputs, progress=progress)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", MagmergeWarning)
        shop, ledger = _prepared(asked, found, progress)
        measure_all(shop, ledger, asked.variants, keep=keep, progress=progress)
    if not keep:
        shutil.rmtree(shop.folder, ignore_errors=True)
    return _finished(asked, shop, ledger, _said(heard))


def _prepared(asked: Asked, found: Inputs, progress: Progress | None) -> tuple[Workshop, Ledger]:
    """Models under one naming, what they are measured on, the ledger, and the sensitive layers."""
    prepared, measure = _measured_by(asked, found, progress)
    ledger = Ledger.opened(asked.folder, _settings(asked, found), anew=False)
    if ledger.sensitive is None:
        model_class = measure.model_class
        ledger.sensitive = most_sensitive(asked, prepared, found.base, model_class, progress)
        ledger.save()
    shop = Workshop(
        prepared, measure, asked.folder / "models", asked.samples, ledger.sensitive, asked.params,
        asked.machine,
    )  # fmt: skip
    return shop, ledger


def _measured_by(asked: Asked, found: Inputs, progress: Progress | None) -> tuple[Ready, Measure]:
    pipeline, machine = asked.pipeline, asked.machine
    if pipeline.suite is None:
        entries, include = pipeline.experts, asked.include
        harness = HarnessMeasure(found.base, found.experts, entries, include, machine, progress)
        return ready(found.base, found.experts), harness
    base, projected = found.base, True
    if pipeline.kind == "vision":
        projected = projects(base, found.experts)
        base = seeing_half(base, asked.folder / "base", projected=projected)
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


def _settings(asked: Asked, found: Inputs) -> dict[str, Any]:
    """All that scores depend on: a run with other settings is another run."""
    memory = DigestMemory()
    digests = {
        role: sorted(memory.digest(file) for file in _weights(path))
        for role, path in {"base": found.base, **found.experts}.items()
    }
    memory.save()
    return {
        "pipeline": asked.pipeline.name,
        "tasks": list(asked.tasks),
        "samples": asked.samples,
        "alpha": asked.alpha,
        "generic": None if asked.tiny and asked.pipeline.kind != "vision" else asked.generic,
        "params": {method: dict(values) for method, values in asked.params.items()},
        "dtype": asked.machine.dtype or "float32",
        "data": None if asked.tiny or asked.data is None else str(asked.data.absolute()),
        "inputs": digests,
    }


def _weights(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))


def _estimate(asked: Asked) -> Estimate:
    missing = missing_models(asked.pipeline, asked.tasks, asked.inputs)
    rows = sum(asked.pipeline.experts[task].rows or 0 for task in asked.tasks)
    models = len(asked.variants) + 1
    base = find_here(asked.pipeline, "base", asked.inputs)
    seconds = None
    if base is not None:
        model_class = "CLIPVisionModelWithProjection" if asked.pipeline.kind == "vision" else None
        one = seconds_a_row(
            asked.pipeline.kind, base, model_class, asked.machine.dtype, asked.machine.device
        )
        seconds = one * (rows * models + rows)
    size = asked.pipeline.expert_gb * 10**9
    return Estimate(
        models, rows, rows * models + rows, download_bytes(asked.pipeline, missing),
        size * len(asked.variants), free_bytes(asked.folder), seconds,
    )  # fmt: skip


def _finished(asked: Asked, shop: Workshop, ledger: Ledger, said: tuple[str, ...]) -> Reproduction:
    from magmerge.report.reproduction_table import markdown

    tasks = tuple(task for expert in asked.tasks for task in shop.measure.tasks_of(expert))
    found = Reproduction(
        asked.pipeline,
        asked.folder,
        asked.tasks,
        tasks,
        rows_of(asked.pipeline, ledger, asked.variants, tasks),
        ledger.sensitive or (),
        said,
        asked.tiny,
        asked.samples,
    )
    write_whole(asked.folder / TABLE, markdown(found))
    return found


def _said(heard: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(one.message) for one in heard))
