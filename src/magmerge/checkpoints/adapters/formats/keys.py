"""The endings of keys in adapter files: which factor of which module a tensor is."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Role = Literal[
    "up",
    "down",
    "mid",
    "alpha",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
]
"""What a tensor is to its module. LyCORIS' roles have the names of its keys."""

Style = Literal["peft", "kohya", "comfy", "diffusers_old", "diffusers"]
"""Whose manner of naming a key is in."""


class Key(NamedTuple):
    """A key that belongs to an adapter. `style` is None where several write such a key."""

    module: str
    role: Role
    style: Style | None


class Refusal(NamedTuple):
    """A key of an adapter that is more than a low-rank task vector, and why it is refused."""

    reason: str


PEFT = "base_model.model."
_SAVED_AS = r"(?:\.default(?:_\d+)?)?"
_FACTORS: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(rf"(.+)\.lora_B{_SAVED_AS}\.weight"), "up"),
    (re.compile(rf"(.+)\.lora_A{_SAVED_AS}\.weight"), "down"),
    (re.compile(r"(.+)\.lora_up\.weight"), "up"),
    (re.compile(r"(.+)\.lora_down\.weight"), "down"),
    (re.compile(r"(.+)\.lora_mid\.weight"), "mid"),
)
_OLD_FACTORS: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(.+)\.lora(?:_linear_layer)?\.up\.weight"), "up"),
    (re.compile(r"(.+)\.lora(?:_linear_layer)?\.down\.weight"), "down"),
    (re.compile(r"(.+_lora)\.up\.weight"), "up"),
    (re.compile(r"(.+_lora)\.down\.weight"), "down"),
)
_EMBEDDING = re.compile(rf".+\.lora_embedding_[AB]{_SAVED_AS}")
_LYCORIS = re.compile(r"(.+)\.(hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)")
_ALPHA = re.compile(r"(.+)\.alpha")
_KOHYA = re.compile(r"(?:lora_[a-z]+[1-9]?|lycoris)_[^.]+")
_COMFY = re.compile(r"(?:diffusion_model|text_encoders\.(?:clip_l|clip_g|t5xxl)\.transformer)\..+")

_REFUSED = (
    (r"dora_scale|lora_mag[\w.]*", "DoRA rescales whole columns of the base"),
    (r"lora_(?:up|down|[AB](?:\.default)?)\.bias|lora\.up\.bias", "its factors have biases"),
    (r"oft_(?:blocks|diag|R[\w.]*)", "OFT turns the base itself"),
    (r"hada_t[12]", "a LoHa with a Tucker core (t1, t2) is no product of low-rank matrices"),
    (r"lokr_t2", "a LoKr with a Tucker core (t2) has no factors of low rank"),
    (
        r"processor\.(?:qkv|proj)_lora[12]?\.(?:up|down)\.weight",
        "XLabs' way of naming is not known",
    ),
    (r"vera_lambda_[\w.]+", "VeRA shares random factors among modules"),
)
_REFUSED_IN_FILES = (
    (r"diff", "it holds full differences of weights, which have no low rank"),
    (r"diff_b|bias_(?:values|indices|size)", "it holds differences of biases"),
    (r"[wb]_norm", "it changes norms, which have no low rank"),
    (r"on_input", "IA3 rescales the base's own rows or columns"),
    (r"(?:[ab][12]|bm[12])\.weight", "GLoRA multiplies the base itself"),
    (r"set_weight|reshape_weight", "it replaces or reshapes the base's weight"),
)
"""Endings that a model's own layers might have: telling only after an adapter's kind of name."""
_REFUSALS = tuple((re.compile(rf"(.+)\.(?:{ending})"), why) for ending, why in _REFUSED)
_REFUSALS_IN_FILES = tuple(
    (re.compile(rf"(.+)\.(?:{ending})"), why) for ending, why in _REFUSED_IN_FILES
)


def read_key(key: str) -> Key | Refusal | None:
    """What `key` says its tensor is; None where it is no adapter's."""
    refusal = _refusal(key)
    if refusal is not None:
        return refusal
    for pattern, role in _FACTORS:
        if match := pattern.fullmatch(key):
            return Key(match[1], role, _style(match[1]))
    for pattern, role in _OLD_FACTORS:
        if match := pattern.fullmatch(key):
            return Key(match[1], role, "diffusers_old")
    if _EMBEDDING.fullmatch(key):
        return Key(key, "up", "peft")
    if match := _LYCORIS.fullmatch(key):
        return Key(match[1], match[2], _style(match[1]))  # type: ignore[arg-type]
    if match := _ALPHA.fullmatch(key):
        style = _style(match[1])
        return Key(match[1], "alpha", None if style == "diffusers" else style)
    return None


def _refusal(key: str) -> Refusal | None:
    for pattern, reason in _REFUSALS:
        if pattern.fullmatch(key):
            return Refusal(reason)
    for pattern, reason in _REFUSALS_IN_FILES:
        match = pattern.fullmatch(key)
        if match and _style(match[1]) in ("kohya", "comfy"):
            return Refusal(reason)
    return None


def _style(module: str) -> Style:
    if module.startswith(PEFT):
        return "peft"
    if _KOHYA.fullmatch(module):
        return "kohya"
    return "comfy" if _COMFY.fullmatch(module) else "diffusers"
