"""Images and labels in the idx format of MNIST and its kin, packed with gzip or not."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from magmerge.samples.extras import needed
from magmerge.samples.rows import DataError
from magmerge.samples.table import Column, Row

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
PACKED = ".gz"
BYTES = 0x08
"""The format's code of unsigned bytes."""
MOST = 1 << 30
"""Bytes of one file's entries, at most; EMNIST's largest file has 0.6 * 2^30."""
LETTERS = "emnist-letters-"
"""These files alone number their classes from 1."""


class IdxImages:
    """Images of one idx file, and their labels from the file beside it.

    The labels are read when the first row is. EMNIST's images lie on their side in its files, and
    published runs take them so; they are left as they are.
    """

    columns: Mapping[str, Column] = {"image": "image"}
    classes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._path = path
        self._images = read_idx(path, 3)
        self._labels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Sequence[int], columns: Sequence[str], /) -> Iterator[Row]:
        library = needed("PIL.Image", "reading images")
        labels = self._labelled() if set(columns) - set(self.columns) else None
        for row in rows:
            values: dict[str, Any] = {"image": library.fromarray(self._images[row])}
            if labels is not None:
                values["label"] = int(labels[row]) - self._path.name.startswith(LETTERS)
            yield Row(f"image {row}", values)

    def _labelled(self) -> npt.NDArray[np.uint8]:
        if self._labels is not None:
            return self._labels
        path = labels_beside(self._path)
        labels = read_idx(path, 1)
        if len(labels) != len(self._images):
            raise DataError(
                f"it has {len(labels)} labels, and {self._path.name} has {len(self._images)} "
                "images",
                source=path,
                remedy="get both files from the same place",
            )
        self._labels = labels
        return labels


def is_images(path: Path) -> bool:
    """Whether a file's name says that it holds images in the idx format."""
    return path.name.removesuffix(PACKED).endswith(IMAGES)


def labels_beside(path: Path) -> Path:
    """The file of the images' labels, packed or not; DataError where there is none."""
    plain = path.name.removesuffix(PACKED).removesuffix(IMAGES) + LABELS
    for name in (plain, plain + PACKED):
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise DataError(
        "the file of its labels is not there",
        source=path,
        remedy=f"put {plain} or {plain}{PACKED} beside it",
    )


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The bytes of an idx file, of shape [rows] or [rows, height, width].

    DataError unless its header is right and as many entries follow as it says, none of its sizes
    being zero. No more is unpacked than the header claims, and one byte.
    """
    try:
        with gzip.open(path) if path.name.endswith(PACKED) else path.open("rb") as stream:
            shape = _header(stream, path, dimensions)
            claimed = math.prod(shape)
            content = stream.read(claimed + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, f"it cannot be read: {error}") from error
    if len(content) != claimed:
        many = "more" if len(content) > claimed else str(len(content))
        raise _broken(path, f"its header claims {claimed} bytes, and {many} are there")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _header(stream: Any | BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
    magic: bytes = stream.read(4)
    if len(magic) != 4 or magic[:2] != b"\0\0" or magic[2] != BYTES or magic[3] != dimensions:
        raise _broken(path, f"no idx file of bytes in {dimensions} dimensions")
    sizes: bytes = stream.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise _broken(path, "its header is cut off")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    if min(shape) < 1 or math.prod(shape) > MOST:
        raise _broken(path, f"its header claims the shape {list(shape)}")
    return shape


def _broken(path: Path, problem: str) -> DataError:
    return DataError(problem, source=path, remedy="get the file anew")
