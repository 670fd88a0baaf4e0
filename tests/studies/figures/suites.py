"""A tiny suite with everything that a figure needs, and documents that are made up."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.evaluation.models import save_bert, save_head, save_rows, texts

from magmerge.core.version import __version__

TASKS = {"three": 3, "two": 2}


def tuned(base: Path, folder: Path, seed: int) -> Path:
    """The base with a small random task vector on its matrices."""
    save_bert(folder)
    generator = torch.Generator().manual_seed(seed)
    state = load_file(base / "model.safetensors")
    for name, tensor in state.items():
        if tensor.ndim == 2 and "embeddings" not in name:
            state[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def figure_suite(folder: Path, **more: Any) -> Path:
    """A base, two experts, and their tasks in test and calibration splits."""
    base = save_bert(folder / "base")
    tasks = {}
    for number, (name, classes) in enumerate(TASKS.items()):
        tuned(base, folder / name, 1 + number)
        save_head(folder / "heads" / f"{name}.safetensors", base, classes, number)
        data = {}
        for place, (split, count) in enumerate({"test": 60, "calibration": 12}.items()):
            draw = random.Random(10 * number + place)
            rows = [
                {"text": text, "label": draw.randrange(classes)}
                for text in texts(count, seed=10 * number + place)
            ]
            data[split] = f"data/{name}.{split}.jsonl"
            save_rows(folder / data[split], rows)
        tasks[name] = {
            "expert": name, "head": f"heads/{name}.safetensors", "data": data, "max_length": 24,
        }  # fmt: skip
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"suite": "tiny", "base": "base", "tasks": tasks, **more}))
    return path


def curves(
    kind: str = "samples",
    *,
    methods: tuple[str, ...] = ("ties",),
    values: tuple[float, ...] = (1, 5, 10, 20),
    seeds: int = 3,
    spread: float = 0.01,
    **more: Any,
) -> dict[str, Any]:
    """Numbers of a figure of scores, as magmerge writes them."""
    draw = random.Random(0)
    points: list[dict[str, Any]] = []

    def add(method: str, calibration: str, at: float | None, seed: int | None) -> None:
        mean = 0.8 + draw.uniform(-spread, spread)
        points.append(
            {"method": method, "calibration": calibration, "at": at, "seed": seed, "mean": mean,
             "scores": {"a": mean - 0.1, "b": mean + 0.1}}
        )  # fmt: skip

    for method in methods:
        for name in ("none", "wsc"):
            for at in values if kind == "lambda" else [None]:
                add(method, name, at, None)
        for at in values:
            for seed in range(seeds):
                add(method, "fsc", at, seed)
                add(method, "dsc", at, seed)
    tasks = [{"task": name, "metric": "accuracy", "rows": 400, "title": name} for name in "ab"]
    return {
        "magmerge": __version__, "kind": kind, "digest": "0", "suite": "made up", "settings": {},
        "methods": methods, "samples": 8, "seeds": seeds, "gate": "on", "sensitive": [],
        "warnings": [], "split": "test", "tasks": tasks, "calibrations": ["wsc", "fsc", "dsc"],
        "values": values, "ranked": None, "error": 0.01, "experts": 0.9, "points": points, **more,
    }  # fmt: skip


def layer_names(blocks: int) -> list[str]:
    parts = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "input_layernorm")
    return [f"model.layers.{block}.{part}" for block in range(blocks) for part in parts]


def ranking(blocks: int = 6, **more: Any) -> dict[str, Any]:
    """Numbers of a figure of sensitivity."""
    draw = random.Random(0)
    layers = [{"layer": name, "worse": draw.uniform(-0.01, 0.1)} for name in layer_names(blocks)]
    worst = sorted(layers, key=lambda one: -float(one["worse"]))[:5]
    return {
        "magmerge": __version__, "kind": "sensitivity", "digest": "0", "suite": "made up",
        "score": "drift", "mode": "exact", "factor": 1.1, "alpha": 5, "rows": 64,
        "sensitive": [one["layer"] for one in worst], "layers": layers, **more,
    }  # fmt: skip


def coefficients(
    blocks: int = 6, methods: tuple[str, ...] = ("ties", "dare"), **more: Any
) -> dict[str, Any]:
    """Numbers of a figure of factors; the second layer of each block is sensitive."""
    draw = random.Random(0)
    points = []
    for method in methods:
        for name, seeds in (("wsc", [None]), ("fsc", [0, 1])):
            for seed in seeds:
                layers = []
                for place, layer in enumerate(layer_names(blocks)):
                    free, sensitive = draw.uniform(0.5, 3), place % 4 == 1
                    xi = min(free, 1.0) if sensitive else max(free, 1.0)
                    layers.append(
                        {"layer": layer, "sensitive": sensitive, "xi": xi, "xi_free": free,
                         "xi_min": xi, "xi_max": xi}
                    )  # fmt: skip
                points.append(
                    {"method": method, "calibration": name, "seed": seed, "layers": layers}
                )
    return {
        "magmerge": __version__, "kind": "coefficients", "digest": "0", "suite": "made up",
        "methods": methods, "samples": 8, "seeds": 2, "gate": "on", "sensitive": ["x"] * blocks,
        "calibrations": ["wsc", "fsc"], "points": points, **more,
    }  # fmt: skip
