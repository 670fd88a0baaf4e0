"""The tokenizer files of a result: another model's, or a model's own with tokens added to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magmerge.checkpoints.donor import TEMPLATES, TOKENIZER
from magmerge.checkpoints.kinds import RESTORE as RESTORE_CONFIG
from magmerge.checkpoints.kinds import read_config, read_json
from magmerge.checkpoints.open_files import read_errors
from magmerge.checkpoints.tokens.vocabulary import (
    ADDED,
    DECODER,
    RESTORE,
    SETTINGS,
    Vocabulary,
)

FILES = (
    TOKENIZER, SETTINGS, ADDED, "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
"""What a tokenizer is made of."""
GENERATION = "generation_config.json"
IDS = ("_token_id", "_token_ids")
"""What the keys of configs end in that hold ids of tokens."""
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""What is said of an added token beside its text and id."""

Texts = dict[str, bytes | None]
"""Files by name; None: one that the result has not."""


def taken_from(owner: Path, donor: Path) -> Texts:
    """The tokenizer of another folder in place of the donor's, and its ids in what generates."""
    texts: Texts = {}
    further = (f"{TEMPLATES}/{file.name}" for home in (owner, donor) for file in _named(home))
    for name in dict.fromkeys((*FILES, *further)):
        if (owner / name).is_file():
            with read_errors(owner / name):
                texts[name] = (owner / name).read_bytes()
        elif (donor / name).is_file():
            texts[name] = None
    if (donor / GENERATION).is_file() and (owner / GENERATION).is_file():
        content = read_json(donor / GENERATION, RESTORE_CONFIG)
        own = read_json(owner / GENERATION, RESTORE_CONFIG)
        content = {key: value for key, value in content.items() if not key.endswith(IDS)}
        content |= {key: value for key, value in own.items() if key.endswith(IDS)}
        texts[GENERATION] = _json(content)
    return texts


def _named(folder: Path) -> list[Path]:
    """Its chat templates that have names."""
    return sorted((folder / TEMPLATES).glob("*.jinja"))


def token_ids(owner: Path, donor: Path) -> dict[str, Any]:
    """Settings of the donor's config.json that hold ids of tokens, as the owner's has them."""
    own = dict(_ids(read_config(owner)))
    return {path: own[path] for path, _ in _ids(read_config(donor)) if path in own}


def with_tokens(
    folder: Path, vocabulary: Vocabulary, new: Mapping[str, int], told: Mapping[str, Any]
) -> Texts:
    """A folder's tokenizer with added tokens `new` at their ids; `told` is what others' files say
    of them. Only what changes.
    """
    entries = {text: _entry(text, number, told.get(text, {})) for text, number in new.items()}
    texts: Texts = {}
    if vocabulary.file == TOKENIZER:
        content = read_json(folder / vocabulary.file, RESTORE)
        content["added_tokens"] = [*content.get("added_tokens", []), *entries.values()]
        # In one line: these are large, and lines take most of the time.
        texts[TOKENIZER] = (json.dumps(content) + "\n").encode()
    beside = read_json(folder / ADDED, RESTORE) if (folder / ADDED).is_file() else {}
    if beside or vocabulary.file != TOKENIZER:
        texts[ADDED] = _json({**beside, **new})
    settings = read_json(folder / SETTINGS, RESTORE) if (folder / SETTINGS).is_file() else {}
    if DECODER in settings or vocabulary.file != TOKENIZER:
        decoder = dict(settings.get(DECODER) or {})
        # Without its id, which is the key.
        for entry in entries.values():
            decoder[str(entry["id"])] = {k: value for k, value in entry.items() if k != "id"}
        texts[SETTINGS] = _json({**settings, DECODER: decoder})
    return texts


def _entry(text: str, number: int, told: Mapping[str, Any]) -> dict[str, Any]:
    flags = {flag: bool(told.get(flag, False)) for flag in FLAGS}
    return {"id": number, "content": text, **flags}


def _ids(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if "." in key:
            continue
        if key.endswith(IDS):
            yield f"{path}{key}", value
        elif isinstance(value, dict) and key.endswith("_config"):
            yield from _ids(value, f"{path}{key}.")


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
