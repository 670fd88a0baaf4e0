"""Inputs that a program gives: tensors, texts, and whatever its model takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magmerge.data.ready_files import by_keyword
from magmerge.data.rows import Calls, DataError, Inputs, Rows, Source, Tensors, Texts


def from_memory(source: Source, name: str) -> Rows:
    """A tensor, a mapping of keywords to tensors, texts, or an iterable of model inputs, whole."""
    where = f"the data of {name}"
    if isinstance(source, np.ndarray | Tensor | Mapping):
        args, kwargs = _arguments(source, where)
        tensors = [*args, *kwargs.values()]
        odd = [value for value in tensors if not isinstance(value, Tensor)]
        if odd:
            raise _no_inputs(where, odd[0])
        counts = {len(tensor) if tensor.dim() else 0 for tensor in tensors}
        if len(counts) != 1 or counts == {0}:
            raise DataError(
                "its tensors do not have one number of rows",
                source=where,
                remedy="put the samples along the first dimension of each, one at least",
            )
        return Rows(name, where, Tensors(args, kwargs))
    if not isinstance(source, Iterable):
        raise _no_inputs(where, source)
    items = list(source)
    if items and all(isinstance(item, str) for item in items):
        return Rows(name, where, Texts(tuple(items)))
    calls = tuple(_call(item, where) for item in items)
    if not calls:
        raise DataError("it is empty", source=where, remedy="give one input of the model at least")
    return Rows(name, where, Calls(calls))


def _call(item: Any, where: str) -> Inputs:
    """One call: a tensor, a sequence of positional inputs, a mapping of keywords, or `Inputs`."""
    if isinstance(item, Inputs):
        return item
    args, kwargs = _arguments(item, where)
    if not args and not kwargs:
        raise _no_inputs(where, item)
    values = (*args, *kwargs.values())
    tensors = [value for value in values if isinstance(value, Tensor) and value.dim()]
    return Inputs(args, kwargs, len(tensors[0]) if tensors else 1)


def _arguments(item: Any, where: str) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Positional and keyword inputs; none of either for what is no input."""
    if isinstance(item, np.ndarray):
        try:
            item = torch.from_numpy(item)
        except (TypeError, ValueError) as error:
            raise _no_inputs(where, item) from error
    if isinstance(item, Tensor):
        return (item,), {}
    if isinstance(item, Mapping):
        return (), by_keyword(item)
    texts = not isinstance(item, list | tuple) or any(isinstance(part, str) for part in item)
    return () if texts else tuple(item), {}


def _no_inputs(where: str, value: object) -> DataError:
    return DataError(
        f"a {type(value).__name__} is no input of a model",
        source=where,
        remedy="give a path, a tensor, a list of texts, or an iterable of tensors, tuples or "
        "mappings",
    )
