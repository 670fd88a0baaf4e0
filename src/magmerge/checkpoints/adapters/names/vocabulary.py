"""The segments of module names in diffusion models, and which of them a model begins with."""

from __future__ import annotations

from typing import NamedTuple

from magmerge.checkpoints.adapters.names.flat import Vocabulary, dotted


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


def _segments(plain: str, indexed: str) -> dict[str, int]:
    return dict.fromkeys(plain.split(), 0) | dict.fromkeys(indexed.split(), 1)


_BLOCK = "attn1 attn2 attn to_q to_k to_v ff proj norm1 norm2 norm3 norm linear"
_LISTS = "transformer_blocks to_out net"

UNET = Language(
    _segments(
        f"{_BLOCK} conv_in conv_out conv_norm_out time_embedding add_embedding class_embedding "
        "linear_1 linear_2 cond_proj mid_block conv conv1 conv2 conv_shortcut time_emb_proj "
        "proj_in proj_out add_k_proj add_v_proj",
        f"{_LISTS} down_blocks up_blocks attentions resnets downsamplers upsamplers",
    ),
    frozenset(
        [
            "conv_in",
            "conv_out",
            "conv_norm_out",
            "time_embedding",
            "add_embedding",
            "class_embedding",
            "down_blocks",
            "mid_block",
            "up_blocks",
        ]
    ),
)
TRANSFORMER = Language(
    _segments(
        f"{_BLOCK} x_embedder context_embedder time_text_embed timestep_embedder text_embedder "
        "guidance_embedder linear_1 linear_2 norm_out proj_out proj_mlp norm1_context ff_context "
        "add_q_proj add_k_proj add_v_proj to_add_out pos_embed",
        f"{_LISTS} single_transformer_blocks",
    ),
    frozenset(
        [
            "transformer_blocks",
            "single_transformer_blocks",
            "x_embedder",
            "context_embedder",
            "time_text_embed",
            "norm_out",
            "proj_out",
            "pos_embed",
        ]
    ),
)
CLIP = Language(
    _segments(
        "text_model encoder self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 layer_norm1 "
        "layer_norm2 final_layer_norm embeddings token_embedding position_embedding "
        "text_projection",
        "layers",
    ),
    frozenset({"text_model", "text_projection"}),
)
T5 = Language(
    _segments(
        "encoder shared SelfAttention q k v o relative_attention_bias DenseReluDense wi wi_0 wi_1 "
        "wo layer_norm final_layer_norm embed_tokens",
        "block layer",
    ),
    frozenset({"encoder", "shared"}),
)
LDM = Language(
    _segments(
        f"{_BLOCK} skip_connection op conv proj_in proj_out",
        f"{_LISTS} in_layers out_layers emb_layers middle_block time_embed out",
    )
    | dict.fromkeys(("input_blocks", "output_blocks", "label_emb"), 2),
    frozenset({"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}),
)
