"""What is asked of a pipeline, and the models that it compares: checked before the work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from torch import Tensor

from magmerge.core import registry
from magmerge.core.catalogue import catalog
from magmerge.core.errors import ParameterError, UnknownNameError, suggestion
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


def variants_of(methods: Sequence[str], spaces: Sequence[Space], draws: int) -> list[Variant]:
    """All of them, method by method."""
    variants = []
    for method in methods:
        for space in spaces:
            seeds = range(draws) if space in DRAWN else (None,)
            variants += [Variant(method, space, draw) for draw in seeds]
    return variants


def checked_spaces(names: Sequence[str]) -> tuple[Space, ...]:
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
        name: _scaled(origin[name], tensor, factors[name]) if name in factors else tensor
        for name, tensor in plain.items()
    }


def _scaled(origin: Tensor, merged: Tensor, factor: float) -> Tensor:
    change = merged.float() - origin.float()
    return (origin.float() + factor * change).to(merged.dtype)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A pipeline, the folder of its run, and what of it is compared.

    `samples` are drawn of each task, `generic_samples` of the generic set.
    """

    pipeline: Pipeline
    folder: Path
    inputs: Path | None
    data: Path | None
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    params: Mapping[str, Mapping[str, Any]]
    samples: int
    alpha: int
    generic: str | None
    generic_samples: int
    keep: bool = False
    machine: Hardware = field(default_factory=Hardware)


def request_of(
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
    allow_code: bool = False,
    keep: bool = False,
    **machine: Any,
) -> RunSpec:
    """Names and numbers checked, `reproduce` says what each means; MagmergeError's children."""
    pipeline = find_pipeline(name)
    for what, number, least in (("samples", samples, 1), ("seeds", seeds, 1), ("alpha", alpha, 0)):
        if number < least:
            raise ParameterError(f"{what} is {number}", remedy=f"give {least} or more")
    kinds = checked_spaces(spaces)
    controls = [space for space in kinds if space in CONTROLS]
    if controls and pipeline.kind == "language":
        raise ParameterError(
            f"{', '.join(controls)}: controls are tensors in memory, and {name} measures folders",
            remedy=f"leave {' and '.join(controls)} out of --spaces",
        )
    if pipeline.include is not None and not allow_code:
        raise ParameterError(
            "its task files of the harness can run code",
            source=pipeline.include,
            remedy="read them, and if you trust them add --allow-code (allow_code=True)",
        )
    known = _methods(methods or pipeline.methods, params or {})
    return RunSpec(
        pipeline=pipeline,
        folder=Path(out or f"magmerge-{pipeline.name}"),
        inputs=None if inputs is None else Path(inputs),
        data=None if data is None else Path(data),
        tasks=_tasks(pipeline, tasks),
        variants=tuple(variants_of(known, kinds, seeds)),
        params=params or {},
        samples=samples,
        alpha=alpha,
        generic=None if generic is None else str(generic),
        generic_samples=generic_samples or pipeline.generic.samples,
        keep=keep,
        machine=Hardware(**{"memory": "8GB", "device": "cpu", **machine}),
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
