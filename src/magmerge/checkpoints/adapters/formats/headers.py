"""From a module's keys to its header: shapes, rank and scale, checked before any factor is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from magmerge.checkpoints.adapters.formats.forms import form_of
from magmerge.checkpoints.adapters.formats.group import Group
from magmerge.checkpoints.adapters.formats.keys import Role, Roles
from magmerge.checkpoints.adapters.nouns import (
    Addition,
    Entries,
    LowRank,
    Module,
    ModuleKind,
    ModuleSpec,
    Replacement,
    Rescale,
)
from magmerge.core import dtypes
from magmerge.core.errors import NonFiniteError
from magmerge.core.models import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Parts:
    """What an adapter's file holds, as `Adapter` has it."""

    stored: dict[str, Module] = field(default_factory=dict)
    added: dict[str, Addition] = field(default_factory=dict)
    rescales: dict[str, Rescale] = field(default_factory=dict)


def parts_of(
    checkpoint: Checkpoint,
    modules: Mapping[str, Roles],
    scale_of: Callable[[str, Roles], float | None],
) -> Parts:
    """Every module's parts; `scale_of` gives what the file's entries say of its scale.

    AdapterError as for `stored_module`, and for magnitudes and biases that fit no module.
    """
    parts = Parts()
    for name, roles in modules.items():
        group = Group(checkpoint, name, roles)
        scale = 1.0
        flat = "diff" in roles and len(checkpoint.specs[roles["diff"]].shape) < 2
        if group.factors.keys() - {"diff"} or not (flat or roles.keys() & {"diff", "diff_b"}):
            module = stored_module(checkpoint, name, roles, scale_of(name, roles))
            parts.stored[name], scale = module, module.spec.scale
            if "dora" in roles:
                parts.rescales[name] = _magnitude(group, module.spec)
        elif "diff" in roles and not flat:
            parts.stored[name] = stored_module(checkpoint, name, roles)
        if flat:
            parts.added[f"{name}.weight"] = _addition(group, "diff", f"{name}.weight")
        if "diff_b" in roles and "bias" in roles:
            raise group.fault("its bias is changed twice", roles["diff_b"])
        for role, own in (("diff_b", 1.0), ("bias", scale)):
            if role in roles:
                parts.added[f"{name}.bias"] = _addition(group, role, f"{name}.bias", own)
    return parts


def _addition(group: Group, role: Role, name: str, scale: float = 1.0) -> Addition:
    spec = group.checkpoint.specs[group.roles[role]]
    if spec.dtype not in dtypes.FLOATS or len(spec.shape) != 1 or not spec.shape[0]:
        problem = (
            f"a bias or norm is one row of numbers, and this is {spec.dtype} {list(spec.shape)}"
        )
        raise group.fault(problem, spec.name)
    return Addition(Replacement.of(group.checkpoint, spec.name, name), scale)


def _magnitude(group: Group, module: ModuleSpec) -> Rescale:
    """DoRA's: of rows, as PEFT has it ([out], or [1, out, 1, 1]); LyCORIS' is [out, 1, ...], or of
    columns [1, in, ...].
    """
    spec = group.checkpoint.specs[group.roles["dora"]]
    size, peft = math.prod(spec.shape), "lora_mag" in spec.name
    lengths = [length for length in spec.shape if length != 1]
    of_rows = size == module.shape[0] and (peft or not spec.shape or spec.shape[0] == size)
    of_columns = not peft and spec.shape[:2] == (1, module.shape[1])
    if spec.dtype not in dtypes.FLOATS or len(lengths) > 1 or not (of_rows or of_columns):
        problem = f"its magnitude is {spec.dtype} {list(spec.shape)}, and the module"
        raise group.fault(f"{problem} {list(module.shape)}", spec.name)
    read = partial(finite, group.checkpoint, spec.name)
    return Rescale(read, "out" if of_rows else "in", size, normed=True)


def stored_module(
    checkpoint: Checkpoint, name: str, roles: Roles, scale: float | None = None
) -> Module:
    """The module `name` of the tensors in `roles`.

    `scale` is what the file's own entries say of it; without it and without an alpha it is 1.
    AdapterError for half pairs, shapes that do not go together, and an alpha that cannot be.
    """
    group = Group(checkpoint, name, roles)
    form = form_of(group)
    if scale is None or "alpha" in roles:
        own = group.scale(form.trained)
        if scale is not None and not math.isclose(own, scale, rel_tol=1e-6):
            problem = f"its alpha makes the scale {own:g}, and the file's entries {scale:g}"
            raise group.fault(problem, roles["alpha"])
        scale = own
    first = checkpoint.specs[roles[form.roles[0]]]
    kind: ModuleKind = "linear" if len(form.shape) == 2 else "convolution"
    spec = ModuleSpec(name, kind, form.shape, form.rank, scale, first.dtype, form.flattened)
    keys = [roles[role] for role in form.roles]
    opened = partial(_entries, checkpoint, keys, form.entries, spec) if form.entries else None
    return Module(spec, partial(_factors, checkpoint, keys, form.product, spec), opened)


def _factors(checkpoint: Checkpoint, keys: list[str], product: str, spec: ModuleSpec) -> LowRank:
    from magmerge.checkpoints.adapters.formats import products

    up, down = getattr(products, product)(*(finite(checkpoint, key) for key in keys))
    return LowRank(up, down.reshape(spec.rank, *spec.shape[1:]), spec.scale)


def _entries(checkpoint: Checkpoint, keys: list[str], entries: str, spec: ModuleSpec) -> Entries:
    from magmerge.checkpoints.adapters.formats import products

    if entries == "stored":
        return partial(products.stored_entries, checkpoint, keys[0], spec.scale)
    factors = (finite(checkpoint, key) for key in keys)
    opened: Entries = getattr(products, entries)(spec.scale, *factors)
    return opened


def finite(checkpoint: Checkpoint, key: str) -> Tensor:
    """A stored tensor; NonFiniteError for NaN or infinity."""
    tensor = checkpoint.read(key)
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        from magmerge.linalg.finite import count_of_bad

        remedy = "use a sound copy of this adapter"
        problem = count_of_bad(tensor)
        raise NonFiniteError(problem, source=checkpoint.source, tensor=key, remedy=remedy)
    return tensor
