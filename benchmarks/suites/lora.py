"""The LoRA suite: the demo's six adapters of MiniLM with their heads and texts, for any program."""

import json
import shutil
from itertools import chain

from scripts.demo_assets import tasks
from scripts.demo_assets.encoder import SHA256
from scripts.demo_assets.specs import SPECS
from scripts.demo_assets.splits import split

from magmerge.studies.demo.demo_tasks import ASSETS, settings

from .minilm import copy_encoder
from .packages import SUITES, fetch
from .storing import STORED_SPLITS, Entry, Layout, classifier_entry, write_rows, write_suite

LAYOUT = Layout(SUITES / "lora-text")
CALIBRATION = 256


def make() -> None:
    """Copy adapters and heads, and write each split as a file."""
    copy_encoder(LAYOUT)
    entries = {}
    for name, spec in SPECS.items():
        sizes = store_texts(name)
        shutil.copytree(ASSETS / "experts" / name, LAYOUT.expert(name), dirs_exist_ok=True)
        LAYOUT.head(name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ASSETS / "heads" / f"{name}.safetensors", LAYOUT.head(name))
        made = {
            **settings()["tasks"][name],
            "sizes": sizes,
            "package": spec.source.title,
            "package_sha256": spec.source.sha256,
            "base_sha256": SHA256,
        }
        LAYOUT.record(name, made)
        fields = {"text_field": "text", "label_field": "label"}
        entries[name] = classifier_entry(name, spec.title, "jsonl", fields)
    model = {"class": "AutoModel", "features": "mean"}
    write_suite(LAYOUT, {"model": model, "max_length": settings()["max_length"]}, entries)


def store_texts(name: str) -> dict[str, int]:
    """Write a task's rows as the demo splits them; return how many rows each split has.

    The demo has 32 texts for calibration, and two of its tasks have no text left: what is wanted
    beyond these are texts of training, without their labels.
    """
    spec = SPECS[name]
    lines = (ASSETS / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows: dict[str, list[Entry]] = {part: [] for part in STORED_SPLITS}
    for row in map(json.loads, lines):
        rows[row.pop("split")].append(row)
    # The draw that the adapters were trained on, once more.
    drawn = split(tasks.TASKS[name](fetch(spec.source)), spec.sizes, seed=0)
    known = {row["text"] for row in chain(rows["test"], rows["validation"])}
    more = [{"text": example.text} for example in drawn["train"] if example.text not in known]
    rows["calibration"] += more[: CALIBRATION - len(rows["calibration"])]
    for part, content in rows.items():
        write_rows(LAYOUT.data(name, part, "jsonl"), content)
    return {part: len(content) for part, content in rows.items()}
