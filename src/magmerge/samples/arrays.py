"""Files of ready inputs: .npy and .safetensors, of which only the drawn rows are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from magmerge.samples.rows import DataError, Tensors

LABELS = ("labels", "label")
"""Tensors of these names are never inputs."""
POSITIONAL = "inputs"
"""A sole tensor of this name is the model's first positional input."""
ARRAY_KINDS = "fiub"
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
    """The file's array, read where it is looked at; ValueError unless it holds what it says.

    The header is judged before numpy maps the file: on entries of no size it divides by zero, which
    ends the process.
    """
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"its header is of version {version}")
        shape, column_major, dtype = HEADERS[version](stream)
        offset = stream.tell()
    if dtype.hasobject or dtype.kind not in ARRAY_KINDS or not shape or min(shape) < 0:
        what = "objects" if dtype.hasobject else f"{dtype}"
        raise ValueError(f"it holds {what} in {len(shape)} dimensions")
    claimed, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - offset
    if claimed > there:
        raise ValueError(f"its header claims {claimed} bytes, and {there} are there")
    if claimed == 0:
        return np.empty(shape, dtype)
    order: Literal["C", "F"] = "F" if column_major else "C"
    return np.memmap(path, dtype, "r", offset, shape, order)


class TensorFile:
    """A .safetensors file: keyword inputs by name, or `inputs` alone, which is positional."""

    def __init__(self, path: Path) -> None:
        self.source, self._path = str(path), path
        with self._opened() as stream:
            names = list(stream.keys())
            shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in names}
        counts = {shape[0] if shape else None for shape in shapes.values()}
        self._names, self._count = names, next(iter(counts), None) or 0
        if not set(names) - set(LABELS) or len(counts) > 1 or None in counts:
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
        inputs = [name for name in self._names if name not in (*LABELS, label_field)]
        found = {name: self._part(name, rows) for name in inputs}
        if inputs == [POSITIONAL]:
            return Tensors((found[POSITIONAL],), {})
        return Tensors((), found)

    def labels(self, rows: Sequence[int], field: str, /) -> tuple[Any, ...]:
        """The tensor `field`, else `labels`; DataError unless it has one label a row."""
        name = next((name for name in (field, *LABELS) if name in self._names), None)
        found = None if name is None else self._part(name, rows)
        if found is None or found.dim() != 1:
            raise DataError(
                f"it has no labels {field!r}" if found is None else f"{name} is not one a row",
                source=self._path,
                remedy="save the labels as a 1-D tensor named labels",
            )
        return tuple(found.tolist())

    def _part(self, name: str, rows: Sequence[int]) -> Tensor:
        with self._opened() as stream:
            if list(rows) == list(range(self._count)):
                found: Tensor = stream.get_tensor(name)
            else:
                stored = stream.get_slice(name)
                found = torch.cat([stored[row : row + 1] for row in rows])
        return found.float() if found.is_floating_point() else found

    def _opened(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self._path, framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(
                f"no safetensors file: {error}", source=self._path, remedy="save it anew"
            ) from error


ReadyFile: TypeAlias = ArrayFile | TensorFile


def by_keyword(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs among tensors by name: all but labels."""
    return {name: tensor for name, tensor in tensors.items() if name not in LABELS}
