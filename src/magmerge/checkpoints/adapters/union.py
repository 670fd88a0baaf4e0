"""Adapters as experts on a base of zeros, which has each module that any of them adapts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from magmerge.checkpoints.adapters.adapter_expert import KEPT
from magmerge.checkpoints.adapters.adapter_loader import open_adapter
from magmerge.checkpoints.adapters.common_keys import common_keys
from magmerge.checkpoints.adapters.factored import multiplied, rows_between
from magmerge.checkpoints.adapters.nouns import Adapter, LowRank, ModuleSpec
from magmerge.checkpoints.adapters.translation import common_naming
from magmerge.checkpoints.kinds import HEADS
from magmerge.checkpoints.loader import Model, adapts
from magmerge.core.dtypes import FLOATS
from magmerge.core.errors import AdapterError, Fault
from magmerge.core.models import Checkpoint, Expert
from magmerge.core.types import Kind, Naming, TensorSpec


class AdapterUnion:
    """The modules of several adapters, all under one naming, as the tensors of a model of zeros.
    `naming` is that of the first adapter's file, `keys` the spelling of its keys, for all modules;
    `entries` are its header's, `dropped_entries` the names of those that further files have
    otherwise. `opened` are the adapters as their files name them.
    """

    source = "the adapters"
    folder: Path | None = None
    files: tuple[Path, ...] = ()
    ties: Mapping[str, str] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    def __init__(self, adapters: Sequence[Adapter], opened: Sequence[Adapter]) -> None:
        self.adapters = tuple(adapters)
        self.naming: Naming = opened[0].naming
        self.keys, self.spelling_note = common_keys(opened)
        self.entries = opened[0].metadata
        self.dropped_entries = {
            adapter.source: tuple(
                k for k, v in adapter.metadata.items() if self.entries.get(k) != v
            )
            for adapter in opened[1:]
        }
        self.modules: dict[str, ModuleSpec] = {}
        self.replaced: dict[str, TensorSpec] = {}
        self.added: dict[str, TensorSpec] = {}
        for adapter in adapters:
            # The first adapter that has a module tells of it.
            self.modules = {**self.modules, **adapter.modules, **self.modules}
            self.replaced = {**self.replaced, **_in_float32(adapter.whole), **self.replaced}
            self.added = {**self.added, **_in_float32(added(adapter)), **self.added}
        every = {**_in_float32(self.modules), **self.replaced, **self.added}
        self.specs = MappingProxyType(every)
        kinds = {name: _kind(module) for name, module in self.modules.items()}
        kinds |= dict.fromkeys(self.added, "vector")
        self.kinds: Mapping[str, Kind] = {**kinds, **dict.fromkeys(self.replaced, "other")}

    def read(self, name: str) -> Tensor:
        """Zeros."""
        return torch.zeros(self.specs[name].shape)

    def read_part(self, name: str, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Zeros."""
        assert name in self.specs
        return torch.zeros(stop - start) if out is None else out.zero_()

    def ranks(self, name: str) -> list[int]:
        """The rank that the module has in each adapter that has it."""
        modules = [adapter.modules for adapter in self.adapters]
        return [own[name].rank for own in modules if name in own]

    def owners(self, name: str) -> tuple[int, ...]:
        """The adapters, by place, that replace this tensor as a whole."""
        return tuple(i for i, adapter in enumerate(self.adapters) if name in adapter.whole)

    def dtype(self, name: str | None = None) -> str:
        """The format of all factors, or float32 where they differ; or that of the first `name`."""
        if name is not None:
            tables = [
                table for own in self.adapters for table in (own.modules, own.whole, added(own))
            ]
            return next(table[name].dtype for table in tables if name in table)
        codes = {spec.dtype for adapter in self.adapters for spec in adapter.modules.values()}
        return codes.pop() if len(codes) == 1 and codes <= set(FLOATS) else "F32"


