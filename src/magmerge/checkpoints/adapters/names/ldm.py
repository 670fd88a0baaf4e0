"""The U-Net of Stable Diffusion 1, 2 and XL in its first authors' names and in diffusers'."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Family = Literal["sd", "sdxl"]

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_TURNED_RESNET = {theirs: own for own, theirs in _RESNET.items()}
_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_TURNED_OUTSIDE = {theirs: own for own, theirs in _OUTSIDE.items()}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_TURNED_MIDDLE = {theirs: own for own, theirs in _MIDDLE.items()}
_OWN = re.compile(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)")
_THEIRS = re.compile(r"(down|up)_blocks\.([0-3])\.([a-z]+)\.([0-2])\.(.+)")
_OF_SD = re.compile(r"(down_blocks\.(3|0\.attentions)|up_blocks\.(3|2\.attentions))\.")
_OF_SDXL = re.compile(r"(add_embedding\.|up_blocks\.0\.attentions\.|.+\.transformer_blocks\.[1-9])")
_ATTENTION = re.compile(r"(norm|proj_in|proj_out|transformer_blocks\..+)")


def to_diffusers(name: str) -> str | None:
    """diffusers' name of a module of the U-Net; None if the module is not known."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    middle = re.fullmatch(r"middle_block\.([012])\.(.+)", name)
    if middle is not None:
        place = _MIDDLE[middle[1]]
        inner = _inner(place, middle[2], _RESNET)
        return None if inner is None else f"mid_block.{place}.{inner}"
    match = _OWN.fullmatch(name)
    if match is None:
        return None
    side, number, slot, inner_name = match[1], int(match[2]), int(match[3]), match[4]
    if side == "input":
        return _down(number, slot, inner_name)
    return _up(number, slot, inner_name)


def _down(number: int, slot: int, name: str) -> str | None:
    # Block 0 is conv_in; then come, level by level, two layers and a downsampler.
    level, layer = divmod(number - 1, 3)
    if not 1 <= number <= 11:
        return None
    if layer == 2:
        sampler = slot == 0 and name == "op"
        return f"down_blocks.{level}.downsamplers.0.conv" if sampler else None
    return _layer(f"down_blocks.{level}", layer, slot, name)


def _up(number: int, slot: int, name: str) -> str | None:
    level, layer = divmod(number, 3)
    if number > 11:
        return None
    # The upsampler comes after the attention, or in its place where the first level has none.
    if layer == 2 and level < 3 and name == "conv" and slot in ((1, 2) if level == 0 else (2,)):
        return f"up_blocks.{level}.upsamplers.0.conv"
    return _layer(f"up_blocks.{level}", layer, slot, name)


def _layer(block: str, layer: int, slot: int, name: str) -> str | None:
    if slot > 1:
        return None
    place = f"{('resnets', 'attentions')[slot]}.{layer}"
    inner = _inner(place, name, _RESNET)
    return None if inner is None else f"{block}.{place}.{inner}"


def _inner(place: str, name: str, resnet: dict[str, str]) -> str | None:
    if place.startswith("resnets"):
        return resnet.get(name)
    return name if _ATTENTION.fullmatch(name) else None


def from_diffusers(name: str, family: Family | None) -> str | None:
    """The first authors' name of one of diffusers' modules; None if it has none.

    `family` tells where the first upsampler stands; where it is not known that module has no name.
    """
    if name in _TURNED_OUTSIDE:
        return _TURNED_OUTSIDE[name]
    middle = re.fullmatch(r"mid_block\.([a-z]+\.[01])\.(.+)", name)
    if middle is not None and middle[1] in _TURNED_MIDDLE:
        inner = _inner(middle[1], middle[2], _TURNED_RESNET)
        return None if inner is None else f"middle_block.{_TURNED_MIDDLE[middle[1]]}.{inner}"
    match = _THEIRS.fullmatch(name)
    if match is None:
        return None
    side, number, what, layer, rest = match.groups()
    if what in ("resnets", "attentions"):
        inner = _inner(what, rest, _TURNED_RESNET)
        place = _layer_place(side, int(number), int(layer))
        slot = int(what == "attentions")
        return None if inner is None or place is None else f"{place}.{slot}.{inner}"
    if f"{what}.{layer}.{rest}" == f"{side}samplers.0.conv":
        return _sampler(side, int(number), family)
    return None


def _layer_place(side: str, level: int, layer: int) -> str | None:
    if side == "down":
        return f"input_blocks.{1 + 3 * level + layer}" if layer < 2 else None
    return f"output_blocks.{3 * level + layer}"


def _sampler(side: str, level: int, family: Family | None) -> str | None:
    if level == 3:
        return None
    if side == "down":
        return f"input_blocks.{3 + 3 * level}.0.op"
    if level == 0 and family is None:
        return None
    return f"output_blocks.{3 * level + 2}.{1 if level == 0 and family == 'sd' else 2}.conv"


def family_of(names: Iterable[str]) -> Family | None:
    """Which U-Net diffusers' names are of; None where they do not tell.

    XL has three levels, attention on the last two, in several blocks each; 1 and 2 have four,
    attention on the first three.
    """
    for name in names:
        if _OF_SD.match(name):
            return "sd"
        if _OF_SDXL.match(name):
            return "sdxl"
    return None
