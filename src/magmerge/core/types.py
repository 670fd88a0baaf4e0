"""The nouns of a merge, which all other files speak of. No logic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

from magmerge.core.lazy import Tabular

Kind = Literal[
    "matrix",  # [out, in]
    "transposed",  # [in, out], the Conv1D of GPT-2 and its kin
    "convolution",  # [out, in / groups, *kernel]
    "embedding",  # [tokens, features]
    "head",  # [tokens or classes, features], the last layer
    "vector",  # one dimension: biases, norms
    "statistics",  # running mean and variance of a batch norm
    "experts",  # three dimensions: the fused experts of a mixture model
    "other",  # class tokens, tables and what else has more than one dimension
    "scalar",
    "buffer",  # integers, booleans
]
"""What a tensor is to its model."""

Action = Literal["merge", "mean", "average", "carry", "tie", "lose"]
"""What happens to a tensor: the method; lambda times the mean task vector, where the method is not
defined for its kind; the plain mean; a bit-for-bit copy; a twin's result; or nothing, where an
adapter has no place for it, and its norm is told."""

Cut = Literal["entries", "rows", "whole"]
"""Into what a layer may be cut, so that treating each piece alone gives the same as the whole."""


Naming = Literal["peft", "diffusers", "diffusers_old", "kohya", "kohya_ldm", "kohya_flux"]
"""How an adapter's file names its modules:
peft: base_model.model.M.lora_A.weight, in a folder with adapter_config.json;
diffusers: unet.M.lora_A.weight, M as in diffusers' models;
diffusers_old: M.processor.to_k_lora.down.weight;
kohya: lora_unet_M.lora_down.weight, M as in diffusers with _ for dots;
kohya_ldm: the same with the names of single-file checkpoints (input_blocks_4_1_...);
kohya_flux: with those of Flux' own files (double_blocks_0_img_attn_qkv), q, k and v in one."""

UNCHANGED = "no expert changes it"
"""Why a tensor is carried over that all experts have as the base has it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor. `dtype` is safetensors' code: F32, BF16, I64, ..."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Piece(NamedTuple):
    """Entries [start, stop) of a flattened layer, in the shape that the mathematics sees.

    `grain` is what all pieces but the last are multiples of: sums are taken grain by grain, so that
    they do not depend on the pieces.
    """

    start: int
    stop: int
    shape: tuple[int, ...]
    grain: int


@dataclass(frozen=True, slots=True)
class Step:
    """One output tensor, or some rows of it: what it is, what happens to it and why, and where its
    bytes go.

    `wide`: the arithmetic is in float64, as for models that are stored so. `params`: the values of
    those of the method's parameters that vary by layer, by public name. `voters`: the experts, by
    place, that have these rows; None: all. `whole` is the shape of the tensor that these rows are a
    part of, and `first` the entry of it where they begin; None: they are all of it. `part`: the
    folder within the result whose file it belongs to.
    """

    spec: TensorSpec
    kind: Kind
    action: Action
    reason: str
    calibrated: bool = False
    sensitive: bool = False
    twin: str | None = None
    shard: int = 0
    offset: int = 0
    wide: bool = False
    params: tuple[tuple[str, Any], ...] = ()
    voters: tuple[int, ...] | None = None
    whole: tuple[int, ...] | None = None
    first: int = 0
    part: str = ""

    @property
    def key(self) -> str:
        """What tells it from every other step."""
        return self.tensor_key if self.whole is None else f"{self.tensor_key}@{self.first}"

    @property
    def tensor_key(self) -> str:
        """What tells its tensor from every other: the steps of one tensor share it."""
        return f"{self.part}/{self.spec.name}" if self.part else self.spec.name

    @property
    def path(self) -> str:
        """What tells its tensor from every other of the result."""
        inside = self.part and not self.spec.name.startswith(f"{self.part}.")
        return f"{self.part}/{self.spec.name}" if inside else self.spec.name

    @property
    def tensor(self) -> TensorSpec:
        """The output tensor that it is, or is a part of."""
        return self.spec if self.whole is None else replace(self.spec, shape=self.whole)

    @property
    def stored(self) -> TensorSpec:
        """The same as its file has it: within a part's folder it is named without the part."""
        if not self.part:
            return self.tensor
        return replace(self.tensor, name=self.spec.name.removeprefix(f"{self.part}."))


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its name, its finished header and its size in bytes."""

    file: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a parameter that varies by layer, and how many merged tensors take it.

    `filter` None: those that no filter takes. `layers` and `stack`: as in `core.filters.Item`.
    """

    parameter: str
    filter: str | None
    value: Any
    tensors: int
    layers: tuple[int, int] | None = None
    stack: str | None = None


@dataclass(frozen=True, slots=True)
class Plan(Tabular):
    """All that will happen, known from headers alone. Sizes are in bytes.

    `shards` are the files of a model; those of an adapter are known when it is merged. `memory` is
    the stated peak beyond the interpreter and torch; `room` the part of it that jobs share; `live`
    that of a model that is run, without what it computes; `piece` how many entries of a layer are
    at work at once. `choices`: the values of parameters that vary by layer. `blocks` say of whose
    blocks the result is, where it is made of slices.
    """

    tabled: ClassVar[str] = "magmerge.engine.result_table:plan_table"
    digest: str
    steps: tuple[Step, ...]
    shards: tuple[Shard, ...]
    disk: int
    memory: int
    piece: int
    room: int
    copied: tuple[str, ...]
    live: int
    warnings: tuple[str, ...]
    choices: tuple[Choice, ...] = ()
    blocks: tuple[str, ...] = ()


class Uncovered(NamedTuple):
    """A layer that a calibration could not measure, and left as the merge made it; and why."""

    layer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Factor:
    """What one calibrator found for one layer: its mean factor before the gate, and after.

    `experts`: for a calibrator that looks at inputs, the mean factor that each expert's samples ask
    for, in the order of the experts; None where they tell nothing.
    """

    calibrator: str
    free: float
    gated: float
    experts: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What the merge and the calibration did to one layer.

    `xi` is the mean factor, `xi_min` and `xi_max` its extremes over the rows, `xi_free` its mean
    before the gate; the norms are those of the merged task vector before and after; `cosine` is
    the mean pairwise cosine of the experts' rows, None where fewer than two changed anything.
    `norm_experts` is the mean norm of the experts' task vectors, known where the layer was
    calibrated; `factors` what each calibrator found, in turn. `rows_bounded` says how many rows
    asked for more than the bound, and `xi_asked` for how much at most. `notes`: where the
    arithmetic had to leave its usual path.
    """

    name: str
    action: Action
    kind: Kind
    sensitive: bool
    xi: float
    xi_min: float
    xi_max: float
    xi_free: float
    norm_before: float
    norm_after: float
    cosine: float | None
    calibrated_by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    norm_experts: float | None = None
    factors: tuple[Factor, ...] = ()
    rows_bounded: int = 0
    xi_asked: float | None = None
