"""Texts to token numbers, by the model's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from magmerge.errors import ParameterError
from magmerge.samples.extras import needed
from magmerge.samples.rows import DataError

LONGEST = 512
"""Tokens that a text is cut to, where neither the user nor the tokenizer asks for fewer."""
FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model",
    "spiece.model",
)  # fmt: skip
POSITIONS = ("max_position_embeddings", "n_positions")


def open_tokenizer(folder: Path | None, source: str) -> Any:
    """The tokenizer of a model's folder, able to pad; DataError where there is none.

    No code of the folder is ever run. Where there is no padding token it pads with that of the
    text's end; the attention mask tells the two apart.
    """
    if folder is None or not any((folder / name).is_file() for name in FILES):
        raise DataError(
            f"these are texts, and there is no tokenizer in {folder or 'the model'}",
            source=source,
            remedy="name a model folder with its tokenizer files, or give token numbers "
            "(.safetensors with input_ids and attention_mask)",
        )
    transformers = needed("transformers", "tokenising texts")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise DataError(
            f"its tokenizer cannot be loaded: {str(error).partition(chr(10))[0]}",
            source=folder,
            remedy="see that AutoTokenizer.from_pretrained loads this folder without remote code",
        ) from error
    if tokenizer.pad_token is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise DataError(
                "its tokenizer has no token to pad with",
                source=folder,
                remedy="set pad_token in tokenizer_config.json",
            )
        tokenizer.pad_token = stand_in
    return tokenizer


def token_limit(wanted: int | None, tokenizer: Any, folder: Path | None) -> int:
    """Tokens a text is cut to: as wanted, else the model's own limit, and at most LONGEST."""
    if wanted is not None:
        if not isinstance(wanted, int) or wanted < 1:
            raise ParameterError(
                f"max_length is {wanted!r}", remedy="give a number of tokens, such as 128"
            )
        return wanted
    limits = [int(tokenizer.model_max_length), LONGEST]
    config = _config(folder)
    limits += [config[key] for key in POSITIONS if isinstance(config.get(key), int)]
    return max(1, min(limits))


def _config(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {}
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
