"""Samples as people have them: files, folders and data sets to the inputs of a model."""

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
    "DataError", "Given", "Images", "Inputs", "Preparation", "Rows", "SampleOptions", "Source",
    "Tensors", "Texts", "calibration_inputs", "has_splits", "prepare", "read_samples",
]  # fmt: skip
