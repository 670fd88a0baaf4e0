"""Which tokens of a call are padding, as its attention masks tell, for each layer's own tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

CROSS = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn", "multihead_attn")
"""Parts of paths of attention between decoder and encoder."""
OF_ENCODER = ("k", "v", "k_proj", "v_proj", "key", "value")
"""Layers in such attention that are fed with the encoder's tokens."""


class Mask(NamedTuple):
    """A mask [batch, tokens], True for what counts, and whether it is the decoder's."""

    kept: Tensor
    decoder: bool


def masks_of(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Mask]:
    """The masks among a call's arguments, by their names, in mappings too.

    `...attention_mask` is 1, and `...key_padding_mask` 0, for what counts.
    """
    try:
        signature = inspect.signature(model.forward)
        named = dict(signature.bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        named = dict(kwargs)
    return list(_masks(named))


def _masks(values: Mapping[str, Any]) -> Iterator[Mask]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _masks({str(key): one for key, one in value.items()})
        if not isinstance(value, Tensor) or value.ndim != 2:
            continue
        decoder = name.startswith(("decoder", "tgt"))
        if name.endswith("attention_mask"):
            yield Mask(value.bool(), decoder)
        elif name.endswith("key_padding_mask") and not name.startswith("memory"):
            yield Mask(value == 0, decoder)


def for_layer(path: str, masks: Sequence[Mask]) -> list[Tensor]:
    """The masks in the order in which they may be those of the layer at `path`."""
    parts = path.split(".")
    crossing = any(word in part for part in parts for word in CROSS)
    decoder = "decoder" in parts and not (crossing and parts[-1] in OF_ENCODER)
    return [mask.kept for mask in sorted(masks, key=lambda mask: mask.decoder != decoder)]
