"""Texts to token numbers, by the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from magmerge.checkpoints.kinds import read_config
from magmerge.core.errors import ParameterError
from magmerge.data.pixels import from_folder
from magmerge.data.rows import DataError

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
    remedy = "see that AutoTokenizer.from_pretrained loads this folder without remote code"
    tokenizer = from_folder("AutoTokenizer", folder, "tokenizer", remedy)
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


def token_limit(limit: int | None, tokenizer: Any, folder: Path | None) -> int:
    """Tokens a text is cut to: as asked for, else the model's own limit, and at most LONGEST."""
    if limit is not None:
        if not isinstance(limit, int) or limit < 1:
            raise ParameterError(
                f"max_length is {limit!r}", remedy="give a number of tokens, such as 128"
            )
        return limit
    limits = [int(tokenizer.model_max_length), LONGEST]
    places = positions(folder)
    limits += [] if places is None else [places]
    return max(1, min(limits))


def positions(folder: Path | None) -> int | None:
    """Tokens that the model in this folder has positions for; None where its config names none."""
    config = {} if folder is None else read_config(folder)
    told = [config[key] for key in POSITIONS if isinstance(config.get(key), int)]
    return min(told, default=None)
