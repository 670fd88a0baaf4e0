"""SVHN's cropped digits as their authors publish them: train_32x32.mat and test_32x32.mat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magmerge.samples.extras import needed
from magmerge.samples.rows import DataError
from magmerge.samples.table import Column, Row

COLOURS = 3
TEN = 10
"""The label that SVHN gives to the digit 0."""


class DigitMatrix:
    """X [height, width, 3, rows] and y [rows] of a file in MATLAB's format; digits 0 to 9."""

    columns: Mapping[str, Column] = {"image": "image"}
    classes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        images, labels = _arrays(path)
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return int(self._images.shape[-1])

    def read(self, rows: Sequence[int], _columns: Sequence[str], /) -> Iterator[Row]:
        library = needed("PIL.Image", "reading images")
        for row in rows:
            image = library.fromarray(np.ascontiguousarray(self._images[..., row]))
            yield Row(f"image {row}", {"image": image, "label": int(self._labels[row]) % TEN})


def _arrays(path: Path) -> tuple[Any, Any]:
    """The two arrays; DataError unless they are what SVHN's files hold."""
    reader = needed("scipy.io", "a file in MATLAB's format")
    try:
        content = reader.loadmat(path, variable_names=["X", "y"])
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    # scipy's reader raises errors of many kinds on broken files.
    except Exception as error:
        raise _broken(path, f"it holds no X and y: {error}") from error
    fits = images.ndim == 4 and images.shape[2] == COLOURS and images.dtype == np.uint8
    if not fits or images.shape[-1] != len(labels) or labels.dtype.kind not in "iu":
        raise _broken(path, f"X is {images.dtype} {list(images.shape)}, y {list(labels.shape)}")
    if 0 in images.shape or labels.min() < 0 or labels.max() > TEN:
        raise _broken(path, "it has no images, or labels that are no digits")
    return images, labels


def _broken(path: Path, problem: str) -> DataError:
    return DataError(
        problem,
        source=path,
        remedy="give SVHN's cropped digits, train_32x32.mat or test_32x32.mat, as published",
    )
