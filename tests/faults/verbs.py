"""Every verb that writes, as a call on small models: what is killed, and gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import magmerge
from tests.checkpoints.adapters.files import write_adapter
from tests.evaluation.suites.clips import save_clip, save_task
from tests.front_door.test_one_path import written
from tests.golden.cases import DTYPES, MODULES, models
from tests.pipeline.test_exporting import stand_in
from tests.studies.tuning.recipes import recipe, tuning_suite
from tests.token_models import model, tokenizer

SMALL = {"threads": 1}
ANEW = ("overwrite",)
"""What is made anew after a kill: nothing of it is gone on with."""


class Case(NamedTuple):
    """A call whose output is called `out` in the folder of a run; with what it is made once more
    after a kill.
    """

    verb: str
    arguments: Mapping[str, Any]
    out: str = "out"
    again: tuple[str, ...] = ("resume", "overwrite")

    def at(self, folder: Path, **more: Any) -> dict[str, Any]:
        """The arguments, with the output in a folder."""
        return {**self.arguments, "out": str(folder / self.out), **more}


def cases(folder: Path) -> dict[str, Case]:
    """Cases of weights alone by name; what they read is written to a folder."""
    base, experts = models(DTYPES["float32"], 3)
    paths = written(folder / "models", {"base": base, **experts})
    three = {"base": paths["base"], "experts": {k: paths[k] for k in experts}, **SMALL}
    adapters = {
        f"a{k}": str(write_adapter(folder / f"a{k}.safetensors", MODULES, seed=k)) for k in range(2)
    }
    own = "".join(f"  {name}: {path}\n" for name, path in three["experts"].items())
    documents = folder / "documents.yaml"
    documents.write_text(
        f"name: first\nbase: {paths['base']}\nexperts:\n{own}method: average\n---\n"
        f"base: {paths['base']}\nexperts:\n  first: first\n  e0: {paths['e0']}\nmethod: ties\n"
    )
    magmerge.merge(**three, method="average", out=folder / "merged")
    machine = {"machine": {"threads": 1}}
    return {
        "merge": Case("merge", {**three, "method": "ties"}),
        "merge, shards": Case("merge", {**three, "method": "dare", "shard_size": "20KB"}),
        "merge, one file": Case("merge", {**three, "method": "tsv_m"}, "out.safetensors"),
        "merge as an adapter": Case("merge", {**three, "method": "average", "rank": 4}),
        "merge of adapters": Case(
            "merge", {"experts": adapters, "method": "ties", **SMALL}, "out.safetensors"
        ),
        "calibrate": Case(
            "calibrate", {**three, "merged": str(folder / "merged"), "method": "wsc"}
        ),
        "extract": Case("extract", {"base": paths["base"], "model": paths["e0"], **SMALL}),
        "convert a model": Case("convert", {"model": paths["e0"], "dtype": "bfloat16"}),
        "convert an adapter": Case("convert", {"model": adapters["a0"], "naming": "peft"}),
        "several documents": Case("run", {"recipe": str(documents), **machine}),
    }


def live_cases(folder: Path) -> dict[str, Case]:
    """Those that run models, by name."""
    suite = tuning_suite(folder / "suite")
    place = folder / "suite"
    tuned = {"base": str(place / "base"), "experts": {n: str(place / n) for n in "ab"}, **SMALL}
    samples = {name: str(place / f"data/{name}.train.jsonl") for name in "ab"}
    measured = {"data": samples, "samples": {"samples": 4, "text_field": "text"}}
    search = folder / "search.yaml"
    search.write_text(
        recipe(place, method="task_arithmetic", params={"lambda": "!tune [0.5, 2.0]"})
    )
    return {
        "merge, measured": Case("merge", {**tuned, "calibrate": "fsc", **measured}),
        "statistics": Case(
            "statistics",
            {"base": tuned["base"], "experts": {"a": tuned["experts"]["a"]}, **SMALL}
            | {**measured, "data": samples["a"]},
            "a.statistics.safetensors",
            ANEW,
        ),
        "tune": Case(
            "tune",
            {
                "recipe": str(search),
                "suite": str(suite),
                "trials": 3,
                "rows": 8,
                "machine": {"threads": 1},
            },
        ),
    }


def other_cases(folder: Path) -> dict[str, Case]:
    """What writes other things than results of merges, by name."""
    save_clip(folder / "clip")
    save_task(folder / "images", "EuroSAT", ["River", "SeaLake", "AnnualCrop"])
    own = {"base": str(folder / "clip"), "data": str(folder / "images"), "tasks": ["EuroSAT"]}
    chat = folder / "chat"
    model(chat, len(tokenizer(chat)), 0)
    handed = {"model": str(chat), "converter": str(stand_in(folder / "llama.cpp"))}
    return {
        "suite": Case("suite", {"name": "vision8", **own}, again=ANEW),
        "export": Case("export", {**handed, "outtype": "f16"}, "out.gguf", ANEW),
    }
