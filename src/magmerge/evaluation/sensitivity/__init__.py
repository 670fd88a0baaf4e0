"""Which layers a model is most sensitive to: where more of the merge hurts a generic data set."""

from magmerge.evaluation.sensitivity.ranking import Sensitivity, sensitivity

__all__ = ["Sensitivity", "sensitivity"]
