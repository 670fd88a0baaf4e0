"""The merges of a pipeline, made as many as memory holds, measured task by task, and removed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.output.own_files import foreign
from magmerge.core.dtypes import nbytes
from magmerge.core.errors import ParameterError
from magmerge.core.machine import Progress
from magmerge.data.rows import Inputs, Preparation, SampleDraw
from magmerge.data.sources import has_splits
from magmerge.engine.result import Result
from magmerge.evaluation import open_suite
from magmerge.evaluation.calibration_samples import SampleSource, calibration_split, sample_source
from magmerge.evaluation.harness import LmEval, run_harness
from magmerge.evaluation.scores import TaskScore
from magmerge.evaluation.task_suite import Suite
from magmerge.pipeline.merge import merge
from magmerge.studies.reproduction.pipeline_models import Ingredients, PipelineModels
from magmerge.studies.reproduction.reproduction_table import EXPERTS, ZERO_SHOT
from magmerge.studies.reproduction.run_scores import RunScores
from magmerge.studies.reproduction.run_spec import CONTROLS, DRAWN, RunSpec, Variant, control

LONGEST = 512
"""Tokens of a sample for a language model, at most."""


class SuiteMeasure:
    """The tasks of one suite file; a task of an expert may have several entries (metrics)."""

    def __init__(self, path: Path, parts: Ingredients, request: RunSpec) -> None:
        self.suite: Suite = open_suite(path)
        self._request = request
        # Models as they are measured; what an expert lacks is the base's.
        self.base, self.expert = parts.weights_of_base(), parts.weights

    @property
    def model_class(self) -> str | None:
        """The class of transformers that runs the models."""
        return self.suite.entry.model.class_

    def tasks_of(self, expert: str) -> tuple[str, ...]:
        """The entries that belong to an expert's task: its own, and those named after it."""
        return tuple(
            name for name in self.suite.tasks if name == expert or name.startswith(f"{expert}-")
        )

    def samples(self, expert: str) -> SampleSource:
        """Unlabelled samples of an expert's task, never of the test split."""
        return sample_source(self.suite, expert, *calibration_split(self.suite, expert))

    def measure(self, models: Mapping[str, Any], expert: str) -> dict[str, dict[str, TaskScore]]:
        """All models on an expert's tasks, in one pass over their data where memory allows."""
        tasks, progress = self.tasks_of(expert), _task_progress(self._request, expert)
        scores = self.suite.evaluate_all(
            models, tasks=tasks, **{**asdict(self._request.hardware), "progress": progress}
        )
        return {name: {task: own[task] for task in tasks} for name, own in scores.items()}


class HarnessMeasure:
    """The harness's tasks that a pipeline's entries name; every model is a folder."""

    model_class: str | None = "AutoModelForCausalLM"

    def __init__(self, models: PipelineModels, request: RunSpec) -> None:
        self._request, self._pipeline = request, request.pipeline
        self.base, self.expert = models.base, models.experts.__getitem__

    def tasks_of(self, expert: str) -> tuple[str, ...]:
        """The harness's tasks of an expert's skill."""
        return self._pipeline.experts[expert].tasks

    def samples(self, expert: str) -> SampleSource:
        """Unlabelled samples of an expert's skill, never of the test split."""
        entry = self._pipeline.experts[expert]
        if entry.data is None:
            raise ParameterError(
                f"nothing tells where samples of {expert} come from",
                remedy="leave fsc and dsc out of --spaces",
            )
        split = "train" if has_splits(entry.data) else None
        draw = SampleDraw(expert, field=entry.text_field, split=split)
        return SampleSource(entry.data, draw, Preparation(max_length=LONGEST))

    def measure(self, models: Mapping[str, Any], expert: str) -> dict[str, dict[str, TaskScore]]:
        """Each model on the tasks of a skill, by each task's first metric."""
        rows: dict[str, dict[str, TaskScore]] = {name: {} for name in models}
        for task in self.tasks_of(expert):
            scores = run_harness(
                list(models.values()),
                LmEval((task,), include=self._pipeline.include),
                replace(self._request.hardware, progress=_task_progress(self._request, task)),
                # A pipeline with task files is refused without the user's word.
                allow_code=True,
            )
            for name, result in zip(models, scores, strict=True):
                rows[name][task] = result.tasks[0]
        return rows


def plain(calibration: str) -> dict[str, Any]:
    """A calibration as the paper has it: from all samples, and not checked."""
    looks_at_inputs = calibration in ("fsc", "dsc")
    return {"method": calibration, "params": {"check": "off"} if looks_at_inputs else {}}


