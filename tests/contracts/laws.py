"""What every method and calibrator is tried on."""

from __future__ import annotations

import torch
from torch import Tensor

from magmerge.core import registry
from magmerge.core.traits import Calibrator, Method

METHODS = list(registry.methods)
CALIBRATORS = list(registry.calibrators)
SHAPES = [(7,), (5, 9), (9, 5), (4, 3, 2), (3, 2, 2, 2)]


def count_for(method: Method) -> int:
    """A number of experts that the method takes."""
    least, most = method.experts
    return max(least, 3) if most is None else most


def deltas_for(method: Method, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count_for(method), *shape), generator=generator)


def found_by(calibrator: Calibrator, deltas: Tensor, merged: Tensor) -> Tensor:
    """What the calibrator's function gives; gains are measured on random inputs of the rows."""
    if calibrator.needs == "weights":
        return calibrator.fn(deltas, merged)
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(20, merged[0].numel(), generator=generator).to(merged.dtype)
    if calibrator.gather is not None:
        sums = torch.stack([calibrator.gather(inputs * (k + 1)) for k in range(len(deltas))])
        return calibrator.fn(deltas, merged, sums=sums)
    changes = [inputs @ one.reshape(len(one), -1).T for one in (*deltas, merged)]
    assert calibrator.measure is not None
    gains = [calibrator.measure(change, changes[-1]).mean() for change in changes[:-1]]
    return calibrator.fn(deltas, merged, gains=torch.stack(gains))


def rows_for(calibrator: Calibrator, shape: tuple[int, ...], experts: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + experts)
    return torch.randn((experts, *shape), generator=generator)
