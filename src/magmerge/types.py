"""The nouns of a merge, which all other files speak of. No logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

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

Action = Literal["merge", "mean", "average", "carry", "tie", "lose"]
"""What happens to a tensor: the method; lambda times the mean task vector, where the method is not
defined for its kind; the plain mean; a bit-for-bit copy; a twin's result; or nothing, where an
adapter has no place for it, and its norm is told."""

Cut = Literal["entries", "rows", "whole"]
"""Into what a layer may be cut, so that treating each piece alone gives the same as the whole."""


UNCHANGED = "no expert changes it"
"""Why a tensor is carried over that all experts have as the base has it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor. `dtype` is safetensors' code: F32, BF16, I64, ..."""

    name: str
    shape: tuple[int, ...]
    dtype: str


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
    `kinds`: the kinds of layer that it is defined for; others get lambda times the mean. None: all.
    `cut`: into what pieces it may be given a layer; a function of its parameters where they decide.
    `random`: it takes `seeds`, one for each expert. `ordered`: exchanging experts changes the
    result. `experts`: least and greatest K. `base_free`: defined without a base model. `survey`, if
    set, gathers what must be known of the whole layer, or the whole model, before a piece of it can
    be merged; what a survey of the whole model takes by name cannot vary by layer. `workspace`: how
    many tensors of its input's size for one expert `fn` holds beside that input, for each expert
    and in all. `scratch`: bytes that it needs besides, from the shape of one expert's piece and the
    number of experts. `supplied`: the keywords of `fn` that the pipeline fills in: `seeds`,
    `start`, `base` (the base's piece), and what the survey found. `check`, if set, raises
    ParameterError for parameters that do not go together. `homogeneous`: a multiple of all inputs
    gives the same multiple of the result. `faithful`: copies of one expert merge to a multiple of
    its entries, or of some of them. `rotates`: an orthonormal change of the input features before
    it is the same as after it, so that low-rank task vectors may be given in coordinates; a
    function of its parameters where they decide.
    """

    name: str
    fn: Callable[..., Tensor]
    source: str
    summary: str
    parameters: tuple[Parameter, ...]
    acts_on: Literal["deltas", "weights"] = "deltas"
    kinds: frozenset[Kind] | None = None
    cut: Cut | Callable[..., Cut] = "whole"
    random: bool = False
    ordered: bool = False
    base_free: bool = False
    experts: tuple[int, int | None] = (1, None)
    survey: Callable[..., Survey | None] | None = None
    workspace: tuple[int, int] = (0, 3)
    scratch: Callable[[tuple[int, ...], int], int] | None = None
    supplied: frozenset[str] = frozenset()
    check: Callable[..., None] | None = None
    homogeneous: bool = True
    faithful: bool = True
    rotates: bool | Callable[..., bool] = False


@runtime_checkable
class Survey(Protocol):
    """What must be known of a whole layer (or model) before its pieces can be merged.

    Gathered in sweeps over all pieces, in any order and from several threads, until `passes` is 0.
    What was found must not depend on how the layers are cut.
    """

    @property
    def scope(self) -> Literal["layer", "model"]:
        """Whether each layer has a survey of its own, or all share one."""

    @property
    def samples(self) -> int:
        """How many entries of the layer to `prepare` with, before the first sweep; 0 for none."""

    @property
    def passes(self) -> int:
        """How many sweeps are still to be made; asked anew after each."""

    def prepare(self, sample: Tensor) -> None:
        """Look at some entries [K, samples], to know where to look closer."""

    def wants(self, name: str, start: int, stop: int) -> bool:
        """Whether the next sweep has to see entries [start, stop) of the layer `name`."""

    def observe(self, name: str, start: int, tensors: Tensor) -> None:
        """Take note of the piece [K, entries] of the layer `name` whose first entry is `start`."""

    def conclude(self) -> None:
        """End one sweep."""

    def found(self, name: str) -> Mapping[str, Any]:
        """What the method's function gets for this layer, by keyword."""


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Sets the magnitude of a merged task vector: `fn(deltas, merged, **params)`.

    `returns`: a factor on `merged` (a scalar, or one per row), or a new task vector.
    `needs`: what it looks at besides weights; `order`: whether layers are independent of each
    other, or must be treated in the order of the forward pass. `gated`: the gate bounds its factor.
    `acts_on`: the kinds of layer it is defined for. `near_orthogonal`: whether it assumes, with
    these parameters, that task vectors are. `cut` and `workspace`: as in `Method`; a calibrator
    takes a layer by rows or whole. `measure`, of one that needs inputs: from the change in a
    layer's output that an expert makes, and that the merge makes, both [tokens, features], to a
    gain for each token; the mean gains are what `fn` gets as `gains`. `gather`, of one that solves
    for a new task vector from inputs: from a layer's inputs [tokens, features] to what is summed up
    over all tokens of each expert's samples; the sums [K, ...] are what `fn` gets as `sums`.
    `rotates`: as in `Method`.
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
    cut: Cut | Callable[..., Cut] = "whole"
    workspace: tuple[int, int] = (0, 9)
    measure: Callable[..., Tensor] | None = None
    gather: Callable[..., Tensor] | None = None
    rotates: bool = False


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
        name = f"{self.part}/{self.spec.name}" if self.part else self.spec.name
        return name if self.whole is None else f"{name}@{self.first}"

    @property
    def tensor(self) -> TensorSpec:
        """The output tensor that it is, or is a part of."""
        return self.spec if self.whole is None else replace(self.spec, shape=self.whole)


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its name, its finished header and its size in bytes."""

    file: str
    header: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a parameter that varies by layer, and how many merged tensors take it.

    `filter` None: those that no filter takes.
    """

    parameter: str
    filter: str | None
    value: Any
    tensors: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will happen, known from headers alone. Sizes are in bytes.

    `shards` are the files of a model; those of an adapter are known when it is merged. `memory` is
    the stated peak beyond the interpreter and torch; `room` the part of it that jobs share; `live`
    that of a model that is run, without what it computes; `piece` how many entries of a layer are
    at work at once. `choices`: the values of parameters that vary by layer.
    """

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
    calibrated; `factors` what each calibrator found, in turn. `notes`: where the arithmetic had to
    leave its usual path.
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
