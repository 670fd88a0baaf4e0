"""Whether two models are the same, told as early as their first difference."""

from __future__ import annotations

from collections.abc import Collection

from magmerge.checkpoints.quantised import INTEGERS
from magmerge.core import dtypes
from magmerge.core.models import Checkpoint
from magmerge.core.pieces import cut

WHOLE = INTEGERS | {"BOOL"}


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
    import torch  # Opening models needs no torch.

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
