"""Whether two models are the same, told as early as their first difference."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

from magmerge import dtypes
from magmerge.adapters.expert import AdapterExpert
from magmerge.checkpoints.expert import FullExpert
from magmerge.checkpoints.kinship import check_base
from magmerge.errors import StructureError, shortened
from magmerge.models import Checkpoint, Expert, Sources
from magmerge.pieces import cut
from magmerge.quantisation import INTEGERS
from magmerge.types import Step

WHOLE = INTEGERS | {"BOOL"}


def check_distinct(
    base: Checkpoint | None, experts: Sequence[Expert], names: Collection[str]
) -> None:
    """StructureError if an expert is the base, or two are the same, in the tensors `names`."""
    faults = [
        f"{expert.source} is equal to the base {base.source}: it has learnt nothing to merge"
        for expert in experts
        if base is not None and is_base(expert, base, names)
    ]
    if faults:
        raise StructureError(faults, remedy="drop it, or check which model is the base")
    for i, first in enumerate(experts):
        faults += [
            f"{first.source} and {second.source} are the same expert"
            for second in experts[i + 1 :]
            if same_expert(first, second, names)
        ]
    if faults:
        raise StructureError(
            faults,
            remedy="drop one; for more influence of one expert set its weight: "
            "--set 'weights=[2, 1]'",
        )


def check_merged(
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
        and isinstance(expert, FullExpert)
        and same_tensors(merged, expert.checkpoint, names)
    ]
    if faults:
        raise StructureError(
            faults, remedy="check the order: magmerge calibrate MERGED OUT --base B --expert E1 ..."
        )


def doubts(sources: Sources, steps: Sequence[Step]) -> tuple[str, ...]:
    """What a reader should know of the models' contents: a base that may be another's, integers
    that are lost.
    """
    return (
        *check_base(sources.base, sources.experts, steps),
        *_changed_buffers(sources, steps),
    )


def _changed_buffers(sources: Sources, steps: Iterable[Step]) -> tuple[str, ...]:
    """What a reader should know of integer and complex tensors: the experts' own are lost.

    A batch norm's count of batches is no part of what a model computes, and is not named.
    """
    base = sources.base or sources.layout
    names = [
        step.spec.name
        for step in steps
        if step.kind == "buffer" and step.action == "carry" and not _counts(step.spec.name)
    ]
    notes = []
    for expert in sources.experts:
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


def is_base(expert: Expert, base: Checkpoint, names: Collection[str]) -> bool:
    """Whether all task vectors are zero."""
    if isinstance(expert, AdapterExpert):
        return expert.changes_nothing()
    return isinstance(expert, FullExpert) and same_tensors(expert.checkpoint, base, names)


def same_expert(first: Expert, second: Expert, names: Collection[str]) -> bool:
    """Whether two experts are the same tensors (and, for adapters, scaled alike)."""
    if isinstance(first, AdapterExpert) and isinstance(second, AdapterExpert):
        return first.equals(second)
    if isinstance(first, FullExpert) and isinstance(second, FullExpert):
        return same_tensors(first.checkpoint, second.checkpoint, names)
    return False


def same_tensors(first: Checkpoint, second: Checkpoint, names: Collection[str]) -> bool:
    """Whether the tensors `names` are equal. Small ones first: most pairs differ there."""
    if any(name not in first.specs or name not in second.specs for name in names):
        return False
    if any(first.specs[name].shape != second.specs[name].shape for name in names):
        return False
    by_size = sorted(names, key=lambda name: (dtypes.nbytes(first.specs[name]), name))
    return bool(names) and all(same_tensor(first, second, name) for name in by_size)


def same_tensor(first: Checkpoint, second: Checkpoint, name: str) -> bool:
    """Whether a tensor has the same values in both, looked at piece by piece."""
    codes = {first.specs[name].dtype, second.specs[name].dtype}
    wide = torch.float64
    if "C64" in codes:
        wide = torch.complex128
    elif codes <= WHOLE:
        wide = torch.int64
    return all(
        torch.equal(
            first.read_part(name, piece.start, piece.stop).to(wide),
            second.read_part(name, piece.start, piece.stop).to(wide),
        )
        for piece in cut(first.specs[name].shape, "other", "entries")
    )
