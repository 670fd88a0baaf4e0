"""Inputs that a program gives: tensors, texts, and whatever its model takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magmerge.samples.arrays import by_keyword
from magmerge.samples.rows import DataError, Given, Inputs, Rows, Source, Tensors, Texts


def from_memory(source: Source, name: str) -> Rows:
    """A tensor, a mapping of keywords to tensors, texts, or an iterable of model inputs, whole."""
    where = f"the data of {name}"
    if isinstance(source, np.ndarray):
        source = _tensor(source, where)
    if isinstance(source, Tensor):
        return Rows(name, where, _checked(Tensors((source,), {}), where))
    if isinstance(source, Mapping):
        return Rows(name, where, _checked(Tensors((), by_keyword(source)), where))
    if not isinstance(source, Iterable):
        raise _no_inputs(where, source)
    items = list(source)
    if items and all(isinstance(item, str) for item in items):
        return Rows(name, where, Texts(tuple(items)))
    calls = tuple(_call(item, where) for item in items)
    if not calls:
        raise DataError("it is empty", source=where, remedy="give one input of the model at least")
    return Rows(name, where, Given(calls))


def _call(item: Any, where: str) -> Inputs:
    """One call: a tensor, a sequence of positional inputs, a mapping of keywords, or `Inputs`."""
    if isinstance(item, Inputs):
        return item
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    if isinstance(item, np.ndarray):
        args = (_tensor(item, where),)
    elif isinstance(item, Tensor):
        args = (item,)
    elif isinstance(item, Mapping):
        kwargs = by_keyword(item)
    elif isinstance(item, list | tuple) and not any(isinstance(part, str) for part in item):
        args = tuple(item)
    if not args and not kwargs:
        raise _no_inputs(where, item)
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.dim()]
    return Inputs(args, kwargs, len(tensors[0]) if tensors else 1)


def _checked(content: Tensors, where: str) -> Tensors:
    tensors = (*content.args, *content.kwargs.values())
    odd = [one for one in tensors if not isinstance(one, Tensor)]
    if odd:
        raise _no_inputs(where, odd[0])
    counts = {len(one) if one.dim() else 0 for one in tensors}
    if len(counts) != 1 or counts == {0}:
        raise DataError(
            "its tensors do not have one number of rows",
            source=where,
            remedy="put the samples along the first dimension of each, one at least",
        )
    return content


def _tensor(array: np.ndarray[Any, Any], where: str) -> Tensor:
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise _no_inputs(where, array) from error


def _no_inputs(where: str, found: object) -> DataError:
    return DataError(
        f"a {type(found).__name__} is no input of a model",
        source=where,
        remedy="give a path, a tensor, a list of texts, or an iterable of tensors, tuples or "
        "mappings",
    )
