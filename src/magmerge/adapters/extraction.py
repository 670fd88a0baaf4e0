"""extract(): a LoRA adapter out of a fine-tuned model, and what of the model it does not hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from magmerge import dtypes
from magmerge.adapters.base_naming import nameless
from magmerge.adapters.extraction_result import Extraction, concluded, path_of
from magmerge.adapters.nouns import Naming
from magmerge.adapters.publishing import FOLDER, adapter_target
from magmerge.adapters.ranks import check_naming
from magmerge.adapters.task_vectors import (
    BY_DEFAULT,
    WEIGHT,
    Extracted,
    LostTensor,
    Rank,
    bytes_of,
    extracted,
    reason_against,
    squared_norm,
)
from magmerge.checkpoints.compare import doubts
from magmerge.checkpoints.opening import Model
from magmerge.device import Processor
from magmerge.errors import ParameterError, StructureError
from magmerge.executors import local
from magmerge.executors.local import Job, Task
from magmerge.faults import matches, reading_notes
from magmerge.memory import DEFAULT, OVERHEAD
from magmerge.models import Sources
from magmerge.pieces import cut, stretches
from magmerge.planning import make_plan
from magmerge.provenance import FILE
from magmerge.publishing import inputs_of
from magmerge.reading import Reader
from magmerge.request import patterns, prepare, thread_count
from magmerge.run import Progress, counter
from magmerge.types import Step


def extract(
    *,
    base: Model,
    model: Model,
    out: str | Path | None = None,
    rank: int | Literal["auto"] = 16,
    energy: float = 0.99,
    targets: str | Iterable[str] = (),
    ignore: str | Iterable[str] = (),
    dtype: str | None = None,
    naming: Naming | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    memory: str | int = DEFAULT,
    progress: Progress | None = None,
) -> Extraction:
    """Make a LoRA adapter on `base` out of a fine-tuned `model`.

    Each changed weight of a linear layer or convolution gets the best approximation of its task
    vector at `rank`, or, with "auto", at the least rank that holds the share `energy` of its
    squared norm; embeddings and output heads only where `targets` name them. `targets` and `ignore`
    are shell patterns on whole names, and targets also on modules' names; with targets nothing else
    is adapted. `dtype` is the factors' format, by default that of most of the base's weights.
    `naming` is how the file names its modules, by default PEFT's, a folder. What differs and cannot
    be adapted is listed in `lost`, counted in `error`, and warned of. `threads` and `memory` are as
    in `merge` and do not change the result.

    Raises StructureError for models that do not fit each other or are equal, AdapterError where
    nothing that changed can be adapted, ParameterError, NonFiniteError, OutputError.
    """
    wanted, form = _rank(rank, energy), FOLDER if naming is None else check_naming(naming)
    count, limit = thread_count(threads), dtypes.parse_size(memory)
    chosen, method = patterns(targets), "task_arithmetic"
    recipe, sources = prepare(
        base=base, experts={"model": model}, method=method, ignore=ignore, dtype=dtype
    )
    files = [file for _, _, own in inputs_of(sources) for file in own]
    if out is not None:
        adapter_target(path_of(out), form, inputs=files, overwrite=overwrite, beside=(FILE,))
    plan = make_plan(recipe, sources, threads=count, memory=limit)
    steps = [step for step in plan.steps if step.action in ("merge", "average")]
    _check_targets(steps, chosen)
    code = recipe.dtype or _most_common(sources, steps)
    asked = {
        "base": sources.layout.source,
        "model": sources.experts[0].source,
        "rank": wanted.rank,
        "energy": wanted.energy if wanted.rank == "auto" else None,
        "targets": chosen,
        "ignore": recipe.ignore,
        "dtype": code,
        "naming": form,
    }
    reasons, room = _reasons(sources, steps, chosen, form), limit - OVERHEAD
    _check_room(steps, reasons, wanted, room)
    tasks = _tasks(sources, steps, reasons, wanted, code)
    done = counter("extracting", len(steps), progress)
    told = (*reading_notes(sources), *doubts(sources, plan.steps))
    found = local.run(tasks, threads=count, room=room, done=done)
    result = concluded(sources, found, code, form, asked, told)
    if out is None:
        return result
    return replace(result, path=result.save(out, overwrite=overwrite, threads=count))


def _rank(rank: object, energy: object) -> Rank:
    """What is asked of each module; ParameterError for values that mean nothing."""
    number = int(rank) if isinstance(rank, str) and rank.isdecimal() else rank
    if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0 < energy <= 1:
        raise ParameterError(
            f"the energy is {energy!r}",
            remedy="give the share of the squared norm to keep, above 0 and up to 1, like 0.99",
        )
    if number == "auto":
        return Rank("auto", float(energy))
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ParameterError(f"the rank is {rank!r}", remedy="give a number of 1 or more, or auto")
    return Rank(number, float(energy))


def _check_targets(steps: Sequence[Step], targets: Sequence[str]) -> None:
    """StructureError for patterns that name nothing, which are most likely misspelt."""
    names = [step.spec.name for step in steps]
    names += [name.removesuffix(WEIGHT) for name in names]
    faults = [
        f"the pattern {pattern!r} matches no tensor that could be adapted"
        for pattern in targets
        if not any(matches(name, [pattern]) for name in names)
    ]
    if faults:
        raise StructureError(
            faults,
            remedy="patterns match whole names: '*.q_proj', 'lm_head'; `magmerge inspect` lists "
            "the names",
        )


def _most_common(sources: Sources, steps: Sequence[Step]) -> str:
    """The format of most of the base's values in layers, or of all where it has no layer."""
    held = [step for step in steps if step.kind in BY_DEFAULT] or steps
    counts: Counter[str] = Counter()
    for step in held:
        counts[sources.layout.specs[step.spec.name].dtype] += math.prod(step.spec.shape)
    return max(sorted(counts), key=lambda code: counts[code], default="F32")