TaskMeasure: TypeAlias = SuiteMeasure | HarnessMeasure


def _task_progress(request: RunSpec, task: str) -> Progress | None:
    """Progress that names the task, of the forward passes alone."""
    if (progress := request.machine.progress) is None:
        return None

    def tell(label: str, done: int, total: int) -> None:
        if label == "evaluating":
            progress(f"measuring {task}", done, total)

    return tell


MODELS = "models"
"""The folder of merged models in that of a run."""


@dataclass(frozen=True, slots=True)
class RunMerges:
    """What every merge of a pipeline shares; `drawn` are samples by draw and task."""

    request: RunSpec
    parts: Ingredients
    measure: TaskMeasure
    sensitive: tuple[str, ...]
    drawn: dict[int, dict[str, list[Inputs]]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where merged models lie."""
        return self.request.folder / MODELS

    def make(self, variant: Variant) -> Path | dict[str, Any]:
        """One model: a folder, or its tensors in memory for a control."""
        if variant.space not in CONTROLS:
            out = self.folder / variant.name
            calibrate = None if variant.space == "none" else variant.space
            self._merge(variant, calibrate, out=out, overwrite=True, donor=self.parts.base)
            return out
        merged = self._merge(variant, None).state_dict()
        calibrated = self._merge(variant, "fsc")
        base = self.parts.weights_of_base()
        return dict(control(variant.space, base, merged, calibrated.records, variant.draw or 0))

    def remove(self, variants: Sequence[Variant]) -> None:
        """Remove the folders of models that were measured, and theirs if it is empty then."""
        for variant in variants:
            place = self.folder / variant.name
            if place.is_dir() and not foreign(place, ()):
                shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _merge(self, variant: Variant, calibrate: str | None, **options: Any) -> Result:
        if calibrate is not None:
            options["sensitive"] = self.sensitive
            if variant.space in DRAWN:
                options["data"] = self._samples(variant.draw or 0)
                options["model"] = self.measure.model_class
        return merge(
            base=self.parts.base,
            experts=dict(self.parts.experts),
            method=variant.method,
            params=self.request.params.get(variant.method),
            calibrate=None if calibrate is None else plain(calibrate),
            ignore=self.parts.absent,
            threads=self.request.machine.threads,
            device=self.request.machine.device,
            **options,
        )

    def _samples(self, draw: int) -> dict[str, list[Inputs]]:
        samples = self.request.options.samples
        if draw not in self.drawn:
            self.drawn[draw] = {
                task: self.measure.samples(task).inputs(samples, draw, self.parts.base)
                for task in self.parts.experts
            }
        return self.drawn[draw]


def measure_all(merges: RunMerges, ledger: RunScores) -> None:
    """Measure what the ledger lacks; base and experts in the first round."""
    tasks = [task for expert in merges.parts.experts for task in merges.measure.tasks_of(expert)]
    missing = [
        variant for variant in merges.request.variants if ledger.missing(variant.name, tasks)
    ]
    specs = open_checkpoint(merges.parts.base).specs.values()
    size = models_a_round(merges.request, sum(nbytes(spec) for spec in specs))
    progress = merges.request.machine.progress or (lambda *_: None)
    for start in range(0, max(1, len(missing)), size):
        group, models = missing[start : start + size], {}
        for count, variant in enumerate(group):
            progress("merging", start + count, len(missing))
            models[variant.name] = merges.make(variant)
        if missing:
            progress("merging", start + len(group), len(missing))
        _measure_round(merges, ledger, models, references=start == 0)
        if not merges.request.options.keep:
            merges.remove(group)


def models_a_round(request: RunSpec, size: int) -> int:
    """As many models as half of the memory holds, one at least."""
    return max(1, request.machine.limit // (2 * max(1, size)))


def _measure_round(
    merges: RunMerges, ledger: RunScores, models: Mapping[str, Any], *, references: bool
) -> None:
    for expert in merges.parts.experts:
        tasks = merges.measure.tasks_of(expert)
        left = {name: model for name, model in models.items() if ledger.missing(name, tasks)}
        if references and ledger.missing(ZERO_SHOT, tasks):
            left[ZERO_SHOT] = merges.measure.base
        if references and ledger.missing(EXPERTS, tasks):
            left[EXPERTS] = merges.measure.expert(expert)
        if left:
            ledger.put_all(merges.measure.measure(left, expert))
