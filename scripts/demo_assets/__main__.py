"""Make the demo assets: `python -m scripts.demo_assets --cache DIR [--only TASK]`."""

import argparse
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import encoder
from .licences import licences
from .sources import fetch
from .specs import SPECS, Spec
from .splits import Example, Splits, split
from .tasks import TASKS
from .train import Recipe, load_expert, save_adapter, train_expert

ASSETS = Path(__file__).parents[2] / "src" / "magmerge" / "demonstration" / "assets"
STORED_SPLITS = ("test", "validation", "calibration")
SEED = 0


def main() -> None:
    """Read the command line and make the assets of all tasks or of one."""
    parser = argparse.ArgumentParser(prog="python -m scripts.demo_assets", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the packages")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder to write")
    parser.add_argument("--only", choices=list(TASKS), help="make one task, keep the others")
    parser.add_argument("--data-only", action="store_true", help="write the data, train nothing")
    arguments = parser.parse_args()
    # One thread: sums are taken in one order, so a second run gives the same experts.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name in [arguments.only] if arguments.only else list(TASKS):
        splits = make_data(name, arguments.cache, arguments.assets)
        if not arguments.data_only:
            make_expert(name, splits, arguments.assets)
    if not arguments.only:
        (arguments.assets / "LICENSES.md").write_text(licences(arguments.cache))


def make_data(name: str, cache: Path, assets: Path) -> Splits:
    """Fetch a task's package, split its texts, and store all splits but training."""
    spec = SPECS[name]
    splits = split(TASKS[name](fetch(spec.source, cache)), spec.sizes, SEED)
    rows = []
    for part in STORED_SPLITS:
        for example in splits[part]:
            row: dict[str, Any] = {"split": part, "text": example.text}
            if part != "calibration":
                row["label"] = example.label
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    (assets / "data").mkdir(parents=True, exist_ok=True)
    (assets / "data" / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return splits


def make_expert(name: str, splits: Splits, assets: Path) -> None:
    """Make a task's head, fine-tune its expert, and record what both reach on the test split."""
    spec = SPECS[name]
    started = time.monotonic()
    base, tokenizer = encoder.load_base(), encoder.load_tokenizer()
    train = _columns(splits["train"])
    head = encoder.label_head(base, tokenizer, spec.prompts)
    folder = assets / "experts" / name
    shutil.rmtree(folder, ignore_errors=True)
    recipe = Recipe(epochs=spec.epochs)
    save_adapter(train_expert(tokenizer, head, train, recipe, SEED), folder)
    test = _columns(splits["test"])
    record = _record(spec, splits, recipe)
    record["base_test_accuracy"] = round(encoder.accuracy(base, tokenizer, head, test), 4)
    # Measured on the files just written, after their rounding to float16.
    expert = load_expert(folder)
    record["expert_test_accuracy"] = round(encoder.accuracy(expert, tokenizer, head, test), 4)
    _store(name, head, record, assets)
    print(
        f"{name}: base {record['base_test_accuracy']:.3f}, "
        f"expert {record['expert_test_accuracy']:.3f}, {time.monotonic() - started:.0f} s",
        flush=True,
    )


def _columns(examples: list[Example]) -> encoder.Labelled:
    texts = [example.text for example in examples]
    return encoder.Labelled(texts, torch.tensor([example.label for example in examples]))


def _record(spec: Spec, splits: Splits, recipe: Recipe) -> dict[str, Any]:
    """What tasks.json says of a task, but for its accuracies."""
    return {
        "title": spec.title,
        "classes": spec.classes,
        "head": "labels",
        "prompts": spec.prompts,
        "source": spec.source.title,
        "licence": spec.licence,
        "sizes": {part: len(examples) for part, examples in splits.items()},
        "recipe": {**asdict(recipe), "seed": SEED},
    }


def _store(name: str, head: torch.Tensor, record: dict[str, Any], assets: Path) -> None:
    """Put one task's head and record beside those of the other tasks."""
    head_path, tasks_path = assets / "heads" / f"{name}.safetensors", assets / "tasks.json"
    tasks = json.loads(tasks_path.read_text())["tasks"] if tasks_path.exists() else {}
    tasks[name] = record
    head_path.parent.mkdir(exist_ok=True)
    save_file({"weight": head.contiguous()}, head_path)
    head_path.chmod(0o644)
    document = {
        "tasks": {task: tasks[task] for task in TASKS if task in tasks},
        "logit_scale": encoder.LOGIT_SCALE,
        "max_length": encoder.MAX_LENGTH,
        "base": {"package": encoder.PACKAGE, "sha256": encoder.SHA256},
    }
    tasks_path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
