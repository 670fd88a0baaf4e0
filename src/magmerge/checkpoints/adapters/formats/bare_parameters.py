"""PEFT's LoRA of bare parameters (target_parameters), such as the fused experts of a mixture.

The factors of all experts lie in one pair: A [experts r, in] expert by expert, B [out, r experts]
with the expert as the faster index. Several parameters of one module wrap each other; the innermost
is the module's first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from magmerge.checkpoints.adapters.formats.headers import finite
from magmerge.checkpoints.adapters.formats.keys import AGAIN, CONFIG, Roles
from magmerge.checkpoints.adapters.formats.lora_config import (
    MERGED_BY_PEFT,
    ScaleOrigin,
    sound_scale,
)
from magmerge.checkpoints.adapters.nouns import LowRank, Module, ModuleSpec
from magmerge.core import dtypes
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint

WRAPPED = ".base_layer"
ORDER = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
"""In what order transformers' modules of experts have their parameters."""


def parameter_of(
    module: str, modules: Mapping[str, Roles], config: Mapping[str, Any]
) -> str | None:
    """The bare parameter whose factors are under this name; None for a module like any other.

    ValueError where several of one module cannot be told from each other.
    """
    told = config.get("target_parameters")
    if not isinstance(told, list):
        return None
    path = module
    while path.endswith(WRAPPED):
        path = path.removesuffix(WRAPPED)
    paths = (str(name).rpartition(".") for name in told)
    own = [leaf for owner, _, leaf in paths if f".{path}".endswith(f".{owner}")]
    depth = (len(module) - len(path)) // len(WRAPPED)
    count = next(n for n in range(len(modules) + 1) if f"{path}{WRAPPED * n}" not in modules)
    if not own or own == ["weight"]:
        return None
    if len(own) != count or (count > 1 and not set(own) <= set(ORDER)):
        raise ValueError(f"{count} parameters of {path} are adapted, and it names {sorted(own)}")
    ordered = sorted(own, key=ORDER.index) if count > 1 else own
    return f"{path}.{ordered[-1 - depth]}"


def expert_modules(
    checkpoint: Checkpoint, modules: dict[str, Roles], config: Mapping[str, Any]
) -> dict[str, tuple[Module, ...]]:
    """The experts' modules by their parameter, taken out of `modules`."""
    found = {}
    for module in list(modules):
        try:
            parameter = parameter_of(module, modules, config)
        except ValueError as error:
            problem = f"{CONFIG}: {error}"
            raise AdapterError(problem, source=checkpoint.source, remedy=MERGED_BY_PEFT) from error
        if parameter is not None:
            found[module] = parameter
    return {
        parameter: _experts(checkpoint, parameter, modules.pop(module), config)
        for module, parameter in found.items()
    }


def _experts(
    checkpoint: Checkpoint, parameter: str, roles: Roles, config: Mapping[str, Any]
) -> tuple[Module, ...]:
    """One module for each expert; AdapterError where the factors do not hold whole ones."""
    if roles.keys() != {"up", "down"}:
        raise AdapterError(
            f"refused: {parameter} is a bare parameter, and its LoRA is no pair: {sorted(roles)}",
            source=checkpoint.source,
            tensor=next(iter(roles.values())),
            remedy=MERGED_BY_PEFT,
        )
    down, up = (checkpoint.specs[roles[role]] for role in ("down", "up"))
    rank = config.get("r")
    sound = len(down.shape) == len(up.shape) == 2 and type(rank) is int and rank > 0
    if (
        not sound
        or down.shape[0] != up.shape[1]
        or not down.shape[0]
        or down.shape[0] % (rank or 1)
    ):
        raise AdapterError(
            f"its factors {list(down.shape)} and {list(up.shape)} are not of rank {rank} for each "
            f"expert of {parameter}",
            source=checkpoint.source,
            tensor=down.name,
            remedy=AGAIN if not config.get("rank_pattern") else MERGED_BY_PEFT,
        )
    if {down.dtype, up.dtype} - dtypes.FLOATS:
        problem = f"its format {down.dtype} is none to compute with"
        raise AdapterError(problem, source=checkpoint.source, tensor=down.name, remedy=AGAIN)
    assert isinstance(rank, int)
    origin = ScaleOrigin(checkpoint.source, CONFIG, f"restore lora_alpha in {CONFIG}", parameter)
    scale = sound_scale(parameter, rank, config, origin)
    count, shape = down.shape[0] // rank, (up.shape[0], down.shape[1])
    return tuple(
        Module(
            ModuleSpec(f"{parameter}.{expert}", "linear", shape, rank, scale, up.dtype),
            partial(_factors, checkpoint, roles, (expert, count, rank), scale),
        )
        for expert in range(count)
    )


def _factors(
    checkpoint: Checkpoint, roles: Roles, place: tuple[int, int, int], scale: float
) -> LowRank:
    expert, count, rank = place
    down, up = finite(checkpoint, roles["down"]), finite(checkpoint, roles["up"])
    own = up.reshape(len(up), rank, count)[:, :, expert]
    return LowRank(own.contiguous(), down[expert * rank : (expert + 1) * rank], scale)
