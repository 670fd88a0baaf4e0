"""What only contents tell: that two models are the same, a wrong base, integers that are lost."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from magmerge.checkpoints.experts import same_tensor, same_tensors
from magmerge.core.errors import StructureError, shortened
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.types import Step
from magmerge.engine.job import Models
from magmerge.engine.kinship import check_base


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
        for expert in experts
        if (base is not None or alone) and expert.changes_nothing(base, names)
    ]
    if faults:
        told = "drop it: it was never trained" if alone else ""
        raise StructureError(faults, remedy=told or "drop it, or check which model is the base")
    for i, first in enumerate(experts):
        faults += [
            f"{first.source} and {second.source} are the same {'adapter' if alone else 'expert'}"
            for second in experts[i + 1 :]
            if first.equals(second, names)
        ]
    if faults:
        raise StructureError(
            faults,
            remedy="drop one; for more influence of one expert set its weight: "
            "--set 'weights=[2, 1]'",
        )
    if models.merged is not None and base is not None:
        _check_merged(models.merged, base, experts, names)


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
    return (
        *check_base(models.base, models.experts, steps),
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
    for expert in models.experts:
        if expert.whole is None or expert.whole is base:
            continue
        changed = [name for name in names if _differs(expert.whole, base, name)]
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
    one, other = first.specs[name], second.specs[name]
    return one.shape != other.shape or not same_tensor(first, second, name)
