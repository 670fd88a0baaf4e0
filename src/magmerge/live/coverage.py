"""Which layers of a live model a change of its parameters can be followed through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from magmerge.core.types import Uncovered
from magmerge.live.compound import APART, AttentionLayer, MixtureLayer, is_mixture
from magmerge.live.layers import (
    FEATURES_LAST,
    KnownLayer,
    Layer,
    TokenLayer,
    is_turned,
)
from magmerge.live.row_groups import row_groups
from magmerge.live.trial_layers import TrialLayer

CHANNELS_FIRST = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
PLAIN = (nn.Linear, nn.Embedding, *CHANNELS_FIRST, *FEATURES_LAST)
ATTENTION = frozenset({"in_proj_weight", "in_proj_bias", *APART})
"""Parameters of torch's attention that are followed, beside those of out_proj."""


def follow(
    model: nn.Module, names: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[list[Layer], list[Uncovered]]:
    """The layers that hold the parameters `names` (the model's name to the checkpoint's).

    A parameter that several modules share is followed in each.
    """
    layers: list[Layer] = []
    taken: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=True):
        tensors = _tensors_of(path, module, names)
        if not tensors or path in taken:
            continue
        layers.append(_layer(path, module, tensors, config))
        if isinstance(layers[-1], AttentionLayer):
            taken.add(f"{path}.out_proj")
    covered = {name for layer in layers for name in layer.tensors.values()}
    return layers, [
        Uncovered(stored, "the model that was run has no module for it")
        for stored in dict.fromkeys(names.values())
        if stored not in covered
    ]


def _tensors_of(path: str, module: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """A module's own parameters, and those that it uses in place of a module in it."""
    local = [name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)]
    if isinstance(module, nn.MultiheadAttention):
        local = [name for name in local if name in ATTENTION]
        local += ["out_proj.weight", "out_proj.bias"]
    prefix = f"{path}." if path else ""
    return {name: names[prefix + name] for name in local if prefix + name in names}


def _layer(
    path: str, module: nn.Module, tensors: Mapping[str, str], config: Mapping[str, Any]
) -> Layer:
    if isinstance(module, nn.MultiheadAttention):
        return AttentionLayer(path, module, tensors)
    if is_mixture(module):
        return MixtureLayer(path, module, tensors)
    rows, linear = None, isinstance(module, nn.Linear) or is_turned(module)
    if linear:
        weight: Any = module.weight
        outputs, inputs = reversed(weight.shape) if is_turned(module) else weight.shape
        rows = row_groups(path.removesuffix(".base_layer"), inputs, outputs, config)
    if not _is_plain(module):
        return TrialLayer(path, module, tensors, rows)
    if linear or isinstance(module, nn.Embedding):
        return TokenLayer(path, module, tensors, rows)
    return KnownLayer(path, module, tensors)


def _is_plain(module: nn.Module) -> bool:
    """Whether it does what torch's own class does, with weight and bias and nothing besides."""
    own = {name for name, _ in module.named_parameters(recurse=False)}
    if not own <= {"weight", "bias"} or getattr(module, "max_norm", None) is not None:
        return False
    if hasattr(module, "parametrizations"):
        return False
    return is_turned(module) or any(
        isinstance(module, known) and type(module).forward is known.forward for known in PLAIN
    )
