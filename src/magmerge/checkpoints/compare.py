"""Whether two models are the same, told as early as their first difference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from magmerge import dtypes
from magmerge.checkpoints.expert import FullExpert
from magmerge.checkpoints.lora import LoraExpert
from magmerge.errors import StructureError
from magmerge.types import Checkpoint, Expert


def check_distinct(base: Checkpoint | None, experts: Sequence[Expert]) -> None:
    """StructureError if an expert is the base, or the same model is given twice."""
    faults = [
        f"{expert.source} is equal to the base {base.source}: it has learnt nothing to merge"
        for expert in experts
        if base is not None and is_base(expert, base)
    ]
    for i, first in enumerate(experts):
        faults += [
            f"{first.source} and {second.source} are the same expert"
            for second in experts[i + 1 :]
            if same_expert(first, second)
        ]
    if faults:
        raise StructureError(
            faults, remedy="drop it; to give an expert more influence use --set weights=[...]"
        )


def is_base(expert: Expert, base: Checkpoint) -> bool:
    """Whether all task vectors are zero."""
    if isinstance(expert, LoraExpert):
        return expert.changes_nothing()
    return isinstance(expert, FullExpert) and same_tensors(expert.checkpoint, base)


def same_expert(first: Expert, second: Expert) -> bool:
    """Whether two experts are the same tensors (and, for adapters, scaled alike)."""
    if isinstance(first, LoraExpert) and isinstance(second, LoraExpert):
        return first.scales == second.scales and same_tensors(first.adapter, second.adapter)
    if isinstance(first, FullExpert) and isinstance(second, FullExpert):
        return same_tensors(first.checkpoint, second.checkpoint)
    return False


def same_tensors(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether all floating-point tensors are equal. Small ones first: most pairs differ there."""
    mine = {name: spec for name, spec in first.specs.items() if spec.dtype in dtypes.FLOATS}
    theirs = {name: spec for name, spec in second.specs.items() if spec.dtype in dtypes.FLOATS}
    if {name: spec.shape for name, spec in mine.items()} != {
        name: spec.shape for name, spec in theirs.items()
    }:
        return False
    if first.files and [f.resolve() for f in first.files] == [f.resolve() for f in second.files]:
        return True
    by_size = sorted(mine, key=lambda name: (dtypes.nbytes(mine[name]), name))
    return all(
        torch.equal(first.read(name).double(), second.read(name).double()) for name in by_size
    )
