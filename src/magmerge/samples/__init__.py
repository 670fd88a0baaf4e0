"""Samples as people have them: files, folders and data sets to the inputs of a model."""

from magmerge.samples.opening import has_splits
from magmerge.samples.preparing import calibration_inputs, prepare
from magmerge.samples.reading import read_samples
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
