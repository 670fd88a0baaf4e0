"""From rows to the inputs of a model, a few rows in each call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magmerge.errors import MagmergeWarning, ParameterError
from magmerge.samples.picturing import open_processor
from magmerge.samples.reading import read_samples
from magmerge.samples.rows import (
    Given,
    Images,
    Inputs,
    Preparation,
    Rows,
    SampleOptions,
    Source,
    Tensors,
    Texts,
)
from magmerge.samples.tokenizing import open_tokenizer, token_limit


def prepare(
    rows: Rows, folder: Path | None, options: Preparation | None = None, batch: int = 8
) -> list[Inputs]:
    """The rows as inputs of the model in `folder`, `batch` rows a call; the last may have fewer.

    Texts and pairs of texts are tokenised by the folder's tokenizer, cut to `max_length` tokens and
    padded within their batch; the attention mask tells what is padding. Images go through the
    folder's image processor, or are resized, cropped and normalised as `options` say. Ready tensors
    are cut into batches; inputs that a program gave are left as they are. Raises DataError.
    """
    options = options or Preparation()
    if not isinstance(batch, int) or batch < 1:
        raise ParameterError(f"a batch of {batch!r} rows", remedy="give one row or more")
    content = rows.content
    if isinstance(content, Given):
        return list(content.calls)
    if isinstance(content, Texts):
        return _from_texts(content, rows.source, folder, options, batch)
    if isinstance(content, Images):
        return _from_images(content, rows.source, folder, options, batch)
    return _from_tensors(content, batch)


def calibration_inputs(
    data: Mapping[str, Source], *, folder: Path | None, options: SampleOptions | None = None
) -> dict[str, list[Inputs]]:
    """Each expert's samples as inputs of the model in `folder`, by the expert's name.

    `data` maps names to sources as `read_samples` takes them; labels are never read. Warns of rows
    that were passed over.
    """
    options = options or SampleOptions()
    prepared = {}
    for name, source in data.items():
        rows = read_samples(
            source,
            name=name,
            field=options.text_field,
            samples=options.samples,
            seed=options.seed,
            allow_test=options.allow_test,
            split=options.split,
        )
        for note in rows.notes:
            warnings.warn(note, MagmergeWarning, stacklevel=2)
        prepared[name] = prepare(rows, folder, options.preparation, options.batch)
    return prepared


def _from_texts(
    content: Texts, source: str, folder: Path | None, options: Preparation, batch: int
) -> list[Inputs]:
    tokenizer = open_tokenizer(folder, source)
    limit = token_limit(options.max_length, tokenizer, folder)
    calls = []
    for start in range(0, len(content), batch):
        texts = _columns(content, slice(start, start + batch))
        found: dict[str, Any] = dict(
            tokenizer(
                *texts, padding=True, truncation=True, max_length=limit, return_tensors="pt",
                return_attention_mask=True,
            )
        )  # fmt: skip
        calls.append(Inputs((), found, len(texts[0])))
    return calls


def _columns(content: Texts, rows: slice) -> tuple[list[str], ...]:
    """The texts of some rows; of pairs the first ones and the second ones."""
    columns = (content.values,) if content.pairs is None else (content.values, content.pairs)
    return tuple(list(column[rows]) for column in columns)


def _from_images(
    content: Images, source: str, folder: Path | None, options: Preparation, batch: int
) -> list[Inputs]:
    pixels = open_processor(folder, options, source)
    calls = []
    for start in range(0, len(content), batch):
        images = content.values[start : start + batch]
        calls.append(Inputs(*pixels(images), len(images)))
    return calls


def _from_tensors(content: Tensors, batch: int) -> list[Inputs]:
    calls = []
    for start in range(0, len(content), batch):
        stop = min(start + batch, len(content))
        args = tuple(tensor[start:stop] for tensor in content.args)
        kwargs = {name: tensor[start:stop] for name, tensor in content.kwargs.items()}
        calls.append(Inputs(args, kwargs, stop - start))
    return calls
