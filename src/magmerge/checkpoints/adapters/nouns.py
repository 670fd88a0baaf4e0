"""The nouns of adapters: modules, their low-rank task vectors, and the files' namings. No logic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from magmerge.core.types import Naming, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

ModuleKind = Literal["linear", "convolution", "embedding"]


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """What the header says of one adapted module.

    `name` is in the adapter's own naming, without the ending that tells the factor. `shape` is that
    of its task vector, [out, in] or [out, in, *kernel]; of an embedding [features, tokens].
    `dtype` is safetensors' code of the up factor. `scale` is alpha / rank, or alpha / sqrt(rank).
    """

    name: str
    kind: ModuleKind
    shape: tuple[int, ...]
    rank: int
    scale: float
    dtype: str


class LowRank(NamedTuple):
    """A module's task vector: `scale * up @ down`, up [out, rank], down [rank, in, *kernel]."""

    up: Tensor
    down: Tensor
    scale: float


class Adapter(Protocol):
    """An adapter's file or folder, read lazily, one module at a time."""

    @property
    def source(self) -> str:
        """What messages call it."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """What a digest is taken of."""
        ...

    @property
    def naming(self) -> Naming:
        """How its modules are named."""
        ...

    @property
    def modules(self) -> Mapping[str, ModuleSpec]:
        """Every adapted module by name, in the order of the file."""
        ...

    @property
    def whole(self) -> Mapping[str, TensorSpec]:
        """Tensors that it replaces (PEFT's modules_to_save), by their names in the model."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The safetensors header's own entries."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """adapter_config.json; empty for the other namings."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how it was read."""
        ...

    def read(self, module: str) -> LowRank:
        """One module's factors, in their stored dtype, on the CPU."""
        ...

    def read_whole(self, name: str) -> Tensor:
        """One replaced tensor, in its stored dtype, on the CPU."""
        ...

    def read_whole_part(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of the flattened tensor: embeddings are large."""
        ...


@dataclass(frozen=True, slots=True)
class Content:
    """An adapter in memory, ready to be written: its tensors are in the dtype to store.

    `kinds` tells embeddings and convolutions. `config` is what adapter_config.json shall carry on
    of an input's; ranks, alphas and targets in it are made anew.
    """

    naming: Naming
    modules: Mapping[str, LowRank]
    kinds: Mapping[str, ModuleKind]
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


class Encoded(NamedTuple):
    """One file's tensors and header entries, and the text files that belong beside it."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    beside: dict[str, str]
