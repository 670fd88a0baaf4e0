"""Time and memory of measuring several models one by one, and in one pass.

Makes a folder of JPEG images and variants of a small random CLIP vision model under
benchmarks/.cache, and measures them with evaluate() each on an opened suite of its own, as separate
runs do, and with evaluate_all(). Each way runs in a process of its own; scores must be the same.

    .venv/bin/python -m benchmarks.evaluate_many
    .venv/bin/python -m benchmarks.evaluate_many --images 400 --side 640
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.speed.process import CACHE, HERE

RESULTS = HERE / "results" / "evaluate_many.jsonl"
SIZE, PATCH, LAYERS, WIDTH, CLASSES = 224, 32, 12, 192, 10
KINDS = ("all layers differ",)
NAMES = ("images", "side", "models", "threads", "workers")
WAYS = ("one by one", "one suite", "one pass")


def main() -> None:
    """Build what is missing, run, print, write the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--side", type=int, default=224, help="of a JPEG image in pixels")
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = CACHE / f"evaluate-{given.images}-{given.side}-{given.models}"
    if given.measure:
        sys.stdout.write(json.dumps(measure(folder, *given.measure, given)) + "\n")
        return
    build(folder, given)
    rows = []
    for kind in KINDS:
        found = {way: run(given, kind, way) for way in WAYS}
        first = found[WAYS[0]]
        for way, one in found.items():
            assert one["scores"] == first["scores"], f"{kind}, {way}: other scores"
            row = {key: one[key] for key in ("seconds", "cpu", "GB")}
            ratios = {
                "ratio": first["seconds"] / one["seconds"],
                "of cpu": first["cpu"] / one["cpu"],
            }
            rows.append({"variants": kind, "way": way, **row, **ratios})
    Console(width=100).print(as_table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    about = {key: getattr(given, key) for key in NAMES}
    line = {"cores": os.cpu_count(), "load": os.getloadavg()[0], **about, "rows": rows}
    with RESULTS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def run(given: argparse.Namespace, kind: str, way: str) -> dict[str, Any]:
    """One way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.evaluate_many", "--measure", kind, way]
    for name in (*NAMES, "memory"):
        command += [f"--{name}", str(getattr(given, name))]
    done = subprocess.run(command, check=True, cwd=HERE.parent, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{kind}, {way}: {found['seconds']:.1f} s, {found['GB']:.2f} GB\n")
    return found


def measure(folder: Path, kind: str, way: str, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds, those of the processors, peak memory beyond that of one image, and the scores.

    Processors' seconds count the same on a machine that does other work too.
    """
    from magmerge.evaluation import open_suite

    settings = {name: getattr(given, name) for name in ("threads", "workers", "memory")}
    models = {f"{n}": folder / f"{KINDS.index(kind)}-{n}" for n in range(given.models)}
    open_suite(folder / "suite.yaml").evaluate(folder / "base", tasks=["few"], **settings)
    before, start, spent = peak(), time.monotonic(), time.process_time()
    if way == "one pass":
        found = open_suite(folder / "suite.yaml").evaluate_all(models, tasks=["images"], **settings)
    elif way == "one suite":
        suite = open_suite(folder / "suite.yaml")
        found = {
            name: suite.evaluate(path, tasks=["images"], **settings)
            for name, path in models.items()
        }
    else:
        found = {
            name: open_suite(folder / "suite.yaml").evaluate(path, tasks=["images"], **settings)
            for name, path in models.items()
        }
    seconds, spent = time.monotonic() - start, time.process_time() - spent
    scores = {name: [one.score for one in scores.tasks] for name, scores in found.items()}
    memory = (peak() - before) / 1e6
    return {"seconds": seconds, "cpu": spent, "GB": memory, "scores": scores}


def peak() -> int:
    """The most memory that this process has had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def build(folder: Path, given: argparse.Namespace) -> None:
    """The suite, its images, its head and its models, unless they are there."""
    if (folder / "suite.yaml").is_file():
        return
    import numpy as np
    import torch
    import yaml
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    generator = np.random.default_rng(0)
    for number in range(given.images):
        place = folder / "images" / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((given.side, given.side), Image.Resampling.BICUBIC)
        picture.save(place / f"{number:05}.jpg", quality=90)
    few = folder / "few" / "class0"
    few.mkdir(parents=True)
    picture.save(few / "0.jpg")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64, image_size=SIZE, patch_size=PATCH, projection_dim=WIDTH,
    )  # fmt: skip
    base = CLIPVisionModelWithProjection(config)
    base.save_pretrained(folder / "base")
    CLIPImageProcessor().save_pretrained(folder / "base")
    save_file({"weight": torch.randn(CLASSES, WIDTH)}, folder / "head.safetensors")
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for kind in range(len(KINDS)):
        for number in range(given.models):
            changed = {
                name: tensor + 0.02 * torch.randn_like(tensor)
                for name, tensor in state.items()
                if tensor.is_floating_point()
            }
            base.load_state_dict(changed, strict=False)
            base.save_pretrained(folder / f"{kind}-{number}")
    content = {
        "suite": "generated images",
        "base": "base",
        "model": {"class": "CLIPVisionModelWithProjection", "features": "embeds"},
        "tasks": {name: {"data": name, "head": "head.safetensors"} for name in ("images", "few")},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Seconds and processors' seconds, how many times less than one by one, and peak memory."""
    table = Table(box=None, pad_edge=False)
    for column in ("variants", "way", "s", "less", "cpu s", "less", "peak GB"):
        table.add_column(column, justify="left" if column in ("variants", "way") else "right")
    for row in rows:
        wall = f"{row['seconds']:.1f}", f"{row['ratio']:.2f}x"
        cpu = f"{row['cpu']:.1f}", f"{row['of cpu']:.2f}x"
        table.add_row(str(row["variants"]), str(row["way"]), *wall, *cpu, f"{row['GB']:.2f}")
    return table


if __name__ == "__main__":
    main()
