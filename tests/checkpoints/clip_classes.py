"""Small CLIP models of the real classes of open_clip and timm, in a process of their own.

`python clip_classes.py build FOLDER` writes checkpoints as they are published, whole pickled
objects among them, with their outputs. `python clip_classes.py run FOLDER` loads the converted
files of a folder into the real classes and writes their outputs.
"""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WIDTH, TEXT_WIDTH, OUT, LAYERS, TOKENS, WORDS = 32, 24, 16, 2, 7, 50
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    # torchvision's own operators do not load with every build of torch, and importing it needs
    # their names.
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import open_clip  # noqa: E402
import timm  # noqa: E402
from open_clip.transform import image_transform  # noqa: E402


class ImageEncoder(torch.nn.Module):
    """Laid out as task-vectors' own: the model without its text transformer, and transforms."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train_preprocess = image_transform(8, is_train=True)
        self.val_preprocess = image_transform(8, is_train=False)
        self.cache_dir = None
        self.scaled = functools.partial(torch.mul, 2)
        del self.model.transformer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(images)


def clip() -> torch.nn.Module:
    vision = open_clip.CLIPVisionCfg(
        layers=LAYERS, width=WIDTH, head_width=16, patch_size=4, image_size=8
    )
    text = open_clip.CLIPTextCfg(
        context_length=TOKENS, vocab_size=WORDS, width=TEXT_WIDTH, heads=2, layers=LAYERS
    )
    return open_clip.model.CLIP(OUT, vision, text).eval()


def timm_model() -> torch.nn.Module:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=WIDTH, depth=LAYERS, num_heads=2, num_classes=OUT,
        pre_norm=True, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-5),
    ).eval()  # fmt: skip


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, 3, 8, 8, generator=generator)
    texts = torch.randint(3, WORDS - 1, (3, TOKENS), generator=generator)
    texts[:, -1] = WORDS - 1
    return images, texts


def outputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    images, texts = inputs()
    with torch.no_grad():
        return {"image": model.encode_image(images), "text": model.encode_text(texts)}


def seeded(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights everywhere: fresh norms and biases are all ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.1)
    return model


def build(folder: Path) -> None:
    published = types.ModuleType("src.modeling")
    published.ImageEncoder = ImageEncoder  # type: ignore[attr-defined]
    sys.modules["src"], sys.modules["src.modeling"] = types.ModuleType("src"), published
    ImageEncoder.__module__ = "src.modeling"
    for seed in range(3):
        model = seeded(clip(), seed)
        found = outputs(model)
        torch.save(model, folder / f"clip{seed}.pt")
        torch.save(model.state_dict(), folder / f"clip{seed}.state.pt")
        save_file(model.state_dict(), folder / f"clip{seed}.wanted.safetensors")
        save_file(found, folder / f"clip{seed}.outputs.safetensors")
        write_hf(model, folder / f"hf{seed}")
        write_timm(model, folder / f"timm{seed}.safetensors")
        encoder = ImageEncoder(model)
        save_file(encoder.state_dict(), folder / f"encoder{seed}.wanted.safetensors")
        torch.save(encoder, folder / f"encoder{seed}.pt")
        torch.save(encoder, folder / f"encoder{seed}.legacy.pt",
                   _use_new_zipfile_serialization=False)  # fmt: skip
        torch.save(encoder.half(), folder / f"encoder{seed}.half.pt")
        state = {name: tensor.contiguous() for name, tensor in encoder.float().state_dict().items()}
        save_file(state, folder / f"encoder{seed}.half.wanted.safetensors")


def write_hf(model: torch.nn.Module, folder: Path) -> None:
    """The same weights in Hugging Face's class, put there layer by layer."""
    from transformers import CLIPConfig, CLIPModel

    shape = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "hidden_act": "gelu"}
    config = CLIPConfig(
        projection_dim=OUT,
        vision_config={**shape, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
                       "image_size": 8, "patch_size": 4, "projection_dim": OUT},
        text_config={**shape, "hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH,
                     "vocab_size": WORDS, "max_position_embeddings": TOKENS,
                     "projection_dim": OUT, "eos_token_id": 2, "bos_token_id": 0,
                     "pad_token_id": 1},
    )  # fmt: skip
    other = CLIPModel(config).eval()
    vision, text = other.vision_model, other.text_model
    with torch.no_grad():
        copy_blocks(model.visual.transformer, vision.encoder)
        copy_blocks(model.transformer, text.encoder)
        vision.embeddings.class_embedding.copy_(model.visual.class_embedding)
        vision.embeddings.patch_embedding.weight.copy_(model.visual.conv1.weight)
        vision.embeddings.position_embedding.weight.copy_(model.visual.positional_embedding)
        vision.pre_layrnorm.load_state_dict(model.visual.ln_pre.state_dict())
        vision.post_layernorm.load_state_dict(model.visual.ln_post.state_dict())
        other.visual_projection.weight.copy_(model.visual.proj.T)
        text.embeddings.token_embedding.weight.copy_(model.token_embedding.weight)
        text.embeddings.position_embedding.weight.copy_(model.positional_embedding)
        text.final_layer_norm.load_state_dict(model.ln_final.state_dict())
        other.text_projection.weight.copy_(model.text_projection.T)
        other.logit_scale.copy_(model.logit_scale)
    other.save_pretrained(folder)


def copy_blocks(transformer: torch.nn.Module, encoder: torch.nn.Module) -> None:
    for block, layer in zip(transformer.resblocks, encoder.layers, strict=True):
        attention, other = block.attn, layer.self_attn
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        for module, weight, bias in zip((other.q_proj, other.k_proj, other.v_proj), weights,
                                        biases, strict=True):  # fmt: skip
            module.weight.copy_(weight)
            module.bias.copy_(bias)
        other.out_proj.load_state_dict(attention.out_proj.state_dict())
        layer.mlp.fc1.load_state_dict(block.mlp.c_fc.state_dict())
        layer.mlp.fc2.load_state_dict(block.mlp.c_proj.state_dict())
        layer.layer_norm1.load_state_dict(block.ln_1.state_dict())
        layer.layer_norm2.load_state_dict(block.ln_2.state_dict())


def write_timm(model: torch.nn.Module, file: Path) -> None:
    """The same weights for timm's class, as timm's own converter gives them."""
    convert = timm.models.vision_transformer._convert_openai_clip
    state = convert(model.state_dict(), timm_model())
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)


def run(folder: Path) -> None:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        family = file.name.partition("-")[0]
        state = load_file(file)
        if family == "open_clip":
            model = clip()
            model.load_state_dict(state)
            found |= {f"{file.stem}.{name}": one for name, one in outputs(model).items()}
        elif family == "timm_clip":
            vision = timm_model()
            vision.load_state_dict(state)
            with torch.no_grad():
                found[f"{file.stem}.image"] = vision(inputs()[0])
    save_file(found, folder / "outputs")


if __name__ == "__main__":
    torch.manual_seed(0)
    {"build": build, "run": run}[sys.argv[1]](Path(sys.argv[2]))
