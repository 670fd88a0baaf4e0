"""Samples as people have them: files, folders and data sets to the inputs of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.data.inputs import calibration_inputs, prepare
    from magmerge.data.rows import (
        DataError,
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
    from magmerge.data.sources import has_splits, read_samples

__all__ = [
    "DataError",
    "Given",
    "Images",
    "Inputs",
    "Preparation",
    "Rows",
    "SampleOptions",
    "Source",
    "Tensors",
    "Texts",
    "calibration_inputs",
    "has_splits",
    "prepare",
    "read_samples",
]

__getattr__ = front(
    __name__,
    {
        "DataError": "rows",
        "Given": "rows",
        "Images": "rows",
        "Inputs": "rows",
        "Preparation": "rows",
        "Rows": "rows",
        "SampleOptions": "rows",
        "Source": "rows",
        "Tensors": "rows",
        "Texts": "rows",
        "calibration_inputs": "inputs",
        "has_splits": "sources",
        "prepare": "inputs",
        "read_samples": "sources",
    },
)
