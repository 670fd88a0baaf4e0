"""What only contents tell: that two models are the same, a wrong base, integers that are lost.

Whether a base is that of its experts is told from samples of their weights. A fine-tune stays near
its base, and task vectors of different tasks are near orthogonal: what they share is not of the
tasks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from magmerge.checkpoints.experts import entries, same_tensor, same_tensors
from magmerge.core import dtypes
from magmerge.core.errors import StructureError, shortened
from magmerge.core.lazy import Tensor, torch
from magmerge.core.models import Checkpoint, Expert, as_stored
from magmerge.core.types import Kind, Step
from magmerge.engine.job import Models

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64 = NDArray[np.float64]

LAYERS, ENTRIES = 24, 4096
"""How many layers are looked at, and how many entries of each."""
LEAST, FEWEST = 64, 512
"""Entries of a layer, and of all, below which a cosine tells nothing."""
WEIGHTS: frozenset[Kind] = frozenset({"matrix", "transposed", "convolution", "experts"})
ENOUGH = 4
"""One in so many layers must be changed by all experts to tell what they share."""
STRANGE, FAR = 0.2, 0.8
"""Cosine of an expert's weights and the base's: below the first they are unrelated; below the
second they have less in common than a fine-tune has with its base.
"""
SIBLINGS, SUCCESSOR = 0.35, 0.65
"""Mean cosine of task vectors. It is 0.5 where the base is as far from each expert as they are from
each other, as a further expert is; above that they were tuned from something that the base is not.
"""


@dataclass(frozen=True, slots=True)
class Kinship:
    """How near one expert is to the base: the median over layers of the cosine of the weights, and
    of |D| / |W_0|.
    """

    source: str
    cosine: float
    distance: float


def check_distinct(models: Models, steps: Sequence[Step]) -> None:
    """StructureError if an expert changes nothing, if two are the same, or if what should be
    calibrated is no merge, in the tensors that are merged.
    """
    names = {step.spec.name: None for step in steps if step.action in ("merge", "mean", "average")}
    base, experts = models.base, models.experts
    nothing = (
        "changes nothing: in every module a factor is zero"
        if base is None
        else f"is equal to the base {base.source}: it has learnt nothing to merge"
    )
    alone = models.union is not None
    faults = [
        f"{expert.source} {nothing}"
        for place, expert in enumerate(experts)
        if (base is not None or alone)
        and expert.changes_nothing(base, _of(models, names, place, based=True))
    ]
    if faults:
        told = "drop it: it was never trained" if alone else ""
        raise StructureError(faults, remedy=told or "drop it, or check which model is the base")
    for i, first in enumerate(experts):
        faults += [
            f"{first.source} and {second.source} are the same {'adapter' if alone else 'expert'}"
            for j, second in enumerate(experts[i + 1 :], start=i + 1)
            if first.equals(second, _of(models, names, i, j))
        ]
    if faults:
        raise StructureError(
            faults,
            remedy="drop one; for more influence of one expert set its weight: "
            "--set 'weights=[2, 1]'",
        )
    if models.merged is not None and base is not None:
        _check_merged(models.merged, base, experts, names)


def _of(
    models: Models, names: Collection[str], *places: int, based: bool = False
) -> Collection[str]:
    """Those of the tensors in which all experts at these places have a part, and the base too."""
    if not models.votes:
        return names
    votes = {name: models.votes.get(name) for name in names}
    return [
        name
        for name, vote in votes.items()
        if vote is None or (set(places) <= set(vote.experts) and (vote.based or not based))
    ]


def _check_merged(
    merged: Checkpoint, base: Checkpoint, experts: Sequence[Expert], names: Collection[str]
) -> None:
    """StructureError if what should be calibrated is no merge, but the base or one expert."""
    faults = []
    if same_tensors(merged, base, names):
        faults.append(f"the merged model {merged.source} is equal to the base {base.source}")
    faults += [
        f"the merged model {merged.source} is equal to the expert {expert.source}"
        for expert in experts
        if len(experts) > 1
        and expert.whole is not None
        and same_tensors(merged, expert.whole, names)
    ]
    if faults:
        raise StructureError(
            faults, remedy="check the order: magmerge calibrate MERGED OUT --base B --expert E1 ..."
        )


def doubts(models: Models, steps: Sequence[Step]) -> tuple[str, ...]:
    """What a reader should know of the models' contents: a base that may be another's, integers
    that are lost.
    """
    # A block has nothing in common with another one of its own base.
    moved = {name for name, vote in models.votes.items() if vote.moved}
    own = [step for step in steps if step.spec.name not in moved]
    return (
        *check_base(models.base, models.experts, own),
        *_changed_buffers(models, steps),
    )


def _changed_buffers(models: Models, steps: Iterable[Step]) -> tuple[str, ...]:
    """What a reader should know of integer and complex tensors: the experts' own are lost.

    A batch norm's count of batches is no part of what a model computes, and is not named.
    """
    base = models.base or models.layout
    names = [
        step.spec.name
        for step in steps
        if step.kind == "buffer" and step.action == "carry" and not _counts(step.spec.name)
    ]
    notes = []
    for place, expert in enumerate(models.experts):
        if expert.whole is None or expert.whole is base:
            continue
        own = _of(models, names, place)
        changed = [name for name in own if _differs(expert.whole, base, name)]
        if changed:
            notes.append(
                f"{expert.source} has other values than {base.source} in tensors that are not "
                f"merged, and are carried over: {shortened(changed)}"
            )
    return tuple(notes)


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _differs(first: Checkpoint, second: Checkpoint, name: str) -> bool:
    if name not in first.specs or name not in second.specs:
        return False
    spec, twin = first.specs[name], second.specs[name]
    return spec.shape != twin.shape or not same_tensor(first, second, name)


def check_base(
    base: Checkpoint | None, experts: Sequence[Expert], steps: Iterable[Step]
) -> tuple[str, ...]:
    """What speaks against the base being that of the experts: a sentence for each doubt.

    Adapters are not judged: what they add fits any base of these shapes.
    """
    experts = [expert for expert in experts if expert.whole is not None]
    if base is None or not experts:
        return ()
    layers = [layer for step in _chosen(steps) if (layer := _sample(base, experts, step))]
    if sum(origin.size for origin, _ in layers) < FEWEST:
        return ()
    kinships = [_kinship(expert.source, k, layers) for k, expert in enumerate(experts)]
    notes = [
        f"{expert.source} has nothing in common with the base {base.source} (cosine of their "
        f"weights {expert.cosine:.2f}, |D| / |W_0| {expert.distance:.2f}): the base has another "
        "initialisation, or its layers or channels are in another order, and what is merged is no "
        "task vector; give the model that the experts were tuned from"
        for expert in kinships
        if expert.cosine < STRANGE
    ]
    notes += [
        f"{expert.source} is far from the base {base.source} (cosine of their weights "
        f"{expert.cosine:.2f}, |D| / |W_0| {expert.distance:.2f}); was it really tuned from it?"
        for expert in kinships
        if STRANGE <= expert.cosine < FAR
    ]
    # Unrelated models share with each other what they have not with any base.
    return tuple(notes or _shared(base, len(experts), layers))


Layer = tuple[Any, Any]
"""Entries of the base [n], and of each expert's task vector [K, n], in numpy's float64."""


def _chosen(steps: Iterable[Step]) -> list[Step]:
    """Some of the layers that all experts have a vote on, from the first to the last."""
    every = (step for step in steps if step.voters is None)
    merged = [step for step in every if step.action == "merge" and step.kind in WEIGHTS]
    if len(merged) <= LAYERS:
        return merged
    return [merged[number * (len(merged) - 1) // (LAYERS - 1)] for number in range(LAYERS)]


def _sample(base: Checkpoint, experts: Sequence[Expert], step: Step) -> Layer | None:
    """Entries from the middle of a layer; None where there are too few, or some are not finite."""
    name, shape = step.spec.name, step.spec.shape
    size = math.prod(shape)
    count = min(size, ENTRIES)
    if count < LEAST or name not in base.specs:
        return None
    start = (size - count) // 2
    origin = _float64(entries(base, name, start, start + count))
    deltas = np.stack([_delta(expert, name, origin, start) for expert in experts])
    if not (np.isfinite(origin).all() and np.isfinite(deltas).all() and origin.any()):
        return None
    return origin, deltas


def _delta(expert: Expert, name: str, origin: Float64, start: int) -> Float64:
    """The task vector on the base in the expert's own precision: rounding is nothing learnt."""
    if as_stored(expert, name) is not None:
        assert expert.whole is not None
        own = _float64(entries(expert.whole, name, start, start + len(origin)))
    else:
        own = expert.weight(name, torch.from_numpy(origin), start).numpy()
    return own - dtypes.rounded(origin, expert.specs[name].dtype)


