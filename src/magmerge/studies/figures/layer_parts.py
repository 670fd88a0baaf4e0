"""What part of its block a layer is, told from the words of its name; for figures only."""

from __future__ import annotations

import re

ATTENTION = ("attention q", "attention k", "attention v")
ALL_IN_ONE, OUT = "attention q, k, v in one", "attention out"
PARTS = (*ATTENTION, ALL_IN_ONE, OUT, "mlp", "norm", "other")

_WORDS = re.compile(r"[._]")
_QKV = {"in_proj", "in_proj_weight", "c_attn", "query_key_value", "qkv", "qkv_proj", "wqkv"}
_WHOLE = {**dict.fromkeys(_QKV, ALL_IN_ONE), "attn_out": OUT, "to_out": OUT}
"""Names of modules that are told as they are."""
_OWN = {
    name: part
    for letter, word, part in zip("qkv", ("query", "key", "value"), ATTENTION, strict=True)
    for name in (letter, word, f"w{letter}")
}
_ATTENTION = frozenset({"attention", "attn", "attentions", "selfattention", "encdecattention"})
_MLP = frozenset({"mlp", "ffn", "ff", "feedforward", "intermediate", "experts", "densereludense"})
_MLP_OWN = frozenset({"fc", "fc1", "fc2", "lin1", "lin2", "wi", "gate", "up", "down"})
_NORM = frozenset({"norm", "layernorm", "ln", "bn", "batchnorm", "rmsnorm"})
_OUT = frozenset({"o", "out", "dense", "wo", "output"})
_PROJECTIONS = ({"proj"}, {"c", "proj"})


def part_of(name: str) -> str:
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
        return OUT
    if own & {"o", "out"} and "proj" in own:
        return OUT
    if own & _MLP_OWN or set(words) & _MLP or steps[-2:] == ["output", "dense"]:
        return "mlp"
    return "other"


def _numberless(words: set[str]) -> set[str]:
    """norm1 as norm, for example."""
    return {word.rstrip("0123456789") for word in words}
