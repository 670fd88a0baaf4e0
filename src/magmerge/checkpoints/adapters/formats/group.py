"""The tensors of one module by their roles, checked before any factor is read; and its scale."""

from __future__ import annotations

import math

from magmerge.checkpoints.adapters.formats.keys import AGAIN, Role, Roles
from magmerge.core import dtypes
from magmerge.core.errors import AdapterError
from magmerge.core.models import Checkpoint
from magmerge.core.types import TensorSpec

BESIDE = frozenset({"alpha", "bias", "diff_b", "dora"})
"""What a module has beside the factors of its weight's task vector."""


def checked_scale(
    alpha: float, scale: float, source: object, key: str, remedy: str = AGAIN
) -> float:
    """`scale`, if it is of use; AdapterError for an alpha of 0, NaN or infinity."""
    problem = None
    if not math.isfinite(alpha):
        problem = f"alpha is {alpha}"
    elif alpha == 0:
        problem = "alpha is 0: the adapter would change nothing"
        remedy = "restore the alpha that it was trained with"
    # Beyond these, the product with float32 factors is 0 or infinite.
    elif not 2.0**-100 < abs(scale) < 2.0**100:
        problem = f"alpha {alpha:g} makes the scale {scale:g}"
    if problem is not None:
        raise AdapterError(problem, source=source, tensor=key, remedy=remedy)
    return scale


class Group:
    """The tensors of one module by their roles, of which nothing is known to be sound yet."""

    def __init__(self, checkpoint: Checkpoint, name: str, roles: Roles) -> None:
        self.checkpoint, self.name, self.roles = checkpoint, name, roles
        self.factors: dict[Role, TensorSpec] = {
            role: checkpoint.specs[key] for role, key in roles.items() if role not in BESIDE
        }

    def fault(self, problem: str, key: str) -> AdapterError:
        return AdapterError(problem, source=self.checkpoint.source, tensor=key, remedy=AGAIN)

    def scale(self, rank: int | None) -> float:
        """alpha / rank; 1 without an alpha, and where alpha means nothing."""
        key = self.roles.get("alpha")
        if key is None or rank is None:
            return 1.0
        spec = self.checkpoint.specs[key]
        if math.prod(spec.shape) != 1 or spec.dtype not in dtypes.FLOATS | {"I64", "I32", "I16"}:
            problem = f"an alpha is one number, and this is {spec.dtype} {list(spec.shape)}"
            raise self.fault(problem, key)
        alpha = float(self.checkpoint.read(key).reshape(()).item())
        return checked_scale(alpha, alpha / rank, self.checkpoint.source, key)

    def specs(self, *roles: Role) -> list[TensorSpec]:
        """The factors' headers; AdapterError where one is missing."""
        missing = [role for role in roles if role not in self.factors]
        if missing:
            lacking = f"{self.name} has no {' and no '.join(missing)} factor"
            key = next(iter(self.roles.values()))
            raise self.fault(f"half of a pair is missing: {lacking}", key)
        return [self.factors[role] for role in roles]

    def matrices(self, *roles: Role) -> list[TensorSpec]:
        specs = self.specs(*roles)
        self.check_sizes(*specs)
        for spec in specs:
            if len(spec.shape) != 2:
                problem = f"a factor of LoHa or LoKr is a matrix, and this is {list(spec.shape)}"
                raise self.fault(problem, spec.name)
        return specs

    def check_sizes(self, *specs: TensorSpec) -> None:
        for spec in specs:
            if 0 in spec.shape:
                raise self.fault(f"rank 0 or no features: {list(spec.shape)}", spec.name)

    def check_rank(self, left: TensorSpec, rank: int) -> None:
        if left.shape[1] != rank:
            problem = f"its rank is {left.shape[1]}, and that of its other half {rank}"
            raise self.fault(problem, left.name)
