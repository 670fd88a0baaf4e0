"""Samples as people have them: files, folders and data sets to the inputs of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magmerge.core.lazy import front

if TYPE_CHECKING:
    from magmerge.data.inputs import calibration_inputs, further_inputs
    from magmerge.data.rows import SampleOptions

__all__ = ["SampleOptions", "calibration_inputs", "further_inputs"]

# A merge without samples imports neither.
__getattr__ = front(
    __name__,
    {"SampleOptions": "rows", "calibration_inputs": "inputs", "further_inputs": "inputs"},
)
