"""Samples as people have them: files, folders and data sets to the inputs of a model."""

from magmerge.samples.inputs import calibration_inputs, prepare
from magmerge.samples.rows import (
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
from magmerge.samples.sources import has_splits, read_samples

__all__ = [
    "DataError", "Given", "Images", "Inputs", "Preparation", "Rows", "SampleOptions", "Source",
    "Tensors", "Texts", "calibration_inputs", "has_splits", "prepare", "read_samples",
]  # fmt: skip