class AdapterTaskVectors:
    """One adapter as an expert on the union: modules that it lacks have task vectors of zeros."""

    whole = None
    ties: Mapping[str, str] = MappingProxyType({})

    def __init__(self, name: str, adapter: Adapter, union: AdapterUnion) -> None:
        self.name = name
        self.adapter = adapter
        self.source = adapter.source
        self.files = adapter.files
        self.notes = adapter.notes
        own = {**_in_float32(adapter.modules), **_in_float32(adapter.whole)}
        own |= _in_float32(added(adapter))
        self.absent: Mapping[str, Sequence[range]] = MappingProxyType({})
        self.specs: Mapping[str, TensorSpec] = {**union.specs, **own}
        self.untouched = frozenset(set(union.specs) - set(own))
        self.faults: list[Fault] = []
        self._shapes = {key: spec.shape for key, spec in union.specs.items()}
        self.factors = lru_cache(KEPT)(self._factors)

    def weight(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """The task vector: the base is zero."""
        return self.delta(name, base, start, out)

    def delta(self, name: str, base: Tensor, start: int = 0, out: Tensor | None = None) -> Tensor:
        """Entries of scale B A from `start` on, as many as `base` has and in its shape."""
        stop = start + base.numel()
        if name in self.adapter.whole:
            part = self.adapter.read_whole_part(name, start, stop)
        elif name in self.adapter.added:
            part = self.adapter.added[name].part(start, stop)
        elif name not in self.adapter.modules:
            return torch.zeros_like(base) if out is None else out.zero_()
        else:
            factors = self.factors(name)
            if (
                out is not None
                and out.is_cpu
                and stop - start == len(factors.up) * factors.down.shape[1]
            ):
                multiplied(factors.up, factors.down, out.view(len(factors.up), -1))
                return out
            part = rows_between(factors.up, factors.down, start, stop)
        part = part.reshape(base.shape)
        return part.to(base) if out is None else out.copy_(part)

    def changes_nothing(self, base: Checkpoint | None, names: Collection[str]) -> bool:  # noqa: ARG002 - its factors tell
        """Whether every module has a factor of zeros, as in an adapter that was never trained."""
        return self.adapter.is_zero()

    def equals(self, other: Expert, names: Collection[str]) -> bool:  # noqa: ARG002 - its factors tell
        """Whether both have the same factors for the same modules."""
        return isinstance(other, AdapterTaskVectors) and self.adapter.equals(other.adapter)

    def _factors(self, name: str) -> LowRank:
        """The module's factors in float32, the up factor scaled; of rank 0 where it lacks it."""
        if name not in self.adapter.modules:
            out, *features = self._shapes[name]
            return LowRank(torch.zeros(out, 0), torch.zeros(0, *features).flatten(1), 1.0)
        up, down, scale = self.adapter.read(name)
        return LowRank(up.to(torch.float32) * scale, down.to(torch.float32).flatten(1), 1.0)


def adapters_alone(
    models: Mapping[str, Model],
) -> tuple[AdapterUnion, list[AdapterTaskVectors]] | None:
    """The experts if all are adapters, None if none is; AdapterError where only some are."""
    adapters = {name: model for name, model in models.items() if adapts(model)}
    if not adapters:
        return None
    for name in models:
        if name not in adapters:
            raise AdapterError(
                f"{name} is a whole model, and {next(iter(adapters))} an adapter",
                remedy="name the model that the adapters were trained on with --base (base=)",
            )
    opened = [open_adapter(str(model)) for model in adapters.values()]
    for adapter in opened:
        if adapter.needs_base is not None:
            raise AdapterError(
                f"it is no change without its base: {adapter.needs_base}",
                source=adapter.source,
                remedy="merge it into the model that it was trained on, with --base (base=)",
            )
    alike = common_naming(opened)
    union = AdapterUnion(alike, opened)
    pairs = zip(adapters, alike, strict=True)
    return union, [AdapterTaskVectors(name, adapter, union) for name, adapter in pairs]


def added(adapter: Adapter) -> dict[str, TensorSpec]:
    """The biases and norms that an adapter adds to, by their modules' names."""
    return {name: addition.replacement.spec for name, addition in adapter.added.items()}


def _in_float32(
    headers: Mapping[str, ModuleSpec] | Mapping[str, TensorSpec],
) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, spec.shape, "F32") for name, spec in headers.items()}


def _kind(module: ModuleSpec) -> Kind:
    if module.kind == "linear":
        return "head" if module.name.rpartition(".")[2] in HEADS else "matrix"
    return module.kind
