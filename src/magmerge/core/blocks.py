"""The blocks of an image model by the names that users of LoRAs know, and presets of blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from magmerge.core.components import component_of, layout_of

Rule = tuple[re.Pattern[str], Callable[..., str]]


def _rule(pattern: str, name: Callable[..., str]) -> Rule:
    """`_` and dots alike; the groups are numbers."""
    return re.compile(rf"(?:.*[._])?{pattern.replace('/', '[._]')}(?:[._].*)?"), name


BLOCKS: tuple[Rule, ...] = (
    _rule(r"input_blocks/(\d+)", lambda n: f"IN{n:02d}"),
    _rule(r"output_blocks/(\d+)", lambda n: f"OUT{n:02d}"),
    _rule(r"(?:middle|mid)_block", lambda: "MID"),
    # Of three to a level the last makes the level smaller or larger.
    _rule(r"down_blocks/(\d+)/(?:resnets|attentions)/(\d+)", lambda i, j: f"IN{1 + 3 * i + j:02d}"),
    _rule(r"down_blocks/(\d+)/downsamplers/0", lambda i: f"IN{3 + 3 * i:02d}"),
    _rule(r"up_blocks/(\d+)/(?:resnets|attentions)/(\d+)", lambda i, j: f"OUT{3 * i + j:02d}"),
    _rule(r"up_blocks/(\d+)/upsamplers/0", lambda i: f"OUT{2 + 3 * i:02d}"),
    _rule(r"unet/conv_in", lambda: "IN00"),
    _rule(r"(?:single_blocks|single_transformer_blocks)/(\d+)", lambda n: f"S{n:02d}"),
    _rule(r"double_blocks/(\d+)", lambda n: f"D{n:02d}"),
    _rule(r"transformer/transformer_blocks/(\d+)", lambda n: f"D{n:02d}"),
    _rule(
        r"transformer_blocks/(\d+)/(?:attn|ff|ff_context|norm1|norm1_context)",
        lambda n: f"D{n:02d}",
    ),
)
"""What the names in a block are like, and how it is called; the first that fits tells."""


def _inside(text: str) -> frozenset[str]:
    return frozenset(("BASE", *text.split()))


_SD1 = {
    "INS": _inside("IN01 IN02 IN04"),
    "IND": _inside("IN05 IN07 IN08"),
    "OUTD": _inside("OUT03 OUT04 OUT05 OUT06"),
    "OUTS": _inside("OUT07 OUT08 OUT09 OUT10 OUT11"),
}
_SDXL = {
    "INS": _inside("IN04 IN05"),
    "IND": _inside("IN07 IN08"),
    "OUTD": _inside("OUT00 OUT01 OUT02"),
    "OUTS": _inside("OUT03 OUT04 OUT05"),
}


def _presets(own: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    return {
        **own,
        "INALL": own["INS"] | own["IND"],
        "MIDD": own["IND"] | own["OUTD"] | {"MID"},
        "OUTALL": own["OUTD"] | own["OUTS"],
    }


PRESETS = {"sd1": _presets(_SD1), "sdxl": _presets(_SDXL)}
"""The blocks that LoRA block weights of these names leave on, of 17 in SD 1 and of 12 in SDXL."""
HIGHEST = 8
"""The last block of SDXL on either way: SD 1 goes on to 11."""


class Blocks:
    """The blocks of a model with tensors or modules of these names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._layout = layout_of(names := tuple(names))
        self.present = frozenset(block for name in names if (block := self.block_of(name)))
        numbers = [int(block[-2:]) for block in self.present if re.match("IN|OUT", block)]
        self._presets = PRESETS["sdxl" if max(numbers, default=0) <= HIGHEST else "sd1"]

    def block_of(self, name: str) -> str | None:
        """IN04, MID, OUT08; D07 and S21 in Flux; BASE for text encoders and what of an image model
        is in no block. None for a VAE, and for what is no diffusion model.
        """
        component = component_of(name, self._layout)
        if component == "vae":
            return None
        if component in ("text_encoder", "text_encoder_2"):
            return "BASE"
        return _block(name) or (None if component is None else "BASE")

    def takes(self, filter_: str, name: str) -> bool:
        """Whether a block, or a preset of blocks, has this tensor."""
        block = self.block_of(name)
        return block == filter_ or block in self._presets.get(filter_, ())


@lru_cache(1 << 14)
def _block(name: str) -> str | None:
    for pattern, block in BLOCKS:
        match = pattern.fullmatch(name)
        if match:
            numbers = [int(number) for number in match.groups()]
            return block(*numbers) if all(number < 100 for number in numbers) else None
    return None
