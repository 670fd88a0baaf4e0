"""Images and labels in arrays: idx files of MNIST and its kin, and SVHN's cropped digits.

idx files may be packed with gzip. SVHN's are train_32x32.mat and test_32x32.mat, as published.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magmerge.core.extras import needed
from magmerge.data.rows import DataError
from magmerge.data.sample_table import SampleRow, Table

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
PACKED = ".gz"
BYTES = 0x08
"""The format's code of unsigned bytes."""
MOST = 1 << 30
"""Bytes of one file's entries, at most; EMNIST's largest file has 0.6 * 2^30."""
LETTERS = "emnist-letters-"
"""These files alone number their classes from 1."""
TEN = 10
"""The label that SVHN gives to the digit 0."""


class ImageArray(Table):
    """Images [rows, ...] in bytes, and their labels, which are read when the first is wanted."""

    columns = {"image": "image"}  # noqa: RUF012

    def __init__(
        self, source: str, images: npt.NDArray[np.uint8], labels: Callable[[], Any]
    ) -> None:
        self.source, self._images, self._labels = source, images, labels
        self._known: Any = None

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Sequence[int], columns: Sequence[str], /) -> Iterator[SampleRow]:
        library = needed("PIL.Image", "reading images")
        if self._known is None and set(columns) - set(self.columns):
            self._known = self._labels()
        for row in rows:
            image = library.fromarray(np.ascontiguousarray(self._images[row]))
            label = {} if self._known is None else {"label": int(self._known[row])}
            yield SampleRow(f"image {row}", {"image": image, **label})


def open_idx(path: Path) -> ImageArray:
    """The images of an idx file, and their labels from the file beside it.

    EMNIST's images lie on their side in its files, and published runs take them so; they are left
    as they are.
    """
    images = read_idx(path, 3)

    def labels() -> Any:
        beside = labels_beside(path)
        numbers = read_idx(beside, 1)
        if len(numbers) != len(images):
            raise DataError(
                f"it has {len(numbers)} labels, and {path.name} has {len(images)} images",
                source=beside,
                remedy="get both files from the same place",
            )
        return numbers.astype(np.int64) - path.name.startswith(LETTERS)

    return ImageArray(str(path), images, labels)


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
            mark, sizes = stream.read(4), stream.read(4 * dimensions)
            if mark != bytes([0, 0, BYTES, dimensions]):
                raise _broken(path, f"no idx file of bytes in {dimensions} dimensions")
            if len(sizes) != 4 * dimensions:
                raise _broken(path, "its header is cut off")
            shape = tuple(np.frombuffer(sizes, ">u4").tolist())
            claimed = math.prod(shape)
            if not 0 < claimed <= MOST:
                raise _broken(path, f"its header claims the shape {list(shape)}")
            content = stream.read(claimed + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, f"it cannot be read: {error}") from error
    if len(content) != claimed:
        many = "more" if len(content) > claimed else str(len(content))
        raise _broken(path, f"its header claims {claimed} bytes, and {many} are there")
    return np.frombuffer(content, np.uint8).reshape(shape)


def open_digits(path: Path) -> ImageArray:
    """X [height, width, 3, rows] and y [rows] of SVHN's file in MATLAB's format; digits 0 to 9."""
    reader = needed("scipy.io", "a file in MATLAB's format")
    remedy = "give SVHN's cropped digits, train_32x32.mat or test_32x32.mat, as published"
    try:
        content = reader.loadmat(path, variable_names=["X", "y"])
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    # scipy's reader raises errors of many kinds on broken files.
    except Exception as error:
        raise _broken(path, f"it holds no X and y: {error}", remedy) from error
    sound = images.ndim == 4 and images.shape[2] == 3 and images.dtype == np.uint8
    if not sound or images.shape[-1] != len(labels) or labels.dtype.kind not in "iu":
        problem = f"X is {images.dtype} {list(images.shape)}, y {list(labels.shape)}"
        raise _broken(path, problem, remedy)
    if 0 in images.shape or labels.min() < 0 or labels.max() > TEN:
        raise _broken(path, "it has no images, or labels that are no digits", remedy)
    return ImageArray(str(path), images.transpose(3, 0, 1, 2), lambda: labels % TEN)


def _broken(path: Path, problem: str, remedy: str = "get the file anew") -> DataError:
    return DataError(problem, source=path, remedy=remedy)
