"""How the models of a diffusion pipeline name their modules, and which model a module is of.

Files may write a name's dots as _ : such a name is read back by the segments between dots.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

Vocabulary: TypeAlias = Mapping[str, int]
"""Segments, and how many numbers follow each: down_blocks.0 has one, conv_in none."""

LONGEST = 512
"""No module's name is longer; a hostile one costs no time."""
COMPONENTS = (
    "unet", "transformer", "transformer_2", "prior",
    "text_encoder", "text_encoder_2", "text_encoder_3",
)  # fmt: skip
"""What diffusers calls the models of a pipeline that adapters are trained on."""

_INDEX = re.compile(r"0|[1-9][0-9]*")
_BARE_CLIP = re.compile(r"encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])")


class Language(NamedTuple):
    """How one kind of model names its modules: all segments, and those at the start of a name."""

    segments: Vocabulary
    roots: frozenset[str]

    def read(self, flat_name: str) -> str | None:
        """The dotted name of a module of this kind of model; None if it is none."""
        name = dotted(flat_name, self.segments)
        return name if name is not None and self.has(name) else None

    def has(self, name: str) -> bool:
        """Whether a dotted name begins as this kind of model's do."""
        return name.partition(".")[0] in self.roots


def _language(roots: str, plain: str, indexed: str, twice: str = "") -> Language:
    """Of the segments at the start of a name, and those that no, one or two numbers follow."""
    segments = dict.fromkeys(plain.split(), 0) | dict.fromkeys(indexed.split(), 1)
    return Language(segments | dict.fromkeys(twice.split(), 2), frozenset(roots.split()))


_BLOCK = "attn1 attn2 attn to_q to_k to_v ff proj norm1 norm2 norm3 norm linear"
_LISTS = "transformer_blocks to_out net"

UNET = _language(
    "conv_in conv_out conv_norm_out time_embedding add_embedding class_embedding down_blocks "
    "mid_block up_blocks",
    f"{_BLOCK} conv_in conv_out conv_norm_out time_embedding add_embedding class_embedding "
    "linear_1 linear_2 cond_proj mid_block conv conv1 conv2 conv_shortcut time_emb_proj "
    "proj_in proj_out add_k_proj add_v_proj",
    f"{_LISTS} down_blocks up_blocks attentions resnets downsamplers upsamplers",
)
TRANSFORMER = _language(
    "transformer_blocks single_transformer_blocks x_embedder context_embedder time_text_embed "
    "norm_out proj_out pos_embed",
    f"{_BLOCK} x_embedder context_embedder time_text_embed timestep_embedder text_embedder "
    "guidance_embedder linear_1 linear_2 norm_out proj_out proj_mlp norm1_context ff_context "
    "add_q_proj add_k_proj add_v_proj to_add_out pos_embed",
    f"{_LISTS} single_transformer_blocks",
)
CLIP = _language(
    "text_model text_projection",
    "text_model encoder self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 layer_norm1 "
    "layer_norm2 final_layer_norm embeddings token_embedding position_embedding text_projection",
    "layers",
)
T5 = _language(
    "encoder shared",
    "encoder shared SelfAttention q k v o relative_attention_bias DenseReluDense wi wi_0 wi_1 "
    "wo layer_norm final_layer_norm embed_tokens",
    "block layer",
)
LDM = _language(
    "input_blocks middle_block output_blocks time_embed label_emb out",
    f"{_BLOCK} skip_connection op conv proj_in proj_out",
    f"{_LISTS} in_layers out_layers emb_layers middle_block time_embed out",
    "input_blocks output_blocks label_emb",
)


class Part(NamedTuple):
    """A module of one of a pipeline's models: `name` is its name in that model."""

    component: str
    name: str

    def __str__(self) -> str:
        return f"{self.component}.{self.name}"


def is_text(component: str) -> bool:
    """Whether the model encodes text."""
    return component.startswith("text_encoder")


def lone(name: str) -> Part | None:
    """The module `name` of a lone model, whose kind its name tells; None where it does not."""
    if UNET.has(name):
        return Part("unet", name)
    if TRANSFORMER.has(name):
        return Part("transformer", name)
    if CLIP.has(name) or _BARE_CLIP.fullmatch(name):
        return Part("text_encoder", canonical(name))
    return None


def prefixed(name: str) -> Part | None:
    """The module of a name that begins with the model's; None for any other."""
    component, _, rest = name.partition(".")
    if component not in COMPONENTS or not rest:
        return None
    return Part(component, canonical(rest) if is_text(component) else rest)


def surely_prefixed(name: str) -> bool:
    """Whether a name begins with the model's, and the rest is known to be such a model's module.

    transformer.h.0.attn is a module of GPT-2.
    """
    part = prefixed(name)
    if part is None:
        return False
    others = (CLIP, T5) if is_text(part.component) else (TRANSFORMER,)
    languages = {"unet": (UNET,), "prior": (UNET, TRANSFORMER)}.get(part.component, others)
    return any(language.has(part.name) for language in languages)


def canonical(name: str) -> str:
    """A text encoder's module: newer versions of transformers leave out text_model."""
    return f"text_model.{name}" if _BARE_CLIP.fullmatch(name) else name


def flat(dotted: str) -> str:
    """The name with _ for dots."""
    return dotted.replace(".", "_")


def dotted(flat_name: str, vocabulary: Vocabulary) -> str | None:
    """The only dotted name of segments in `vocabulary` that is written so; None if not just one."""
    if len(flat_name) > LONGEST:
        return None
    tokens = flat_name.split("_")
    longest = max(segment.count("_") for segment in vocabulary) + 1
    # At each token the readings of the rest, two at most: more than one is as bad as many.
    rest: list[list[str]] = [[] for _ in tokens] + [[""]]
    for start in reversed(range(len(tokens))):
        for stop in range(start + 1, min(start + longest, len(tokens)) + 1):
            segment = "_".join(tokens[start:stop])
            numbers = vocabulary.get(segment)
            if numbers is None or stop + numbers > len(tokens):
                continue
            indices = tokens[stop : stop + numbers]
            if all(_INDEX.fullmatch(index) for index in indices):
                head = ".".join([segment, *indices])
                tails = rest[stop + numbers]
                rest[start] += [f"{head}.{tail}" if tail else head for tail in tails]
        rest[start] = rest[start][:2]
    return rest[0][0] if len(rest[0]) == 1 else None
