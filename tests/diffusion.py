"""Small stand-ins for diffusion models in single files: real names, few channels."""

from __future__ import annotations

from collections.abc import Sequence

from tests.conftest import Shapes

UNET = "model.diffusion_model."


def sd1(width: int = 8, text: int = 12) -> Shapes:
    """Stable Diffusion 1: four levels, convolutions around attention, one CLIP."""
    return {
        **_unet((1, 1, 1, 0), width, text),
        **_clip("cond_stage_model.transformer.", text, 2),
        **_vae(width),
        "alphas_cumprod": (10,),
    }


def sd2(width: int = 8, text: int = 16) -> Shapes:
    """Stable Diffusion 2: linear layers around attention, open_clip's encoder."""
    return {
        **_unet((1, 1, 1, 0), width, text, linear=True),
        **_open_clip("cond_stage_model.model.", text, 2),
        **_vae(width),
    }


def sdxl(width: int = 8, text: int = 12, second: int = 20) -> Shapes:
    """Stable Diffusion XL: three levels, two encoders whose features are side by side."""
    return {
        **_unet((0, 2, 3), width, text + second, linear=True, labels=True),
        **_clip("conditioner.embedders.0.transformer.", text, 2),
        **_open_clip("conditioner.embedders.1.model.", second, 2),
        **_vae(width),
    }


def flux(width: int = 8, prefix: str = "", *, encoders: bool = False) -> Shapes:
    """Flux' transformer, alone or as part of a file with its encoders and decoder."""
    shapes: Shapes = {"img_in.weight": (width, 4), "txt_in.weight": (width, 6)}
    for name in ("time_in", "vector_in", "guidance_in"):
        shapes |= {
            f"{name}.in_layer.weight": (width, 5),
            f"{name}.out_layer.weight": (width, width),
        }
    for i in range(2):
        for side in ("img", "txt"):
            block = f"double_blocks.{i}.{side}"
            shapes |= {
                f"{block}_mod.lin.weight": (6 * width, width),
                f"{block}_attn.qkv.weight": (3 * width, width),
                f"{block}_attn.norm.query_norm.scale": (4,),
                f"{block}_attn.proj.weight": (width, width),
                f"{block}_mlp.0.weight": (4 * width, width),
                f"{block}_mlp.2.weight": (width, 4 * width),
            }
    for i in range(2):
        block = f"single_blocks.{i}"
        shapes |= {
            f"{block}.linear1.weight": (7 * width, width),
            f"{block}.linear2.weight": (width, 5 * width),
            f"{block}.modulation.lin.weight": (3 * width, width),
        }
    shapes["final_layer.linear.weight"] = (4, width)
    shapes["final_layer.adaLN_modulation.1.weight"] = (2 * width, width)
    found = {f"{prefix}{name}": shape for name, shape in shapes.items()}
    if encoders:
        found |= _clip("text_encoders.clip_l.transformer.", 12, 2)
        found["text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"] = (
            6,
            6,
        )
        found["vae.decoder.conv_in.weight"] = (4, 2, 3, 3)
    return found


def _unet(
    depths: Sequence[int], width: int, text: int, *, linear: bool = False, labels: bool = False
) -> Shapes:
    shapes: Shapes = {
        "time_embed.0.weight": (4 * width, width),
        "time_embed.2.weight": (4 * width, 4 * width),
        "input_blocks.0.0.weight": (width, 4, 3, 3),
        "out.0.weight": (width,),
        "out.2.weight": (4, width, 3, 3),
    }
    if labels:
        shapes |= {"label_emb.0.0.weight": (4 * width, 6), "label_emb.0.2.weight": (4 * width, 8)}
    last = len(depths) - 1
    for level, depth in enumerate(depths):
        for layer in range(2):
            block = f"input_blocks.{3 * level + layer + 1}"
            shapes |= _layer(block, depth, width, text, linear)
        if level < last:
            shapes[f"input_blocks.{3 * level + 3}.0.op.weight"] = (width, width, 3, 3)
    shapes |= _resnet("middle_block.0", width) | _resnet("middle_block.2", width)
    shapes |= _attention("middle_block.1", max(1, depths[-1]), width, text, linear)
    for level, depth in enumerate(reversed(depths)):
        for layer in range(3):
            shapes |= _layer(f"output_blocks.{3 * level + layer}", depth, width, text, linear)
        if level < last:
            slot = 2 if depth else 1
            shapes[f"output_blocks.{3 * level + 2}.{slot}.conv.weight"] = (width, width, 3, 3)
    return {f"{UNET}{name}": shape for name, shape in shapes.items()}


