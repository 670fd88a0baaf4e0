"""Image and video models in their authors' names: every tensor of small ones, written by hand."""

from __future__ import annotations

from tests.conftest import Shapes

WIDTH = 8


def both(shapes: Shapes) -> Shapes:
    """Weights, each with a bias beside it."""
    biases = {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()} | biases


def flux() -> Shapes:
    w = WIDTH
    layers: Shapes = {"img_in": (w, 4), "txt_in": (w, 6), "final_layer.linear": (4, w)}
    layers["final_layer.adaLN_modulation.1"] = (2 * w, w)
    norms: Shapes = {}
    for name in ("time_in", "vector_in", "guidance_in"):
        layers |= {f"{name}.in_layer": (w, 5), f"{name}.out_layer": (w, w)}
    for i in range(2):
        for side in ("img", "txt"):
            block = f"double_blocks.{i}.{side}"
            layers |= {f"{block}_mod.lin": (6 * w, w), f"{block}_attn.qkv": (3 * w, w)}
            layers |= {f"{block}_attn.proj": (w, w), f"{block}_mlp.0": (4 * w, w)}
            layers[f"{block}_mlp.2"] = (w, 4 * w)
            norms |= {f"{block}_attn.norm.{n}_norm.scale": (4,) for n in ("query", "key")}
        block = f"single_blocks.{i}"
        layers |= {f"{block}.linear1": (7 * w, w), f"{block}.linear2": (w, 5 * w)}
        layers[f"{block}.modulation.lin"] = (3 * w, w)
        norms |= {f"{block}.norm.{n}_norm.scale": (4,) for n in ("query", "key")}
    return both(layers) | norms


def sd3() -> Shapes:
    """Two blocks, the first with a second attention; the last one has no context to put out."""
    w = WIDTH
    layers: Shapes = {"x_embedder.proj": (w, 4, 2, 2), "context_embedder": (w, 6)}
    layers |= {"t_embedder.mlp.0": (w, 5), "t_embedder.mlp.2": (w, w)}
    layers |= {"y_embedder.mlp.0": (w, 5), "y_embedder.mlp.2": (w, w)}
    layers |= {"final_layer.linear": (16, w), "final_layer.adaLN_modulation.1": (2 * w, w)}
    others: Shapes = {"pos_embed": (1, 16, w)}
    for i, last in enumerate((False, True)):
        x, context = f"joint_blocks.{i}.x_block", f"joint_blocks.{i}.context_block"
        for block in (x, context):
            layers[f"{block}.attn.qkv"] = (3 * w, w)
            others |= {f"{block}.attn.ln_{n}.weight": (4,) for n in "qk"}
        if i == 0:
            layers |= {f"{x}.attn2.qkv": (3 * w, w), f"{x}.attn2.proj": (w, w)}
            others |= {f"{x}.attn2.ln_{n}.weight": (4,) for n in "qk"}
        for block in (x, *(() if last else (context,))):
            layers |= {f"{block}.attn.proj": (w, w), f"{block}.mlp.fc1": (4 * w, w)}
            layers[f"{block}.mlp.fc2"] = (w, 4 * w)
        layers[f"{x}.adaLN_modulation.1"] = ((6 if i else 9) * w, w)
        layers[f"{context}.adaLN_modulation.1"] = ((2 if last else 6) * w, w)
    return both(layers) | others


def wan() -> Shapes:
    w = WIDTH
    layers: Shapes = {"patch_embedding": (w, 4, 1, 2, 2), "time_projection.1": (6 * w, w)}
    layers |= {"text_embedding.0": (w, 6), "text_embedding.2": (w, w), "head.head": (16, w)}
    layers |= {"time_embedding.0": (w, 5), "time_embedding.2": (w, w)}
    layers |= {"img_emb.proj.0": (7,), "img_emb.proj.1": (7, 7), "img_emb.proj.3": (w, 7)}
    layers["img_emb.proj.4"] = (w,)
    others: Shapes = {"head.modulation": (1, 2, w)}
    for i in range(2):
        block = f"blocks.{i}"
        for attention in ("self_attn", "cross_attn"):
            layers |= {f"{block}.{attention}.{n}": (w, w) for n in "qkvo"}
            others |= {f"{block}.{attention}.norm_{n}.weight": (w,) for n in "qk"}
        layers |= {f"{block}.cross_attn.{n}_img": (w, w) for n in "kv"}
        layers |= {f"{block}.norm3": (w,), f"{block}.ffn.0": (12, w), f"{block}.ffn.2": (w, 12)}
        others |= {f"{block}.cross_attn.norm_k_img.weight": (w,), f"{block}.modulation": (1, 6, w)}
    return both(layers) | others


def vae() -> Shapes:
    """Two levels, the second twice as wide."""
    w = WIDTH
    layers: Shapes = {"quant_conv": (8, 8, 1, 1), "post_quant_conv": (4, 4, 1, 1)}
    layers |= {"encoder.conv_in": (w, 3, 3, 3), "decoder.conv_in": (2 * w, 4, 3, 3)}
    layers |= {"encoder.conv_out": (8, 2 * w, 3, 3), "decoder.conv_out": (3, w, 3, 3)}
    layers |= {"encoder.norm_out": (2 * w,), "decoder.norm_out": (w,)}
    for half in ("encoder", "decoder"):
        layers |= _resnet(f"{half}.mid.block_1", 2 * w, 2 * w)
        layers |= _resnet(f"{half}.mid.block_2", 2 * w, 2 * w)
        layers[f"{half}.mid.attn_1.norm"] = (2 * w,)
        layers |= {f"{half}.mid.attn_1.{n}": (2 * w, 2 * w, 1, 1) for n in ("q", "k", "v")}
        layers[f"{half}.mid.attn_1.proj_out"] = (2 * w, 2 * w, 1, 1)
    layers |= _resnet("encoder.down.0.block.0", w, w) | _resnet("encoder.down.1.block.0", w, 2 * w)
    layers["encoder.down.0.downsample.conv"] = (w, w, 3, 3)
    for i in range(2):
        layers |= _resnet(f"decoder.up.1.block.{i}", 2 * w, 2 * w)
        layers |= _resnet(f"decoder.up.0.block.{i}", w if i else 2 * w, w)
    layers["decoder.up.1.upsample.conv"] = (2 * w, 2 * w, 3, 3)
    return both(layers)


def _resnet(name: str, width: int, out: int) -> Shapes:
    layers: Shapes = {f"{name}.norm1": (width,), f"{name}.norm2": (out,)}
    layers |= {f"{name}.conv1": (out, width, 3, 3), f"{name}.conv2": (out, out, 3, 3)}
    return layers | ({} if width == out else {f"{name}.nin_shortcut": (out, width, 1, 1)})
