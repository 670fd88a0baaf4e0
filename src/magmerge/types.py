"""The nouns of a merge, which all other files speak of. No logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

from annotated_types import Interval
from typing_extensions import Doc

if TYPE_CHECKING:
    from torch import Tensor

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

Action = Literal["merge", "average", "carry", "tie"]
"""What happens to a tensor: the method, the plain mean, a bit-for-bit copy, or a twin's result."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor. `dtype` is safetensors' code: F32, BF16, I64, ..."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Checkpoint(Protocol):
    """Tensors by name, read lazily and one at a time."""

    @property
    def source(self) -> str:
        """What messages call it."""
        ...

    @property
    def folder(self) -> Path | None:
        """Where its config and tokenizer are, if it has any."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """What a digest is taken of."""
        ...

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor's header, in the order of the model."""
        ...

    @property
    def ties(self) -> Mapping[str, str]:
        """Each tensor that shares another's memory, to that other."""
        ...

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """What is known of its layers beyond shapes."""
        ...

    def read(self, name: str) -> Tensor:
        """The whole tensor `name`, on the CPU, in its stored dtype."""
        ...


class Expert(Protocol):
    """One fine-tuned model, whole or as an adapter on the base."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def source(self) -> str:
        """Where it is from."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """What a digest is taken of."""
        ...

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors it has, or would have as a whole model."""
        ...

    @property
    def ties(self) -> Mapping[str, str]:
        """Each tensor that shares another's memory, to that other."""
        ...

    @property
    def untouched(self) -> frozenset[str]:
        """Those of them that it is known to leave as in the base."""
        ...

    @property
    def faults(self) -> Sequence[str]:
        """What its headers show to be wrong with it."""
        ...

    def weight(self, name: str, base: Tensor) -> Tensor:
        """The expert's own tensor, in the dtype of `base`, which is what the base has."""
        ...

    def delta(self, name: str, base: Tensor) -> Tensor:
        """The task vector `expert - base`, in the dtype of `base`."""
        ...


class Sources(NamedTuple):
    """The opened models. `layout` is the one whose tensors, and only those, the result has."""

    layout: Checkpoint
    base: Checkpoint | None
    experts: Sequence[Expert]
    merged: Checkpoint | None


@dataclass(frozen=True, slots=True)
class Supplied:
    """Marks a parameter that the pipeline fills in, not the user."""


Density = Annotated[
    float, Interval(gt=0, le=1), Doc("share of each task vector's entries that is kept")
]
Lambda = Annotated[float, Doc("factor on the merged task vector")]
Probability = Annotated[float, Interval(ge=0, lt=1), Doc("chance that an entry is dropped")]
Weights = Annotated[
    Sequence[float] | None, Doc("one weight per expert, in their order; all equal if not given")
]
Seeds = Annotated[Sequence[int] | None, Supplied()]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting of a method or calibrator, as its function's signature declares it."""

    name: str
    keyword: str
    default: object
    annotation: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class Method:
    """A merge: `fn(tensors, **params)` takes one layer of K models, [K, *shape], gives [*shape].

    `acts_on` says whether these are task vectors (the result is the merged one) or whole weights.
    `random`: it takes `seeds`, one for each expert. `ordered`: exchanging experts changes the
    result. `experts`: least and greatest K. `base_free`: defined without a base model.
    `survey`, if set, gathers whole-model statistics before the merge. `workspace`: how many
    tensors of the layer's size `fn` holds beside its inputs, for each expert and in all.
    """

    name: str
    fn: Callable[..., Tensor]
    source: str
    summary: str
    parameters: tuple[Parameter, ...]
    acts_on: Literal["deltas", "weights"] = "deltas"
    random: bool = False
    ordered: bool = False
    base_free: bool = False
    experts: tuple[int, int | None] = (1, None)
    survey: Callable[..., Survey | None] | None = None
    workspace: tuple[int, int] = (0, 3)


@runtime_checkable
class Survey(Protocol):
    """Statistics of all task vectors, gathered in `passes` sweeps in any order of the layers."""

    passes: int

    def observe(self, sweep: int, name: str, deltas: Tensor) -> None:
        """Take note of the K task vectors of one layer; called from several threads."""
        ...

    def conclude(self, sweep: int) -> None:
        """End one sweep."""
        ...

    def for_layer(self, name: str) -> Mapping[str, Any]:
        """What the method's function gets for this layer, by keyword."""
        ...


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Sets the magnitude of a merged task vector: `fn(deltas, merged, **params)`.

    `returns`: a factor on `merged` (a scalar, or one per row), or a new task vector.
    `needs`: what it looks at besides weights; `order`: whether layers are independent of each
    other, or must be treated in the order of the forward pass. `gated`: the gate bounds its factor.
    `acts_on`: the kinds of layer it is defined for. `near_orthogonal`: whether it assumes, with
    these parameters, that task vectors are. `workspace`: as in `Method`.
    """

    name: str
    fn: Callable[..., Tensor]
    source: str
    summary: str
    parameters: tuple[Parameter, ...]
    acts_on: frozenset[Kind]
    returns: Literal["factor", "delta"] = "factor"
    needs: Literal["weights", "inputs"] = "weights"
    order: Literal["any", "forward"] = "any"
    gated: bool = True
    near_orthogonal: Callable[..., bool] = field(default=lambda **_: False)
    workspace: tuple[int, int] = (0, 9)


@dataclass(frozen=True, slots=True)
class Step:
    """One output tensor: what it is, what happens to it and why, and where its bytes go."""

    spec: TensorSpec
    kind: Kind
    action: Action
    reason: str
    calibrated: bool
    sensitive: bool
    twin: str | None
    shard: int
    offset: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its name, its finished header and its size in bytes."""

    file: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will happen, known from headers alone. Sizes are in bytes."""

    digest: str
    steps: tuple[Step, ...]
    shards: tuple[Shard, ...]
    disk: int
    memory: int
    copied: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What the merge and the calibration did to one layer.

    `xi` is the mean factor, `xi_min` and `xi_max` its extremes over the rows, `xi_free` its mean
    before the gate; the norms are those of the merged task vector before and after; `cosine` is
    the mean pairwise cosine of the experts' rows, None where fewer than two changed anything.
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
