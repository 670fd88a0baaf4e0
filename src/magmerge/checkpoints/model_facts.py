"""What a model's own folder tells of it beside its tensors: where it is from, its licence, its
languages and data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from magmerge.checkpoints.licences import Licence, licence_in, licence_of
from magmerge.core.model_strings import is_id
from magmerge.core.plain_yaml import PlainLoader

CARD = "README.md"
CONFIGS = {"config.json": "_name_or_path", "adapter_config.json": "base_model_name_or_path"}
"""Files that say what a model was made of, and under which key."""
TEXTS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
LARGEST = 1 << 20
"""Bytes of a file that are looked at."""
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
"""A model in the hub's own cache."""
LOCAL = frozenset(
    {
        "models", "model", "checkpoints", "checkpoint", "ckpts", "ckpt", "out", "output", "outputs",
        "result", "results", "run", "runs", "data", "tmp", "home", "mnt", "root", "workspace",
        "content", "saved", "save", "experiments", "exp", "weights", "trained", "merged",
    }
)  # fmt: skip
"""First parts of paths that look like a hub's name and are folders on somebody's disk."""
STEP = re.compile(r"(checkpoint|step|epoch)[-_]?\d+")
LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
DATASET = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")


def facts_of(model: str, source: str, folder: Path | None) -> dict[str, Any]:
    """What is told of a model, as plain data; nothing that is not told.

    `id`: its name on the hub, `parents` those of what it was made of where its own is not known,
    `license` (with `license_name` and `license_link`), `languages`, `datasets`. `model` is what
    messages call it. Files may hold anything: what cannot be read tells nothing.
    """
    card = {} if folder is None else _front_matter(folder / CARD)
    own = hub_id(source, folder)
    licence = _licence(model, card, folder)
    facts = {
        "id": own,
        "parents": [] if own else list(dict.fromkeys(_parents(card, folder))),
        "license": licence.id,
        "license_name": licence.name,
        "license_link": licence.link,
        "languages": texts_of(card.get("language", card.get("languages")), LANGUAGE),
        "datasets": texts_of(card.get("datasets"), DATASET),
    }
    return {key: value for key, value in facts.items() if value}


def licence_from(model: str, facts: Mapping[str, Any]) -> Licence:
    """The licence that facts tell, as a record has them."""
    keys = ("license", "license_name", "license_link")
    return licence_of(model, *(facts.get(key) for key in keys))


def hub_id(source: str, folder: Path | None = None) -> str | None:
    """The name on the hub of a model that is called so, or lies in the hub's cache."""
    cached = CACHED.search(f"{folder or source}/".replace(os.sep, "/"))
    if cached is not None:
        return plausible(f"{cached[1]}/{cached[2]}")
    name = source.partition("@")[0]
    return None if os.path.lexists(source) or os.path.lexists(name) else plausible(name)


def plausible(text: object) -> str | None:
    """The text, where it may be a model's name on the hub and is not likely a path."""
    if not isinstance(text, str) or len(text) > 96 or not is_id(text):
        return None
    owner, _, name = text.partition("/")
    odd = "--" in text or ".." in text or name.endswith((".git", ".ipynb", ".", "-"))
    weights = name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"))
    local = owner.lower() in LOCAL or STEP.fullmatch(name) is not None
    return None if odd or weights or local or owner.endswith(("-", ".")) else text


def _parents(card: Mapping[str, Any], folder: Path | None) -> Iterator[str]:
    """The models that card and configs name as those that it was made of."""
    named = card.get("base_model")
    for name in named if isinstance(named, list) else [named]:
        if (found := plausible(name)) is not None:
            yield found
    if folder is None or named:
        return
    for file, key in CONFIGS.items():
        found = plausible(_read(folder / file, key))
        if found is not None and not os.path.lexists(found):
            yield found


def _read(path: Path, key: str) -> object:
    """One entry of a JSON file; None where there is none."""
    try:
        content = json.loads(_beginning(path) or "{}")
    except (ValueError, RecursionError):
        return None
    return content.get(key) if isinstance(content, dict) else None


def _licence(model: str, card: Mapping[str, Any], folder: Path | None) -> Licence:
    """What the card tells, else the file with the licence's text."""
    value = card.get("license")
    several = [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
    if len(several) > 1:
        return licence_of(model, "other", "-and-".join(several))
    told = several[0] if several else value
    licence = licence_of(model, told, card.get("license_name"), card.get("license_link"))
    if licence.id is None and folder is not None:
        texts = (text for name in TEXTS if (text := _beginning(folder / name)))
        licence = next((licence_in(model, text) for text in texts), licence)
    return licence


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The metadata at the beginning of a card; empty where there are none to be read."""
    text = _beginning(path).lstrip("\ufeff").replace("\r\n", "\n")
    head, _, rest = text.partition("\n")
    body, mark, _ = f"\n{rest}".partition("\n---")
    return _yaml(body) if head.strip() == "---" and mark else {}


def _yaml(text: str) -> Mapping[str, Any]:
    try:
        content = yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _beginning(path: Path) -> str:
    """A file's text, of a long one its first part; empty where there is none."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as stream:
            return stream.read(LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""


def texts_of(value: object, form: re.Pattern[str]) -> list[str]:
    """A text or several, as far as they have the form. YAML reads Norwegian's `no` as false."""
    items: Sequence[object] = value if isinstance(value, list) else [value]
    texts = ["no" if item is False else item for item in items]
    return list(dict.fromkeys(t for t in texts if isinstance(t, str) and form.fullmatch(t)))
