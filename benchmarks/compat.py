"""Which libraries' models go through a merge and load again: tiny random models of many kinds.

Of each: two experts are merged by TIES, the result is verified, loaded by its own library without a
missing key, and run once; an adapter is made of an expert, and merged into the base again.

    .venv/bin/python -m benchmarks.compat
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tests.architectures import ARCHITECTURES, MORE

import magmerge
from magmerge.core.errors import MagmergeError

RESULTS = Path(__file__).parent / "results" / "compat.jsonl"
STEPS = ("merge", "verify", "load", "run", "adapter out", "adapter in")
STEP = 0.01
"""How far an expert is from the base."""
UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 8, "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
HEADS = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1}
DIFFUSERS: list[tuple[str, dict[str, Any]]] = [
    ("UNet2DConditionModel", UNET),
    ("AutoencoderKL", {"block_out_channels": (8,), "norm_num_groups": 4}),
    ("SD3Transformer2DModel", {**HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4,
                               "joint_attention_dim": 8, "caption_projection_dim": 8,
                               "pooled_projection_dim": 8}),
    ("FluxTransformer2DModel", {**HEADS, "num_single_layers": 1, "in_channels": 4,
                                "joint_attention_dim": 8, "pooled_projection_dim": 8,
                                "axes_dims_rope": (0, 2, 2)}),
]  # fmt: skip
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 2, "width": 16, "patch_size": 4, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
}
TIMM = ("vit_tiny_patch16_224", "resnet18", "convnext_atto")


def main() -> None:
    """Make, merge, check, print, write the JSON line."""
    warnings.simplefilter("ignore")
    rows = []
    for library, name, build in builders():
        with tempfile.TemporaryDirectory() as root:
            rows.append({"library": library, "model": name, **tried(build, Path(root))})
        print(library, name, rows[-1]["notes"] or "ok", flush=True)
    Console(width=120).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"rows": rows}) + "\n")


def builders() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Library, class and maker of each model; a library that is not installed has none."""
    import transformers

    for name, options in (*ARCHITECTURES, *MORE):
        kind = getattr(transformers, name)
        yield "transformers", name, lambda k=kind, o=options: k(k.config_class(**o))
    try:
        import diffusers
    except ImportError:
        diffusers = None
    for name, options in DIFFUSERS if diffusers else ():
        yield "diffusers", name, lambda n=name, o=options: getattr(diffusers, n)(**o)
    try:
        import timm
    except ImportError:
        timm = None
    for name in TIMM if timm else ():
        yield "timm", name, lambda n=name: _Timm(timm.create_model(n, num_classes=3), n)
    try:
        import open_clip
    except ImportError:
        return
    yield "open_clip", "CLIP", lambda: _OpenClip(open_clip.CLIP(**OPEN_CLIP))


class _Timm:
    """A timm model that saves itself as timm's hub does."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        self.model, self.name = model, name
        self.parameters = model.parameters

    def save_pretrained(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(self.model.state_dict(), folder / "model.safetensors")
        config = {"architecture": self.name, "num_classes": 3}
        (folder / "config.json").write_text(json.dumps(config))


class _OpenClip(_Timm):
    """A model of open_clip that saves itself as open_clip does."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, "CLIP")

    def save_pretrained(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(self.model.state_dict(), folder / "open_clip_model.safetensors")
        half = {"mean": [0.5] * 3, "std": [0.5] * 3}
        config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": half}
        (folder / "open_clip_config.json").write_text(json.dumps(config))


def tried(build: Callable[[], Any], root: Path) -> dict[str, Any]:
    """What of the steps went well, and what else was said."""
    torch.manual_seed(0)
    row: dict[str, Any] = {**dict.fromkeys(STEPS, ""), "notes": ""}
    model, folders = build(), [root / name for name in ("base", "first", "second")]
    model.save_pretrained(folders[0])
    for folder in folders[1:]:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(STEP * torch.randn_like(parameter))
        model.save_pretrained(folder)
    notes = []
    try:
        out = magmerge.merge(base=folders[0], experts=folders[1:], method="ties", out=root / "out")
        row["merge"] = "ok"
        found = magmerge.verify(out.path, load=True)
        notes += [fault.text for check in found.checks for fault in check.faults]
        row["verify"] = "ok" if found.sound else "fault"
        checks = {check.name: check for check in found.checks}
        for step, name in (("load", "loads"), ("run", "runs")):
            check = checks.get(name)
            row[step] = "ok" if check and check.done and not check.faults else "-"
            notes += [check.seen] if check and not check.done else []
        adapter = root / "adapter"
        magmerge.extract(base=folders[0], model=folders[1], rank=2, out=adapter)
        row["adapter out"] = "ok" if magmerge.verify(adapter, load=True).sound else "fault"
        magmerge.merge(base=folders[0], experts=[adapter], method="average", out=root / "in")
        row["adapter in"] = "ok" if magmerge.verify(root / "in", load=True).sound else "fault"
    except MagmergeError as error:
        notes.append(error.problem.splitlines()[0])
    return {**row, "notes": "; ".join(notes)}


def as_table(rows: list[dict[str, Any]]) -> Table:
    """One row for each model."""
    table = Table(box=None, pad_edge=False, title_justify="left")
    for column in ("library", "model", *STEPS, "notes"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    main()
