"""A recipe with everything that it needs at hand: opened models, bound stages, the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge.checkpoints.digests import stamp
from magmerge.core.errors import Fault
from magmerge.core.machine import Machine
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.recipe import AdapterOutput, ModelOutput, Recipe
from magmerge.core.types import Plan, Step
from magmerge.engine.stages import Stages
from magmerge.linalg.device import Device

if TYPE_CHECKING:
    from torch import Tensor, nn

    from magmerge.checkpoints.adapters.union import AdapterUnion
    from magmerge.checkpoints.tensor_digests import FileDigest


class Input(NamedTuple):
    """A model's role, what messages call it, its files, and itself where it is whole."""

    role: str
    source: str
    files: Sequence[Path]
    model: Checkpoint | None


class Vote(NamedTuple):
    """Who has a part in a tensor of a result that is made of slices: the slice's number from 1, the
    experts by their places, in the order that the method takes them, and whether a base has one.
    `moved`: it is in another block of an expert than of the base.
    """

    slice: int
    experts: tuple[int, ...]
    based: bool
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Models:
    """The opened models. `layout` is the one whose tensors, and only those, the result has.

    `stamps` tell each of their files as it was when it was opened. `union` is set where adapters
    are merged without a base: it is the layout then, a model of zeros with every module. `settings`
    are what the layout makes of its config.json, by their paths in it (text_config.vocab_size), and
    `texts` the files that it has in place of its donor's; None: one that it has not. `tokens` tells
    where the rows of tokens are from, where the models' vocabularies are not the same. `unmerged`
    are tensors that the layout keeps as they are, because they mean another thing in each model;
    `notes` say how the models were brought to one form, and `faults` what is wrong with how the
    recipe would have them seen. `made_of` are the models of which the layout is put together.
    `votes` tell who has a part in the tensors of slices, where all have in others, and `blocks` in
    words which blocks of whom the result has.
    """

    layout: Checkpoint
    base: Checkpoint | None
    experts: Sequence[Expert]
    merged: Checkpoint | None = None
    stamps: Mapping[Path, str] = field(default_factory=dict)
    union: AdapterUnion | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, bytes | None] = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    unmerged: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    faults: Sequence[Fault] = ()
    made_of: Sequence[Input] = ()
    votes: Mapping[str, Vote] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()

    @property
    def others(self) -> list[Checkpoint | Expert]:
        """All models but the layout; of experts what holds their weights."""
        whole = [m for m in (self.base, self.merged) if m is not None and m is not self.layout]
        return [*whole, *(expert.whole or expert for expert in self.experts)]


