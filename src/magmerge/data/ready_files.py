"""Files of ready inputs: .npy and .safetensors, of which only the drawn rows are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from magmerge.data.rows import DataError, Tensors

LABELS = ("labels", "label")
"""Tensors of these names are never inputs."""
POSITIONAL = "inputs"
"""A sole tensor of this name is the model's first positional input."""
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class ArrayFile:
    """A .npy file: the model's first positional input. Nothing in it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        try:
            self._array = _mapped(path)
        # numpy's reader of headers raises errors of many kinds on broken ones.
        except Exception as error:
            objects = "object" in str(error).lower()
            raise DataError(
                f"refused: {'it holds Python objects' if objects else f'no array: {error}'}",
                source=path,
                remedy="save one array of numbers, whose first dimension counts the samples, with "
                "numpy.save(FILE, array, allow_pickle=False)",
            ) from error

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def read(self, rows: Sequence[int], _label_field: str | None, /) -> Tensors:
        """Floats become float32, integers but bytes become int64."""
        array = np.array(self._array[np.asarray(rows, dtype=np.int64)])
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        elif array.dtype.kind in "iu" and array.itemsize > 1:
            array = array.astype(np.int64)
        return Tensors((torch.from_numpy(array),), {})

    def labels(self, _rows: Sequence[int], _field: str, /) -> tuple[Any, ...]:
        """An error: there are none."""
        raise DataError(
            "an array has no labels",
            source=self.source,
            remedy="save inputs and labels as tensors of one .safetensors file",
        )


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    """The file's array, read where it is looked at; an error unless it holds what it says.

    The header is judged before numpy maps the file: on entries of no size it divides by zero, which
    ends the process.
    """
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"its header is of version {version}")
        shape, _, dtype = HEADERS[version](stream)
        there = path.stat().st_size - stream.tell()
    if dtype.kind not in "fiub" or not shape or min(shape) < 0:
        raise ValueError(f"it holds {dtype} in {len(shape)} dimensions")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > there:
        raise ValueError(f"its header claims {claimed} bytes, and {there} are there")
    mapped: np.ndarray[Any, Any] = np.load(path, mmap_mode="r" if claimed else None)
    return mapped


class TensorFile:
    """A .safetensors file: keyword inputs by name, or `inputs` alone, which is positional."""

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        with self._stream() as stream:
            shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
        counts = {shape[0] if shape else None for shape in shapes.values()}
        self._names, self._count = list(shapes), next(iter(counts), None) or 0
        if not set(shapes) - set(LABELS) or len(counts) > 1 or None in counts:
            listing = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise DataError(
                f"its inputs do not have one number of rows: {listing or 'it is empty'}",
                source=path,
                remedy="save each input of the model under its keyword, with the samples along "
                "the first dimension",
            )

    def __len__(self) -> int:
        return self._count

    def read(self, rows: Sequence[int], label_field: str | None, /) -> Tensors:
        """Floats become float32."""
        names = [name for name in self._names if name not in (*LABELS, label_field)]
        tensors = {name: self._part(name, rows) for name in names}
        if names == [POSITIONAL]:
            return Tensors((tensors[POSITIONAL],), {})
        return Tensors((), tensors)

    def labels(self, rows: Sequence[int], field: str, /) -> tuple[Any, ...]:
        """The tensor `field`, else `labels`; DataError unless it has one label a row."""
        name = next((name for name in (field, *LABELS) if name in self._names), None)
        labels = None if name is None else self._part(name, rows)
        if labels is None or labels.dim() != 1:
            raise DataError(
                f"it has no labels {field!r}" if labels is None else f"{name} is not one a row",
                source=self.source,
                remedy="save the labels as a 1-D tensor named labels",
            )
        return tuple(labels.tolist())

    def _part(self, name: str, rows: Sequence[int]) -> Tensor:
        with self._stream() as stream:
            if list(rows) == list(range(self._count)):
                tensor: Tensor = stream.get_tensor(name)
            else:
                stored = stream.get_slice(name)
                tensor = torch.cat([stored[row : row + 1] for row in rows])
        return tensor.float() if tensor.is_floating_point() else tensor

    def _stream(self) -> Any:
        try:
            return safe_open(self.source, framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(
                f"no safetensors file: {error}", source=self.source, remedy="save it anew"
            ) from error


ReadyFile: TypeAlias = ArrayFile | TensorFile


def by_keyword(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs among tensors by name: all but labels."""
    return {name: tensor for name, tensor in tensors.items() if name not in LABELS}
