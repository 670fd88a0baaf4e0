"""sensitivity(): rank a model's layers by what more of the average merge does to a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch

from magmerge.checkpoints.loader import Model
from magmerge.checkpoints.output.own_files import check_document
from magmerge.core.errors import ParameterError
from magmerge.core.filters import patterns
from magmerge.core.lazy import Tabular
from magmerge.core.machine import CPU, Machine, Progress
from magmerge.core.models import MEMORY
from magmerge.core.recipe import Recipe
from magmerge.core.recipe import Samples as RecipeSamples
from magmerge.core.types import Plan
from magmerge.core.version import __version__
from magmerge.core.whole_file import write_whole
from magmerge.data.inputs import prepare as prepare_rows
from magmerge.data.rows import SampleOptions
from magmerge.data.sources import read_samples
from magmerge.engine.job import Job, Live, Work
from magmerge.engine.kinship import doubts
from magmerge.engine.notes import warn
from magmerge.engine.opening import EXPERT, experts_by_name
from magmerge.engine.plan import make_plan
from magmerge.engine.resolve import open_job
from magmerge.engine.samples import options_of, with_origin
from magmerge.evaluation.classification import read_head
from magmerge.evaluation.entries import Features
from magmerge.evaluation.sensitivity.layer_derivatives import by_derivative
from magmerge.evaluation.sensitivity.layer_trials import (
    CriterionName,
    Drift,
    Errors,
    LabelledBatch,
    Loss,
    Trial,
    by_trial,
)
from magmerge.evaluation.task_scores import class_numbers
from magmerge.live.coverage import follow
from magmerge.live.layers import Layer
from magmerge.live.live_merge import LiveMerge, live_merge
from magmerge.live.module_weights import at_rest
from magmerge.pipeline.merge import Experts

if TYPE_CHECKING:
    from torch import nn

FACTOR = 1.1
"""What a layer's task vector is multiplied by: arXiv:2512.19320."""
MATRICES = frozenset({"matrix", "transposed", "convolution", "experts"})
"""Kinds of layer that are ranked: those that every calibrator acts on."""


