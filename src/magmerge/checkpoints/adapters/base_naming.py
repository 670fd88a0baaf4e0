"""From the names of a base's tensors to those of an adapter's modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from magmerge.checkpoints.adapters.assembled import AssembledAdapter, InMemory
from magmerge.checkpoints.adapters.base_rows import rows_of
from magmerge.checkpoints.adapters.names.assembly import Assembly
from magmerge.checkpoints.adapters.names.naming import from_diffusers
from magmerge.checkpoints.adapters.nouns import Content, LowRank, ModuleKind, ModuleSpec
from magmerge.checkpoints.adapters.renaming import rename_content
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint
from magmerge.core.types import Naming
from magmerge.core.version import __version__

WEIGHT = ".weight"


def nameless(base: Checkpoint, tensors: Collection[str], naming: Naming) -> frozenset[str]:
    """Those of the base's `tensors` that an adapter under `naming` has no name for.

    PEFT's modules are called as the base calls them. AdapterError where none has a name.
    """
    if naming == "peft":
        return frozenset()
    rows = rows_of(base)
    heights = {name: sum(part.stop - part.start for part in own) for name, own in rows.items()}
    modules = {
        name: ModuleSpec(
            name,
            "linear",
            (heights[name], *base.specs[own[0].module or ""].shape[1:]),
            1,
            1.0,
            "F32",
        )
        for name, own in rows.items()
    }
    reached = from_diffusers(naming, modules).rows.values()
    known = {part.module for own in reached for part in own}
    named = {part.module for name in known if name is not None for part in rows[name]}
    without = frozenset(name for name in tensors if name not in named)
    if len(without) == len(tensors):
        raise AdapterError(
            f"{naming} has no names for its modules, which are no such part of a diffusion model",
            source=base.source,
            remedy="write a PEFT folder: drop --format (naming=)",
        )
    return without


class OnBase(NamedTuple):
    """A module's factors, what kind it is, and whether the base stores it as [in, out]."""

    factors: LowRank
    kind: ModuleKind
    turned: bool


def content_of(base: Checkpoint, modules: Mapping[str, OnBase], naming: Naming) -> Content:
    """The adapter of these modules under `naming`, which has a name for each of them."""
    turned = [module.turned for module in modules.values() if module.kind == "linear"]
    path = base.source if base.folder is None else str(base.folder)
    content = Content(
        naming="peft",
        modules={name: module.factors for name, module in modules.items()},
        kinds={name: module.kind for name, module in modules.items()},
        metadata={"magmerge": __version__},
        # One value is all that the configuration has, and readers that know the base need none:
        # it is set only where it holds for every matrix.
        config={
            "base_model_name_or_path": path if base.files else None,
            "fan_in_fan_out": bool(turned) and all(turned),
        },
    )
    return content if naming == "peft" else _diffusion(base, content, naming)


def _diffusion(base: Checkpoint, content: Content, naming: Naming) -> Content:
    """The adapter of a part of a diffusion model, whose file may fuse what others keep apart."""
    assembly = Assembly()
    for name, own in rows_of(base).items():
        rows = [
            part._replace(module=module if module in content.modules else None)
            for part in own
            for module in ((part.module or "").removesuffix(WEIGHT),)
        ]
        if any(part.module is not None for part in rows):
            assembly.add(name, rows)
    adapter = AssembledAdapter(InMemory(content), assembly, "diffusers")
    return rename_content(
        Content(
            naming="diffusers",
            modules={name: adapter.read(name) for name in adapter.modules},
            kinds={name: module.kind for name, module in adapter.modules.items()},
            metadata=content.metadata,
        ),
        naming,
    )
