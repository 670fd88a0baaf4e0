"""Weights of 8 bits, seen as what they stand for: times their scales, where they have any.

A scale is one number, one for each row, or one for each block. The names are those of DeepSeek and
transformers (`weight_scale_inv`), compressed-tensors, FBGEMM and ModelOpt (`weight_scale`), and
ComfyUI (`scale_weight`). All of them multiply, whatever they are called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from magmerge.checkpoints.donor import REMOVED
from magmerge.checkpoints.kinds import QUANTISATION, read_model_config
from magmerge.core import dtypes
from magmerge.core.models import Checkpoint
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

EXACT, WRITTEN = "BF16", "BF16"
"""What holds every number of 8 bits exactly, and what is written where nothing else is said."""
KEYS = (QUANTISATION, "compression_config")
"""Under which a config tells of it; the second was compressed-tensors' once."""
METHODS = frozenset({"fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"})
"""The quantisations, by their names in a config, whose scaled weights of 8 bits are read here."""
SCALES = ("{weight}_scale_inv", "{weight}_scale", "{module}.scale_weight")
MARKER = "scaled_fp8"
"""The tensor that ComfyUI puts beside scaled weights."""
OF_INPUTS = frozenset(
    {
        "input_scale", "scale_input", "activation_scale", "output_scale", "q_scale", "k_scale",
        "v_scale", "comfy_quant", MARKER,
    }
)  # fmt: skip
"""Last parts of names of tensors that scale inputs, or mark a module: no weights are among them."""
SCALING = ("scale", "amax", "absmax", "quant", "zero_point")
"""Words in the names of tensors that an unknown quantisation has beside its weights."""
BLOCK = 128
"""The side of a block where no config tells it."""


class Scale(NamedTuple):
    """What a weight is multiplied with: a tensor, and how many entries of each of the weight's
    dimensions have one of its numbers.
    """

    name: str
    blocks: tuple[int, ...]