@dataclass(frozen=True, slots=True)
class Sensitivity(Tabular):
    """By how much the score gets worse for each layer, in the order of the model; 0 is no change.

    `sensitive`: the `alpha` layers that are worst, worst first; only layers that do harm.
    `unranked`: layers that derivatives could not be taken of, in fast mode.
    """

    tabled: ClassVar[str] = "magmerge.evaluation.result_tables:sensitivity_table"
    score: CriterionName
    mode: Literal["exact", "fast"]
    factor: float
    alpha: int
    samples: int
    seed: int
    base: str
    experts: Mapping[str, str]
    layers: Mapping[str, float]
    unranked: tuple[str, ...] = ()

    @property
    def sensitive(self) -> tuple[str, ...]:
        """What `sensitive=` and `--sensitive` take."""
        worst = sorted(self.layers, key=lambda name: -self.layers[name])
        return tuple(name for name in worst[: self.alpha] if self.layers[name] > 0)

    def document(self) -> dict[str, Any]:
        """The same for a program to read."""
        return {
            "magmerge": __version__,
            "sensitive": list(self.sensitive),
            "score": self.score,
            "mode": self.mode,
            "factor": self.factor,
            "alpha": self.alpha,
            "samples": self.samples,
            "seed": self.seed,
            "base": self.base,
            "experts": dict(self.experts),
            "unranked": list(self.unranked),
            "layers": [{"layer": name, "worse": value} for name, value in self.layers.items()],
        }

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as JSON, which `--sensitive` reads."""
        path = Path(out)
        check_document(path, overwrite=overwrite)
        write_whole(path, json.dumps(self.document(), indent=1) + "\n")
        return path


def sensitivity(
    *,
    base: Model,
    experts: Experts,
    data: Any,
    score: CriterionName = "drift",
    mode: Literal["exact", "fast"] = "exact",
    alpha: int = 10,
    samples: int | SampleOptions | Mapping[str, Any] = 64,
    seed: int = 0,
    label_field: str | None = None,
    classes: Sequence[str] | None = None,
    head: str | Path | None = None,
    features: Features = "output",
    ignore: Sequence[str] = (),
    model: nn.Module | str | None = None,
    build: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    device: str = CPU,
    progress: Progress | None = None,
) -> Sensitivity:
    """Rank the layers of the averaged merge by how much 10 % more of each one's change hurts.

    `data` is one generic source of samples, as `merge` takes them. `score`: "drift" is how far the
    model's last features move, for which it needs neither labels nor head; "loss" the cross entropy
    of the labels in `label_field` (with `head`, a file with weight and bias, on `features`: mean,
    cls, pooler, embeds, output; `classes` are the labels' names in the head's order), or of a
    language model's next tokens; "accuracy" the share of errors.
    `mode` "exact" tries each layer, "fast" takes derivatives. With `out` it is written as JSON.
    The other arguments are those of `merge`. Raises MagmergeError's children.
    """
    _check(score, mode, alpha, label_field)
    if out is not None:
        check_document(Path(out), overwrite=overwrite)
    machine = Machine(threads, device=device, progress=progress)
    job = _job(base, experts_by_name(experts), patterns(ignore), machine)
    options = options_of(samples, seed)
    batches = _batches(data, job, options, label_field, classes)
    job = _at_work(job, base, model, build)
    plan = make_plan(job)
    warn((*plan.warnings, *doubts(job.models, plan.steps)))
    active = live_merge(Work(job, plan))
    layers = _layers(active, plan)
    with at_rest(active.model):
        reading = (None if head is None else read_head(str(head)), features)
        judge = Drift() if score == "drift" else (Loss if score == "loss" else Errors)(*reading)
        deltas = active.merged
        trial = Trial(active.model, layers, batches, judge, deltas, FACTOR)
        if mode == "exact":
            harms = by_trial(trial, machine.counter("trying layers", len(layers)))
        else:
            done = machine.counter("taking derivatives", len(batches))
            harms = by_derivative(trial, seed, done)
    stored = {layer.name: _stored_name(layer) for layer in layers}
    harms = {stored[name]: worse for name, worse in harms.items()}
    result = Sensitivity(
        score, mode, FACTOR, alpha, sum(batch.inputs.rows for batch in batches), options.seed,
        job.recipe.base or "", job.recipe.experts, harms,
        tuple(name for name in stored.values() if name not in harms),
    )  # fmt: skip
    if out is not None:
        result.save(out, overwrite=overwrite)
    return result


def _job(
    base: Model, experts: Mapping[str, Model], ignore: tuple[str, ...], machine: Machine
) -> Job:
    """The averaged merge."""
    described = {role: _described(source) for role, source in {"base": base, **experts}.items()}
    recipe = Recipe(
        base=described["base"],
        experts={name: described[name] for name in experts},
        method="average",
        ignore=ignore,
    )
    models = {"base": base, **{f"{EXPERT}{name}": expert for name, expert in experts.items()}}
    return open_job(recipe, models, machine=machine)


def _at_work(job: Job, base: Model, model: nn.Module | str | None, build: str | None) -> Job:
    """The job with how the merge is run: as the module that is given, or what its folder holds."""
    name = model if isinstance(model, str) else None
    samples = RecipeSamples(data={}, model=name, build=build)
    recipe = job.recipe.model_copy(update={"samples": samples})
    module: Any = None if name else model
    live = with_origin(Live(module=module, build=True), recipe, base, job.models)
    return replace(job, recipe=recipe, live=live)


def _described(model: Model) -> str:
    return str(model) if isinstance(model, str | Path) else f"a {type(model).__name__}{MEMORY}"


def _check(score: str, mode: str, alpha: int, label_field: str | None) -> None:
    labels = "name their column with --label-field (label_field=)"
    unlabelled = "drop --label-field, or score by loss or accuracy"
    for wrong, problem, remedy in (
        (score not in get_args(CriterionName), f"the score is {score!r}",
         "it is drift, loss or accuracy"),
        (mode not in ("exact", "fast"), f"the mode is {mode!r}", "it is exact or fast"),
        (not isinstance(alpha, int) or alpha < 1, f"alpha is {alpha}", "name one layer or more"),
        (score == "accuracy" and mode == "fast", "accuracy has no derivative",
         "score by loss or drift, or take --mode exact"),
        (score == "accuracy" and label_field is None, "accuracy needs labels", labels),
        (score == "drift" and label_field is not None, "drift looks at no labels", unlabelled),
    ):  # fmt: skip
        if wrong:
            raise ParameterError(problem, remedy=remedy)


def _batches(
    data: Any,
    job: Job,
    options: SampleOptions,
    label_field: str | None,
    classes: Sequence[str] | None,
) -> list[LabelledBatch]:
    rows = read_samples(data, options.draw("generic", label_field))
    warn(rows.notes)
    inputs = prepare_rows(rows, job.models.layout.folder, options.preparation, options.batch)
    if label_field is None:
        return [LabelledBatch(call) for call in inputs]
    if rows.labels is None:
        raise ParameterError(
            "samples in memory have no labels", remedy="give a file, or score by drift"
        )
    labels = class_numbers(rows.labels, classes or rows.classes, rows.source)
    parts = torch.split(labels, [call.rows for call in inputs])
    return [LabelledBatch(call, part) for call, part in zip(inputs, parts, strict=True)]


def _layers(active: LiveMerge, plan: Plan) -> list[Layer]:
    """Layers with a matrix that experts change."""
    merged = {step.spec.name: step.kind for step in plan.steps if step.action == "merge"}
    names = {name: stored for name, stored in active.names.items() if stored in merged}
    layers, _ = follow(active.model, names, {})
    return [layer for layer in layers if any(merged[t] in MATRICES for t in layer.tensors.values())]


def _stored_name(layer: Layer) -> str:
    """A layer's name as its tensors have it, which --sensitive takes."""
    tensor = next(iter(layer.tensors.values()))
    return tensor.rpartition(".")[0] or tensor
