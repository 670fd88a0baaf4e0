"""Two results tensor by tensor, and what the difference between them is called."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

ROUNDING = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Two neighbours of a format are no farther apart than this share of their size."""
FLOOR = 4e-6
"""What float32 arithmetic in another order costs, over the largest entry of a tensor."""


class Difference(NamedTuple):
    """How far apart two results are: the share of entries beyond rounding, the largest gap over
    the largest entry, and tensors that only one of them has or that differ in shape.
    """

    share: float
    gap: float
    missing: tuple[str, ...]
    more: tuple[str, ...]
    shapes: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether all that both have is the same but for rounding."""
        return not (self.share or self.missing or self.shapes)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a result."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            state |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return state


def loaded(folder: Path) -> dict[str, Tensor]:
    """All tensors of a result under the names of the model that transformers makes of it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return dict(model.state_dict())


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Difference:
    """What of mergekit's result is otherwise in magmerge's."""
    far = entries = 0
    gap = 0.0
    shapes = []
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            shapes.append(f"{name} {tuple(a.shape)} {tuple(b.shape)}")
            continue
        coarse = max((a.dtype, b.dtype), key=lambda dtype: ROUNDING.get(dtype, 0.0))
        a, b = a.double(), b.double()
        size = float(b.abs().max()) if b.numel() else 0.0
        bound = ROUNDING.get(coarse, 0.0) * b.abs() + FLOOR * size
        distance = (a - b).abs()
        far += int((distance > bound).sum())
        entries += a.numel()
        gap = max(gap, float(distance.max()) / size if size else 0.0)
    return Difference(
        far / max(1, entries),
        gap,
        tuple(sorted(theirs.keys() - ours.keys())),
        tuple(sorted(ours.keys() - theirs.keys())),
        tuple(sorted(shapes)),
    )
