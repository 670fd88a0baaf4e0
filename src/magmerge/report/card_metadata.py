"""The metadata of a model card, as the hub reads them: where the model is from, and what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from magmerge.checkpoints.licences import JointLicence, joined
from magmerge.checkpoints.model_facts import (
    DATASET,
    LANGUAGE,
    licence_from,
    plausible,
    texts_of,
)
from magmerge.report.account import InputAccount, MergeAccount

TABLE = Path(__file__).with_suffix(".yaml")
TAG = re.compile(r"[A-Za-z0-9][\w.+-]{0,60}")
LIBRARIES = (
    ("model_index.json", "_class_name", "diffusers"),
    ("adapter_config.json", "peft_type", "peft"),
    ("open_clip_config.json", "model_cfg", "open_clip"),
    ("config.json", "_class_name", "diffusers"),
    ("config.json", "pretrained_cfg", "timm"),
    ("config.json", "model_type", "transformers"),
    ("config.json", "architectures", "transformers"),
)
"""Files, a key of theirs, and the library that reads a folder which has both."""


def metadata_of(account: MergeAccount, texts: Mapping[str, bytes]) -> dict[str, Any]:
    """The metadata in the order in which cards have them; nothing that is not surely told.

    `texts` are the files beside the tensors by their names, config.json among them.
    """
    models = base_models(account, texts)
    library = library_of(texts)
    task = task_of(texts, library)
    facts = [entry.facts for entry in account.sources]
    told: dict[str, Any] = {
        "base_model": models,
        "base_model_relation": relation_of(account, texts) if models else None,
        "library_name": library,
        "pipeline_tag": task,
        "tags": tags_of(account, texts),
        "language": _union(facts, "languages", LANGUAGE),
        "datasets": _union(facts, "datasets", DATASET),
        **licence_of_merge(account).metadata,
    }
    return {key: value for key, value in told.items() if value}


def base_models(account: MergeAccount, texts: Mapping[str, bytes]) -> list[str]:
    """The hub's names of the models that it is made of, or of what these were made of; of an
    adapter, the model that it goes on.
    """
    own = plausible(_entry(texts, "adapter_config.json", "base_model_name_or_path"))
    inputs = account.sources
    if relation_of(account, texts) == "adapter":
        bases = [name for entry in inputs if entry.role == "base" for name in _names(entry)]
        parents = [name for entry in inputs for name in entry.facts.get("parents", ())]
        return list(dict.fromkeys([*([own] if own else []), *bases] or filter(plausible, parents)))
    return list(dict.fromkeys(name for entry in inputs for name in _names(entry)))


def relation_of(account: MergeAccount, texts: Mapping[str, bytes]) -> str | None:
    """How the hub calls what it is to these models; nothing of a model that was only converted."""
    if "adapter_config.json" in {name.rpartition("/")[2] for name in texts}:
        return "adapter"
    return "merge" if account.recipe.get("method") or account.recipe.get("merged") else None


def licence_of_merge(account: MergeAccount) -> JointLicence:
    """The strictest licence of the inputs, and what is to be known of it."""
    return joined([licence_from(name_of_model(entry), entry.facts) for entry in account.sources])


def name_of_model(entry: InputAccount) -> str:
    """What a card calls an input: its name on the hub, or the last part of its path."""
    return plausible(entry.facts.get("id")) or last_part(entry.source)


def last_part(path: str) -> str:
    """A path's last part that says something: nobody's folders are a reader's business."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..", "~")]
    weights = len(parts) > 1 and parts[-1].startswith(("adapter_model.", "model.safetensors"))
    return (parts[-2] if weights else parts[-1]) if parts else "model"


def tags_of(account: MergeAccount, texts: Mapping[str, bytes]) -> list[str]:
    """merge, magmerge, the method and the calibrators."""
    recipe = account.recipe
    calibrate = recipe.get("calibrate")
    steps = calibrate if isinstance(calibrate, list | tuple) else ()
    names = [
        recipe.get("method"),
        *(step.get("method") for step in steps if isinstance(step, dict)),
    ]
    tags = ["merge"] if recipe.get("method") or recipe.get("merged") else []
    tags += ["magmerge", *(["lora"] if relation_of(account, texts) == "adapter" else [])]
    tags += ["moe"] if recipe.get("moe") else []
    tags += [name for name in names if isinstance(name, str) and TAG.fullmatch(name)]
    return list(dict.fromkeys(tags))


def library_of(texts: Mapping[str, bytes]) -> str | None:
    """The library that loads the folder."""
    if "modules.json" in texts and _entry(texts, "config.json", "model_type"):
        return "sentence-transformers"
    for name, key, library in LIBRARIES:
        if _entry(texts, name, key) is not None:
            return library
    parts = {name.rpartition("/")[2] for name in texts}
    return "peft" if "adapter_config.json" in parts else None


def task_of(texts: Mapping[str, bytes], library: str | None) -> str | None:
    """The task that the class of the model is for."""
    if library == "sentence-transformers":
        return "sentence-similarity"
    if library == "open_clip":
        return "zero-shot-image-classification"
    if library == "timm":
        classes = _entry(texts, "config.json", "num_classes")
        return "image-classification" if classes else None
    if library == "diffusers":
        return _tasks()["pipelines"].get(str(_entry(texts, "model_index.json", "_class_name")))
    named = _entry(texts, "config.json", "architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    ends = {
        task
        for name in classes
        for end, task in _tasks()["architectures"].items()
        if name.endswith(end)
    }
    return ends.pop() if len(ends) == 1 and len(classes) == 1 else None


def _names(entry: InputAccount) -> list[str]:
    named = [entry.facts.get("id")]
    if named == [None]:
        parents = entry.facts.get("parents")
        named = parents if isinstance(parents, list) else []
    return [found for name in named if (found := plausible(name)) is not None]


def _union(facts: Sequence[Mapping[str, Any]], key: str, form: re.Pattern[str]) -> list[str]:
    return list(dict.fromkeys(text for told in facts for text in texts_of(told.get(key), form)))


def _entry(texts: Mapping[str, bytes], name: str, key: str) -> Any:
    """One entry of a JSON file; None where there is none."""
    try:
        content = json.loads(texts.get(name, b"{}"))
    except (ValueError, RecursionError):
        return None
    return content.get(key) if isinstance(content, dict) else None


@cache
def _tasks() -> Mapping[str, Mapping[str, str]]:
    content: Mapping[str, Mapping[str, str]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return content
