"""Searching a recipe: marked parameters by an optimiser, on held-out rows."""

from magmerge.studies.tuning.trials import Trial
from magmerge.studies.tuning.tuning import TuneOptions, TuneResult, tune

__all__ = ["Trial", "TuneOptions", "TuneResult", "tune"]
