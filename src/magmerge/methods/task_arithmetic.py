"""Task arithmetic."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from magmerge.methods.average import weighted_sum
from magmerge.registry import register_method
from magmerge.types import Lambda, Weights


@register_method("task_arithmetic", source="Task arithmetic, arXiv:2212.04089, sec. 2")
def task_arithmetic(
    deltas: Float[Tensor, "K *shape"], *, lambda_: Lambda = 0.3, weights: Weights = None
) -> Float[Tensor, "*shape"]:
    """Scaled sum of the task vectors: lambda sum_k w_k D_k."""
    return weighted_sum(deltas, weights) * lambda_
