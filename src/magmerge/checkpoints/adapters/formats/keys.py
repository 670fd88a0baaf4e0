"""The keys of adapter files: which factor of which module a tensor is, in whose manner."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from magmerge.core.errors import AdapterError, printable, shortened
from magmerge.core.models import Checkpoint

Role = Literal[
    "up", "down", "mid", "alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "lokr_t2", "diff", "diff_b", "bias", "dora",
]  # fmt: skip
"""What a tensor is to its module. LyCORIS' roles have the names of its keys; `diff` and `diff_b`
are differences of the weight and the bias, `bias` is that of the up factor, `dora` a magnitude.
"""

Style = Literal["peft", "kohya", "comfy", "diffusers_old", "diffusers"]
"""Whose manner of naming a key is in."""


STYLES: Mapping[Style, str] = {
    "peft": "PEFT",
    "kohya": "kohya",
    "comfy": "ComfyUI",
    "diffusers_old": "old diffusers",
    "diffusers": "diffusers",
}
AGAIN = "fetch the adapter once more"
CONFIG = "adapter_config.json"
"""The file of PEFT's that tells how the factors beside it are scaled."""

Roles: TypeAlias = dict[Role, str]
"""A module's keys by what they are to it."""


class AdapterKey(NamedTuple):
    """A key that belongs to an adapter. `style` is None where several write such a key; `refusal`
    says why it is refused, where it is of more than a low-rank task vector.
    """

    module: str
    role: Role
    style: Style | None
    refusal: str = ""


PEFT = "base_model.model."
_SAVED_AS = r"(?:\.default(?:_\d+)?)?"
_FACTORS: tuple[tuple[re.Pattern[str], Role, Style | None], ...] = (
    (re.compile(rf"(.+)\.lora_B{_SAVED_AS}\.weight"), "up", None),
    (re.compile(rf"(.+)\.lora_A{_SAVED_AS}\.weight"), "down", None),
    (re.compile(r"(.+)\.lora_up\.weight"), "up", None),
    (re.compile(r"(.+)\.lora_down\.weight"), "down", None),
    (re.compile(r"(.+)\.lora_mid\.weight"), "mid", None),
    (re.compile(r"(.+)\.lora(?:_linear_layer)?\.up\.weight"), "up", "diffusers_old"),
    (re.compile(r"(.+)\.lora(?:_linear_layer)?\.down\.weight"), "down", "diffusers_old"),
    (re.compile(r"(.+_lora)\.up\.weight"), "up", "diffusers_old"),
    (re.compile(r"(.+_lora)\.down\.weight"), "down", "diffusers_old"),
)
"""Endings of factors. Without a style it is the module's name that tells."""
_EMBEDDING = re.compile(rf".+\.lora_embedding_[AB]{_SAVED_AS}")
_LYCORIS = re.compile(r"(.+)\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)")
_DORA = re.compile(rf"(.+)\.(?:dora_scale|lora_magnitude_vector{_SAVED_AS}(?:\.weight)?)")
_BIAS = re.compile(rf"(.+)\.(?:lora_(?:up|B{_SAVED_AS})|lora\.up)\.bias")
_DIFFERENCE = re.compile(r"(.+)\.(?:(diff|w_norm)|diff_b|b_norm)")
_ALPHA = re.compile(r"(.+)\.alpha")
_KOHYA = re.compile(r"(?:lora_[a-z]+[1-9]?|lycoris)_[^.]+")
_COMFY = re.compile(r"(?:diffusion_model|text_encoders\.(?:clip_l|clip_g|t5xxl)\.transformer)\..+")

_REFUSED = (
    (r"lora_(?:down|A(?:\.default)?)\.bias|lora\.down\.bias", "its down factor has a bias"),
    (r"oft_(?:blocks|diag|R[\w.]*)", "OFT turns the base itself"),
    (r"processor\.(?:qkv|proj)_lora[12]?\.(?:up|down)\.weight", "XLabs' names are not known"),
    (r"vera_lambda_[\w.]+", "VeRA shares random factors among modules"),
)
_REFUSED_IN_FILES = (
    (r"bias_(?:values|indices|size)", "it holds sparse differences of biases"),
    (r"on_input", "IA3 rescales the base's own rows or columns"),
    (r"(?:[ab][12]|bm[12])\.weight", "GLoRA multiplies the base itself"),
    (r"set_weight|reshape_weight", "it replaces or reshapes the base's weight"),
)
"""Endings that a model's own layers might have: telling only after an adapter's kind of name."""
_REFUSALS = tuple(
    (re.compile(rf"(.+)\.(?:{ending})"), why, table is _REFUSED_IN_FILES)
    for table in (_REFUSED, _REFUSED_IN_FILES)
    for ending, why in table
)


