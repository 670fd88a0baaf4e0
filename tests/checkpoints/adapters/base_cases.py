"""Where modules of diffusion models are in the files of every layout, written down by hand."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from magmerge.checkpoints import open_checkpoint
from magmerge.checkpoints.adapters.adapter_expert import AdapterExpert
from magmerge.checkpoints.experts import open_expert
from magmerge.core.models import Checkpoint
from tests.checkpoints.adapters.files import product, write_adapter
from tests.conftest import Shapes, State, random_state
from tests.diffusion import UNET, flux, sd1, sd2, sdxl

TE = "cond_stage_model.transformer.text_model.encoder.layers."
TE1 = "conditioner.embedders.0.transformer.text_model.encoder.layers."
TE2 = "conditioner.embedders.1.model.transformer.resblocks."


class Part(NamedTuple):
    """A module, the base's tensor that it changes, and its rows there; all rows without them."""

    module: str
    tensor: str
    at: int = 0
    rows: int | None = None


def dotted(component: str) -> list[Part]:
    """SDXL's second encoder and SD2's, whose q, k and v are rows of one tensor."""
    prefix = {"te_": "cond_stage_model.model.transformer.resblocks.", "te2_": TE2}[component]
    width = {"te_": 16, "te2_": 20}[component]
    layer = f"lora_{component}text_model_encoder_layers_1_"
    return [
        Part(f"{layer}self_attn_q_proj", f"{prefix}1.attn.in_proj_weight", 0, width),
        Part(f"{layer}self_attn_v_proj", f"{prefix}1.attn.in_proj_weight", 2 * width, width),
        Part(f"{layer}self_attn_out_proj", f"{prefix}1.attn.out_proj.weight"),
        Part(f"{layer}mlp_fc2", f"{prefix}1.mlp.c_proj.weight"),
    ]


