"""The same adapter under another naming, and several adapters under one.

Modules are put together from rows of another's, each task vector exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from magmerge.checkpoints.adapters.names.naming import from_diffusers, in_parts, to_diffusers
from magmerge.checkpoints.adapters.nouns import (
    Adapter,
    Content,
    LowRank,
    Module,
    ModuleSpec,
    Replacement,
)
from magmerge.checkpoints.adapters.rows import Composition, Rows, height
from magmerge.checkpoints.memory_checkpoint import MemoryCheckpoint
from magmerge.checkpoints.names.pairs import OTHERWISE, pair
from magmerge.core import dtypes
from magmerge.core.errors import AdapterError, printable
from magmerge.core.types import Naming

if TYPE_CHECKING:
    from torch import Tensor

_DIFFUSERS = ("diffusers", "diffusers_old")
"""Both give modules the same names; only their keys differ."""
Groups = list[list[str]]
"""Modules whose rows are put together, those with the same down factor side by side."""


def renamed(adapter: Adapter, naming: Naming) -> Adapter:
    """The adapter under another naming, read as lazily as it is itself.

    Every task vector stays what it is: fused projections are taken apart by rows, and put together
    from equal down factors, or from all of them where they differ. AdapterError lists every module
    that has no name there.
    """
    if adapter.naming != naming and adapter.naming not in _DIFFUSERS:
        composition = to_diffusers(adapter.naming, adapter.modules)
        adapter = compose(_nameable(adapter, composition, naming), composition, "diffusers")
    if adapter.naming == naming:
        return adapter
    composition = from_diffusers(naming, adapter.modules)
    return compose(_nameable(adapter, composition, naming), composition, naming)


def rename_content(content: Content, naming: Naming) -> Content:
    """The same for a finished adapter; factors keep their dtype. AdapterError as for `renamed`."""
    if content.naming == naming:
        return content
    adapter = renamed(in_memory(content), naming)
    # Where scales differ, parts are put together in float32.
    dtype = next(iter(content.modules.values())).up.dtype
    factors = {name: adapter.read(name) for name in adapter.modules}
    modules = {n: LowRank(up.to(dtype), down.to(dtype), s) for n, (up, down, s) in factors.items()}
    kinds = {name: spec.kind for name, spec in adapter.modules.items()}
    config = content.config if naming == "peft" else {}
    return replace(content, naming=naming, modules=modules, kinds=kinds, config=config)


def common_naming(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters with modules named alike: as they are if all files name them so, else as
    diffusers does, else as PEFT does if they have modules in common then. PEFT's are named as the
    first does, where others have wrappers or older names for the same. AdapterError lists what has
    no name there.
    """
    namings = {(own.naming, own.naming == "peft" and in_parts(own.modules)) for own in adapters}
    if namings == {("peft", False)}:
        return [adapters[0], *(_named_as(adapters[0], other) for other in adapters[1:])]
    if len(namings) <= 1:
        return list(adapters)
    try:
        return [renamed(adapter, "diffusers") for adapter in adapters]
    except AdapterError as error:
        try:
            alike = [renamed(adapter, "peft") for adapter in adapters]
        except AdapterError:
            remedy = "merge them into the model that they were trained on, with --base (base=)"
            raise AdapterError(error.problem, source=error.source, remedy=remedy) from None
        if not all(set(adapter.modules) & set(alike[0].modules) for adapter in alike):
            raise
        return alike


def _named_as(first: Adapter, other: Adapter) -> Adapter:
    """`other` with the modules that `first` has too under the names that they have there."""
    names, kinds = pair(_tensors(other), _tensors(first))
    if not kinds:
        return other
    count = sum(old != new for old, new in names.items())
    note = f"{other.source}: {count} {OTHERWISE} {first.source} ({', '.join(kinds)})"
    view = other.under_names(lambda keys: {key: names.get(key, key) for key in keys})
    return replace(view, notes=(*view.notes, note))


def _tensors(adapter: Adapter) -> list[str]:
    """The model's tensors that the adapter changes."""
    return list(dict.fromkeys((*(f"{name}.weight" for name in adapter.modules), *adapter.whole)))


