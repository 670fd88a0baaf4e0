"""Add a merge method in one function; it is checked, listed and run like any other.

.venv/bin/python examples/own_method.py
"""

from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import Doc

import magmerge


@magmerge.register_method("median", source="this example")
def median(
    deltas: Tensor, *, lambda_: Annotated[float, Doc("factor on the median")] = 1.0
) -> Tensor:
    """Entry-wise median of the task vectors [K, *shape], times lambda."""
    return deltas.median(dim=0).values * lambda_


def main() -> None:
    """Merge three tiny models with it."""
    base = {"layer.weight": torch.zeros(2, 2)}
    experts = [{"layer.weight": torch.full((2, 2), float(i))} for i in (1, 2, 30)]
    result = magmerge.merge(base=base, experts=experts, method="median", params={"lambda": 0.5})
    print(result.state_dict()["layer.weight"])


if __name__ == "__main__":
    main()
