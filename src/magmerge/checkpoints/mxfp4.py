"""The experts of gpt-oss as transformers names them: their MXFP4 blocks as the numbers they are.

A block is 32 numbers of 4 bits, two in a byte and the lower half first, that are multiplied with
one power of two. They are stored as [experts, outputs, blocks, 16] under NAME_blocks with their
exponents, plus 127, as [experts, outputs, blocks] under NAME_scales; the weight NAME is
[experts, inputs, outputs].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from magmerge.checkpoints.donor import REMOVED
from magmerge.checkpoints.kinds import QUANTISATION, read_model_config
from magmerge.core import dtypes
from magmerge.core.models import Checkpoint
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS, SCALES = "_blocks", "_scales"
BYTES, BIAS = 16, 127
NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three of the four bits stand for; the highest is the sign."""
EXACT = "BF16"
"""What holds each of them exactly."""


class Mxfp4View:
    """`checkpoint` with the weights `experts` in place of their blocks and scales.

    `settings` and `written` are as those of a Float8View.
    """

    settings: Mapping[str, Any] = MappingProxyType({QUANTISATION: REMOVED})
    written = EXACT

    def __init__(self, checkpoint: Checkpoint, experts: Mapping[str, tuple[int, ...]]) -> None:
        self._checkpoint = checkpoint
        self._experts = experts
        self.source: str = checkpoint.source
        self.folder: Path | None = checkpoint.folder
        self.files: tuple[Path, ...] = checkpoint.files
        self.ties: Mapping[str, str] = checkpoint.ties
        self.kinds: Mapping[str, Kind] = checkpoint.kinds
        note = f"{self.source}: {len(experts)} tensors in MXFP4 are read as the numbers they are"
        self.notes: tuple[str, ...] = (*checkpoint.notes, note)
        specs: dict[str, TensorSpec] = {}
        for name, spec in checkpoint.specs.items():
            own = name.removesuffix(BLOCKS).removesuffix(SCALES)
            if own in experts:
                specs[own] = TensorSpec(own, experts[own], EXACT)
            else:
                specs[name] = spec
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)

    def read(self, name: str) -> Tensor:
        """The tensor `name`."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if name not in self._experts:
            return self._checkpoint.read_part(name, start, stop, out)
        import torch

        if out is None:
            out = torch.empty(stop - start, dtype=dtypes.torch_dtype(EXACT))
        size = math.prod(self._experts[name][1:])
        done = start
        while done < stop:
            expert = done // size
            end = min(stop, (expert + 1) * size)
            whole = self._expert(name, expert).t().reshape(-1)
            part = whole[done - expert * size : end - expert * size]
            out[done - start : end - start].copy_(part)
            done = end
        return out

    def _expert(self, name: str, number: int) -> Tensor:
        """One expert's weight [outputs, inputs]."""
        import torch

        _, inputs, outputs = self._experts[name]
        count = inputs * outputs // 2
        packed = self._checkpoint.read_part(name + BLOCKS, number * count, (number + 1) * count)
        blocks = count // BYTES
        powers = self._checkpoint.read_part(name + SCALES, number * blocks, (number + 1) * blocks)
        signed = (*NUMBERS, *(-value for value in NUMBERS))
        pairs = torch.tensor([(signed[byte & 15], signed[byte >> 4]) for byte in range(256)])
        values = pairs.index_select(0, packed.to(torch.int32)).reshape(blocks, 2 * BYTES)
        exponents = powers.to(torch.int32).sub_(BIAS)
        return torch.ldexp(values, exponents[:, None]).reshape(outputs, inputs)


def with_values(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with its MXFP4 experts as numbers; as it is where it has none in that form."""
    config = read_model_config(checkpoint).get(QUANTISATION)
    if isinstance(config, dict) and config.get("quant_method") != "mxfp4":
        return checkpoint
    experts = {}
    for name, spec in checkpoint.specs.items():
        own = name.removesuffix(BLOCKS)
        scale = checkpoint.specs.get(own + SCALES)
        if own == name or scale is None or {spec.dtype, scale.dtype} != {"U8"}:
            continue
        if len(spec.shape) == 4 and spec.shape[3] == BYTES and scale.shape == spec.shape[:3]:
            count, outputs, blocks, _ = spec.shape
            experts[own] = (count, blocks * 2 * BYTES, outputs)
    return Mxfp4View(checkpoint, experts) if experts else checkpoint
