"""A merge at work: its weights in a live model, and its task vectors beside the experts'."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from magmerge import dtypes
from magmerge.checkpoints.writer import MemorySink, Sink
from magmerge.errors import MagmergeError, ParameterError, StructureError
from magmerge.live.modules import bare_model, empty_model
from magmerge.live.offload import Offload
from magmerge.live.weights import ModelSink, load, matched, take_off_pooler
from magmerge.models import Sources
from magmerge.run import Progress, Work, execute, survey_model, treat
from magmerge.types import Plan

Order = Literal["once", "forward"]


@dataclass(frozen=True, slots=True)
class Running:
    """How the merged model is run: what it is, in what order it is measured, and in what format.

    `origin` is the module, or the folder of the model, that the merged weights are put into, by
    transformers' `model_class` where that is given; `build` names a function that returns the
    module instead. `order`: every layer is measured as the merge made it, or each after those
    before it are calibrated. `offload`: weights come into memory block by block, while they run.
    """

    origin: nn.Module | Path | None = None
    model_class: str | None = None
    build: str | None = None
    order: Order = "once"
    precision: Literal["float32", "bfloat16"] = "float32"
    batchnorm: bool = False
    offload: bool = False
    device: str = "cpu"


class AtWork(NamedTuple):
    """A live model, its parameters' names to those of their tensors, and the merge's tensors.

    `offload` is what brings weights into memory, if they are not there.
    """

    model: nn.Module
    names: Mapping[str, str]
    weights: Mapping[str, Tensor]
    offload: Offload | None = None


def put_to_work(work: Work, running: Running, *, threads: int, progress: Progress | None) -> AtWork:
    """Merge into a live model in float32, with all that calibrators do from weights alone.

    Without offloading, every weight is in memory once, as the model's own parameter; twice where
    the model runs in bfloat16.
    """
    first = _from_weights(work)
    if running.offload:
        return _block_by_block(first, running, threads, progress)
    model = _bare(running).float()
    shapes = {step.spec.name: step.spec.shape for step in work.plan.steps}
    names = matched(model, shapes, "the merge")
    take_off_pooler(model, shapes)
    _check_ties(names, model, work)
    dtype = dtypes.torch_dtype(dtypes.parse_float_dtype(running.precision))
    if running.precision == "float32":
        _fill(first, ModelSink(model, names), set(names.values()), threads, progress)
        model = model.to(running.device).eval()
        return AtWork(model, names, Parameters(model, names))
    sink = MemorySink()
    _fill(first, sink, set(names.values()), threads, progress)
    load(model, sink.tensors, "the merge")
    in_precision(model, dtype)
    return AtWork(model.to(running.device).eval(), names, sink.tensors)


def _bare(running: Running) -> nn.Module:
    if running.origin is None and running.build is None:
        raise MagmergeError(
            "this calibration runs the merged model, and nothing tells what these tensors are",
            remedy="give a folder with config.json, a torch module (model=), or the function that "
            "builds the model (build=, --build package.module:function)",
        )
    return bare_model(running.origin or "", model_class=running.model_class, build=running.build)


def _block_by_block(
    first: Work, running: Running, threads: int, progress: Progress | None
) -> AtWork:
    if isinstance(running.origin, nn.Module) or (running.origin is None and not running.build):
        raise ParameterError(
            "a module in memory cannot be run block by block",
            remedy="give the base as a folder with config.json, or leave out offload",
        )
    model = empty_model(
        running.origin or Path(), model_class=running.model_class, build=running.build
    ).eval()
    shapes = {step.spec.name: step.spec.shape for step in first.plan.steps}
    names = matched(model, shapes, "the merge")
    take_off_pooler(model, shapes)
    weights = Recomputed(first, threads, progress)
    dtype = dtypes.torch_dtype(dtypes.parse_float_dtype(running.precision))
    offload = Offload(model, names, weights.bring, weights.drop, dtype, running.device)
    return AtWork(model, names, weights, offload)


def _from_weights(work: Work) -> Work:
    """The part of the work that needs no samples, in float32."""
    treatment = work.bound.treatment.weights_only()
    plan = _in_float32(work.plan)
    return replace(work, plan=plan, bound=replace(work.bound, treatment=treatment))


def _fill(
    work: Work, sink: Sink, wanted: Collection[str], threads: int, progress: Progress | None
) -> None:
    """Give the merge to the sink; a merge that exists already is read as it is."""
    if work.bound.method is not None or work.bound.treatment.calibrators:
        execute(work, sink, threads=threads, progress=progress)
        return
    for step in work.plan.steps:
        if step.spec.name in wanted:
            tensor = work.sources.layout.read(step.spec.name)
            sink.write(step, 0, tensor.float() if tensor.is_floating_point() else tensor)


def _in_float32(plan: Plan) -> Plan:
    steps = [
        replace(step, spec=replace(step.spec, dtype="F32"))
        if step.spec.dtype in dtypes.FLOATS
        else step
        for step in plan.steps
    ]
    return replace(plan, steps=tuple(steps))


def in_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters in `dtype`; buffers as they are, for angles need their precision.

    But for those of batch norms, which torch takes in the format of the inputs only.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.to(dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _check_ties(names: Mapping[str, str], model: nn.Module, work: Work) -> None:
    """StructureError where the model has one parameter for tensors that are not tied."""
    own = model.state_dict(keep_vars=True)
    twins = {step.spec.name: step.twin or step.spec.name for step in work.plan.steps}
    first: dict[int, str] = {}
    faults = []
    for name, stored in names.items():
        other = first.setdefault(id(own[name]), stored)
        if twins[other] != twins[stored]:
            faults.append(f"{other} and {stored} are one parameter of the {type(model).__name__}")
    if faults:
        raise StructureError(
            faults,
            remedy="untie them in the model (tie_word_embeddings in config.json), or calibrate "
            "with wsc",
        )


class Parameters(Mapping[str, Tensor]):
    """The merge's tensors as a model's own parameters, which they are."""

    def __init__(self, model: nn.Module, names: Mapping[str, str]) -> None:
        own = model.state_dict(keep_vars=True)
        self._own: dict[str, Tensor] = {stored: own[name] for name, stored in names.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._own[name].detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


class Recomputed(Mapping[str, Tensor]):
    """The merge's tensors, merged anew whenever they are asked for, but for those brought in."""

    def __init__(self, work: Work, threads: int, progress: Progress | None) -> None:
        self._work, self._threads = work, threads
        self._survey = survey_model(work, threads, progress)
        self._here: dict[str, Tensor] = {}
        self._twins = {step.spec.name: step.twin or step.spec.name for step in work.plan.steps}

    def bring(self, names: Collection[str]) -> dict[str, Tensor]:
        """These tensors, which stay at hand until they are dropped."""
        found = self._merge({self._twins[name] for name in names})
        self._here.update(found)
        return {name: found[self._twins[name]] for name in names}

    def drop(self, names: Collection[str]) -> None:
        """These are no longer needed."""
        for name in names:
            self._here.pop(self._twins[name], None)

    def __getitem__(self, name: str) -> Tensor:
        own = self._twins[name]
        found: Tensor = self._here[own] if own in self._here else self._merge({own})[own]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._twins)

    def __len__(self) -> int:
        return len(self._twins)

    def _merge(self, names: Collection[str]) -> dict[str, Tensor]:
        sink = MemorySink()
        if self._work.bound.method is None and not self._work.bound.treatment.calibrators:
            _fill(self._work, sink, names, self._threads, None)
        else:
            treat(self._work, self._survey, sink, threads=self._threads, only=names)
        return sink.tensors


class Changed:
    """What merge and experts changed, read anew each time it is asked for."""

    def __init__(self, sources: Sources, weights: Mapping[str, Tensor]) -> None:
        assert sources.base is not None
        self._base, self._experts = sources.base, sources.experts
        self._weights = weights

    def base(self, name: str) -> Tensor:
        """The base's weight."""
        return self._base.read(name).float()

    def merged(self, name: str) -> Tensor:
        """The merge's task vector."""
        return self._weights[name].float().cpu() - self.base(name)

    def expert(self, index: int, name: str) -> Tensor:
        """The task vector of expert `index`."""
        return self._experts[index].delta(name, self.base(name))
