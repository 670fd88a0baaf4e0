"""What is said of a method and of a calibrator beside their functions. No logic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from magmerge.core.fused import Fused
from magmerge.core.parameters import PerExpert
from magmerge.core.types import Cut, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting of a method or calibrator, as its function's signature declares it.

    `per_expert` is its mark where it may be a list with one value for each expert.
    """

    name: str
    keyword: str
    default: object
    annotation: Any
    meaning: str
    per_expert: PerExpert | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """A merge: `fn(tensors, **params)` takes one layer of K models, [K, *shape], gives [*shape].

    `acts_on` says whether these are task vectors (the result is the merged one) or whole weights.
    `kinds`: the kinds of layer that it is defined for; others get lambda times the mean. None: all.
    `cut`: into what pieces it may be given a layer; a function of its parameters where they decide.
    `random`: it takes `seeds`, one for each expert. `ordered`: exchanging experts changes the
    result. `experts`: least and greatest K. `base_free`: defined without a base model.
    `survey`, if set, gathers what must be known of the whole layer, or the whole model, before a
    piece of it can be merged; what a survey of the whole model takes by name cannot vary by layer.
    `workspace`: how many tensors of its input's size for one expert `fn`
    holds beside that input, for each expert and in all. `scratch`: bytes that it needs besides,
    from the shape of one expert's piece and the number of experts. `in_turn`: in place of a tensor
    it may get an `InTurn`, of which one task vector at a time is in memory; `scratch` is then all
    that it takes, with what it is given and its result, in float32. `apart`: the survey looks at
    each expert by itself, so that where some have not all rows, it is of all that each has.
    `supplied`: the keywords of `fn`
    that the pipeline fills in: `seeds`, `start`, `base` (the base's piece), and what the survey
    found.
    `kernel`, if set, gives from all keywords of `fn` but `start`, and from `experts`, their number,
    what the compiled kernels do in its place, to the same bits; None where they cannot.
    `check`, if set, raises ParameterError for parameters that do not go together.
    `homogeneous`: a multiple of all inputs gives the same multiple of the result. `faithful`:
    copies of one expert merge to a multiple of its entries, or of some of them. `rotates`: an
    orthonormal change of the input features before it is the same as after it, so that low-rank
    task vectors may be given in coordinates; a function of its parameters where they decide.
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
    in_turn: bool = False
    apart: bool = False
    supplied: frozenset[str] = frozenset()
    check: Callable[..., None] | None = None
    kernel: Callable[..., Fused | None] | None = None
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
        ...

    @property
    def samples(self) -> int:
        """How many entries of the layer to `prepare` with, before the first sweep; 0 for none."""
        ...

    @property
    def passes(self) -> int:
        """How many sweeps are still to be made; asked anew after each."""
        ...

    def prepare(self, sample: Tensor) -> None:
        """Look at some entries [K, samples], to know where to look closer."""
        ...

    def wants(self, name: str, start: int, stop: int) -> bool:
        """Whether the next sweep has to see entries [start, stop) of the layer `name`."""
        ...

    def observe(self, name: str, start: int, tensors: Tensor) -> None:
        """Take note of the piece [K, entries] of the layer `name` whose first entry is `start`."""
        ...

    def conclude(self) -> None:
        """End one sweep."""
        ...

    def keywords(self, name: str) -> Mapping[str, Any]:
        """What the method's function gets for this layer, by keyword."""
        ...


Brackets = Sequence[Sequence[tuple[float, float]]]
"""For each expert, of each of its ranks, the least and the greatest magnitude within."""


class Noted(NamedTuple):
    """What a survey is told of the entries [start, stop) of the layer `name`, of the expert `row`:
    for each rank how many magnitudes are `above` its bracket, and all those `within`, in any order.
    """

    name: str
    start: int
    stop: int
    row: int
    above: Sequence[int]
    within: Sequence[NDArray[Any]]


@runtime_checkable
class MagnitudeSurvey(Survey, Protocol):
    """A survey that need not see tensors: it can be told which magnitudes are within brackets."""

    @property
    def brackets(self) -> Brackets | None:
        """Those of the next sweep; None where it has to `observe` the tensors themselves."""
        ...

    @property
    def takes_arrays(self) -> bool:
        """Whether what it is to `observe` may be a float32 array of numpy's too."""
        ...

    def observe(self, name: str, start: int, tensors: Any) -> None:
        """Take note of the piece [K, entries] of the layer `name` whose first entry is `start`."""
        ...

    def note(self, noted: Noted) -> None:
        """Take note of one expert's magnitudes in a piece."""
        ...


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Sets the magnitude of a merged task vector: `fn(deltas, merged, **params)`.

    `returns`: a factor on `merged` (a scalar, or one per row), or a new task vector.
    `needs`: what it looks at besides weights; `order`: whether layers are independent of each
    other, or must be treated in the order of the forward pass. `gated`: the gate bounds its factor.
    `acts_on`: the kinds of layer it is defined for. `near_orthogonal`: whether it assumes, with
    these parameters, that task vectors are. `cut` and `workspace`: as in `Method`; a calibrator
    takes a layer by rows or whole. `scratch`: bytes that it needs besides, from the shape of one
    expert's piece, output rows first, and the number of experts. `measure`, of one that needs
    inputs: from the change in a layer's output that an expert makes, and that the merge makes, both
    [tokens, features], to a gain for each token; the mean gains are what `fn` gets as `gains`.
    `gather`, of one that solves for a new task vector from inputs: from a layer's inputs
    [tokens, features] to what is summed up over all tokens of each expert's samples; the sums
    [K, ...] are what `fn` gets as `sums`.
    `fed_by`: whose runs these inputs are from, the merged model's, each expert's own, or both,
    where `gather` takes the merged model's and the expert's on the same tokens. `entries`: how many
    numbers `gather` gives for so many features. `bias`, of one that solves for a layer's bias once
    its weight is solved for: `bias(deltas, merged, sums=..., weight=SolvedWeight, **params)`.
    `supplied`: the keywords of `fn` that the pipeline fills in; `base` is the base's weight.
    `checks`: whether, with these parameters, half of each expert's samples is kept aside, to see
    whether the factors bring the model nearer to its experts.
    `rotates`: as in `Method`. `kernel`, if set, gives from all parameters the target by which the
    compiled kernels scale rows to the same bits; None where they cannot. `scale_free`: whether a
    multiple of the merge gives the same result.
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
    scratch: Callable[[tuple[int, ...], int], int] | None = None
    measure: Callable[..., Tensor] | None = None
    gather: Callable[..., Tensor] | None = None
    fed_by: Literal["merge", "experts", "both"] = "merge"
    entries: Callable[[int], int] | None = None
    bias: Callable[..., Tensor] | None = None
    supplied: frozenset[str] = frozenset()
    checks: Callable[..., bool] = field(default=lambda **_: False)
    rotates: bool = False
    kernel: Callable[..., str | None] | None = None
    scale_free: bool = True
