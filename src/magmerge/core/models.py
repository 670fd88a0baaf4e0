"""What a merge reads: checkpoints, and experts on a base, as all kinds of them look alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from magmerge.core.errors import Fault
from magmerge.core.lazy import load
from magmerge.core.types import Kind, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Bytes = NDArray[np.uint8]


OWN_BASE = "name the model that this adapter was trained on with --base (base=)"
"""What to do where an adapter does not fit its base."""
MEMORY = " in memory"
"""How the description of a model, or of samples, ends that no path leads to."""


def strengths_as_weights(
    experts: Any, method: str | None, params: Mapping[str, Any] | None
) -> tuple[Any, Mapping[str, Any] | None]:
    """The experts without the strengths that some have, and the parameters with them as weights.

    `experts` is a list of models or a mapping from names; see `core.strengths`.
    """
    listed = experts.values() if isinstance(experts, Mapping) else experts
    if not isinstance(experts, list | tuple | Mapping) or not any(map(_may_have, listed)):
        return experts, params
    taken: tuple[Any, Mapping[str, Any] | None] = load("magmerge.core.strengths:without_strengths")(
        experts, method, params
    )
    return taken


def _may_have(model: Any) -> bool:
    """Whether a strength may stand with an expert."""
    if isinstance(model, Mapping):
        return set(model) == {"path", "strength"}
    return isinstance(model, str | Path) and "=" in str(model)


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

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how it was read."""
        ...

    def read(self, name: str) -> Tensor:
        """The whole tensor `name`, on the CPU, in its stored dtype."""
        ...

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Entries [start, stop) of the flattened tensor, on the CPU, in its stored dtype.

        In memory of their own, or in `out`, which is flat, contiguous and of that dtype.
        """
        ...


class Stored(Protocol):
    """What else a checkpoint, or a whole model as an expert, has that holds tensors as files do.

    Many parts of a tensor may be read at once by `read_strewn`, of one whose class has that.
    """

    def raw(self, name: str) -> bool:
        """Whether `read_bytes` gives this tensor."""
        ...

    def read_bytes(self, name: str, start: int, stop: int, out: Bytes) -> None:
        """The stored bytes of entries [start, stop) of the flattened tensor, into all of `out`."""
        ...


def as_stored(model: Checkpoint | Expert | None, name: str) -> Stored | None:
    """The model as one that gives the stored bytes of the tensor `name`; None if it is not."""
    # A view that gives on what it does not know must not give this on.
    if model is None or not hasattr(type(model), "raw"):
        return None
    stored = cast("Stored", model)
    return stored if stored.raw(name) else None


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
    def faults(self) -> Sequence[Fault]:
        """What its headers show to be wrong with it."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how it was read."""
        ...

    @property
    def absent(self) -> Mapping[str, Sequence[range]]:
        """Rows of its tensors that it has not, and has no vote on."""
        ...

    @property
    def whole(self) -> Checkpoint | None:
        """The checkpoint that holds its own weights, if there is one."""
        ...

    def changes_nothing(self, base: Checkpoint | None, names: Collection[str]) -> bool:
        """Whether all its task vectors are zero in the tensors `names`."""
        ...

    def equals(self, other: Expert, names: Collection[str]) -> bool:
        """Whether both are the same in the tensors `names` (adapters: and scaled alike)."""
        ...

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The expert's own entries in place of `base`, like it in dtype, shape and device.

        `base` is the base's whole tensor, or the piece of it whose first entry is `start`. The
        result is in memory of its own, or in `out` where that is given.
        """
        ...

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The task vector `expert - base`, of the whole tensor or of the same piece."""
        ...


def named_by_path(paths: Sequence[str]) -> dict[str, str]:
    """Each path by its last part, made unique, less the ending of a file."""
    named: dict[str, str] = {}
    for path in paths:
        stem = load("magmerge.core.model_strings:short_name")(path)
        name, repeat = stem.removesuffix(".safetensors"), 2
        while name in named:
            name, repeat = f"{stem}-{repeat}", repeat + 1
        named[name] = path
    return named
