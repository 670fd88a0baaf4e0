"""The merges of a pipeline, made as many as memory holds, measured task by task, and removed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.output.own_files import foreign
from magmerge.core.dtypes import nbytes, parse_size
from magmerge.core.machine import Progress
from magmerge.data import Inputs
from magmerge.engine.result import Result
from magmerge.pipeline.merge import merge
from magmerge.studies.reproduction.measures import TaskMeasure
from magmerge.studies.reproduction.pipeline_models import Ingredients
from magmerge.studies.reproduction.run_scores import RunScores
from magmerge.studies.reproduction.run_spec import RunSpec
from magmerge.studies.reproduction.score_rows import EXPERTS, ZERO_SHOT
from magmerge.studies.reproduction.variants import CONTROLS, DRAWN, Variant, control

MODELS = "models"
"""The folder of merged models in that of a run."""


@dataclass(frozen=True, slots=True)
class Workshop:
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
        plain = self._merge(variant, None).state_dict()
        calibrated = self._merge(variant, "fsc")
        base = self.parts.weights_of_base()
        return dict(control(variant.space, base, plain, calibrated.records, variant.draw or 0))

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
            calibrate=calibrate,
            ignore=self.parts.lacking,
            threads=self.request.machine.threads,
            device=self.request.machine.device or "cpu",
            **options,
        )

    def _samples(self, draw: int) -> dict[str, list[Inputs]]:
        if draw not in self.drawn:
            self.drawn[draw] = {
                task: self.measure.samples(task).inputs(self.request.samples, draw, self.parts.base)
                for task in self.parts.experts
            }
        return self.drawn[draw]


def measure_all(shop: Workshop, ledger: RunScores, progress: Progress | None) -> None:
    """Measure what the ledger lacks; base and experts in the first round."""
    tasks = [task for expert in shop.parts.experts for task in shop.measure.tasks_of(expert)]
    missing = [one for one in shop.request.variants if ledger.lacking(one.name, tasks)]
    specs = open_checkpoint(shop.parts.base).specs.values()
    size = models_a_round(shop.request.machine.memory, sum(nbytes(spec) for spec in specs))
    for start in range(0, max(1, len(missing)), size):
        variants, models = missing[start : start + size], {}
        for count, variant in enumerate(variants):
            if progress is not None:
                progress("merging", start + count, len(missing))
            models[variant.name] = shop.make(variant)
        if progress is not None and missing:
            progress("merging", start + len(variants), len(missing))
        _measure_round(shop, ledger, models, references=start == 0)
        if not shop.request.keep:
            shop.remove(variants)


def models_a_round(memory: str | int, size: int) -> int:
    """As many models as half of the memory holds, one at least."""
    return max(1, parse_size(memory) // (2 * max(1, size)))


def _measure_round(
    shop: Workshop, ledger: RunScores, models: Mapping[str, Any], *, references: bool
) -> None:
    for expert in shop.parts.experts:
        tasks = shop.measure.tasks_of(expert)
        left = {name: model for name, model in models.items() if ledger.lacking(name, tasks)}
        if references and ledger.lacking(ZERO_SHOT, tasks):
            left[ZERO_SHOT] = shop.measure.base
        if references and ledger.lacking(EXPERTS, tasks):
            left[EXPERTS] = shop.measure.expert(expert)
        if left:
            ledger.put_all(shop.measure.measure(left, expert))
