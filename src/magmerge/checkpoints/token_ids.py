"""Which token has which id, as a tokenizer's files say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TOKENIZER, LIST, PAIRS = "tokenizer.json", "vocab.txt", "vocab.json"
IDS = (TOKENIZER, LIST, PAIRS)
"""Files that tell ids, the fullest first; vocab.txt by its lines."""


def vocabulary(texts: Mapping[str, bytes]) -> dict[str, int]:
    """Ids by token, of the first of a folder's files that tells them; ValueError if it cannot be
    read, empty where there is none.
    """
    if TOKENIZER in texts:
        return _of_tokenizer(_object(texts[TOKENIZER]))
    if LIST in texts:
        lines = texts[LIST].decode(errors="replace").split("\n")
        return {token: number for number, token in enumerate(lines) if token}
    return _numbers(_object(texts[PAIRS])) if PAIRS in texts else {}


def _of_tokenizer(content: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token of a tokenizer.json."""
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        pairs = [pair for pair in vocabulary if isinstance(pair, list) and pair]
        vocabulary = {str(pair[0]): number for number, pair in enumerate(pairs)}
    ids = _numbers(vocabulary) if isinstance(vocabulary, dict) else {}
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            ids[str(token.get("content"))] = token["id"]
    return ids


def _numbers(content: Mapping[str, Any]) -> dict[str, int]:
    return {token: number for token, number in content.items() if isinstance(number, int)}


def _object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("is no JSON object")
    return content
