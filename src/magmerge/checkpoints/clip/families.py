"""Families of names: tables from them to the parts of a CLIP model, and whose names a model has.

A part has one name here, whatever the family: vision.patch, text.3.q.weight, ... Its shape is that
of Hugging Face: projections are [out, in], q, k and v are apart, embeddings have no leading ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

PartLayout = Literal["plain", "turned", "token", "table"]
"""How a family stores a part: as it is; [in, out]; [1, 1, width]; [1, positions, width]."""
HALVES = ("vision", "text")
BUFFERS = frozenset(
    {"vision.position_ids", "text.position_ids", "text.mask", "resolution", "context", "vocabulary"}
)
"""Parts that a model computes from its configuration: no weights."""
BIAS = "vision.projection.bias"
"""What only timm's projection has. For the others it is zero."""
RANKS = {
    "scale": (0, 1),
    "vision.class": (1,),
    "vision.patch": (4,),
    "vision.positions": (2,),
    "vision.projection": (2,),
    "text.tokens": (2,),
    "text.positions": (2,),
    "text.projection": (2,),
}
"""How many dimensions a part outside the layers may have; buffers may have any."""
NORMS = ("norm1", "norm2", "pre", "post")


def ranks_of(part: str) -> tuple[int, ...] | None:
    """How many dimensions a part may have; None for any number."""
    if part in BUFFERS or part in RANKS:
        return RANKS.get(part)
    *_, module, kind = part.split(".")
    return (1,) if kind == "bias" or module in NORMS else (2,)


class Entry(NamedTuple):
    """What one stored tensor is: one part, or several below each other."""

    parts: tuple[str, ...]
    layout: PartLayout = "plain"


@dataclass(frozen=True, slots=True)
class Family:
    """`fixed` has the names outside the layers; a name may begin with {vision} or {text}, the
    prefix of a half. `layers` are the beginnings of a layer's names, `inside` what follows them.
    `variants` are the prefixes of both halves, None for one that is not there; the first is what
    is written. `anchors` are names, one of which every model of the family has.
    """

    name: str
    fixed: Mapping[str, Entry]
    layers: Mapping[str, str]
    inside: Mapping[str, Entry]
    variants: tuple[tuple[str | None, str | None], ...]
    anchors: tuple[str, ...]


OUTSIDE = """
scale               logit_scale                               logit_scale                    -
vision.class        {v}embeddings.class_embedding             {v}class_embedding  {v}cls_token:token
vision.patch        {v}embeddings.patch_embedding.weight {v}conv1.weight {v}patch_embed.proj.weight
vision.positions {v}embeddings.position_embedding.weight {v}positional_embedding {v}pos_embed:table
vision.position_ids {v}embeddings.position_ids                -                              -
vision.pre.*        {v}pre_layrnorm.*                         {v}ln_pre.*            {v}norm_pre.*
vision.post.*       {v}post_layernorm.*                       {v}ln_post.*           {v}norm.*
vision.projection   visual_projection.weight                  {v}proj:turned         {v}head.weight
vision.projection.bias -                                      -                      {v}head.bias
text.tokens         {t}embeddings.token_embedding.weight      {t}token_embedding.weight      -
text.positions      {t}embeddings.position_embedding.weight   {t}positional_embedding        -
text.position_ids   {t}embeddings.position_ids                -                              -
text.mask           -                                         {t}attn_mask                   -
text.post.*         {t}final_layer_norm.*                     {t}ln_final.*                  -
text.projection     text_projection.weight                    {t}text_projection:turned      -
resolution          -                                         input_resolution               -
context             -                                         context_length                 -
vocabulary          -                                         vocab_size                     -
"""
"""Parts outside the layers, and their names in hf_clip, open_clip and timm_clip with their layouts.
* is weight and bias. A name that is there twice has several parts below each other. pre_layrnorm
has been misspelt since the first release.
"""
INSIDE = """
norm1.*             layer_norm1.*                             ln_1.*                         norm1.*
q.*                 self_attn.q_proj.*                        attn.in_proj_*             attn.qkv.*
k.*                 self_attn.k_proj.*                        attn.in_proj_*             attn.qkv.*
v.*                 self_attn.v_proj.*                        attn.in_proj_*             attn.qkv.*
out.*               self_attn.out_proj.*                      attn.out_proj.*            attn.proj.*
norm2.*             layer_norm2.*                             ln_2.*                     norm2.*
fc1.*               mlp.fc1.*                                 mlp.c_fc.*                 mlp.fc1.*
fc2.*               mlp.fc2.*                                 mlp.c_proj.*               mlp.fc2.*
"""
"""The same of each layer."""


