"""From what a user names to rows."""

from __future__ import annotations

from pathlib import Path

from magmerge.samples import library
from magmerge.samples.arrays import ArrayFile, TensorFile
from magmerge.samples.draw import check_count
from magmerge.samples.given import from_memory
from magmerge.samples.opening import open_source
from magmerge.samples.rows import Rows, Source
from magmerge.samples.selecting import Choice, select, select_ready


def read_samples(
    source: Source,
    *,
    name: str,
    field: str | None = None,
    samples: int | None = 8,
    seed: int = 0,
    allow_test: bool = False,
    split: str | None = None,
    label_field: str | None = None,
    pair_field: str | None = None,
) -> Rows:
    """Draw `samples` rows (None: all, in their order) from a source; `name` is whose they are.

    `source` is a file (.jsonl, .csv, .tsv, .txt, .npy, .safetensors, .images, an idx file of
    images, SVHN's .mat), a folder of images, a folder saved by datasets, or a data set's name:
    NAME, NAME:CONFIG or NAME:CONFIG:SPLIT. What is given in memory (a tensor, a mapping of keywords
    to tensors, a list of texts, an iterable of model inputs) is used as it is and whole.
    Rows are drawn without replacement by (seed, name), and a larger draw extends a smaller one.
    Rows whose column `split` says test are not drawn. Labels are read only from `label_field`, if
    it is given (of a folder of images: the classes' folders). With `pair_field` a row is a pair of
    texts, the second from that column. DataError for what cannot be read,
    for too few rows, and for the test split, unless `allow_test`.
    """
    check_count(samples, seed)
    choice = Choice(name, samples, seed, field, label_field, split, allow_test, pair_field)
    if library.is_data_set(source):
        where = f"the data of {name}"
        return select(library.open_object(source, where, split, allow_test=allow_test), choice)
    if not isinstance(source, str | Path):
        return from_memory(source, name)
    opened = open_source(source, split, allow_test=allow_test)
    if isinstance(opened, ArrayFile | TensorFile):
        return select_ready(opened, choice)
    return select(opened, choice)
