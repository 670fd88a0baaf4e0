"""The same adapter under another naming, and several adapters under one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from magmerge.checkpoints.adapters.assembled import AssembledAdapter, InMemory
from magmerge.checkpoints.adapters.names.assembly import Assembly
from magmerge.checkpoints.adapters.names.naming import from_diffusers, in_parts, to_diffusers
from magmerge.checkpoints.adapters.nouns import Adapter, Content, LowRank
from magmerge.core.errors import AdapterError, printable
from magmerge.core.types import Naming

_DIFFUSERS = ("diffusers", "diffusers_old")
"""Both give modules the same names; only their keys differ."""


def renamed(adapter: Adapter, naming: Naming) -> Adapter:
    """The adapter under another naming, read as lazily as it is itself.

    Every task vector stays what it is: fused projections are taken apart by rows, and put together
    from equal down factors, or from all of them where they differ. AdapterError lists every module
    that has no name there.
    """
    if adapter.naming == naming:
        return adapter
    return _through_diffusers(adapter, naming)


def rename_content(content: Content, naming: Naming) -> Content:
    """The same for a finished adapter; factors keep their dtype. AdapterError as for `renamed`."""
    if content.naming == naming:
        return content
    adapter = _through_diffusers(InMemory(content), naming)
    modules = {name: _cast(adapter.read(name), content) for name in adapter.modules}
    return replace(
        content,
        naming=naming,
        modules=modules,
        kinds={name: spec.kind for name, spec in adapter.modules.items()},
        config=content.config if naming == "peft" else {},
    )


def common_naming(adapters: Sequence[Adapter]) -> list[Adapter]:
    """The adapters with modules named alike: as they are if all files name them so, else as
    diffusers does, else as PEFT does if they have modules in common then. AdapterError lists what
    has no name there.
    """
    if len({(adapter.naming, _in_folders(adapter)) for adapter in adapters}) <= 1:
        return list(adapters)
    try:
        return [renamed(adapter, "diffusers") for adapter in adapters]
    except AdapterError as error:
        try:
            found = [renamed(adapter, "peft") for adapter in adapters]
        except AdapterError:
            raise error from None
        if not all(set(one.modules) & set(found[0].modules) for one in found):
            raise
        return found


def _in_folders(adapter: Adapter) -> bool:
    return adapter.naming == "peft" and in_parts(adapter.modules)


def _through_diffusers(adapter: Adapter, naming: Naming) -> Adapter:
    """The adapter with diffusers' names, and from there with those asked for."""
    if adapter.naming not in _DIFFUSERS:
        assembly = to_diffusers(adapter.naming, adapter.modules)
        _check(assembly, adapter, naming)
        adapter = AssembledAdapter(adapter, assembly, "diffusers")
    if adapter.naming == naming:
        return adapter
    assembly = from_diffusers(naming, adapter.modules)
    _check(assembly, adapter, naming)
    return AssembledAdapter(adapter, assembly, naming)


def _check(assembly: Assembly, adapter: Adapter, naming: Naming) -> None:
    faults = [*assembly.faults]
    faults += [f"{name}: {naming} has no place for replaced tensors" for name in adapter.whole]
    if faults:
        listing = "".join(f"\n  - {printable(fault)}" for fault in faults)
        raise AdapterError(
            f"{len(faults)} of its modules or tensors have no place under the naming {naming}:"
            f"{listing}",
            source=adapter.source,
            remedy="drop --format (naming=) to keep the adapter's own, or leave these out "
            "with --ignore (ignore=)",
        )


def _cast(factors: LowRank, content: Content) -> LowRank:
    """In the content's dtype: where scales differ, parts are put together in float32."""
    dtype = next(iter(content.modules.values())).up.dtype
    return LowRank(factors.up.to(dtype), factors.down.to(dtype), factors.scale)
