"""A model folder's vocabulary: which text has which id, as its tokenizer's files say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magmerge.checkpoints.donor import LIST, PAIRS, TOKENIZER
from magmerge.checkpoints.open_files import read_errors
from magmerge.checkpoints.tokens.sentencepiece import pieces
from magmerge.core.errors import CheckpointError

PIECES = "tokenizer.model"
"""A sentencepiece model, whose pieces have ids in their order."""
SETTINGS, ADDED = "tokenizer_config.json", "added_tokens.json"
"""Files that say it of tokens that were added later."""
DECODER = "added_tokens_decoder"
RESTORE = "restore the model's tokenizer files"
HIGHEST = 1 << 24
"""An id beyond which a file is taken for torn: no vocabulary is so large."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids by text. `added` are those that no text is split into by its letters, with what their
    files say of each; `file` is the one that holds the others.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: str = TOKENIZER


class TextError(ValueError):
    """A tokenizer's file that cannot be read."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(problem)
        self.file = file


def read_vocabulary(folder: Path | None) -> Vocabulary | None:
    """A folder's vocabulary; None where no file says one. CheckpointError for a corrupt file."""
    if folder is None:
        return None
    texts = {}
    for name in (TOKENIZER, LIST, PAIRS, PIECES, ADDED, SETTINGS):
        with read_errors(folder / name):
            if (folder / name).is_file():
                texts[name] = (folder / name).read_bytes()
        if name == TOKENIZER and texts:
            break
    try:
        return vocabulary_of(texts)
    except TextError as error:
        raise CheckpointError(
            f"cannot be read: {error}", source=folder / error.file, remedy=RESTORE
        ) from error


def vocabulary_of(texts: Mapping[str, bytes]) -> Vocabulary | None:
    """The vocabulary that files' contents tell, by their names; None where none says one, TextError
    where one is corrupt.
    """
    file = next((name for name in (TOKENIZER, LIST, PAIRS, PIECES) if name in texts), None)
    if file is None:
        return None
    added: dict[str, Mapping[str, Any]] = {}
    if file == TOKENIZER:
        content = _object(texts, file)
        ids = _of_model(content.get("model"))
        listed = content.get("added_tokens")
        for token in listed if isinstance(listed, list) else ():
            if isinstance(token, dict) and _is_id(token.get("id")):
                added[str(token.get("content"))] = token
    else:
        ids = _plain(texts, file)
        added |= _added_beside(texts)
    ids |= {text: token["id"] for text, token in added.items()}
    return Vocabulary(ids, added, file) if ids else None


def _object(texts: Mapping[str, bytes], file: str) -> dict[str, Any]:
    """The JSON object in one of the files."""
    try:
        content = json.loads(texts[file])
    except (ValueError, RecursionError) as error:
        raise TextError(file, str(error)) from error
    if not isinstance(content, dict):
        raise TextError(file, "is no JSON object")
    return content


def _plain(texts: Mapping[str, bytes], file: str) -> dict[str, int]:
    """The ids of a file that says nothing else."""
    if file == PAIRS:
        return _numbers(_object(texts, file))
    if file == LIST:
        lines = texts[file].decode("utf-8", errors="replace").split("\n")
        return {
            text: number for number, line in enumerate(lines) if (text := line.removesuffix("\r"))
        }
    try:
        return {text: number for number, text in enumerate(pieces(texts[file]))}
    except (ValueError, UnicodeDecodeError) as error:
        raise TextError(file, f"as a sentencepiece model: {error}") from error


def _added_beside(texts: Mapping[str, bytes]) -> dict[str, Mapping[str, Any]]:
    """Tokens that other files than the vocabulary's own add to it."""
    added: dict[str, Mapping[str, Any]] = {}
    if ADDED in texts:
        pairs = _numbers(_object(texts, ADDED))
        added |= {text: {"id": number, "content": text} for text, number in pairs.items()}
    listed = _object(texts, SETTINGS).get(DECODER) if SETTINGS in texts else {}
    for number, token in listed.items() if isinstance(listed, dict) else ():
        if isinstance(token, dict) and str(number).isdecimal() and _is_id(int(number)):
            added[str(token.get("content"))] = {**token, "id": int(number)}
    return added


def _of_model(model: object) -> dict[str, int]:
    """The ids of a tokenizer.json's model: a mapping, or a list of texts and scores."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        pairs = [pair for pair in vocabulary if isinstance(pair, list) and pair]
        return {str(pair[0]): number for number, pair in enumerate(pairs)}
    return _numbers(vocabulary) if isinstance(vocabulary, dict) else {}


def _numbers(content: Mapping[str, Any]) -> dict[str, int]:
    # Without a call for each of them: there are many.
    return {t: i for t, i in content.items() if type(i) is int and 0 <= i < HIGHEST}


def _is_id(number: object) -> bool:
    return type(number) is int and 0 <= number < HIGHEST
