"""A model folder's vocabulary: which text has which id, as its tokenizer's files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magmerge.checkpoints.kinds import read_errors, read_json
from magmerge.checkpoints.tokens.sentencepiece import pieces
from magmerge.core.errors import CheckpointError

TOKENIZER, PAIRS, LIST, PIECES = "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model"
"""Files that say which token has which id, the first that is there; `LIST` by its lines."""
SETTINGS, ADDED = "tokenizer_config.json", "added_tokens.json"
"""Files that say it of tokens that were added later."""
DECODER = "added_tokens_decoder"
RESTORE = "restore the model's tokenizer files"
HIGHEST = 1 << 24
"""An id beyond which a file is taken for torn: no vocabulary is so large."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids by text. `added` are those that no text is split into by its letters, with what their
    files say of each; `file` the one that holds the others.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: Path | None = None


def read_vocabulary(folder: Path | None) -> Vocabulary | None:
    """A folder's vocabulary; None where no file says one. CheckpointError for a corrupt file."""
    if folder is None:
        return None
    file = next(
        (folder / n for n in (TOKENIZER, LIST, PAIRS, PIECES) if (folder / n).is_file()), None
    )
    if file is None:
        return None
    added: dict[str, Mapping[str, Any]] = {}
    if file.name == TOKENIZER:
        content = read_json(file, RESTORE)
        ids = _of_model(content.get("model"))
        listed = content.get("added_tokens")
        for token in listed if isinstance(listed, list) else ():
            if isinstance(token, dict) and _is_id(token.get("id")):
                added[str(token.get("content"))] = token
    else:
        ids = _plain(file)
        added |= _added_beside(folder)
    ids |= {text: token["id"] for text, token in added.items()}
    if not ids:
        return None
    return Vocabulary(ids, added, file)


def _plain(file: Path) -> dict[str, int]:
    """The ids of a file that says nothing else."""
    if file.name == PAIRS:
        return _numbers(read_json(file, RESTORE))
    with read_errors(file):
        content = file.read_bytes()
    if file.name == LIST:
        lines = content.decode("utf-8", errors="replace").split("\n")
        texts = [line.removesuffix("\r") for line in lines]
        return {text: number for number, text in enumerate(texts) if text}
    try:
        return {text: number for number, text in enumerate(pieces(content))}
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"cannot be read as a sentencepiece model: {error}", source=file, remedy=RESTORE
        ) from error


def _added_beside(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Tokens that other files than the vocabulary's own add to it."""
    added: dict[str, Mapping[str, Any]] = {}
    if (folder / ADDED).is_file():
        pairs = _numbers(read_json(folder / ADDED, RESTORE))
        added |= {text: {"id": number, "content": text} for text, number in pairs.items()}
    decoder = read_json(folder / SETTINGS, RESTORE) if (folder / SETTINGS).is_file() else {}
    listed = decoder.get(DECODER)
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