@dataclass(frozen=True, slots=True)
class Live:
    """What a call adds to its recipe where the merged model is run: things that are no data.

    `data` maps experts to samples in memory or to their sources, or is one for all; `module` is the
    torch module that is run; `origin` the folder or module that tells which model the tensors are.
    `build`: the function that the recipe names may be called.
    """

    data: Any = None
    module: nn.Module | None = None
    build: bool = False
    origin: nn.Module | Path | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A resolved recipe, its models as they were opened, its stages bound once, and where it runs.

    `donor` is the folder that a model's config and tokenizer are taken from. `documents` are the
    recipes whose results it reads, `passing` the files of these results, which are gone when the
    last of them is done, and `origins` what they were made of, as their records tell their inputs.
    `digests` are those of files whose bytes are digested as they are read. `choice`: what was
    chosen where the recipe said auto, and why.
    """

    recipe: Recipe
    models: Models
    stages: Stages
    machine: Machine
    device: Device
    donor: Path | None = None
    live: Live = field(default_factory=Live)
    documents: tuple[Recipe, ...] = ()
    passing: frozenset[Path] = frozenset()
    digests: Mapping[Path, FileDigest] = field(default_factory=dict)
    origins: tuple[Mapping[str, Any], ...] = ()
    choice: Mapping[str, Any] = field(default_factory=dict)

    @property
    def writes_adapter(self) -> bool:
        """Whether the result is an adapter's factors, and no whole model."""
        return isinstance(self.recipe.output, AdapterOutput)

    @property
    def model_output(self) -> ModelOutput:
        """How the model is written."""
        assert isinstance(self.recipe.output, ModelOutput)
        return self.recipe.output

    @property
    def adapter_output(self) -> AdapterOutput:
        """How the adapter is written."""
        assert isinstance(self.recipe.output, AdapterOutput)
        return self.recipe.output

    @property
    def takes(self) -> bool:
        """Whether one model is taken as it is: nothing is merged."""
        return self.recipe.method is None and self.recipe.merged is None

    @property
    def inputs(self) -> list[Input]:
        """Each model that is read."""
        models = self.models
        if models.made_of:
            return list(models.made_of)
        whole = [("merged", models.merged), ("base", models.base)]
        inputs = [
            Input(role, model.source, model.files, model)
            for role, model in whole
            if model is not None
        ]
        named = {document.name for document in self.documents}
        told = {model.name: self.recipe.experts.get(model.name) for model in models.experts}
        sources = {name: path for name, path in told.items() if path in named}
        return inputs + [
            Input("expert", sources.get(model.name) or model.source, model.files, model.whole)
            for model in models.experts
        ]

    @property
    def further_origins(self) -> list[Mapping[str, Any]]:
        """What earlier documents were made of, less what this one reads too; each once."""
        known = {entry.source for entry in self.inputs}
        told = {str(origin["source"]): origin for origin in self.origins}
        return [origin for source, origin in told.items() if source not in known]

    @property
    def states(self) -> dict[Path, str]:
        """The stamp of each file that is read, as it was when it was opened."""
        stamps = self.models.stamps
        files = dict.fromkeys(file for entry in self.inputs for file in entry.files)
        return {file: stamps[file] if file in stamps else stamp(file) for file in files}

    @property
    def input_files(self) -> list[Path]:
        """All files that are read, and their folders: none of them may be replaced."""
        files = [file for entry in self.inputs for file in entry.files]
        folders = [folder for folder in (self.models.layout.folder, self.donor) if folder]
        return [*files, *(file.parent for file in files), *folders]

    @property
    def input_folders(self) -> list[Path]:
        """Folders that are a model each: nothing else belongs into them."""
        models = [entry.model for entry in self.inputs if entry.model is not None]
        adapters = [file.parent for entry in self.inputs for file in entry.files]
        own = [folder for folder in adapters if (folder / "adapter_config.json").is_file()]
        return [*own, *(model.folder for model in models if model.folder is not None)]


@dataclass(frozen=True, slots=True)
class Findings:
    """What earlier passes found, and later ones read.

    `gains` [K] or [K, rows] by tensor, for calibrators that scale; `deltas` new task vectors by
    tensor, from calibrators that solve for them; `statistics` running means and variances that were
    taken anew. `uncovered`: layers that could not be measured. `shares`: how much of its factors'
    logarithm each tensor keeps, by a check, and `check` what that found, for the record; `verdict`
    is what came of the whole calibration, of which nothing is kept where it is `left_out`.
    """

    gains: Mapping[str, Tensor] | None = None
    deltas: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    uncovered: tuple[Any, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    check: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """A job, its plan, and what earlier passes found: all that a step needs."""

    job: Job
    plan: Plan
    findings: Findings = field(default_factory=Findings)

    @property
    def models(self) -> Models:
        """The job's models."""
        return self.job.models

    @property
    def stages(self) -> Stages:
        """The job's stages."""
        return self.job.stages

    def voters(self, step: Step) -> Sequence[int]:
        """The experts that have a step's rows, by their places."""
        return range(len(self.models.experts)) if step.voters is None else step.voters

    @property
    def layout(self) -> Checkpoint:
        """The model whose tensors the result has."""
        return self.job.models.layout