SD = "transformer_blocks_0_attn2_to_k"
OF_SD1 = [
    Part(
        f"lora_unet_down_blocks_1_attentions_0_{SD}",
        f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
    ),
    Part("lora_unet_down_blocks_0_attentions_1_proj_in", f"{UNET}input_blocks.2.1.proj_in.weight"),
    Part("lora_unet_mid_block_resnets_1_conv2", f"{UNET}middle_block.2.out_layers.3.weight"),
    Part("lora_unet_up_blocks_0_upsamplers_0_conv", f"{UNET}output_blocks.2.1.conv.weight"),
    Part("lora_unet_down_blocks_2_downsamplers_0_conv", f"{UNET}input_blocks.9.0.op.weight"),
    Part("lora_te_text_model_encoder_layers_1_self_attn_q_proj", f"{TE}1.self_attn.q_proj.weight"),
]
OF_FLUX = [
    Part("img_attn_qkv", "double_blocks.1.img_attn.qkv.weight"),
    Part("txt_mlp_0", "double_blocks.1.txt_mlp.0.weight"),
]
DIFFUSERS_FLUX = [
    Part("transformer_blocks.1.attn.to_k", "double_blocks.1.img_attn.qkv.weight", 8, 8),
    Part("transformer_blocks.1.attn.add_v_proj", "double_blocks.1.txt_attn.qkv.weight", 16, 8),
    Part("transformer_blocks.0.ff_context.net.0.proj", "double_blocks.0.txt_mlp.0.weight"),
    Part("single_transformer_blocks.0.attn.to_v", "single_blocks.0.linear1.weight", 16, 8),
    Part("single_transformer_blocks.0.proj_mlp", "single_blocks.0.linear1.weight", 24, 32),
    Part("single_transformer_blocks.1.proj_out", "single_blocks.1.linear2.weight"),
]
CASES: dict[str, tuple[Shapes, list[Part]]] = {
    "sd1 kohya": (sd1(), OF_SD1),
    "sd1 diffusers": (
        sd1(),
        [
            Part(
                "unet.up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_out.0",
                f"{UNET}output_blocks.7.1.transformer_blocks.0.attn1.to_out.0.weight",
            ),
            Part("text_encoder.text_model.encoder.layers.0.mlp.fc1", f"{TE}0.mlp.fc1.weight"),
        ],
    ),
    "sd2 kohya": (
        sd2(),
        [
            Part(
                "lora_unet_mid_block_attentions_0_proj_out", f"{UNET}middle_block.1.proj_out.weight"
            ),
            *dotted("te_"),
        ],
    ),
    "sdxl ldm": (
        sdxl(),
        [
            Part(
                "lora_unet_input_blocks_8_1_transformer_blocks_2_attn1_to_q",
                f"{UNET}input_blocks.8.1.transformer_blocks.2.attn1.to_q.weight",
            ),
            Part("lora_unet_output_blocks_5_2_conv", f"{UNET}output_blocks.5.2.conv.weight"),
            Part("lora_te1_text_model_encoder_layers_0_mlp_fc2", f"{TE1}0.mlp.fc2.weight"),
            *dotted("te2_"),
        ],
    ),
    "sdxl diffusers": (
        sdxl(),
        [
            Part(
                "unet.up_blocks.0.attentions.2.transformer_blocks.1.ff.net.0.proj",
                f"{UNET}output_blocks.2.1.transformer_blocks.1.ff.net.0.proj.weight",
            ),
            Part("unet.add_embedding.linear_2", f"{UNET}label_emb.0.2.weight"),
            Part(
                "text_encoder_2.text_model.encoder.layers.0.self_attn.k_proj",
                f"{TE2}0.attn.in_proj_weight",
                20,
                20,
            ),
        ],
    ),
    "flux kohya": (flux(), [Part(f"lora_unet_double_blocks_1_{m}", t) for m, t, *_ in OF_FLUX]),
    "flux diffusers": (flux(), [Part(f"transformer.{m}", *rest) for m, *rest in DIFFUSERS_FLUX]),
    "flux diffusers, one file for all": (
        flux(prefix=UNET, encoders=True),
        [
            *(Part(f"transformer.{m}", f"{UNET}{t}", *rest) for m, t, *rest in DIFFUSERS_FLUX),
            Part(
                "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
                "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
            ),
        ],
    ),
    "a part of a pipeline": (
        {
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (8, 8),
            "conv_in.weight": (8, 4, 3, 3),
        },
        [
            Part(
                "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
                "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            )
        ],
    ),
    "wan kohya on diffusers": (
        {
            "blocks.0.attn1.to_q.weight": (8, 8),
            "blocks.1.attn2.to_out.0.weight": (8, 8),
            "blocks.1.attn2.add_k_proj.weight": (8, 8),
            "blocks.0.ffn.net.0.proj.weight": (12, 8),
            "condition_embedder.time_embedder.linear_1.weight": (8, 6),
            "proj_out.weight": (16, 8),
        },
        [
            Part("lora_unet_blocks_0_self_attn_q", "blocks.0.attn1.to_q.weight"),
            Part("lora_unet_blocks_1_cross_attn_o", "blocks.1.attn2.to_out.0.weight"),
            Part("lora_unet_blocks_1_cross_attn_k_img", "blocks.1.attn2.add_k_proj.weight"),
            Part("lora_unet_blocks_0_ffn_0", "blocks.0.ffn.net.0.proj.weight"),
            Part("lora_unet_time_embedding_0", "condition_embedder.time_embedder.linear_1.weight"),
            Part("lora_unet_head_head", "proj_out.weight"),
        ],
    ),
    "wan diffusers on its own": (
        {
            f"{UNET}blocks.0.self_attn.o.weight": (8, 8),
            f"{UNET}blocks.0.cross_attn.v.weight": (8, 8),
            f"{UNET}blocks.0.ffn.2.weight": (8, 12),
        },
        [
            Part("transformer.blocks.0.attn1.to_out.0", f"{UNET}blocks.0.self_attn.o.weight"),
            Part("transformer.blocks.0.ffn.net.2", f"{UNET}blocks.0.ffn.2.weight"),
        ],
    ),
    "sd3 diffusers on its own": (
        {
            "joint_blocks.0.x_block.attn.qkv.weight": (24, 8),
            "joint_blocks.0.context_block.attn.qkv.weight": (24, 8),
            "joint_blocks.0.x_block.mlp.fc1.weight": (32, 8),
            "t_embedder.mlp.0.weight": (8, 6),
        },
        [
            Part(
                "transformer.transformer_blocks.0.attn.to_k",
                "joint_blocks.0.x_block.attn.qkv.weight",
                8,
                8,
            ),
            Part(
                "transformer.transformer_blocks.0.attn.add_v_proj",
                "joint_blocks.0.context_block.attn.qkv.weight",
                16,
                8,
            ),
            Part(
                "transformer.transformer_blocks.0.ff.net.0.proj",
                "joint_blocks.0.x_block.mlp.fc1.weight",
            ),
        ],
    ),
    "sd3 kohya on its own": (
        {
            "joint_blocks.0.x_block.attn.qkv.weight": (24, 8),
            "joint_blocks.0.context_block.mlp.fc2.weight": (8, 32),
        },
        [
            Part(
                "lora_unet_joint_blocks_0_x_block_attn_qkv",
                "joint_blocks.0.x_block.attn.qkv.weight",
            ),
            Part(
                "lora_unet_joint_blocks_0_context_block_mlp_fc2",
                "joint_blocks.0.context_block.mlp.fc2.weight",
            ),
        ],
    ),
    "names of another model": (
        {f"{UNET}blocks.0.self_attn.q.weight": (8, 6), f"{UNET}blocks.1.ffn.0.weight": (8, 6)},
        [Part("lora_unet_blocks_1_ffn_0", f"{UNET}blocks.1.ffn.0.weight")],
    ),
}


def shape_of(part: Part, shapes: Shapes, *, linear: bool = False) -> tuple[int, ...]:
    rows, *rest = shapes[part.tensor]
    flat = linear and rest[1:] == [1, 1]
    return (part.rows or rows, *(rest[:1] if flat else rest))


def opened(
    folder: Path, shapes: Shapes, parts: list[Part], *, linear: bool = False
) -> tuple[Checkpoint, AdapterExpert, State]:
    """The base, the expert on it, and each tensor's task vector by hand in float64."""
    modules = {part.module: shape_of(part, shapes, linear=linear) for part in parts}
    path = write_adapter(folder / "a.safetensors", modules)
    base = open_checkpoint(random_state(0, shapes))
    expected: State = {}
    for place, part in enumerate(parts):
        shape = shapes[part.tensor]
        flat = expected.setdefault(part.tensor, torch.zeros(shape[0], *shape[1:]).double())
        rows = product(part.module, modules[part.module], place)
        view = flat.view(shape[0], -1)
        view[part.at : part.at + len(rows)] += rows
    expert = open_expert("a", path, base)
    assert isinstance(expert, AdapterExpert)
    return base, expert, expected
