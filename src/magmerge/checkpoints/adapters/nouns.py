"""The nouns of adapters: modules, their low-rank task vectors, and what files hold of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from magmerge.core.models import Checkpoint
from magmerge.core.pieces import cut
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
    `flattened`: whether [out, in] may be [out, in, *kernel], which its header cannot tell.
    """

    name: str
    kind: ModuleKind
    shape: tuple[int, ...]
    rank: int
    scale: float
    dtype: str
    flattened: bool = False


class LowRank(NamedTuple):
    """A module's task vector: `scale * up @ down`, up [out, rank], down [rank, in, *kernel]."""

    up: Tensor
    down: Tensor
    scale: float


Entries = Callable[[int, int], "Tensor"]
"""Entries [start, stop) of a flattened task vector, scaled."""


class ModuleKeys(NamedTuple):
    """How a file spells a module's keys: a stem, a dot and an ending; and whether it has alphas."""

    stem: str
    down: str
    up: str
    alpha: bool


class Module(NamedTuple):
    """One adapted module: its header, and what reads its factors, stored ones or in float32.

    `entries` opens its task vector by entries, where that is of full rank: as factors it would be
    twice its size.
    """

    spec: ModuleSpec
    read: Callable[[], LowRank]
    entries: Callable[[], Entries] | None = None

    def renamed(self, name: str) -> Module:
        """The same module under another name."""
        return self._replace(spec=replace(self.spec, name=name))


class Rescale(NamedTuple):
    """What multiplies each row ("out") or column ("in") of a module's weight, `size` numbers.

    `normed`: once the task vector was added, and the row or column was divided by its norm (DoRA,
    arXiv:2402.09353); else it is (IA)3's factor (arXiv:2205.05638).
    """

    read: Callable[[], Tensor]
    axis: Literal["out", "in"]
    size: int
    normed: bool


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

    def renamed(self, name: str) -> Replacement:
        """The same stored tensor in place of another."""
        return Replacement.of(self.checkpoint, self.key, name)


