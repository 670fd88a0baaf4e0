"""The nouns of adapters: modules, their low-rank task vectors, and what files hold of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from magmerge.core.models import Checkpoint
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


class Module(NamedTuple):
    """One adapted module: its header, and what reads its factors, stored ones or in float32."""

    spec: ModuleSpec
    read: Callable[[], LowRank]


class Replacement(NamedTuple):
    """A tensor that an adapter replaces as a whole, and the key that it is stored under."""

    spec: TensorSpec
    checkpoint: Checkpoint
    key: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, key: str, name: str) -> Replacement:
        """The stored tensor `key` in place of the model's `name`."""
        spec = checkpoint.specs[key]
        return cls(TensorSpec(name, spec.shape, spec.dtype), checkpoint, key)


@dataclass(frozen=True)
class Adapter:
    """An adapter's file or folder, read lazily: its headers are known, its factors are not.

    `source` is what messages call it, `files` what a digest is taken of, `naming` how its modules
    are named. `metadata` is the safetensors header's own entries, `config` adapter_config.json,
    `notes` what a reader should know.
    """

    source: str
    files: tuple[Path, ...]
    naming: Naming
    stored: Mapping[str, Module]
    replaced: Mapping[str, Replacement] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def modules(self) -> Mapping[str, ModuleSpec]:
        """Every adapted module's header by name, in the order of the file."""
        return {name: module.spec for name, module in self.stored.items()}

    @cached_property
    def whole(self) -> Mapping[str, TensorSpec]:
        """Tensors that it replaces (PEFT's modules_to_save), by their names in the model."""
        return {name: tensor.spec for name, tensor in self.replaced.items()}

    def under_names(self, names: Callable[[Collection[str]], Mapping[str, str]]) -> Adapter:
        """The adapter with what `names` makes of its modules' names and replaced tensors'.

        PEFT's modules are named there as the tensors that they change, with .weight.
        """
        ending = ".weight" if self.naming == "peft" else ""
        own = {name: f"{name}{ending}" for name in self.stored}
        new = names([*own.values(), *(key for key in self.replaced if key not in own.values())])
        stored = {
            name: Module(replace(module.spec, name=name), module.read)
            for old, module in self.stored.items()
            for name in (new[own[old]].removesuffix(ending),)
        }
        replaced = {
            new[old]: Replacement.of(checkpoint, key, new[old])
            for old, (_, checkpoint, key) in self.replaced.items()
        }
        return replace(self, stored=stored, replaced=replaced)

    def read(self, module: str) -> LowRank:
        """One module's factors, on the CPU; NonFiniteError for NaN or infinity."""
        return self.stored[module].read()

    def is_zero(self) -> bool:
        """Whether every module has a factor of zeros, as in an adapter that was never trained."""
        return not any(
            bool(up.any()) and bool(down.any()) and scale != 0
            for up, down, scale in map(self.read, self.stored)
        )

    def read_whole_part(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of the flattened tensor: embeddings are large."""
        _, checkpoint, key = self.replaced[name]
        return checkpoint.read_part(key, start, stop)


class Rows(NamedTuple):
    """Rows [start, stop) of a module's task vector; of no module: as many rows of zeros."""

    module: str | None
    start: int
    stop: int


def height(rows: Sequence[Rows]) -> int:
    """How many rows these are together."""
    return sum(part.stop - part.start for part in rows)


@dataclass(slots=True)
class Composition:
    """Each module of the new naming with its rows in order, and what could not be named."""

    rows: dict[str, tuple[Rows, ...]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, rows: Sequence[Rows]) -> None:
        """One module; a fault where another already has its name."""
        if name in self.rows:
            own, other = rows[0].module, self.rows[name][0].module
            self.faults.append(f"{own} and {other} are both {name}")
        else:
            self.rows[name] = tuple(rows)

    def rename(self, name: str, new: str | None, spec: ModuleSpec, reason: str = "") -> None:
        """A module that only gets another name; a fault where that is None."""
        if new is None:
            self.faults.append(f"{name}: {reason}" if reason else name)
        else:
            self.add(new, whole(name, spec))


def whole(name: str, spec: ModuleSpec) -> tuple[Rows, ...]:
    """All rows of one module."""
    return (Rows(name, 0, spec.shape[0]),)


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
