"""What part of its block a layer is, told from the words of its name; for figures only."""

from __future__ import annotations

import re
from typing import Literal, get_args

Part = Literal[
    "attention q",
    "attention k",
    "attention v",
    "attention q, k, v in one",
    "attention out",
    "mlp",
    "norm",
    "other",
]
PARTS: tuple[Part, ...] = get_args(Part)

_WORDS = re.compile(r"[._]")
_WHOLE: dict[str, Part] = {
    "in_proj": "attention q, k, v in one",
    "in_proj_weight": "attention q, k, v in one",
    "c_attn": "attention q, k, v in one",
    "query_key_value": "attention q, k, v in one",
    "qkv": "attention q, k, v in one",
    "qkv_proj": "attention q, k, v in one",
    "wqkv": "attention q, k, v in one",
    "attn_out": "attention out",
    "to_out": "attention out",
}
"""Names of modules that are told as they are."""
_OWN: dict[str, Part] = {
    "q": "attention q",
    "query": "attention q",
    "wq": "attention q",
    "k": "attention k",
    "key": "attention k",
    "wk": "attention k",
    "v": "attention v",
    "value": "attention v",
    "wv": "attention v",
}
_ATTENTION = frozenset({"attention", "attn", "attentions", "selfattention", "encdecattention"})
_MLP = frozenset({"mlp", "ffn", "ff", "feedforward", "intermediate", "experts", "densereludense"})
_MLP_OWN = frozenset({"fc", "fc1", "fc2", "lin1", "lin2", "wi", "gate", "up", "down"})
_NORM = frozenset({"norm", "layernorm", "ln", "bn", "batchnorm", "rmsnorm"})
_OUT = frozenset({"o", "out", "dense", "wo", "output"})
_PROJECTIONS = ({"proj"}, {"c", "proj"})


def part_of(name: str) -> Part:
    """A layer's part: `name` is that of the module or of its weight.

    A module in a block of BERT's naming that is neither of the attention nor a norm is its MLP.
    """
    path = name.removesuffix(".weight").removesuffix(".bias").lower().split(".")
    steps = [step for step in path if step and not step.isdigit()]
    last = steps[-1] if steps else ""
    for step in reversed(steps):
        if step in _WHOLE:
            return _WHOLE[step]
    words = [word for step in steps for word in _WORDS.split(step)]
    own = set(_WORDS.split(last))
    if _numberless(own) & _NORM:
        return "norm"
    told = [_OWN[word] for word in _WORDS.split(last) if word in _OWN]
    inside = set(words) & _ATTENTION
    if told and (inside or len(own) > 1 or last.startswith("w")):
        return told[0]
    if inside and (own & _OUT or own in _PROJECTIONS):
        return "attention out"
    if own & {"o", "out"} and "proj" in own:
        return "attention out"
    if own & _MLP_OWN or set(words) & _MLP or steps[-2:] == ["output", "dense"]:
        return "mlp"
    return "other"


def _numberless(words: set[str]) -> set[str]:
    """norm1 as norm, for example."""
    return {word.rstrip("0123456789") for word in words}
