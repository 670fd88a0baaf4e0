"""From rows to the inputs of a model, a few rows in each call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from magmerge.core.errors import MagmergeWarning, ParameterError
from magmerge.data.chat import chat_texts
from magmerge.data.pixels import open_processor
from magmerge.data.rows import (
    Calls,
    Chats,
    DataError,
    Images,
    Inputs,
    Preparation,
    Rows,
    SampleOptions,
    Source,
    Texts,
)
from magmerge.data.sources import read_samples
from magmerge.data.tokens import open_tokenizer, token_limit

NO_MARKS = {"add_special_tokens": False}


def prepare(
    rows: Rows, folder: Path | None, options: Preparation | None = None, batch: int = 8
) -> list[Inputs]:
    """The rows as inputs of the model in `folder`, `batch` rows a call; the last may have fewer.

    Texts, pairs of texts, and conversations by its chat template, are tokenised by the folder's
    tokenizer, cut to `max_length` tokens and padded within their batch; the attention mask tells
    what is padding. Images go through the folder's image processor, or are resized, cropped and
    normalised as `options` say. Ready tensors are cut into batches; inputs that a program gave are
    left as they are. Raises DataError.
    """
    options = options or Preparation()
    if not isinstance(batch, int) or batch < 1:
        raise ParameterError(f"a batch of {batch!r} rows", remedy="give one row or more")
    content = rows.content
    if isinstance(content, Calls):
        return list(content.calls)
    pieces = [slice(start, start + batch) for start in range(0, len(content), batch)]
    if isinstance(content, Texts | Chats):
        return _from_texts(content, pieces, rows.source, folder, options)
    if isinstance(content, Images):
        pixels = open_processor(folder, options, rows.source)
        images = [content.values[piece] for piece in pieces]
        return [Inputs(*pixels(part), len(part)) for part in images]
    return [
        Inputs(
            tuple(tensor[piece] for tensor in content.args),
            {name: tensor[piece] for name, tensor in content.kwargs.items()},
            min(piece.stop, len(content)) - piece.start,
        )
        for piece in pieces
    ]


def calibration_inputs(
    data: Mapping[str, Source], *, folder: Path | None, options: SampleOptions | None = None
) -> dict[str, list[Inputs]]:
    """Each expert's samples as inputs of the model in `folder`, by the expert's name.

    `data` maps names to sources as `read_samples` takes them; labels are never read. Warns of rows
    that were passed over.
    """
    options = options or SampleOptions()
    inputs = {}
    for name, source in data.items():
        rows = read_samples(source, options.draw(name))
        for note in rows.notes:
            warnings.warn(note, MagmergeWarning, stacklevel=2)
        inputs[name] = prepare(rows, folder, options.preparation, options.batch)
    return inputs


def further_inputs(
    data: Mapping[str, Source], rows: int, *, folder: Path | None, options: SampleOptions
) -> dict[str, list[Inputs]]:
    """At most `rows` further samples of each source, those that a larger draw would have; sources
    in memory, and those without further rows that can be read, are left out.
    """
    inputs = {}
    for name, source in data.items():
        if not isinstance(source, str | Path):
            continue
        how = replace(options.draw(name), samples=rows, passed=options.samples, fewer=True)
        try:
            drawn = read_samples(source, how)
            inputs[name] = prepare(drawn, folder, options.preparation, options.batch)
        except DataError:
            # Nobody asked for these rows: a fault in them must not stop a calibration.
            continue
    return inputs


def _from_texts(
    content: Texts | Chats,
    pieces: list[slice],
    source: str,
    folder: Path | None,
    options: Preparation,
) -> list[Inputs]:
    tokenizer = open_tokenizer(folder, source)
    limit = token_limit(options.max_length, tokenizer, folder)
    marks = {}
    if isinstance(content, Chats):
        # The template has put the special tokens in already.
        content, marks = Texts(tuple(chat_texts(content.values, tokenizer, source))), NO_MARKS
    columns = (content.values,) if content.pairs is None else (content.values, content.pairs)
    calls = []
    for piece in pieces:
        texts = [list(column[piece]) for column in columns]
        tokens: dict[str, Any] = dict(
            tokenizer(
                *texts, padding=True, truncation=True, max_length=limit, return_tensors="pt",
                return_attention_mask=True, **marks,
            )
        )  # fmt: skip
        calls.append(Inputs((), tokens, len(texts[0])))
    return calls
