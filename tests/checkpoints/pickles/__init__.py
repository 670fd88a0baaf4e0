"""Torch files, sound and hostile ones."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from magmerge.checkpoints.pickles.torch_pickle import load_file


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one torch file by name, as state_dict() of the model in it would give them."""
    return dict(load_file(file).tensors)