class Addition(NamedTuple):
    """A tensor that is added to the model's as a whole, times `scale`: of a bias or a norm."""

    replacement: Replacement
    scale: float = 1.0

    def part(self, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of what is added, in float32 or float64."""
        import torch

        _, checkpoint, key = self.replacement
        part = checkpoint.read_part(key, start, stop)
        wide = part if part.dtype == torch.float64 else part.to(torch.float32)
        return wide * self.scale


class TokenRows(NamedTuple):
    """Rows of an embedding that an adapter replaces: row i of `tensor` is row `rows[i]`."""

    rows: tuple[int, ...]
    tensor: Replacement


@dataclass(frozen=True)
class Adapter:
    """An adapter's file or folder, read lazily: its headers are known, its factors are not.

    `source` is what messages call it, `files` what a digest is taken of, `naming` how its modules
    are named. `metadata` is the safetensors header's own entries, `config` adapter_config.json,
    `notes` what a reader should know. `added` are biases and norms by the module's name and
    .weight or .bias, `rescales` and `tokens` what depends on the base, by module and by tensor.
    `style` is in whose manner its file spells its `keys`, those of each module. `experts` are the
    modules of a mixture's experts by the parameter that fuses them, which are in no other table.
    """

    source: str
    files: tuple[Path, ...]
    naming: Naming
    stored: Mapping[str, Module]
    replaced: Mapping[str, Replacement] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    added: Mapping[str, Addition] = field(default_factory=dict)
    rescales: Mapping[str, Rescale] = field(default_factory=dict)
    tokens: Mapping[str, TokenRows] = field(default_factory=dict)
    style: str = ""
    keys: Mapping[str, ModuleKeys] = field(default_factory=dict)
    experts: Mapping[str, tuple[Module, ...]] = field(default_factory=dict)

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
        tables = (self.replaced, self.added, self.tokens, self.experts)
        modules = {name: f"{name}{ending}" for name in (*self.stored, *self.rescales)}
        tensors = dict.fromkeys(name for table in tables for name in table)
        new = names(list(dict.fromkeys((*modules.values(), *tensors))))
        module = {name: new[own].removesuffix(ending) for name, own in modules.items()}
        return replace(
            self,
            stored={module[n]: part.renamed(module[n]) for n, part in self.stored.items()},
            replaced={new[n]: part.renamed(new[n]) for n, part in self.replaced.items()},
            added={
                new[n]: part._replace(replacement=part.replacement.renamed(new[n]))
                for n, part in self.added.items()
            },
            rescales={module[n]: rescale for n, rescale in self.rescales.items()},
            tokens={
                new[n]: rows._replace(tensor=rows.tensor.renamed(new[n]))
                for n, rows in self.tokens.items()
            },
            experts={
                new[n]: tuple(part.renamed(f"{new[n]}.{i}") for i, part in enumerate(parts))
                for n, parts in self.experts.items()
            },
        )

    def read(self, module: str) -> LowRank:
        """One module's factors, on the CPU; NonFiniteError for NaN or infinity."""
        if module in self.stored:
            return self.stored[module].read()
        parameter, _, number = module.rpartition(".")
        return self.experts[parameter][int(number)].read()

    @property
    def needs_base(self) -> str | None:
        """What of it is a task vector only on a base; None where all is known without."""
        if any(rescale.normed for rescale in self.rescales.values()):
            return "DoRA rescales the rows or columns of the base with what it adds to them"
        if self.rescales:
            return "(IA)3 multiplies the rows or columns of the base"
        if self.experts:
            return "it adapts bare parameters, whose shape the base tells"
        return "it replaces single tokens of the embedding" if self.tokens else None

    def equals(self, other: Adapter) -> bool:
        """Whether both change the same modules and tensors by the same values."""
        if self._headers() != other._headers():
            return False
        pairs = zip(self._values(), other._values(), strict=True)
        return all(own.shape == its.shape and bool((own == its).all()) for own, its in pairs)

    def _headers(self) -> tuple[Any, ...]:
        """What of it is compared before any value is read."""
        return (
            {name: spec.shape for name, spec in self.modules.items()},
            {name: spec.shape for name, spec in self.whole.items()},
            {name: addition.replacement.spec.shape for name, addition in self.added.items()},
            {name: rescale[1:] for name, rescale in self.rescales.items()},
            {name: token.rows for name, token in self.tokens.items()},
            {name: [module.spec for module in own] for name, own in self.experts.items()},
        )

    def _values(self) -> Iterator[Tensor]:
        """Its values in the order of the names: factors, scaled, and pieces of whole tensors."""
        experts = (module.spec.name for own in self.experts.values() for module in own)
        for module in sorted((*self.stored, *experts)):
            up, down, scale = self.read(module)
            yield up.float() * scale
            yield down
        for name in sorted(self.replaced):
            for piece in cut(self.whole[name].shape, "other", "entries"):
                yield self.read_whole_part(name, piece.start, piece.stop)
        for name in sorted(self.added):
            yield self.added[name].part(0, math.prod(self.added[name].replacement.spec.shape))
        for module in sorted(self.rescales):
            yield self.rescales[module].read()
        for name in sorted(self.tokens):
            _, (_, checkpoint, key) = self.tokens[name]
            yield checkpoint.read(key)

    def is_zero(self) -> bool:
        """Whether every module has a factor of zeros, as in an adapter that was never trained."""
        if self.added or self.needs_base:
            return False
        return not any(
            bool(up.any()) and bool(down.any()) and scale != 0
            for up, down, scale in map(self.read, self.stored)
        )

    def read_whole_part(self, name: str, start: int, stop: int) -> Tensor:
        """Entries [start, stop) of the flattened tensor: embeddings are large."""
        _, checkpoint, key = self.replaced[name]
        return checkpoint.read_part(key, start, stop)


@dataclass(frozen=True, slots=True)
class Content:
    """An adapter in memory, ready to be written: its tensors are in the dtype to store.

    `kinds` tells embeddings and convolutions. `config` is what adapter_config.json shall carry on
    of an input's; ranks, alphas and targets in it are made anew. `added` as of an
    `Adapter`; `keys` where modules are not spelt as the naming has it.
    """

    naming: Naming
    modules: Mapping[str, LowRank]
    kinds: Mapping[str, ModuleKind]
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[str, Tensor] = field(default_factory=dict)
    keys: Mapping[str, ModuleKeys] = field(default_factory=dict)


class Encoded(NamedTuple):
    """One file's tensors and header entries, and the text files that belong beside it."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    beside: dict[str, str]