def in_memory(content: Content) -> Adapter:
    """A finished adapter, seen as one that is read."""
    stored = {}
    for name, factors in content.modules.items():
        up, down, scale = factors
        code = dtypes.code_of(up.dtype)
        assert code is not None
        shape = (up.shape[0], *down.shape[1:])
        spec = ModuleSpec(name, content.kinds[name], shape, len(down), scale, code)
        stored[name] = Module(spec, partial(LowRank, *factors))
    whole = MemoryCheckpoint(content.whole)
    replaced = {name: Replacement.of(whole, name, name) for name in content.whole}
    names = "the finished adapter", (), content.naming
    return Adapter(*names, stored, replaced, content.metadata, content.config)


def compose(adapter: Adapter, composition: Composition, naming: Naming) -> Adapter:
    """`adapter` with the modules of `composition`, read as lazily as it is itself.

    Only where several modules become one are their down factors read at once: the rank is that of
    one of them if all are equal, else the sum.
    """
    stored = {}
    for name, rows in composition.rows.items():
        groups = _groups(adapter, rows)
        spec = _spec(name, rows, [[adapter.modules[own] for own in group] for group in groups])
        stored[name] = Module(spec, partial(_read, adapter, rows, groups, spec))
    return replace(adapter, naming=naming, stored=stored, replaced={}, config={})


def _nameable(adapter: Adapter, composition: Composition, naming: Naming) -> Adapter:
    """The adapter; AdapterError unless all of it has a place in `composition`."""
    faults = [*composition.faults]
    faults += [f"{name}: {naming} has no place for replaced tensors" for name in adapter.whole]
    faults += [f"{name}: a bias or norm of another naming" for name in adapter.added]
    if faults:
        listing = "".join(f"\n  - {printable(fault)}" for fault in faults)
        raise AdapterError(
            f"{len(faults)} of its modules or tensors have no place under the naming {naming}:"
            f"{listing}",
            source=adapter.source,
            remedy="write another format: --format peft (naming=) names every module; a merge may "
            "also leave these out with --ignore (ignore=)",
        )
    return adapter


def _groups(adapter: Adapter, rows: Sequence[Rows]) -> Groups:
    names = list(dict.fromkeys(part.module for part in rows if part.module is not None))
    if len(names) == 1:
        return [names]
    import torch

    groups: list[tuple[Tensor, list[str]]] = []
    for name in names:
        down = adapter.read(name).down
        for known, group in groups:
            if known.dtype == down.dtype and torch.equal(known, down):
                group.append(name)
                break
        else:
            groups.append((down, [name]))
    return [group for _, group in groups]


def _spec(name: str, rows: Sequence[Rows], groups: Sequence[Sequence[ModuleSpec]]) -> ModuleSpec:
    specs = [spec for group in groups for spec in group]
    first = specs[0]
    shape, rank = (height(rows), *first.shape[1:]), sum(group[0].rank for group in groups)
    if len({spec.scale for spec in specs}) > 1:
        return ModuleSpec(name, first.kind, shape, rank, 1.0, "F32")
    dtype = first.dtype if len({spec.dtype for spec in specs}) == 1 else "F32"
    return ModuleSpec(name, first.kind, shape, rank, first.scale, dtype)


def _read(adapter: Adapter, rows: Sequence[Rows], groups: Groups, spec: ModuleSpec) -> LowRank:
    """One module's factors; in float32 where parts of different scales are put together."""
    factors = {name: adapter.read(name) for group in groups for name in group}
    first = rows[0]
    if len(rows) == 1 and first.module is not None:
        up, down, scale = factors[first.module]
        return LowRank(up[first.start : first.stop].contiguous(), down, scale)
    import torch

    formats = {tensor.dtype for up, down, _ in factors.values() for tensor in (up, down)}
    alike = all(factor.scale == spec.scale for factor in factors.values())
    dtype = formats.pop() if alike and len(formats) == 1 else torch.float32
    downs = [factors[group[0]].down.to(dtype) for group in groups]
    # The rows are below each other; a group's are in the columns of its own down factor.
    columns, start = {}, 0
    for group, down in zip(groups, downs, strict=True):
        columns.update(dict.fromkeys(group, slice(start, start + len(down))))
        start += len(down)
    up, at = torch.zeros(spec.shape[0], start, dtype=dtype), 0
    for part in rows:
        stop = at + part.stop - part.start
        if part.module is not None:
            own, _, scale = factors[part.module]
            block = own[part.start : part.stop].to(dtype)
            up[at:stop, columns[part.module]] = block if alike else block * scale
        at = stop
    return LowRank(up, torch.cat(downs), spec.scale)