def _reasons(
    sources: Sources, steps: Sequence[Step], targets: Sequence[str], naming: Naming
) -> list[str | None]:
    """Why each tensor is not adapted; None where it is."""
    base = sources.layout
    reasons = [
        reason_against(step, base.ties.get(step.spec.name), targets, naming) for step in steps
    ]
    held = [step.spec.name for step, why in zip(steps, reasons, strict=True) if why is None]
    without = nameless(base, held, naming) if held else frozenset()
    return [
        f"it has no name under {naming}" if step.spec.name in without else why
        for step, why in zip(steps, reasons, strict=True)
    ]


def _tasks(
    sources: Sources,
    steps: Sequence[Step],
    reasons: Sequence[str | None],
    rank: Rank,
    dtype: str,
) -> Iterator[Task[Extracted | LostTensor | None]]:
    """What becomes of each tensor, in the order of the base; None for one that is equal."""
    reader = Reader(sources, Processor())
    for step, reason in zip(steps, reasons, strict=True):
        if reason is None:
            yield _adapted(reader, step, rank, dtype)
        else:
            yield _lost(reader, step, reason)


def _check_room(
    steps: Sequence[Step], reasons: Sequence[str | None], rank: Rank, room: int
) -> None:
    """ParameterError where the layer that takes most does not fit into `room` bytes."""
    needs = [
        (bytes_of(step, rank), step.spec.name)
        for step, why in zip(steps, reasons, strict=True)
        if why is None
    ]
    most, name = max(needs, default=(0, ""))
    if most > room:
        wanted = -(-(most + OVERHEAD) // 10_000_000) / 100
        raise ParameterError(
            f"{dtypes.spoken_size(room + OVERHEAD)} of memory are too little: this layer takes "
            f"{dtypes.spoken_size(most)} beside {dtypes.spoken_size(OVERHEAD)} for the program's "
            "own needs",
            tensor=name,
            remedy=f"allow more with --memory {wanted:.2f}GB (memory=)",
        )


def _adapted(reader: Reader, step: Step, rank: Rank, dtype: str) -> Task[Extracted | None]:
    call = partial(extracted, reader, step, rank, dtype)
    results = yield [Job(bytes_of(step, rank), call)]
    return results[0]  # type: ignore[no-any-return]


def _lost(reader: Reader, step: Step, reason: str) -> Task[LostTensor | None]:
    # These pieces are always the same ones, so that their sums are.
    parts = stretches(cut(step.spec.shape, "other", "entries"))
    squares = yield [Job(0, partial(squared_norm, reader, step, part)) for part in parts]
    norm = math.sqrt(math.fsum(squares))
    return LostTensor(step.spec.name, step.spec.shape, norm, reason) if norm else None