_TELLING = re.compile(
    r"lora|hada_|lokr_|dora_|\.diff|w_norm|b_norm|\.alpha|oft_|vera_|bias_[vis]|on_input"
    r"|\.(?:[ab]|bm)[12]\.|set_weight|reshape_weight"
)
"""What is in every key of an adapter's: models have many keys, and few of these."""


def read_key(key: str) -> AdapterKey | None:
    """What `key` says its tensor is; None where it is no adapter's."""
    if _TELLING.search(key) is None:
        return None
    for pattern, reason, in_files in _REFUSALS:
        match = pattern.fullmatch(key)
        if match and (not in_files or _style(match[1]) in ("kohya", "comfy")):
            return AdapterKey(match[1], "up", _style(match[1]), reason)
    for pattern, role, style in _FACTORS:
        if match := pattern.fullmatch(key):
            return AdapterKey(match[1], role, style or _style(match[1]))
    for pattern, role in ((_DORA, "dora"), (_BIAS, "bias")):
        if match := pattern.fullmatch(key):
            return AdapterKey(match[1], role, _style(match[1]))
    if match := _DIFFERENCE.fullmatch(key):
        style = _style(match[1])
        role = "diff" if match[2] else "diff_b"
        return AdapterKey(match[1], role, style if style in ("kohya", "comfy") else None)
    if _EMBEDDING.fullmatch(key):
        return AdapterKey(key, "up", "peft")
    if match := _LYCORIS.fullmatch(key):
        return AdapterKey(match[1], match[2], _style(match[1]))  # type: ignore[arg-type]
    if match := _ALPHA.fullmatch(key):
        style = _style(match[1])
        return AdapterKey(match[1], "alpha", None if style == "diffusers" else style)
    return None


def _style(module: str) -> Style:
    if module.startswith(PEFT):
        return "peft"
    if _KOHYA.fullmatch(module):
        return "kohya"
    return "comfy" if _COMFY.fullmatch(module) else "diffusers"


def is_adapter_file(checkpoint: Checkpoint) -> bool:
    """Whether any key is one that only adapters have, of a format that is read or refused."""
    keys = map(read_key, checkpoint.specs)
    return any(key is not None and key.style is not None for key in keys)


def style_of(checkpoint: Checkpoint) -> Style:
    """In whose manner the file names its modules; AdapterError where it is no sound adapter."""
    if not checkpoint.specs:
        raise AdapterError("it holds no tensors", source=checkpoint.source, remedy=AGAIN)
    keys = {name: read_key(name) for name in checkpoint.specs}
    if not is_adapter_file(checkpoint):
        raise AdapterError(
            f"it is no adapter: none of its keys is one's ({shortened(list(keys))})",
            source=checkpoint.source,
            remedy="name a LoRA file, or merge whole models with their base",
        )
    for name, key in keys.items():
        if key is not None and key.refusal:
            raise AdapterError(
                f"refused: {key.refusal}",
                source=checkpoint.source,
                tensor=name,
                remedy="merge it into its base with the program that made it, and give the whole "
                "models",
            )
    check_known([name for name, key in keys.items() if key is None], checkpoint.source)
    styles: dict[Style, str] = {}
    for name, key in keys.items():
        if key is not None and key.style is not None:
            styles.setdefault(key.style, name)
    if len(styles) > 1:
        pairs = styles.items()
        text = " and ".join(f"{STYLES[style]} ({printable(name)})" for style, name in pairs)
        raise AdapterError(
            f"it mixes keys of several formats: {text}",
            source=checkpoint.source,
            remedy="split the file by format: only the adapter's author knows which part counts",
        )
    return next(iter(styles))


def check_known(unknown: Sequence[str], source: str) -> None:
    """AdapterError if there are keys of an adapter's file that are no adapter's."""
    if unknown:
        raise AdapterError(
            f"{len(unknown)} of its keys are no adapter's: {shortened(unknown)}",
            source=source,
            remedy="give a file or folder that holds an adapter and nothing else",
        )


def by_module(checkpoint: Checkpoint, canonical: Callable[[str], str]) -> dict[str, Roles]:
    """Each module's keys, in the order of the file; `canonical` gives a module's name."""
    modules: dict[str, Roles] = {}
    for name in checkpoint.specs:
        key = read_key(name)
        assert key is not None
        roles = modules.setdefault(canonical(key.module), {})
        if key.role in roles:
            problem = f"it is the same factor of the same module as {printable(roles[key.role])}"
            raise second_key(problem, checkpoint.source, name)
        roles[key.role] = name
    return modules


def second_key(problem: str, source: str, name: str) -> AdapterError:
    """That two keys are of one factor."""
    remedy = "remove the one that does not belong to this adapter"
    return AdapterError(problem, source=source, tensor=name, remedy=remedy)
