"""A merge at work: its weights in a live model, and its task vectors beside the experts'."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from magmerge.checkpoints.output.writer import MemorySink, stored_bytes
from magmerge.core import dtypes
from magmerge.core.errors import MagmergeError, ParameterError, StructureError
from magmerge.core.types import Plan
from magmerge.engine.job import Job, Models, Work
from magmerge.engine.passes import bench_for, run_pass
from magmerge.engine.stages import Treatment
from magmerge.engine.steps import Bench
from magmerge.live.module_weights import ModelSink, matched, take_off_pooler
from magmerge.live.modules import bare_model, empty_model
from magmerge.live.offload import Offload, Weights, without_data


class LiveMerge(NamedTuple):
    """A live model, its parameters' names to those of their tensors, and the merge's tensors.

    What merge and experts changed is read anew each time. `offload` is what brings weights into
    memory, if they are not there.
    """

    model: nn.Module
    names: Mapping[str, str]
    weights: Mapping[str, Tensor]
    models: Models
    offload: Offload | None = None

    def base(self, name: str) -> Tensor:
        """The base's weight."""
        assert self.models.base is not None
        return self.models.base.read(name).float()

    def merged(self, name: str, base: Tensor | None = None) -> Tensor:
        """The merge's task vector; the base is read where it is not at hand."""
        return self.weights[name].float().cpu() - (self.base(name) if base is None else base)

    def expert(self, index: int, name: str, base: Tensor) -> Tensor:
        """The task vector of expert `index` on the base's weight."""
        return self.models.experts[index].delta(name, base)


Look = Callable[[LiveMerge], None]
"""Looks at other models in the live module before the merge comes into it."""


def live_merge(work: Work, look: Look | None = None) -> LiveMerge:
    """Merge into a live model in float32, with all that calibrators do from weights alone; the
    merge alone where a check may take that back. `look` is called first.

    Without offloading, every weight is in memory once, as the model's own parameter; twice where
    the model runs in bfloat16.
    """
    checked = work.stages.treatment.checked
    first, job = _merge_alone(work) if checked else _from_weights(work), work.job
    model, precision, device = _model(job), _precision(job), job.machine.device
    shapes = {step.spec.name: step.tensor.shape for step in work.plan.steps}
    names = matched(model, shapes, "the merge")
    take_off_pooler(model, shapes)
    if job.machine.offload:
        transient = TransientWeights(first)
        offload = Offload(model, names, transient, precision, device)
        live = LiveMerge(model, names, transient, work.models, offload)
        if look is not None:
            look(live)
        return live
    _check_ties(names, model, work)
    if look is not None:
        in_precision(model, precision)
        look(LiveMerge(model.to(device).eval(), names, {}, work.models))
        model = model.float().cpu()
    _fill(bench_for(first, ModelSink(model, names)), names.values())
    if precision == torch.float32:
        model = model.to(device)
    own = model.state_dict()
    in_precision(model, precision)
    weights = {tensor: own[name] for name, tensor in names.items()}
    return LiveMerge(model.to(device).eval(), names, weights, work.models)


def _precision(job: Job) -> torch.dtype:
    """The format of the model's run."""
    samples = job.recipe.samples
    return (
        torch.bfloat16 if samples is not None and samples.precision == "bfloat16" else torch.float32
    )


def _model(job: Job) -> nn.Module:
    """What the merge is run as, still without its weights; without memory for them to offload."""
    samples, live = job.recipe.samples, job.live
    model_class, build = (None, None) if samples is None else (samples.model, samples.build)
    origin = live.origin if live.module is None else live.module
    if job.machine.offload:
        if isinstance(origin, nn.Module) or (origin is None and not build):
            raise ParameterError(
                "a module in memory cannot be run block by block",
                remedy="give the base as a folder with config.json, or leave out offload",
            )
        return empty_model(origin or Path(), model_class=model_class, build=build).eval()
    if origin is None and build is None:
        raise MagmergeError(
            "this calibration runs the merged model, and nothing tells what these tensors are",
            remedy="give a folder with config.json, a torch module (model=), or the function that "
            "builds the model (build=, --build package.module:function)",
        )
    return bare_model(origin or "", model_class=model_class, build=build).float()


def _from_weights(work: Work) -> Work:
    """The part of the work that needs no samples, in float32."""
    stages = replace(work.stages, treatment=work.stages.treatment.weights_only())
    return Work(replace(work.job, stages=stages), _in_float32(work.plan))


def _merge_alone(work: Work) -> Work:
    """The merge without its calibration, in float32."""
    stages = replace(work.stages, treatment=Treatment())
    return Work(replace(work.job, stages=stages), _in_float32(work.plan))


@contextmanager
def model_with(merge: LiveMerge, weights: Weights) -> Iterator[None]:
    """Within it the live module has these weights: all of them, or block by block where the merge
    is offloaded. Its own are lost, unless they are brought in anew for each block.
    """
    if merge.offload is not None:
        offload = merge.offload
        other = Offload(merge.model, merge.names, weights, offload.dtype, str(offload.device))
        with without_data(merge.model), other.running():
            yield
        return
    own = merge.model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in merge.names.items():
            own[name].copy_(weights.bring([tensor])[tensor])
    yield


@contextmanager
def model_as(merge: LiveMerge, work: Work) -> Iterator[None]:
    """Within it the live module has the weights of another merge of the same models, with its whole
    treatment. Its own are lost, unless they are brought in anew for each block.
    """
    other = Work(work.job, _in_float32(work.plan), work.findings)
    if merge.offload is not None:
        with model_with(merge, TransientWeights(other)):
            yield
        return
    _fill(bench_for(other, ModelSink(merge.model, merge.names)), merge.names.values())
    yield


def _fill(bench: Bench, names: Collection[str], *, only: bool = False) -> None:
    """Give the merge, or `only` these tensors of it, to the bench's sink.

    A merge that exists already is read as it is, as far as it has these names.
    """
    work = bench.work
    own = frozenset(names)
    steps = [step for step in work.plan.steps if step.spec.name in own]
    if work.stages.method is not None or work.stages.treatment.calibrators:
        run_pass(bench, {step.key for step in steps} if only else None, quiet=only)
        return
    for step in steps:
        tensor = work.layout.read(step.spec.name).to(dtypes.torch_dtype(step.spec.dtype))
        bench.sink.write(step, 0, stored_bytes(tensor))


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


class TransientWeights(Mapping[str, Tensor]):
    """The merge's tensors, merged anew whenever they are asked for, but for those brought in."""

    def __init__(self, work: Work) -> None:
        self._bench = bench_for(work, MemorySink())
        self._here: dict[str, Tensor] = {}
        self._twins = {step.spec.name: step.twin or step.spec.name for step in work.plan.steps}

    def bring(self, names: Collection[str]) -> dict[str, Tensor]:
        """These tensors, which stay at hand until they are dropped."""
        tensors = self._merge({self._twins[name] for name in names})
        self._here.update(tensors)
        return {name: tensors[self._twins[name]] for name in names}

    def drop(self, names: Collection[str]) -> None:
        """These are no longer needed."""
        for name in names:
            self._here.pop(self._twins[name], None)

    def __getitem__(self, name: str) -> Tensor:
        own = self._twins[name]
        tensor: Tensor = self._here[own] if own in self._here else self._merge({own})[own]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._twins)

    def __len__(self) -> int:
        return len(self._twins)

    def _merge(self, names: Collection[str]) -> dict[str, Tensor]:
        sink = MemorySink()
        _fill(replace(self._bench, sink=sink), names, only=True)
        return sink.tensors
