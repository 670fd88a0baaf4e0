"""Small CLIP state dictionaries under open_clip's names, and the others' names by plain rules."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]
WIDTH, OUT = 8, 4


def tower(prefix: str, width: int, layers: int, generator: torch.Generator) -> State:
    """A transformer as open_clip names it."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    state = {}
    for i in range(layers):
        start = f"{prefix}transformer.resblocks.{i}."
        state |= {
            f"{start}ln_1.weight": draw(width), f"{start}ln_1.bias": draw(width),
            f"{start}attn.in_proj_weight": draw(3 * width, width),
            f"{start}attn.in_proj_bias": draw(3 * width),
            f"{start}attn.out_proj.weight": draw(width, width),
            f"{start}attn.out_proj.bias": draw(width),
            f"{start}ln_2.weight": draw(width), f"{start}ln_2.bias": draw(width),
            f"{start}mlp.c_fc.weight": draw(2 * width, width),
            f"{start}mlp.c_fc.bias": draw(2 * width),
            f"{start}mlp.c_proj.weight": draw(width, 2 * width),
            f"{start}mlp.c_proj.bias": draw(width),
        }  # fmt: skip
    return state


def open_clip_state(seed: int = 0, *, text: bool = True, prefix: str = "") -> State:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    state = {
        "logit_scale": draw(), "visual.class_embedding": draw(WIDTH),
        "visual.positional_embedding": draw(5, WIDTH), "visual.proj": draw(WIDTH, OUT),
        "visual.conv1.weight": draw(WIDTH, 3, 2, 2),
        "visual.ln_pre.weight": draw(WIDTH), "visual.ln_pre.bias": draw(WIDTH),
        **tower("visual.", WIDTH, 2, generator),
        "visual.ln_post.weight": draw(WIDTH), "visual.ln_post.bias": draw(WIDTH),
    }  # fmt: skip
    if text:
        state |= {
            "positional_embedding": draw(7, 6), "text_projection": draw(6, OUT),
            **tower("", 6, 1, generator), "token_embedding.weight": draw(9, 6),
            "ln_final.weight": draw(6), "ln_final.bias": draw(6),
        }  # fmt: skip
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def by_rule(state: State, family: str) -> State:
    """The vision half from open_clip's names, spelt out tensor by tensor."""
    made = {}
    for name, tensor in state.items():
        path = name.removeprefix("visual.")
        if path == name:
            continue
        number = path.split(".")[2] if path.startswith("transformer") else ""
        inner = path.split(".", 3)[3] if number else path
        hf = {"class_embedding": "embeddings.class_embedding",
              "positional_embedding": "embeddings.position_embedding.weight",
              "conv1.weight": "embeddings.patch_embedding.weight"}  # fmt: skip
        timm = {"class_embedding": "cls_token", "positional_embedding": "pos_embed",
                "conv1.weight": "patch_embed.proj.weight"}  # fmt: skip
        swaps = [("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn.out", "self_attn.out"),
                 ("c_fc", "fc1"), ("c_proj", "fc2"), ("ln_pre", "pre_layrnorm"),
                 ("ln_post", "post_layernorm")]  # fmt: skip
        if family == "timm_clip":
            swaps = [("ln_1", "norm1"), ("ln_2", "norm2"), ("out_proj", "proj"), ("c_fc", "fc1"),
                     ("c_proj", "fc2"), ("ln_pre", "norm_pre"), ("ln_post", "norm"),
                     ("in_proj_", "qkv.")]  # fmt: skip
        start = {"hf_clip": f"encoder.layers.{number}.", "timm_clip": f"blocks.{number}."}[family]
        new = (hf if family == "hf_clip" else timm).get(inner, inner)
        for old, other in swaps:
            new = new.replace(old, other)
        new = (start if number else "") + new
        if family == "timm_clip":
            shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 5, WIDTH)}
            made[new] = tensor.reshape(shapes.get(new, tensor.shape))
        elif "in_proj" in inner:
            for i, letter in enumerate("qkv"):
                third = tensor[i * WIDTH : (i + 1) * WIDTH]
                made[f"vision_model.{start}self_attn.{letter}_proj.{inner[13:]}"] = third
        else:
            made[f"vision_model.{new}"] = tensor
        if inner == "proj":
            del made["vision_model.proj" if family == "hf_clip" else "proj"]
            made["visual_projection.weight" if family == "hf_clip" else "head.weight"] = tensor.T
            if family == "timm_clip":
                made["head.bias"] = torch.zeros(OUT)
    return made