class Float8View:
    """`checkpoint` with the weights `scales` as float32, and those of `exact` as bfloat16.

    `settings` are what its config.json becomes, and `written` the format that a result has which is
    laid out like it, where no other is asked for.
    """

    settings: Mapping[str, Any] = MappingProxyType(dict.fromkeys(KEYS, REMOVED))
    written = WRITTEN

    def __init__(
        self,
        checkpoint: Checkpoint,
        scales: Mapping[str, Scale],
        exact: frozenset[str],
        left_out: frozenset[str],
    ) -> None:
        self._checkpoint = checkpoint
        self._scales = scales
        self._exact = exact
        self.source: str = checkpoint.source
        self.folder: Path | None = checkpoint.folder
        self.files: tuple[Path, ...] = checkpoint.files
        self.ties: Mapping[str, str] = {
            name: twin
            for name, twin in checkpoint.ties.items()
            if name not in left_out and twin not in left_out
        }
        self.kinds: Mapping[str, Kind] = checkpoint.kinds
        formats = {**dict.fromkeys(scales, "F32"), **dict.fromkeys(exact, EXACT)}
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {
                name: TensorSpec(name, spec.shape, formats.get(name, spec.dtype))
                for name, spec in checkpoint.specs.items()
                if name not in left_out
            }
        )
        self.notes: tuple[str, ...] = (*checkpoint.notes, self._note())

    def _note(self) -> str:
        counts = [f"{len(self._scales)} times their scales"] if self._scales else []
        counts += [f"{len(self._exact)} that have no scale as they are"] if self._exact else []
        return f"{self.source}: weights of 8 bits are read, {' and '.join(counts)}"

    def read(self, name: str) -> Tensor:
        """The tensor `name`."""
        shape = self.specs[name].shape
        return self.read_part(name, 0, math.prod(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, in memory of their own or in `out`."""
        if name not in self._scales and name not in self._exact:
            return self._checkpoint.read_part(name, start, stop, out)
        stored = self._checkpoint.read_part(name, start, stop)
        part = stored.to(dtypes.torch_dtype(self.specs[name].dtype))
        if name in self._scales and stop > start:
            scale = self._scales[name]
            numbers = self._checkpoint.read(scale.name).to(part.dtype)
            part.mul_(_spread(numbers, scale.blocks, self.specs[name].shape, start, stop))
        return part if out is None else out.copy_(part)


def with_values(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` as its numbers are meant, where weights of 8 bits are among them.

    Weights whose scales are in no known form stay as they are stored, so that nothing takes them
    for numbers.
    """
    eights = [name for name, spec in checkpoint.specs.items() if spec.dtype in dtypes.QUANTISED]
    if not eights:
        return checkpoint
    config = read_model_config(checkpoint).get(QUANTISATION)
    declared = config if isinstance(config, dict) else {}
    if config is not None and declared.get("quant_method") not in METHODS:
        return checkpoint
    left_out = {name for name in checkpoint.specs if name.rpartition(".")[2] in OF_INPUTS}
    marked = config is not None or any(name.rpartition(".")[2] == MARKER for name in left_out)
    scales: dict[str, Scale] = {}
    exact: set[str] = set()
    suspects = _modules_with_scales(checkpoint, left_out)
    for name in eights:
        scale = _scale_of(checkpoint, name, declared)
        if scale is not None:
            scales[name] = scale
        elif not marked and name.rpartition(".")[0] not in suspects:
            exact.add(name)
    left_out |= {scale.name for scale in scales.values()}
    scales = {name: scale for name, scale in scales.items() if name not in left_out}
    exact -= left_out
    if not scales and not exact:
        return checkpoint
    return Float8View(checkpoint, scales, frozenset(exact), frozenset(left_out))


def _modules_with_scales(checkpoint: Checkpoint, known: set[str]) -> set[str]:
    """The modules that have a tensor which an unknown quantisation might scale their weights by."""
    return {
        name.rpartition(".")[0]
        for name in checkpoint.specs
        if name not in known and any(word in name.rpartition(".")[2].lower() for word in SCALING)
    }


def _scale_of(checkpoint: Checkpoint, name: str, config: Mapping[str, Any]) -> Scale | None:
    """The scale beside a weight, where it is one that is known and fits."""
    module = name.removesuffix(".weight")
    beside = [form.format(weight=name, module=module) for form in SCALES]
    own = [other for other in beside if other in checkpoint.specs]
    if len(own) != 1 or checkpoint.specs[own[0]].dtype not in dtypes.FLOATS:
        return None
    blocks = _blocks(checkpoint.specs[name].shape, checkpoint.specs[own[0]].shape, config)
    return None if blocks is None else Scale(own[0], blocks)


def _blocks(
    shape: Sequence[int], numbers: Sequence[int], config: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """How many entries of each dimension of a weight have one number of its scale; None where the
    scale has another shape.
    """
    if math.prod(numbers) == 1:
        return tuple(shape)
    if len(numbers) == 1 and len(shape) == 2:
        numbers = (*numbers, 1)
    if len(numbers) != len(shape):
        return None
    sides = list(_declared(config))[-len(shape) :]
    sides = [BLOCK] * (len(shape) - len(sides)) + sides
    blocks = []
    for size, count, side in zip(shape, numbers, sides, strict=True):
        if count == 1:
            blocks.append(size)
        elif count == size:
            blocks.append(1)
        elif -(-size // side) == count:
            blocks.append(side)
        else:
            return None
    return tuple(blocks)


def _declared(config: Mapping[str, Any]) -> Iterator[int]:
    """The sides of a block as a config tells them, the last dimension's last."""
    sides = config.get("weight_block_size")
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        sides = sides or (weights.get("block_structure") if isinstance(weights, dict) else None)
    if isinstance(sides, list):
        yield from (side for side in sides if isinstance(side, int) and side > 0)


def _spread(
    numbers: Tensor, blocks: Sequence[int], shape: Sequence[int], start: int, stop: int
) -> Tensor:
    """The scale of each of the entries [start, stop) of a flattened weight of this shape."""
    import torch

    if numbers.numel() == 1:
        return numbers.reshape(1)
    columns, side = shape[-1], blocks[-1]
    first, last = start // columns, -(-stop // columns)
    counts = [-(-size // block) for size, block in zip(shape, blocks, strict=True)]
    row = torch.arange(first, last)
    place = torch.zeros_like(row)
    step = 1
    for size, block, count in reversed(list(zip(shape, blocks, counts, strict=True))[:-1]):
        place += (row % size) // block * step
        row, step = row // size, step * count
    rows = numbers.reshape(-1, counts[-1])[place]
    wide = rows.repeat_interleave(side, dim=1)[:, :columns] if counts[-1] > 1 else rows
    wide = wide.expand(last - first, columns)
    return wide.reshape(-1)[start - first * columns : stop - first * columns]
