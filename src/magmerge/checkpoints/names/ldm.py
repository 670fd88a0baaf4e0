"""The U-Net of Stable Diffusion 1, 2 and XL in its first authors' names and in diffusers'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

UNetFamily = Literal["sd", "sdxl"]

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_UPSAMPLER = "up_blocks.0.upsamplers.0.conv"
_UPSAMPLERS: dict[UNetFamily, str] = {
    "sd": "output_blocks.2.1.conv",
    "sdxl": "output_blocks.2.2.conv",
}
"""The first: it comes after the attention, or in its place where the first level has none."""
_MODULES = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    **dict.fromkeys(_UPSAMPLERS.values(), _UPSAMPLER),
    **{f"input_blocks.{3 * n + 3}.0.op": f"down_blocks.{n}.downsamplers.0.conv" for n in range(3)},
    **{f"output_blocks.{3 * n + 2}.2.conv": f"up_blocks.{n}.upsamplers.0.conv" for n in (1, 2)},
}
_PLACES = {
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
"""Where resnets and attentions are. Levels have two of each on the way down, three on the way up;
block 0 is conv_in, and each third one on the way down a downsampler.
"""
for _slot, _kind in enumerate(("resnets", "attentions")):
    for _level in range(4):
        for _layer in range(3):
            if _layer < 2:
                _own = f"input_blocks.{1 + 3 * _level + _layer}.{_slot}"
                _PLACES[_own] = f"down_blocks.{_level}.{_kind}.{_layer}"
            _own = f"output_blocks.{3 * _level + _layer}.{_slot}"
            _PLACES[_own] = f"up_blocks.{_level}.{_kind}.{_layer}"
_RESNET_BACK, _MODULES_BACK, _PLACES_BACK = (
    {theirs: own for own, theirs in table.items()} for table in (_RESNET, _MODULES, _PLACES)
)
_OF_SD = re.compile(r"(down_blocks\.(3|0\.attentions)|up_blocks\.(3|2\.attentions))\.")
_OF_SDXL = re.compile(r"(add_embedding\.|up_blocks\.0\.attentions\.|.+\.transformer_blocks\.[1-9])")
_ATTENTION = re.compile(r"(norm|proj_in|proj_out|transformer_blocks\..+)")


def to_diffusers(name: str) -> str | None:
    """diffusers' name of a module of the U-Net; None if the module is not known."""
    return _MODULES.get(name) or _inside(name, _PLACES, _RESNET)


def from_diffusers(name: str, family: UNetFamily | None) -> str | None:
    """The first authors' name of one of diffusers' modules; None if it has none.

    `family` tells where the first upsampler stands; where it is not known that module has no name.
    """
    if name == _UPSAMPLER:
        return None if family is None else _UPSAMPLERS[family]
    return _MODULES_BACK.get(name) or _inside(name, _PLACES_BACK, _RESNET_BACK)


def _inside(name: str, places: Mapping[str, str], resnet: Mapping[str, str]) -> str | None:
    """The name of what is in a resnet or an attention, whose place is two to four segments."""
    parts = name.split(".", 4)
    for count in range(2, len(parts)):
        place, inner = ".".join(parts[:count]), ".".join(parts[count:])
        if place in places:
            attention = "attentions" in f"{place} {places[place]}"
            known = _ATTENTION.fullmatch(inner) is not None
            own = (inner if known else None) if attention else resnet.get(inner)
            return None if own is None else f"{places[place]}.{own}"
    return None


def family_of(names: Iterable[str]) -> UNetFamily | None:
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
