"""Which layers of a live model a change of its parameters can be followed through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from magmerge.core.types import Uncovered
from magmerge.live.compound import AttentionLayer, MixtureLayer, is_mixture
from magmerge.live.layers import KnownLayer, Layer, TokenLayer, TrialLayer, is_turned
from magmerge.live.row_groups import row_groups

CHANNELS_FIRST = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
EMBEDDED_LAST = (nn.LayerNorm, nn.RMSNorm)
PLAIN = (nn.Linear, nn.Embedding, *CHANNELS_FIRST, *EMBEDDED_LAST)
ATTENTION = frozenset(
    {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
)
"""Parameters of torch's attention that are followed, beside those of out_proj."""


class Followed(NamedTuple):
    """A layer, and its parameters' names in the module to their tensors' in the checkpoint."""

    layer: Layer
    tensors: Mapping[str, str]


def follow(
    model: nn.Module, names: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[list[Followed], list[Uncovered]]:
    """The layers that hold the parameters `names` (the model's name to the checkpoint's).

    A parameter that several modules share is followed in each.
    """
    layers: list[Followed] = []
    taken: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=True):
        local = _tensors_of(path, module, names)
        if not local or f"{path}." in taken:
            continue
        layer = _layer(path, module, config)
        if isinstance(layer, AttentionLayer):
            taken.add(f"{path}.out_proj.")
        layers.append(Followed(layer, local))
    followed = {name for item in layers for name in item.tensors.values()}
    return layers, [
        Uncovered(stored, "the model that was run has no module for it")
        for stored in dict.fromkeys(names.values())
        if stored not in followed
    ]


def _tensors_of(path: str, module: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """A module's own parameters, and those that it uses in place of a module in it."""
    local = [name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)]
    if isinstance(module, nn.MultiheadAttention):
        local = [name for name in local if name in ATTENTION]
        local += ["out_proj.weight", "out_proj.bias"]
    prefix = f"{path}." if path else ""
    return {name: names[prefix + name] for name in local if prefix + name in names}


def _layer(path: str, module: nn.Module, config: Mapping[str, Any]) -> Layer:
    if isinstance(module, nn.MultiheadAttention):
        return AttentionLayer(path, module)
    if is_mixture(module):
        return MixtureLayer(path, module)
    rows, linear = None, isinstance(module, nn.Linear) or is_turned(module)
    if linear:
        weight: Any = module.weight
        outputs, inputs = weight.shape
        if is_turned(module):
            outputs, inputs = inputs, outputs
        rows = row_groups(path.removesuffix(".base_layer"), inputs, outputs, config)
    if not _is_plain(module):
        return TrialLayer(path, module, rows)
    if linear or isinstance(module, nn.Embedding):
        return TokenLayer(path, module, rows)
    last = len(module.normalized_shape) if isinstance(module, EMBEDDED_LAST) else 0
    return KnownLayer(path, module, features=last)


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
