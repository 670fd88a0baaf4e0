"""What is wanted of a pipeline, checked before anything is looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magmerge import dtypes, registry
from magmerge.catalogue import catalog
from magmerge.device import open_device
from magmerge.errors import ParameterError, UnknownNameError, suggestion
from magmerge.evaluation.running import worker_count
from magmerge.machine import Machine as Threads
from magmerge.reproduction.measuring import Machine
from magmerge.reproduction.pipelines import Pipeline, find_pipeline
from magmerge.reproduction.variants import CONTROLS, PAPER, Variant, checked_spaces, variants_of
from magmerge.validation import check_method


@dataclass(frozen=True, slots=True)
class Wishes:
    """The arguments of `reproduce` that say what is compared, as they were given."""

    tasks: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    spaces: Sequence[str] = PAPER
    params: Mapping[str, Mapping[str, Any]] | None = None
    samples: int = 8
    seeds: int = 1
    alpha: int = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """What is wanted of a pipeline, and where it is kept and looked for.

    `samples` are drawn of each task, `generic_samples` of the generic set; `include` is a folder
    with task files for the harness.
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
    machine: Machine
    tiny: bool
    include: Path | None = None


def check_wishes(
    name: str,
    wishes: Wishes,
    *,
    folder: Path | None,
    inputs: Path | None,
    data: Path | None,
    generic: str | None,
    generic_samples: int | None,
    machine: Machine,
    tiny: bool,
) -> Asked:
    """Names and numbers checked; ParameterError or UnknownNameError for what is wrong."""
    pipeline = find_pipeline(name)
    for what, least in (("samples", 1), ("seeds", 1), ("alpha", 0)):
        number = getattr(wishes, what)
        if number < least:
            raise ParameterError(f"{what} is {number}", remedy=f"give {least} or more")
    spaces = checked_spaces(wishes.spaces)
    controls = [space for space in spaces if space in CONTROLS]
    if controls and pipeline.kind == "language":
        raise ParameterError(
            f"{', '.join(controls)}: controls are tensors in memory, and {name} measures folders",
            remedy=f"leave {' and '.join(controls)} out of --spaces",
        )
    methods = _methods(wishes.methods or pipeline.methods, wishes.params or {})
    _check_machine(machine)
    if tiny and (inputs is not None or data is not None):
        raise ParameterError(
            "tiny makes its own models and data", remedy="leave --inputs and --data out"
        )
    return Asked(
        pipeline=pipeline,
        folder=folder or Path(f"magmerge-{name}"),
        inputs=inputs,
        data=data,
        tasks=_tasks(pipeline, wishes.tasks),
        variants=tuple(variants_of(methods, spaces, wishes.seeds)),
        params=wishes.params or {},
        samples=wishes.samples,
        alpha=wishes.alpha,
        generic=generic,
        generic_samples=generic_samples or pipeline.generic.samples,
        machine=machine,
        tiny=tiny,
    )


def _methods(names: Sequence[str], params: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Known methods whose parameters are sound; none has parameters that is not among them."""
    catalog()
    found = tuple(dict.fromkeys(registry.methods.get(name).name for name in names))
    for name in params:
        if registry.methods.get(name).name not in found:
            raise ParameterError(
                f"parameters are given for {name}, which is not merged by here",
                remedy=f"add it to --methods (methods=): {', '.join(found)}",
            )
    for name in found:
        check_method(name, params.get(name, {}))
    return found


def _check_machine(machine: Machine) -> None:
    open_device(machine.device)
    Threads(machine.threads)
    worker_count(machine.workers)
    dtypes.parse_size(machine.memory)
    dtypes.parse_float_dtype(machine.dtype or "float32")


def _tasks(pipeline: Pipeline, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The tasks asked for, in the pipeline's order."""
    for name in wanted or ():
        if name not in pipeline.experts:
            raise UnknownNameError(
                f"{pipeline.name} has no task {name!r}", remedy=suggestion(name, pipeline.experts)
            )
    found = tuple(name for name in pipeline.experts if wanted is None or name in wanted)
    if len(found) < 2:
        raise ParameterError("one task alone is no merge", remedy="name two tasks or more")
    return found
