"""The modules of diffusion models, by diffusers' names, with shapes as theirs but small."""

from __future__ import annotations

from magmerge.checkpoints.adapters.nouns import ModuleSpec

Shapes = dict[str, tuple[int, ...]]

FAMILIES = {
    # Blocks of attention by level, down and in the middle; up is the reverse.
    "sd": ((1, 1, 1, 0), 1),
    "sdxl": ((0, 2, 10), 10),
}


def _resnet(path: str, *, shortcut: bool) -> Shapes:
    shapes: Shapes = {
        f"{path}.conv1": (4, 4, 3, 3),
        f"{path}.time_emb_proj": (4, 6),
        f"{path}.conv2": (4, 4, 3, 3),
    }
    return shapes | ({f"{path}.conv_shortcut": (4, 4, 1, 1)} if shortcut else {})


def _attention(path: str, depth: int, kernel: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {f"{path}.proj_in": (4, 4, *kernel), f"{path}.proj_out": (4, 4, *kernel)}
    for block in range(depth):
        inner = f"{path}.transformer_blocks.{block}"
        for attention, width in (("attn1", 4), ("attn2", 5)):
            shapes[f"{inner}.{attention}.to_q"] = (4, 4)
            shapes[f"{inner}.{attention}.to_k"] = (4, width)
            shapes[f"{inner}.{attention}.to_v"] = (4, width)
            shapes[f"{inner}.{attention}.to_out.0"] = (4, 4)
        shapes[f"{inner}.ff.net.0.proj"] = (8, 4)
        shapes[f"{inner}.ff.net.2"] = (4, 4)
    return shapes


def unet(family: str) -> Shapes:
    """Every linear layer and convolution of the U-Net."""
    levels, middle = FAMILIES[family]
    kernel = (1, 1) if family == "sd" else ()
    shapes: Shapes = {
        "conv_in": (4, 2, 3, 3),
        "time_embedding.linear_1": (6, 4),
        "time_embedding.linear_2": (6, 6),
    }
    if family == "sdxl":
        shapes |= {"add_embedding.linear_1": (6, 4), "add_embedding.linear_2": (6, 6)}
    last = len(levels) - 1
    for level, depth in enumerate(levels):
        for layer in range(2):
            path = f"down_blocks.{level}"
            changes = layer == 0 and 0 < level < 3
            shapes |= _resnet(f"{path}.resnets.{layer}", shortcut=changes)
            if depth:
                shapes |= _attention(f"{path}.attentions.{layer}", depth, kernel)
        if level < last:
            shapes[f"down_blocks.{level}.downsamplers.0.conv"] = (4, 4, 3, 3)
    for layer in range(2):
        shapes |= _resnet(f"mid_block.resnets.{layer}", shortcut=False)
    shapes |= _attention("mid_block.attentions.0", middle, kernel)
    for level, depth in enumerate(reversed(levels)):
        for layer in range(3):
            path = f"up_blocks.{level}"
            shapes |= _resnet(f"{path}.resnets.{layer}", shortcut=True)
            if depth:
                shapes |= _attention(f"{path}.attentions.{layer}", depth, kernel)
        if level < last:
            shapes[f"up_blocks.{level}.upsamplers.0.conv"] = (4, 4, 3, 3)
    return shapes | {"conv_out": (2, 4, 3, 3)}


def clip(layers: int = 2) -> Shapes:
    """The text encoder that all of Stable Diffusion and Flux have."""
    shapes: Shapes = {}
    for layer in range(layers):
        path = f"text_model.encoder.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{path}.self_attn.{projection}"] = (6, 6)
        shapes |= {f"{path}.mlp.fc1": (8, 6), f"{path}.mlp.fc2": (6, 8)}
    return shapes


def t5() -> Shapes:
    """Flux' other text encoder."""
    path = "encoder.block.3.layer"
    attention = {f"{path}.0.SelfAttention.{part}": (6, 6) for part in "qkvo"}
    return attention | {
        f"{path}.1.DenseReluDense.wi_0": (8, 6),
        f"{path}.1.DenseReluDense.wo": (6, 8),
    }


def flux(width: int = 6) -> Shapes:
    """Every linear layer of Flux with one block of either kind."""
    h = width
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    shapes: Shapes = {
        "time_text_embed.timestep_embedder.linear_1": (h, 3),
        "time_text_embed.timestep_embedder.linear_2": (h, h),
        "time_text_embed.guidance_embedder.linear_1": (h, 3),
        "time_text_embed.guidance_embedder.linear_2": (h, h),
        "time_text_embed.text_embedder.linear_1": (h, 4),
        "time_text_embed.text_embedder.linear_2": (h, h),
        "context_embedder": (h, 5),
        "x_embedder": (h, 2),
        f"{double}.norm1.linear": (6 * h, h),
        f"{double}.norm1_context.linear": (6 * h, h),
        f"{double}.attn.to_out.0": (h, h),
        f"{double}.attn.to_add_out": (h, h),
        f"{double}.ff.net.0.proj": (4 * h, h),
        f"{double}.ff.net.2": (h, 4 * h),
        f"{double}.ff_context.net.0.proj": (4 * h, h),
        f"{double}.ff_context.net.2": (h, 4 * h),
        f"{single}.norm.linear": (3 * h, h),
        f"{single}.proj_mlp": (4 * h, h),
        f"{single}.proj_out": (h, 5 * h),
        "norm_out.linear": (2 * h, h),
        "proj_out": (2, h),
    }
    for part in ("to_q", "to_k", "to_v"):
        shapes[f"{single}.attn.{part}"] = (h, h)
        shapes[f"{double}.attn.{part}"] = (h, h)
        shapes[f"{double}.attn.add_{part[-1]}_proj"] = (h, h)
    return shapes


def prefixed(component: str, shapes: Shapes) -> Shapes:
    return {f"{component}.{name}": shape for name, shape in shapes.items()}


def specs(shapes: Shapes, rank: int = 2) -> dict[str, ModuleSpec]:
    return {
        name: ModuleSpec(
            name, "linear" if len(shape) == 2 else "convolution", shape, rank, 1.0, "F32"
        )
        for name, shape in shapes.items()
    }