def _column(table: str, number: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for line in table.strip().splitlines():
        part, *columns = line.split()
        name, _, layout = columns[number].partition(":")
        for kind in ("weight", "bias") if "*" in part else ("",):
            if name != "-":
                key = name.replace("{v}", "{vision}").replace("{t}", "{text}").replace("*", kind)
                before = entries[key].parts if key in entries else ()
                parts = (*before, part.replace("*", kind))
                entries[key] = Entry(parts, cast("PartLayout", layout or "plain"))
    return entries


HF = Family(
    name="hf_clip",
    fixed=_column(OUTSIDE, 0),
    layers={"vision": "{vision}encoder.layers.", "text": "{text}encoder.layers."},
    inside=_column(INSIDE, 0),
    # transformers 5 stores its lone vision and text models without a prefix.
    variants=(("vision_model.", "text_model."), ("", None), (None, "")),
    anchors=("{vision}embeddings.class_embedding", "{text}embeddings.token_embedding.weight"),
)
OPEN_CLIP = Family(
    name="open_clip",
    fixed=_column(OUTSIDE, 1),
    layers={half: f"{{{half}}}transformer.resblocks." for half in HALVES},
    inside=_column(INSIDE, 1),
    # Its CustomTextCLIP has the text half under text; a vision tower may be alone.
    variants=(("visual.", ""), ("visual.", "text."), ("", None)),
    anchors=("{vision}class_embedding", "{text}token_embedding.weight"),
)
"""Its names are OpenAI's own: q, k and v in one tensor, projections [in, out]."""
TIMM = Family(
    name="timm_clip",
    fixed=_column(OUTSIDE, 2),
    layers={"vision": "{vision}blocks."},
    inside=_column(INSIDE, 2),
    variants=(("", None),),
    # Other vision transformers have no norm before the blocks.
    anchors=("{vision}norm_pre.weight",),
)
"""timm's vision transformers with a norm before the blocks, which are CLIP's vision half."""
FAMILIES = {family.name: family for family in (HF, OPEN_CLIP, TIMM)}
"""The families by name: hf_clip, open_clip, timm_clip."""
MOST_PREFIXES = 8
"""Under how many prefixes a family is looked for. A file with one model has one."""


class ClipNames:
    """One model's names: a family, the prefix of all its names, and the prefixes of its halves."""

    def __init__(self, family: Family, prefix: str = "", variant: int = 0) -> None:
        self.family = family
        self.prefix = prefix
        self.variant = variant
        prefixes = zip(HALVES, family.variants[variant], strict=True)
        known = self._known = {half: own for half, own in prefixes if own is not None}
        self._fixed = {
            prefix + name.format_map(known): entry
            for name, entry in family.fixed.items()
            if _half_of(name) in (None, *known)
        }
        self._layers = {
            half: prefix + start.format_map(known)
            for half, start in family.layers.items()
            if half in known
        }
        self._names = {part: name for name, entry in self._fixed.items() for part in entry.parts}
        self._inside = {part: name for name, own in family.inside.items() for part in own.parts}

    def anchors(self) -> list[str]:
        """The names of which every model with these names has one."""
        anchors = self.family.anchors
        return [name.format_map(self._known) for name in anchors if _half_of(name) in self._known]

    def entry(self, name: str) -> Entry | None:
        """What the tensor of this name is; None if the family has no such name."""
        if name in self._fixed:
            return self._fixed[name]
        for half, start in self._layers.items():
            if not name.startswith(start):
                continue
            number, _, rest = name[len(start) :].partition(".")
            inner = self.family.inside.get(rest)
            if inner is not None and len(number) <= 4 and number.isascii() and number.isdigit():
                parts = tuple(f"{half}.{number}.{part}" for part in inner.parts)
                return Entry(parts, inner.layout)
        return None

    def name_of(self, part: str) -> str | None:
        """The name of the tensor that the family stores a part in; None if it has none such."""
        half, _, inner = part.partition(".")
        number, _, rest = inner.partition(".")
        if not number.isdigit():
            return self._names.get(part)
        if rest not in self._inside or half not in self._layers:
            return None
        return f"{self._layers[half]}{number}.{self._inside[rest]}"


def _half_of(name: str) -> str | None:
    return next((half for half in HALVES if f"{{{half}}}" in name), None)


def family_of(names: Iterable[str]) -> str | None:
    """The family whose names a model's tensors have; None if it is no CLIP model of a known one.

    All names may have one prefix, such as model. or image_encoder.model.
    """
    naming = recognise(names)
    return None if naming is None else naming.family.name


def left_over(names: Iterable[str], own: ClipNames) -> list[str]:
    """The weights that `own` does not know and another CLIP model has, or another prefix."""
    listed = list(names)
    strange = [name for name in listed if own.entry(name) is None]
    others = [*_candidates(strange), *_of_prefix(own.prefix)]
    return [name for name in strange if any(is_weight(naming.entry(name)) for naming in others)]


def _of_prefix(prefix: str) -> list[ClipNames]:
    """Every family and variant under one prefix."""
    return [
        ClipNames(family, prefix, variant)
        for family in FAMILIES.values()
        for variant in range(len(family.variants))
    ]


def is_weight(entry: Entry | None) -> bool:
    """Whether it is a layer's: names outside the layers, such as head.weight, are common."""
    return entry is not None and entry.parts[0].count(".") > 2


def recognise(names: Iterable[str]) -> ClipNames | None:
    """The naming that knows most of the names, among those that know a layer's attention."""
    listed = list(names)
    best, most = None, 0
    for naming in _candidates(listed):
        entries = [entry for entry in map(naming.entry, listed) if entry is not None]
        attends = any(entry.parts[0].endswith(".q.weight") for entry in entries)
        if attends and len(entries) > most:
            best, most = naming, len(entries)
    return best


def _candidates(names: list[str]) -> list[ClipNames]:
    """Every family and variant with each prefix that one of its anchors is found under."""
    candidates = []
    for bare in _of_prefix(""):
        prefixes = {
            name[: -len(anchor)]: None
            for anchor in bare.anchors()
            for name in names
            if name == anchor or name.endswith(f".{anchor}")
        }
        # Each is held against all names.
        candidates += [
            ClipNames(bare.family, prefix, bare.variant)
            for prefix in list(prefixes)[:MOST_PREFIXES]
        ]
    return candidates