def _layer(block: str, depth: int, width: int, text: int, linear: bool) -> Shapes:
    attention = _attention(f"{block}.1", depth, width, text, linear) if depth else {}
    return _resnet(f"{block}.0", width) | attention


def _resnet(block: str, width: int) -> Shapes:
    return {
        f"{block}.in_layers.0.weight": (width,),
        f"{block}.in_layers.2.weight": (width, width, 3, 3),
        f"{block}.emb_layers.1.weight": (width, 4 * width),
        f"{block}.out_layers.0.weight": (width,),
        f"{block}.out_layers.3.weight": (width, width, 3, 3),
        f"{block}.skip_connection.weight": (width, width, 1, 1),
    }


def _attention(block: str, depth: int, width: int, text: int, linear: bool) -> Shapes:
    around = (width, width) if linear else (width, width, 1, 1)
    shapes: Shapes = {
        f"{block}.norm.weight": (width,),
        f"{block}.proj_in.weight": around,
        f"{block}.proj_out.weight": around,
    }
    for i in range(depth):
        inner = f"{block}.transformer_blocks.{i}"
        for name, features in (("attn1", width), ("attn2", text)):
            shapes |= {
                f"{inner}.{name}.to_q.weight": (width, width),
                f"{inner}.{name}.to_k.weight": (width, features),
                f"{inner}.{name}.to_v.weight": (width, features),
                f"{inner}.{name}.to_out.0.weight": (width, width),
            }
        shapes |= {
            f"{inner}.ff.net.0.proj.weight": (8 * width, width),
            f"{inner}.ff.net.2.weight": (width, 4 * width),
            f"{inner}.norm1.weight": (width,),
        }
    return shapes


def _clip(prefix: str, width: int, layers: int) -> Shapes:
    model = f"{prefix}text_model"
    shapes: Shapes = {f"{model}.embeddings.token_embedding.weight": (30, width)}
    for i in range(layers):
        layer = f"{model}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{layer}.self_attn.{name}.weight"] = (width, width)
        shapes |= {
            f"{layer}.mlp.fc1.weight": (4 * width, width),
            f"{layer}.mlp.fc2.weight": (width, 4 * width),
        }
    return shapes


def _open_clip(prefix: str, width: int, layers: int) -> Shapes:
    shapes: Shapes = {f"{prefix}token_embedding.weight": (30, width)}
    shapes[f"{prefix}text_projection"] = (width, width)
    for i in range(layers):
        layer = f"{prefix}transformer.resblocks.{i}"
        shapes |= {
            f"{layer}.attn.in_proj_weight": (3 * width, width),
            f"{layer}.attn.in_proj_bias": (3 * width,),
            f"{layer}.attn.out_proj.weight": (width, width),
            f"{layer}.mlp.c_fc.weight": (4 * width, width),
            f"{layer}.mlp.c_proj.weight": (width, 4 * width),
        }
    return shapes


def _vae(width: int) -> Shapes:
    return {
        "first_stage_model.decoder.conv_in.weight": (width, 4, 3, 3),
        "first_stage_model.decoder.mid.attn_1.q.weight": (width, width, 1, 1),
        "first_stage_model.quant_conv.bias": (8,),
    }