def _float64(values: Any) -> Float64:
    plain = values.double().numpy() if isinstance(values, Tensor) else values.astype(np.float64)
    return cast("Float64", plain)


def _kinship(source: str, expert: int, layers: Sequence[Layer]) -> Kinship:
    """A layer that is as in the base is the best proof of kinship."""
    own = [(origin, deltas[expert]) for origin, deltas in layers]
    return Kinship(
        source,
        statistics.median(_cosine(origin, origin + delta) for origin, delta in own),
        statistics.median(_norm(delta) / _norm(origin) for origin, delta in own),
    )


def _shared(base: Checkpoint, count: int, layers: Sequence[Layer]) -> list[str]:
    """What task vectors of different tasks do not share, and these do."""
    cosines = [
        statistics.fmean(_cosine(deltas[i], deltas[j]) for i, j in combinations(range(count), 2))
        for _, deltas in layers
        if count > 1 and deltas.any(axis=1).all()
    ]
    shared = statistics.median(cosines) if ENOUGH * len(cosines) >= len(layers) else 0.0
    if not cosines or shared < SIBLINGS:
        return []
    told = f"the experts' task vectors on the base {base.source} have a mean cosine of {shared:.2f}"
    if shared < SUCCESSOR:
        return [
            f"{told}: it is about as far from each expert as they are from each other, as one more "
            "expert would be; give the model that all were tuned from, unless they learnt one task"
        ]
    return [
        f"{told}: they share what the base has not, so they probably have another one: a later "
        "version of it (an instruct model, or a further pretraining), or one that it was tuned "
        "from itself; give that one, unless they learnt one task"
    ]


def _norm(values: Float64) -> float:
    return float(np.linalg.norm(values))


def _cosine(first: Float64, second: Float64) -> float:
    norms = _norm(first) * _norm(second)
    return float(first @ second) / norms if norms > 0 else 0.0
