"""What is asked of a pipeline, and the models that it compares: checked before the work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from torch import Tensor

from magmerge.core import registry
from magmerge.core.catalogue import catalog
from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
from magmerge.core.machine import CPU, Machine, Progress
from magmerge.core.types import LayerRecord
from magmerge.core.validation import check_method
from magmerge.evaluation.live_model import Hardware
from magmerge.studies.reproduction.pipelines import Pipeline, find_pipeline

Space = Literal["none", "wsc", "fsc", "dsc", "global", "shuffled"]
SPACES: tuple[Space, ...] = get_args(Space)
PAPER: tuple[Space, ...] = ("none", "wsc", "fsc", "dsc")
DRAWN: frozenset[Space] = frozenset({"fsc", "dsc", "global", "shuffled"})
"""Spaces that depend on which samples are drawn."""
CONTROLS: frozenset[Space] = frozenset({"global", "shuffled"})
"""FSC's factors put elsewhere, to see what its spread over the layers does."""
BOUNDS = [bound.name for bound in fields(Hardware) if bound.name != "progress"]
"""What an evaluation runs on; each measurement of a run has a progress of its own."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One model: a method, what is done to its merge, and with which draw of samples."""

    method: str
    space: Space
    draw: int | None = None

    @property
    def name(self) -> str:
        """As results name it: ties, ties+wsc, ties+fsc@0."""
        calibrated = "" if self.space == "none" else f"+{self.space}"
        return f"{self.method}{calibrated}" + ("" if self.draw is None else f"@{self.draw}")


def spaces_of(names: Sequence[str]) -> tuple[Space, ...]:
    """Names of spaces, in the order of SPACES; UnknownNameError or ParameterError."""
    for name in names:
        if name not in SPACES:
            raise UnknownNameError(f"there is no space {name!r}", remedy=suggestion(name, SPACES))
    if not names:
        raise ParameterError("no space is named", remedy=f"choose among {', '.join(SPACES)}")
    return tuple(space for space in SPACES if space in names)


def control(
    space: Space,
    origin: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    records: Sequence[LayerRecord],
    seed: int,
) -> dict[str, Tensor]:
    """The merge with FSC's factors as one global factor, their mean, or shuffled among the layers.

    `origin` are the base's tensors, `plain` the merge's before calibration.
    """
    factors = {record.name: record.xi for record in records if record.calibrated_by}
    if space == "global":
        factors = dict.fromkeys(factors, statistics.mean(factors.values()) if factors else 1.0)
    else:
        values = list(factors.values())
        Random(seed).shuffle(values)
        factors = dict(zip(factors, values, strict=True))
    return {
        name: _scale(origin[name], tensor, factors[name]) if name in factors else tensor
        for name, tensor in plain.items()
    }


def _scale(origin: Tensor, merged: Tensor, factor: float) -> Tensor:
    change = merged.float() - origin.float()
    return (origin.float() + factor * change).to(merged.dtype)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of `reproduce`, which says what each means; ParameterError for a bad number."""

    inputs: str | Path | None = None
    data: str | Path | None = None
    tasks: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    spaces: Sequence[str] = PAPER
    params: Mapping[str, Mapping[str, Any]] | None = None
    samples: int = 8
    seeds: int = 1
    alpha: int = 10
    generic: str | Path | None = None
    generic_samples: int | None = None
    keep: bool = False
    allow_code: bool = False
    threads: int | None = None
    workers: int | None = None
    memory: str | int = "8GB"
    device: str | None = CPU
    dtype: str | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("seeds", 1), ("alpha", 0)):
            number = getattr(self, name)
            if number < least:
                raise ParameterError(f"{name} is {number}", remedy=f"give {least} or more")


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A pipeline, the folder of its run, and what of it is compared.

    Models are measured on `hardware`; `machine` has the same bounds, for all other work.
    """

    pipeline: Pipeline
    folder: Path
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    params: Mapping[str, Mapping[str, Any]]
    options: RunOptions
    hardware: Hardware
    machine: Machine

    @property
    def inputs(self) -> Path | None:
        """The user's folder of models."""
        return None if self.options.inputs is None else Path(self.options.inputs)

    @property
    def data(self) -> Path | None:
        """The user's folder of data."""
        return None if self.options.data is None else Path(self.options.data)

    @property
    def generic_samples(self) -> int:
        """How many rows of the generic set are looked at."""
        return self.options.generic_samples or self.pipeline.generic.samples


def request_of(name: str, out: str | Path | None, options: RunOptions) -> RunSpec:
    """Names checked and defaults filled in; MagmergeError's children."""
    pipeline, spaces = find_pipeline(name), spaces_of(options.spaces)
    controls = [space for space in spaces if space in CONTROLS]
    if controls and pipeline.kind == "language":
        raise ParameterError(
            f"{', '.join(controls)}: controls are tensors in memory, and {name} measures folders",
            remedy=f"leave {' and '.join(controls)} out of --spaces",
        )
    if pipeline.include is not None and not options.allow_code:
        raise ParameterError(
            "its task files of the harness can run code",
            source=pipeline.include,
            remedy="read them, and if you trust them add --allow-code (allow_code=True)",
        )
    params, draws = options.params or {}, range(options.seeds)
    variants = [
        Variant(method, space, draw)
        for method in _methods(options.methods or pipeline.methods, params)
        for space in spaces
        for draw in (draws if space in DRAWN else (None,))
    ]
    device, progress = options.device or CPU, options.progress
    return RunSpec(
        pipeline=pipeline,
        folder=Path(out or f"magmerge-{pipeline.name}"),
        tasks=_tasks(pipeline, options.tasks),
        variants=tuple(variants),
        params=params,
        options=options,
        hardware=Hardware(**{bound: getattr(options, bound) for bound in BOUNDS}),
        machine=Machine(options.threads, options.memory, device, progress=progress),
    )


def _methods(names: Sequence[str], params: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Known methods whose parameters are sound; none has parameters that is not among them."""
    catalog()
    known = tuple(dict.fromkeys(registry.methods.get(name).name for name in names))
    for name in params:
        if registry.methods.get(name).name not in known:
            raise ParameterError(
                f"parameters are given for {name}, which is not merged by here",
                remedy=f"add it to --methods (methods=): {', '.join(known)}",
            )
    for name in known:
        check_method(name, params.get(name, {}))
    return known


def _tasks(pipeline: Pipeline, names: Sequence[str] | None) -> tuple[str, ...]:
    """The tasks of these names, in the pipeline's order."""
    for name in names or ():
        if name not in pipeline.experts:
            raise UnknownNameError(
                f"{pipeline.name} has no task {name!r}", remedy=suggestion(name, pipeline.experts)
            )
    tasks = tuple(name for name in pipeline.experts if names is None or name in names)
    if len(tasks) < 2:
        raise ParameterError("one task alone is no merge", remedy="name two tasks or more")
    return tasks
